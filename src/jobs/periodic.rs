//! Periodic tasks: work without input that every process does at intervals, safe on any number of processes at once.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::runner::{self, Runner};
use super::{requeue, store};
use crate::db::Db;
use crate::error::Result;

/// How long the row of a job that failed for good can be read.
const FAILED_JOB_RETENTION: Duration = Duration::from_hours(14 * 24);

/// Work that is done at intervals.
pub struct PeriodicTask {
    pub name: &'static str,
    interval: Duration,
    run: Box<dyn Fn() -> BoxFuture<'static, Result<()>> + Send + Sync>,
}

impl PeriodicTask {
    /// Calls `run` with the context at each interval.
    pub fn new<C, F>(name: &'static str, interval: Duration, context: &C, run: fn(C) -> F) -> Self
    where
        C: Clone + Send + Sync + 'static,
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let context = context.clone();
        Self { name, interval, run: Box::new(move || Box::pin(run(context.clone()))) }
    }

    /// Runs the task now and then at each interval, until the process shuts down. A run that fails is logged; the next one tries
    /// again.
    ///
    /// # Errors
    /// Never; the signature is that of every component.
    pub async fn run_periodically(self, db: Db) -> anyhow::Result<()> {
        let mut timer = tokio::time::interval(self.interval);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = db.process().shutdown.cancelled() => return Ok(()),
                _ = timer.tick() => {}
            }
            if db.is_closed() {
                continue;
            }
            if let Err(error) = (self.run)().await {
                tracing::warn!(periodic_task = self.name, error = ?error, "a periodic task failed");
            }
        }
    }
}

/// Gives back the running jobs of processes that are gone.
pub async fn reclaim_expired(runner: Arc<Runner>) -> Result<()> {
    let kinds = runner.registry.kinds();
    let mut conn = runner.db.acquire().await?;
    let expired = store::list_expired(&mut conn, &kinds, 1_000).await?;
    drop(conn);
    for job in &expired {
        let Some(handler) = runner.registry.get(&job.kind) else { continue };
        let retry = runner::retry_after(job.attempt, handler);
        tracing::warn!(job.id = %job.id, job.kind = job.kind, "a job's process was lost");
        let mut tx = runner.db.begin().await?;
        // Its process may have come back to life since.
        if store::lock_expired(&mut tx, job.id, job.worker_id).await? {
            requeue::fail(&mut tx, job.id, job.worker_id, retry, "the process that ran it was lost").await?;
            tx.wake_on_commit();
        }
        tx.commit().await?;
    }
    Ok(())
}

/// Deletes the rows of jobs that failed long ago.
pub async fn purge_failed(db: Db) -> Result<()> {
    let mut conn = db.acquire().await?;
    store::delete_failed(&mut conn, FAILED_JOB_RETENTION).await?;
    Ok(())
}
