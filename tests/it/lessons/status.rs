//! The learning status of a session: never early, never backwards, never stuck, and with a reason.

use acontextd::jobs::periodic;
use serde_json::json;

use super::{Learning, success_report, think};
use crate::support::model_server::{Lane, Latch, Step};
use crate::support::wait_until;
use crate::task_agent::{Calls, TTL, finish, flushed, in_both_formats, insert};

/// Makes the jobs look as if their processes had died during the last attempt. Returns their kinds.
const LOSE_LAST_ATTEMPT: &str = "with lost as (
        update jobs set state = 'running', attempt = 12, worker_id = gen_random_uuid(),
                        lease_expires_at = now() - interval '1 second'
        where kind in ('observe', 'distill', 'write_lesson') returning kind)
    select string_agg(kind, ' ') from lost";

/// The reason of a failed status if its cause has been corrected since.
const EARLIER_FAILURE: &str = "an earlier attempt to learn from the session has failed, and this status is final; the changes of the \
     learning space show what was learned since";

#[tokio::test]
async fn the_status_follows_the_steps() {
    in_both_formats(&[], async |s| {
        let learning = Learning::start(s).await;
        let (distillation, learner) = (Latch::new(), Latch::new());
        learning.script_distillation([success_report().after(&distillation)]);
        learning.script_learner([think().after(&learner), finish()]);
        assert_eq!(learning.s.message_statuses().await.len(), 0);
        learning.script_finished_task().await;
        s.while_jobs_run(async {
            distillation.wait_for_requests(1).await;
            assert_eq!(learning.status().await, "distilling");
            distillation.release();
            learner.wait_for_requests(1).await;
            assert_eq!(learning.status().await, "skill_writing");
            learner.release();
            learning.wait_for_status(&s.session, "completed").await;
        })
        .await;
        assert!(learning.get(&s.session).await.get("reason").is_none());
    })
    .await;
}

#[tokio::test]
async fn the_status_is_not_final_before_all_tasks_are_learned() {
    in_both_formats(&[], async |s| {
        let learning = Learning::start(s).await;
        s.store(&["do A, B and C"]).await;
        let tasks = ["A", "B", "C"].iter().enumerate().fold(Step::text(""), |step, (index, task)| {
            let order = i64::try_from(index).unwrap();
            step.insert(order, task).status(order + 1, "success")
        });
        s.script([tasks.finish()]);
        let latches = [Latch::new(), Latch::new(), Latch::new()];
        learning.script_distillation(latches.each_ref().map(|latch| success_report().after(latch)));
        learning.script_learner([finish(), finish(), finish()]);
        s.while_jobs_run(async {
            for (index, latch) in latches.iter().enumerate() {
                latch.wait_for_requests(1).await;
                assert!(!["completed", "failed"].contains(&learning.status().await.as_str()));
                latch.release();
                wait_until("another lesson is written", async || {
                    let lessons = learning.lessons().await;
                    lessons.iter().filter(|lesson| lesson.starts_with("written")).count() == index + 1
                })
                .await;
            }
        })
        .await;
        assert_eq!(learning.status().await, "completed");
    })
    .await;
}

#[tokio::test]
async fn open_tasks_are_completed_and_learned_when_the_status_is_read() {
    in_both_formats(&[], async |s| {
        let learning = Learning::start(s).await;
        s.store(&["do A"]).await;
        s.script([insert(0, "A").link(1, &[0, 0]).status(1, "running").finish()]);
        s.app.drain_jobs().await;
        assert_eq!(learning.take_requests(Lane::DistillSuccess).len(), 0);
        learning.script_distillation([success_report()]);
        learning.script_learner([finish()]);
        for _ in 0..3 {
            assert_eq!(learning.status().await, "pending");
        }
        assert_eq!(s.task_lines().await, ["1 A running"], "reading changes no task");
        s.app.drain_jobs().await;
        assert_eq!(s.task_lines().await, ["1 A success"]);
        assert_eq!(
            (learning.status().await.as_str(), learning.lessons().await),
            ("completed", vec!["written success".into()])
        );
        assert_eq!(learning.take_requests(Lane::DistillSuccess).len(), 1);
    })
    .await;
}

