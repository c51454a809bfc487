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
use super::jobs::Observe;
use super::settings;
use crate::encryption::{ProjectEncryption, value};
use crate::error::Result;
use crate::ids::SessionId;
use crate::jobs::{Delay, JobError, JobHandler, RunningJob, WaitReason};
use crate::llm::{CallOrigin, ChatMessage, ChatRequest, LlmError, Purpose, ToolChoice};
use crate::messages::ProcessStatus;
use crate::messages::observing::{self, MessageContent};
use crate::sessions::lock::LockedSession;
use crate::{sessions, usage_metrics};

/// The maximum duration of the request for a batch, with all attempts.
const REQUEST_TIMEOUT: Duration = Duration::from_mins(3);

/// The delay before the next attempt if no model is configured.
const RECHECK_INTERVAL: Duration = Duration::from_hours(24);

impl JobHandler for Observe {
    type Context = Learn;

    const TIMEOUT: Duration = Duration::from_mins(10);
    const MAX_ATTEMPTS: i32 = 5;

    async fn run(self, ctx: &Learn, running: &RunningJob) -> Result<(), JobError> {
        reset_claimed_messages(ctx, &running.encryption, self.session).await?;
        while let Some(batch) = claim_batch(ctx, self.session, running).await? {
            let outcome = process_batch(ctx, &running.encryption, &batch).await;
            record_outcome(ctx, self.session, &batch, outcome, running).await?;
            ctx.observation_finished.notify_waiters();
        }
        ctx.observation_finished.notify_waiters();
        Ok(())
    }
}

/// Makes messages pending again that an earlier attempt has claimed but not finished, for example because its process died.
/// The lane ensures that no other job is processing them.
async fn reset_claimed_messages(
    ctx: &Learn,
    encryption: &ProjectEncryption,
    session: SessionId,
) -> Result<(), JobError> {
    let mut tx = ctx.db.begin().await?;
    if let Some(mut session) = LockedSession::lock(&mut tx, encryption.project, session).await? {
        observing::set_status(&mut session, None, ProcessStatus::Running, ProcessStatus::Pending).await?;
    }
    tx.commit().await?;
    Ok(())
}

/// Claims the next batch of pending messages, and returns their ids. If the project is over its task quota, sets the status of
/// all pending messages to `limit_exceed` first. If no message is pending, completes the job and returns `None`. Also returns
/// `None` if the session does not exist anymore.
///
/// # Errors
/// Returns [`JobError::Snooze`] if the master key for an encrypted message is missing, or if no model is configured.
async fn claim_batch(ctx: &Learn, session: SessionId, running: &RunningJob) -> Result<Option<Vec<Uuid>>, JobError> {
    let mut tx = ctx.db.begin().await?;
    let project = running.encryption.project;
    let Some(mut session) = LockedSession::lock(&mut tx, project, session).await? else {
        return Ok(None);
    };
    if usage_metrics::store::is_over_quota(&mut session, project, usage_metrics::store::TASK_QUOTA_TAG).await? {
        observing::set_status(&mut session, None, ProcessStatus::Pending, ProcessStatus::LimitExceeded).await?;
    }
    let settings = settings::load(&mut session, project).await?;
    let batch = observing::claim_batch(&mut session, settings.batch_size(&ctx.config.learning)).await?;
    if batch.is_empty() {
        sessions::store::set_has_observe_job(&mut session, false).await?;
        running.complete(&mut session).await?;
        tx.commit().await?;
        return Ok(None);
    }
    if running.encryption.kek.is_none() && observing::has_encrypted(&mut session, &batch).await? {
        // The claim is rolled back, so the messages stay pending.
        return Err(JobError::awaiting_key());
    }
    if !ctx.llm.is_configured() {
        // The claim is rolled back, as above.
        return Err(JobError::Snooze(WaitReason::Model, LlmError::NotConfigured.into(), RECHECK_INTERVAL));
    }
    tx.commit().await?;
    Ok(Some(batch))
}

