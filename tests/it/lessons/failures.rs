//! Lessons that cannot be distilled or written: their errors, their attempts, and how they are tried again.

use std::sync::{Arc, Mutex};

use acontextd::llm::{self, ChatRequest, ChatResponse, Llm, LlmError, Purpose};
use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::Level;

use super::{Learning, SkillCalls, TRY_AGAIN, finished_task, success_report, think};
use crate::support::captured_log::CapturedLog;
use crate::support::client::Form;
use crate::support::model_server::{Lane, Latch, ModelServer, Step, Wire};
use crate::support::{TestConfig, app_config, run_with};
use crate::task_agent::{Scenario, TTL, finish, flushed, in_both_formats};

#[tokio::test]
async fn a_model_that_reports_nothing_usable_is_named_in_the_reason() {
    in_both_formats(&[], async |s| {
        let refusal = || vec![Step::refusal("I cannot help with that.")];
        let mistakes = || (0..3).map(|_| Step::call("write_file", json!({"name": "a"}))).collect::<Vec<_>>();
        let texts = || vec![Step::text("The task went well."), Step::text("As I said.")];
        let (invalid, withheld) = ("made only invalid tool calls", "withheld the response of the model test-model");
        for (kind, steps, problem) in [
            ("distill", mistakes(), invalid),
            ("distill", texts(), "the model test-model has called no tool, although it was reminded"),
            ("distill", refusal(), withheld),
            ("write_lesson", mistakes(), invalid),
            ("write_lesson", refusal(), withheld),
        ] {
            let session = s.client.new_session().await;
            let learning = Learning { s, space: s.client.new_space().await };
            learning.learn(&session).await;
            s.client.store_text(&session, "do A").await;
            s.script([finished_task("A")]);
            if kind == "distill" {
                learning.script_distillation(steps);
            } else {
                learning.script_distillation([success_report()]);
                learning.script_learner(steps);
            }
            s.app.drain_jobs().await;
            let learned = learning.get(&session).await;
            let reason = learned["reason"].as_str().unwrap();
            assert_eq!(learned["status"], "failed", "{learned}");
            assert!(reason.starts_with("LLM complete failed") && reason.contains("LLM_SIMPLE_MODEL"), "{reason}");
            assert!(reason.contains(problem), "{kind}: {reason}");
            let job = job_of(&learning, &session).await;
            assert_eq!((&job["kind"], &job["state"]), (&json!(kind), &json!("failed")));
            let message = reason.strip_suffix(TRY_AGAIN).unwrap();
            assert_eq!((&job["error"]["class"], &job["error"]["message"]), (&json!("model"), &json!(message)));
        }
    })
    .await;
}

/// The session or the space is deleted while the model works, and then the model rejects the request.
#[tokio::test]
async fn a_failure_after_a_deletion_leaves_no_job() {
    for (kind, deletes_space) in
        [("observe", false), ("distill", false), ("distill", true), ("write_lesson", false), ("write_lesson", true)]
    {
        in_both_formats(&[], async |s| {
            let learning = Learning::start(s).await;
            let latch = Latch::new();
            let rejected = Step::status(400).after(&latch);
            s.store(&["do A"]).await;
            match kind {
                "observe" => s.script([rejected]),
                "distill" => {
                    s.script([finished_task("A")]);
                    learning.script_distillation([rejected]);
                }
                _ => {
                    s.script([finished_task("A")]);
                    learning.script_distillation([success_report()]);
                    learning.script_learner([rejected]);
                }
            }
            let (log, _guard) = CapturedLog::start(Level::INFO);
            s.while_jobs_run(async {
                latch.wait_for_requests(1).await;
                learning.delete(deletes_space).await;
                latch.release();
                s.app.until_idle().await;
            })
            .await;
            assert_eq!(s.app.fetch_scalar::<i64>("select count(*) from jobs").await, 0, "{kind} {deletes_space}");
            let (event, reason) = match kind {
                "observe" => ("observation discarded", "the session was deleted"),
                _ => ("lesson discarded", "the session or the learning space was deleted"),
            };
            assert!(log.text().contains(event) && log.text().contains(reason), "{kind}: {}", log.text());
        })
        .await;
    }
}

/// A model that records the deadlines of the requests of the skill agent.
struct DeadlineRecorder {
    llm: Arc<dyn Llm>,
    deadlines: Mutex<Vec<Instant>>,
}

#[async_trait]
impl Llm for DeadlineRecorder {
    fn model(&self) -> &str {
        self.llm.model()
    }

    async fn chat(&self, request: &ChatRequest<'_>) -> Result<ChatResponse, LlmError> {
        if request.origin.purpose == Purpose::SkillAgent {
            self.deadlines.lock().unwrap().push(request.deadline);
        }
        self.llm.chat(request).await
    }
}

