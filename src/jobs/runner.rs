//! Claims jobs and runs them, as many at once as there are slots.
//!
//! The order of its loop matters: wait for a free slot, claim, and only if nothing was due wait for word, the next due time or
//! a second, whichever comes first. Word that comes between claim and wait is kept for the wait.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use rand::Rng;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tracing::Instrument;
use uuid::Uuid;

use super::registry::RegisteredHandler;
use super::requeue;
use super::store::{self, Claimed};
use super::{JobError, JobQueue, JobRegistry, LeaseLost, RunningJob, WaitReason};
use crate::config::JobSettings;
use crate::db::Db;
use crate::encryption::{ProjectEncryption, StorageFormat};
use crate::ids::JobId;
use crate::process::Process;
use crate::telemetry;

/// Claims and runs jobs of the registered kinds.
pub struct Runner {
    pub db: Db,
    pub queue: JobQueue,
    pub registry: JobRegistry,
    pub process: Process,
    pub settings: JobSettings,
}

/// The first pause after a failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// The safety net under the notifications.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often the heartbeat looks whether the last job has ended while the process stops.
const WHILE_STOPPING: Duration = Duration::from_millis(100);

/// How long after try number `attempt` the next one is due, with jitter; `None` after the last one.
pub fn retry_after(attempt: i32, handler: &RegisteredHandler) -> Option<Duration> {
    if attempt >= handler.max_attempts {
        return None;
    }
    let doublings = u32::try_from(attempt - 1).unwrap_or(0).min(16);
    let pause = (FIRST_PAUSE * 2_u32.pow(doublings)).min(handler.max_backoff);
    Some(pause.mul_f64(rand::rng().random_range(0.8..1.2)))
}

/// What runs here now.
#[derive(Default)]
struct Tries(Mutex<HashMap<Uuid, (AbortHandle, Arc<RunningJob>)>>);

