//! Observation: stored messages are observed in batches, each message once, whatever fails in between.

use std::sync::Arc;
use std::time::Duration;

use acontextd::llm::{ChatMessage, Llm, LlmError, ToolChoice};
use axum::http::{Method, StatusCode};
use futures_util::FutureExt;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::client::{Client, Form};
use crate::support::llm::ScriptedLlm;
use crate::support::{TestApp, TestConfig, run, run_with, wait_until};

fn with_model() -> TestConfig {
    TestConfig::default().with("LLM_SDK", "mock").with("SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS", "0")
}

async fn status(client: &Client, session: &str) -> (Value, Value, Value) {
    let data = client.get(&format!("/api/v1/session/{session}/observing_status")).await.data();
    assert!(data["updated_at"].is_string());
    (data["observed"].clone(), data["in_process"].clone(), data["pending"].clone())
}

async fn flush(client: &Client, session: &str) -> Value {
    let response = client.post(&format!("/api/v1/session/{session}/flush"), json!({})).await;
    assert_eq!(response.status, StatusCode::OK, "{}", response.text());
    response.data()
}

/// Returns the number of observe jobs.
async fn count_jobs(app: &TestApp) -> i64 {
    app.fetch_scalar::<i64>("select count(*) from jobs where kind = 'observe'").await
}

/// Runs jobs until a future is complete, and returns its output.
async fn while_jobs_run<T>(app: &TestApp, work: impl Future<Output = T>) -> T {
    tokio::select! {
        ended = app.run_jobs() => panic!("the runner ended: {ended:?}"),
        output = work => output,
    }
}

#[tokio::test]
async fn messages_are_observed_automatically_and_leave_no_job() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        for n in 0..40 {
            client.store_text(&session, &format!("m{n}")).await;
        }
        assert_eq!(count_jobs(&app).await, 1);
        assert_eq!(status(&client, &session).await, (json!(0), json!(0), json!(40)));
        app.drain_jobs().await;
        assert_eq!(status(&client, &session).await, (json!(40), json!(0), json!(0)));
        assert_eq!(count_jobs(&app).await, 0);
        // A later message gets a new job.
        client.store_text(&session, "later").await;
        assert_eq!(count_jobs(&app).await, 1);
        app.drain_jobs().await;
        assert_eq!(status(&client, &session).await, (json!(41), json!(0), json!(0)));
        let untracked = client.post("/api/v1/session", json!({"disable_task_tracking": true})).await.data();
        let untracked = untracked["id"].as_str().unwrap();
        client.store_text(untracked, "not observed").await;
        assert_eq!((count_jobs(&app).await, status(&client, untracked).await), (0, (json!(0), json!(0), json!(0))));
    })
    .await;
}

#[tokio::test]
async fn a_job_is_due_after_the_ttl_or_the_maximum_number_of_turns() {
    let config = TestConfig::default()
        .with("LLM_SDK", "mock")
        .with("SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS", "1h")
        .with("PROJECT_SESSION_MESSAGE_BUFFER_MAX_TURNS", "3");
    run_with(config, async |app| {
        let client = app.project().await;
        let (session, copied) = (client.new_session().await, client.new_session().await);
        let due = "select count(*) from jobs where kind = 'observe' and run_at <= now()";
        client.store_text(&session, "one").await;
        let first = app.fetch_scalar::<chrono::DateTime<chrono::Utc>>("select run_at from jobs").await;
        client.store_text(&session, "two").await;
        assert_eq!(app.fetch_scalar::<chrono::DateTime<chrono::Utc>>("select run_at from jobs").await, first);
        assert_eq!(app.fetch_scalar::<i64>(due).await, 0);
        client.store_text(&session, "three").await;
        assert_eq!((app.fetch_scalar::<i64>(due).await, count_jobs(&app).await), (1, 1));
        app.drain_jobs().await;
        assert_eq!(status(&client, &session).await, (json!(3), json!(0), json!(0)));
        // Pending messages are pending in a copy too. Observed messages are not observed again.
        client.store_text(&copied, "pending").await;
        let copy = client.post(&format!("/api/v1/session/{copied}/copy"), json!({})).await.data();
        let copy = copy["new_session_id"].as_str().unwrap();
        assert_eq!((count_jobs(&app).await, status(&client, copy).await), (2, (json!(0), json!(0), json!(1))));
        let done = client.post(&format!("/api/v1/session/{session}/copy"), json!({})).await.data();
        assert_eq!(count_jobs(&app).await, 2);
        assert_eq!(status(&client, done["new_session_id"].as_str().unwrap()).await, (json!(3), json!(0), json!(0)));
    })
    .await;
}

