//! Learning of sessions: its conditions, the jobs that it enqueues, and its status.

use acontextd::features::App;
use acontextd::jobs::JobRegistry;
use acontextd::learn::jobs::{FinalizeSession, Observe};
use futures_util::future::join_all;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::client::{Client, TestResponse};
use crate::support::{TestApp, TestConfig, run, run_with};

async fn learn(client: &Client, space: &str, session: &str) -> TestResponse {
    client.post(&format!("/api/v1/learning_spaces/{space}/learn"), json!({"session_id": session})).await
}

async fn get_space_session(client: &Client, space: &str, session: &str) -> Value {
    let response = client.get(&format!("/api/v1/learning_spaces/{space}/sessions/{session}")).await;
    response.assert_status(200);
    response.data()
}

/// Inserts a task into a session, as the observation of its messages does.
async fn insert_task(app: &App, session: &str, order: i64, status: &str) -> Uuid {
    sqlx::query_scalar(
        r#"insert into tasks (session_id, project_id, "order", data, status)
           select id, project_id, $2, '{}', $3 from sessions where id = $1::uuid returning id"#,
    )
    .bind(session)
    .bind(order)
    .bind(status)
    .fetch_one(&*app.db)
    .await
    .unwrap()
}

/// Returns the task, or else the session, of each ready job of a kind.
async fn ready_jobs(app: &TestApp, kind: &str) -> Vec<String> {
    let jobs = "select coalesce(payload ->> 'task', payload ->> 'session') from jobs where kind = $1 and state = 'ready' order by 1";
    sqlx::query_scalar(jobs).bind(kind).fetch_all(&*app.app.db).await.unwrap()
}

/// Returns a configuration with the job handlers of observation and finalization, but without those of learning.
fn observing_config() -> TestConfig {
    let config = TestConfig::default().with("LLM_SDK", "mock").with("SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS", "1h");
    let registry = |app: &App| {
        JobRegistry::default().register::<Observe>(app.learn.clone()).register::<FinalizeSession>(app.learn.clone())
    };
    TestConfig { registry, ..config }
}

