//! The HTTP handler for tasks.

use axum::extract::State;

use super::{Task, store};
use crate::auth::Caller;
use crate::db::page::PageRequest;
use crate::http::extract::{Path, Query};
use crate::http::page::{Page, PageParams};
use crate::http::response::{self, PageBody, QueryResult};
use crate::ids::SessionId;
use crate::platform::Platform;
use crate::sessions;

/// List the tasks of a session
#[utoipa::path(get, path = "/api/v1/session/{session_id}/task", tag = "session",
    params(("session_id" = SessionId, Path), PageParams))]
pub async fn get_tasks(
    State(platform): State<Platform>,
    caller: Caller,
    Path(session): Path<SessionId>,
    Query(page): Query<PageParams>,
) -> QueryResult<PageBody<Task>> {
    let page: PageRequest = page.parse(20, 200)?;
    let mut conn = platform.db.acquire().await?;
    sessions::store::ensure_owned(&mut conn, caller.project, session).await?;
    let tasks = store::list(&mut conn, caller.project, session, &page).await?;
    Ok(response::page(&Page::new(tasks, &page)))
}
