//! Jobs of lessons that take too long, and lessons that arrive while a job ends.

use std::time::Duration;

use acontextd::db::Tx;
use acontextd::encryption::ProjectEncryption;
use acontextd::features::{self, App};
use acontextd::jobs::{Job, JobError, JobHandler, JobRegistry, RunningJob};
use acontextd::learn::Learn;
use acontextd::learn::jobs::{Distill, WriteLesson};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::concurrency::{script_session, wait_for_lessons};
use super::{Learning, TRY_AGAIN, success_report_about};
use crate::support::model_server::{Lane, ModelRequest, ModelServer, Step, Wire};
use crate::support::{TestConfig, run_with, wait_until};
use crate::task_agent::{Scenario, TTL, finish, in_both_formats};

/// A job of a lesson with a short time limit and two attempts.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Short<J>(J);

impl<J: Job> Job for Short<J> {
    const KIND: &'static str = J::KIND;

    fn lane(&self) -> Option<String> {
        self.0.lane()
    }

    fn dedupe_key(&self) -> Option<String> {
        self.0.dedupe_key()
    }
}

impl<J: JobHandler<Context = Learn>> JobHandler for Short<J> {
    type Context = Learn;

    const TIMEOUT: Duration = Duration::from_secs(2);
    const MAX_ATTEMPTS: i32 = 2;
    const CALLS_MODEL: bool = J::CALLS_MODEL;

    async fn run(self, ctx: &Learn, running: &RunningJob) -> Result<(), JobError> {
        self.0.run(ctx, running).await
    }

    async fn undo(self, ctx: &Learn, running: &RunningJob) -> Result<(), JobError> {
        self.0.undo(ctx, running).await
    }

    async fn abandon(self, ctx: &Learn, encryption: &ProjectEncryption, tx: &mut Tx) -> Result<bool, JobError> {
        self.0.abandon(ctx, encryption, tx).await
    }
}

/// Lets the model hang during both attempts of the first lesson. The second lesson of the space arrives during the last attempt.
async fn hang(registry: fn(&App) -> JobRegistry, lane: Lane, kind: &str, waiting: &str, failed: &str) {
    let model = ModelServer::start().await;
    let config = TestConfig { registry, ..model.config(Wire::OpenAi).with(TTL, "0") };
    run_with(config, async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let s = &Scenario { app, model, wire: Wire::OpenAi, client, session };
        let learning = Learning { s, space: s.client.new_space().await };
        let first = script_session(&learning, 1).await;
        if lane == Lane::DistillSuccess {
            s.model.clear_script(lane, "[[P1]]");
        }
        s.model.script(lane, "[[P1]]", [Step::hang(), Step::hang()]);
        s.app.drain_jobs().await;
        assert_eq!(learning.lessons().await, [waiting], "the lesson waits for the next attempt");
        let job = s.client.get(&format!("/api/v1/jobs?session_id={first}")).await.data()["items"][0].clone();
        assert_eq!((&job["kind"], &job["state"], &job["attempt"]), (&json!(kind), &json!("ready"), &json!(1)));
        assert_eq!(job["error"]["class"], "timeout");
        let reason = learning.get(&first).await["reason"].as_str().unwrap().to_owned();
        assert!(reason.contains("timed out"), "{reason}");

        s.end_backoff().await;
        learning.take_requests(lane);
        s.while_jobs_run(async {
            wait_until("the model hangs again", async || !learning.take_requests(lane).is_empty()).await;
            let second = script_session(&learning, 2).await;
            // The short time limit may end an attempt of the second lesson, too.
            s.model.script(Lane::DistillSuccess, "[[P2]]", [success_report_about("Goal [[P2]]")]);
            learning.script_learner([finish(), finish()]);
            wait_for_lessons(s, "failed", 1).await;
            wait_until("the second lesson is written", async || {
                s.end_backoff().await;
                learning.status_of(&second).await == "completed"
            })
            .await;
        })
        .await;
        let lessons = learning.lessons().await;
        assert_eq!(lessons, [failed, "written success"]);
        let learned = learning.get(&first).await;
        assert_eq!(learned["status"], "failed");
        let reason = learned["reason"].as_str().unwrap().strip_suffix(TRY_AGAIN).unwrap();
        assert!(failed.ends_with(reason), "{learned}");
    })
    .await;
}

const INTERRUPTED: &str = "the work on the lesson was interrupted repeatedly: it took too long, or the server stopped";

#[tokio::test]
async fn a_distillation_that_hangs_fails_and_the_next_one_runs() {
    let registry = |app: &App| features::job_registry(app).register::<Short<Distill>>(app.learn.clone());
    hang(registry, Lane::DistillSuccess, "distill", "distilling -", &format!("failed -: {INTERRUPTED}")).await;
}

#[tokio::test]
async fn a_lesson_whose_run_hangs_fails_and_the_next_one_is_written() {
    let registry = |app: &App| features::job_registry(app).register::<Short<WriteLesson>>(app.learn.clone());
    hang(registry, Lane::Learner, "write_lesson", "pending success", &format!("failed success: {INTERRUPTED}")).await;
}

/// The first run has found no other lesson. While its job ends, another lesson arrives.
#[tokio::test]
async fn a_lesson_that_arrives_after_the_last_claim_has_a_run_of_its_own() {
    in_both_formats(&[], async |s| {
        let learning = Learning { s, space: s.client.new_space().await };
        s.app
            .execute(
                "create function wait_for_the_test() returns trigger language plpgsql as
                     $$ begin perform pg_advisory_xact_lock_shared(7); return old; end $$",
            )
            .await;
        s.app
            .execute(
                "create trigger wait_for_the_test before delete on jobs for each row when (old.kind = 'write_lesson')
                 execute function wait_for_the_test()",
            )
            .await;
        let mut lock = s.app.app.db.begin().await.unwrap();
        sqlx::query("select pg_advisory_xact_lock(7)").execute(&mut *lock).await.unwrap();
        learning.script_learner([finish(), finish()]);
        let first = script_session(&learning, 1).await;
        s.while_jobs_run(async {
            wait_until("the first job is being deleted", async || {
                let waiting = "select count(*) from pg_locks where locktype = 'advisory' and objid = 7 and not granted
                               and database = (select oid from pg_database where datname = current_database())";
                s.app.fetch_scalar::<i64>(waiting).await == 1
            })
            .await;
            assert_eq!(learning.status_of(&first).await, "completed");
            let second = script_session(&learning, 2).await;
            wait_for_lessons(s, "pending", 1).await;
            lock.rollback().await.unwrap();
            learning.wait_for_status(&second, "completed").await;
            s.app.until_idle().await;
        })
        .await;
        assert_eq!(learning.lessons().await, ["written success", "written success"]);
        let requests = learning.take_requests(Lane::Learner);
        let texts: Vec<_> = requests.iter().map(ModelRequest::user_texts).collect();
        assert!(texts.len() == 2 && texts.iter().all(|texts| texts.len() == 1), "two runs: {texts:?}");
        assert!(texts[1][0].contains("Goal [[P2]]"), "{texts:?}");
        assert_eq!(s.app.fetch_scalar::<i64>("select count(*) from jobs").await, 0);
    })
    .await;
}
