//! The job queue: background work stored in Postgres.
//!
//! A job is enqueued in the transaction that makes the work necessary ([`queue::JobQueue::enqueue`]). The commit wakes the
//! job runners of all processes. The [`runner`] claims due jobs in batches. A claimed job belongs to the worker that has
//! claimed it until its lease expires. A heartbeat renews the lease. The job completes in the transaction of its result
//! ([`RunningJob::complete`]) or when its handler returns `Ok`. After a failed attempt, the job is requeued with a backoff,
//! until it has reached its maximum number of attempts. If the process dies, the job is reclaimed when its lease expires.
//!
//! At most one job of a `lane` runs at a time. Two jobs with the same kind and `dedupe_key` are duplicates; at most one of
//! them is ready.
//!
//! [`registry`] maps job kinds to their handlers, [`periodic`] contains the periodic tasks, [`store`] the SQL of the queue,
//! [`requeue`] the SQL that requeues running jobs or marks them as failed, and [`list`] the SQL for clients. `outcome` records
//! the attempts that have not completed their jobs.

pub mod list;
mod outcome;
pub mod periodic;
pub mod queue;
pub mod registry;
pub mod requeue;
pub mod runner;
pub mod store;

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

pub use queue::{Delay, JobQueue};
pub use registry::JobRegistry;

use self::requeue::JobFailure;
use crate::db::Tx;
use crate::encryption::ProjectEncryption;
use crate::ids::{JobId, ProjectId};
use crate::text_enum::text_enum;

/// The project id of jobs that belong to no project.
pub const SYSTEM_PROJECT: ProjectId = ProjectId(Uuid::nil());

/// The delay before the next attempt of a job that lacks its project's master key. A request with the project key provides
/// the master key and makes the job due earlier.
const KEY_RECHECK_INTERVAL: Duration = Duration::from_hours(24);

text_enum! {
    /// The state of a job (column `jobs.state`).
    pub enum JobState {
        Ready = "ready",
        Running = "running",
        Failed = "failed",
    }
}

text_enum! {
    /// The reason why a job was snoozed (column `jobs.wait_reason`).
    pub enum WaitReason {
        /// The job lacks the project's master key. A request with the project key makes the job due.
        Key = "key",
        /// No language model is configured. A process with a language model makes the job due.
        Model = "model",
        /// The job has used its time slice. It continues with its next attempt.
        TimeSlice = "time_slice",
    }
}

text_enum! {
    /// The class of the error of a job (column `jobs.error_class`).
    pub enum ErrorClass {
        /// The project's master key is missing.
        Key = "key",
        /// The language model cannot be reached, or rejects the request.
        Model = "model",
        /// No language model is configured, or its API key, base URL or name is wrong.
        ModelSettings = "model_settings",
        /// The database cannot be reached or rejects a statement.
        Database = "database",
        /// An attempt took too long, or its process died.
        Timeout = "timeout",
        /// Any other error.
        Internal = "internal",
    }
}

/// An error with a class. Its text is that of the error.
#[derive(Debug, thiserror::Error)]
#[error("{error:#}")]
pub struct ClassifiedError {
    class: ErrorClass,
    error: anyhow::Error,
    min_backoff: Duration,
}

impl ClassifiedError {
    pub fn new(class: ErrorClass, error: impl Into<anyhow::Error>) -> Self {
        Self { class, error: error.into(), min_backoff: Duration::ZERO }
    }

    /// Sets the minimum delay before the next attempt.
    #[must_use]
    pub fn with_min_backoff(self, min_backoff: Duration) -> Self {
        Self { min_backoff, ..self }
    }
}

/// Returns the minimum delay before the attempt after an error.
fn min_backoff_of(err: &anyhow::Error) -> Duration {
    err.downcast_ref::<ClassifiedError>().map(|error| error.min_backoff).unwrap_or_default()
}

/// Returns the class of an error: that of a [`ClassifiedError`], or else the one that follows from its type.
fn class_of(err: &anyhow::Error) -> ErrorClass {
    match err.downcast_ref::<ClassifiedError>() {
        Some(classified) => classified.class,
        None if err.chain().any(<dyn std::error::Error>::is::<sqlx::Error>) => ErrorClass::Database,
        None => ErrorClass::Internal,
    }
}

