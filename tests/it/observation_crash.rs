//! The server is killed or stopped while it observes messages, and started again. The tasks are those of an observation that
//! nothing has interrupted, and nothing is left half done.

pub mod deployment;

use serde_json::{Value, json};

use crate::support::ADMIN;
use crate::support::model_server::{Lane, Latch, ModelRequest, Step, Wire};
use crate::support::server_process::data_dir;
use deployment::{Deployment, MARK, MARKER, MESSAGES};

pub const KEY: &str = "sk-ac-your-root-api-bearer-token";

/// The answers of the model for one session: three calls, so that there are boundaries between them.
fn script() -> [Step; 3] {
    [
        Step::call("insert_task", json!({"after_task_order": 0, "task_description": "Write the report"}))
            .and_call("append_messages_to_task", json!({"task_order": 1, "message_id_range": [0, 1]}))
            .and_call("append_task_progress", json!({"task_order": 1, "progress": "Wrote two pages"})),
        Step::call("update_task", json!({"task_order": 1, "task_status": "success"}))
            .and_call("insert_task", json!({"after_task_order": 1, "task_description": "Send the report"}))
            .and_call("submit_user_preference", json!({"preference": "The user prefers short reports."})),
        Step::call("append_messages_to_task", json!({"task_order": 2, "message_id_range": [2, 2]}))
            .and_call("finish", json!({})),
    ]
}

/// What [`Deployment::outcome`] returns after the answers of [`script`].
fn expected_outcome() -> Value {
    let report = json!({"task_description": "Write the report", "progresses": ["Wrote two pages"]});
    json!({
        "tasks": [
            {"order": 0, "status": "pending", "data": {"user_preferences": ["The user prefers short reports."]}},
            {"order": 1, "status": "success", "data": report},
            {"order": 2, "status": "running", "data": {"task_description": "Send the report"}},
        ],
        "messages": [["success", 1], ["success", 1], ["success", 2]],
        "tasks_created": 2,
        "jobs": 0,
        "has_observe_job": false,
    })
}

/// The moment at which the server is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KillAt {
    /// While the call with this number, from 0, is not answered.
    Call(usize),
    /// After the last call, when the transaction of the result begins.
    Commit,
    /// After the result has been committed, when the job is completed.
    Completion,
}

impl KillAt {
    const ALL: [Self; 5] = [Self::Call(0), Self::Call(1), Self::Call(2), Self::Commit, Self::Completion];

    /// Returns the number of calls that are answered before.
    fn answered_calls(self) -> usize {
        match self {
            Self::Call(number) => number,
            Self::Commit | Self::Completion => 3,
        }
    }
}

/// Scripts the answers for a run that ends while the last of `calls` calls waits at the latch. This call is never answered, or
/// its answer is the last one.
fn script_until(deployment: &Deployment, calls: usize, latch: &Latch) {
    let steps = script().into_iter().take(calls).enumerate();
    let steps = steps.map(|(number, step)| if number + 1 == calls { step.after(latch) } else { step });
    deployment.model.script(Lane::Task, MARKER, steps);
}

/// Returns what the model gets at the beginning.
fn first_input(requests: &[ModelRequest]) -> (String, Vec<String>) {
    let first = requests.first().expect("a request");
    (first.system(), first.user_texts())
}

