//! A job queue whose jobs only report that they have started: the components of the program that run jobs, and the
//! writers that enqueue them.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use acontextd::blob::local::LocalObjectStore;
use acontextd::blob::spool::SpoolDir;
use acontextd::db::pooler::PoolerCheck;
use acontextd::db::{self, job_waker, notify};
use acontextd::encryption::ProjectEncryption;
use acontextd::ids::ProjectId;
use acontextd::jobs::runner::{self, Runner};
use acontextd::jobs::{Delay, Job, JobError, JobHandler, JobRegistry, RunningJob};
use acontextd::platform::{Platform, PlatformDependencies};
use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnectOptions;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::baseline_axum;
use crate::load::Times;

/// The number of concurrent writers, which equals the number of slots of the job runner.
pub const WRITERS: usize = 16;

/// A job that only reports that it has started.
#[derive(Serialize, Deserialize)]
struct Probe;

static STARTED: OnceLock<mpsc::UnboundedSender<Instant>> = OnceLock::new();

impl Job for Probe {
    const KIND: &'static str = "probe";
}

impl JobHandler for Probe {
    type Context = ();

    const TIMEOUT: Duration = Duration::from_mins(1);
    const MAX_ATTEMPTS: i32 = 1;

    async fn run(self, (): &(), _: &RunningJob) -> Result<(), JobError> {
        if let Some(started) = STARTED.get() {
            let _ = started.send(Instant::now());
        }
        Ok(())
    }
}

/// A database, and the channel that reports the jobs that have started.
pub struct Harness {
    dir: PathBuf,
    database: PgConnectOptions,
    started: mpsc::UnboundedReceiver<Instant>,
}

impl Harness {
    pub fn new(dir: PathBuf, database: PgConnectOptions) -> anyhow::Result<Self> {
        let (sender, started) = mpsc::unbounded_channel();
        ensure!(STARTED.set(sender).is_ok(), "a process can have only one harness");
        Ok(Self { dir, database, started })
    }

    async fn platform(&self) -> anyhow::Result<Platform> {
        let spool = SpoolDir::open(&self.dir)?;
        let object_store = Arc::new(LocalObjectStore::open(&self.dir.join("objects"), spool.clone())?);
        let (config, database_options, pooler_check) =
            (baseline_axum::load_config(&[])?, self.database.clone(), PoolerCheck::default());
        let dependencies =
            PlatformDependencies { config, database_options, pooler_check, object_store, spool, port: 0 };
        let platform = Platform::new(dependencies)?;
        db::migrations::migrate(&platform.db).await?;
        Ok(platform)
    }

    pub async fn start_runner(&self) -> anyhow::Result<RunningQueue> {
        Ok(RunningQueue::start(self.platform().await?))
    }

    /// Returns how long inserting and deleting `count` plain rows takes.
    pub async fn measure_plain_rows(&self, count: usize) -> anyhow::Result<(Duration, Duration)> {
        let platform = self.platform().await?;
        sqlx::query("create table plain (id bigint primary key, kind text, payload jsonb)")
            .execute(&*platform.db)
            .await?;
        let insert =
            run_writers(&platform, count, |platform, number| async move { insert_plain(&platform, number).await })
                .await?;
        let delete =
            run_writers(&platform, count, |platform, number| async move { delete_plain(&platform, number).await })
                .await?;
        platform.db.close().await;
        Ok((insert, delete))
    }

    /// Enqueues all jobs while the runner is stopped, and then runs them. Returns how long each of the two steps took.
    pub async fn enqueue_then_run(&mut self, count: usize, projects: usize) -> anyhow::Result<(Duration, Duration)> {
        let platform = self.platform().await?;
        let enqueue_time = enqueue(&platform, count, projects).await?;
        let start = Instant::now();
        let running = RunningQueue::start(platform);
        self.wait_until_done(&running.platform, count).await?;
        let run_time = start.elapsed();
        running.stop().await?;
        Ok((enqueue_time, run_time))
    }

    /// Enqueues the jobs while the runner is running. Returns the time until the last job was completed.
    pub async fn enqueue_while_running(&mut self, platform: &Platform, count: usize) -> anyhow::Result<Duration> {
        let start = Instant::now();
        enqueue(platform, count, 1).await?;
        self.wait_until_done(platform, count).await?;
        Ok(start.elapsed())
    }