/// The payload of a job. It contains ids, never content or secrets. Code that enqueues a job needs only this type.
pub trait Job: Serialize + DeserializeOwned + Send + 'static {
    /// The job kind as stored in the queue.
    const KIND: &'static str;

    /// Returns the lane of the job. At most one job of a lane runs at a time, regardless of its kind.
    fn lane(&self) -> Option<String> {
        None
    }

    /// Returns the dedupe key of the job. At most one job with this kind and key is ready at a time. Keys are not scoped to
    /// projects, so a key contains the id of the entity that the job processes.
    fn dedupe_key(&self) -> Option<String> {
        None
    }
}

/// The handler of the jobs of one kind.
///
/// A job may run again after it has done its work, because the process may die before the job is completed. A handler must
/// therefore check, in the transaction that writes its result, that its input has not changed.
pub trait JobHandler: Job {
    /// The context that [`run`](Self::run) requires; registered together with the kind by
    /// [`registry::JobRegistry::register`].
    type Context: Clone + Send + Sync + 'static;

    /// The maximum duration of an attempt.
    const TIMEOUT: Duration;
    /// The maximum number of attempts.
    const MAX_ATTEMPTS: i32;
    /// `true` if an attempt calls a language model. The number of such jobs that run at a time is limited for each project.
    const CALLS_MODEL: bool = false;
    /// The maximum backoff, to which a jitter of 20 % is applied.
    const MAX_BACKOFF: Duration = Duration::from_mins(10);

    /// Runs one attempt of the job.
    fn run(self, context: &Self::Context, running: &RunningJob) -> impl Future<Output = Result<(), JobError>> + Send;

    /// Reverts the changes that an attempt has stored for its own duration, for example a status of rows that means that they are
    /// being processed. Called after shutdown has aborted an attempt, or after it has timed out or panicked, while the worker
    /// still owns the job. Not called if the process dies, so [`run`](Self::run) must revert the same changes when it begins.
    fn undo(self, context: &Self::Context, running: &RunningJob) -> impl Future<Output = Result<(), JobError>> + Send {
        let _ = (context, running);
        std::future::ready(Ok(()))
    }

    /// Stores in `tx` that the job has failed, for example as the status of the rows that the last attempt was processing. The same
    /// transaction then marks the job as failed, unless the handler has done so with [`RunningJob::fail`]. Also called for jobs
    /// whose process has died, and not after [`undo`](Self::undo). The changes are rolled back if the job is not marked as failed.
    ///
    /// Returns `false` if what the job works on has been deleted. The job is then completed instead, because a retry could do
    /// nothing.
    fn abandon(
        self,
        context: &Self::Context,
        encryption: &ProjectEncryption,
        tx: &mut Tx,
    ) -> impl Future<Output = Result<bool, JobError>> + Send {
        let _ = (context, encryption, tx);
        std::future::ready(Ok(true))
    }
}

/// The reason why an attempt did not complete its job. The text of the inner error and its class are stored as the job's last
/// error, which clients see in the list of jobs, in the result of a flush and in the status of an encryption conversion. No code
/// compares the text.
#[derive(Debug)]
pub enum JobError {
    /// The attempt failed, and another one may succeed. The `?` operator returns this variant.
    Retry(anyhow::Error),
    /// The attempt failed, and another one would fail too.
    Permanent(anyhow::Error),
    /// The work cannot be finished in this attempt. The job is requeued with this delay, and the attempt does not count. If the
    /// reason is [`WaitReason::TimeSlice`], the text is only logged, and the stored error is cleared.
    Snooze(WaitReason, anyhow::Error, Duration),
}

impl JobError {
    /// Returns the error of a job that must decrypt content but lacks the project's master key.
    pub fn awaiting_key() -> Self {
        let error =
            anyhow::anyhow!("the project's master key is missing; a request with the project's API key provides it");
        Self::Snooze(WaitReason::Key, error, KEY_RECHECK_INTERVAL)
    }

