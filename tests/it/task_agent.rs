//! Observation with the task agent: stored messages become tasks. Every scenario runs with both APIs of the scripted model,
//! through the real clients, job runner and routes.

mod buffer;
mod failures;
mod fairness;
mod flush;
mod links;
mod privacy;
mod prompts;
mod rendering;
mod tasks;
mod usage;

use std::collections::BTreeMap;

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::model_server::{Lane, ModelRequest, ModelServer, Step, Wire};
use crate::support::{TestApp, run_with, wait_until};

pub const TTL: &str = "SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS";

/// An app with the scripted model, and a session of a project.
pub struct Scenario {
    pub app: TestApp,
    pub model: ModelServer,
    pub wire: Wire,
    pub client: Client,
    pub session: String,
}

/// Runs a scenario with each API. Messages are due immediately, unless the settings say otherwise. Afterwards, the script must
/// have ended, and the model must not have rejected a request.
#[expect(clippy::print_stdout, reason = "the output of a failed test names the API")]
pub async fn in_both_formats(settings: &[(&'static str, &str)], scenario: impl AsyncFn(&Scenario)) {
    for wire in Wire::ALL {
        println!("with {wire:?}:");
        let model = ModelServer::start().await;
        let mut config = model.config(wire).with(TTL, "0");
        config.settings.extend(settings.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let scenario = &scenario;
        run_with(config, async move |app| {
            let client = app.project().await;
            let session = client.new_session().await;
            let context = Scenario { app, model, wire, client, session };
            scenario(&context).await;
            assert_eq!(context.model.remaining_steps(), 0, "steps of the script that no request has used");
            context.model.assert_nothing_rejected();
        })
        .await;
    }
}

impl Scenario {
    /// Appends steps to the script of the task agent.
    pub fn script(&self, steps: impl IntoIterator<Item = Step>) {
        self.model.script(Lane::Task, "", steps);
    }

    /// Stores texts as messages of the user.
    pub async fn store(&self, texts: &[&str]) {
        for text in texts {
            self.client.store_text(&self.session, text).await;
        }
    }

    /// Stores the texts `m0`, `m1` and so on.
    pub async fn store_numbered(&self, count: usize) {
        for text in numbered(count) {
            self.client.store_text(&self.session, &text).await;
        }
    }

    /// Observes the pending messages with these steps, and returns the requests.
    pub async fn observe(&self, steps: impl IntoIterator<Item = Step>) -> Vec<ModelRequest> {
        self.script(steps);
        self.app.drain_jobs().await;
        self.model.take_requests()
    }

    /// Returns the numbers of messages that are pending, being observed, and observed.
    pub async fn counts(&self) -> [u64; 3] {
        self.counts_of(&self.session).await
    }

    pub async fn counts_of(&self, session: &str) -> [u64; 3] {
        let status = self.client.get(&format!("/api/v1/session/{session}/observing_status")).await.data();
        ["pending", "in_process", "observed"].map(|key| status[key].as_u64().unwrap())
    }

    pub async fn wait_for_counts(&self, counts: [u64; 3]) {
        wait_until(&format!("the counts are {counts:?}"), async || self.counts().await == counts).await;
    }

    /// Returns the status of each message, oldest first.
    pub async fn message_statuses(&self) -> Vec<String> {
        let page = self.client.messages(&self.session, "format=acontext&limit=200").await;
        let items = page["items"].as_array().unwrap().iter();
        items.map(|item| item["session_task_process_status"].as_str().unwrap().to_owned()).collect()
    }

    pub async fn flush(&self) -> Value {
        flush(&self.client, &self.session).await
    }

    /// Returns the tasks of the session by their order.
    pub async fn tasks(&self) -> Vec<Value> {
        let response = self.client.get(&format!("/api/v1/session/{}/task?limit=200", self.session)).await;
        response.assert_status(200);
        let mut tasks = response.data()["items"].as_array().unwrap().clone();
        tasks.sort_by_key(|task| task["order"].as_i64());
        tasks
    }

    /// Returns the order, description and status of each task.
    pub async fn task_lines(&self) -> Vec<String> {
        let line = |task: &Value| {
            let [description, status] =
                [&task["data"]["task_description"], &task["status"]].map(|text| text.as_str().unwrap());
            format!("{} {description} {status}", task["order"])
        };
        self.tasks().await.iter().map(line).collect()
    }

    /// Returns the jobs of the session, oldest first.
    pub async fn jobs(&self) -> Vec<Value> {
        let response = self.client.get(&format!("/api/v1/jobs?session_id={}", self.session)).await;
        response.assert_status(200);
        response.data()["items"].as_array().unwrap().clone()
    }

    /// Ends the backoff of all jobs.
    pub async fn end_backoff(&self) {
        self.app.execute("update jobs set run_at = now() where state = 'ready'").await;
    }

    /// Runs jobs until a future is complete, and returns its output.
    pub async fn while_jobs_run<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            ended = self.app.run_jobs() => panic!("the runner ended: {ended:?}"),
            output = work => output,
        }
    }

    /// Returns the order of the task to which each message is linked, oldest message first. 0 is the planning task.
    pub async fn links(&self) -> Vec<Option<i64>> {
        let links = sqlx::query_scalar(
            r#"select t."order" from messages m left join tasks t on t.id = m.task_id where m.session_id = $1::uuid
               order by m.created_at"#,
        );
        links.bind(&self.session).fetch_all(&*self.app.app.db).await.unwrap()
    }

    /// Returns the number of created tasks in the usage metrics of the project.
    pub async fn created_tasks(&self) -> i64 {
        let count = sqlx::query_scalar(
            "select coalesce(sum(increment), 0)::bigint from metrics where project_id = $1 and tag = 'task.created'",
        );
        count.bind(self.client.project()).fetch_one(&*self.app.app.db).await.unwrap()
    }
}

async fn flush(client: &Client, session: &str) -> Value {
    let response = client.post(&format!("/api/v1/session/{session}/flush"), json!({})).await;
    assert_eq!(response.status, StatusCode::OK, "{}", response.text());
    response.data()
}

pub fn flushed() -> Value {
    json!({"status": 200, "errmsg": ""})
}

fn numbered(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("m{n}")).collect()
}

