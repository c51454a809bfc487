//! Lessons that cannot be distilled or written: their errors, their attempts, and how they are tried again.

use serde_json::{Value, json};
use tracing::Level;

use super::{Learning, finished_task, success_report};
use crate::support::captured_log::CapturedLog;
use crate::support::model_server::{Latch, Step};
use crate::task_agent::in_both_formats;

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
            assert_eq!((&job["error"]["class"], &job["error"]["message"]), (&json!("model"), &json!(reason)));
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
                let path = if deletes_space {
                    format!("/api/v1/learning_spaces/{}", learning.space)
                } else {
                    format!("/api/v1/session/{}", s.session)
                };
                s.client.delete(&path).await.assert_status(200);
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

/// Returns the only job of a session.
async fn job_of(learning: &Learning<'_>, session: &str) -> Value {
    let jobs = learning.s.client.get(&format!("/api/v1/jobs?session_id={session}")).await.data()["items"].clone();
    assert_eq!(jobs.as_array().unwrap().len(), 1, "{jobs}");
    jobs[0].clone()
}
