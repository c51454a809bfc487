//! Periodic tasks: work that every process runs at an interval. A periodic task must be safe to run in several processes
//! concurrently.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::outcome::{self, FailedAttempt};
use super::requeue::{self, JobFailure};
use super::runner::Runner;
use super::{ErrorClass, store};
use crate::db::Db;
use crate::error::Result;

/// The error of a job whose lease has expired.
const WORKER_LOST: JobFailure<'_> = JobFailure {
    class: ErrorClass::Timeout,
    message: "the server stopped during the last attempt, or it took too long",
};
/// The retention period of permanently failed jobs.
const FAILED_JOB_RETENTION: Duration = Duration::from_hours(14 * 24);

/// Work that runs at an interval.
pub struct PeriodicTask {
    pub name: &'static str,
    interval: Duration,
    run: Box<dyn Fn() -> BoxFuture<'static, Result<()>> + Send + Sync>,
}

impl PeriodicTask {
    /// Creates a periodic task that calls `run` with a clone of `context`.
    pub fn new<C, F>(name: &'static str, interval: Duration, context: &C, run: fn(C) -> F) -> Self
    where
        C: Clone + Send + Sync + 'static,
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let context = context.clone();
        Self { name, interval, run: Box::new(move || Box::pin(run(context.clone()))) }
    }

    /// Runs the periodic task immediately and then at each interval, until the process shuts down. Logs a failed run and
    /// continues with the next one. Skips runs while the database pool is closed.
    ///
    /// # Errors
    /// Never returns an error; all components have this signature.
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
                tracing::warn!(periodic_task = self.name, error = ?error, "periodic task failed");
            }
        }
    }
}

/// Reclaims running jobs whose lease has expired, because their worker was lost. The lost attempt counts as a failed one, so
/// a job is marked as failed if it has no attempt left.
pub async fn reclaim_expired(runner: Arc<Runner>) -> Result<()> {
    let kinds = runner.registry.kinds().all();
    let mut conn = runner.db.acquire().await?;
    let expired = requeue::list_expired(&mut conn, &kinds, 1_000).await?;
    drop(conn);
    for job in &expired {
        let Some(handler) = runner.registry.get(&job.kind) else { continue };
        let backoff = outcome::backoff_after(job.attempt, handler);
        tracing::warn!(job.id = %job.id, job.kind = job.kind, "job lease expired; reclaiming the job");
        if backoff.is_none() {
            let encryption = &runner.queue.unwrap_kek(job.id, job.project, job.encrypted_kek.as_deref());
            let (kind, payload, worker_id) = (job.kind.as_str(), &job.payload, job.worker_id);
            let failed = FailedAttempt { job: job.id, kind, payload, encryption, worker_id };
            outcome::mark_as_failed(&runner.db, handler, &failed, WORKER_LOST, true).await?;
            continue;
        }
        let mut tx = runner.db.begin().await?;
        // The worker may have renewed the lease in the meantime.
        if requeue::lock_expired(&mut tx, job.id, job.worker_id).await? {
            requeue::fail(&mut tx, job.id, job.worker_id, backoff, WORKER_LOST).await?;
            tx.wake_on_commit();
        }
        tx.commit().await?;
    }
    Ok(())
}

/// Deletes permanently failed jobs after their retention period.
pub async fn purge_failed(db: Db) -> Result<()> {
    let mut conn = db.acquire().await?;
    store::delete_failed(&mut conn, FAILED_JOB_RETENTION).await?;
    Ok(())
}