impl Tries {
    fn change<T>(&self, change: impl FnOnce(&mut HashMap<Uuid, (AbortHandle, Arc<RunningJob>)>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Runs jobs until the process stops; what runs then is waited for by shutdown.
pub async fn run(runner: Arc<Runner>) -> anyhow::Result<()> {
    let slots = Arc::new(Semaphore::new(runner.settings.concurrency));
    let worker_id = Uuid::now_v7();
    let tries = Arc::new(Tries::default());
    runner.process.background_tasks.spawn(heartbeat(Arc::clone(&runner), worker_id, Arc::clone(&tries)));
    let kinds = runner.registry.kinds();
    while !runner.process.shutdown.is_cancelled() {
        let Some(mut free) = free_slots(&runner, &slots).await else {
            break;
        };
        let claimed = match claim(&runner, worker_id, &kinds, free.num_permits()).await {
            Ok(claimed) => claimed,
            Err(_) if runner.db.is_closed() => {
                runner.process.shutdown.cancelled().await;
                break;
            }
            Err(err) => {
                tracing::warn!(error = %err, "jobs could not be claimed");
                Vec::new()
            }
        };
        let nothing_due = claimed.is_empty();
        for job in claimed {
            let Some(slot) = free.split(1) else { break };
            start(&runner, worker_id, job, slot, &tries);
        }
        drop(free);
        if nothing_due {
            wait(&runner, &kinds).await;
        }
    }
    Ok(())
}

/// Every slot that is free, at least one; `None` when the process stops.
async fn free_slots(runner: &Runner, slots: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    let mut free = tokio::select! {
        () = runner.process.shutdown.cancelled() => return None,
        slot = Arc::clone(slots).acquire_owned() => slot.ok()?,
    };
    while let Ok(more) = Arc::clone(slots).try_acquire_owned() {
        free.merge(more);
    }
    Some(free)
}

async fn claim(runner: &Runner, worker_id: Uuid, kinds: &[String], limit: usize) -> sqlx::Result<Vec<Claimed>> {
    let mut tx = runner.db.begin().await?;
    let claimed = store::claim(&mut tx, worker_id, kinds, limit, runner.settings.lease).await?;
    tx.commit().await?;
    Ok(claimed)
}

async fn wait(runner: &Runner, kinds: &[String]) {
    let due = async {
        let mut conn = runner.db.acquire().await?;
        store::next_due(&mut conn, kinds).await
    };
    let pause = match due.await {
        // A lane may be busy: what is due now is not claimed before that job ends, and its end wakes.
        Ok(Some(due)) if due > Duration::ZERO => due.min(LOOK_EVERY),
        _ => LOOK_EVERY,
    };
    tokio::select! {
        () = runner.process.shutdown.cancelled() => {}
        () = runner.db.job_waker().wait_local() => {}
        () = tokio::time::sleep(pause) => {}
    }
}

fn start(runner: &Arc<Runner>, worker_id: Uuid, job: Claimed, slot: OwnedSemaphorePermit, tries: &Arc<Tries>) {
    // The runner claims only kinds it knows.
    let Some(handler) = runner.registry.get(&job.kind).cloned() else {
        return;
    };
    let span = tracing::info_span!(
        "job", job.kind, job.id = %job.id, project.id = %job.project, job.attempt = job.attempt
    );
    if let Some(traceparent) = &job.traceparent {
        telemetry::link(&span, traceparent);
    }
    let (id, in_lane) = (job.id.0, job.lane.is_some());
    let kek = job.encrypted_kek.as_deref().and_then(|sealed| match runner.queue.keys().open(job.project, sealed) {
        Ok(kek) => Some(Arc::new(kek)),
        Err(err) => {
            tracing::error!(job.id = %job.id, error = %err, "the key that a job was given does not open");
            None
        }
    });
    let encryption = ProjectEncryption { project: job.project, format: StorageFormat::from_flag(kek.is_some()), kek };
    let running = RunningJob { id: job.id, encryption, attempt: job.attempt, worker_id, completed: false.into() };
    let running = Arc::new(running);
    let (runner_, tries_, running_) = (Arc::clone(runner), Arc::clone(tries), Arc::clone(&running));
    let task = async move {
        try_job(&runner_, running_, job, &handler).await;
        tries_.change(|running| running.remove(&id));
        drop(slot);
        if in_lane {
            // The next one of its lane may run now.
            runner_.db.job_waker().wake_local();
        }
    };
    // Registered before the task can end, as both happen under the lock.
    tries.change(|all| {
        all.insert(id, (runner.process.background_tasks.spawn(task.instrument(span)).abort_handle(), running))
    });
}

/// One try, and what becomes of the job after it.
async fn try_job(runner: &Runner, running: Arc<RunningJob>, job: Claimed, handler: &RegisteredHandler) {
    let worker_id = running.worker_id;
    let work = AssertUnwindSafe((handler.run)(job.payload, running)).catch_unwind();
    let outcome = tokio::select! {
        outcome = tokio::time::timeout(handler.timeout, work) => match outcome {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(JobError::Retry(anyhow::anyhow!("the job panicked"))),
            Err(_) => Err(JobError::Retry(anyhow::anyhow!("the job took longer than {:?}", handler.timeout))),
        },
        () = runner.process.hard_stop.cancelled() => {
            give_back(runner, worker_id, job.id).await;
            return;
        }
    };
    let settled = match outcome {
        Ok(()) => {
            tracing::debug!("job done");
            settle_done(runner, worker_id, job.id).await
        }
        Err(JobError::Retry(err) | JobError::Permanent(err)) if err.is::<LeaseLost>() => {
            tracing::warn!("the job's lease was lost; another process has it");
            Ok(())
        }
        Err(JobError::Retry(err)) => {
            settle_failed(runner, worker_id, job.id, retry_after(job.attempt, handler), &err).await
        }
        Err(JobError::Permanent(err)) => settle_failed(runner, worker_id, job.id, None, &err).await,
        Err(JobError::Snooze(wait_reason, error, delay)) => {
            let lacked_key = wait_reason == WaitReason::Key && job.encrypted_kek.is_none();
            let error = format!("{error:#}");
            let snooze = requeue::Requeue { wait_reason: Some(wait_reason), lacked_key, delay, error: Some(&error) };
            requeue_unspent(runner, worker_id, job.id, &snooze).await
        }
    };
    if let Err(err) = settled {
        tracing::warn!(error = %err, "the end of a job could not be written; its lease will run out");
    }
}

async fn settle_done(runner: &Runner, worker_id: Uuid, job: JobId) -> sqlx::Result<()> {
    let mut conn = runner.db.acquire().await?;
    // False if the job has completed itself in its own transaction.
    store::delete(&mut conn, job, worker_id).await.map(drop)
}

async fn settle_failed(
    runner: &Runner,
    worker_id: Uuid,
    job: JobId,
    retry: Option<Duration>,
    err: &anyhow::Error,
) -> sqlx::Result<()> {
    if let Some(pause) = retry {
        tracing::warn!(error = format!("{err:#}"), ?pause, "job failed, will be tried again");
    } else {
        tracing::error!(error = format!("{err:#}"), "job failed for good");
    }
    give_up_or_retry(runner, worker_id, job, retry, &format!("{err:#}")).await
}

/// Writes a failure down. An equal job may come between the look for one and the write; then once more.
async fn give_up_or_retry(
    runner: &Runner,
    worker_id: Uuid,
    job: JobId,
    retry: Option<Duration>,
    reason: &str,
) -> sqlx::Result<()> {
    let write = async || {
        let mut tx = runner.db.begin().await?;
        requeue::fail(&mut tx, job, worker_id, retry, reason).await?;
        tx.commit().await
    };
    match write().await {
        Err(sqlx::Error::Database(err)) if err.constraint() == Some("jobs_dedupe_key_idx") => write().await,
        other => other,
    }
}

/// Returns a job to the queue; its attempt does not count.
async fn requeue_unspent(
    runner: &Runner,
    worker_id: Uuid,
    job: JobId,
    requeue: &requeue::Requeue<'_>,
) -> sqlx::Result<()> {
    let mut tx = runner.db.begin().await?;
    requeue::requeue_unspent(&mut tx, job, worker_id, requeue).await?;
    tx.commit().await
}

async fn give_back(runner: &Runner, worker_id: Uuid, job: JobId) {
    if let Err(err) = requeue_unspent(runner, worker_id, job, &requeue::Requeue::default()).await {
        tracing::warn!(error = %err, "a job could not be handed back; its lease will run out");
    }
}

/// Moves the leases of what runs here, and ends tries whose lease another process has taken over.
async fn heartbeat(runner: Arc<Runner>, worker_id: Uuid, tries: Arc<Tries>) {
    let mut timer = tokio::time::interval(runner.settings.lease / 3);
    let mut stopping = false;
    loop {
        tokio::select! {
            () = runner.process.hard_stop.cancelled() => return,
            () = runner.process.shutdown.cancelled(), if !stopping => {
                stopping = true;
                timer = tokio::time::interval(WHILE_STOPPING);
            }
            _ = timer.tick() => {}
        }
        if stopping && tries.change(|running| running.is_empty()) {
            return;
        }
        let leased = |running: &mut HashMap<Uuid, (AbortHandle, Arc<RunningJob>)>| {
            running.iter().filter(|(_, (_, job))| !job.is_completed()).map(|(id, _)| *id).collect()
        };
        let running: Vec<Uuid> = tries.change(leased);
        if running.is_empty() {
            continue;
        }
        let kept = async {
            let mut conn = runner.db.acquire().await?;
            store::extend(&mut conn, worker_id, &running, runner.settings.lease).await
        };
        match kept.await {
            Ok(kept) => tries.change(|now| {
                for lost in running.iter().filter(|id| !kept.contains(id)) {
                    // One that has just completed or ended has no lease to lose.
                    if now.get(lost).is_some_and(|(_, job)| !job.is_completed())
                        && let Some((handle, _)) = now.remove(lost)
                    {
                        handle.abort();
                    }
                }
            }),
            Err(err) => tracing::warn!(error = %err, "the leases of running jobs could not be moved"),
        }
    }
}
