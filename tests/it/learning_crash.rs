//! The server is killed while it learns, and started again. The skills are those of a run that nothing has interrupted: no lesson is
//! lost, and none is written twice.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::observation_crash::KEY;
use crate::observation_crash::deployment::{Deployment, MARKER};
use crate::support::model_server::{Lane, Latch, Step, Wire};
use crate::support::server_process::ServerProcess;
use crate::support::wait_until;

/// What the lesson of the session comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Task,
    Preferences,
}

/// The call of the model, or the transaction, during which the server is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KillAt {
    /// While the call that distills the lesson has no response.
    Distillation,
    /// After that call, when the transaction that stores the lesson begins.
    DistillationCommit,
    /// While the call of the skill agent with this number, from 0, has no response.
    Call(usize),
    /// After the last call, when the transaction that stores the edits begins.
    Commit,
    /// After the edits have been committed, when the job is completed.
    Completion,
}

impl KillAt {
    const ALL: [Self; 7] = [
        Self::Distillation,
        Self::DistillationCommit,
        Self::Call(0),
        Self::Call(1),
        Self::Call(2),
        Self::Commit,
        Self::Completion,
    ];
}

fn task(status: &str) -> Step {
    Step::call("insert_task", json!({"after_task_order": 0, "task_description": "Write the report"}))
        .and_call("append_messages_to_task", json!({"task_order": 1, "message_id_range": [0, 2]}))
        .and_call("update_task", json!({"task_order": 1, "task_status": status}))
        .and_call("finish", json!({}))
}

fn preference() -> Step {
    let preference = json!({"preference": "The user prefers short reports."});
    Step::call("submit_user_preference", preference).and_call("finish", json!({}))
}

fn lesson() -> Step {
    Step::call("report_factual_content", json!({"task_goal": "The report", "facts": ["It has two pages."]}))
}

/// The responses of the skill agent: an edit, another one, and the end.
fn skill_steps() -> [Step; 3] {
    let create = json!({"skill_name": "daily-logs", "file_path": "log.md", "content": "# Log\n"});
    let replace = json!({"skill_name": "daily-logs", "file_path": "log.md", "old_string": "# Log\n",
                         "new_string": "# Log\n- It has two pages.\n"});
    [
        Step::call("report_thinking", json!({"thinking": "the log"})).and_call("create_skill_file", create),
        Step::call("str_replace_skill_file", replace),
        Step::call("finish", json!({})),
    ]
}

/// Returns a response of the skill agent that creates a file and ends the lesson.
fn write(path: &str) -> Step {
    let create = json!({"skill_name": "daily-logs", "file_path": path, "content": "text"});
    Step::call("report_thinking", json!({"thinking": "the log"}))
        .and_call("create_skill_file", create)
        .and_call("finish", json!({}))
}

/// Scripts the responses until the kill. The call during which the server is killed, or after which it is killed, waits at the
/// latch.
fn script_until(deployment: &Deployment, origin: Origin, kill_at: KillAt, latch: &Latch) {
    let observation = if origin == Origin::Task { task("success") } else { preference() };
    deployment.model.script(Lane::Task, MARKER, [observation]);
    let calls = match kill_at {
        KillAt::Distillation | KillAt::DistillationCommit => {
            deployment.model.script(Lane::DistillSuccess, "", [lesson().after(latch)]);
            return;
        }
        KillAt::Call(number) => number + 1,
        KillAt::Commit | KillAt::Completion => 3,
    };
    if origin == Origin::Task {
        deployment.model.script(Lane::DistillSuccess, "", [lesson()]);
    }
    let steps = skill_steps().into_iter().take(calls).enumerate();
    let steps = steps.map(|(number, step)| if number + 1 == calls { step.after(latch) } else { step });
    deployment.model.script(Lane::Learner, "", steps);
}

/// Scripts the responses that the next process needs.
fn script_rest(deployment: &Deployment, kill_at: KillAt) {
    if matches!(kill_at, KillAt::Distillation | KillAt::DistillationCommit) {
        deployment.model.script(Lane::DistillSuccess, "", [lesson()]);
    }
    if kill_at != KillAt::Completion {
        deployment.model.script(Lane::Learner, "", skill_steps());
    }
}