#[tokio::test]
async fn open_tasks_are_learned_although_preferences_were_learned_first() {
    in_both_formats(&[], async |s| {
        let learning = Learning::start(s).await;
        learning.script_running_task_with_preference().await;
        let latch = Latch::new();
        learning.script_learner([finish().after(&latch), finish()]);
        learning.script_distillation([success_report()]);
        s.while_jobs_run(async {
            latch.wait_for_requests(1).await;
            // The request enqueues the job that completes the task, although a lesson is being written.
            assert_eq!(learning.status().await, "skill_writing");
            wait_until("the task is completed", async || s.task_lines().await == ["1 A success"]).await;
            latch.release();
            learning.wait_for_status(&s.session, "completed").await;
        })
        .await;
        assert_eq!(learning.lessons().await, ["written preferences", "written success"]);
        let message_ids = "select cardinality(message_ids)::bigint from lessons where kind = 'preferences'";
        assert_eq!(s.app.fetch_scalar::<i64>(message_ids).await, 1, "the message of the batch");
    })
    .await;
}

#[tokio::test]
async fn the_end_of_a_preference_lesson_leaves_open_tasks_to_be_learned() {
    in_both_formats(&[], async |s| {
        let learning = Learning::start(s).await;
        learning.script_running_task_with_preference().await;
        learning.script_learner([finish(), finish()]);
        learning.script_distillation([success_report()]);
        s.app.drain_jobs().await;
        let lessons = learning.lessons().await;
        assert_eq!((lessons, s.task_lines().await), (vec!["written preferences".into()], vec!["1 A running".into()]));
        assert_eq!(learning.status().await, "skill_writing", "nothing is final while the task is open");
        s.app.drain_jobs().await;
        assert_eq!(learning.status().await, "completed");
        assert_eq!(learning.lessons().await, ["written preferences", "written success"]);
    })
    .await;
}

#[tokio::test]
async fn errors_of_the_model_are_retried_and_then_have_a_reason() {
    in_both_formats(&[], async |s| {
        let learning = Learning::start(s).await;
        learning.script_finished_task().await;
        // A wrong key: the client does not repeat the request.
        learning.script_distillation([Step::status(401)]);
        s.app.drain_jobs().await;
        assert_eq!(learning.status().await, "distilling");
        let reason = learning.get(&s.session).await["reason"].as_str().unwrap().to_owned();
        assert!(reason.starts_with("LLM complete failed") && reason.contains("LLM_API_KEY"), "{reason}");
        let job = s.jobs().await.remove(0);
        assert_eq!((&job["kind"], &job["state"], &job["attempt"]), (&json!("distill"), &json!("ready"), &json!(1)));
        // The key is corrected, and the model rejects the request of the skill agent.
        learning.script_distillation([success_report()]);
        learning.script_learner([Step::status(400)]);
        s.end_backoff().await;
        s.app.drain_jobs().await;
        assert_eq!(learning.status().await, "failed");
        let reason = learning.get(&s.session).await["reason"].as_str().unwrap().to_owned();
        assert!(reason.contains("400"), "{reason}");
        assert_eq!(learning.list().await[0]["reason"], reason);
    })
    .await;
}

#[tokio::test]
async fn a_session_that_cannot_be_observed_has_a_reason() {
    in_both_formats(&[], async |s| {
        let learning = Learning::start(s).await;
        s.store(&["do A"]).await;
        // A wrong key: the job is retried.
        s.script([Step::status(401)]);
        s.app.drain_jobs().await;
        let found = learning.get(&s.session).await;
        assert_eq!(found["status"], "pending");
        assert!(found["reason"].as_str().is_some_and(|reason| reason.contains("LLM_API_KEY")), "{found}");
        assert_eq!(learning.list().await[0], found);
        // The model rejects the request: the job fails.
        s.script([Step::status(400)]);
        s.end_backoff().await;
        s.app.drain_jobs().await;
        let found = learning.get(&s.session).await;
        assert_eq!(found["status"], "failed");
        assert!(found["reason"].as_str().is_some_and(|reason| reason.contains("400")), "{found}");
        assert_eq!(learning.list().await[0], found);
        // The messages are observed later, which deletes the job. The status is final.
        s.script([finish()]);
        assert_eq!(s.while_jobs_run(s.flush()).await, flushed());
        let found = learning.get(&s.session).await;
        assert_eq!((&found["status"], &found["reason"]), (&json!("failed"), &json!(EARLIER_FAILURE)));
    })
    .await;
}

