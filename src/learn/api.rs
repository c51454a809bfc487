//! HTTP handlers that return the observation status of a session and flush it.

use axum::extract::State;
use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;
use tokio::time::Instant;

use super::attempt_error::MODEL_FAILURE;
use super::jobs::Observe;
use super::{Learn, lesson_jobs};
use crate::auth::Caller;
use crate::error::Result;
use crate::http::extract::Path;
use crate::http::idempotency::Idempotency;
use crate::http::response::{self, CommandResult, Data, QueryResult};
use crate::ids::{ProjectId, SessionId};
use crate::jobs::Delay;
use crate::jobs::store::UnfinishedJob;
use crate::llm::{self, LlmError};
use crate::messages::{ProcessStatus, observing};
use crate::process::ChangeWaiter;
use crate::sessions;
use crate::sessions::lock::LockedSession;
use crate::time::Timestamp;

/// The numbers of a session's messages by observation status. A message is not counted if its observation has failed, or if it
/// will not be observed.
#[derive(Serialize, utoipa::ToSchema)]
pub struct ObservingStatus {
    /// Number of observed messages.
    observed: i64,
    /// Number of messages that are being observed.
    in_process: i64,
    /// Number of messages that wait for observation.
    pending: i64,
    /// Time of the response.
    updated_at: Timestamp,
    /// The reason why the pending messages wait for a language model. Absent if no message is pending or a model is configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Get a session's observation status
#[utoipa::path(get, path = "/api/v1/session/{session_id}/observing_status", tag = "session",
    params(("session_id" = SessionId, Path)))]
pub async fn get_observing_status(
    State(ctx): State<Learn>,
    caller: Caller,
    Path(session): Path<SessionId>,
) -> QueryResult<Data<ObservingStatus>> {
    ctx.queue.provide_key_autocommit(&ctx.db, &caller.encryption).await?;
    let mut conn = ctx.db.acquire().await?;
    sessions::store::ensure_owned(&mut conn, caller.project, session).await?;
    let observing::ObservationCounts { observed, in_process, pending } =
        observing::count_by_status(&mut conn, caller.project, session).await?;
    let reason = llm::waiting_reason(&*ctx.llm, pending > 0);
    Ok(response::ok(ObservingStatus { observed, in_process, pending, updated_at: Timestamp(Utc::now()), reason }))
}

/// The result of a flush.
#[derive(Serialize, utoipa::ToSchema)]
pub struct FlushResult {
    /// 200: no message is pending; if the project has exceeded its quota, the messages were not observed. 502: the observation
    /// failed. 503: no model is configured. 504: the flush timed out; the remaining messages are processed in the background.
    status: u16,
    /// Empty if all messages were observed; otherwise the reason, and the number of messages that were not.
    errmsg: String,
}

/// Flush a session
///
/// Observes pending and failed messages, and those that exceeded a quota, and waits for the result. The HTTP status is 200 even
/// if the observation fails; `data.status` contains the outcome. Also distills or writes the failed lessons of the session again,
/// in the background: the response does not wait for them, and the learning status of the session stays `failed`. With an
/// `Idempotency-Key`, the response is stored only if `data.status` is 200, so that a flush with another outcome can be repeated
/// with the same key. Concurrent requests wait for the same job.
#[utoipa::path(post, path = "/api/v1/session/{session_id}/flush", tag = "session",
    params(("session_id" = SessionId, Path)))]
pub async fn flush_session(
    State(ctx): State<Learn>,
    caller: Caller,
    idempotency: Idempotency,
    Path(session): Path<SessionId>,
) -> CommandResult<Data<FlushResult>> {
    idempotency.replay_if_completed().await?;
    let result = flush(&ctx, &caller, session).await?;
    let succeeded = result.status == 200;
    let response = response::ok(result);
    // The response is not stored in the transaction of the flush, so the flush may run twice for one idempotency key. Each
    // message is observed only once nevertheless.
    if succeeded { idempotency.store_response(response).await } else { Ok(response) }
}