/// Returns what learning leaves in the database, without ids and times.
async fn outcome(deployment: &Deployment) -> Value {
    let outcome = "select jsonb_build_object(
        'lessons', (select jsonb_agg(state || ' ' || coalesce(kind, '-')) from lessons),
        'files', (select jsonb_agg(v.path || v.filename || ' ' || v.size order by v.path, v.filename, v.from_revision)
                  from artifact_versions v join agent_skills s on s.disk_id = v.disk_id where s.name = 'daily-logs'),
        'changes', (select count(*) from changes where actor = 'learner'),
        'status', (select jsonb_agg(status) from learning_space_sessions),
        'jobs', (select count(*) from jobs where kind in ('distill', 'write_lesson')))";
    deployment.fetch_scalar::<Value>(outcome).await
}

/// Returns the file that the skill has at the beginning, with its size.
fn skill_md() -> String {
    format!("/SKILL.md {}", include_str!("../../src/learning_spaces/defaults/daily-logs.md").len())
}

fn expected_outcome(origin: Origin) -> Value {
    let kind = if origin == Origin::Task { "facts" } else { "preferences" };
    json!({
        "lessons": [format!("written {kind}")],
        "files": [skill_md(), "/log.md 26"],
        "changes": 1,
        "status": ["completed"],
        "jobs": 0,
    })
}

/// Stores the messages of a session that a space learns from. Returns the path of its learning status.
async fn start_learning(deployment: &Deployment, server: &ServerProcess) -> String {
    let space = deployment.post(server, KEY, "/api/v1/learning_spaces", &json!({})).await;
    let session = deployment.new_session(server, KEY).await;
    let space = format!("/api/v1/learning_spaces/{}", space["id"].as_str().unwrap());
    deployment.post(server, KEY, &format!("{space}/learn"), &json!({"session_id": session})).await;
    for number in 0..3 {
        deployment.store_text(server, KEY, &session, &format!("Message {number}. {MARKER}")).await;
    }
    format!("{space}/sessions/{session}")
}

async fn wait_until_learned(deployment: &Deployment) {
    let open = "select count(*) from jobs where kind in ('observe', 'conclude', 'distill', 'write_lesson')";
    wait_until("the session is learned", async || deployment.fetch_scalar::<i64>(open).await == 0).await;
}

