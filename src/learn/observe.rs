//! The job that looks at the messages of a session: batch after batch, oldest first, until none waits.
//!
//! A session has one such job at most. Whoever stores a message leaves one if there is none (`sessions.has_observe_job`), due when
//! the message has waited long enough, or at once when enough wait. The job ends in the transaction that finds nothing left
//! to do, under the session's lock; so no message can be stored in between and be forgotten.

use std::time::Duration;

use uuid::Uuid;

use super::Learn;
use super::queue::Observe;
use super::settings;
use crate::encryption::{ProjectEncryption, frame};
use crate::error::Result;
use crate::ids::SessionId;
use crate::jobs::{Delay, JobError, JobHandler, RunningJob, WaitReason};
use crate::llm::{ChatRequest, LlmError, Message, ToolChoice};
use crate::messages::ProcessStatus;
use crate::messages::observing::{self, MessageContent};
use crate::sessions::lock::LockedSession;
use crate::{sessions, usage_metrics};

/// The maximum length of a response of the model, in tokens.
const MAX_TOKENS: u32 = 1024;

/// How soon to look again whether there is a model.
const NO_MODEL: Duration = Duration::from_hours(24);

impl JobHandler for Observe {
    type Context = Learn;

    const TIMEOUT: Duration = Duration::from_mins(10);
    const MAX_ATTEMPTS: i32 = 5;

    async fn run(self, ctx: &Learn, running: &RunningJob) -> Result<(), JobError> {
        reset_running(ctx, &running.encryption, self.session).await?;
        while let Some(batch) = claim_batch(ctx, self.session, running).await? {
            let outcome = look_at(ctx, &running.encryption, &batch).await;
            settle(ctx, self.session, &batch, outcome, running).await?;
            ctx.observation_finished.notify_waiters();
        }
        ctx.observation_finished.notify_waiters();
        Ok(())
    }
}

/// Makes messages pending again that were claimed by an attempt whose process died. The lane ensures that no other job works on them.
async fn reset_running(ctx: &Learn, encryption: &ProjectEncryption, session: SessionId) -> Result<(), JobError> {
    let mut tx = ctx.db.begin().await?;
    if let Some(mut session) = LockedSession::lock(&mut tx, encryption.project, session).await? {
        observing::set_status(&mut session, None, ProcessStatus::Running, ProcessStatus::Pending).await?;
    }
    tx.commit().await?;
    Ok(())
}

/// Claims the next batch. `None` if no message is pending; the job has completed then.
async fn claim_batch(ctx: &Learn, session: SessionId, running: &RunningJob) -> Result<Option<Vec<Uuid>>, JobError> {
    let mut tx = ctx.db.begin().await?;
    let project = running.encryption.project;
    let Some(mut session) = LockedSession::lock(&mut tx, project, session).await? else {
        return Ok(None);
    };
    if usage_metrics::store::is_excess(&mut session, project, usage_metrics::store::TASKS).await? {
        observing::set_status(&mut session, None, ProcessStatus::Pending, ProcessStatus::LimitExceeded).await?;
    }
    let limits = settings::load_observe_limits(&mut session, project).await?;
    let defaults = &ctx.config.learning;
    let turns = limits.turns.unwrap_or(i64::try_from(defaults.buffer_turns)?).max(1);
    let overflow = limits.overflow.unwrap_or(defaults.buffer_overflow.into()).max(0);
    let batch = observing::claim_batch(&mut session, turns.saturating_add(overflow)).await?;
    if batch.is_empty() {
        sessions::store::set_has_observe_job(&mut session, false).await?;
        running.complete(&mut session).await?;
        tx.commit().await?;
        return Ok(None);
    }
    if running.encryption.kek.is_none() && observing::has_encrypted(&mut session, &batch).await? {
        // As below.
        return Err(JobError::awaiting_key());
    }
    if !ctx.llm.is_configured() {
        // The messages were not taken: this is rolled back.
        return Err(JobError::Snooze(WaitReason::Model, LlmError::NotConfigured.into(), NO_MODEL));
    }
    tx.commit().await?;
    Ok(Some(batch))
}

