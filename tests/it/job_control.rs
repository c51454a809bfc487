//! The list of a project's background jobs, their retry, and the usage of language models.

use std::sync::Arc;
use std::time::Duration;

use acontextd::ids::ProjectId;
use acontextd::llm::recording::RecordingLlm;
use acontextd::llm::{CallOrigin, ChatMessage, ChatRequest, Llm, LlmError, Purpose, ToolChoice};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::llm::ScriptedLlm;
use crate::support::{TestApp, TestConfig, run, run_with, wait_until};

fn scripted() -> (Arc<ScriptedLlm>, TestConfig) {
    let llm = Arc::new(ScriptedLlm::default());
    let model: Arc<dyn Llm> = llm.clone();
    let config = TestConfig { llm: Some(model), ..TestConfig::default() };
    (llm, config.with("LLM_SDK", "mock").with("SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS", "0"))
}

async fn states(app: &TestApp) -> String {
    let states = "select string_agg(session_task_process_status, ',' order by created_at) from messages";
    app.fetch_scalar::<Option<String>>(states).await.unwrap_or_default()
}

#[tokio::test]
async fn jobs_of_a_project_are_listed_with_their_reason() {
    run(async |app| {
        let (client, other) = (app.project().await, app.project().await);
        let sessions = [client.new_session().await, client.new_session().await];
        for session in &sessions {
            client.store_text(session, "hello").await;
        }
        other.store_text(&other.new_session().await, "hello").await;
        let page = client.get("/api/v1/jobs?limit=1").await.data();
        assert_eq!(page["has_more"], true);
        let job = &page["items"][0];
        assert_eq!(
            (&job["kind"], &job["state"], &job["session_id"]),
            (&json!("observe"), &json!("ready"), &json!(sessions[0]))
        );
        assert_eq!((&job["wait_reason"], &job["attempt"], &job["max_attempts"]), (&Value::Null, &json!(0), &json!(5)));
        assert!(
            job.get("error").is_none() && job.get("lease_until").is_none() && job.get("learning_space_id").is_none()
        );
        let cursor = page["next_cursor"].as_str().unwrap();
        let rest = client.get(&format!("/api/v1/jobs?limit=1&cursor={cursor}")).await.data();
        assert_eq!((&rest["items"][0]["session_id"], &rest["has_more"]), (&json!(sessions[1]), &json!(false)));
        let newest = client.get("/api/v1/jobs?limit=1&time_desc=true").await.data();
        assert_eq!(newest["items"][0]["session_id"], json!(sessions[1]));
        let one = client.get(&format!("/api/v1/jobs?session_id={}", sessions[1])).await.data();
        assert_eq!(one["items"].as_array().unwrap().len(), 1);
        client.get("/api/v1/jobs?session_id=x").await.assert_error(400, "session_id");
        // No model is configured.
        app.execute("update jobs set run_at = now()").await;
        app.drain_jobs().await;
        let job = client.get("/api/v1/jobs?limit=1").await.data()["items"][0].clone();
        assert_eq!((&job["wait_reason"], &job["error"]["class"]), (&json!("model"), &json!("model_settings")));
        assert!(job["error"]["message"].as_str().unwrap().contains("no model is configured"), "{job}");
    })
    .await;
}

#[tokio::test]
async fn a_job_with_an_invalid_session_is_listed() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        client.store_text(&session, "hello").await;
        app.execute("update jobs set payload = '{\"session\": \"x\"}'").await;
        let jobs = client.get("/api/v1/jobs").await;
        jobs.assert_status(200);
        assert!(jobs.data()["items"][0].get("session_id").is_none());
        let of_session = client.get(&format!("/api/v1/jobs?session_id={session}")).await;
        of_session.assert_status(200);
        assert_eq!(of_session.data()["items"], json!([]));
    })
    .await;
}

#[tokio::test]
async fn the_jobs_of_a_session_are_found_with_an_index() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        client.store_text(&session, "hello").await;
        app.execute(
            "insert into jobs (id, project_id, kind, payload, state)
             select gen_random_uuid(), id, 'observe', jsonb_build_object('session', gen_random_uuid()), 'failed'
             from projects, generate_series(1, 5000)",
        )
        .await;
        app.execute("analyze jobs").await;
        let path = format!("/api/v1/jobs?session_id={session}");
        // The statistics of a connection become visible later.
        wait_until("the index was used", async || {
            assert_eq!(client.get(&path).await.data()["items"].as_array().unwrap().len(), 1);
            let scans = "select idx_scan from pg_stat_user_indexes
                         where indexrelname = 'jobs_project_id_session_created_at_id_idx'";
            app.fetch_scalar::<i64>(scans).await > 0
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_failed_job_is_retried_with_its_messages() {
    let (llm, config) = scripted();
    run_with(config, async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        client.store_text(&session, "hello").await;
        let path = format!("/api/v1/jobs?session_id={session}");
        let id = client.get(&path).await.data()["items"][0]["id"].as_str().unwrap().to_owned();
        let retry = format!("/api/v1/jobs/{id}/retry");
        client.post(&retry, json!({})).await.assert_error(409, "the state of this job is ready");
        llm.fail(LlmError::Rejected(anyhow::anyhow!("not this")));
        app.drain_jobs().await;
        let job = client.get(&path).await.data()["items"][0].clone();
        assert_eq!((&job["state"], &job["error"]["class"]), (&json!("failed"), &json!("model")));
        assert_eq!(job["error"]["message"], "LLM complete failed: not this");
        assert_eq!(states(&app).await, "failed");
        // Only the project itself can retry its job.
        app.project().await.post(&retry, json!({})).await.assert_status(404);
        let retried = client.post(&retry, json!({})).await.data();
        assert_eq!((&retried["id"], &retried["state"], &retried["attempt"]), (&json!(id), &json!("ready"), &json!(0)));
        assert!(retried.get("error").is_none());
        assert_eq!(states(&app).await, "pending");
        llm.respond("nothing to do");
        app.drain_jobs().await;
        assert_eq!(states(&app).await, "success");
        client.post(&retry, json!({})).await.assert_status(404);
    })
    .await;
}

#[tokio::test]
async fn a_retry_joins_the_job_that_waits_already() {
    let (llm, config) = scripted();
    run_with(config, async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        client.store_text(&session, "hello").await;
        llm.fail(LlmError::Rejected(anyhow::anyhow!("not this")));
        app.drain_jobs().await;
        client.store_text(&session, "again").await;
        let path = format!("/api/v1/jobs?session_id={session}");
        let jobs = client.get(&path).await.data()["items"].clone();
        let [failed, waiting] = &jobs.as_array().unwrap()[..] else { panic!("{jobs}") };
        let retry = format!("/api/v1/jobs/{}/retry", failed["id"].as_str().unwrap());
        assert_eq!(client.post(&retry, json!({})).await.data()["id"], waiting["id"]);
        llm.respond("nothing to do");
        app.drain_jobs().await;
        assert_eq!(states(&app).await, "success,success");
        assert_eq!(client.get(&path).await.data()["items"], json!([]));
    })
    .await;
}

