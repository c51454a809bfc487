//! Runs that continue with a further message.

use super::*;

/// Returns a short form of each message after the first one.
fn forms(request: &RecordedRequest) -> Vec<String> {
    let form = |message: &ChatMessage| match message {
        ChatMessage::User(text) => format!("user: {text}"),
        ChatMessage::Assistant(message) if message.tool_calls.is_empty() => format!("text: {}", message.text),
        ChatMessage::Assistant(message) => format!("{} calls", message.tool_calls.len()),
        ChatMessage::ToolResults(results) => format!("{} results", results.len()),
    };
    request.messages[1..].iter().map(form).collect()
}

#[tokio::test]
async fn a_run_continues_with_the_next_message() {
    let echo = || calls(&[("echo", r#"{"count":1}"#)]);
    let finish = || calls(&[("echo", r#"{"count":1}"#), ("stop", "{}")]);
    let script = vec![finish(), text("done"), echo(), text(" "), echo(), text("end")];
    let run = run_and_continue(script, &[("A", 1), ("B", 1), ("C", 1)], 6, 10_000).await;
    assert_eq!(run.outcome(), (AgentOutcome::NoToolCalls, 6));
    let (finished, no_calls) = (AgentOutcome::Finished, AgentOutcome::NoToolCalls);
    assert_eq!(run.ends, [finished, no_calls, no_calls, no_calls]);
    let expected = [
        "2 calls",
        "2 results",
        "user: A",
        "text: done",
        "user: B",
        "1 calls",
        "1 results",
        "text: [The response was empty.]",
        "user: C",
        "1 calls",
        "1 results",
    ];
    assert_eq!(forms(&run.requests[5]), expected);
}

#[tokio::test]
async fn each_next_message_adds_iterations() {
    let endless = |first| [first].into_iter().chain((0..20).map(|_| calls(&[("echo", r#"{"count":1}"#)]))).collect();
    let finish = || calls(&[("stop", "{}")]);
    let run = run_and_continue(endless(finish()), &[("A", 3)], 2, 10_000).await;
    assert_eq!(run.outcome(), (AgentOutcome::MaxIterations, 5));
    assert_eq!(run.ends, [AgentOutcome::Finished, AgentOutcome::MaxIterations]);
    // The limit itself may be continued too.
    let run = run_and_continue(endless(calls(&[("silent", "{}")])), &[("A", 3), ("B", 1)], 2, 10_000).await;
    assert_eq!(run.outcome(), (AgentOutcome::MaxIterations, 6));
    assert_eq!(run.ends, [AgentOutcome::MaxIterations; 3]);
    assert_eq!(forms(&run.requests[5])[4], "user: A");
}

#[tokio::test]
async fn failed_runs_do_not_continue() {
    let mistake = || calls(&[("nope", "{}")]);
    let finish = || calls(&[("stop", "{}")]);
    let script = vec![mistake(), mistake(), finish(), mistake(), mistake(), mistake()];
    let run = run_and_continue(script, &[("A", 5), ("B", 5)], 9, 10_000).await;
    assert_eq!(run.outcome(), (AgentOutcome::OnlyErrors, 6), "the mistakes before the next message do not count");
    assert_eq!(run.ends, [AgentOutcome::Finished]);
    let withheld = stopped_by(StopReason::ContentFilter, text("I cannot."));
    let run = run_and_continue(vec![withheld], &[("A", 5)], 9, 10_000).await;
    assert_eq!((run.outcome(), run.ends.len()), ((AgentOutcome::ContentFilter, 1), 0));
}
