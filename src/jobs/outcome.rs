//! Records the outcome of an attempt that has not completed its job.

use std::time::Duration;

use rand::Rng;
use serde_json::Value;
use uuid::Uuid;

use super::registry::RegisteredHandler;
use super::requeue::{self, JobFailure, Requeue};
use super::{ErrorClass, JobError, class_of, min_backoff_of, store};
use crate::db::Db;
use crate::encryption::ProjectEncryption;
use crate::ids::JobId;

/// The backoff after the first failed attempt. Each further failed attempt doubles the backoff.
const BASE_BACKOFF: Duration = Duration::from_secs(5);

/// Returns the backoff after the failed attempt with the number `attempt`, with jitter; `None` if it was the last attempt.
pub(super) fn backoff_after(attempt: i32, handler: &RegisteredHandler) -> Option<Duration> {
    if attempt >= handler.max_attempts {
        return None;
    }
    let doublings = u32::try_from(attempt - 1).unwrap_or(0).min(16);
    let backoff = (BASE_BACKOFF * 2_u32.pow(doublings)).min(handler.max_backoff);
    Some(backoff.mul_f64(rand::rng().random_range(0.8..1.2)))
}

/// A job whose attempt has failed, and the worker of the attempt.
pub(super) struct FailedAttempt<'a> {
    pub job: JobId,
    pub kind: &'a str,
    pub payload: &'a Value,
    pub encryption: &'a ProjectEncryption,
    pub worker_id: Uuid,
}

/// Logs and records a failed attempt: requeues the job with the delay `backoff`, or a longer one that the error requires, or marks the job as failed if `backoff` is `None`.
///
/// # Errors
/// Returns an error if the database fails.
pub(super) async fn log_and_record_failure(
    db: &Db,
    handler: &RegisteredHandler,
    failed: &FailedAttempt<'_>,
    backoff: Option<Duration>,
    err: &anyhow::Error,
) -> anyhow::Result<()> {
    let (job, kind, error) = (failed.job, failed.kind, format!("{err:#}"));
    let backoff = backoff.map(|backoff| backoff.max(min_backoff_of(err)));
    // The lines contain the job, because JSON lines do not contain the fields of the span.
    let class = class_of(err);
    if backoff.is_some() && class == ErrorClass::ModelSettings {
        // The client of the model logs wrong settings, once a minute for all jobs.
        tracing::debug!(job.id = %job, job.kind = kind, error, "job attempt failed; the job will be retried");
    } else if let Some(delay) = backoff {
        tracing::warn!(job.id = %job, job.kind = kind, error, ?delay, "job attempt failed; the job will be retried");
    } else {
        tracing::error!(job.id = %job, job.kind = kind, error, "job failed permanently");
    }
    let failure = JobFailure { class, message: &error };
    match backoff {
        Some(backoff) => {
            let record = || async move {
                let mut tx = db.begin().await?;
                requeue::fail(&mut tx, job, failed.worker_id, Some(backoff), failure).await?;
                tx.commit().await
            };
            Ok(repeat_if_duplicate(record).await?)
        }
        None => mark_as_failed(db, handler, failed, failure, false).await,
    }
}

/// Marks a job as failed, and calls [`JobHandler::abandon`](super::JobHandler::abandon), in one transaction. Completes the job
/// instead if the handler says that its work no longer exists. Has no effect if the worker does not own the job, or if
/// `only_expired` is set and the job has a lease.
///
/// # Errors
/// Returns an error if the database fails.
pub(super) async fn mark_as_failed(
    db: &Db,
    handler: &RegisteredHandler,
    failed: &FailedAttempt<'_>,
    failure: JobFailure<'_>,
    only_expired: bool,
) -> anyhow::Result<()> {
    let &FailedAttempt { job, payload, encryption, worker_id, .. } = failed;
    let mut tx = db.begin().await?;
    // The job is locked after the rows that the handler locks, as when an attempt stores its result.
    let abandoned = (handler.abandon)(payload.clone(), encryption, &mut tx).await;
    let work_exists = abandoned.map_err(|error| match error {
        JobError::Retry(error) | JobError::Permanent(error) | JobError::Snooze(_, error, _) => error,
    })?;
    let is_owned = if only_expired {
        requeue::lock_expired(&mut tx, job, worker_id).await?
    } else {
        requeue::lock(&mut tx, job, worker_id).await?
    };
    if !is_owned {
        return Ok(());
    }
    if work_exists {
        requeue::fail(&mut tx, job, worker_id, None, failure).await?;
    } else {
        store::complete(&mut tx, job, worker_id).await?;
    }
    tx.wake_on_commit();
    tx.commit().await?;
    Ok(())
}

/// Requeues a job in a transaction. The attempt does not count.
///
/// # Errors
/// Returns an error if the database fails.
pub(super) async fn requeue_uncounted(db: &Db, job: JobId, worker_id: Uuid, requeue: &Requeue<'_>) -> sqlx::Result<()> {
    repeat_if_duplicate(|| async move {
        let mut tx = db.begin().await?;
        requeue::requeue_uncounted(&mut tx, job, worker_id, requeue).await?;
        tx.commit().await
    })
    .await
}

/// Requeues a job with `requeue`, and repeats this if it fails because another transaction has enqueued a duplicate after the
/// requeue had found none. The second requeue finds the duplicate and merges the job with it.
async fn repeat_if_duplicate<F: Future<Output = sqlx::Result<()>>>(requeue: impl Fn() -> F) -> sqlx::Result<()> {
    match requeue().await {
        Err(sqlx::Error::Database(err)) if err.constraint() == Some("jobs_dedupe_key_idx") => requeue().await,
        result => result,
    }
}
