//! The job queue: order, lanes, fairness, retries, and processes that die while they run jobs.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use acontextd::crypto::MasterKey;
use acontextd::db::{Tx, job_waker};
use acontextd::encryption::{Kek, ProjectEncryption, StorageFormat};
use acontextd::features;
use acontextd::ids::ProjectId;
use acontextd::jobs::runner;
use acontextd::jobs::{Delay, Job, JobError, JobHandler, RunningJob, SYSTEM_PROJECT, WaitReason, periodic};
use acontextd::platform::Platform;
use futures_util::FutureExt;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::support::{TestApp, TestConfig, run_with, wait_until};

/// Controls and records the jobs of one test. A job contains only the id of its script, as real jobs contain only ids.
#[derive(Default)]
struct JobScript {
    log: Mutex<Vec<String>>,
    /// The number of attempts that have ended, with any outcome.
    ended_attempts: AtomicUsize,
    /// The number of running jobs and its maximum, for each lane.
    running: Mutex<HashMap<String, (usize, usize)>>,
    /// Each attempt waits for a permit.
    gate: Option<Semaphore>,
    /// A job that has completed itself waits for a permit before it ends.
    after_completion: Option<Semaphore>,
}

static SCRIPTS: LazyLock<Mutex<HashMap<Uuid, Arc<JobScript>>>> = LazyLock::new(Mutex::default);

impl JobScript {
    fn new() -> (Uuid, Arc<Self>) {
        Self::insert(None, None)
    }

    /// Creates a script whose jobs wait for a permit of `gate`.
    fn new_blocked() -> (Uuid, Arc<Self>) {
        Self::insert(Some(Semaphore::new(0)), None)
    }

    fn insert(gate: Option<Semaphore>, after_completion: Option<Semaphore>) -> (Uuid, Arc<Self>) {
        let (id, script) = (Uuid::new_v4(), Arc::new(Self { gate, after_completion, ..Self::default() }));
        SCRIPTS.lock().unwrap().insert(id, Arc::clone(&script));
        (id, script)
    }

    fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    async fn wait_for_log(&self, count: usize) -> Vec<String> {
        wait_until(&format!("{count} jobs have begun; the log was {:?}", self.log()), async || {
            self.log().len() >= count
        })
        .await;
        self.log()
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct ScriptedJob {
    script: Uuid,
    name: String,
    lane: Option<String>,
    dedupe: Option<String>,
    /// `ok`, `retry`, `give up`, `panic`, `complete`, `time slice`, or `key` for a job that needs its project's key.
    outcome: String,
}

impl ScriptedJob {
    fn new(script: Uuid, name: &str) -> Self {
        Self { script, name: name.to_string(), lane: None, dedupe: None, outcome: "ok".into() }
    }

    fn outcome(self, outcome: &str) -> Self {
        Self { outcome: outcome.into(), ..self }
    }

    fn lane(self, lane: &str) -> Self {
        Self { lane: Some(lane.into()), ..self }
    }

    fn dedupe(self, key: &str) -> Self {
        Self { dedupe: Some(key.into()), ..self }
    }
}

impl Job for ScriptedJob {
    const KIND: &'static str = "scripted";

    fn lane(&self) -> Option<String> {
        self.lane.clone()
    }

    fn dedupe_key(&self) -> Option<String> {
        self.dedupe.clone()
    }
}

impl JobHandler for ScriptedJob {
    type Context = Platform;

    const TIMEOUT: Duration = Duration::from_mins(1);
    const MAX_ATTEMPTS: i32 = 2;

    async fn run(self, platform: &Platform, running: &RunningJob) -> Result<(), JobError> {
        let script = Arc::clone(&SCRIPTS.lock().unwrap()[&self.script]);
        script.log.lock().unwrap().push(self.name.clone());
        let _count_on_drop = CountOnDrop(Arc::clone(&script));
        let lane = self.lane.clone().unwrap_or_default();
        {
            let mut lanes = script.running.lock().unwrap();
            let (now, most) = lanes.entry(lane.clone()).or_default();
            *now += 1;
            *most = (*now).max(*most);
        }
        if let Some(gate) = &script.gate {
            gate.acquire().await.unwrap().forget();
        }
        tokio::task::yield_now().await;
        script.running.lock().unwrap().get_mut(&lane).unwrap().0 -= 1;
        match self.outcome.as_str() {
            "retry" => Err(JobError::Retry(anyhow::anyhow!("{} failed", self.name))),
            "give up" => Err(JobError::Permanent(anyhow::anyhow!("{} cannot succeed", self.name))),
            "panic" => panic!("{} panics", self.name),
            "time slice" => {
                let reason = anyhow::anyhow!("{} continues", self.name);
                Err(JobError::Snooze(WaitReason::TimeSlice, reason, Duration::from_hours(1)))
            }
            "key" if running.encryption.kek.is_none() => Err(JobError::awaiting_key()),
            "complete" => {
                let mut tx = platform.db.begin().await?;
                sqlx::query("insert into server_state (name, value) values ($1, 'done')")
                    .bind(&self.name)
                    .execute(&mut *tx)
                    .await?;
                running.complete(&mut tx).await?;
                tx.commit().await?;
                if let Some(gate) = &script.after_completion {
                    gate.acquire().await.unwrap().forget();
                    script.log.lock().unwrap().push("after its completion".into());
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn abandon(self, _: &Platform, _: &ProjectEncryption, tx: &mut Tx) -> Result<bool, JobError> {
        let insert = "insert into server_state (name, value) values ($1, 'abandoned') on conflict do nothing";
        sqlx::query(insert).bind(&self.name).execute(&mut **tx).await?;
        Ok(true)
    }
}

/// Counts an attempt as ended when it is dropped.
struct CountOnDrop(Arc<JobScript>);

impl Drop for CountOnDrop {
    fn drop(&mut self) {
        self.0.ended_attempts.fetch_add(1, Ordering::SeqCst);
    }
}

fn config() -> TestConfig {
    TestConfig {
        registry: |app| features::job_registry(app).register::<ScriptedJob>(app.platform.clone()),
        ..TestConfig::default()
    }
}

async fn enqueue(app: &TestApp, project: ProjectId, job: &ScriptedJob, delay: Delay) {
    let mut tx = app.app.db.begin().await.unwrap();
    app.app.queue.enqueue(&mut tx, &ProjectEncryption::unencrypted(project), job, delay).await.unwrap();
    tx.commit().await.unwrap();
}

/// Runs the jobs of an app while the test runs.
async fn while_running<T>(app: &TestApp, test: impl Future<Output = T>) -> T {
    tokio::select! {
        ended = Box::pin(app.run_jobs()) => panic!("the runner ended: {ended:?}"),
        outcome = test => outcome,
    }
}

const COUNT: &str = "select count(*) from jobs";

#[tokio::test]
async fn a_job_exists_if_and_only_if_its_transaction_was_committed() {
    run_with(config(), async |app| {
        let (id, script) = JobScript::new();
        let mut tx = app.app.db.begin().await.unwrap();
        app.app
            .queue
            .enqueue(
                &mut tx,
                &ProjectEncryption::unencrypted(SYSTEM_PROJECT),
                &ScriptedJob::new(id, "undone"),
                Delay::NONE,
            )
            .await
            .unwrap();
        tx.rollback().await.unwrap();
        enqueue(&app, SYSTEM_PROJECT, &ScriptedJob::new(id, "done"), Delay::NONE).await;
        app.drain_jobs().await;
        assert_eq!(script.log(), ["done"]);
        assert_eq!(app.fetch_scalar::<i64>(COUNT).await, 0);
    })
    .await;
}

#[tokio::test]
async fn an_attempt_that_used_its_time_slice_has_no_error() {
    run_with(config(), async |app| {
        let (id, script) = JobScript::new();
        let client = app.project().await;
        let job = ScriptedJob::new(id, "long").outcome("retry");
        enqueue(&app, ProjectId(client.project()), &job, Delay::NONE).await;
        app.drain_jobs().await;
        let listed = async || client.get("/api/v1/jobs").await.data()["items"][0].clone();
        assert_eq!(listed().await["error"]["message"], "long failed");
        app.execute("update jobs set run_at = now(), payload = jsonb_set(payload, '{outcome}', '\"time slice\"')")
            .await;
        app.drain_jobs().await;
        assert_eq!(script.log(), ["long", "long"]);
        let job = listed().await;
        assert_eq!((&job["state"], &job["attempt"], &job["wait_reason"]), (&json!("ready"), &json!(1), &json!(null)));
        assert!(job.get("error").is_none(), "{job}");
        assert_eq!(app.fetch_scalar::<String>("select wait_reason from jobs").await, "time_slice");
    })
    .await;
}

/// Returns `true` if the runner of the app was woken since the last call. The signal is sent before `commit` returns.
fn was_woken(app: &TestApp) -> bool {
    app.app.db.job_waker().wait_local().now_or_never().is_some()
}

#[tokio::test]
async fn only_a_commit_with_an_enqueued_job_wakes_the_runner() {
    run_with(config(), async |app| {
        let (id, _script) = JobScript::new();
        let (db, queue, encryption) = (&app.app.db, &app.app.queue, ProjectEncryption::unencrypted(SYSTEM_PROJECT));
        let mut tx = db.begin().await.unwrap();
        queue.enqueue(&mut tx, &encryption, &ScriptedJob::new(id, "undone"), Delay::NONE).await.unwrap();
        assert!(!was_woken(&app), "before the commit");
        tx.rollback().await.unwrap();
        assert!(!was_woken(&app), "rolled back");
        let mut tx = db.begin().await.unwrap();
        queue.enqueue(&mut tx, &encryption, &ScriptedJob::new(id, "dropped"), Delay::NONE).await.unwrap();
        drop(tx);
        assert!(!was_woken(&app), "dropped");
        db.begin().await.unwrap().commit().await.unwrap();
        assert!(!was_woken(&app), "nothing was enqueued");
        let mut tx = db.begin().await.unwrap();
        queue.enqueue(&mut tx, &encryption, &ScriptedJob::new(id, "done"), Delay::NONE).await.unwrap();
        tx.commit().await.unwrap();
        assert!(was_woken(&app), "committed");
        let mut tx = db.begin_autocommit().await.unwrap();
        queue.enqueue(&mut tx, &encryption, &ScriptedJob::new(id, "statement"), Delay::NONE).await.unwrap();
        tx.commit().await.unwrap();
        assert!(was_woken(&app), "committed by its statement");
    })
    .await;
}

#[tokio::test]
async fn a_job_completes_in_the_transaction_of_its_result() {
    run_with(config(), async |app| {
        let (id, _) = JobScript::new();
        enqueue(&app, SYSTEM_PROJECT, &ScriptedJob::new(id, "result").outcome("complete"), Delay::NONE).await;
        app.drain_jobs().await;
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from server_state where name = 'result'").await, 1);
    })
    .await;
}

#[tokio::test]
async fn jobs_with_equal_dedupe_keys_merge_to_the_earliest_time() {
    run_with(config(), async |app| {
        let (id, script) = JobScript::new();
        let job = |name: &str| ScriptedJob::new(id, name).dedupe("key");
        enqueue(&app, SYSTEM_PROJECT, &job("first"), Delay::from_duration(Duration::from_mins(10))).await;
        enqueue(&app, SYSTEM_PROJECT, &job("later"), Delay::from_duration(Duration::from_mins(20))).await;
        enqueue(
            &app,
            SYSTEM_PROJECT,
            &ScriptedJob::new(id, "other").dedupe("other key"),
            Delay::from_duration(Duration::from_mins(10)),
        )
        .await;
        let minutes =
            "select round(extract(epoch from run_at - now()) / 60)::bigint from jobs where dedupe_key = 'key'";
        assert_eq!(app.fetch_scalar::<i64>(minutes).await, 10);
        enqueue(&app, SYSTEM_PROJECT, &job("now"), Delay::NONE).await;
        assert_eq!(app.fetch_scalar::<i64>(COUNT).await, 2);
        app.drain_jobs().await;
        assert_eq!(script.log(), ["first"], "the waiting job keeps its payload, which contains only ids");
    })
    .await;
}

#[tokio::test]
async fn a_job_with_the_dedupe_key_of_a_running_job_runs_after_it() {
    run_with(config(), async |app| {
        let (id, script) = JobScript::new_blocked();
        let job = |name: &str| ScriptedJob::new(id, name).dedupe("key").lane("lane");
        enqueue(&app, SYSTEM_PROJECT, &job("first"), Delay::NONE).await;
        while_running(&app, async {
            script.wait_for_log(1).await;
            enqueue(&app, SYSTEM_PROJECT, &job("second"), Delay::NONE).await;
            enqueue(&app, SYSTEM_PROJECT, &job("third"), Delay::NONE).await;
            assert_eq!(app.fetch_scalar::<i64>(COUNT).await, 2);
            script.gate.as_ref().unwrap().add_permits(10);
            assert_eq!(script.wait_for_log(2).await, ["first", "second"]);
            wait_until("all jobs are done", async || app.fetch_scalar::<i64>(COUNT).await == 0).await;
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn two_processes_run_each_job_once_and_one_per_lane_at_a_time() {
    run_with(config(), async |app| {
        let second_process = app.second_process(config()).await;
        let (id, script) = JobScript::new();
        for n in 0..120 {
            let lane = format!("lane {}", n % 5);
            enqueue(&app, SYSTEM_PROJECT, &ScriptedJob::new(id, &n.to_string()).lane(&lane), Delay::NONE).await;
        }
        let all_done = wait_until("all jobs are done", async || app.fetch_scalar::<i64>(COUNT).await == 0);
        while_running(&app, Box::pin(while_running(&second_process, all_done))).await;
        let mut log = script.log();
        log.sort_by_key(|name| name.parse::<u32>().unwrap());
        assert_eq!(log, (0..120).map(|n| n.to_string()).collect::<Vec<_>>());
        let most: Vec<usize> = script.running.lock().unwrap().values().map(|(_, most)| *most).collect();
        assert_eq!(most, [1; 5]);
    })
    .await;
}

#[tokio::test]
async fn a_project_with_many_jobs_does_not_delay_the_others() {
    let config = config().with("ACONTEXTD_JOB_CONCURRENCY", "4");
    run_with(config, async |app| {
        let (id, script) = JobScript::new_blocked();
        let (busy, small) = (ProjectId::new(), ProjectId::new());
        for n in 0..50 {
            enqueue(&app, busy, &ScriptedJob::new(id, &format!("busy {n}")), Delay::NONE).await;
        }
        for n in 0..2 {
            enqueue(&app, small, &ScriptedJob::new(id, &format!("small {n}")), Delay::NONE).await;
        }
        while_running(&app, async {
            let first: Vec<String> = script.wait_for_log(4).await;
            assert_eq!(first.iter().filter(|name| name.starts_with("small")).count(), 2, "{first:?}");
            script.gate.as_ref().unwrap().add_permits(1000);
            wait_until("all jobs are done", async || app.fetch_scalar::<i64>(COUNT).await == 0).await;
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_failed_job_is_retried_later_and_stores_its_last_error() {
    run_with(config(), async |app| {
        let (id, script) = JobScript::new();
        enqueue(&app, SYSTEM_PROJECT, &ScriptedJob::new(id, "retried").outcome("retry"), Delay::NONE).await;
        enqueue(&app, SYSTEM_PROJECT, &ScriptedJob::new(id, "permanent").outcome("give up"), Delay::NONE).await;
        enqueue(&app, SYSTEM_PROJECT, &ScriptedJob::new(id, "panicking").outcome("panic"), Delay::NONE).await;
        app.drain_jobs().await;
        assert_eq!(
            app.fetch_scalar::<String>("select last_error from jobs where state = 'failed'").await,
            "permanent cannot succeed"
        );
        let waiting = "select count(*) from jobs where state = 'ready' and attempt = 1
                       and run_at between now() + interval '3 seconds' and now() + interval '7 seconds'";
        assert_eq!(app.fetch_scalar::<i64>(waiting).await, 2);
        app.execute("update jobs set run_at = now() where state = 'ready'").await;
        app.drain_jobs().await;
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from jobs where state = 'failed'").await, 3);
        assert_eq!(
            app.fetch_scalar::<String>("select last_error from jobs where payload ->> 'name' = 'panicking'").await,
            "the job panicked"
        );
        assert_eq!(script.log().len(), 5);
        app.execute("update jobs set updated_at = now() - interval '15 days'").await;
        periodic::purge_failed(app.app.db.clone()).await.unwrap();
        assert_eq!(app.fetch_scalar::<i64>(COUNT).await, 0);
    })
    .await;
}

#[tokio::test]
async fn a_failed_job_passes_its_attempts_and_backoff_to_a_duplicate() {
    run_with(config(), async |app| {
        let (id, script) = JobScript::new_blocked();
        let job = |name: &str| ScriptedJob::new(id, name).dedupe("key").lane("lane").outcome("retry");
        enqueue(&app, SYSTEM_PROJECT, &job("first"), Delay::NONE).await;
        while_running(&app, async {
            script.wait_for_log(1).await;
            enqueue(&app, SYSTEM_PROJECT, &job("second"), Delay::NONE).await;
            script.gate.as_ref().unwrap().add_permits(1);
            wait_until("only one job remains", async || app.fetch_scalar::<i64>(COUNT).await == 1).await;
        })
        .await;
        let duplicate =
            "select payload ->> 'name' || ' ' || attempt || ' ' || (run_at > now() + interval '2 seconds') from jobs";
        assert_eq!(app.fetch_scalar::<String>(duplicate).await, "second 1 true");
        // Further duplicates do not shorten the backoff.
        enqueue(&app, SYSTEM_PROJECT, &job("third"), Delay::NONE).await;
        assert_eq!(app.fetch_scalar::<String>(duplicate).await, "second 1 true");
    })
    .await;
}

/// The attempt ends after a duplicate was enqueued, but before that transaction has committed.
#[tokio::test]
async fn a_requeued_job_merges_with_a_duplicate_that_commits_concurrently() {
    run_with(config(), async |app| {
        for outcome in ["retry", "key"] {
            let (id, script) = JobScript::new_blocked();
            let job = |name: &str| ScriptedJob::new(id, name).dedupe(outcome).lane(outcome).outcome(outcome);
            enqueue(&app, SYSTEM_PROJECT, &job("first"), Delay::NONE).await;
            while_running(&app, async {
                script.wait_for_log(1).await;
                let project = ProjectEncryption::unencrypted(SYSTEM_PROJECT);
                let mut tx = app.app.db.begin().await.unwrap();
                app.app.queue.enqueue(&mut tx, &project, &job("second"), Delay::NONE).await.unwrap();
                script.gate.as_ref().unwrap().add_permits(1);
                wait_until("the runner waits for the transaction", async || {
                    let waiting = "select count(*) from pg_stat_activity
                                   where datname = current_database() and wait_event_type = 'Lock'";
                    app.fetch_scalar::<i64>(waiting).await > 0
                })
                .await;
                tx.commit().await.unwrap();
                wait_until("only one job remains", async || app.fetch_scalar::<i64>(COUNT).await == 1).await;
            })
            .await;
            assert_eq!(app.fetch_scalar::<String>("select payload ->> 'name' from jobs").await, "second", "{outcome}");
            app.execute("delete from jobs").await;
        }
    })
    .await;
}

#[tokio::test]
async fn jobs_of_unknown_kinds_are_neither_run_nor_reclaimed() {
    run_with(TestConfig::default(), async |app| {
        let (id, script) = JobScript::new();
        enqueue(&app, SYSTEM_PROJECT, &ScriptedJob::new(id, "unknown"), Delay::NONE).await;
        acontextd::blob::sweep::enqueue_sweep(app.app.blobs.clone()).await.unwrap();
        while_running(&app, async {
            wait_until("the job of a known kind is done", async || {
                app.fetch_scalar::<i64>("select count(*) from jobs where kind = 'sweep_blobs'").await == 0
            })
            .await;
        })
        .await;
        app.execute(
            "update jobs set state = 'running', worker_id = gen_random_uuid(),
             lease_expires_at = now() - interval '1 hour'",
        )
        .await;
        periodic::reclaim_expired(app.runner()).await.unwrap();
        assert_eq!(app.fetch_scalar::<String>("select state from jobs").await, "running");
        assert!(script.log().is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_job_of_a_dead_process_is_reclaimed_when_its_lease_expires() {
    run_with(config(), async |app| {
        let (id, script) = JobScript::new_blocked();
        enqueue(&app, SYSTEM_PROJECT, &ScriptedJob::new(id, "orphan").lane("lane"), Delay::NONE).await;
        let second_process = app.second_process(config()).await;
        // The second process has its own runtime. Shutting it down drops every task immediately, without a graceful
        // shutdown.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let running = runtime.spawn(runner::run(second_process.runner()));
        script.wait_for_log(1).await;
        runtime.shutdown_background();
        assert!(running.await.is_err());
        periodic::reclaim_expired(app.runner()).await.unwrap();
        assert_eq!(app.fetch_scalar::<String>("select state from jobs").await, "running", "its lease has not expired");
        app.execute("update jobs set lease_expires_at = now() - interval '1 second'").await;
        periodic::reclaim_expired(app.runner()).await.unwrap();
        let row = "select state || ' ' || attempt || ' ' || last_error from jobs";
        assert_eq!(
            app.fetch_scalar::<String>(row).await,
            "ready 1 the server stopped during the last attempt, or it took too long"
        );
        app.execute("update jobs set run_at = now()").await;
        script.gate.as_ref().unwrap().add_permits(1);
        app.drain_jobs().await;
        assert_eq!(script.log(), ["orphan", "orphan"]);
        assert_eq!(app.fetch_scalar::<i64>(COUNT).await, 0);
    })
    .await;
}

#[tokio::test]
async fn a_job_is_abandoned_when_it_is_marked_as_failed() {
    run_with(config(), async |app| {
        let (id, _script) = JobScript::new();
        let abandoned = "select coalesce(string_agg(name, ' '), '') from server_state where value = 'abandoned'";
        for outcome in ["panic", "retry"] {
            enqueue(&app, SYSTEM_PROJECT, &ScriptedJob::new(id, outcome).outcome(outcome), Delay::NONE).await;
        }
        app.drain_jobs().await;
        assert_eq!(app.fetch_scalar::<String>(abandoned).await, "", "another attempt follows");
        app.execute("update jobs set run_at = now()").await;
        app.drain_jobs().await;
        enqueue(&app, SYSTEM_PROJECT, &ScriptedJob::new(id, "give up").outcome("give up"), Delay::NONE).await;
        enqueue(&app, SYSTEM_PROJECT, &ScriptedJob::new(id, "done"), Delay::NONE).await;
        app.drain_jobs().await;
        // The lease of a last attempt has expired.
        enqueue(&app, SYSTEM_PROJECT, &ScriptedJob::new(id, "lost"), Delay::NONE).await;
        app.execute(
            "update jobs set state = 'running', attempt = 2, worker_id = gen_random_uuid(),
                             lease_expires_at = now() + interval '1 hour' where state = 'ready'",
        )
        .await;
        periodic::reclaim_expired(app.runner()).await.unwrap();
        let abandoned = "select string_agg(name, ' ' order by name) from server_state where value = 'abandoned'";
        assert_eq!(app.fetch_scalar::<String>(abandoned).await, "give up panic retry");
        app.execute("update jobs set lease_expires_at = now() - interval '1 second' where state = 'running'").await;
        periodic::reclaim_expired(app.runner()).await.unwrap();
        assert_eq!(app.fetch_scalar::<String>(abandoned).await, "give up lost panic retry");
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from jobs where state = 'failed'").await, 4);
    })
    .await;
}

#[tokio::test]
async fn a_lease_is_renewed_and_losing_it_ends_the_attempt() {
    let config = || config().with("ACONTEXTD_JOB_LEASE", "300ms");
    run_with(config(), async |app| {
        let (id, script) = JobScript::new_blocked();
        enqueue(&app, SYSTEM_PROJECT, &ScriptedJob::new(id, "long").outcome("complete"), Delay::NONE).await;
        while_running(&app, async {
            script.wait_for_log(1).await;
            let first: chrono::DateTime<chrono::Utc> = app.fetch_scalar("select lease_expires_at from jobs").await;
            wait_until("the lease is extended by three times its length", async || {
                let now: chrono::DateTime<chrono::Utc> = app.fetch_scalar("select lease_expires_at from jobs").await;
                now > first + chrono::TimeDelta::milliseconds(900)
            })
            .await;
            periodic::reclaim_expired(app.runner()).await.unwrap();
            assert_eq!(app.fetch_scalar::<String>("select state from jobs").await, "running");
            // Another worker owns the job now, so that the result of this attempt must not be stored.
            app.execute("update jobs set worker_id = gen_random_uuid()").await;
            wait_until("the attempt has ended", async || script.ended_attempts.load(Ordering::SeqCst) == 1).await;
        })
        .await;
        assert_eq!(app.fetch_scalar::<i64>(COUNT).await, 1, "only the other worker may complete it");
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from server_state").await, 0);
    })
    .await;
}

#[tokio::test]
async fn shutdown_releases_running_jobs_without_counting_an_attempt() {
    run_with(config(), async |app| {
        let (id, script) = JobScript::new_blocked();
        enqueue(&app, SYSTEM_PROJECT, &ScriptedJob::new(id, "endless"), Delay::NONE).await;
        let runner = app.run_jobs();
        let shut_down = async {
            script.wait_for_log(1).await;
            app.app.process.shutdown.cancel();
        };
        let (ended, ()) = tokio::join!(runner, shut_down);
        ended.unwrap();
        app.app.process.abort.cancel();
        app.app.process.background_tasks.close();
        app.app.process.background_tasks.wait().await;
        let row = "select state || ' ' || attempt from jobs";
        assert_eq!(app.fetch_scalar::<String>(row).await, "ready 0");
    })
    .await;
}

#[tokio::test]
async fn another_process_is_notified_of_new_jobs() {
    run_with(config(), async |app| {
        let second_process = app.second_process(config()).await;
        let (id, script) = JobScript::new();
        let publisher = Box::pin(job_waker::publish(app.app.db.clone()));
        let listener = Box::pin(second_process.listen());
        let test = async {
            let listeners =
                "select count(*) from pg_stat_activity where datname = current_database() and query ilike 'listen%'";
            wait_until("the second process listens", async || app.fetch_scalar::<i64>(listeners).await == 1).await;
            enqueue(&app, SYSTEM_PROJECT, &ScriptedJob::new(id, "notified"), Delay::NONE).await;
            script.wait_for_log(1).await;
        };
        tokio::select! {
            ended = publisher => panic!("the publisher ended: {ended:?}"),
            ended = listener => panic!("the listener ended: {ended:?}"),
            () = Box::pin(while_running(&second_process, test)) => {}
        }
    })
    .await;
}

#[tokio::test]
async fn an_open_transaction_with_a_duplicate_blocks_no_other_job() {
    run_with(config(), async |app| {
        let (id, script) = JobScript::new();
        enqueue(&app, SYSTEM_PROJECT, &ScriptedJob::new(id, "duplicate").dedupe("key"), Delay::NONE).await;
        let mut slow = app.app.db.begin().await.unwrap();
        app.app
            .queue
            .enqueue(
                &mut slow,
                &ProjectEncryption::unencrypted(SYSTEM_PROJECT),
                &ScriptedJob::new(id, "duplicate").dedupe("key"),
                Delay::NONE,
            )
            .await
            .unwrap();
        enqueue(&app, SYSTEM_PROJECT, &ScriptedJob::new(id, "other"), Delay::NONE).await;
        while_running(&app, async {
            assert_eq!(script.wait_for_log(1).await, ["other"]);
            slow.commit().await.unwrap();
            assert_eq!(script.wait_for_log(2).await, ["other", "duplicate"]);
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_job_that_has_completed_itself_requires_no_lease() {
    let config = config().with("ACONTEXTD_JOB_LEASE", "60ms");
    run_with(config, async |app| {
        let (id, script) = JobScript::insert(None, Some(Semaphore::new(0)));
        let heartbeat = JobScript::new_blocked();
        enqueue(&app, SYSTEM_PROJECT, &ScriptedJob::new(id, "done").outcome("complete"), Delay::NONE).await;
        enqueue(&app, SYSTEM_PROJECT, &ScriptedJob::new(heartbeat.0, "heartbeat"), Delay::NONE).await;
        while_running(&app, async {
            wait_until("the job has completed itself", async || {
                app.fetch_scalar::<i64>("select count(*) from server_state").await == 1
            })
            .await;
            // The renewed lease of another job shows that several heartbeats have passed.
            let latest_lease = "select coalesce(max(lease_expires_at), now()) from jobs";
            let first: chrono::DateTime<chrono::Utc> = app.fetch_scalar(latest_lease).await;
            wait_until("several heartbeats have passed", async || {
                app.fetch_scalar::<chrono::DateTime<chrono::Utc>>(latest_lease).await
                    > first + chrono::TimeDelta::milliseconds(200)
            })
            .await;
            script.after_completion.as_ref().unwrap().add_permits(1);
            assert_eq!(script.wait_for_log(2).await, ["done", "after its completion"]);
            heartbeat.1.gate.as_ref().unwrap().add_permits(1);
            wait_until("all jobs are done", async || app.fetch_scalar::<i64>(COUNT).await == 0).await;
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_job_that_receives_its_key_while_it_runs_does_not_wait() {
    run_with(config(), async |app| {
        let project = ProjectId::new();
        let kek = Kek::new(project, MasterKey::new([7; 32])).unwrap();
        let encryption = ProjectEncryption { project, format: StorageFormat::Encrypted, kek: Some(Arc::new(kek)) };
        let key = app.app.queue.wrap_kek_if_encrypted(&encryption).unwrap().unwrap();
        for has_duplicate in [false, true] {
            let (id, script) = JobScript::new_blocked();
            let job = |name: &str| ScriptedJob::new(id, name).dedupe("key").lane("lane").outcome("key");
            enqueue(&app, project, &job("first"), Delay::NONE).await;
            while_running(&app, async {
                script.wait_for_log(1).await;
                if has_duplicate {
                    let mut tx = app.app.db.begin().await.unwrap();
                    app.app.queue.enqueue(&mut tx, &encryption, &job("second"), Delay::NONE).await.unwrap();
                    tx.commit().await.unwrap();
                } else {
                    let mut conn = app.app.db.acquire().await.unwrap();
                    acontextd::jobs::store::set_key_for_all(&mut conn, project, Some(&key)).await.unwrap();
                }
                script.gate.as_ref().unwrap().add_permits(2);
                wait_until("the job has run with its key", async || app.fetch_scalar::<i64>(COUNT).await == 0).await;
            })
            .await;
            let last = if has_duplicate { "second" } else { "first" };
            assert_eq!(script.log(), ["first", last]);
        }
    })
    .await;
}
