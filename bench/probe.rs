//! A queue whose jobs only say that they have started: the parts of the program that make jobs run, and those who put them in.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use acontextd::blob::local::LocalBlobStore;
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

use crate::bare;
use crate::load::Times;

/// As many as the runner has slots.
pub const WRITERS: usize = 16;

/// A job that only says that it has started.
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

/// A database, and word of the jobs that start.
pub struct Site {
    folder: PathBuf,
    database: PgConnectOptions,
    started: mpsc::UnboundedReceiver<Instant>,
}

impl Site {
    pub fn new(folder: PathBuf, database: PgConnectOptions) -> anyhow::Result<Self> {
        let (tell, started) = mpsc::unbounded_channel();
        ensure!(STARTED.set(tell).is_ok(), "there is one site in a process");
        Ok(Self { folder, database, started })
    }

    async fn platform(&self) -> anyhow::Result<Platform> {
        let spool = SpoolDir::open(&self.folder)?;
        let blob_store = Arc::new(LocalBlobStore::open(&self.folder.join("objects"), spool.clone())?);
        let (config, database, pooler) = (bare::settings(&[])?, self.database.clone(), PoolerCheck::default());
        let platform = Platform::new(PlatformDependencies { config, database, pooler, blob_store, spool, port: 0 })?;
        db::migrations::migrate(&platform.db).await?;
        Ok(platform)
    }

    pub async fn start_runner(&self) -> anyhow::Result<RunningQueue> {
        Ok(RunningQueue::start(self.platform().await?))
    }

    /// How long plain inserts and deletes take.
    pub async fn plain_rows(&self, many: usize) -> anyhow::Result<(Duration, Duration)> {
        let platform = self.platform().await?;
        sqlx::query("create table plain (id bigint primary key, kind text, payload jsonb)")
            .execute(&*platform.db)
            .await?;
        let insert =
            by_writers(&platform, many, |platform, number| async move { insert_plain(&platform, number).await })
                .await?;
        let delete =
            by_writers(&platform, many, |platform, number| async move { delete_plain(&platform, number).await })
                .await?;
        platform.db.close().await;
        Ok((insert, delete))
    }

    /// Puts all in while nothing runs, then runs them; how long each took.
    pub async fn put_in_then_run(&mut self, many: usize, projects: usize) -> anyhow::Result<(Duration, Duration)> {
        let platform = self.platform().await?;
        let put_in = put_in(&platform, many, projects).await?;
        let start = Instant::now();
        let running = RunningQueue::start(platform);
        self.wait_until_done(&running.platform, many).await?;
        let ran = start.elapsed();
        running.stop().await?;
        Ok((put_in, ran))
    }

    /// Puts them in while they run; how long until the last one was completed.
    pub async fn put_in_and_run(&mut self, platform: &Platform, many: usize) -> anyhow::Result<Duration> {
        let start = Instant::now();
        put_in(platform, many, 1).await?;
        self.wait_until_done(platform, many).await?;
        Ok(start.elapsed())
    }

    async fn wait_until_done(&mut self, platform: &Platform, many: usize) -> anyhow::Result<()> {
        for _ in 0..many {
            let started = tokio::time::timeout(Duration::from_mins(2), self.started.recv());
            started.await.context("the jobs do not run")?;
        }
        // The last ones may still be completing.
        while sqlx::query_scalar::<_, bool>("select exists (select from jobs)").fetch_one(&*platform.db).await? {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    pub async fn single(&mut self, platform: &Platform, count: usize) -> anyhow::Result<Single> {
        let (mut insert, mut from_begin, mut from_commit) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..count {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let begin = Instant::now();
            insert_plain(platform, number).await?;
            insert.push(begin.elapsed());
            tokio::time::sleep(Duration::from_millis(20)).await;
            let begin = Instant::now();
            let committed = put_one_in(platform, ProjectId::new()).await?;
            let started = self.started.recv().await.context("nobody runs jobs")?;
            from_begin.push(started - begin);
            from_commit.push(started.saturating_duration_since(committed));
        }
        let [insert, from_begin, from_commit] = [insert, from_begin, from_commit].map(Times::from_iter);
        Ok(Single { insert, from_begin, from_commit })
    }
}

/// How long single jobs and single rows took.
pub struct Single {
    pub insert: Times,
    pub from_begin: Times,
    pub from_commit: Times,
}

/// The parts of the program that make jobs run.
pub struct RunningQueue {
    pub platform: Platform,
    parts: JoinSet<anyhow::Result<()>>,
}

impl RunningQueue {
    fn start(platform: Platform) -> Self {
        let mut parts = JoinSet::new();
        let runner = Runner {
            db: platform.db.clone(),
            queue: platform.queue.clone(),
            registry: JobRegistry::default().register::<Probe>(()),
            process: platform.process.clone(),
            settings: platform.config.jobs.clone(),
        };
        parts.spawn(runner::run(Arc::new(runner)));
        parts.spawn(notify::listen(platform.db.clone(), vec![Arc::clone(platform.db.job_waker()) as _]));
        parts.spawn(job_waker::publish(platform.db.clone()));
        Self { platform, parts }
    }

    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.platform.process.shutdown.cancel();
        while let Some(ended) = self.parts.join_next().await {
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

async fn put_in(platform: &Platform, many: usize, projects: usize) -> anyhow::Result<Duration> {
    let projects: Arc<[ProjectId]> = (0..projects).map(|_| ProjectId::new()).collect();
    by_writers(platform, many, move |platform, number| {
        let project = projects[number % projects.len()];
        async move { put_one_in(&platform, project).await.map(drop) }
    })
    .await
}

/// Answers with when it was committed.
async fn put_one_in(platform: &Platform, project: ProjectId) -> anyhow::Result<Instant> {
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

/// Does `work` for each number below `many`, by so many writers at once; how long it took.
async fn by_writers<F, W>(platform: &Platform, many: usize, work: W) -> anyhow::Result<Duration>
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
                if number >= many {
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
