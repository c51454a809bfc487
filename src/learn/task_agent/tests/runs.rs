//! Runs of the agent with a scripted model.

use super::*;
use crate::learn::task_agent::edits::LinkTarget;
use crate::llm::StopReason;
use crate::llm::scripted::{calls, stopped_by, text};

const FINISH: (&str, &str) = ("finish", "{}");

/// Runs the agent, and returns the result and the texts of all tool results.
async fn run_ok(
    input: &TaskAgentInput,
    responses: Vec<Result<ChatResponse, LlmError>>,
) -> (TaskAgentResult, Vec<(String, bool)>) {
    let (result, requests) = run(input, responses).await;
    let results = requests.last().unwrap().results();
    let results = results.into_iter().map(|result| (result.text.clone(), result.is_error)).collect();
    (result.unwrap(), results)
}

fn statuses(result: &TaskAgentResult) -> Vec<(&str, TaskStatus)> {
    result.edits.tasks.iter().map(|task| (task.data.task_description.as_str(), task.status)).collect()
}

fn errors(results: &[(String, bool)]) -> Vec<bool> {
    results.iter().map(|(_, is_error)| *is_error).collect()
}

#[tokio::test]
async fn one_response_can_record_a_complete_task() {
    let (result, results) = run_ok(
        &input(Vec::new(), 3),
        vec![
            calls(&[
                ("report_thinking", r#"{"thinking":"one task"}"#),
                ("insert_task", r#"{"after_task_order":0,"task_description":"A"}"#),
                ("append_messages_to_task", r#"{"task_order":1,"message_id_range":[0,2]}"#),
                ("append_task_progress", r#"{"task_order":1,"progress":"p"}"#),
                ("update_task", r#"{"task_order":1,"task_status":"success"}"#),
            ]),
            calls(&[FINISH]),
        ],
    )
    .await;
    assert_eq!((result.outcome, result.iterations), (AgentOutcome::Finished, 2));
    assert_eq!(errors(&results), [false; 5]);
    assert_eq!(statuses(&result), [("A", TaskStatus::Success)]);
    let task = &result.edits.tasks[0];
    assert!(task.is_new && task.has_ended && result.edits.created == 1);
    assert_eq!(task.data.progresses, ["p"]);
    let target = LinkTarget::Task(task.id);
    assert_eq!(result.edits.links, [(0, target), (1, target), (2, target)]);
}

#[tokio::test]
async fn later_calls_use_the_new_numbers() {
    let (result, _) = run_ok(
        &input(tasks(&["A"]), 1),
        vec![
            calls(&[
                ("insert_task", r#"{"after_task_order":0,"task_description":"B"}"#),
                ("append_messages_to_task", r#"{"task_order":1,"message_id_range":[0,0]}"#),
            ]),
            calls(&[("insert_task", r#"{"after_task_order":7,"task_description":"X"}"#)]),
            calls(&[("update_task", r#"{"task_order":3,"task_status":"running"}"#), FINISH]),
        ],
    )
    .await;
    let (running, pending) = (TaskStatus::Running, TaskStatus::Pending);
    assert_eq!(statuses(&result), [("B", running), ("A", pending), ("X", running)]);
    assert_eq!(result.edits.links, [(0, LinkTarget::Task(result.edits.tasks[0].id))]);
}

#[tokio::test]
async fn a_mistake_can_be_corrected() {
    let (result, results) = run_ok(
        &input(vec![task(1, TaskStatus::Success, "A", &[])], 1),
        vec![
            calls(&[
                ("update_task", r#"{"task_order":5,"task_status":"success"}"#),
                ("append_messages_to_task", r#"{"task_order":1,"message_id_range":[0,0]}"#),
            ]),
            calls(&[
                ("update_task", r#"{"task_order":1,"task_status":"running"}"#),
                ("append_messages_to_task", r#"{"task_order":1,"message_id_range":[0,0]}"#),
            ]),
            calls(&[FINISH]),
        ],
    )
    .await;
    assert_eq!(errors(&results), [true, true, false, false]);
    assert_eq!(results[0].0, "Task 5 does not exist. `task_order` must be from 1 to 1.");
    assert_eq!(statuses(&result), [("A", TaskStatus::Running)]);
    assert_eq!(result.edits.links.len(), 1);
}

#[tokio::test]
async fn invalid_ranges_are_mistakes() {
    let link = |range: &str| format!("{{\"task_order\":1,\"message_id_range\":{range}}}");
    let links = ["[2,9]", "[2,1]", "[5]", "[-1,0]", "[0.5,1]", "\"0-1\"", "{\"a\":1}"].map(link);
    let mut script: Vec<_> = links.iter().map(|arguments| ("append_messages_to_task", arguments.as_str())).collect();
    script.push(("append_messages_to_planning_section", r#"{"message_ids":[99]}"#));
    script.push(("append_messages_to_planning_section", r#"{"message_ids":["0"]}"#));
    let (result, results) = run_ok(&input(tasks(&["A"]), 3), vec![calls(&script), calls(&[FINISH])]).await;
    assert_eq!(errors(&results), [false, true, true, true, true, true, true, true, true]);
    assert_eq!(result.edits.links, [(2, LinkTarget::Task(result.edits.tasks[0].id))]);
}

#[tokio::test]
async fn wrong_arguments_and_tools_are_mistakes() {
    let (result, results) = run_ok(
        &input(tasks(&["A"]), 1),
        vec![
            calls(&[
                ("insert_task", r#"{"task_description":"B"}"#),
                ("insert_task", r#"{"after_task_order":0,"task_description":7}"#),
                ("update_task", r#"{"task_order":"1","task_status":"done"}"#),
                ("update_task", r#"{"task_order":1,"task_status":"done"}"#),
                ("append_task_progress", r#"{"task_order":1}"#),
                ("submit_user_preference", r#"{"preference":["x"]}"#),
                ("report_thinking", "{}"),
                ("nope", "{}"),
                ("update_task", "{task_order: 1"),
                ("update_task", r#"{"task_order":1,"task_status":"failed","reason":"not known"}"#),
            ]),
            calls(&[("finish", "")]),
        ],
    )
    .await;
    let mistakes: Vec<bool> = (0..10).map(|index| index < 9).collect();
    assert_eq!(errors(&results), mistakes);
    for (index, argument) in [
        (0, "missing field `after_task_order`"),
        (1, "`task_description`"),
        (2, "`task_order`"),
        (3, "unknown variant `done`, expected one of `pending`, `running`, `success`, `failed`"),
        (4, "missing field `progress`"),
        (5, "`preference`"),
        (6, "missing field `thinking`"),
        (7, "The tools are: insert_task, update_task, "),
        (8, "not valid JSON"),
    ] {
        assert!(results[index].0.contains(argument), "{argument}: {}", results[index].0);
    }
    assert_eq!(statuses(&result), [("A", TaskStatus::Failed)]);
    assert_eq!(result.outcome, AgentOutcome::Finished);
}

#[tokio::test]
async fn calls_after_finish_are_executed() {
    let input = input(Vec::new(), 1);
    let script = [FINISH, ("insert_task", r#"{"after_task_order":0,"task_description":"A"}"#)];
    let (result, requests) = run(&input, vec![calls(&script)]).await;
    let result = result.unwrap();
    assert_eq!((requests.len(), result.iterations, result.edits.created), (1, 1, 1));
}

#[tokio::test]
async fn every_end_of_a_run_has_an_outcome() {
    let think = || calls(&[("report_thinking", r#"{"thinking":"..."}"#)]);
    let mistake = || calls(&[("nope", "{}")]);
    for (script, outcome, iterations) in [
        (vec![text("nothing to do")], AgentOutcome::NoToolCalls, 1),
        ((0..9).map(|_| think()).collect(), AgentOutcome::MaxIterations, 6),
        ((0..9).map(|_| mistake()).collect(), AgentOutcome::OnlyErrors, 3),
        (vec![stopped_by(StopReason::ContentFilter, text("no"))], AgentOutcome::ContentFilter, 1),
    ] {
        let (result, requests) = run(&input(tasks(&["A"]), 1), script).await;
        let result = result.unwrap();
        assert_eq!((result.outcome, result.iterations, requests.len()), (outcome, iterations, iterations as usize));
        assert!(result.edits.links.is_empty() && !result.edits.tasks[0].has_changed);
    }
}

#[tokio::test]
async fn planning_and_preferences_are_collected() {
    let mut input = input(Vec::new(), 2);
    input.preferences = vec!["known".into()];
    let (result, _) = run_ok(
        &input,
        vec![calls(&[
            ("append_messages_to_planning_section", r#"{"message_ids":[0,1]}"#),
            ("submit_user_preference", r#"{"preference":" P "}"#),
            ("submit_user_preference", r#"{"preference":"P"}"#),
            ("submit_user_preference", r#"{"preference":"known"}"#),
            FINISH,
        ])],
    )
    .await;
    assert_eq!(result.edits.links, [(0, LinkTarget::Planning), (1, LinkTarget::Planning)]);
    assert_eq!(result.edits.new_preferences, ["P"]);
    assert!(result.edits.tasks.is_empty());
}

#[tokio::test]
async fn an_error_of_the_model_loses_all_edits() {
    let script = vec![
        calls(&[("insert_task", r#"{"after_task_order":0,"task_description":"A"}"#)]),
        Err(LlmError::Unavailable(anyhow::anyhow!("overloaded"))),
    ];
    let (result, requests) = run(&input(Vec::new(), 1), script).await;
    assert!(matches!(result, Err(LlmError::Unavailable(_))));
    assert_eq!(requests.len(), 2);
}

#[tokio::test]
async fn a_prompt_that_is_too_long_is_rendered_with_half_of_its_tokens() {
    let mut input = input(Vec::new(), 0);
    input.messages = (0..32).map(|_| user(&"many words ".repeat(90))).collect();
    let too_long = || Err(LlmError::ContextTooLong(anyhow::anyhow!("too long")));
    let (result, requests) = run(&input, vec![too_long(), text("ok")]).await;
    assert_eq!(result.unwrap().outcome, AgentOutcome::NoToolCalls);
    let tokens = |request: &RecordedRequest| crate::conversation::tokens::count_text(request.first_message());
    assert!(tokens(&requests[1]) * 2 <= tokens(&requests[0]), "{} {}", tokens(&requests[0]), tokens(&requests[1]));
    assert!(requests[1].first_message().contains("<message id=\"31\" role=\"user\">\n<text>many words"));
    let (result, _) = run(&input, vec![too_long(), too_long()]).await;
    assert!(matches!(result, Err(LlmError::ContextTooLong(_))));
}