#[tokio::test]
async fn a_model_call_is_recorded_although_its_job_is_aborted() {
    run(async |app| {
        let project = ProjectId(app.project().await.project());
        let llm = ScriptedLlm::default();
        llm.respond("nothing to do");
        let (db, process, metrics) = (&app.app.db, &app.app.process, &app.app.model_metrics);
        let llm = RecordingLlm::new(Arc::new(llm), db.clone(), process.clone(), Arc::clone(metrics));
        let mut tx = db.begin().await.unwrap();
        sqlx::query("lock table model_calls in access exclusive mode").execute(&mut *tx).await.unwrap();
        let request = ChatRequest {
            system: "",
            messages: &[ChatMessage::User("hello".into())],
            tools: &[],
            tool_choice: ToolChoice::Auto,
            max_tokens: 100,
            deadline: Instant::now() + Duration::from_mins(1),
            origin: CallOrigin { project, purpose: Purpose::TaskAgent, learning_space: None },
        };
        let insert_waits = wait_until("the insert waits for the lock", async || {
            let waiting = "select count(*) from pg_locks where not granted and relation = 'model_calls'::regclass
                           and database = (select oid from pg_database where datname = current_database())";
            app.fetch_scalar::<i64>(waiting).await > 0
        });
        tokio::select! {
            _ = llm.chat(&request) => panic!("the insert does not wait"),
            () = insert_waits => {}
        }
        tx.rollback().await.unwrap();
        wait_until("the call is recorded", async || {
            app.fetch_scalar::<i64>("select count(*) from model_calls where outcome = 'ok'").await == 1
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn model_calls_are_summed_up_by_day() {
    let (llm, config) = scripted();
    run_with(config, async |app| {
        let (client, other) = (app.project().await, app.project().await);
        let session = client.new_session().await;
        client.store_text(&session, "hello").await;
        llm.fail(LlmError::Unavailable(anyhow::anyhow!("overloaded")));
        app.drain_jobs().await;
        app.execute("update jobs set run_at = now()").await;
        llm.respond("nothing to do");
        app.drain_jobs().await;
        let usage = client.get("/api/v1/project/model_usage").await.data()["items"].clone();
        let day = json!(chrono::Utc::now().date_naive());
        let entry = |usage: &Value, key: &str| usage[0][key].clone();
        assert_eq!(usage.as_array().unwrap().len(), 1, "{usage}");
        assert_eq!(
            (entry(&usage, "day"), entry(&usage, "purpose"), entry(&usage, "model")),
            (day, json!("task_agent"), json!("scripted"))
        );
        assert_eq!((entry(&usage, "calls"), entry(&usage, "failed")), (json!(2), json!(1)));
        // Older days come later, and only as many as requested.
        app.execute(
            "update model_calls set created_at = created_at - interval '1 day', input_tokens = 70, cached_tokens = 20,
                                    output_tokens = 5 where outcome = 'ok'",
        )
        .await;
        let usage = client.get("/api/v1/project/model_usage?days=2").await.data()["items"].clone();
        assert_eq!((&usage[0]["failed"], &usage[1]["failed"]), (&json!(1), &json!(0)));
        let tokens = ["input_tokens", "cached_tokens", "output_tokens"].map(|key| usage[1][key].as_i64().unwrap());
        assert_eq!(tokens, [70, 20, 5]);
        let today = client.get("/api/v1/project/model_usage?days=1").await.data()["items"].clone();
        assert_eq!(today.as_array().unwrap().len(), 1);
        assert_eq!(other.get("/api/v1/project/model_usage").await.data()["items"], json!([]));
        for days in ["0", "367"] {
            client.get(&format!("/api/v1/project/model_usage?days={days}")).await.assert_error(400, "days");
        }
        let metrics = app.admin().get("/metrics").await.text();
        for (outcome, count) in [("ok", 1), ("unavailable", 1)] {
            let line = format!("acontextd_model_calls_total{{purpose=\"task_agent\",outcome=\"{outcome}\"}} {count}");
            assert!(metrics.contains(&line), "{metrics}");
        }
    })
    .await;
}