/// Sends a batch to the model, without the messages that cannot be decrypted. The response is not used yet.
async fn process_batch(ctx: &Learn, encryption: &ProjectEncryption, batch: &[Uuid]) -> Result<(), BatchError> {
    let mut conn = ctx.db.acquire().await.map_err(BatchError::transient)?;
    let messages = observing::load_messages(&mut conn, batch).await.map_err(BatchError::transient)?;
    drop(conn);
    let mut lines = Vec::with_capacity(messages.len());
    for MessageContent { id, role, content, encrypted_as, .. } in messages {
        let content = match encrypted_as {
            Some(encrypted_as) => {
                let kek = encryption.decryption_key().map_err(BatchError::transient)?;
                value::decrypt(kek, encrypted_as, content)
            }
            None => Ok(content),
        };
        match content {
            Ok(content) => lines.push(format!("{role}: {}", String::from_utf8_lossy(&content))),
            Err(err) => {
                tracing::error!(message.id = %id, error = %err, "failed to decrypt message; the model does not get it");
            }
        }
    }
    let request = ChatRequest {
        system: "You are given a conversation between an agent and its user.",
        messages: &[ChatMessage::User(lines.join("\n"))],
        tools: &[],
        tool_choice: ToolChoice::None,
        max_tokens: ctx.config.model.max_tokens,
        deadline: Instant::now() + REQUEST_TIMEOUT,
        origin: CallOrigin { project: encryption.project, purpose: Purpose::TaskAgent, learning_space: None },
    };
    match ctx.llm.chat(&request).await {
        Ok(_) => Ok(()),
        Err(err) => Err(BatchError { is_permanent: !err.is_retryable(), source: err.into() }),
    }
}

/// The error of a batch that could not be processed.
struct BatchError {
    source: anyhow::Error,
    /// `true` if another attempt would fail too.
    is_permanent: bool,
}

impl BatchError {
    fn transient(source: impl Into<anyhow::Error>) -> Self {
        Self { source: source.into(), is_permanent: false }
    }
}

/// Records the outcome of a batch as the status of its messages. If the last attempt has failed, enqueues a new job for the
/// messages that are still pending.
///
/// # Errors
/// Returns the error of the batch after it has been recorded, or another error if the database fails.
async fn record_outcome(
    ctx: &Learn,
    session: SessionId,
    batch: &[Uuid],
    outcome: Result<(), BatchError>,
    running: &RunningJob,
) -> Result<(), JobError> {
    let mut tx = ctx.db.begin().await?;
    let Some(mut locked) = LockedSession::lock(&mut tx, running.encryption.project, session).await? else {
        return Ok(());
    };
    let Err(BatchError { source, is_permanent }) = outcome else {
        observing::set_status(&mut locked, Some(batch), ProcessStatus::Running, ProcessStatus::Success).await?;
        tx.commit().await?;
        return Ok(());
    };
    let is_last = is_permanent || running.attempt >= Observe::MAX_ATTEMPTS;
    let status = if is_last { ProcessStatus::Failed } else { ProcessStatus::Pending };
    observing::set_status(&mut locked, Some(batch), ProcessStatus::Running, status).await?;
    if is_last {
        if observing::count_unobserved_messages(&mut locked, session, None).await? > 0 {
            let delay = Delay::from_duration(ctx.config.learning.buffer_ttl);
            observing::enqueue_job(&mut locked, &ctx.queue, &running.encryption, delay).await?;
        } else {
            sessions::store::set_has_observe_job(&mut locked, false).await?;
        }
    }
    tx.commit().await?;
    ctx.observation_finished.notify_waiters();
    let error = source.context("LLM complete failed");
    Err(if is_permanent { JobError::Permanent(error) } else { JobError::Retry(error) })
}

/// Enqueues a job for each session that has pending messages but no job, and makes due the jobs that wait for a model. Does
/// nothing if no model is configured. A periodic task calls this function.
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
    let mut tx = ctx.db.begin_autocommit().await?;
    ctx.queue.make_all_due::<Observe>(&mut tx, WaitReason::Model).await?;
    tx.commit().await?;
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
