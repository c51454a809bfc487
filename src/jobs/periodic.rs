//! Reconcilers: work without input that every process does from time to time, safe on any number of them at once.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::{runner, store};
use crate::app::App;
use crate::error::Result;

/// How long the row of a job that failed for good can be read.
const FAILED_KEPT: Duration = Duration::from_hours(14 * 24);

/// Periodic work.
#[derive(Clone, Copy)]
pub struct Reconciler {
    pub name: &'static str,
    pub every: Duration,
    pub run: fn(App) -> BoxFuture<'static, Result<()>>,
}

/// Runs a reconciler now and then every so often, until the process stops. A round that fails is logged; the next one tries
/// again.
pub async fn repeat(app: App, reconciler: Reconciler) -> anyhow::Result<()> {
    let mut timer = tokio::time::interval(reconciler.every);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = app.shutdown.cancelled() => return Ok(()),
            _ = timer.tick() => {}
        }
        if app.db.is_closed() {
            continue;
        }
        if let Err(fault) = (reconciler.run)(app.clone()).await {
            tracing::warn!(reconciler = reconciler.name, error = ?fault, "a round of periodic work failed");
        }
    }
}

/// Gives back what processes that are gone have left running.
pub async fn take_over(app: App) -> Result<()> {
    let kinds = app.jobs.kinds.names();
    let mut conn = app.db.acquire().await?;
    let expired = store::list_expired(&mut conn, &kinds, 1_000).await?;
    drop(conn);
    for job in &expired {
        let Some(kind) = app.jobs.kinds.get(&job.kind) else { continue };
        let retry = runner::retry_after(job.attempt, kind);
        tracing::warn!(job.id = %job.id, job.kind = job.kind, "a job's process was lost");
        let mut tx = app.begin().await?;
        // Its process may have come back to life since.
        if store::lock_expired(&mut tx, job.id, job.owner).await? {
            store::fail(&mut tx, job.id, job.owner, retry, "the process that ran it was lost").await?;
        }
        tx.commit().await?;
    }
    if !expired.is_empty() {
        app.jobs.wake();
    }
    Ok(())
}

/// Forgets failures of long ago.
pub async fn forget_failed(app: App) -> Result<()> {
    let mut conn = app.db.acquire().await?;
    store::delete_failed(&mut conn, FAILED_KEPT).await?;
    Ok(())
}
