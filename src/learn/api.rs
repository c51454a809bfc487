//! The routes that tell how far observation is, and hurry it.

use axum::extract::State;
use chrono::{DateTime, Utc};
use serde::Serialize;
use tokio::time::Instant;

use super::Learn;
use super::queue::Observe;
use crate::auth::Caller;
use crate::error::Result;
use crate::http::extract::Path;
use crate::http::idempotency::Idempotency;
use crate::http::response::{self, CommandResult, Data, QueryResult};
use crate::ids::SessionId;
use crate::jobs::Delay;
use crate::llm::LlmError;
use crate::messages::{ProcessStatus, observing};
use crate::process::Changes;
use crate::sessions;
use crate::sessions::lock::LockedSession;
use crate::time::Timestamp;

/// How many messages of a session were looked at.
#[derive(Serialize, utoipa::ToSchema)]
pub struct ObservingStatus {
    observed: i64,
    in_process: i64,
    pending: i64,
    /// Now.
    updated_at: Timestamp,
}

/// Tell how far a session was observed
#[utoipa::path(get, path = "/api/v1/session/{session_id}/observing_status", tag = "session",
    params(("session_id" = SessionId, Path)))]
pub async fn get_observing_status(
    State(ctx): State<Learn>,
    caller: Caller,
    Path(session): Path<SessionId>,
) -> QueryResult<Data<ObservingStatus>> {
    ctx.queue.provide_key_now(&ctx.db, &caller.encryption).await?;
    let mut conn = ctx.db.acquire().await?;
    sessions::store::ensure_owned(&mut conn, caller.project, session).await?;
    let observing::Counts { observed, in_process, pending } =
        observing::count(&mut conn, caller.project, session).await?;
    Ok(response::ok(ObservingStatus { observed, in_process, pending, updated_at: Timestamp(Utc::now()) }))
}

/// What became of a flush.
#[derive(Serialize, utoipa::ToSchema)]
pub struct Flushed {
    /// 200: all observed. 504: the time is up, the rest goes on. 502: the model failed. 503: there is no model.
    status: u16,
    /// Empty, or what is wrong and how many messages still wait.
    errmsg: String,
}

/// Observe a session now
///
/// Takes up what waits and what has failed, and waits for the outcome. The answer is 200 whatever that is; `data.status`
/// tells it. With an `Idempotency-Key` only a flush that observed all is kept; two with one key at once wait for the same
/// work, and another that did not come to its end can be sent again.
#[utoipa::path(post, path = "/api/v1/session/{session_id}/flush", tag = "session",
    params(("session_id" = SessionId, Path)))]
pub async fn flush_session(
    State(ctx): State<Learn>,
    caller: Caller,
    idempotency: Idempotency,
    Path(session): Path<SessionId>,
) -> CommandResult<Data<Flushed>> {
    idempotency.replay_if_completed().await?;
    let flushed = flush(&ctx, &caller, session).await?;
    let worked = flushed.status == 200;
    let answer = response::ok(flushed);
    // No transaction is held while the work goes on, which may be done twice: each message is observed once.
    if worked { idempotency.store_response(answer).await } else { Ok(answer) }
}

async fn flush(ctx: &Learn, caller: &Caller, session: SessionId) -> Result<Flushed> {
    let deadline = Instant::now() + ctx.config.learning.flush;
    let mut tx = ctx.db.begin().await?;
    sessions::store::ensure_owned(&mut tx, caller.project, session).await?;
    let locked = LockedSession::lock(&mut tx, caller.project, session).await?;
    let mut locked = locked.ok_or(sessions::NOT_FOUND)?;
    let last_message_at = locked.last_message_at;
    ctx.queue.provide_key(&mut locked, &caller.encryption).await?;
    observing::set_status(&mut locked, None, ProcessStatus::Failed, ProcessStatus::Pending).await?;
    let waiting = observing::count_pending_messages(&mut locked, session, None).await?;
    if waiting == 0 {
        return Ok(answer(200, String::new()));
    }
    if !ctx.llm.is_configured() {
        return Ok(answer(503, format!("{}; {waiting} messages wait", LlmError::NotConfigured)));
    }
    let job = Observe { session };
    if !ctx.queue.make_due(&mut locked, &job).await? && ctx.queue.find(&mut locked, &job).await?.is_none() {
        observing::enqueue_job(&mut locked, &ctx.queue, &caller.encryption, Delay::NONE).await?;
    }
    tx.commit().await?;
    wait(ctx, session, last_message_at, deadline).await
}

/// Waits until the messages up to a moment were looked at.
async fn wait(ctx: &Learn, session: SessionId, until: Option<DateTime<Utc>>, deadline: Instant) -> Result<Flushed> {
    let changes = Changes::until(deadline, &ctx.observation_finished);
    loop {
        let change = changes.next();
        let mut conn = ctx.db.acquire().await?;
        let waiting = observing::count_pending_messages(&mut conn, session, until).await?;
        if waiting == 0 {
            let failed = observing::has_failed(&mut conn, session, until).await?;
            let why = if failed { "LLM complete failed; the messages can be flushed again" } else { "" };
            return Ok(answer(if failed { 502 } else { 200 }, why.into()));
        }
        let job = ctx.queue.find(&mut conn, &Observe { session }).await?;
        drop(conn);
        if let Some(Some(reason)) = job {
            return Ok(answer(502, format!("{reason}; {waiting} messages still wait")));
        }
        if changes.is_over() {
            return Ok(answer(
                504,
                format!("the time is up; {waiting} messages still wait and go on in the background"),
            ));
        }
        change.await;
    }
}

fn answer(status: u16, errmsg: String) -> Flushed {
    Flushed { status, errmsg }
}