#[tokio::test]
async fn a_message_that_makes_a_job_due_wakes_the_job_runners() {
    let config = TestConfig::default()
        .with("SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS", "1h")
        .with("PROJECT_SESSION_MESSAGE_BUFFER_MAX_TURNS", "2");
    run_with(config, async |app| {
        let client = app.project().await;
        let is_woken = || app.app.db.job_waker().wait_local().now_or_never().is_some();
        let body = json!({"format": "openai", "blob": {"role": "user", "content": "m"}});
        for uses_idempotency_key in [false, true] {
            let session = client.new_session().await;
            let path = format!("/api/v1/session/{session}/messages");
            for is_due in [false, true, false] {
                is_woken();
                let response = if uses_idempotency_key {
                    client.json_with_key(&Uuid::now_v7().to_string(), Method::POST, &path, &body).await
                } else {
                    client.post(&path, body.clone()).await
                };
                response.assert_status(201);
                assert_eq!(is_woken(), is_due, "idempotency key: {uses_idempotency_key}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn errors_of_the_model_decide_the_status_of_the_messages() {
    let llm = Arc::new(ScriptedLlm::default());
    let model: Arc<dyn Llm> = llm.clone();
    run_with(TestConfig { llm: Some(model), ..with_model() }, async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        client.store_text(&session, "buy milk").await;
        client.store_text(&session, "and bread").await;
        let states = "select string_agg(session_task_process_status || '', ',' order by created_at) from messages";
        let attempts = "select state || ' ' || attempt || ' ' || last_error from jobs where kind = 'observe'";
        // After a transient error, the same messages are sent again with a delay.
        llm.fail(LlmError::Unavailable(anyhow::anyhow!("overloaded")));
        app.drain_jobs().await;
        let requests = llm.take_requests();
        let [request] = &requests[..] else { panic!("{requests:?}") };
        let [ChatMessage::User(text)] = &request.messages[..] else { panic!("{request:?}") };
        assert!(text.find("buy milk").unwrap() < text.find("and bread").unwrap(), "{text}");
        assert_eq!((request.tools.len(), request.tool_choice), (8, ToolChoice::Auto));
        assert!(request.max_tokens > 0);
        assert_eq!(app.fetch_scalar::<String>(states).await, "pending,pending");
        assert_eq!(app.fetch_scalar::<String>(attempts).await, "ready 1 LLM complete failed: overloaded");
        llm.respond("nothing to do");
        app.execute("update jobs set run_at = now()").await;
        app.drain_jobs().await;
        assert_eq!(llm.take_requests().len(), 1);
        assert_eq!(app.fetch_scalar::<String>(states).await, "success,success");
        // After a permanent error, the messages have failed immediately.
        for (text, error) in [
            ("forbidden", LlmError::Rejected(anyhow::anyhow!("not this"))),
            ("again", LlmError::Rejected(anyhow::anyhow!("nor this"))),
        ] {
            let session = client.new_session().await;
            client.store_text(&session, text).await;
            llm.fail(error);
            app.drain_jobs().await;
            assert_eq!(llm.take_requests().len(), 1, "{text}");
            assert_eq!(status(&client, &session).await, (json!(0), json!(0), json!(0)), "{text}");
        }
        assert_eq!(app.fetch_scalar::<String>(states).await, "success,success,failed,failed");
        // After an authentication error, which requires a change of the settings, the messages stay pending.
        let session = client.new_session().await;
        client.store_text(&session, "later").await;
        llm.fail(LlmError::Misconfigured(anyhow::anyhow!("401")));
        app.drain_jobs().await;
        assert_eq!(status(&client, &session).await, (json!(0), json!(0), json!(1)));
    })
    .await;
}

#[tokio::test]
async fn each_batch_has_its_own_attempts() {
    let llm = Arc::new(ScriptedLlm::default());
    let model: Arc<dyn Llm> = llm.clone();
    run_with(TestConfig { llm: Some(model), ..with_model() }, async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        for n in 0..40 {
            client.store_text(&session, &format!("m{n}")).await;
        }
        let job = "select state || ' ' || attempt || ' ' || coalesce(last_error, '') from jobs where kind = 'observe'";
        let run_job = async || {
            app.execute("update jobs set run_at = now() where state = 'ready'").await;
            app.drain_jobs().await;
            app.fetch_scalar::<String>(job).await
        };
        for attempt in 1..=4 {
            llm.fail(LlmError::Unavailable(anyhow::anyhow!("overloaded")));
            assert_eq!(run_job().await, format!("ready {attempt} LLM complete failed: overloaded"));
        }
        // The last attempt for the first batch succeeds, and is the first one for the second batch.
        llm.respond("nothing to do");
        for attempt in 1..=4 {
            llm.fail(LlmError::Unavailable(anyhow::anyhow!("busy")));
            assert_eq!(run_job().await, format!("ready {attempt} LLM complete failed: busy"));
            assert_eq!(status(&client, &session).await, (json!(32), json!(0), json!(8)));
        }
        llm.fail(LlmError::Unavailable(anyhow::anyhow!("busy")));
        assert_eq!(run_job().await, "failed 5 LLM complete failed: busy");
        assert_eq!(status(&client, &session).await, (json!(32), json!(0), json!(0)));
    })
    .await;
}

#[tokio::test]
async fn messages_after_a_failed_batch_do_not_wait_for_the_ttl() {
    let llm = Arc::new(ScriptedLlm::default());
    let model: Arc<dyn Llm> = llm.clone();
    let config = with_model().with("SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS", "1h");
    run_with(TestConfig { llm: Some(model), ..config }, async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        for n in 0..40 {
            client.store_text(&session, &format!("m{n}")).await;
        }
        llm.fail(LlmError::Rejected(anyhow::anyhow!("not this")));
        llm.respond("nothing to do");
        app.drain_jobs().await;
        assert_eq!(llm.take_requests().len(), 2);
        assert_eq!(status(&client, &session).await, (json!(8), json!(0), json!(0)));
    })
    .await;
}

#[tokio::test]
async fn encrypted_messages_before_a_batch_do_not_delay_it() {
    let llm = Arc::new(ScriptedLlm::default());
    let model: Arc<dyn Llm> = llm.clone();
    run_with(TestConfig { llm: Some(model), ..with_model() }, async |app| {
        let client = app.project().await;
        client.post("/api/v1/project/encrypt", json!({})).await.assert_status(200);
        app.drain_jobs().await;
        let session = client.new_session().await;
        client.store_text(&session, "encrypted").await;
        llm.respond("nothing to do");
        app.drain_jobs().await;
        client.post("/api/v1/project/decrypt", json!({})).await.assert_status(200);
        // The conversion has not begun.
        app.execute("update jobs set run_at = now() + interval '1 hour' where kind = 'convert'").await;
        client.store_text(&session, "plaintext").await;
        let has_key = "select bool_or(encrypted_kek is not null) from jobs where kind = 'observe'";
        assert!(!app.fetch_scalar::<bool>(has_key).await, "a job of a decrypted project has no key");
        llm.take_requests();
        llm.respond("nothing to do");
        app.drain_jobs().await;
        assert_eq!(status(&client, &session).await, (json!(2), json!(0), json!(0)));
        let requests = llm.take_requests();
        let [ChatMessage::User(text)] = &requests[0].messages[..] else { panic!("{requests:?}") };
        let (previous, batch) = text.split_once("<messages>").unwrap();
        assert!(previous.contains("<text>[this message cannot be read]</text>"), "{text}");
        assert!(batch.contains("<text>plaintext</text>"), "{text}");
    })
    .await;
}

#[tokio::test]
async fn messages_are_pending_again_after_an_attempt_that_panicked() {
    // The model panics, because it has no response.
    let model: Arc<dyn Llm> = Arc::new(ScriptedLlm::default());
    run_with(TestConfig { llm: Some(model), ..with_model() }, async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        client.store_text(&session, "buy milk").await;
        app.drain_jobs().await;
        let job = "select state || ' ' || attempt || ' ' || last_error from jobs where kind = 'observe'";
        assert_eq!(app.fetch_scalar::<String>(job).await, "ready 1 the job panicked");
        assert_eq!(status(&client, &session).await, (json!(0), json!(0), json!(1)));
    })
    .await;
}

#[tokio::test]
async fn a_flush_waits_for_its_result() {
    let config = TestConfig::default().with("LLM_SDK", "mock").with("SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS", "1h");
    run_with(config, async |app| {
        let (client, stranger) = (app.project().await, app.project().await);
        let session = client.new_session().await;
        assert_eq!(flush(&client, &session).await, json!({"status": 200, "errmsg": ""}), "no message is pending");
        for n in 0..40 {
            client.store_text(&session, &format!("m{n}")).await;
        }
        let flushed = while_jobs_run(&app, flush(&client, &session)).await;
        assert_eq!(flushed, json!({"status": 200, "errmsg": ""}));
        assert_eq!(status(&client, &session).await, (json!(40), json!(0), json!(0)));
        let path = format!("/api/v1/session/{session}/flush");
        stranger.post(&path, json!({})).await.assert_error(403, "does not belong");
        let nowhere = format!("/api/v1/session/{}/flush", Uuid::new_v4());
        client.post(&nowhere, json!({})).await.assert_error(404, "session not found");
    })
    .await;
}

#[tokio::test]
async fn a_flush_that_times_out_reports_pending_messages() {
    let config = with_model().with("ACONTEXTD_FLUSH_TIMEOUT", "200ms");
    run_with(config, async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        client.store_text(&session, "a").await;
        client.store_text(&session, "b").await;
        // No job runner is running.
        let flushed = flush(&client, &session).await;
        assert_eq!(flushed["status"], 504);
        assert!(flushed["errmsg"].as_str().unwrap().contains("2 messages are still pending"), "{flushed}");
    })
    .await;
}

