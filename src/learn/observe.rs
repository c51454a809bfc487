//! The job that observes the messages of a session in batches, oldest first, until none is pending.
//!
//! The statement that stores a message enqueues the job if the session has none (`sessions.has_observe_job`). The job is due
//! when the message has been pending for the TTL of the observation buffer, or immediately if enough messages are pending.
//! The job completes in the transaction that finds no pending message. This transaction holds the session's lock, so that no
//! message can be stored in between and be missed.

use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::Learn;
use super::attempt_error::{self, AttemptError};
use super::batch::{self, Batch};
use super::jobs::Observe;
use super::settings::{self, ObservationSettings};
use super::task_agent::{self, CallParameters, TaskAgentResult};
use crate::db::Tx;
use crate::encryption::ProjectEncryption;
use crate::error::Result;
use crate::ids::SessionId;
use crate::jobs::{Delay, JobError, JobHandler, RunningJob, WaitReason};
use crate::llm::Purpose;
use crate::llm::agent::AgentOutcome;
use crate::messages::ProcessStatus;
use crate::messages::observing;
use crate::sessions::lock::LockedSession;
use crate::{sessions, usage_metrics};

/// The time for the model calls for one batch.
const BATCH_TIMEOUT: Duration = Duration::from_mins(15);
/// The time after which a job that has observed a batch lets the jobs of other sessions run. Together with the time for another
/// batch ([`BATCH_TIMEOUT`]) it must be shorter than the timeout of an attempt.
const TIME_SLICE: Duration = Duration::from_mins(4);

impl JobHandler for Observe {
    type Context = Learn;

    const TIMEOUT: Duration = Duration::from_mins(20);
    const MAX_ATTEMPTS: i32 = 5;
    const CALLS_MODEL: bool = true;

    async fn run(self, ctx: &Learn, running: &RunningJob) -> Result<(), JobError> {
        let started_at = Instant::now();
        reset_claimed_messages(ctx, self.session, running).await?;
        while let Some(claimed) = claim_batch(ctx, self.session, running).await? {
            let outcome = observe_batch(ctx, &running.encryption, self.session, &claimed).await;
            record_outcome(ctx, self.session, &claimed.messages, outcome, running).await?;
            ctx.observation_finished.notify_waiters();
            if started_at.elapsed() > TIME_SLICE {
                let reason =
                    anyhow::anyhow!("the attempt has used its time slice; the next attempt continues the observation");
                return Err(JobError::Snooze(WaitReason::TimeSlice, reason, Duration::ZERO));
            }
        }
        ctx.observation_finished.notify_waiters();
        Ok(())
    }

    async fn undo(self, ctx: &Learn, running: &RunningJob) -> Result<(), JobError> {
        reset_claimed_messages(ctx, self.session, running).await
    }

    async fn abandon(self, ctx: &Learn, encryption: &ProjectEncryption, tx: &mut Tx) -> Result<bool, JobError> {
        let Some(mut session) = LockedSession::lock(tx, encryption.project, self.session).await? else {
            return Ok(false);
        };
        observing::set_status(&mut session, None, ProcessStatus::Running, ProcessStatus::Failed).await?;
        enqueue_successor(ctx, encryption, &mut session).await?;
        Ok(true)
    }
}

/// Makes messages pending again that this or an earlier attempt has claimed but not finished, for example because shutdown has
/// aborted it or its process died. The lane ensures that no other job is processing them.
async fn reset_claimed_messages(ctx: &Learn, session: SessionId, running: &RunningJob) -> Result<(), JobError> {
    let mut tx = ctx.db.begin().await?;
    if let Some(mut session) = LockedSession::lock(&mut tx, running.encryption.project, session).await? {
        observing::set_status(&mut session, None, ProcessStatus::Running, ProcessStatus::Pending).await?;
        running.ensure_owned(&mut session).await?;
    }
    tx.commit().await?;
    Ok(())
}

/// A batch of messages that this job has claimed.
struct ClaimedBatch {
    messages: Vec<Uuid>,
    settings: ObservationSettings,
}

