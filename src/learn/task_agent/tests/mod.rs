mod editor;
mod injections;
mod prompts;
mod proptests;
mod runs;

use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::Instant;

use super::*;
use crate::conversation::parts::{Part, PartKind, Role};
use crate::ids::ProjectId;
use crate::llm::scripted::{RecordedRequest, ScriptedLlm};
use crate::llm::{ChatResponse, Purpose};

fn part(kind: PartKind, text: &str, meta: Value) -> Part {
    let Value::Object(meta) = meta else { panic!("meta is an object") };
    Part { kind, text: text.into(), asset: None, filename: String::new(), meta, extra: Map::new() }
}

fn user(text: &str) -> PromptMessage {
    PromptMessage { role: Role::User, parts: vec![part(PartKind::Text, text, Value::Object(Map::new()))] }
}

fn users(count: usize) -> Vec<PromptMessage> {
    (0..count).map(|n| user(&format!("message {n}"))).collect()
}

fn task(order: i64, status: TaskStatus, description: &str, progresses: &[&str]) -> ExistingTask {
    let data = TaskData {
        task_description: description.into(),
        progresses: progresses.iter().map(|text| (*text).into()).collect(),
        user_preferences: Vec::new(),
    };
    ExistingTask { id: TaskId::new(), order, status, data }
}

/// Returns pending tasks whose orders are 1, 2, 3 and so on.
fn tasks(descriptions: &[&str]) -> Vec<ExistingTask> {
    descriptions.iter().zip(1..).map(|(text, order)| task(order, TaskStatus::Pending, text, &[])).collect()
}

fn input(tasks: Vec<ExistingTask>, message_count: usize) -> TaskAgentInput {
    TaskAgentInput {
        tasks,
        messages: users(message_count),
        max_iterations: 6,
        previous_progress_count: 6,
        ..TaskAgentInput::default()
    }
}

/// Runs the agent, and returns the result and the requests.
async fn run(
    input: &TaskAgentInput,
    responses: Vec<Result<ChatResponse, LlmError>>,
) -> (Result<TaskAgentResult, LlmError>, Vec<RecordedRequest>) {
    let llm = ScriptedLlm::new(responses);
    let parameters = CallParameters {
        max_tokens: 100,
        deadline: Instant::now() + Duration::from_mins(1),
        origin: CallOrigin { project: ProjectId::new(), purpose: Purpose::TaskAgent, learning_space: None },
    };
    let result = run_task_agent(&llm, input, parameters).await;
    let requests = llm.requests().clone();
    (result, requests)
}

/// Returns the first message that the model receives for an input.
async fn first_message(input: &TaskAgentInput) -> String {
    let (_, requests) = run(input, Vec::new()).await;
    requests[0].first_message().into()
}