#[tokio::test]
async fn an_earlier_attempt_does_not_decide_the_result_of_a_flush() {
    let config = with_model().with("ACONTEXTD_FLUSH_TIMEOUT", "200ms");
    run_with(config, async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        client.store_text(&session, "a").await;
        app.execute(
            "update jobs set state = 'running', worker_id = gen_random_uuid(),
                             lease_expires_at = now() + interval '1 hour', attempt = 2,
                             last_error = 'LLM complete failed: 429'",
        )
        .await;
        assert_eq!(flush(&client, &session).await["status"], 504);
        app.execute(
            "update jobs set state = 'ready', worker_id = null, lease_expires_at = null,
                             run_at = now() + interval '1 hour'",
        )
        .await;
        assert_eq!(flush(&client, &session).await["status"], 504);
        // No job runner is running, so this update is the result of the next attempt.
        let fails = async {
            wait_until("the flush has begun", async || {
                app.fetch_scalar::<i64>("select count(*) from jobs where run_at <= now()").await == 1
            })
            .await;
            app.execute("update jobs set last_error = 'LLM complete failed: 429', run_at = now() + interval '1 hour'")
                .await;
        };
        app.execute("update jobs set run_at = now() + interval '1 hour'").await;
        // With the default timeout, so that this flush does not time out on a busy machine.
        let patient = app.second_process(with_model()).await;
        let patient = patient.client().with_key(client.key());
        let (flushed, ()) = tokio::join!(flush(&patient, &session), fails);
        assert_eq!(flushed["status"], 502);
        assert!(flushed["errmsg"].as_str().unwrap().starts_with("LLM complete failed: 429"), "{flushed}");
    })
    .await;
}