/// Other writers change a file during each run of the last attempt.
#[tokio::test]
async fn a_lesson_fails_if_its_edits_never_fit() {
    let model = ModelServer::start().await;
    let config = model.config(Wire::OpenAi).with(TTL, "0");
    let llm = llm::from_config(&app_config(&config.settings).model, reqwest::Client::new());
    let recorder = Arc::new(DeadlineRecorder { llm, deadlines: Mutex::default() });
    let config = TestConfig { llm: Some(Arc::clone(&recorder) as Arc<dyn Llm>), ..config };
    run_with(config, async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let s = &Scenario { app, model, wire: Wire::OpenAi, client, session };
        let learning = Learning::start(s).await;
        let disk = learning.skill("daily-logs").await["disk_id"].as_str().unwrap().to_owned();
        let put = async |text: &str| {
            let form = Form::new().text("file_path", "/").file("file", "log.md", text);
            s.client.upload_form(&disk, form).await.assert_status(201);
        };
        put("text 0").await;
        begin_with_last_attempt(s, "write_lesson").await;
        learning.script_finished_task().await;
        learning.script_distillation([success_report()]);
        let latches = [Latch::new(), Latch::new(), Latch::new()];
        for (run, latch) in latches.iter().enumerate() {
            let edit = think().replace("daily-logs", "log.md", &format!("text {run}"), "text");
            learning.script_learner([edit, finish().after(latch)]);
        }
        s.while_jobs_run(async {
            for (run, latch) in latches.iter().enumerate() {
                latch.wait_for_requests(1).await;
                put(&format!("text {}", run + 1)).await;
                latch.release();
            }
            s.app.until_idle().await;
        })
        .await;
        let reason =
            "other writers have changed the skills while the lesson was being written, so its edits no longer fit";
        assert_eq!(learning.lessons().await, [format!("failed success: {reason}")]);
        assert_eq!(learning.get(&s.session).await["reason"], format!("{reason}{TRY_AGAIN}"));
        let deadlines = recorder.deadlines.lock().unwrap().clone();
        assert_eq!(deadlines.len(), 6);
        assert!(deadlines.windows(2).all(|pair| pair[0] == pair[1]), "the runs of an attempt have one deadline");
        s.model.assert_nothing_rejected();
    })
    .await;
}

/// A wrong key is the error that the client of the model does not repeat.
#[tokio::test]
async fn a_lesson_survives_eleven_failed_attempts() {
    in_both_formats(&[], async |s| {
        let learning = Learning::start(s).await;
        learning.script_finished_task().await;
        for kind in ["distill", "write_lesson"] {
            for attempt in 1..MAX_ATTEMPTS {
                if kind == "distill" {
                    learning.script_distillation([Step::status(401)]);
                } else {
                    learning.script_learner([Step::status(401)]);
                }
                s.app.drain_jobs().await;
                let job = job_of(&learning, &s.session).await;
                assert_eq!((&job["kind"], &job["state"]), (&json!(kind), &json!("ready")), "{attempt}");
                assert_eq!((&job["attempt"], &job["max_attempts"]), (&json!(attempt), &json!(MAX_ATTEMPTS)));
                s.end_backoff().await;
            }
            learning.script_distillation((kind == "distill").then(success_report));
        }
        learning.script_learner([finish()]);
        s.app.drain_jobs().await;
        assert_eq!(
            (learning.lessons().await, learning.status().await),
            (vec!["written success".to_owned()], "completed".to_owned())
        );
    })
    .await;
}

/// What becomes of a failed lesson and its job before the flush.
const BEFORE_FLUSH: [&str; 3] = [
    "select 1",
    // After 14 days, the failed job is deleted.
    "delete from jobs where state = 'failed'",
    // An open lesson without a job, which no version of the server leaves on purpose.
    "with deleted as (delete from jobs) update lessons set state = case when kind is null then 'distilling' else 'writing' end",
];

