mod next_message;

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::json;

use super::arguments::{Integer, parse_arguments};
use super::*;
use crate::ids::ProjectId;
use crate::llm::Purpose;
use crate::llm::scripted::{RecordedRequest, ScriptedLlm, calls, stopped_by, text};

/// A toolbox that records the calls that it executes.
struct TestToolbox {
    tools: Vec<Tool>,
    executed: Vec<String>,
    /// The messages with which the run continues, with the number of extra iterations.
    next: VecDeque<(&'static str, u32)>,
    /// The outcomes at which a next message was requested.
    ends: Vec<AgentOutcome>,
}

impl TestToolbox {
    fn new() -> Self {
        let tool = |name, parameters| Tool { name, description: "", parameters };
        let echo = json!({
            "type": "object",
            "properties": {
                "count": {"type": "integer"},
                "kind": {"type": "string", "enum": ["short", "long"]},
                "range": {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
                "names": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["count"],
        });
        let none = json!({"type": "object", "properties": {}, "required": []});
        let tools = vec![tool("echo", echo), tool("stop", none.clone()), tool("silent", none)];
        Self { tools, executed: Vec::new(), next: VecDeque::new(), ends: Vec::new() }
    }
}

impl Toolbox for TestToolbox {
    fn tools(&self) -> &[Tool] {
        &self.tools
    }

    async fn call(&mut self, name: &str, arguments: Map<String, Value>) -> ToolReply {
        self.executed.push(format!("{name}{}", Value::Object(arguments.clone())));
        match (name, arguments.get("count").and_then(Value::as_u64)) {
            ("stop", _) => ToolReply::Finish,
            ("silent", _) => ToolReply::Text(String::new()),
            (_, Some(0)) => ToolReply::Error("count must not be 0".into()),
            (_, Some(count)) => ToolReply::Text("word ".repeat(usize::try_from(count).unwrap())),
            _ => ToolReply::Error("no count".into()),
        }
    }

    async fn next_message(&mut self, outcome: AgentOutcome) -> Option<NextMessage> {
        self.ends.push(outcome);
        let (text, extra_iterations) = self.next.pop_front()?;
        Some(NextMessage { text: text.into(), extra_iterations: NonZeroU32::new(extra_iterations).unwrap() })
    }
}

struct Run {
    result: Result<AgentRun, LlmError>,
    requests: Vec<RecordedRequest>,
    executed: Vec<String>,
    ends: Vec<AgentOutcome>,
}

impl Run {
    fn outcome(&self) -> (AgentOutcome, u32) {
        let run = self.result.as_ref().unwrap();
        (run.outcome, run.iterations)
    }

    /// Returns the results in the last request.
    fn results(&self) -> Vec<(&str, bool)> {
        let results = self.requests.last().unwrap().results();
        results.into_iter().map(|result| (result.text.as_str(), result.is_error)).collect()
    }
}

async fn run_with(responses: Vec<Result<ChatResponse, LlmError>>, max_iterations: u32, history_tokens: usize) -> Run {
    run_and_continue(responses, &[], max_iterations, history_tokens).await
}

async fn run_and_continue(
    responses: Vec<Result<ChatResponse, LlmError>>,
    next: &[(&'static str, u32)],
    max_iterations: u32,
    history_tokens: usize,
) -> Run {
    let llm = ScriptedLlm::new(responses);
    let mut toolbox = TestToolbox { next: next.iter().copied().collect(), ..TestToolbox::new() };
    let request = AgentRequest {
        system: "Count.",
        first_message: &|max_tokens| "word ".repeat(max_tokens),
        first_message_tokens: 100,
        history_tokens,
        max_iterations,
        max_tokens: 50,
        deadline: Instant::now() + Duration::from_mins(1),
        origin: CallOrigin { project: ProjectId::new(), purpose: Purpose::Check, learning_space: None },
    };
    let result = run_agent(&llm, &request, &mut toolbox).await;
    let requests = llm.requests().clone();
    for recorded in &requests {
        assert_eq!(
            (recorded.system.as_str(), recorded.max_tokens, recorded.deadline),
            ("Count.", 50, request.deadline)
        );
        assert_eq!(recorded.tools.len(), 3);
    }
    Run { result, requests, executed: toolbox.executed, ends: toolbox.ends }
}

async fn run(responses: Vec<Result<ChatResponse, LlmError>>) -> Run {
    run_with(responses, 6, 10_000).await
}

fn context_too_long() -> Result<ChatResponse, LlmError> {
    Err(LlmError::ContextTooLong(anyhow::anyhow!("too long")))
}

#[tokio::test]
async fn all_calls_of_a_response_are_executed_in_their_order_and_answered() {
    let run = run(vec![
        calls(&[("echo", r#"{"count":1}"#), ("silent", "{}"), ("echo", r#"{"count":2}"#)]),
        calls(&[("echo", r#"{"count":3}"#), ("stop", ""), ("echo", r#"{"count":4}"#)]),
        text("not requested"),
    ])
    .await;
    assert_eq!(run.outcome(), (AgentOutcome::Finished, 2));
    assert_eq!(
        run.executed,
        [r#"echo{"count":1}"#, "silent{}", r#"echo{"count":2}"#, r#"echo{"count":3}"#, "stop{}", r#"echo{"count":4}"#]
    );
    assert_eq!(run.results(), [("word ", false), ("[empty]", false), ("word word ", false)]);
}

#[tokio::test]
async fn the_calls_of_one_response_are_limited() {
    let many = vec![("silent", "{}"); MAX_CALLS + 2];
    let run = run(vec![calls(&many), text("done")]).await;
    assert_eq!(run.executed.len(), MAX_CALLS);
    let results = run.results();
    assert_eq!((results.len(), results[MAX_CALLS - 1]), (MAX_CALLS + 2, ("[empty]", false)));
    assert_eq!(results[MAX_CALLS..], [(TOO_MANY_CALLS, true); 2]);
}

#[tokio::test]
async fn a_response_without_calls_ends_the_run() {
    let run = run(vec![calls(&[("echo", r#"{"count":1}"#)]), text("done")]).await;
    assert_eq!(run.outcome(), (AgentOutcome::NoToolCalls, 2));
}

#[tokio::test]
async fn a_withheld_response_ends_the_run_unless_it_has_calls() {
    let withheld = stopped_by(StopReason::ContentFilter, text("I cannot."));
    let with_calls = stopped_by(StopReason::ContentFilter, calls(&[("echo", r#"{"count":1}"#)]));
    let run = run(vec![with_calls, withheld]).await;
    assert_eq!(run.outcome(), (AgentOutcome::ContentFilter, 2));
    assert_eq!(run.executed.len(), 1);
}

#[tokio::test]
async fn the_number_of_responses_is_limited() {
    let endless = || (0..10).map(|_| calls(&[("echo", r#"{"count":1}"#)])).collect();
    let run = run_with(endless(), 6, 10_000).await;
    assert_eq!(run.outcome(), (AgentOutcome::MaxIterations, 6));
    assert_eq!((run.requests.len(), run.executed.len()), (6, 6));
    let run = run_with(endless(), 0, 10_000).await;
    assert_eq!((run.outcome(), run.requests.len()), ((AgentOutcome::MaxIterations, 0), 0));
}

#[tokio::test]
async fn mistakes_are_reported_to_the_model() {
    let run = run(vec![
        calls(&[
            ("nope", "{}"),
            ("echo", "{\"count\": 1"),
            ("echo", "[1]"),
            ("echo", r#"{"count":0}"#),
            ("echo", "null"),
            ("echo", r#"{"count":1}"#),
        ]),
        calls(&[("stop", " ")]),
    ])
    .await;
    assert_eq!(run.outcome(), (AgentOutcome::Finished, 2));
    let expected = "Expected: {\"count\": integer, \"kind\": \"short\" | \"long\" (optional), \
         \"names\": [string, ...] (optional), \"range\": [2 x integer] (optional)}.";
    let results = run.results();
    assert_eq!(results[0], ("There is no tool of this name. The tools are: echo, stop, silent.", true));
    assert!(results[1].0.starts_with("The arguments are not valid JSON: EOF") && results[1].0.ends_with(expected));
    assert_eq!(results[2], (format!("The arguments are JSON, but not an object. {expected}").as_str(), true));
    assert_eq!(results[3..], [("count must not be 0", true), ("no count", true), ("word ", false)]);
    assert_eq!(run.executed.len(), 4);
}

#[tokio::test]
async fn invalid_arguments_are_replaced_in_the_conversation() {
    let sent = ["{\"count\": 1", "\"x\"", "", r#"{"count": 2}"#];
    let run = run(vec![calls(&sent.map(|arguments| ("echo", arguments))), text("done")]).await;
    let ChatMessage::Assistant(message) = &run.requests[1].messages[1] else { panic!("the response is echoed") };
    let echoed: Vec<_> = message.tool_calls.iter().map(|call| call.arguments.as_str()).collect();
    assert_eq!(echoed, ["{}", "{}", "{}", r#"{"count": 2}"#]);
}

#[tokio::test]
async fn three_responses_with_nothing_but_errors_end_the_run() {
    let mistake = || calls(&[("nope", "{}"), ("echo", r#"{"count":0}"#)]);
    let success = || calls(&[("nope", "{}"), ("echo", r#"{"count":1}"#)]);
    let run =
        run_with(vec![mistake(), mistake(), success(), mistake(), mistake(), mistake(), success()], 9, 10_000).await;
    assert_eq!(run.outcome(), (AgentOutcome::OnlyErrors, 6));
}

#[tokio::test]
async fn the_last_call_of_a_truncated_response_is_not_executed() {
    let truncated = calls(&[("echo", r#"{"count":1}"#), ("echo", r#"{"count":2"#)]);
    let complete_by_chance = calls(&[("echo", r#"{"count":3}"#)]);
    let run = run(vec![
        stopped_by(StopReason::MaxTokens, truncated),
        stopped_by(StopReason::MaxTokens, complete_by_chance),
        calls(&[("stop", "{}")]),
    ])
    .await;
    assert_eq!(run.outcome(), (AgentOutcome::Finished, 3));
    assert_eq!(run.executed, [r#"echo{"count":1}"#, "stop{}"]);
    assert_eq!(run.results(), [("word ", false), (TRUNCATED_CALL, true), (TRUNCATED_CALL, true)]);
}

#[tokio::test]
async fn a_truncated_text_is_reported_to_the_model() {
    let truncated = |cut_off| stopped_by(StopReason::MaxTokens, text(cut_off));
    let run = run(vec![truncated("First I"), truncated(" "), calls(&[("stop", "{}")])]).await;
    assert_eq!(run.outcome(), (AgentOutcome::Finished, 3));
    let texts = run.requests[2].messages[1..].iter().map(|message| match message {
        ChatMessage::User(text) | ChatMessage::Assistant(AssistantMessage { text, .. }) => text.as_str(),
        ChatMessage::ToolResults(_) => panic!("no call was answered"),
    });
    let texts: Vec<_> = texts.collect();
    assert_eq!(texts, ["First I", TRUNCATED_TEXT, CUT_OFF_RESPONSE, TRUNCATED_TEXT]);
    let run = run_with((0..5).map(|_| truncated("x")).collect(), 6, 10_000).await;
    assert_eq!(run.outcome(), (AgentOutcome::OnlyErrors, 3));
}

#[tokio::test]
async fn a_request_that_is_too_long_is_halved_once() {
    let echo = || calls(&[("echo", r#"{"count":2000}"#)]);
    let run = run(vec![context_too_long(), echo(), text("done")]).await;
    assert_eq!(run.outcome(), (AgentOutcome::NoToolCalls, 2));
    let words = |request: &RecordedRequest| request.first_message().split_whitespace().count();
    let lengths: Vec<_> = run.requests.iter().map(words).collect();
    assert_eq!(lengths[0], 100);
    assert!(lengths[1] == lengths[2] && (49..=51).contains(&lengths[1]), "{lengths:?}");

    let late = run_with(vec![echo(), context_too_long(), calls(&[("stop", "{}")])], 6, 3_000).await;
    assert_eq!(late.outcome(), (AgentOutcome::Finished, 2));
    assert!(late.requests[1].results()[0].text.len() == 10_000 && late.requests[2].results()[0].text.len() < 300);

    let twice = run_with(vec![context_too_long(), echo(), context_too_long()], 6, 10_000).await;
    assert!(matches!(twice.result, Err(LlmError::ContextTooLong(_))));
    assert_eq!(twice.requests.len(), 3);
}

#[tokio::test]
async fn errors_of_the_model_end_the_run() {
    let run = run(vec![
        calls(&[("echo", r#"{"count":1}"#)]),
        Err(LlmError::Unavailable(anyhow::anyhow!("overloaded"))),
        text("not requested"),
    ])
    .await;
    assert!(matches!(run.result, Err(LlmError::Unavailable(_))));
    assert_eq!(run.requests.len(), 2);
}

#[tokio::test]
async fn old_results_are_shortened_but_not_removed() {
    let echo = || calls(&[("echo", r#"{"count":400}"#), ("echo", r#"{"count":2}"#)]);
    let run = run_with(vec![echo(), echo(), echo(), echo(), text("done")], 9, 1_200).await;
    let lengths = |request: &RecordedRequest| -> Vec<usize> {
        request
            .results()
            .iter()
            .map(|result| result.text.split_whitespace().filter(|word| *word == "word").count())
            .collect()
    };
    assert_eq!(lengths(&run.requests[2]), [400, 2, 400, 2]);
    assert_eq!(lengths(&run.requests[3]), [40, 2, 400, 2, 400, 2]);
    assert_eq!(lengths(&run.requests[4]), [40, 2, 40, 2, 400, 2, 400, 2]);
    let shortened = &run.requests[4].results()[0].text;
    assert!(shortened.ends_with("Call the tool again if you need it.]"), "{shortened}");
    // The newest result is never shortened, even if it alone is too long.
    let huge = run_with(vec![calls(&[("echo", r#"{"count":5000}"#)]), text("done")], 9, 1_000).await;
    assert_eq!(lengths(&huge.requests[1]), [5000]);
}

#[test]
fn arguments_are_parsed_with_readable_errors() {
    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Echo {
        count: Integer,
        range: Option<Vec<Integer>>,
    }
    let tool = &TestToolbox::new().tools[0];
    let parse = |arguments: Value| {
        let Value::Object(arguments) = arguments else { panic!("an object") };
        parse_arguments::<Echo>(tool, arguments)
    };
    for (number, count) in
        [("7", 7), ("-7", -7), ("1.0", 1), ("1.00", 1), ("1e3", 1000), ("99999999999999999999", i64::MAX)]
    {
        let arguments = serde_json::from_str(&format!("{{\"count\": {number}, \"other\": null}}")).unwrap();
        assert_eq!(parse(arguments), Ok(Echo { count: Integer(count), range: None }), "{number}");
    }
    for (arguments, reason) in [
        (json!({}), "The arguments are not valid: missing field `count`. Expected: {\"count\": integer, "),
        (
            json!({"count": "1"}),
            "The argument `count` is not valid: invalid type: string \"1\", expected an integer. Expected: ",
        ),
        (
            json!({"count": 1.5}),
            "The argument `count` is not valid: invalid type: floating point `1.5`, expected an integer. ",
        ),
        (json!({"count": null}), "The argument `count` is not valid: invalid type: null, expected an integer. "),
        (
            json!({"count": 1, "range": [1, true]}),
            "The argument `range[1]` is not valid: invalid type: boolean `true`, ",
        ),
        (
            json!({"count": 1, "range": 1}),
            "The argument `range` is not valid: invalid type: number, expected a sequence",
        ),
    ] {
        let error = parse(arguments).unwrap_err();
        assert!(error.starts_with(reason), "{error}");
    }
    let error = parse(json!({"count": "x".repeat(100_000)})).unwrap_err();
    assert!(error.len() < 600, "{}", error.len());
}

#[tokio::test]
async fn a_run_does_not_finish_with_an_error_that_the_model_can_correct() {
    let mistake = || calls(&[("stop", "{}"), ("echo", r#"{"count":0}"#)]);
    let run = run_and_continue(vec![mistake(), calls(&[("stop", "{}")])], &[], 9, 10_000).await;
    assert_eq!(run.outcome(), (AgentOutcome::Finished, 2));
    let results = run.requests[1].results();
    assert!(results[0].text.starts_with("Not finished") && results[1].is_error, "{results:?}");
    // A model that repeats the mistake ends the run.
    let run = run_and_continue(vec![mistake(), mistake(), mistake()], &[], 9, 10_000).await;
    assert_eq!(run.outcome(), (AgentOutcome::Finished, 2));
}