#[tokio::test]
async fn a_project_can_set_its_maximum_number_of_turns() {
    let config = TestConfig::default().with("LLM_SDK", "mock").with("SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS", "1h");
    run_with(config, async |app| {
        let client = app.project().await;
        let due = "select count(*) from jobs where kind = 'observe' and run_at <= now()";
        for (turns, enough) in [(json!(2), 2), (json!("3"), 16), (json!(0), 1)] {
            sqlx::query(
                "update projects set configs = jsonb_build_object('project_config', jsonb_build_object(
                     'project_session_message_buffer_max_turns', $1::jsonb))",
            )
            .bind(&turns)
            .execute(&*app.app.db)
            .await
            .unwrap();
            // A process does this when it is notified of the change.
            app.clear_key_cache();
            app.execute("delete from jobs").await;
            let session = client.new_session().await;
            for n in 1..=enough {
                assert_eq!(app.fetch_scalar::<i64>(due).await, 0, "{turns}: after {n}");
                client.store_text(&session, "m").await;
            }
            assert_eq!(app.fetch_scalar::<i64>(due).await, 1, "{turns}");
        }
    })
    .await;
}

#[tokio::test]
async fn without_a_model_messages_stay_pending_with_a_reason() {
    let config = TestConfig::default().with("SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS", "0");
    run_with(config, async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        client.store_text(&session, "pending").await;
        app.drain_jobs().await;
        assert_eq!(status(&client, &session).await, (json!(0), json!(0), json!(1)));
        let reason =
            app.fetch_scalar::<String>("select last_error from jobs where kind = 'observe' and state = 'ready'").await;
        assert!(reason.contains("no model is configured"), "{reason}");
        assert_eq!(app.fetch_scalar::<i32>("select attempt from jobs").await, 0, "waiting is not an attempt");
        let flushed = flush(&client, &session).await;
        assert_eq!(flushed["status"], 503);
        assert!(flushed["errmsg"].as_str().unwrap().contains("1 message is pending"), "{flushed}");
        // A process with a model starts. It finds the job by its wait reason, not by the text of the error.
        app.execute("update jobs set last_error = 'another text'").await;
        let second_process = app.second_process(with_model()).await;
        acontextd::learn::resume_jobs_awaiting_model(second_process.app.learn.clone()).await.unwrap();
        second_process.drain_jobs().await;
        assert_eq!(status(&client, &session).await, (json!(1), json!(0), json!(0)));
    })
    .await;
}