#[tokio::test]
async fn a_flush_tries_failed_lessons_again() {
    for before_flush in BEFORE_FLUSH {
        in_both_formats(&[], async |s| {
            let learning = Learning::start(s).await;
            learning.script_finished_task().await;
            learning.script_distillation([Step::status(400)]);
            s.app.drain_jobs().await;
            assert_eq!(learning.status().await, "failed");
            learning.script_distillation([success_report()]);
            learning.script_learner([Step::status(400), finish()]);
            for (kind, expected) in [("distill", "failed success"), ("write_lesson", "written success")] {
                s.app.execute(before_flush).await;
                assert_eq!(s.flush().await, flushed());
                let job = job_of(&learning, &s.session).await;
                assert_eq!((&job["kind"], &job["state"], &job["attempt"]), (&json!(kind), &json!("ready"), &json!(0)));
                s.app.drain_jobs().await;
                let lessons = learning.lessons().await;
                assert!(lessons.len() == 1 && lessons[0].starts_with(expected), "{before_flush}: {lessons:?}");
            }
            assert_eq!(learning.status().await, "failed", "a final status never changes");
            assert_eq!(s.jobs().await.len(), 0);
            // A lesson that is written is not written again.
            assert_eq!(s.flush().await, flushed());
            assert_eq!(s.jobs().await.len(), 0);
        })
        .await;
    }
}

#[tokio::test]
async fn a_flush_keeps_the_attempts_of_a_lesson_in_backoff() {
    in_both_formats(&[], async |s| {
        let learning = Learning::start(s).await;
        learning.script_finished_task().await;
        learning.script_distillation([Step::status(401)]);
        s.app.drain_jobs().await;
        let before = job_of(&learning, &s.session).await;
        assert_eq!((&before["state"], &before["attempt"]), (&json!("ready"), &json!(1)));
        assert_eq!(s.flush().await, flushed());
        assert_eq!(job_of(&learning, &s.session).await, before);
    })
    .await;
}

/// The task and the preferences exist before the sessions are learned. Then a process with a model starts.
#[tokio::test]
async fn lessons_wait_for_a_model_with_a_reason() {
    let model = ModelServer::start().await;
    run_with(TestConfig::default(), async |app| {
        let client = app.project().await;
        let sessions = [client.new_session().await, client.new_session().await];
        for (session, is_planning) in sessions.iter().zip([false, true]) {
            let task = r#"insert into tasks (session_id, project_id, "order", is_planning, status, data)
                          select id, project_id, 1, $2, 'success', '{"task_description": "A", "user_preferences": ["tea"]}'
                          from sessions where id = $1::uuid"#;
            sqlx::query(task).bind(session).bind(is_planning).execute(&*app.app.db).await.unwrap();
        }
        let space = client.new_space().await;
        for session in &sessions {
            super::learn(&client, &space, session).await;
        }
        app.drain_jobs().await;
        let learned = async |session: &str| {
            client.get(&format!("/api/v1/learning_spaces/{space}/sessions/{session}")).await.data()
        };
        for (session, kind) in sessions.iter().zip(["distill", "write_lesson"]) {
            let found = learned(session).await;
            let reason = found["reason"].as_str().unwrap();
            assert!(found["status"] == "pending" && reason.contains("no model is configured"), "{found}");
            let job = client.get(&format!("/api/v1/jobs?session_id={session}")).await.data()["items"][0].clone();
            assert_eq!((&job["kind"], &job["wait_reason"]), (&json!(kind), &json!("model")));
            assert_eq!((&job["attempt"], &job["error"]["class"]), (&json!(0), &json!("model_settings")));
        }
        let with_model = app.second_process(model.config(Wire::OpenAi)).await;
        acontextd::learn::resume_jobs_awaiting_model(with_model.app.learn.clone()).await.unwrap();
        model.script(Lane::DistillSuccess, "", [success_report()]);
        model.script(Lane::Learner, "", [finish(), finish()]);
        with_model.drain_jobs().await;
        for session in &sessions {
            let found = learned(session).await;
            assert!(found["status"] == "completed" && found.get("reason").is_none(), "{found}");
        }
        assert_eq!(model.remaining_steps(), 0);
        model.assert_nothing_rejected();
    })
    .await;
}

/// The maximum number of attempts to distill or write a lesson.
const MAX_ATTEMPTS: i32 = 12;

/// Lets the next jobs of a kind begin with their last attempt.
async fn begin_with_last_attempt(s: &Scenario, kind: &str) {
    let function = format!(
        "create function begin_with_last_attempt() returns trigger language plpgsql as
             $$ begin new.attempt = {}; return new; end $$",
        MAX_ATTEMPTS - 1
    );
    let trigger = format!(
        "create trigger begin_with_last_attempt before insert on jobs for each row when (new.kind = '{kind}')
         execute function begin_with_last_attempt()"
    );
    for statement in [function, trigger] {
        sqlx::query(&statement).execute(&*s.app.app.db).await.unwrap();
    }
}

/// Returns the only job of a session.
async fn job_of(learning: &Learning<'_>, session: &str) -> Value {
    let jobs = learning.s.client.get(&format!("/api/v1/jobs?session_id={session}")).await.data()["items"].clone();
    assert_eq!(jobs.as_array().unwrap().len(), 1, "{jobs}");
    jobs[0].clone()
}
