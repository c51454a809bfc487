//! A scripted model behind the real HTTP clients: a server on loopback that has the APIs of `OpenAI` (`/v1/chat/completions`) and
//! Anthropic (`/v1/messages`), so that every scenario runs with both.
//!
//! ```text
//! let model = ModelServer::start().await;
//! model.script(Lane::Task, "[[S1]]", [
//!     Step::call("insert_task", json!({"after_task_order": 0, "task_description": "Plan"})).and_call("finish", json!({})),
//!     Step::status(429).retry_after("1"),
//!     Step::text("Done."),
//! ]);
//! run_with(model.config(Wire::OpenAi), async |app| { /* store a message that contains [[S1]] */ }).await;
//! assert_eq!(model.take_requests().len(), 3);
//! model.assert_nothing_rejected();
//! ```
//!
//! A request gets the next step of the script of its lane and marker. The lane is that of the agent that sends it, which the
//! offered tools determine. The marker is a text such as `[[S1]]` anywhere in its messages; of several, the first with a remaining
//! step counts. The script of the marker `""` is for all other requests of the lane. Without a step, the response is the text
//! `Done.`.
//!
//! The server rejects what providers reject ([`rules`]). A test ends with [`ModelServer::assert_nothing_rejected`].

mod rules;
mod step;
mod wire;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::Value;
use tokio::task::JoinSet;

use super::TestConfig;

pub use step::{Latch, Step};
pub use wire::Wire;

/// The agent that sent a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Offers `insert_task`.
    Task,
    /// The distillation of a successful task: offers `skip_learning`.
    DistillSuccess,
    /// The distillation of a failed task: offers `report_failure_analysis`, but not `skip_learning`.
    DistillFailure,
    /// The skill agent: offers `get_skill`.
    Learner,
    /// Any other request, such as that of `acontextd check-model`.
    Other,
}

/// A request that the server has received.
#[derive(Clone, Debug)]
pub struct ModelRequest {
    pub wire: Wire,
    pub lane: Lane,
    /// The markers in the messages, in order.
    pub markers: Vec<String>,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Value,
    pub received_at: Instant,
}

/// The script of each lane and marker: the steps that remain.
type Scripts = HashMap<(Lane, String), VecDeque<Step>>;

#[derive(Default)]
struct Shared {
    scripts: Mutex<Scripts>,
    requests: Mutex<Vec<ModelRequest>>,
    rejections: Mutex<Vec<String>>,
}

/// The server. It stops when the value is dropped.
pub struct ModelServer {
    /// The base URL without a path.
    pub url: String,
    shared: Arc<Shared>,
    _server: JoinSet<std::io::Result<()>>,
}

impl ModelServer {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared::default());
        let respond_as = |wire| {
            post(async move |State(shared): State<Arc<Shared>>, uri: Uri, headers: HeaderMap, body: Bytes| {
                respond(&shared, wire, uri, headers, &body).await
            })
        };
        let router = Router::new()
            .route("/v1/chat/completions", respond_as(Wire::OpenAi))
            .route("/v1/messages", respond_as(Wire::Anthropic))
            .with_state(Arc::clone(&shared));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await });
        Self { url, shared, _server: server }
    }

    /// Returns the settings with which `acontextd` uses this model.
    pub fn settings(&self, wire: Wire) -> Vec<(&'static str, String)> {
        let (sdk, path) = match wire {
            Wire::OpenAi => ("openai", "/v1"),
            Wire::Anthropic => ("anthropic", ""),
        };
        vec![
            ("LLM_SDK", sdk.into()),
            ("LLM_BASE_URL", format!("{}{path}", self.url)),
            ("LLM_API_KEY", "test-key-0123456789".into()),
            ("LLM_SIMPLE_MODEL", "test-model".into()),
        ]
    }

    /// Returns the configuration of an app that uses this model.
    pub fn config(&self, wire: Wire) -> TestConfig {
        let mut config = TestConfig::default();
        config.settings.extend(self.settings(wire));
        config
    }

    /// Appends steps to the script of a lane and a marker, such as `[[S1]]`.
    pub fn script(&self, lane: Lane, marker: &str, steps: impl IntoIterator<Item = Step>) {
        lock(&self.shared.scripts).entry((lane, marker.to_owned())).or_default().extend(steps);
    }

    /// Returns the number of steps that no request has used yet.
    pub fn remaining_steps(&self) -> usize {
        lock(&self.shared.scripts).values().map(VecDeque::len).sum()
    }

    /// Removes the steps of a lane and a marker that no request has used yet.
    pub fn clear_script(&self, lane: Lane, marker: &str) {
        lock(&self.shared.scripts).remove(&(lane, marker.to_owned()));
    }

    /// Returns the requests since the last call, including the rejected ones.
    pub fn take_requests(&self) -> Vec<ModelRequest> {
        std::mem::take(&mut *lock(&self.shared.requests))
    }

    /// Returns the reasons for which requests were rejected since the last call.
    pub fn take_rejections(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.shared.rejections))
    }

    /// Asserts that the server has rejected no request.
    pub fn assert_nothing_rejected(&self) {
        let rejections = self.take_rejections();
        assert!(rejections.is_empty(), "the model has rejected requests: {rejections:#?}");
    }
}