async fn status(client: &Client, space: &str, session: &str) -> String {
    get_space_session(client, space, session).await["status"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_session_is_learned_by_one_space_once() {
    run(async |app| {
        let client = app.project().await;
        let (space, other, session) = (client.new_space().await, client.new_space().await, client.new_session().await);
        let responses =
            join_all((0..8).map(|n| learn(&client, if n % 2 == 0 { &space } else { &other }, &session))).await;
        let (created, rejected): (Vec<_>, Vec<_>) = responses.iter().partition(|response| response.status.is_success());
        assert_eq!(created.len(), 1);
        assert_eq!(created[0].data()["status"], "pending");
        for response in rejected {
            response.assert_error(409, "session already learned by another space");
        }
        let by_query = client.new_session().await;
        let path = format!("/api/v1/learning_spaces/{space}/learn?session_id={by_query}");
        client.json(axum::http::Method::POST, &path, "").await.assert_status(201);
    })
    .await;
}

#[tokio::test]
async fn invalid_learn_requests_return_errors() {
    run(async |app| {
        let client = app.project().await;
        let (space, session) = (client.new_space().await, client.new_session().await);
        let path = format!("/api/v1/learning_spaces/{space}/learn");
        for (body, status, msg) in [
            (json!({}), 400, "session_id: is required"),
            (json!({"session_id": ""}), 400, "session_id: is required"),
            (json!({"session_id": "none"}), 400, "session_id"),
            (json!({"session_id": 7}), 400, "session_id"),
            (json!({"session_id": Uuid::new_v4()}), 404, "session not found"),
        ] {
            client.post(&path, body).await.assert_error(status, msg);
        }
        learn(&client, &Uuid::new_v4().to_string(), &session).await.assert_error(404, "learning space not found");
        let sessions = format!("/api/v1/learning_spaces/{space}/sessions");
        assert_eq!(client.get(&sessions).await.data(), json!([]));
        client.get(&format!("{sessions}/{session}")).await.assert_error(404, "learning space session not found");
        client.get(&format!("{sessions}/none")).await.assert_error(400, "session_id");
    })
    .await;
}

#[tokio::test]
async fn learning_a_session_enqueues_its_finished_tasks() {
    run_with(observing_config(), async |app| {
        let client = app.project().await;
        let (space, session) = (client.new_space().await, client.new_session().await);
        let mut ended = Vec::new();
        for (order, status) in (1..).zip(["success", "pending", "failed", "running"]) {
            let task = insert_task(&app.app, &session, order, status).await;
            if matches!(status, "success" | "failed") {
                ended.push(task.to_string());
            }
        }
        ended.sort();
        let planning = insert_task(&app.app, &session, 5, "success").await;
        sqlx::query("update tasks set is_planning = true where id = $1")
            .bind(planning)
            .execute(&*app.app.db)
            .await
            .unwrap();
        assert_eq!(ready_jobs(&app, "distill").await, [] as [&str; 0]);
        learn(&client, &space, &session).await.assert_status(201);
        assert_eq!(ready_jobs(&app, "distill").await, ended);
        // The record and its jobs are inserted together or not at all. Here the jobs cannot be inserted.
        let other = client.new_session().await;
        insert_task(&app.app, &other, 1, "success").await;
        app.execute("alter table jobs add constraint full_queue check (false) not valid").await;
        learn(&client, &space, &other).await.assert_error(500, "");
        app.execute("alter table jobs drop constraint full_queue").await;
        learn(&client, &space, &other).await.assert_status(201);
        assert_eq!(ready_jobs(&app, "distill").await.len(), 3);
    })
    .await;
}

#[tokio::test]
async fn a_session_without_messages_is_completed_when_it_is_read() {
    run(async |app| {
        let client = app.project().await;
        let space = client.new_space().await;
        let mut sessions = Vec::new();
        for _ in 0..3 {
            sessions.push(client.new_session().await);
            learn(&client, &space, sessions.last().unwrap()).await.assert_status(201);
        }
        assert_eq!(status(&client, &space, &sessions[0]).await, "completed");
        let list = client.get(&format!("/api/v1/learning_spaces/{space}/sessions")).await.data();
        let listed = list.as_array().unwrap().iter();
        let statuses: Vec<_> =
            listed.map(|session| (session["session_id"].clone(), session["status"].clone())).collect();
        let expected: Vec<_> = sessions.iter().map(|id| (json!(id), json!("completed"))).collect();
        assert_eq!(statuses, expected, "oldest first");
        // A later message does not change the status.
        client.store_text(&sessions[0], "later").await;
        assert_eq!(status(&client, &space, &sessions[0]).await, "completed");
    })
    .await;
}

#[tokio::test]
async fn a_session_stays_pending_until_its_messages_are_observed() {
    run_with(observing_config(), async |app| {
        let client = app.project().await;
        let (space, session) = (client.new_space().await, client.new_session().await);
        client.store_text(&session, "hello").await;
        learn(&client, &space, &session).await.assert_status(201);
        assert_eq!(status(&client, &space, &session).await, "pending");
        app.execute("update jobs set run_at = now()").await;
        app.drain_jobs().await;
        assert_eq!(status(&client, &space, &session).await, "completed");
        assert_eq!(ready_jobs(&app, "conclude").await, [] as [&str; 0]);
    })
    .await;
}

#[tokio::test]
async fn open_tasks_are_completed_and_learned_once_by_a_job() {
    run_with(observing_config(), async |app| {
        let client = app.project().await;
        let (space, session) = (client.new_space().await, client.new_session().await);
        client.store_text(&session, "hello").await;
        learn(&client, &space, &session).await.assert_status(201);
        let mut open = Vec::new();
        for (order, status) in (1..).zip(["pending", "failed", "running"]) {
            let task = insert_task(&app.app, &session, order, status).await;
            if status != "failed" {
                open.push(task.to_string());
            }
        }
        open.sort();
        let statuses = async || -> Vec<String> {
            sqlx::query_scalar(r#"select status from tasks order by "order""#).fetch_all(&*app.app.db).await.unwrap()
        };
        assert_eq!(status(&client, &space, &session).await, "pending");
        assert_eq!(ready_jobs(&app, "conclude").await, [] as [&str; 0], "a message is pending");
        app.execute("update messages set session_task_process_status = 'success'").await;
        app.execute("delete from jobs").await;
        for _ in 0..3 {
            assert_eq!(status(&client, &space, &session).await, "pending");
        }
        assert_eq!(ready_jobs(&app, "conclude").await, [session.as_str()], "the job is enqueued once");
        assert_eq!(statuses().await, ["pending", "failed", "running"], "reading changes no task");
        let final_statuses = tokio::select! {
            ended = app.run_jobs() => panic!("the runner ended: {ended:?}"),
            () = crate::support::wait_until("the job has ended", async || {
                ready_jobs(&app, "conclude").await.is_empty()
                    && !ready_jobs(&app, "distill").await.is_empty()
            }) => statuses().await,
        };
        assert_eq!(final_statuses, ["success", "failed", "success"], "failed tasks stay failed");
        assert_eq!(ready_jobs(&app, "distill").await, open);
        assert_eq!(status(&client, &space, &session).await, "pending");
        assert_eq!(ready_jobs(&app, "conclude").await, [] as [&str; 0], "no task is open");
    })
    .await;
}

#[tokio::test]
async fn open_tasks_stay_open_once_the_distillation_of_another_task_has_begun() {
    run_with(observing_config(), async |app| {
        let client = app.project().await;
        let (space, session) = (client.new_space().await, client.new_session().await);
        insert_task(&app.app, &session, 1, "success").await;
        insert_task(&app.app, &session, 2, "running").await;
        learn(&client, &space, &session).await.assert_status(201);
        assert_eq!(ready_jobs(&app, "distill").await.len(), 1);
        for (learning_status, expected) in [("distilling", 0), ("pending", 1)] {
            sqlx::query("update learning_space_sessions set status = $1")
                .bind(learning_status)
                .execute(&*app.app.db)
                .await
                .unwrap();
            assert_eq!(status(&client, &space, &session).await, learning_status);
            assert_eq!(ready_jobs(&app, "conclude").await.len(), expected, "{learning_status}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_session_whose_messages_could_not_be_observed_has_failed() {
    run_with(observing_config(), async |app| {
        let client = app.project().await;
        let space = client.new_space().await;
        let (earlier, quota) = ("an earlier attempt", "the project has exceeded its quota of tasks");
        for (process_status, expected, reason) in [
            ("failed", "failed", Some(earlier)),
            ("limit_exceed", "failed", Some(quota)),
            ("disable_tracking", "completed", None),
        ] {
            let session = client.new_session().await;
            client.store_text(&session, "hello").await;
            learn(&client, &space, &session).await.assert_status(201);
            sqlx::query("update messages set session_task_process_status = $1 where session_id = $2::uuid")
                .bind(process_status)
                .bind(&session)
                .execute(&*app.app.db)
                .await
                .unwrap();
            let found = get_space_session(&client, &space, &session).await;
            assert_eq!(found["status"], expected, "{process_status}");
            let found = found.get("reason").map(|reason| reason.as_str().unwrap());
            assert_eq!(found.is_some(), reason.is_some(), "{process_status}: {found:?}");
            assert!(found.unwrap_or_default().starts_with(reason.unwrap_or_default()), "{process_status}: {found:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_learning_that_waits_for_a_model_has_a_reason() {
    for (sdk, is_configured) in [("none", false), ("mock", true)] {
        run_with(observing_config().with("LLM_SDK", sdk), async |app| {
            let client = app.project().await;
            let (space, session) = (client.new_space().await, client.new_session().await);
            let list = format!("/api/v1/learning_spaces/{space}/sessions");
            client.store_text(&session, "hello").await;
            let learned = learn(&client, &space, &session).await.data();
            let found = get_space_session(&client, &space, &session).await;
            let listed = client.get(&list).await.data()[0].clone();
            for response in [learned, found, listed] {
                assert_eq!(response["status"], "pending");
                let reason = response.get("reason").map(|reason| reason.as_str().unwrap());
                assert_eq!(reason.is_some_and(|reason| reason.contains("LLM_SDK")), !is_configured, "{response}");
                assert_eq!(reason.is_some(), !is_configured, "{response}");
            }
            // Without pending messages, nothing waits for a model.
            app.execute("update messages set session_task_process_status = 'success'").await;
            assert!(get_space_session(&client, &space, &session).await.get("reason").is_none());
            assert!(client.get(&list).await.data()[0].get("reason").is_none());
        })
        .await;
    }
}

#[tokio::test]
async fn a_lesson_that_waits_for_a_model_is_a_reason() {
    run_with(TestConfig::default().with("LLM_SDK", "none"), async |app| {
        let client = app.project().await;
        let (space, session) = (client.new_space().await, client.new_session().await);
        insert_task(&app.app, &session, 1, "success").await;
        learn(&client, &space, &session).await.assert_status(201);
        app.drain_jobs().await;
        let found = get_space_session(&client, &space, &session).await;
        assert_eq!(found["status"], "pending");
        assert!(found["reason"].as_str().is_some_and(|reason| reason.contains("LLM_SDK")), "{found}");
        assert_eq!(client.get(&format!("/api/v1/learning_spaces/{space}/sessions")).await.data()[0], found);
    })
    .await;
}