/// Asks the model about a batch.
async fn look_at(ctx: &Learn, encryption: &ProjectEncryption, batch: &[Uuid]) -> Result<(), Fault> {
    let mut conn = ctx.db.acquire().await.map_err(Fault::again)?;
    let said = observing::load_messages(&mut conn, batch).await.map_err(Fault::again)?;
    drop(conn);
    let mut lines = Vec::with_capacity(said.len());
    for MessageContent { id, role, content, encrypted_as, .. } in said {
        let content = match encrypted_as {
            Some(of) => frame::open(encryption.decryption_key().map_err(Fault::again)?, of, content),
            None => Ok(content),
        };
        match content {
            Ok(content) => lines.push(format!("{role}: {}", String::from_utf8_lossy(&content))),
            Err(err) => tracing::error!(message.id = %id, error = %err, "a message does not open"),
        }
    }
    let request = ChatRequest {
        system: "You read what an agent and its user say to each other.",
        messages: &[Message::User(lines.join("\n"))],
        tools: &[],
        tool_choice: ToolChoice::None,
        max_tokens: MAX_TOKENS,
    };
    match ctx.llm.chat(&request).await {
        Ok(_) => Ok(()),
        Err(error) => Err(Fault { is_final: !error.is_retryable(), reason: error.into() }),
    }
}

struct Fault {
    reason: anyhow::Error,
    /// Another try would not do better.
    is_final: bool,
}

impl Fault {
    fn again(reason: impl Into<anyhow::Error>) -> Self {
        Self { reason: reason.into(), is_final: false }
    }
}

/// Writes down what became of a batch.
async fn settle(
    ctx: &Learn,
    session: SessionId,
    batch: &[Uuid],
    outcome: Result<(), Fault>,
    running: &RunningJob,
) -> Result<(), JobError> {
    let mut tx = ctx.db.begin().await?;
    let Some(mut locked) = LockedSession::lock(&mut tx, running.encryption.project, session).await? else {
        return Ok(());
    };
    let Err(Fault { reason, is_final }) = outcome else {
        observing::set_status(&mut locked, Some(batch), ProcessStatus::Running, ProcessStatus::Success).await?;
        tx.commit().await?;
        return Ok(());
    };
    let is_last = is_final || running.attempt >= Observe::MAX_ATTEMPTS;
    let status = if is_last { ProcessStatus::Failed } else { ProcessStatus::Pending };
    observing::set_status(&mut locked, Some(batch), ProcessStatus::Running, status).await?;
    if is_last {
        // Messages that were stored in the meantime get another job.
        if observing::count_pending_messages(&mut locked, session, None).await? > 0 {
            let delay = Delay::from_duration(ctx.config.learning.buffer_ttl);
            observing::enqueue_job(&mut locked, &ctx.queue, &running.encryption, delay).await?;
        } else {
            sessions::store::set_has_observe_job(&mut locked, false).await?;
        }
    }
    tx.commit().await?;
    ctx.observation_finished.notify_waiters();
    let reason = reason.context("LLM complete failed");
    Err(if is_final { JobError::Permanent(reason) } else { JobError::Retry(reason) })
}

/// Enqueues a job for sessions whose messages are pending without one, whatever happened to it, and makes jobs due that wait for a
/// model, now that there is one. Does nothing without a model. Periodic.
///
/// # Errors
/// The database fails.
pub async fn enqueue_missed(ctx: Learn) -> Result<()> {
    if !ctx.llm.is_configured() {
        return Ok(());
    }
    let mut conn = ctx.db.acquire().await?;
    let missed = observing::list_missed(&mut conn, 1_000).await?;
    drop(conn);
    let mut tx = ctx.db.begin_statement().await?;
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