    async fn wait_until_done(&mut self, platform: &Platform, count: usize) -> anyhow::Result<()> {
        for _ in 0..count {
            let started = tokio::time::timeout(Duration::from_mins(2), self.started.recv());
            started.await.context("the jobs do not run")?;
        }
        // The last jobs have started but may not be completed yet.
        while sqlx::query_scalar::<_, bool>("select exists (select from jobs)").fetch_one(&*platform.db).await? {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    /// Measures single jobs and single rows, one after the other, on an idle queue.
    pub async fn measure_single_jobs(&mut self, platform: &Platform, count: usize) -> anyhow::Result<SingleTimes> {
        let (mut insert, mut from_begin, mut from_commit) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..count {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let begin = Instant::now();
            insert_plain(platform, number).await?;
            insert.push(begin.elapsed());
            tokio::time::sleep(Duration::from_millis(20)).await;
            let begin = Instant::now();
            let committed = enqueue_one(platform, ProjectId::new()).await?;
            let started = self.started.recv().await.context("the job runner has stopped")?;
            from_begin.push(started - begin);
            from_commit.push(started.saturating_duration_since(committed));
        }
        let [insert, from_begin, from_commit] = [insert, from_begin, from_commit].map(Times::from_iter);
        Ok(SingleTimes { insert, from_begin, from_commit })
    }
}

/// The times of single jobs and single rows.
pub struct SingleTimes {
    /// From the begin to the commit of a transaction that inserts a plain row.
    pub insert: Times,
    /// From the begin of the transaction that enqueues a job to the start of the job.
    pub from_begin: Times,
    /// From the commit of that transaction to the start of the job.
    pub from_commit: Times,
}

/// The components of the program that run jobs.
pub struct RunningQueue {
    pub platform: Platform,
    components: JoinSet<anyhow::Result<()>>,
}

impl RunningQueue {
    fn start(platform: Platform) -> Self {
        let mut components = JoinSet::new();
        let runner = Runner {
            db: platform.db.clone(),
            queue: platform.queue.clone(),
            registry: JobRegistry::default().register::<Probe>(()),
            process: platform.process.clone(),
            settings: platform.config.jobs.clone(),
            max_model_jobs_per_project: platform.config.model.max_project_requests,
            max_model_jobs: platform.config.model.max_requests,
        };
        components.spawn(runner::run(Arc::new(runner)));
        components.spawn(notify::listen(platform.db.clone(), vec![Arc::clone(platform.db.job_waker()) as _]));
        components.spawn(job_waker::publish(platform.db.clone()));
        Self { platform, components }
    }

    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.platform.process.shutdown.cancel();
        while let Some(ended) = self.components.join_next().await {
            ended??;
        }
        self.platform.process.background_tasks.close();
        self.platform.process.background_tasks.wait().await;
        self.platform.db.close().await;
        Ok(())
    }
}

async fn insert_plain(platform: &Platform, number: usize) -> anyhow::Result<()> {
    let mut tx = platform.db.begin().await?;
    let row = sqlx::query("insert into plain (id, kind, payload) values ($1, 'probe', 'null')");
    row.bind(i64::try_from(number)?).execute(&mut *tx).await?;
    Ok(tx.commit().await?)
}

async fn delete_plain(platform: &Platform, number: usize) -> anyhow::Result<()> {
    let mut tx = platform.db.begin().await?;
    let row = sqlx::query("delete from plain where id = $1").bind(i64::try_from(number)?);
    row.execute(&mut *tx).await?;
    Ok(tx.commit().await?)
}

async fn enqueue(platform: &Platform, count: usize, projects: usize) -> anyhow::Result<Duration> {
    let projects: Arc<[ProjectId]> = (0..projects).map(|_| ProjectId::new()).collect();
    run_writers(platform, count, move |platform, number| {
        let project = projects[number % projects.len()];
        async move { enqueue_one(&platform, project).await.map(drop) }
    })
    .await
}

/// Enqueues one job and returns the time after the commit.
async fn enqueue_one(platform: &Platform, project: ProjectId) -> anyhow::Result<Instant> {
    let mut tx = platform.db.begin().await?;
    let encryption = ProjectEncryption::unencrypted(project);
    platform
        .queue
        .enqueue(&mut tx, &encryption, &Probe, Delay::NONE)
        .await
        .map_err(|err| anyhow::anyhow!("{err:?}"))?;
    tx.commit().await?;
    Ok(Instant::now())
}

/// Calls `work` for each number below `count` on [`WRITERS`] concurrent writers. Returns how long all calls took.
async fn run_writers<F, W>(platform: &Platform, count: usize, work: W) -> anyhow::Result<Duration>
where
    F: Future<Output = anyhow::Result<()>> + Send,
    W: Fn(Platform, usize) -> F + Clone + Send + 'static,
{
    let next = Arc::new(AtomicUsize::new(0));
    let start = Instant::now();
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        let (platform, next, work) = (platform.clone(), Arc::clone(&next), work.clone());
        writers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return anyhow::Ok(());
                }
                work(platform.clone(), number).await?;
            }
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended??;
    }
    Ok(start.elapsed())
}
