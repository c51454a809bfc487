//! A model for `observation`: a server with the API of `OpenAI` in this process, whose responses take a fixed time.

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
    /// The number of responses with a tool call, before the response without one that ends a run.
    pub tool_calls: usize,
}

/// The calls by the marker in their messages, such as `[session 7]`.
type Calls = Arc<Mutex<HashMap<String, Vec<Call>>>>;

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
        self.lock().get(marker).cloned().unwrap_or_default()
    }

    /// Returns the number of all calls that were answered.
    pub fn count(&self) -> usize {
        self.lock().values().map(Vec::len).sum()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Vec<Call>>> {
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

async fn respond(State((behavior, calls)): State<(Behavior, Calls)>, body: Bytes) -> Response {
    let arrived_at = Instant::now();
    let request: Value = serde_json::from_slice(&body).unwrap_or_default();
    let messages = request["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let answered = messages.iter().filter(|message| message["role"] == "assistant").count();
    let marker = marker(messages.get(1).and_then(|message| message["content"].as_str()).unwrap_or_default());
    tokio::time::sleep(behavior.latency).await;
    let message = if answered < behavior.tool_calls {
        let function = json!({"name": "report_thinking", "arguments": "{\"thinking\":\"nothing yet\"}"});
        let call = json!({"id": format!("call_{answered}"), "type": "function", "function": function});
        json!({"role": "assistant", "content": null, "tool_calls": [call]})
    } else {
        json!({"role": "assistant", "content": "There is nothing to do."})
    };
    let usage = json!({"prompt_tokens": 1000, "completion_tokens": 10, "total_tokens": 1010});
    let call = Call { arrived_at, answered_at: Instant::now() };
    calls.lock().unwrap_or_else(PoisonError::into_inner).entry(marker).or_default().push(call);
    let response = json!({
        "id": "c", "object": "chat.completion", "model": "benchmark", "usage": usage,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    });
    ([(CONTENT_TYPE, "application/json")], response.to_string()).into_response()
}