/// Claims the next batch of pending messages. If the project is over its task quota, sets the status of all pending messages to
/// `limit_exceed` instead. If no message is pending afterwards, completes the job and returns `None`. Also returns `None` if the
/// session does not exist anymore.
///
/// # Errors
/// Returns [`JobError::Snooze`] if the master key for an encrypted message is missing, or if no model is configured.
async fn claim_batch(ctx: &Learn, session: SessionId, running: &RunningJob) -> Result<Option<ClaimedBatch>, JobError> {
    let mut tx = ctx.db.begin().await?;
    let project = running.encryption.project;
    let Some(mut session) = LockedSession::lock(&mut tx, project, session).await? else {
        tracing::info!(session.id = %session, reason = "the session was deleted", "observation discarded");
        return Ok(None);
    };
    if usage_metrics::store::is_over_quota(&mut session, project, usage_metrics::store::TASK_QUOTA_TAG).await? {
        observing::set_status(&mut session, None, ProcessStatus::Pending, ProcessStatus::LimitExceeded).await?;
    }
    let settings = settings::load(&mut session, project).await?;
    let messages = observing::claim_batch(&mut session, settings.batch_size(&ctx.config.learning)).await?;
    if messages.is_empty() {
        sessions::store::set_has_observe_job(&mut session, false).await?;
        running.complete(&mut session).await?;
        tx.commit().await?;
        return Ok(None);
    }
    if running.encryption.kek.is_none() && observing::has_encrypted(&mut session, &messages).await? {
        // The claim is rolled back, so the messages stay pending.
        return Err(JobError::awaiting_key());
    }
    if !ctx.llm.is_configured() {
        // The claim is rolled back, as above.
        return Err(attempt_error::awaiting_model());
    }
    tx.commit().await?;
    Ok(Some(ClaimedBatch { messages, settings }))
}

/// A batch that the task agent has observed.
struct ObservedBatch {
    batch: Batch,
    result: TaskAgentResult,
}

/// Runs the task agent on a batch. Nothing is stored yet.
async fn observe_batch(
    ctx: &Learn,
    encryption: &ProjectEncryption,
    session: SessionId,
    claimed: &ClaimedBatch,
) -> Result<ObservedBatch, AttemptError> {
    let mut conn = ctx.db.acquire().await?;
    let batch = batch::load(&mut conn, encryption, session, &claimed.messages, &claimed.settings).await;
    drop(conn);
    // If the key is missing, which the claim of the batch has ruled out, the messages must become pending again, too.
    let batch = batch.map_err(AttemptError::transient)?;
    let parameters = CallParameters::new(ctx, encryption.project, Purpose::TaskAgent, BATCH_TIMEOUT, None);
    let result = task_agent::run_task_agent(&*ctx.llm, &batch.input, parameters).await?;
    ctx.model_metrics.record_run(parameters.origin.purpose, result.outcome);
    if result.edits.is_empty() {
        check_outcome_without_edits(ctx, session, &result)?;
    }
    Ok(ObservedBatch { batch, result })
}

/// Checks the outcome of a run that has changed nothing. The messages may contain nothing that belongs to a task, so a model that
/// calls no tool has succeeded; a warning names it, because it may be unable to call tools.
///
/// # Errors
/// Returns a permanent error if the model made only mistakes, or if the provider withheld the response.
fn check_outcome_without_edits(ctx: &Learn, session: SessionId, result: &TaskAgentResult) -> Result<(), AttemptError> {
    let model = ctx.llm.model();
    match result.outcome {
        outcome @ (AgentOutcome::OnlyErrors | AgentOutcome::ContentFilter) => {
            Err(AttemptError::without_result(model, outcome))
        }
        AgentOutcome::NoToolCalls if result.iterations == 1 => {
            tracing::warn!(
                session.id = %session, model,
                "the model called no tool: unless the messages contain no task, use a model that supports tool calls"
            );
            Ok(())
        }
        AgentOutcome::NoToolCalls | AgentOutcome::Finished | AgentOutcome::MaxIterations => Ok(()),
    }
}

/// Stores the result of a batch, or the failure of the batch if there is none or it cannot be stored.
///
/// # Errors
/// Returns the error of the batch after it has been recorded, unless the session was deleted, or another error if the database
/// fails.
async fn record_outcome(
    ctx: &Learn,
    session: SessionId,
    messages: &[Uuid],
    outcome: Result<ObservedBatch, AttemptError>,
    running: &RunningJob,
) -> Result<(), JobError> {
    let error = match outcome {
        Ok(observed) => match store_result(ctx, session, messages, &observed, running).await {
            Ok(()) => return Ok(()),
            Err(err) => AttemptError::from(err),
        },
        Err(error) => error,
    };
    let (source, is_permanent) = match error {
        AttemptError::Job(err) => return Err(err),
        AttemptError::Work { source, is_permanent } => (source, is_permanent),
    };
    record_failure(ctx, session, messages, (source, is_permanent), running).await
}