#[tokio::test]
async fn a_flush_without_a_model_makes_failed_messages_pending() {
    let config = TestConfig::default().with("SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS", "0");
    run_with(config, async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        client.store_text(&session, "failed").await;
        app.execute("delete from jobs").await;
        app.execute("update messages set session_task_process_status = 'failed'").await;
        app.execute("update sessions set has_observe_job = false").await;
        let flushed = flush(&client, &session).await;
        assert_eq!(flushed["status"], 503);
        assert!(flushed["errmsg"].as_str().unwrap().contains("1 message is pending"), "{flushed}");
        assert_eq!(status(&client, &session).await, (json!(0), json!(0), json!(1)));
        assert_eq!(count_jobs(&app).await, 1);
        assert!(app.fetch_scalar::<bool>("select has_observe_job from sessions").await);
        app.drain_jobs().await;
        assert_eq!(app.fetch_scalar::<String>("select wait_reason from jobs").await, "model");
    })
    .await;
}

#[tokio::test]
async fn messages_of_a_lost_process_are_observed_again() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let (running, missed) = (client.new_session().await, client.new_session().await);
        client.store_text(&running, "running").await;
        app.execute("update messages set session_task_process_status = 'running'").await;
        app.drain_jobs().await;
        assert_eq!(status(&client, &running).await, (json!(1), json!(0), json!(0)));
        // A message whose job is missing.
        client.store_text(&missed, "missed").await;
        app.execute("delete from jobs").await;
        app.execute("update messages set updated_at = now() - interval '2 minutes'").await;
        acontextd::learn::observe::enqueue_missed(app.app.learn.clone()).await.unwrap();
        app.drain_jobs().await;
        assert_eq!(status(&client, &missed).await, (json!(1), json!(0), json!(0)));
    })
    .await;
}