    fn timed_out(timeout: Duration) -> Self {
        let error = anyhow::anyhow!("the attempt timed out after {timeout:?}");
        Self::Retry(ClassifiedError::new(ErrorClass::Timeout, error).into())
    }
}

impl WaitReason {
    /// Returns the class of the error of a snoozed job. `None` if the attempt has had no error.
    fn error_class(self) -> Option<ErrorClass> {
        match self {
            Self::Key => Some(ErrorClass::Key),
            Self::Model => Some(ErrorClass::ModelSettings),
            Self::TimeSlice => None,
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for JobError {
    fn from(err: E) -> Self {
        Self::Retry(err.into())
    }
}

/// A job during an attempt.
pub struct RunningJob {
    pub id: JobId,
    /// The job's project, with its master key if the job has one. `format` is `Encrypted` if the job has the key, otherwise
    /// `Plaintext`; it is not read from the project.
    pub encryption: ProjectEncryption,
    attempt: AtomicI32,
    worker_id: Uuid,
    completed: AtomicBool,
}

/// The error of an attempt whose lease has expired and whose job was reclaimed. The attempt's changes must be rolled back.
#[derive(Debug, thiserror::Error)]
#[error("the job's lease was lost")]
pub struct LeaseLost;

impl RunningJob {
    /// Returns the number of this attempt, starting at 1.
    pub fn attempt(&self) -> i32 {
        self.attempt.load(Ordering::SeqCst)
    }

    /// Completes the job in the transaction of its result.
    ///
    /// # Errors
    /// Returns [`LeaseLost`] if this worker no longer owns the job; the caller must then roll back. Returns other errors if
    /// the database fails.
    pub async fn complete(&self, tx: &mut Tx) -> Result<(), JobError> {
        if !store::complete(tx, self.id, self.worker_id).await? {
            return Err(LeaseLost.into());
        }
        // Prevents the heartbeat from aborting this attempt because the row of the job no longer exists.
        self.completed.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Checks in the transaction of a partial result that this worker still owns the job. Until the transaction ends, no other
    /// worker can reclaim the job.
    ///
    /// # Errors
    /// Returns [`LeaseLost`] if this worker no longer owns the job; the caller must then roll back. Returns other errors if
    /// the database fails.
    pub async fn ensure_owned(&self, tx: &mut Tx) -> Result<(), JobError> {
        if store::lock_owned(tx, self.id, self.worker_id).await? { Ok(()) } else { Err(LeaseLost.into()) }
    }

    /// Commits the transaction of a partial result, such as that of one of several batches. The attempts begin again: the current
    /// attempt becomes the first one, and the error of the last attempt is cleared. Therefore the maximum number of attempts
    /// applies to each part of the work.
    ///
    /// # Errors
    /// Returns [`LeaseLost`] if this worker no longer owns the job; the transaction is then rolled back. Returns other errors if
    /// the database fails.
    pub async fn commit_partial_result(&self, mut tx: Tx) -> Result<(), JobError> {
        if !store::restart_attempts(&mut tx, self.id, self.worker_id).await? {
            return Err(LeaseLost.into());
        }
        tx.commit().await?;
        self.attempt.store(1, Ordering::SeqCst);
        Ok(())
    }

    /// Marks the job as failed in the transaction of its result, so that no other transaction sees this result together with a
    /// job that still runs. The handler must then return the same error.
    ///
    /// # Errors
    /// Returns [`LeaseLost`] if this worker no longer owns the job; the caller must then roll back. Returns other errors if
    /// the database fails.
    pub async fn fail(&self, tx: &mut Tx, error: &anyhow::Error) -> Result<(), JobError> {
        self.ensure_owned(tx).await?;
        let failure = JobFailure { class: class_of(error), message: &format!("{error:#}") };
        requeue::fail(tx, self.id, self.worker_id, None, failure).await?;
        // As in `complete`, for the job without a lease.
        self.completed.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn is_completed(&self) -> bool {
        self.completed.load(Ordering::SeqCst)
    }
}