pub fn finish() -> Step {
    Step::call("finish", json!({}))
}

pub fn insert(after: i64, description: &str) -> Step {
    Step::call("insert_task", json!({"after_task_order": after, "task_description": description}))
}

pub trait Calls {
    fn insert(self, after: i64, description: &str) -> Self;
    fn link(self, task: i64, range: &[i64]) -> Self;
    fn progress(self, task: i64, text: &str) -> Self;
    fn status(self, task: i64, status: &str) -> Self;
    fn finish(self) -> Self;
}

impl Calls for Step {
    fn insert(self, after: i64, description: &str) -> Self {
        self.and_call("insert_task", json!({"after_task_order": after, "task_description": description}))
    }

    fn link(self, task: i64, range: &[i64]) -> Self {
        self.and_call("append_messages_to_task", json!({"task_order": task, "message_id_range": range}))
    }

    fn progress(self, task: i64, text: &str) -> Self {
        self.and_call("append_task_progress", json!({"task_order": task, "progress": text}))
    }

    fn status(self, task: i64, status: &str) -> Self {
        self.and_call("update_task", json!({"task_order": task, "task_status": status}))
    }

    fn finish(self) -> Self {
        self.and_call("finish", json!({}))
    }
}

/// Returns an answer with no call yet.
pub fn calls() -> Step {
    Step::text("")
}

/// Returns the lines of a section of the first message; empty if the request has no such section.
pub fn section(request: &ModelRequest, tag: &str) -> String {
    let text = &request.user_texts()[0];
    let lines = text.split_once(&format!("<{tag}>\n")).and_then(|(_, rest)| rest.split_once(&format!("\n</{tag}>\n")));
    lines.map(|(lines, _)| lines.to_owned()).unwrap_or_default()
}

/// Returns the contents of the messages that are observed, by their ids in the prompt. The ids must be 0, 1, 2 and so on.
fn batch(request: &ModelRequest) -> Vec<String> {
    let messages = section(request, "messages");
    let elements = messages.split("<message id=\"").skip(1).map(|element| element.split_once('"').unwrap());
    let elements: BTreeMap<usize, &str> = elements.map(|(id, rest)| (id.parse().unwrap(), rest)).collect();
    assert!(elements.keys().copied().eq(0..elements.len()), "{messages}");
    let content = |rest: &&str| {
        let (_, content) = rest.split_once(">\n").unwrap();
        content.trim_end().strip_suffix("</message>").unwrap().trim_end().to_owned()
    };
    elements.values().map(content).collect()
}

/// Returns the messages that are observed if all have one text.
fn batch_texts(request: &ModelRequest) -> Vec<String> {
    let text = |content: String| content.strip_prefix("<text>").unwrap().strip_suffix("</text>").unwrap().to_owned();
    batch(request).into_iter().map(text).collect()
}