#[tokio::test]
async fn a_session_over_the_quota_of_tasks_has_a_reason() {
    in_both_formats(&[], async |s| {
        let learning = Learning::start(s).await;
        let exceed = "insert into metrics (project_id, tag, increment) values ($1, 'excess.task.created', 1)";
        sqlx::query(exceed).bind(s.client.project()).execute(&*s.app.app.db).await.unwrap();
        s.store(&["do A"]).await;
        s.app.drain_jobs().await;
        let found = learning.get(&s.session).await;
        let reason = json!("the project has exceeded its quota of tasks");
        assert_eq!((&found["status"], &found["reason"]), (&json!("failed"), &reason));
        assert_eq!(learning.list().await[0], found);
    })
    .await;
}

#[tokio::test]
async fn a_failed_lesson_is_learned_when_its_job_is_retried() {
    in_both_formats(&[], async |s| {
        let learning = Learning::start(s).await;
        learning.script_finished_task().await;
        learning.script_distillation([Step::status(400)]);
        s.app.drain_jobs().await;
        assert_eq!(learning.status().await, "failed");
        learning.script_distillation([success_report()]);
        learning.script_learner([Step::status(400), finish()]);
        for expected in ["failed success", "written success"] {
            let job = s.jobs().await.remove(0);
            assert_eq!(job["state"], "failed", "{job}");
            let retry = format!("/api/v1/jobs/{}/retry", job["id"].as_str().unwrap());
            s.client.post(&retry, json!({})).await.assert_status(200);
            s.app.drain_jobs().await;
            let lessons = learning.lessons().await;
            assert!(lessons[0].starts_with(expected), "{lessons:?}");
        }
        let found = learning.get(&s.session).await;
        assert_eq!(found["status"], "failed", "a final status never changes");
        assert_eq!(found["reason"], EARLIER_FAILURE);
        assert_eq!(s.jobs().await.len(), 0);
    })
    .await;
}

#[tokio::test]
async fn later_messages_are_learned_after_the_final_status() {
    in_both_formats(&[(TTL, "0")], async |s| {
        let learning = Learning::start(s).await;
        assert_eq!(learning.status().await, "completed", "the session has no message");
        learning.script_finished_task().await;
        learning.script_distillation([success_report()]);
        learning.script_learner([finish()]);
        s.app.drain_jobs().await;
        assert_eq!(learning.lessons().await, ["written success"]);
        assert_eq!(learning.status().await, "completed");
    })
    .await;
}

#[tokio::test]
async fn a_deleted_session_or_space_ends_the_work() {
    for deletes_space in [false, true] {
        in_both_formats(&[], async |s| {
            let learning = Learning::start(s).await;
            let latch = Latch::new();
            learning.script_finished_task().await;
            learning.script_distillation([success_report()]);
            let skill = "---\nname: orphan\ndescription: none\n---\n";
            let create = think().and_call("create_skill", json!({"skill_md_content": skill}));
            learning.script_learner([create.after(&latch), finish()]);
            s.while_jobs_run(async {
                latch.wait_for_requests(1).await;
                learning.delete(deletes_space).await;
                latch.release();
                s.app.until_idle().await;
            })
            .await;
            let count = "select count(*) from jobs where kind in ('distill', 'write_lesson')";
            assert_eq!(s.app.fetch_scalar::<i64>(count).await, 0);
            let orphans = "select count(*) from agent_skills where name = 'orphan'";
            assert_eq!(s.app.fetch_scalar::<i64>(orphans).await, 0);
        })
        .await;
    }
}

/// A job that is running survives the deletion of what it works on. Its process dies during the last attempt.
#[tokio::test]
async fn a_lost_job_of_a_deleted_session_or_space_is_completed() {
    for (kind, deletes_space) in
        [("observe", false), ("distill", false), ("distill", true), ("write_lesson", false), ("write_lesson", true)]
    {
        in_both_formats(&[], async |s| {
            let learning = Learning::start(s).await;
            let unavailable = || (0..3).map(|_| Step::status(500));
            if kind == "observe" {
                s.store(&["do A"]).await;
            } else {
                learning.script_finished_task().await;
                if kind == "distill" {
                    learning.script_distillation(unavailable());
                } else {
                    learning.script_distillation([success_report()]);
                    learning.script_learner(unavailable());
                }
                s.app.drain_jobs().await;
            }
            assert_eq!(s.app.fetch_scalar::<String>(LOSE_LAST_ATTEMPT).await, kind);
            learning.delete(deletes_space).await;
            periodic::reclaim_expired(s.app.runner()).await.unwrap();
            assert_eq!(s.app.fetch_scalar::<i64>("select count(*) from jobs where attempt > 0").await, 0, "{kind}");
        })
        .await;
    }
}
