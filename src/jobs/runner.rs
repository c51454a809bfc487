//! The job runner: claims jobs and runs them concurrently, up to the configured limit.
//!
//! The loop of [`run`] has three steps, in this order:
//! 1. It waits for a free permit.
//! 2. It claims jobs, up to one for each free permit.
//! 3. If it has claimed no job, it waits for a notification, the next due time or the poll interval, whichever comes first.
//!    A notification that arrives after step 2 is not lost, because it ends this wait immediately.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tracing::Instrument;
use uuid::Uuid;

use super::outcome::{self, FailedAttempt};
use super::registry::{JobKinds, RegisteredHandler};
use super::requeue::{self, JobFailure};
use super::store::{self, Claim, ClaimRequest, ClaimedJob};
use super::{JobError, JobQueue, JobRegistry, LeaseLost, RunningJob, WaitReason};
use crate::config::Jobs;
use crate::db::Db;
use crate::ids::JobId;
use crate::process::Process;
use crate::telemetry;
use crate::time::Timestamp;

/// The handles and settings of the job runner.
pub struct Runner {
    pub db: Db,
    pub queue: JobQueue,
    pub registry: JobRegistry,
    pub process: Process,
    pub settings: Jobs,
    /// The maximum number of jobs of one project that call a language model and run at a time, in all processes.
    pub max_model_jobs_per_project: usize,
    /// The maximum number of jobs that call a language model and run at a time in this process: that of concurrent requests to
    /// the model, so that no job waits for the requests of others while its time runs.
    pub max_model_jobs: usize,
}

/// The interval at which to poll for due jobs. Only polling finds jobs whose notification was lost.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The interval at which the heartbeat checks during shutdown whether all jobs have ended.
const SHUTDOWN_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The time limit for [`JobHandler::undo`](super::JobHandler::undo). It is shorter than the time that shutdown leaves to aborted
/// jobs.
const UNDO_TIMEOUT: Duration = Duration::from_secs(2);

/// Running jobs by id, with the handles that abort their attempts.
type RunningJobMap = HashMap<Uuid, (AbortHandle, Arc<RunningJob>)>;

/// The jobs that this worker runs.
#[derive(Default)]
struct RunningJobs(Mutex<RunningJobMap>);

