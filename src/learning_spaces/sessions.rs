//! The routes of the sessions that a learning space learns.

use axum::extract::State;
use serde::Deserialize;

use super::{LearningStatus, NOT_FOUND, SpaceSession, progress, store};
use crate::auth::Caller;
use crate::error::Error;
use crate::http::extract::{Params, Path, RequestBody};
use crate::http::idempotency::Idempotency;
use crate::http::response::{self, CommandResult, Created, Data, ListOf, QueryResult};
use crate::ids::{SessionId, SpaceId};
use crate::jobs::Delay;
use crate::learn::queue::Distill;
use crate::platform::Platform;
use crate::sessions::lock::LockedSession;
use crate::{sessions, tasks};

const NOT_LEARNED: Error = Error::NotFound("learning space session not found");
/// How many sessions one look at a list brings to an end at most; the next look goes on.
const MAX_FINALIZED_PER_REQUEST: usize = 100;

#[derive(Deserialize, utoipa::ToSchema)]
pub struct LearnSession {
    /// Here or in the query.
    #[serde(default)]
    #[schema(value_type = SessionId, required = true)]
    session_id: Option<String>,
}

impl RequestBody for LearnSession {
    const IS_FREE_FORM: bool = false;
}

/// Learn a session
///
/// What is found out in it is written into the skills of the space: from its tasks that have ended already, and from each
/// that ends from now on. A session is learned by one space.
#[utoipa::path(post, path = "/api/v1/learning_spaces/{space_id}/learn", tag = "learning_spaces",
    params(("space_id" = SpaceId, Path)), request_body = LearnSession)]
pub async fn learn_session(
    State(platform): State<Platform>,
    caller: Caller,
    idempotency: Idempotency,
    Path(space): Path<SpaceId>,
    Params(body): Params<LearnSession>,
) -> CommandResult<Created<SpaceSession>> {
    let session: SessionId = match body.session_id.as_deref() {
        None | Some("") => Err("is required"),
        Some(text) => text.parse(),
    }
    .map_err(|wrong| Error::invalid_field("session_id", wrong))?;
    let mut tx = idempotency.begin().await?;
    if !store::hold(&mut tx, caller.project, space).await? {
        return Err(NOT_FOUND.into());
    }
    // Whoever ends a task holds this lock too: either the task is seen here, or this is seen there.
    let locked = LockedSession::lock(&mut tx, caller.project, session).await?;
    let mut locked = locked.ok_or(sessions::NOT_FOUND)?;
    platform.queue.provide_key(&mut locked, &caller.encryption).await?;
    let learned = store::insert_session(&mut locked, space).await?;
    let learned = learned.ok_or(Error::Conflict("session already learned by another space".into()))?;
    let ended = tasks::store::list_finished(&mut locked).await?;
    for task in &ended {
        platform.queue.enqueue(&mut locked, &caller.encryption, &Distill { task: *task }, Delay::NONE).await?;
    }
    tx.commit(response::created(learned)).await
}

/// List the sessions that a learning space learns
///
/// All of them, oldest first.
#[utoipa::path(get, path = "/api/v1/learning_spaces/{space_id}/sessions", tag = "learning_spaces",
    params(("space_id" = SpaceId, Path)))]
pub async fn list_space_sessions(
    State(platform): State<Platform>,
    caller: Caller,
    Path(space): Path<SpaceId>,
) -> QueryResult<ListOf<SpaceSession>> {
    let limit = platform.config.limits.list;
    let mut conn = platform.db.acquire().await?;
    if !store::exists(&mut conn, caller.project, space).await? {
        return Err(NOT_FOUND);
    }
    let due = progress::list_due(&mut conn, space, MAX_FINALIZED_PER_REQUEST).await?;
    drop(conn);
    platform.queue.provide_key_now(&platform.db, &caller.encryption).await?;
    for session in due {
        progress::update_progress(&platform, &caller.encryption, session).await?;
    }
    let mut conn = platform.db.acquire().await?;
    let learned = store::list_sessions(&mut conn, space, limit.saturating_add(1)).await?;
    if learned.len() > limit {
        return Err(Error::PayloadTooLarge(format!(
            "the space learns more than {limit} sessions; get them one by one"
        )));
    }
    Ok(response::list(learned))
}

/// Tell how far a session is learned
#[utoipa::path(get, path = "/api/v1/learning_spaces/{space_id}/sessions/{session_id}", tag = "learning_spaces",
    params(("space_id" = SpaceId, Path), ("session_id" = SessionId, Path)))]
pub async fn get_space_session(
    State(platform): State<Platform>,
    caller: Caller,
    Path(space): Path<SpaceId>,
    Path(session): Path<SessionId>,
) -> QueryResult<Data<SpaceSession>> {
    let mut conn = platform.db.acquire().await?;
    if !store::exists(&mut conn, caller.project, space).await? {
        return Err(NOT_FOUND);
    }
    let mut learned = store::get_session(&mut conn, space, session).await?.ok_or(NOT_LEARNED)?;
    drop(conn);
    platform.queue.provide_key_now(&platform.db, &caller.encryption).await?;
    if learned.status == LearningStatus::Pending
        && progress::update_progress(&platform, &caller.encryption, session).await?
    {
        let mut conn = platform.db.acquire().await?;
        learned = store::get_session(&mut conn, space, session).await?.ok_or(NOT_LEARNED)?;
    }
    Ok(response::ok(learned))
}