async fn flush(ctx: &Learn, caller: &Caller, session: SessionId) -> Result<FlushResult> {
    let deadline = Instant::now() + ctx.config.learning.flush_timeout;
    let mut tx = ctx.db.begin().await?;
    sessions::store::ensure_owned(&mut tx, caller.project, session).await?;
    let locked = LockedSession::lock(&mut tx, caller.project, session).await?;
    let mut locked = locked.ok_or(sessions::SESSION_NOT_FOUND)?;
    let last_message_at = locked.last_message_at;
    ctx.queue.provide_key(&mut locked, &caller.encryption).await?;
    let job = Observe { session };
    if observing::set_status(&mut locked, None, ProcessStatus::Failed, ProcessStatus::Pending).await? > 0 {
        ctx.queue.delete_failed(&mut locked, caller.project, &job).await?;
    }
    observing::set_status(&mut locked, None, ProcessStatus::LimitExceeded, ProcessStatus::Pending).await?;
    lesson_jobs::retry_failed_lessons(&mut locked, &ctx.queue, &caller.encryption).await?;
    let pending = observing::count_unobserved_messages(&mut locked, session, None).await?;
    if pending == 0 {
        tx.commit().await?;
        return Ok(flush_result(200, String::new()));
    }
    if !ctx.llm.is_configured() {
        // The job waits for a model, as that of a message that was stored now.
        let delay = Delay::from_duration(ctx.config.learning.buffer_ttl);
        observing::enqueue_job(&mut locked, &ctx.queue, &caller.encryption, delay).await?;
        tx.commit().await?;
        return Ok(flush_result(
            503,
            format!("{}; {}", LlmError::NotConfigured, with_count(pending, "is pending", "are pending")),
        ));
    }
    // Unlike `enqueue_job`, `make_due` also makes a job in backoff due. A running job will observe the pending messages, too.
    if !ctx.queue.make_due(&mut locked, &job).await? && ctx.queue.find(&mut locked, &job).await?.is_none() {
        observing::enqueue_job(&mut locked, &ctx.queue, &caller.encryption, Delay::NONE).await?;
    }
    tx.commit().await?;
    wait_until_observed(ctx, caller.project, session, last_message_at, deadline).await
}

/// Waits until no message that was stored up to `last_message_at` is pending or being observed, the job is requeued with an
/// error, or the deadline passes.
async fn wait_until_observed(
    ctx: &Learn,
    project: ProjectId,
    session: SessionId,
    last_message_at: Option<DateTime<Utc>>,
    deadline: Instant,
) -> Result<FlushResult> {
    let changes = ChangeWaiter::until(deadline, &ctx.observation_finished);
    loop {
        let change = changes.next();
        let mut conn = ctx.db.acquire().await?;
        let pending = observing::count_unobserved_messages(&mut conn, session, last_message_at).await?;
        if pending == 0 {
            return describe_outcome(ctx, &mut conn, project, session, last_message_at).await;
        }
        let job = ctx.queue.find(&mut conn, &Observe { session }).await?;
        drop(conn);
        if let Some(UnfinishedJob { last_error: Some(last_error) }) = job {
            return Ok(flush_result(
                502,
                format!("{last_error}; {}", with_count(pending, "is still pending", "are still pending")),
            ));
        }
        if changes.is_timed_out() {
            let pending = with_count(pending, "is still pending", "are still pending");
            return Ok(flush_result(504, format!("timed out; {pending} and will be processed in the background")));
        }
        change.await;
    }
}

/// Returns the result of a flush after which no message is pending.
///
/// # Errors
/// Returns an error if the session was deleted in the meantime, or if the database fails.
async fn describe_outcome(
    ctx: &Learn,
    conn: &mut PgConnection,
    project: ProjectId,
    session: SessionId,
    last_message_at: Option<DateTime<Utc>>,
) -> Result<FlushResult> {
    sessions::store::ensure_owned(conn, project, session).await?;
    let failed = observing::count_messages(conn, session, ProcessStatus::Failed, last_message_at).await?;
    if failed > 0 {
        let error = ctx.queue.find_last_error(conn, project, &Observe { session }).await?;
        // The job that has failed was deleted, or retried by a client.
        let error = error
            .unwrap_or_else(|| format!("{MODEL_FAILURE}: the observation has failed, and its error is not stored"));
        let failed =
            with_count(failed, "has failed: flush again to retry it", "have failed: flush again to retry them");
        return Ok(flush_result(502, format!("{error}; {failed}")));
    }
    let excess = observing::count_messages(conn, session, ProcessStatus::LimitExceeded, last_message_at).await?;
    if excess > 0 {
        let excess = with_count(excess, "was not observed", "were not observed");
        let errmsg = format!("the project has exceeded its quota of tasks; {excess}");
        return Ok(flush_result(200, errmsg));
    }
    Ok(flush_result(200, String::new()))
}

/// Returns a clause about a number of messages, with the verb in the singular or plural.
fn with_count(messages: i64, singular: &str, plural: &str) -> String {
    match messages {
        1 => format!("1 message {singular}"),
        _ => format!("{messages} messages {plural}"),
    }
}

fn flush_result(status: u16, errmsg: String) -> FlushResult {
    FlushResult { status, errmsg }
}
