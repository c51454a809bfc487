//! Background work on a queue in Postgres.
//!
//! A job is enqueued in the transaction that makes it necessary ([`queue::JobQueue::enqueue`]); the commit wakes the runners of this
//! process and of the others. The [`runner`] claims jobs in batches under a lease with a worker id and a heartbeat. A job that has
//! done its work completes in the transaction of its result ([`RunningJob::complete`]), or is completed when it returns. One
//! that fails is tried again later, a bounded number of times; one whose process died is taken over when its lease runs
//! out. Between them, `lane` and `dedupe_key` take the place of a lock server and a delay queue. [`registry`] has the kinds that this
//! process can run, [`periodic`] is work that needs no input, [`store`] is the SQL, and [`requeue`] that of jobs that return to the queue.

pub mod periodic;
pub mod queue;
pub mod registry;
pub mod requeue;
pub mod runner;
pub mod store;

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

pub use queue::{Delay, JobQueue};
pub use registry::JobRegistry;

use crate::db::Tx;
use crate::encryption::ProjectEncryption;
use crate::ids::{JobId, ProjectId};
use crate::text_enum::text_enum;

/// Whose work it is when it is no project's.
pub const SYSTEM_PROJECT: ProjectId = ProjectId(Uuid::nil());

/// How soon a job without its project's key checks again; a request with the key makes the job due.
const KEY_RECHECK_INTERVAL: Duration = Duration::from_hours(24);

text_enum! {
    /// The column `jobs.state`.
    pub enum JobState {
        Ready = "ready",
        Running = "running",
        Failed = "failed",
    }
}

text_enum! {
    /// The column `jobs.wait_reason`: what a job waits for that could not do its work. Whoever provides it makes the job due.
    pub enum WaitReason {
        /// The project's key.
        Key = "key",
        /// A language model that is configured.
        Model = "model",
        /// Nothing: the job has used its share of time and continues in its next attempt.
        TimeSlice = "time_slice",
        /// A version of the server that can do this work.
        Upgrade = "upgrade",
    }
}

/// The payload of a job: ids, never content and never a secret. Code that enqueues a job needs only this type.
pub trait Job: Serialize + DeserializeOwned + Send + 'static {
    /// The name of the kind in the queue.
    const KIND: &'static str;

    /// At most one job of a lane runs at a time, of whatever kind.
    fn lane(&self) -> Option<String> {
        None
    }

    /// At most one job of this kind and key waits at a time, of whatever project: a key contains the id of what it is about.
    fn dedupe_key(&self) -> Option<String> {
        None
    }
}

/// Executes the jobs of a kind.
///
/// A job may run twice (its process may die after the work and before the end), so it reads, works, and writes once, guarded
/// by what it read.
pub trait JobHandler: Job {
    /// What the work needs; registered together with the kind, see [`registry::JobRegistry::register`].
    type Context: Clone + Send + Sync + 'static;

    /// How long one attempt may take.
    const TIMEOUT: Duration;
    /// How many attempts there are.
    const MAX_ATTEMPTS: i32;
    /// The delays between attempts double up to this one.
    const MAX_BACKOFF: Duration = Duration::from_mins(10);

    fn run(self, context: &Self::Context, running: &RunningJob) -> impl Future<Output = Result<(), JobError>> + Send;
}

/// Why a job did not do its work. The error is text for operators; nothing compares it.
#[derive(Debug)]
pub enum JobError {
    /// Another attempt may succeed; what `?` returns.
    Retry(anyhow::Error),
    /// Another attempt would fail too.
    Permanent(anyhow::Error),
    /// The work cannot be done now, which is no failure: try again after this time. Does not count as an attempt.
    Snooze(WaitReason, anyhow::Error, Duration),
}

impl JobError {
    /// The job has to decrypt content, and was not given the key.
    pub fn awaiting_key() -> Self {
        Self::Snooze(WaitReason::Key, anyhow::anyhow!("needs the project's key"), KEY_RECHECK_INTERVAL)
    }
}

impl<E: Into<anyhow::Error>> From<E> for JobError {
    fn from(err: E) -> Self {
        Self::Retry(err.into())
    }
}

/// A job while it runs.
pub struct RunningJob {
    pub id: JobId,
    /// Whose work it is, and what opens what is sealed if the job was given it.
    pub encryption: ProjectEncryption,
    /// The number of this try, from 1.
    pub attempt: i32,
    worker_id: Uuid,
    completed: AtomicBool,
}

/// The lease ran out and another process has the job: what this one did must not be kept.
#[derive(Debug, thiserror::Error)]
#[error("the job's lease was lost")]
pub struct LeaseLost;

impl RunningJob {
    /// Ends the job as done, in the transaction of its result.
    ///
    /// # Errors
    /// [`LeaseLost`]: roll back.
    pub async fn complete(&self, tx: &mut Tx) -> Result<(), JobError> {
        if !store::delete(tx, self.id, self.worker_id).await? {
            return Err(LeaseLost.into());
        }
        // From here on it has no lease that could be lost.
        self.completed.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn is_completed(&self) -> bool {
        self.completed.load(Ordering::SeqCst)
    }
}
