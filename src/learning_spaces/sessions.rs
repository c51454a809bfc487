//! HTTP handlers for the sessions of a learning space.

use axum::extract::State;
use serde::Deserialize;

use super::{LEARNING_SPACE_NOT_FOUND, LearningSpaceSession, LearningSpaceSessionRow, LearningSpaces, progress, store};
use crate::auth::Caller;
use crate::encryption::StorageFormat;
use crate::error::{Error, UNAUTHORIZED};
use crate::http::extract::{Path, QueryAndBody, RequestBody};
use crate::http::idempotency::Idempotency;
use crate::http::response::{self, CommandResult, Created, Data, ListOf, QueryResult};
use crate::ids::{LearningSpaceId, SessionId};
use crate::lessons::create;
use crate::sessions::lock::LockedSession;
use crate::{sessions, tasks};

const SESSION_NOT_FOUND_IN_SPACE: Error = Error::NotFound("learning space session not found");
/// The maximum number of sessions for which one list request performs the next step of the learning. Later requests continue.
const MAX_STEPS_PER_REQUEST: usize = 100;

#[derive(Deserialize, utoipa::ToSchema)]
pub struct LearnSessionRequest {
    /// Id of the session, in the body or in the query.
    #[serde(default)]
    #[schema(value_type = SessionId, required = true)]
    session_id: Option<String>,
}

impl RequestBody for LearnSessionRequest {
    const HAS_FREE_FORM_OBJECT: bool = false;
}

/// Learn from a session
///
/// Learns from each finished task of the session, and from each task that finishes later, in background jobs. They distill a
/// lesson from the task and its messages, and write it to the skills of the learning space. Also learns the preferences that
/// the user has stated. Only one learning space can learn from a session.
#[utoipa::path(post, path = "/api/v1/learning_spaces/{space_id}/learn", tag = "learning_spaces",
    params(("space_id" = LearningSpaceId, Path)), request_body = LearnSessionRequest)]
pub async fn learn_session(
    State(ctx): State<LearningSpaces>,
    caller: Caller,
    idempotency: Idempotency,
    Path(space): Path<LearningSpaceId>,
    QueryAndBody(body): QueryAndBody<LearnSessionRequest>,
) -> CommandResult<Created<LearningSpaceSession>> {
    let session: SessionId = match body.session_id.as_deref() {
        None | Some("") => Err("is required"),
        Some(text) => text.parse(),
    }
    .map_err(|reason| Error::invalid_field("session_id", reason))?;
    let mut tx = idempotency.begin().await?;
    let format = StorageFormat::lock_for_share(&mut tx, caller.project).await?.ok_or(UNAUTHORIZED)?;
    if !store::lock_for_share(&mut tx, caller.project, space).await? {
        return Err(LEARNING_SPACE_NOT_FOUND.into());
    }
    // A transaction that finishes a task also locks the session. Either that transaction sees the row that `add_session` inserts,
    // or `list_finished` returns the task.
    let locked = LockedSession::lock(&mut tx, caller.project, session).await?;
    let mut locked = locked.ok_or(sessions::SESSION_NOT_FOUND)?;
    ctx.queue.provide_key(&mut locked, &caller.encryption).await?;
    let space_session = store::add_session(&mut locked, space).await?;
    let space_session = space_session.ok_or(Error::Conflict("session already learned by another space".into()))?;
    let finished = tasks::store::list_finished(&mut locked).await?;
    create::create_for_tasks(&mut locked, &ctx.queue, &caller.encryption, &finished).await?;
    let preferences = tasks::edits::list_preferences(&mut locked).await?;
    let encryption = (&caller.encryption, format);
    create::create_for_preferences(&mut locked, &ctx.queue, encryption, &preferences, &[]).await?;
    let reason = progress::find_reason(&*ctx.llm, &mut tx, session).await?;
    tx.commit(response::created(LearningSpaceSession::new(space_session, reason))).await
}

/// List a learning space's sessions
///
/// Returns all sessions, oldest first. If all messages of a session are observed, no task has been learned and tasks are still
/// open, enqueues a job that completes these tasks, so that they are learned. On an encrypted project, provides the key to the
/// jobs that wait for it.
#[utoipa::path(get, path = "/api/v1/learning_spaces/{space_id}/sessions", tag = "learning_spaces",
    params(("space_id" = LearningSpaceId, Path)))]
pub async fn list_space_sessions(
    State(ctx): State<LearningSpaces>,
    caller: Caller,
    Path(space): Path<LearningSpaceId>,
) -> QueryResult<ListOf<LearningSpaceSession>> {
    let limit = ctx.config.limits.max_list_entries;
    let mut conn = ctx.db.acquire().await?;
    if !store::exists(&mut conn, caller.project, space).await? {
        return Err(LEARNING_SPACE_NOT_FOUND);
    }
    let with_next_step = progress::list_with_next_step(&mut conn, space, MAX_STEPS_PER_REQUEST).await?;
    drop(conn);
    ctx.queue.provide_key_autocommit(&ctx.db, &caller.encryption).await?;
    for session in with_next_step {
        progress::perform_next_step(&ctx, &caller.encryption, session).await?;
    }
    let mut conn = ctx.db.acquire().await?;
    let sessions = store::list_sessions(&mut conn, space, limit.saturating_add(1)).await?;
    if sessions.len() > limit {
        return Err(Error::PayloadTooLarge(format!(
            "the learning space has more than {limit} sessions; request them individually"
        )));
    }
    let mut reasons = progress::list_reasons(&*ctx.llm, &mut conn, space).await?;
    let with_reason = |row: LearningSpaceSessionRow| {
        let reason = reasons.remove(&row.session_id);
        LearningSpaceSession::new(row, reason)
    };
    Ok(response::list(sessions.into_iter().map(with_reason).collect()))
}

/// Get the learning status of a session
///
/// If all messages of a session are observed, no task has been learned and tasks are still open, enqueues a job that completes
/// these tasks, so that they are learned. On an encrypted project, provides the key to the jobs that wait for it.
#[utoipa::path(get, path = "/api/v1/learning_spaces/{space_id}/sessions/{session_id}", tag = "learning_spaces",
    params(("space_id" = LearningSpaceId, Path), ("session_id" = SessionId, Path)))]
pub async fn get_space_session(
    State(ctx): State<LearningSpaces>,
    caller: Caller,
    Path(space): Path<LearningSpaceId>,
    Path(session): Path<SessionId>,
) -> QueryResult<Data<LearningSpaceSession>> {
    let mut conn = ctx.db.acquire().await?;
    if !store::exists(&mut conn, caller.project, space).await? {
        return Err(LEARNING_SPACE_NOT_FOUND);
    }
    let found = store::get_session(&mut conn, space, session).await?;
    let mut space_session = found.ok_or(SESSION_NOT_FOUND_IN_SPACE)?;
    drop(conn);
    ctx.queue.provide_key_autocommit(&ctx.db, &caller.encryption).await?;
    if !space_session.status.is_final() && progress::perform_next_step(&ctx, &caller.encryption, session).await? {
        let mut conn = ctx.db.acquire().await?;
        let found = store::get_session(&mut conn, space, session).await?;
        space_session = found.ok_or(SESSION_NOT_FOUND_IN_SPACE)?;
    }
    let mut conn = ctx.db.acquire().await?;
    let reason = progress::find_reason(&*ctx.llm, &mut conn, session).await?;
    Ok(response::ok(LearningSpaceSession::new(space_session, reason)))
}
