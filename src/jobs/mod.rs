//! Background work on a queue in Postgres.
//!
//! A job is enqueued in the transaction that makes it necessary ([`enqueue`]); after the commit [`Jobs::wake`] tells this
//! process and the others. The [`runner`] claims jobs in batches under a lease with an owner and a heartbeat. A job that has
//! done its work completes in the transaction of its result ([`Running::complete`]), or is completed when it returns. One
//! that fails is tried again later, a bounded number of times; one whose process died is taken over when its lease runs
//! out. Between them, `lane` and `dedupe` take the place of a lock server and a delay queue. [`periodic`] is work that needs
//! no input, [`wake`] carries the word between processes, [`store`] is the SQL.

pub mod periodic;
pub mod runner;
pub mod store;
pub mod wake;

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::app::App;
use crate::ids::{JobId, ProjectId};
use crate::seal::Owner;
use crate::telemetry;

/// Whose work it is when it is no project's.
pub const SERVER: ProjectId = ProjectId(Uuid::nil());

/// Why a job of an encrypted project waits that has no key. Spelled in `migrations/0015_encryption.sql` too.
pub const NEEDS_KEY: &str = "needs the project's key";
/// How soon to look again; whoever brings the key hurries it.
const WITHOUT_KEY: Duration = Duration::from_hours(24);

/// A kind of background work. The value is what the queue keeps: ids, never content and never a secret.
///
/// A job may run twice (its process may die after the work and before the end), so it reads, works, and writes once, guarded
/// by what it read.
pub trait Job: Serialize + DeserializeOwned + Send + 'static {
    /// The name of the kind in the queue.
    const KIND: &'static str;
    /// How long one try may take.
    const TIMEOUT: Duration;
    /// How many tries there are.
    const MAX_ATTEMPTS: i32;
    /// The pauses between them double up to this one.
    const LONGEST_PAUSE: Duration = Duration::from_mins(10);

    /// At most one job of a lane runs at a time, of whatever kind.
    fn lane(&self) -> Option<String> {
        None
    }

    /// At most one job of this kind and key waits at a time, of whatever project: a key contains the id of what it is about.
    fn dedupe(&self) -> Option<String> {
        None
    }

    fn run(self, app: App, running: &Running) -> impl Future<Output = Result<(), JobError>> + Send;
}

/// Why a job did not do its work.
#[derive(Debug)]
pub enum JobError {
    /// Try again later; what `?` gives.
    Retry(anyhow::Error),
    /// No other try would do better.
    GiveUp(anyhow::Error),
    /// It cannot be done now, and that is nobody's failure: look again after this time. Spends no try.
    NotYet(anyhow::Error, Duration),
}

impl JobError {
    /// There is sealed content, and no key that opens it.
    pub fn needs_key() -> Self {
        Self::NotYet(anyhow::anyhow!(NEEDS_KEY), WITHOUT_KEY)
    }
}

impl<E: Into<anyhow::Error>> From<E> for JobError {
    fn from(fault: E) -> Self {
        Self::Retry(fault.into())
    }
}

/// When a job is due.
#[derive(Clone, Copy, Debug)]
pub struct Delay(Duration);

impl Delay {
    pub const NONE: Self = Self(Duration::ZERO);

    pub fn of(duration: Duration) -> Self {
        Self(duration)
    }
}

/// Puts a job on the queue, in the caller's transaction, with the project's key if it is encrypted. If an equal one waits already
/// (same kind and key), that one's time may come nearer, it is brought the project's key if it has none, and nothing else happens;
/// one that backs off after a failure keeps its time.
///
/// Tell [`Jobs::wake`] after the commit.
pub async fn enqueue<J: Job>(
    app: &App,
    conn: &mut PgConnection,
    owner: &Owner,
    job: &J,
    delay: Delay,
) -> crate::error::Result<()> {
    let payload = serde_json::to_value(job).map_err(crate::error::Error::internal)?;
    let new = store::NewJob {
        kind: J::KIND,
        payload,
        lane: job.lane(),
        dedupe: job.dedupe(),
        delay: delay.0,
        sealed_key: sealed_key(app, owner)?,
        trace: telemetry::current_trace(),
    };
    store::insert(conn, owner.project, new).await?;
    Ok(())
}

/// The key that a job for this project is given; none if the project is not encrypted, or the key is not at hand.
///
/// # Errors
/// The system gives no random bytes.
pub fn sealed_key(app: &App, owner: &Owner) -> anyhow::Result<Option<Vec<u8>>> {
    owner.kek.as_ref().filter(|_| owner.encrypted).map(|kek| app.job_keys.seal(kek)).transpose()
}

/// Brings the project's key to those of its jobs that wait for it. Costs next to nothing if none does.
///
/// # Errors
/// The database fails.
pub async fn bring_key(app: &App, conn: &mut PgConnection, owner: &Owner) -> crate::error::Result<()> {
    if let Some(sealed_key) = sealed_key(app, owner)?
        && store::bring_key(conn, owner.project, &sealed_key).await? > 0
    {
        app.jobs.wake();
    }
    Ok(())
}

/// A job while it runs.
pub struct Running {
    pub id: JobId,
    /// Whose work it is, and what opens what is sealed if the job was given it.
    pub owner: Owner,
    /// The number of this try, from 1.
    pub attempt: i32,
    lease: Uuid,
    completed: AtomicBool,
}

/// The lease ran out and another process has the job: what this one did must not be kept.
#[derive(Debug, thiserror::Error)]
#[error("the job's lease was lost")]
pub struct LeaseLost;

impl Running {
    /// Ends the job as done, in the transaction of its result.
    ///
    /// # Errors
    /// [`LeaseLost`]: roll back.
    pub async fn complete(&self, conn: &mut PgConnection) -> Result<(), JobError> {
        if !store::delete(conn, self.id, self.lease).await? {
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

type RunFn = fn(Value, App, Arc<Running>) -> BoxFuture<'static, Result<(), JobError>>;

/// What the runner must know of a kind.
#[derive(Clone, Copy)]
pub struct Kind {
    timeout: Duration,
    max_attempts: i32,
    longest_pause: Duration,
    run: RunFn,
}

/// The kinds that this process can run; jobs of others are left alone.
#[derive(Clone, Default)]
pub struct Kinds(HashMap<&'static str, Kind>);

impl Kinds {
    #[must_use]
    pub fn with<J: Job>(mut self) -> Self {
        let run: RunFn = |payload, app, running| {
            Box::pin(async move {
                let job: J = serde_json::from_value(payload).map_err(|fault| JobError::GiveUp(fault.into()))?;
                job.run(app, &running).await
            })
        };
        self.0.insert(
            J::KIND,
            Kind { timeout: J::TIMEOUT, max_attempts: J::MAX_ATTEMPTS, longest_pause: J::LONGEST_PAUSE, run },
        );
        self
    }

    fn names(&self) -> Vec<String> {
        self.0.keys().map(ToString::to_string).collect()
    }

    fn get(&self, kind: &str) -> Option<Kind> {
        self.0.get(kind).copied()
    }
}

/// The process's side of the queue.
pub struct Jobs {
    kinds: Kinds,
    wake: wake::Wake,
}

impl Jobs {
    pub fn new(kinds: Kinds) -> Self {
        Self { kinds, wake: wake::Wake::default() }
    }

    /// There may be work: tells the runner of this process at once, and the others soon. Call it after the commit.
    pub fn wake(&self) {
        self.wake.here_and_elsewhere();
    }
}
