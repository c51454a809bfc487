//! A model for `observation` and `learning`: a server with the API of `OpenAI` in this process, whose responses take a fixed time.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// A request of the server that is measured.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub arrived_at: Instant,
    pub answered_at: Instant,
}

/// The behavior of the model.
#[derive(Clone, Copy)]
pub struct Behavior {
    /// The time from a request to its response.
    pub latency: Duration,
    pub script: Script,
}

/// The responses of the model.
#[derive(Clone, Copy)]
pub enum Script {
    /// This number of responses with a tool call that changes nothing, and then one without a call, which ends the run.
    Think { tool_calls: usize },
    /// The task agent creates a finished task for each session, the distillation reports a lesson, and the skill agent creates a
    /// file for each lesson and then calls `finish`.
    Learn,
}

/// The calls by their conversation: its first tool, and the marker in its first message, such as `[session 7]`.
type Calls = Arc<Mutex<HashMap<(String, String), Vec<Call>>>>;

/// A running model. It stops when this value is dropped.
pub struct Model {
    pub address: SocketAddr,
    calls: Calls,
    _task: JoinSet<std::io::Result<()>>,
}

impl Model {
    pub async fn start(behavior: Behavior) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let calls = Calls::default();
        let app = Router::new().route("/v1/chat/completions", post(respond)).with_state((behavior, Arc::clone(&calls)));
        let mut task = JoinSet::new();
        task.spawn(async move { axum::serve(listener, app).await });
        Ok(Self { address, calls, _task: task })
    }

    /// Returns the calls with this marker in their messages, oldest first.
    pub fn calls(&self, marker: &str) -> Vec<Call> {
        let calls = self.lock();
        let matches = |((_, found), calls): (&(String, String), &Vec<Call>)| (found == marker).then(|| calls.clone());
        calls.iter().find_map(matches).unwrap_or_default()
    }

    /// Returns the calls of each conversation, oldest first.
    pub fn conversations(&self) -> Vec<Vec<Call>> {
        self.lock().values().cloned().collect()
    }

    /// Returns the number of all calls that were answered.
    pub fn count(&self) -> usize {
        self.lock().values().map(Vec::len).sum()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), Vec<Call>>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the settings of a server that uses this model.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        vec![("LLM_BASE_URL", format!("http://{}/v1", self.address)), ("LLM_SIMPLE_MODEL", "benchmark".to_owned())]
    }
}

/// Returns the marker in a text: the first `[session N]`.
fn marker(text: &str) -> String {
    let start = text.find("[session ").unwrap_or_default();
    text[start..].split_inclusive(']').next().unwrap_or_default().to_owned()
}

/// Returns the tool calls of the next response: their names and arguments.
fn next_calls(script: Script, tools: &[&str], messages: &[Value]) -> Vec<(&'static str, Value)> {
    let last = messages.last().unwrap_or(&Value::Null);
    let is_first = last["role"] == "user";
    match script {
        Script::Think { tool_calls } => {
            let answered = messages.iter().filter(|message| message["role"] == "assistant").count();
            let think = ("report_thinking", json!({"thinking": "nothing yet"}));
            if answered < tool_calls { vec![think] } else { Vec::new() }
        }
        Script::Learn if tools.contains(&"insert_task") => {
            let description = format!("{} deploy the service", marker(&last["content"].to_string()));
            vec![
                ("insert_task", json!({"after_task_order": 0, "task_description": description})),
                ("append_messages_to_task", json!({"task_order": 1, "message_id_range": [0, 0]})),
                ("update_task", json!({"task_order": 1, "task_status": "success"})),
                ("finish", json!({})),
            ]
        }
        Script::Learn if tools.contains(&"report_success_analysis") => {
            let lesson = json!({
                "task_goal": format!("{} The service was to be deployed.", marker(&last["content"].to_string())),
                "approach": "The tests ran first, and then the deployment.",
                "key_decisions": ["The tests ran before the deployment, because a broken service is expensive."],
                "generalizable_pattern": "Run the tests, deploy, and check the status of the service.",
                "applies_when": "A service is deployed.",
            });
            vec![("report_success_analysis", lesson)]
        }
        Script::Learn if is_first => {
            let number: String = marker(&last["content"].to_string()).chars().filter(char::is_ascii_digit).collect();
            let content = "Run the tests, deploy, and check the status of the service.";
            let path = format!("lesson-{number}.md");
            vec![
                ("report_thinking", json!({"thinking": "The lesson is new."})),
                ("create_skill_file", json!({"skill_name": "daily-logs", "file_path": path, "content": content})),
            ]
        }
        Script::Learn => vec![("finish", json!({}))],
    }
}

async fn respond(State((behavior, calls)): State<(Behavior, Calls)>, body: Bytes) -> Response {
    let arrived_at = Instant::now();
    let request: Value = serde_json::from_slice(&body).unwrap_or_default();
    let messages = request["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let tools = request["tools"].as_array().map(Vec::as_slice).unwrap_or_default();
    let tools: Vec<_> = tools.iter().filter_map(|tool| tool["function"]["name"].as_str()).collect();
    let first_message = messages.get(1).map(|message| message["content"].to_string()).unwrap_or_default();
    let conversation = (tools.first().copied().unwrap_or_default().to_owned(), marker(&first_message));
    tokio::time::sleep(behavior.latency).await;
    let next_calls = next_calls(behavior.script, &tools, messages);
    let to_call = |(index, (name, arguments)): (usize, (&str, Value))| {
        let function = json!({"name": name, "arguments": arguments.to_string()});
        json!({"id": format!("call_{}_{index}", messages.len()), "type": "function", "function": function})
    };
    let message = if next_calls.is_empty() {
        json!({"role": "assistant", "content": "There is nothing to do."})
    } else {
        let tool_calls: Vec<_> = next_calls.into_iter().enumerate().map(to_call).collect();
        json!({"role": "assistant", "content": null, "tool_calls": tool_calls})
    };
    let usage = json!({"prompt_tokens": 1000, "completion_tokens": 10, "total_tokens": 1010});
    let call = Call { arrived_at, answered_at: Instant::now() };
    calls.lock().unwrap_or_else(PoisonError::into_inner).entry(conversation).or_default().push(call);
    let response = json!({
        "id": "c", "object": "chat.completion", "model": "benchmark", "usage": usage,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    });
    ([(CONTENT_TYPE, "application/json")], response.to_string()).into_response()
}
