//! The routes of the sessions that a learning space learns.

use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;

use super::{NOT_FOUND, SpaceSession, store};
use crate::app::App;
use crate::auth::Caller;
use crate::error::{Error, Result};
use crate::http::extract::{Params, Path, RequestBody};
use crate::http::idempotency::Once;
use crate::http::openapi::Refusals;
use crate::http::response::{self, Envelope};
use crate::ids::{SessionId, SpaceId};
use crate::jobs::{self, Delay};
use crate::learn::conclude;
use crate::learn::distill::Distill;
use crate::{messages, sessions, tasks};

const NOT_LEARNED: Error = Error::NotFound("learning space session not found");
/// How many sessions one look at a list brings to an end at most; the next look goes on.
const CONCLUDED_AT_ONCE: usize = 100;

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
    params(("space_id" = SpaceId, Path)), request_body = LearnSession,
    responses((status = 201, body = Envelope<SpaceSession>), Refusals))]
pub async fn learn_session(
    State(app): State<App>,
    caller: Caller,
    once: Once,
    Path(space): Path<SpaceId>,
    Params(body): Params<LearnSession>,
) -> Result<Response> {
    let session: SessionId = match body.session_id.as_deref() {
        None | Some("") => Err("is required"),
        Some(text) => text.parse(),
    }
    .map_err(|wrong| Error::field("session_id", wrong))?;
    let mut act = once.begin(&app).await?;
    if !store::hold(&mut act, caller.project, space).await? {
        return Err(NOT_FOUND);
    }
    // Whoever ends a task holds this lock too: either the task is seen here, or this is seen there.
    if !messages::store::lock_session(&mut act, caller.project, session).await? {
        return Err(sessions::NOT_FOUND);
    }
    jobs::bring_key(&app, &mut act, &caller.owner).await?;
    let learned = store::insert_session(&mut act, space, session).await?;
    let learned = learned.ok_or(Error::Conflict("session already learned by another space".into()))?;
    let ended = tasks::store::list_ended(&mut act, caller.project, session).await?;
    for task in &ended {
        jobs::enqueue(&app, &mut act, &caller.owner, &Distill { task: *task }, Delay::NONE).await?;
    }
    let answer = act.commit(response::created(learned)).await?;
    if !ended.is_empty() {
        app.jobs.wake();
    }
    Ok(answer)
}

/// List the sessions that a learning space learns
///
/// All of them, oldest first.
#[utoipa::path(get, path = "/api/v1/learning_spaces/{space_id}/sessions", tag = "learning_spaces",
    params(("space_id" = SpaceId, Path)), responses((status = 200, body = Envelope<Vec<SpaceSession>>), Refusals))]
pub async fn list_space_sessions(
    State(app): State<App>,
    caller: Caller,
    Path(space): Path<SpaceId>,
) -> Result<Response> {
    let limit = app.config.limits.list;
    let mut conn = app.db.acquire().await?;
    if !store::exists(&mut conn, caller.project, space).await? {
        return Err(NOT_FOUND);
    }
    jobs::bring_key(&app, &mut conn, &caller.owner).await?;
    let due = conclude::list_due(&mut conn, space, CONCLUDED_AT_ONCE).await?;
    drop(conn);
    for session in due {
        conclude::look(&app, &caller.owner, session).await?;
    }
    let mut conn = app.db.acquire().await?;
    let learned = store::list_sessions(&mut conn, space, limit.saturating_add(1)).await?;
    if learned.len() > limit {
        return Err(Error::TooLarge(format!("the space learns more than {limit} sessions; get them one by one")));
    }
    Ok(response::ok(learned))
}

/// Tell how far a session is learned
#[utoipa::path(get, path = "/api/v1/learning_spaces/{space_id}/sessions/{session_id}", tag = "learning_spaces",
    params(("space_id" = SpaceId, Path), ("session_id" = SessionId, Path)),
    responses((status = 200, body = Envelope<SpaceSession>), Refusals))]
pub async fn get_space_session(
    State(app): State<App>,
    caller: Caller,
    Path(space): Path<SpaceId>,
    Path(session): Path<SessionId>,
) -> Result<Response> {
    let mut conn = app.db.acquire().await?;
    if !store::exists(&mut conn, caller.project, space).await? {
        return Err(NOT_FOUND);
    }
    let mut learned = store::get_session(&mut conn, space, session).await?.ok_or(NOT_LEARNED)?;
    jobs::bring_key(&app, &mut conn, &caller.owner).await?;
    drop(conn);
    if learned.status == "pending" && conclude::look(&app, &caller.owner, session).await? {
        let mut conn = app.db.acquire().await?;
        learned = store::get_session(&mut conn, space, session).await?.ok_or(NOT_LEARNED)?;
    }
    Ok(response::ok(learned))
}