async fn kill_and_restart(wire: Wire, kill_at: KillAt) {
    let context = format!("{wire:?}, {kill_at:?}");
    let deployment = Deployment::new(wire, &[]).await;
    let (server, latch) = (deployment.start(), Latch::new());
    script_until(&deployment, (kill_at.answered_calls() + 1).min(3), &latch);
    deployment.store_messages(&server, KEY).await;
    latch.wait_for_requests(1).await;
    match kill_at {
        KillAt::Call(_) => server.kill(),
        KillAt::Commit => {
            let lock = "select id from sessions for no key update";
            deployment.kill_at_lock(server, &latch, lock, "last_message_at from sessions").await;
        }
        KillAt::Completion => {
            // Blocks the deletion of the row, but not an update.
            let lock = "select id from jobs where kind = 'observe' for key share";
            deployment.kill_at_lock(server, &latch, lock, "delete from jobs where id = $1").await;
        }
    }
    let left = deployment.outcome().await;
    assert_eq!(left["jobs"], 1, "{context}");
    if kill_at == KillAt::Completion {
        assert_eq!(left["messages"], expected_outcome()["messages"], "{context}");
    } else {
        assert_eq!(
            (&left["tasks"], &left["tasks_created"]),
            (&json!([]), &json!(0)),
            "{context}: nothing is stored in part"
        );
        assert_eq!(left["messages"], json!([["running", null], ["running", null], ["running", null]]), "{context}");
        deployment.model.script(Lane::Task, MARKER, script());
    }
    let before = deployment.model.take_requests();
    let server = deployment.start();
    deployment.wait_until_observed().await;
    assert_eq!(deployment.outcome().await, expected_outcome(), "{context}:\n{}", server.log());
    let after = deployment.model.take_requests();
    if kill_at == KillAt::Completion {
        assert_eq!(after.len(), 0, "{context}: the result was stored before");
    } else {
        assert_eq!(after.len(), 3, "{context}");
        assert_eq!(first_input(&before), first_input(&after), "{context}: nothing of the first run reaches the model");
    }
    // The call that the kill has interrupted could not be recorded.
    let calls = kill_at.answered_calls() + after.len();
    assert_eq!(deployment.call_outcomes().await, vec!["ok"; calls].join(" "), "{context}");
    deployment.model.assert_nothing_rejected();
    assert_eq!(deployment.model.remaining_steps(), 0, "{context}");
    assert!(server.stop().success(), "{context}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_at_each_step_of_an_observation_changes_no_task() {
    for wire in Wire::ALL {
        // Concurrently, because each waits until a lease expires and for a backoff.
        futures_util::future::join_all(KillAt::ALL.map(|kill_at| kill_and_restart(wire, kill_at))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_graceful_stop_during_a_call_makes_the_messages_pending() {
    for wire in Wire::ALL {
        let deployment = Deployment::new(wire, &[]).await;
        let (server, latch) = (deployment.start(), Latch::new());
        script_until(&deployment, 2, &latch);
        deployment.store_messages(&server, KEY).await;
        latch.wait_for_requests(1).await;
        assert!(server.stop().success(), "{wire:?}");
        let left = deployment.outcome().await;
        assert_eq!(left["messages"], json!([["pending", null], ["pending", null], ["pending", null]]), "{wire:?}");
        assert_eq!(left["tasks"], json!([]), "{wire:?}");
        let job = "select state || ' ' || attempt || ' ' || coalesce(worker_id::text, 'no worker')
                   from jobs where kind = 'observe'";
        assert_eq!(deployment.fetch_scalar::<String>(job).await, "ready 0 no worker", "{wire:?}");
        assert_eq!(deployment.call_outcomes().await, "canceled ok", "{wire:?}");
        deployment.model.take_requests();
        deployment.model.script(Lane::Task, MARKER, script());
        let server = deployment.start();
        deployment.wait_until_observed().await;
        assert_eq!(deployment.outcome().await, expected_outcome(), "{wire:?}");
        assert_eq!(deployment.model.take_requests().len(), 3, "{wire:?}");
        assert_eq!(deployment.call_outcomes().await, "canceled ok ok ok ok", "{wire:?}");
        deployment.model.assert_nothing_rejected();
        assert!(server.stop().success(), "{wire:?}");
    }
}

const SESSIONS: usize = 8;

/// Observes sessions with two processes, each of which may run two jobs at a time. If `kills_second` is set, kills the second
/// process while both wait for the model.
async fn observe_with_two_processes(wire: Wire, kills_second: bool) {
    let context = format!("{wire:?}, {kills_second}");
    let settings = [("ACONTEXTD_JOB_CONCURRENCY", "2"), ("PROJECT_SESSION_MESSAGE_BUFFER_MAX_TURNS", "1")];
    let deployment = Deployment::new(wire, &settings).await;
    let (latch, dirs) = (Latch::new(), [data_dir(), data_dir()]);
    let keys = ["the-key-of-the-first-process", "the-key-of-the-second-process"];
    let [first, second] = [0, 1].map(|number| deployment.start_in(&dirs[number], &[("LLM_API_KEY", keys[number])]));
    for number in 0..SESSIONS {
        let step = || {
            let description = format!("Do number {number}");
            Step::call("insert_task", json!({"after_task_order": 0, "task_description": description}))
                .and_call("finish", json!({}))
        };
        let marker = format!("[[P{number}]]");
        // The second step is for a session whose process is killed.
        deployment.model.script(Lane::Task, &marker, [step().after(&latch), step()]);
        let session = deployment.new_session(&first, KEY).await;
        deployment.store_text(&first, KEY, &session, &format!("Please do it. {marker}")).await;
    }
    // One process could only send two.
    latch.wait_for_requests(4).await;
    let mut second = Some(second);
    if kills_second && let Some(second) = second.take() {
        second.kill();
    }
    latch.release();
    deployment.wait_until_observed().await;
    let tasks = "select count(distinct session_id) || ' sessions, ' || count(*) || ' tasks' from tasks";
    assert_eq!(deployment.fetch_scalar::<String>(tasks).await, "8 sessions, 8 tasks", "{context}");
    let unobserved = "select count(*) from messages where session_task_process_status <> 'success'";
    assert_eq!(deployment.fetch_scalar::<i64>(unobserved).await, 0, "{context}");
    let requests = deployment.model.take_requests();
    let sent_with = |key: &str| {
        requests
            .iter()
            .filter(|request| request.headers.values().any(|value| value.to_str().unwrap().ends_with(key)))
            .count()
    };
    assert!(sent_with(keys[0]) >= 2 && sent_with(keys[1]) >= 2, "{context}: both processes call the model");
    let repeated = if kills_second { 2 } else { 0 };
    assert_eq!(requests.len(), SESSIONS + repeated, "{context}: each session is observed once");
    deployment.model.assert_nothing_rejected();
    for server in [Some(first), second].into_iter().flatten() {
        assert!(server.stop().success(), "{context}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_share_the_observation_of_sessions() {
    for wire in Wire::ALL {
        observe_with_two_processes(wire, false).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_observes_the_sessions_of_a_killed_one() {
    for wire in Wire::ALL {
        observe_with_two_processes(wire, true).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_job_of_an_encrypted_project_keeps_its_encrypted_key_over_a_restart() {
    for wire in Wire::ALL {
        let deployment = Deployment::new(wire, &[("LOG_LEVEL", "debug")]).await;
        let (server, latch) = (deployment.start(), Latch::new());
        let project = deployment.post(&server, ADMIN, "/admin/v1/project", &json!({})).await;
        let key = project["secret_key"].as_str().unwrap().to_owned();
        let secret = key.strip_prefix("sk-ac-").unwrap();
        deployment.post(&server, &key, "/api/v1/project/encrypt", &json!({})).await;
        script_until(&deployment, 2, &latch);
        deployment.store_messages(&server, &key).await;
        latch.wait_for_requests(1).await;
        let log_path = deployment.dir.path().join("program.log");
        server.kill();
        let mut logs = std::fs::read_to_string(&log_path).unwrap();
        let encrypted_key = "select encrypted_kek from jobs where kind = 'observe'";
        assert!(deployment.fetch_scalar::<Option<Vec<u8>>>(encrypted_key).await.is_some(), "{wire:?}");
        assert_eq!(deployment.tables_containing(&[MARK, secret]).await, [""; 0], "{wire:?}");
        deployment.model.take_requests();
        deployment.model.script(Lane::Task, MARKER, script());
        // No request brings the key again.
        let server = deployment.start();
        deployment.wait_until_observed().await;
        assert_eq!(deployment.outcome().await, expected_outcome(), "{wire:?}");
        let requests = deployment.model.take_requests();
        assert_eq!(requests.len(), 3, "{wire:?}");
        assert_eq!(
            requests[0].user_texts().join("\n").matches(MARK).count(),
            MESSAGES,
            "{wire:?}: the model gets the content"
        );
        assert!(server.stop().success(), "{wire:?}");
        logs.push_str(&std::fs::read_to_string(&log_path).unwrap());
        assert!(logs.contains("messages observed"), "{wire:?}: the log is complete");
        for text in [MARK, secret, "test-key-0123456789"] {
            assert!(!logs.contains(text), "{wire:?}: {text} is in the log");
        }
        assert_eq!(deployment.tables_containing(&[MARK, secret]).await, [""; 0], "{wire:?}");
        assert_eq!(
            deployment.fetch_scalar::<i64>("select count(*) from jobs where encrypted_kek is not null").await,
            0
        );
        deployment.model.assert_nothing_rejected();
    }
}