impl RunningJobs {
    fn with_lock<T>(&self, access: impl FnOnce(&mut RunningJobMap) -> T) -> T {
        access(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Claims and runs jobs until shutdown begins. Shutdown then waits for the running jobs.
///
/// # Errors
/// Never returns an error; all components have this signature.
pub async fn run(runner: Arc<Runner>) -> anyhow::Result<()> {
    let permits = Arc::new(Semaphore::new(runner.settings.concurrency));
    let model_permits = Arc::new(Semaphore::new(runner.max_model_jobs));
    let worker_id = Uuid::now_v7();
    let running_jobs = Arc::new(RunningJobs::default());
    runner.process.background_tasks.spawn(heartbeat(Arc::clone(&runner), worker_id, Arc::clone(&running_jobs)));
    let kinds = runner.registry.kinds();
    while !runner.process.shutdown.is_cancelled() {
        let Some(mut free) = acquire_free_permits(&runner, &permits).await else {
            break;
        };
        let (claimed, claimed_at) = match claim(&runner, worker_id, &kinds, (&free, &model_permits)).await {
            Ok(Claim { jobs, claimed_at }) => (jobs, Some(claimed_at)),
            // The pool is closed: by the shutdown, or because connections share a server session (see `db::pooler`). No job
            // can be claimed anymore.
            Err(_) if runner.db.is_closed() => {
                runner.process.shutdown.cancelled().await;
                break;
            }
            Err(err) => {
                tracing::warn!(error = %err, "failed to claim jobs");
                (Vec::new(), None)
            }
        };
        let none_claimed = claimed.is_empty();
        for job in claimed {
            let Some(permit) = free.split(1) else { break };
            let calls_model = kinds.calling_model.contains(&job.kind);
            // A permit is free, because only this loop acquires them.
            let model_permit = if calls_model { Arc::clone(&model_permits).try_acquire_owned().ok() } else { None };
            spawn_attempt(&runner, worker_id, job, (permit, model_permit), &running_jobs);
        }
        drop(free);
        if none_claimed {
            wait_for_due_job(&runner, &kinds, claimed_at).await;
        }
    }
    Ok(())
}

/// Waits for a free permit and returns it together with all others that are free; `None` if shutdown begins.
async fn acquire_free_permits(runner: &Runner, permits: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    let mut free = tokio::select! {
        () = runner.process.shutdown.cancelled() => return None,
        permit = Arc::clone(permits).acquire_owned() => permit.ok()?,
    };
    while let Ok(more) = Arc::clone(permits).try_acquire_owned() {
        free.merge(more);
    }
    Some(free)
}

/// Claims a job for each free permit, and no more jobs that call a model than there are free permits for these.
async fn claim(
    runner: &Runner,
    worker_id: Uuid,
    kinds: &JobKinds,
    (free, model_permits): (&OwnedSemaphorePermit, &Semaphore),
) -> sqlx::Result<Claim> {
    let mut tx = runner.db.begin().await?;
    let request = ClaimRequest {
        kinds,
        limit: free.num_permits(),
        max_model_jobs_per_project: runner.max_model_jobs_per_project,
        max_new_model_jobs: model_permits.available_permits(),
        lease: runner.settings.lease,
    };
    let claim = store::claim(&mut tx, worker_id, &request).await?;
    tx.commit().await?;
    Ok(claim)
}

/// Waits for a notification, the next due time or the poll interval, whichever comes first. The jobs that were due at the last
/// claim, `claimed_at`, wait for a running job of their lane, their project or this process, whose end wakes the runner.
async fn wait_for_due_job(runner: &Runner, kinds: &JobKinds, claimed_at: Option<Timestamp>) {
    let until_due = async {
        let Some(claimed_at) = claimed_at else { return Ok(None) };
        let mut conn = runner.db.acquire().await?;
        store::time_until_due(&mut conn, &kinds.all(), claimed_at).await
    };
    // The next claim fails and logs the error if the database is unavailable.
    let until_due = until_due.await.ok().flatten();
    let delay = until_due.map_or(POLL_INTERVAL, |until_due| until_due.min(POLL_INTERVAL));
    tokio::select! {
        () = runner.process.shutdown.cancelled() => {}
        () = runner.db.job_waker().wait_local() => {}
        () = tokio::time::sleep(delay) => {}
    }
}

/// Spawns an attempt of a claimed job. The permits are released when the attempt ends.
fn spawn_attempt(
    runner: &Arc<Runner>,
    worker_id: Uuid,
    job: ClaimedJob,
    permits: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
    running_jobs: &Arc<RunningJobs>,
) {
    // The handler exists, because the runner claims only jobs of registered kinds.
    let Some(handler) = runner.registry.get(&job.kind).cloned() else {
        return;
    };
    let span = tracing::info_span!(
        "job", job.kind, job.id = %job.id, project.id = %job.project, job.attempt = job.attempt
    );
    if let Some(traceparent) = &job.traceparent {
        telemetry::add_span_link(&span, traceparent);
    }
    let (id, may_unblock_others) = (job.id.0, job.lane.is_some() || handler.calls_model);
    let encryption = runner.queue.unwrap_kek(job.id, job.project, job.encrypted_kek.as_deref());
    let attempt = job.attempt.into();
    let running = Arc::new(RunningJob { id: job.id, encryption, attempt, worker_id, completed: false.into() });
    let attempt = {
        let (runner, running_jobs, running) = (Arc::clone(runner), Arc::clone(running_jobs), Arc::clone(&running));
        async move {
            run_attempt(&runner, running, job, &handler).await;
            running_jobs.with_lock(|jobs| jobs.remove(&id));
            drop(permits);
            if may_unblock_others {
                // Wakes the runner, because the next job of the lane, or the next one that calls a model, can run now.
                runner.db.job_waker().wake_local();
            }
        }
    };
    // The attempt is spawned under the lock, so that it cannot remove its entry from the map before the entry is inserted.
    running_jobs.with_lock(|jobs| {
        jobs.insert(id, (runner.process.background_tasks.spawn(attempt.instrument(span)).abort_handle(), running))
    });
}

/// Runs one attempt and records its outcome. If shutdown aborts the attempt, releases the job.
async fn run_attempt(runner: &Runner, running: Arc<RunningJob>, job: ClaimedJob, handler: &RegisteredHandler) {
    let worker_id = running.worker_id;
    let work = AssertUnwindSafe((handler.run)(job.payload.clone(), Arc::clone(&running))).catch_unwind();
    let outcome = tokio::select! {
        outcome = tokio::time::timeout(handler.timeout, work) => match outcome {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(_)) => Err(Some(JobError::Retry(anyhow::anyhow!("the job panicked")))),
            Err(_) => Err(Some(JobError::timed_out(handler.timeout))),
        },
        () = runner.process.abort.cancelled() => Err(None),
    };
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(interruption) => {
            let backoff = outcome::backoff_after(running.attempt(), handler);
            if interruption.is_none() || backoff.is_some() {
                undo(handler, job.payload.clone(), Arc::clone(&running)).await;
            }
            let Some(error) = interruption else { return release(runner, worker_id, job.id).await };
            Err(error)
        }
    };
    let (kind, payload, encryption) = (job.kind.as_str(), &job.payload, &running.encryption);
    let failed = FailedAttempt { job: job.id, kind, payload, encryption, worker_id };
    let recorded = match outcome {
        Ok(()) => {
            tracing::debug!(job.id = %job.id, job.kind, "job completed");
            complete_job(runner, worker_id, job.id).await.map_err(Into::into)
        }
        Err(JobError::Retry(err) | JobError::Permanent(err)) if err.is::<LeaseLost>() => {
            tracing::warn!(job.id = %job.id, job.kind, "job lease lost; the job was reclaimed");
            Ok(())
        }
        Err(JobError::Retry(err)) => {
            let backoff = outcome::backoff_after(running.attempt(), handler);
            outcome::log_and_record_failure(&runner.db, handler, &failed, backoff, &err).await
        }
        Err(JobError::Permanent(err)) => {
            outcome::log_and_record_failure(&runner.db, handler, &failed, None, &err).await
        }
        Err(JobError::Snooze(wait_reason, error, delay)) => {
            let lacked_key = wait_reason == WaitReason::Key && job.encrypted_kek.is_none();
            let message = format!("{error:#}");
            tracing::debug!(job.id = %job.id, job.kind, reason = message, "job snoozed");
            let error = wait_reason.error_class().map(|class| JobFailure { class, message: &message });
            let clears_error = error.is_none();
            let snooze = requeue::Requeue { wait_reason: Some(wait_reason), lacked_key, delay, error, clears_error };
            outcome::requeue_uncounted(&runner.db, job.id, worker_id, &snooze).await.map_err(Into::into)
        }
    };
    if let Err(err) = recorded {
        tracing::warn!(
            job.id = %job.id, job.kind, error = %err,
            "failed to record the job's outcome; the job runs again when its lease expires"
        );
    }
}

async fn complete_job(runner: &Runner, worker_id: Uuid, job: JobId) -> sqlx::Result<()> {
    let mut conn = runner.db.acquire().await?;
    // `store::complete` returns `false` if the handler has completed the job in its own transaction.
    store::complete(&mut conn, job, worker_id).await.map(drop)
}

/// Reverts the changes that an interrupted attempt has stored for its own duration. An error is only logged, because the next
/// attempt reverts the same changes.
async fn undo(handler: &RegisteredHandler, payload: serde_json::Value, running: Arc<RunningJob>) {
    let job = running.id;
    let error = match tokio::time::timeout(UNDO_TIMEOUT, (handler.undo)(payload, running)).await {
        Ok(Ok(())) => return,
        Ok(Err(JobError::Retry(err) | JobError::Permanent(err) | JobError::Snooze(_, err, _))) => err,
        Err(elapsed) => elapsed.into(),
    };
    tracing::warn!(
        job.id = %job, error = format!("{error:#}"),
        "failed to revert the changes of an interrupted attempt; the next attempt reverts them"
    );
}

/// Releases a job: makes it due immediately, so that another worker can run it.
async fn release(runner: &Runner, worker_id: Uuid, job: JobId) {
    if let Err(err) = outcome::requeue_uncounted(&runner.db, job, worker_id, &requeue::Requeue::default()).await {
        tracing::warn!(
            job.id = %job, error = %err,
            "failed to release a job at shutdown; the job runs again when its lease expires"
        );
    }
}

/// Renews the leases of this worker's running jobs, and aborts attempts that have lost their lease. Ends when shutdown has
/// begun and no job is running, or when the process aborts.
async fn heartbeat(runner: Arc<Runner>, worker_id: Uuid, running_jobs: Arc<RunningJobs>) {
    let mut timer = tokio::time::interval(runner.settings.lease / 3);
    let mut is_shutting_down = false;
    loop {
        tokio::select! {
            () = runner.process.abort.cancelled() => return,
            () = runner.process.shutdown.cancelled(), if !is_shutting_down => {
                is_shutting_down = true;
                timer = tokio::time::interval(SHUTDOWN_POLL_INTERVAL);
            }
            _ = timer.tick() => {}
        }
        if is_shutting_down && running_jobs.with_lock(|jobs| jobs.is_empty()) {
            return;
        }
        let leased_ids = |jobs: &mut RunningJobMap| {
            jobs.iter().filter(|(_, (_, job))| !job.is_completed()).map(|(id, _)| *id).collect()
        };
        let leased: Vec<Uuid> = running_jobs.with_lock(leased_ids);
        if leased.is_empty() {
            continue;
        }
        let renewal = async {
            let mut conn = runner.db.acquire().await?;
            store::renew_leases(&mut conn, worker_id, &leased, runner.settings.lease).await
        };
        match renewal.await {
            Ok(owned) => running_jobs.with_lock(|jobs| {
                for lost in leased.iter().filter(|id| !owned.contains(id)) {
                    // A job that has completed or ended in the meantime has not lost its lease.
                    if jobs.get(lost).is_some_and(|(_, job)| !job.is_completed())
                        && let Some((handle, _)) = jobs.remove(lost)
                    {
                        handle.abort();
                    }
                }
            }),
            Err(err) => tracing::warn!(error = %err, "failed to renew job leases"),
        }
    }
}