#[tokio::test]
async fn only_a_flush_retries_failed_messages() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        client.store_text(&session, "failed").await;
        app.drain_jobs().await;
        app.execute("update messages set session_task_process_status = 'failed'").await;
        assert_eq!(status(&client, &session).await, (json!(0), json!(0), json!(0)), "failed messages are not counted");
        acontextd::learn::observe::enqueue_missed(app.app.learn.clone()).await.unwrap();
        assert_eq!(count_jobs(&app).await, 0);
        let flushed = while_jobs_run(&app, flush(&client, &session)).await;
        assert_eq!(flushed["status"], 200, "{flushed}");
        assert_eq!(status(&client, &session).await, (json!(1), json!(0), json!(0)));
    })
    .await;
}

#[tokio::test]
async fn a_project_over_its_quota_is_not_observed() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        client.store_text(&session, "too much").await;
        app.execute(
            "insert into metrics (project_id, tag, increment) select id, 'excess.task.created', 1 from projects",
        )
        .await;
        app.drain_jobs().await;
        let page = client.messages(&session, "format=acontext").await;
        assert_eq!(page["items"][0]["session_task_process_status"], "limit_exceed");
        assert_eq!((count_jobs(&app).await, status(&client, &session).await), (0, (json!(0), json!(0), json!(0))));
    })
    .await;
}

#[tokio::test]
async fn messages_stored_while_a_job_runs_are_observed() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let sessions = [client.new_session().await, client.new_session().await];
        let store_and_wait = async {
            for n in 0..60 {
                client.store_text(&sessions[n % 2], &format!("m{n}")).await;
            }
            for session in &sessions {
                let all = || async { status(&client, session).await == (json!(30), json!(0), json!(0)) };
                wait_until("all messages are observed", async || all().await).await;
            }
            wait_until("no job is left", async || count_jobs(&app).await == 0).await;
        };
        let in_time = tokio::time::timeout(Duration::from_secs(25), while_jobs_run(&app, store_and_wait)).await;
        assert!(in_time.is_ok());
    })
    .await;
}

