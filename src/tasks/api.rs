//! The route of tasks.

use axum::extract::State;
use axum::response::Response;

use super::{Task, store};
use crate::app::App;
use crate::auth::Caller;
use crate::error::Result;
use crate::http::extract::{Path, Query};
use crate::http::openapi::Refusals;
use crate::http::page::{Page, PageOf, PageQuery, Position};
use crate::http::response::{self, Envelope};
use crate::ids::SessionId;
use crate::sessions;

/// List the tasks of a session
#[utoipa::path(get, path = "/api/v1/session/{session_id}/task", tag = "session",
    params(("session_id" = SessionId, Path), PageQuery),
    responses((status = 200, body = Envelope<PageOf<Task>>), Refusals))]
pub async fn get_tasks(
    State(app): State<App>,
    caller: Caller,
    Path(session): Path<SessionId>,
    Query(page): Query<PageQuery>,
) -> Result<Response> {
    let page: Page = page.parse(20, 200)?;
    let mut conn = app.db.acquire().await?;
    sessions::store::check_owned(&mut conn, caller.project, session).await?;
    let tasks = store::list(&mut conn, caller.project, session, &page).await?;
    let position = |task: &Task| Position { created_at: task.created_at.0, id: task.id.0 };
    Ok(response::ok(PageOf::new(tasks, &page, position)))
}