async fn kill_and_restart(wire: Wire, origin: Origin, kill_at: KillAt) {
    let context = format!("{wire:?}, {origin:?}, {kill_at:?}");
    let deployment = Deployment::new(wire, &[]).await;
    let (server, latch) = (deployment.start(), Latch::new());
    script_until(&deployment, origin, kill_at, &latch);
    start_learning(&deployment, &server).await;
    latch.wait_for_requests(1).await;
    let lesson_lock = "select id from learning_spaces for update";
    match kill_at {
        KillAt::Distillation | KillAt::Call(_) => server.kill(),
        KillAt::DistillationCommit | KillAt::Commit => {
            deployment.kill_at_lock(server, &latch, lesson_lock, "from learning_spaces").await;
        }
        KillAt::Completion => {
            let lock = "select id from jobs where kind = 'write_lesson' for share";
            deployment.kill_at_lock(server, &latch, lock, "delete from jobs where id = $1").await;
        }
    }
    let left = outcome(&deployment).await;
    // A statement that the killed process has sent is executed nevertheless, so the job may be completed.
    if kill_at != KillAt::Completion {
        assert_eq!(left["jobs"], 1, "{context}");
        assert_eq!(left["changes"], 0, "{context}: nothing is stored in part");
    }
    script_rest(&deployment, kill_at);
    let server = deployment.start();
    wait_until_learned(&deployment).await;
    assert_eq!(outcome(&deployment).await, expected_outcome(origin), "{context}:\n{}", server.log());
    deployment.model.assert_nothing_rejected();
    assert_eq!(deployment.model.remaining_steps(), 0, "{context}");
    assert!(server.stop().success(), "{context}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_at_each_step_of_learning_changes_no_skill() {
    for wire in Wire::ALL {
        // Concurrently, because each waits until a lease expires and for a backoff.
        join_all(KillAt::ALL.map(|kill_at| kill_and_restart(wire, Origin::Task, kill_at))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_while_preferences_are_written_changes_no_skill() {
    for wire in Wire::ALL {
        let steps = [KillAt::Call(0), KillAt::Call(2), KillAt::Commit, KillAt::Completion];
        join_all(steps.map(|kill_at| kill_and_restart(wire, Origin::Preferences, kill_at))).await;
    }
}

/// The job that completes the open tasks is killed after it has locked the session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_while_open_tasks_are_completed_loses_no_lesson() {
    for wire in Wire::ALL {
        let deployment = Deployment::new(wire, &[]).await;
        let server = deployment.start();
        deployment.model.script(Lane::Task, MARKER, [task("running")]);
        let status = start_learning(&deployment, &server).await;
        deployment.wait_until_observed().await;
        let enqueue = async |server: &ServerProcess| {
            assert_eq!(deployment.get(server, KEY, &status).await["status"], "pending", "{wire:?}");
        };
        let lock = "select id from tasks for update";
        deployment.kill_at_lock_after(server, lock, "update tasks set status = 'success'", enqueue).await;
        let left = "select (select string_agg(status, ' ') from tasks) || ', ' || (select count(*) from lessons) || ' lessons, '
                    || (select coalesce(string_agg(kind || ' ' || state, ' '), 'no job') from jobs)";
        let left = deployment.fetch_scalar::<String>(left).await;
        assert_eq!(left, "running, 0 lessons, conclude running", "{wire:?}: nothing is stored in part");
        script_rest(&deployment, KillAt::Distillation);
        let server = deployment.start();
        wait_until_learned(&deployment).await;
        assert_eq!(outcome(&deployment).await, expected_outcome(Origin::Task), "{wire:?}:\n{}", server.log());
        assert_eq!(deployment.fetch_scalar::<String>("select status from tasks").await, "success", "{wire:?}");
        assert_eq!(deployment.model.remaining_steps(), 0, "{wire:?}");
        assert!(server.stop().success(), "{wire:?}");
    }
}

/// A run has stored its first lesson, and the model is writing the second one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_during_the_second_lesson_of_a_run_repeats_only_this_lesson() {
    for wire in Wire::ALL {
        let deployment = Deployment::new(wire, &[]).await;
        let (server, first, second) = (deployment.start(), Latch::new(), Latch::new());
        let tasks = Step::call("insert_task", json!({"after_task_order": 0, "task_description": "A"}))
            .and_call("insert_task", json!({"after_task_order": 1, "task_description": "B"}))
            .and_call("update_task", json!({"task_order": 1, "task_status": "success"}))
            .and_call("update_task", json!({"task_order": 2, "task_status": "success"}))
            .and_call("finish", json!({}));
        deployment.model.script(Lane::Task, MARKER, [tasks]);
        deployment.model.script(Lane::DistillSuccess, "", [lesson(), lesson()]);
        deployment.model.script(Lane::Learner, "", [write("one.md").after(&first), write("two.md").after(&second)]);
        start_learning(&deployment, &server).await;
        first.wait_for_requests(1).await;
        let states = "select string_agg(state, ' ' order by state) from lessons";
        wait_until("the second lesson waits", async || {
            deployment.fetch_scalar::<String>(states).await == "pending writing"
        })
        .await;
        first.release();
        second.wait_for_requests(1).await;
        server.kill();
        assert_eq!(deployment.fetch_scalar::<String>(states).await, "writing written", "{wire:?}");
        assert_eq!(outcome(&deployment).await["files"], json!([skill_md(), "/one.md 4"]), "{wire:?}");
        deployment.model.script(Lane::Learner, "", [write("two.md")]);
        let server = deployment.start();
        wait_until_learned(&deployment).await;
        let expected = json!({
            "lessons": ["written facts", "written facts"],
            "files": [skill_md(), "/one.md 4", "/two.md 4"],
            "changes": 2,
            "status": ["completed"],
            "jobs": 0,
        });
        assert_eq!(outcome(&deployment).await, expected, "{wire:?}:\n{}", server.log());
        assert_eq!(deployment.model.remaining_steps(), 0, "{wire:?}");
        assert!(server.stop().success(), "{wire:?}");
    }
}

/// A graceful shutdown leaves the lesson to the next process, and no attempt is counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_graceful_stop_during_a_call_makes_the_lesson_pending() {
    for wire in Wire::ALL {
        let deployment = Deployment::new(wire, &[]).await;
        let (server, latch) = (deployment.start(), Latch::new());
        script_until(&deployment, Origin::Task, KillAt::Call(1), &latch);
        start_learning(&deployment, &server).await;
        latch.wait_for_requests(1).await;
        assert!(server.stop().success(), "{wire:?}");
        assert_eq!(outcome(&deployment).await["lessons"], json!(["pending facts"]), "{wire:?}");
        let job = "select state || ' ' || attempt from jobs where kind = 'write_lesson'";
        assert_eq!(deployment.fetch_scalar::<String>(job).await, "ready 0", "{wire:?}");
        script_rest(&deployment, KillAt::Call(1));
        let server = deployment.start();
        wait_until_learned(&deployment).await;
        assert_eq!(outcome(&deployment).await, expected_outcome(Origin::Task), "{wire:?}");
        assert!(server.stop().success(), "{wire:?}");
    }
}