#[tokio::test]
async fn a_deleted_session_ends_its_job() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        client.store_text(&session, "gone").await;
        assert_eq!(client.delete(&format!("/api/v1/session/{session}")).await.status, StatusCode::OK);
        app.execute("update jobs set run_at = now()").await;
        app.drain_jobs().await;
        assert_eq!(count_jobs(&app).await, 0);
    })
    .await;
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a list of ways to store a message")]
async fn every_way_to_store_a_message_leaves_the_same_job() {
    // Without a model, so that no job runs.
    run(async |app| {
        let client = app.project().await;
        let mut jobs = Vec::new();
        for way in ["batch", "key", "long", "file", "function result", "copy", "flush", "missed"] {
            let mut session = client.new_session().await;
            let user = |text: &str| json!({"format": "openai", "blob": {"role": "user", "content": text}});
            let path = format!("/api/v1/session/{session}/messages");
            match way {
                "key" => client.json_with_key("key", Method::POST, &path, &user("keyed")).await.assert_status(201),
                "long" => client.post(&path, user(&"long ".repeat(100_000))).await.assert_status(201),
                "file" => {
                    let parts = json!([{"type": "file", "file_field": "f"}]);
                    let payload = json!({"format": "acontext", "blob": {"role": "user", "parts": parts}});
                    let form = Form::new().text("payload", &payload.to_string()).file("f", "f.txt", "a file");
                    client.store_form_message(&session, form).await.assert_status(201);
                }
                "function result" => {
                    let call = json!({"role": "model", "parts": [{"functionCall": {"name": "f", "args": {}}}]});
                    client.store_message(&session, "gemini", call).await.assert_status(201);
                    app.execute("delete from jobs").await;
                    app.execute("update sessions set has_observe_job = false").await;
                    let result = json!({"functionResponse": {"name": "f", "response": {}}});
                    let message = json!({"role": "user", "parts": [result]});
                    client.store_message(&session, "gemini", message).await.assert_status(201);
                }
                "copy" => {
                    client.store_text(&session, "copied").await;
                    let copy = client.post(&format!("/api/v1/session/{session}/copy"), json!({})).await.data();
                    session = copy["new_session_id"].as_str().unwrap().to_owned();
                }
                "flush" | "missed" => {
                    client.store_text(&session, way).await;
                    app.execute("delete from jobs").await;
                    app.execute("update messages set updated_at = now() - interval '2 minutes'").await;
                    // A process with a model enqueues the job, and does not run it.
                    let second = app.second_process(with_model().with("ACONTEXTD_FLUSH_TIMEOUT", "1ms")).await;
                    if way == "flush" {
                        second
                            .client()
                            .with_key(client.key())
                            .post(&format!("/api/v1/session/{session}/flush"), json!({}))
                            .await;
                    } else {
                        acontextd::learn::observe::enqueue_missed(second.app.learn.clone()).await.unwrap();
                    }
                }
                _ => drop(client.store_text(&session, "batched").await),
            }
            let rows: Vec<(String, String, Option<String>, Option<String>)> = sqlx::query_as(
                "select kind, payload::text, lane, dedupe_key from jobs where payload ->> 'session' = $1",
            )
            .bind(&session)
            .fetch_all(&*app.app.db)
            .await
            .unwrap();
            let has_job = sqlx::query_scalar("select has_observe_job from sessions where id = $1::uuid").bind(&session);
            assert!(has_job.fetch_one(&*app.app.db).await.unwrap_or(false), "{way}");
            let anonymous = |text: String| text.replace(&session, "<session>");
            for (kind, payload, lane, dedupe_key) in rows {
                let job = (kind, anonymous(payload), lane.map(anonymous), dedupe_key.map(anonymous));
                jobs.push((way, job));
            }
        }
        assert_eq!(jobs.len(), 8, "{jobs:#?}");
        assert!(jobs.iter().all(|(_, job)| *job == jobs[0].1), "{jobs:#?}");
    })
    .await;
}

#[tokio::test]
async fn messages_that_wait_for_a_model_have_a_reason() {
    for (sdk, is_configured) in [("none", false), ("mock", true)] {
        run_with(TestConfig::default().with("LLM_SDK", sdk), async |app| {
            let client = app.project().await;
            let session = client.new_session().await;
            let path = format!("/api/v1/session/{session}/observing_status");
            assert!(client.get(&path).await.data().get("reason").is_none(), "nothing is pending");
            client.store_text(&session, "hello").await;
            let status = client.get(&path).await.data();
            assert_eq!(status["pending"], 1);
            let reason = status.get("reason").map(|reason| reason.as_str().unwrap().to_owned());
            assert_eq!(reason.is_none(), is_configured, "{status}");
            assert!(reason.is_none_or(|reason| reason.contains("LLM_SDK")), "{status}");
        })
        .await;
    }
}