async fn respond(shared: &Shared, wire: Wire, uri: Uri, headers: HeaderMap, body: &[u8]) -> Response {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let lane = find_lane(&wire.tool_names(&body));
    let markers = find_markers(&body["messages"].to_string());
    let request = ModelRequest { wire, lane, markers, uri, headers, body, received_at: Instant::now() };
    lock(&shared.requests).push(request.clone());
    if let Err(violation) = rules::check_request(wire, &request.body) {
        lock(&shared.rejections).push(violation.clone());
        return wire.error_response(400, &violation).into_response();
    }
    let step = next_step(&mut lock(&shared.scripts), &request);
    step.respond(&request).await
}

/// Removes the next step for a request from its script.
fn next_step(scripts: &mut Scripts, request: &ModelRequest) -> Step {
    let markers = request.markers.iter().map(String::as_str).chain([""]);
    let mut steps = markers.filter_map(|marker| scripts.get_mut(&(request.lane, marker.to_owned()))?.pop_front());
    steps.next().unwrap_or_else(|| Step::text("Done."))
}

fn find_lane(tools: &[&str]) -> Lane {
    let offers = |name| tools.contains(&name);
    match () {
        () if offers("insert_task") => Lane::Task,
        () if offers("skip_learning") => Lane::DistillSuccess,
        () if offers("report_failure_analysis") => Lane::DistillFailure,
        () if offers("get_skill") => Lane::Learner,
        () => Lane::Other,
    }
}

/// Returns the markers in a text: `[[`, letters and digits, `]]`.
fn find_markers(text: &str) -> Vec<String> {
    let names = text.split("[[").skip(1).filter_map(|rest| rest.split_once("]]"));
    let names = names.filter(|(name, _)| !name.is_empty() && name.chars().all(char::is_alphanumeric));
    names.map(|(name, _)| format!("[[{name}]]")).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ModelRequest {
    /// Returns the instructions.
    pub fn system(&self) -> String {
        self.wire.system(&self.body)
    }

    /// Returns the texts of the user messages. Results of tools are not included.
    pub fn user_texts(&self) -> Vec<String> {
        Wire::user_texts(&self.body)
    }

    /// Returns the names of the offered tools.
    pub fn tool_names(&self) -> Vec<&str> {
        self.wire.tool_names(&self.body)
    }

    /// Returns the ids of the tool calls and the results, of the whole conversation, in order.
    pub fn tool_results(&self) -> Vec<(String, String)> {
        self.wire.tool_results(&self.body)
    }

    /// Returns the texts of the results of the last round of tool calls.
    pub fn last_results(&self) -> Vec<String> {
        let results = self.tool_results();
        let count = self.wire.last_result_count(&self.body);
        results.into_iter().rev().take(count).rev().map(|(_, text)| text).collect()
    }
}