/// Stores the result of a batch and the status of its messages in one transaction. The attempts for the next batch begin again.
async fn store_result(
    ctx: &Learn,
    session: SessionId,
    messages: &[Uuid],
    ObservedBatch { batch, result }: &ObservedBatch,
    running: &RunningJob,
) -> Result<(), JobError> {
    let mut tx = ctx.db.begin().await?;
    let locked = LockedSession::lock_to_store(&mut tx, running.encryption.project, session).await?;
    let Some((format, mut locked)) = locked else { return Ok(()) };
    batch.store(ctx, (&running.encryption, format), &mut locked, &result.edits).await?;
    observing::set_status(&mut locked, Some(messages), ProcessStatus::Running, ProcessStatus::Success).await?;
    running.commit_partial_result(tx).await?;
    tracing::info!(
        session.id = %session, messages = messages.len(), iterations = result.iterations,
        outcome = result.outcome.as_str(), tasks.created = result.edits.created, "messages observed"
    );
    Ok(())
}

/// Sets the status of the messages of a batch that has failed: `pending`, or `failed` if the last attempt has failed. In the
/// second case, marks the job as failed, and enqueues a new one for the messages that are still pending. Does nothing if the
/// session was deleted; the caller then finds no other batch.
///
/// # Errors
/// Returns the error of the batch, unless the session was deleted, or another error if the database fails.
async fn record_failure(
    ctx: &Learn,
    session: SessionId,
    messages: &[Uuid],
    (source, is_permanent): (anyhow::Error, bool),
    running: &RunningJob,
) -> Result<(), JobError> {
    let mut tx = ctx.db.begin().await?;
    let Some(mut locked) = LockedSession::lock(&mut tx, running.encryption.project, session).await? else {
        return Ok(());
    };
    let is_last = is_permanent || running.attempt() >= Observe::MAX_ATTEMPTS;
    let status = if is_last { ProcessStatus::Failed } else { ProcessStatus::Pending };
    observing::set_status(&mut locked, Some(messages), ProcessStatus::Running, status).await?;
    if is_last {
        enqueue_successor(ctx, &running.encryption, &mut locked).await?;
        // A flush that retries the messages must not rely on this job.
        running.fail(&mut locked, &source).await?;
    } else {
        running.ensure_owned(&mut locked).await?;
    }
    tx.commit().await?;
    ctx.observation_finished.notify_waiters();
    Err(if is_permanent { JobError::Permanent(source) } else { JobError::Retry(source) })
}

/// Enqueues a new job for the messages that are still pending when the job of the session is marked as failed.
async fn enqueue_successor(
    ctx: &Learn,
    encryption: &ProjectEncryption,
    session: &mut LockedSession<'_>,
) -> Result<(), JobError> {
    let id = session.id;
    if observing::count_unobserved_messages(session, id, None).await? > 0 {
        // These messages have been pending already, and a flush may wait for them.
        observing::enqueue_job(session, &ctx.queue, encryption, Delay::NONE).await?;
    } else {
        sessions::store::set_has_observe_job(session, false).await?;
    }
    Ok(())
}

/// Enqueues a job for each session that has pending messages but no job. Does nothing if no model is configured. A periodic task
/// calls this function.
///
/// # Errors
/// Returns an error if the database fails.
pub async fn enqueue_missed(ctx: Learn) -> Result<()> {
    if !ctx.llm.is_configured() {
        return Ok(());
    }
    let mut conn = ctx.db.acquire().await?;
    let missed = observing::list_unobserved_sessions(&mut conn, 1_000).await?;
    drop(conn);
    for (project, session) in missed {
        let mut tx = ctx.db.begin().await?;
        if let Some(mut session) = LockedSession::lock(&mut tx, project, session).await? {
            observing::enqueue_job(&mut session, &ctx.queue, &ProjectEncryption::unencrypted(project), Delay::NONE)
                .await?;
        }
        tx.commit().await?;
    }
    Ok(())
}
