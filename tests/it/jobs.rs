//! The queue: order, lanes, fairness, retries, and processes that die in the middle.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use acontextd::crypto::MasterKey;
use acontextd::db::job_waker;
use acontextd::encryption::{Kek, ProjectEncryption, StorageFormat};
use acontextd::features;
use acontextd::ids::ProjectId;
use acontextd::jobs::runner;
use acontextd::jobs::{Delay, Job, JobError, JobHandler, RunningJob, SYSTEM_PROJECT, periodic};
use acontextd::platform::Platform;
use futures_util::FutureExt;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::support::{Setup, TestApp, eventually, run_with};

/// What the jobs of one test do and have done. A job carries only the test's number, as it does in life.
#[derive(Default)]
struct Stage {
    log: Mutex<Vec<String>>,
    /// How many tries are over, however they ended.
    over: AtomicUsize,
    /// How many run now, and the most there were, in each lane.
    running: Mutex<HashMap<String, (usize, usize)>>,
    gate: Option<Semaphore>,
    /// What a job waits for after it has completed itself.
    tail: Option<Semaphore>,
}

static STAGES: LazyLock<Mutex<HashMap<Uuid, Arc<Stage>>>> = LazyLock::new(Mutex::default);

impl Stage {
    fn open() -> (Uuid, Arc<Self>) {
        Self::put(None, None)
    }

    /// Its jobs wait for a permit.
    fn gated() -> (Uuid, Arc<Self>) {
        Self::put(Some(Semaphore::new(0)), None)
    }

    fn put(gate: Option<Semaphore>, tail: Option<Semaphore>) -> (Uuid, Arc<Self>) {
        let (id, stage) = (Uuid::new_v4(), Arc::new(Self { gate, tail, ..Self::default() }));
        STAGES.lock().unwrap().insert(id, Arc::clone(&stage));
        (id, stage)
    }

    fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    async fn logged(&self, count: usize) -> Vec<String> {
        eventually(&format!("{count} jobs have begun, of {:?}", self.log()), async || self.log().len() >= count).await;
        self.log()
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Act {
    stage: Uuid,
    name: String,
    lane: Option<String>,
    dedupe: Option<String>,
    /// `ok`, `retry`, `give up`, `panic`, `complete`, or `key` for a job that needs its project's key.
    ends: String,
}

impl Act {
    fn new(stage: Uuid, name: &str) -> Self {
        Self { stage, name: name.to_string(), lane: None, dedupe: None, ends: "ok".into() }
    }

    fn ends(self, ends: &str) -> Self {
        Self { ends: ends.into(), ..self }
    }

    fn lane(self, lane: &str) -> Self {
        Self { lane: Some(lane.into()), ..self }
    }

    fn dedupe(self, key: &str) -> Self {
        Self { dedupe: Some(key.into()), ..self }
    }
}

impl Job for Act {
    const KIND: &'static str = "act";

    fn lane(&self) -> Option<String> {
        self.lane.clone()
    }

    fn dedupe_key(&self) -> Option<String> {
        self.dedupe.clone()
    }
}

impl JobHandler for Act {
    type Context = Platform;

    const TIMEOUT: Duration = Duration::from_mins(1);
    const MAX_ATTEMPTS: i32 = 2;

    async fn run(self, platform: &Platform, running: &RunningJob) -> Result<(), JobError> {
        let stage = Arc::clone(&STAGES.lock().unwrap()[&self.stage]);
        stage.log.lock().unwrap().push(self.name.clone());
        let _over = Over(Arc::clone(&stage));
        let lane = self.lane.clone().unwrap_or_default();
        {
            let mut lanes = stage.running.lock().unwrap();
            let (now, most) = lanes.entry(lane.clone()).or_default();
            *now += 1;
            *most = (*now).max(*most);
        }
        if let Some(gate) = &stage.gate {
            gate.acquire().await.unwrap().forget();
        }
        tokio::task::yield_now().await;
        stage.running.lock().unwrap().get_mut(&lane).unwrap().0 -= 1;
        match self.ends.as_str() {
            "retry" => Err(JobError::Retry(anyhow::anyhow!("{} failed", self.name))),
            "give up" => Err(JobError::Permanent(anyhow::anyhow!("{} is hopeless", self.name))),
            "panic" => panic!("{} panics", self.name),
            "key" if running.encryption.kek.is_none() => Err(JobError::awaiting_key()),
            "complete" => {
                let mut tx = platform.db.begin().await?;
                sqlx::query("insert into server_state (name, value) values ($1, 'done')")
                    .bind(&self.name)
                    .execute(&mut *tx)
                    .await?;
                running.complete(&mut tx).await?;
                tx.commit().await?;
                if let Some(gate) = &stage.tail {
                    gate.acquire().await.unwrap().forget();
                    stage.log.lock().unwrap().push("its tail".into());
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Counts a try as over when it is dropped.
struct Over(Arc<Stage>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.over.fetch_add(1, Ordering::SeqCst);
    }
}

fn setup() -> Setup {
    Setup { registry: |app| features::job_registry(app).register::<Act>(app.platform.clone()), ..Setup::default() }
}

async fn enqueue(app: &TestApp, project: ProjectId, act: &Act, delay: Delay) {
    let mut tx = app.app.db.begin().await.unwrap();
    app.app.queue.enqueue(&mut tx, &ProjectEncryption::unencrypted(project), act, delay).await.unwrap();
    tx.commit().await.unwrap();
}

/// Runs the queue of an app beside the test.
async fn while_running<T>(app: &TestApp, test: impl Future<Output = T>) -> T {
    tokio::select! {
        ended = Box::pin(app.run_jobs()) => panic!("the runner ended: {ended:?}"),
        outcome = test => outcome,
    }
}

const COUNT: &str = "select count(*) from jobs";

#[tokio::test]
async fn a_job_exists_if_and_only_if_its_transaction_was_committed() {
    run_with(setup(), async |app| {
        let (id, stage) = Stage::open();
        let mut tx = app.app.db.begin().await.unwrap();
        app.app
            .queue
            .enqueue(&mut tx, &ProjectEncryption::unencrypted(SYSTEM_PROJECT), &Act::new(id, "undone"), Delay::NONE)
            .await
            .unwrap();
        tx.rollback().await.unwrap();
        enqueue(&app, SYSTEM_PROJECT, &Act::new(id, "done"), Delay::NONE).await;
        app.drain_jobs().await;
        assert_eq!(stage.log(), ["done"]);
        assert_eq!(app.value::<i64>(COUNT).await, 0);
    })
    .await;
}

/// Returns `true` if the runner of the app was woken since the last call. A signal of `wake_on_commit` is sent before `commit` returns.
fn was_woken(app: &TestApp) -> bool {
    app.app.db.job_waker().wait_local().now_or_never().is_some()
}

#[tokio::test]
async fn only_the_commit_of_a_transaction_that_enqueued_a_job_wakes_the_runner() {
    run_with(setup(), async |app| {
        let (id, _stage) = Stage::open();
        let (db, queue, encryption) = (&app.app.db, &app.app.queue, ProjectEncryption::unencrypted(SYSTEM_PROJECT));
        let mut tx = db.begin().await.unwrap();
        queue.enqueue(&mut tx, &encryption, &Act::new(id, "undone"), Delay::NONE).await.unwrap();
        assert!(!was_woken(&app), "before the commit");
        tx.rollback().await.unwrap();
        assert!(!was_woken(&app), "rolled back");
        let mut tx = db.begin().await.unwrap();
        queue.enqueue(&mut tx, &encryption, &Act::new(id, "dropped"), Delay::NONE).await.unwrap();
        drop(tx);
        assert!(!was_woken(&app), "dropped");
        db.begin().await.unwrap().commit().await.unwrap();
        assert!(!was_woken(&app), "nothing was enqueued");
        let mut tx = db.begin().await.unwrap();
        queue.enqueue(&mut tx, &encryption, &Act::new(id, "done"), Delay::NONE).await.unwrap();
        tx.commit().await.unwrap();
        assert!(was_woken(&app), "committed");
        let mut tx = db.begin_statement().await.unwrap();
        queue.enqueue(&mut tx, &encryption, &Act::new(id, "statement"), Delay::NONE).await.unwrap();
        tx.commit().await.unwrap();
        assert!(was_woken(&app), "committed by its statement");
    })
    .await;
}

#[tokio::test]
async fn a_job_completes_in_the_transaction_of_its_result() {
    run_with(setup(), async |app| {
        let (id, _) = Stage::open();
        enqueue(&app, SYSTEM_PROJECT, &Act::new(id, "result").ends("complete"), Delay::NONE).await;
        app.drain_jobs().await;
        assert_eq!(app.value::<i64>("select count(*) from server_state where name = 'result'").await, 1);
    })
    .await;
}

#[tokio::test]
async fn equal_jobs_wait_as_one_whose_time_only_comes_nearer() {
    run_with(setup(), async |app| {
        let (id, stage) = Stage::open();
        let act = |name: &str| Act::new(id, name).dedupe("key");
        enqueue(&app, SYSTEM_PROJECT, &act("first"), Delay::from_duration(Duration::from_mins(10))).await;
        enqueue(&app, SYSTEM_PROJECT, &act("later"), Delay::from_duration(Duration::from_mins(20))).await;
        enqueue(
            &app,
            SYSTEM_PROJECT,
            &Act::new(id, "other").dedupe("other key"),
            Delay::from_duration(Duration::from_mins(10)),
        )
        .await;
        let minutes =
            "select round(extract(epoch from run_at - now()) / 60)::bigint from jobs where dedupe_key = 'key'";
        assert_eq!(app.value::<i64>(minutes).await, 10);
        enqueue(&app, SYSTEM_PROJECT, &act("now"), Delay::NONE).await;
        assert_eq!(app.value::<i64>(COUNT).await, 2);
        app.drain_jobs().await;
        assert_eq!(stage.log(), ["first"], "what waits keeps its content, which is ids only");
    })
    .await;
}

#[tokio::test]
async fn an_equal_job_that_comes_while_one_runs_runs_after_it() {
    run_with(setup(), async |app| {
        let (id, stage) = Stage::gated();
        let act = |name: &str| Act::new(id, name).dedupe("key").lane("lane");
        enqueue(&app, SYSTEM_PROJECT, &act("first"), Delay::NONE).await;
        while_running(&app, async {
            stage.logged(1).await;
            enqueue(&app, SYSTEM_PROJECT, &act("second"), Delay::NONE).await;
            enqueue(&app, SYSTEM_PROJECT, &act("third"), Delay::NONE).await;
            assert_eq!(app.value::<i64>(COUNT).await, 2);
            stage.gate.as_ref().unwrap().add_permits(10);
            assert_eq!(stage.logged(2).await, ["first", "second"]);
            eventually("all is done", async || app.value::<i64>(COUNT).await == 0).await;
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn two_processes_never_run_two_jobs_of_a_lane_and_do_each_job_once() {
    run_with(setup(), async |app| {
        let twin = app.twin(setup()).await;
        let (id, stage) = Stage::open();
        for n in 0..120 {
            let lane = format!("lane {}", n % 5);
            enqueue(&app, SYSTEM_PROJECT, &Act::new(id, &n.to_string()).lane(&lane), Delay::NONE).await;
        }
        let done = eventually("all is done", async || app.value::<i64>(COUNT).await == 0);
        while_running(&app, Box::pin(while_running(&twin, done))).await;
        let mut log = stage.log();
        log.sort_by_key(|name| name.parse::<u32>().unwrap());
        assert_eq!(log, (0..120).map(|n| n.to_string()).collect::<Vec<_>>());
        let most: Vec<usize> = stage.running.lock().unwrap().values().map(|(_, most)| *most).collect();
        assert_eq!(most, [1; 5]);
    })
    .await;
}

#[tokio::test]
async fn a_project_with_much_work_does_not_keep_the_others_waiting() {
    let setup = setup().with("ACONTEXTD_JOB_CONCURRENCY", "4");
    run_with(setup, async |app| {
        let (id, stage) = Stage::gated();
        let (busy, small) = (ProjectId::new(), ProjectId::new());
        for n in 0..50 {
            enqueue(&app, busy, &Act::new(id, &format!("busy {n}")), Delay::NONE).await;
        }
        for n in 0..2 {
            enqueue(&app, small, &Act::new(id, &format!("small {n}")), Delay::NONE).await;
        }
        while_running(&app, async {
            let first: Vec<String> = stage.logged(4).await;
            assert_eq!(first.iter().filter(|name| name.starts_with("small")).count(), 2, "{first:?}");
            stage.gate.as_ref().unwrap().add_permits(1000);
            eventually("all is done", async || app.value::<i64>(COUNT).await == 0).await;
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_failure_is_tried_again_later_and_ends_with_its_reason() {
    run_with(setup(), async |app| {
        let (id, stage) = Stage::open();
        enqueue(&app, SYSTEM_PROJECT, &Act::new(id, "shaky").ends("retry"), Delay::NONE).await;
        enqueue(&app, SYSTEM_PROJECT, &Act::new(id, "hopeless").ends("give up"), Delay::NONE).await;
        enqueue(&app, SYSTEM_PROJECT, &Act::new(id, "wild").ends("panic"), Delay::NONE).await;
        app.drain_jobs().await;
        assert_eq!(
            app.value::<String>("select last_error from jobs where state = 'failed'").await,
            "hopeless is hopeless"
        );
        let waiting = "select count(*) from jobs where state = 'ready' and attempt = 1
                       and run_at between now() + interval '3 seconds' and now() + interval '7 seconds'";
        assert_eq!(app.value::<i64>(waiting).await, 2);
        app.execute("update jobs set run_at = now() where state = 'ready'").await;
        app.drain_jobs().await;
        assert_eq!(app.value::<i64>("select count(*) from jobs where state = 'failed'").await, 3);
        assert_eq!(
            app.value::<String>("select last_error from jobs where payload ->> 'name' = 'wild'").await,
            "the job panicked"
        );
        assert_eq!(stage.log().len(), 5);
        app.execute("update jobs set updated_at = now() - interval '15 days'").await;
        periodic::purge_failed(app.app.db.clone()).await.unwrap();
        assert_eq!(app.value::<i64>(COUNT).await, 0);
    })
    .await;
}

#[tokio::test]
async fn a_failed_job_whose_equal_waits_hands_its_tries_and_pause_on() {
    run_with(setup(), async |app| {
        let (id, stage) = Stage::gated();
        let act = |name: &str| Act::new(id, name).dedupe("key").lane("lane").ends("retry");
        enqueue(&app, SYSTEM_PROJECT, &act("first"), Delay::NONE).await;
        while_running(&app, async {
            stage.logged(1).await;
            enqueue(&app, SYSTEM_PROJECT, &act("second"), Delay::NONE).await;
            stage.gate.as_ref().unwrap().add_permits(1);
            eventually("one is left", async || app.value::<i64>(COUNT).await == 1).await;
        })
        .await;
        let heir =
            "select payload ->> 'name' || ' ' || attempt || ' ' || (run_at > now() + interval '2 seconds') from jobs";
        assert_eq!(app.value::<String>(heir).await, "second 1 true");
        // More of them do not shorten the pause.
        enqueue(&app, SYSTEM_PROJECT, &act("third"), Delay::NONE).await;
        assert_eq!(app.value::<String>(heir).await, "second 1 true");
    })
    .await;
}

#[tokio::test]
async fn kinds_that_this_process_does_not_know_are_left_alone() {
    run_with(Setup::default(), async |app| {
        let (id, stage) = Stage::open();
        enqueue(&app, SYSTEM_PROJECT, &Act::new(id, "foreign"), Delay::NONE).await;
        acontextd::blob::sweep::enqueue_sweep(app.app.blobs.clone()).await.unwrap();
        while_running(&app, async {
            eventually("its own work is done", async || app.value::<i64>("select count(*) from jobs where kind = 'sweep_blobs'").await == 0).await;
        })
        .await;
        app.execute("update jobs set state = 'running', worker_id = gen_random_uuid(), lease_expires_at = now() - interval '1 hour'").await;
        periodic::reclaim_expired(app.runner()).await.unwrap();
        assert_eq!(app.value::<String>("select state from jobs").await, "running");
        assert!(stage.log().is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_job_whose_process_dies_is_taken_over_when_its_lease_runs_out() {
    run_with(setup(), async |app| {
        let (id, stage) = Stage::gated();
        enqueue(&app, SYSTEM_PROJECT, &Act::new(id, "orphan").lane("lane"), Delay::NONE).await;
        let doomed = app.twin(setup()).await;
        // A runtime of its own that is shut down without a word: every task of it ends where it stands.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let running = runtime.spawn(runner::run(doomed.runner()));
        stage.logged(1).await;
        runtime.shutdown_background();
        assert!(running.await.is_err());
        periodic::reclaim_expired(app.runner()).await.unwrap();
        assert_eq!(app.value::<String>("select state from jobs").await, "running", "its lease has not run out");
        app.execute("update jobs set lease_expires_at = now() - interval '1 second'").await;
        periodic::reclaim_expired(app.runner()).await.unwrap();
        let taken = "select state || ' ' || attempt || ' ' || last_error from jobs";
        assert_eq!(app.value::<String>(taken).await, "ready 1 the process that ran it was lost");
        app.execute("update jobs set run_at = now()").await;
        stage.gate.as_ref().unwrap().add_permits(1);
        app.drain_jobs().await;
        assert_eq!(stage.log(), ["orphan", "orphan"]);
        assert_eq!(app.value::<i64>(COUNT).await, 0);
    })
    .await;
}

#[tokio::test]
async fn a_lease_is_kept_while_its_job_runs_and_a_stolen_one_ends_the_try() {
    let setup = || setup().with("ACONTEXTD_JOB_LEASE", "300ms");
    run_with(setup(), async |app| {
        let (id, stage) = Stage::gated();
        enqueue(&app, SYSTEM_PROJECT, &Act::new(id, "long").ends("complete"), Delay::NONE).await;
        while_running(&app, async {
            stage.logged(1).await;
            let first: chrono::DateTime<chrono::Utc> = app.value("select lease_expires_at from jobs").await;
            eventually("the lease has moved three times its length", async || {
                let now: chrono::DateTime<chrono::Utc> = app.value("select lease_expires_at from jobs").await;
                now > first + chrono::TimeDelta::milliseconds(900)
            })
            .await;
            periodic::reclaim_expired(app.runner()).await.unwrap();
            assert_eq!(app.value::<String>("select state from jobs").await, "running");
            // Another process has taken it: what this one does must not count.
            app.execute("update jobs set worker_id = gen_random_uuid()").await;
            eventually("the try has been ended", async || stage.over.load(Ordering::SeqCst) == 1).await;
        })
        .await;
        assert_eq!(app.value::<i64>(COUNT).await, 1, "it is the other one's to end");
        assert_eq!(app.value::<i64>("select count(*) from server_state").await, 0);
    })
    .await;
}

#[tokio::test]
async fn a_stop_hands_back_what_does_not_end_without_spending_a_try() {
    run_with(setup(), async |app| {
        let (id, stage) = Stage::gated();
        enqueue(&app, SYSTEM_PROJECT, &Act::new(id, "endless"), Delay::NONE).await;
        let runner = app.run_jobs();
        let stop = async {
            stage.logged(1).await;
            app.app.process.shutdown.cancel();
        };
        let (ended, ()) = tokio::join!(runner, stop);
        ended.unwrap();
        app.app.process.hard_stop.cancel();
        app.app.process.background_tasks.close();
        app.app.process.background_tasks.wait().await;
        let row = "select state || ' ' || attempt from jobs";
        assert_eq!(app.value::<String>(row).await, "ready 0");
    })
    .await;
}

#[tokio::test]
async fn word_of_new_work_reaches_another_process() {
    run_with(setup(), async |app| {
        let twin = app.twin(setup()).await;
        let (id, stage) = Stage::open();
        let telling = Box::pin(job_waker::publish(app.app.db.clone()));
        let listening = Box::pin(twin.listen());
        let test = async {
            let listeners =
                "select count(*) from pg_stat_activity where datname = current_database() and query ilike 'listen%'";
            eventually("it listens", async || app.value::<i64>(listeners).await == 1).await;
            enqueue(&app, SYSTEM_PROJECT, &Act::new(id, "told"), Delay::NONE).await;
            stage.logged(1).await;
        };
        tokio::select! {
            ended = telling => panic!("it stopped telling: {ended:?}"),
            ended = listening => panic!("it stopped listening: {ended:?}"),
            () = Box::pin(while_running(&twin, test)) => {}
        }
    })
    .await;
}

#[tokio::test]
async fn a_request_that_takes_its_time_over_an_equal_job_stops_no_other() {
    run_with(setup(), async |app| {
        let (id, stage) = Stage::open();
        enqueue(&app, SYSTEM_PROJECT, &Act::new(id, "equal").dedupe("key"), Delay::NONE).await;
        let mut slow = app.app.db.begin().await.unwrap();
        app.app
            .queue
            .enqueue(
                &mut slow,
                &ProjectEncryption::unencrypted(SYSTEM_PROJECT),
                &Act::new(id, "equal").dedupe("key"),
                Delay::NONE,
            )
            .await
            .unwrap();
        enqueue(&app, SYSTEM_PROJECT, &Act::new(id, "other"), Delay::NONE).await;
        while_running(&app, async {
            assert_eq!(stage.logged(1).await, ["other"]);
            slow.commit().await.unwrap();
            assert_eq!(stage.logged(2).await, ["other", "equal"]);
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_job_that_has_completed_itself_may_go_on_without_a_lease() {
    let setup = setup().with("ACONTEXTD_JOB_LEASE", "60ms");
    run_with(setup, async |app| {
        let (id, stage) = Stage::put(None, Some(Semaphore::new(0)));
        let beats = Stage::gated();
        enqueue(&app, SYSTEM_PROJECT, &Act::new(id, "done").ends("complete"), Delay::NONE).await;
        enqueue(&app, SYSTEM_PROJECT, &Act::new(beats.0, "beats"), Delay::NONE).await;
        while_running(&app, async {
            eventually("it has completed", async || app.value::<i64>("select count(*) from server_state").await == 1)
                .await;
            // The heartbeat of another job shows that several have passed.
            let until = "select coalesce(max(lease_expires_at), now()) from jobs";
            let first: chrono::DateTime<chrono::Utc> = app.value(until).await;
            eventually("heartbeats have passed", async || {
                app.value::<chrono::DateTime<chrono::Utc>>(until).await > first + chrono::TimeDelta::milliseconds(200)
            })
            .await;
            stage.tail.as_ref().unwrap().add_permits(1);
            assert_eq!(stage.logged(2).await, ["done", "its tail"]);
            beats.1.gate.as_ref().unwrap().add_permits(1);
            eventually("all is done", async || app.value::<i64>(COUNT).await == 0).await;
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_job_that_is_given_its_key_while_it_runs_without_one_does_not_wait_for_it() {
    run_with(setup(), async |app| {
        let project = ProjectId::new();
        let kek = Kek::new(project, MasterKey::new([7; 32])).unwrap();
        let encryption = ProjectEncryption { project, format: StorageFormat::Encrypted, kek: Some(Arc::new(kek)) };
        let key = app.app.queue.wrap_key(&encryption).unwrap().unwrap();
        for has_equal in [false, true] {
            let (id, stage) = Stage::gated();
            let act = |name: &str| Act::new(id, name).dedupe("key").lane("lane").ends("key");
            enqueue(&app, project, &act("first"), Delay::NONE).await;
            while_running(&app, async {
                stage.logged(1).await;
                if has_equal {
                    let mut tx = app.app.db.begin().await.unwrap();
                    app.app.queue.enqueue(&mut tx, &encryption, &act("second"), Delay::NONE).await.unwrap();
                    tx.commit().await.unwrap();
                } else {
                    let mut conn = app.app.db.acquire().await.unwrap();
                    acontextd::jobs::store::set_key(&mut conn, project, Some(&key)).await.unwrap();
                }
                stage.gate.as_ref().unwrap().add_permits(2);
                eventually("it has run with its key", async || app.value::<i64>(COUNT).await == 0).await;
            })
            .await;
            let second = if has_equal { "second" } else { "first" };
            assert_eq!(stage.log(), ["first", second]);
        }
    })
    .await;
}
