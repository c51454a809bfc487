//! The routes of users.

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;

use super::{Identifier, ResourceCounts, User, store};
use crate::app::App;
use crate::auth::Caller;
use crate::db::page::Cursor;
use crate::error::{Error, Result};
use crate::http::extract::{Path, Query};
use crate::http::idempotency::Once;
use crate::http::openapi::Refusals;
use crate::http::page::{Page, PageParams};
use crate::http::response::{self, EmptyResponse, Envelope};

/// List users
///
/// Without a limit, or with 0, all of them: up to 10 000, and then a cursor.
#[utoipa::path(get, path = "/api/v1/user/ls", tag = "user", params(PageParams),
    responses((status = 200, body = Envelope<Page<User>>), Refusals))]
pub async fn list_users(State(app): State<App>, caller: Caller, Query(page): Query<PageParams>) -> Result<Response> {
    let page = page.parse_or_all(app.config.limits.list, 200)?;
    let mut conn = app.db.acquire().await?;
    let users = store::list(&mut conn, caller.project, &page).await?;
    let cursor = |user: &User| Cursor { created_at: user.created_at.0, id: user.id.0 };
    Ok(response::ok(Page::new(users, &page, cursor)))
}

#[derive(Serialize, utoipa::ToSchema)]
pub struct UserResources {
    counts: ResourceCounts,
}

/// Count what a user has
#[utoipa::path(get, path = "/api/v1/user/{identifier}/resources", tag = "user",
    params(("identifier" = String, Path)), responses((status = 200, body = Envelope<UserResources>), Refusals))]
pub async fn get_user_resources(
    State(app): State<App>,
    caller: Caller,
    Path(user): Path<Identifier>,
) -> Result<Response> {
    let mut conn = app.db.acquire().await?;
    let counts = store::count(&mut conn, caller.project, &user).await?;
    Ok(response::ok(UserResources { counts: counts.ok_or(Error::NotFound("user not found"))? }))
}

/// Delete a user
///
/// With all sessions, disks, skills and learning spaces of the user. One that is not there is fine.
#[utoipa::path(delete, path = "/api/v1/user/{identifier}", tag = "user", params(("identifier" = String, Path)),
    responses((status = 200, body = EmptyResponse), Refusals))]
pub async fn delete_user(
    State(app): State<App>,
    caller: Caller,
    once: Once,
    Path(user): Path<Identifier>,
) -> Result<Response> {
    delete(&app, &caller, once, &user).await
}

/// Delete the user who is called `ls`
///
/// As any other; the path is that of the list.
#[utoipa::path(delete, path = "/api/v1/user/ls", tag = "user", responses((status = 200, body = EmptyResponse), Refusals))]
pub async fn delete_user_ls(State(app): State<App>, caller: Caller, once: Once) -> Result<Response> {
    delete(&app, &caller, once, &Identifier("ls".into())).await
}

async fn delete(app: &App, caller: &Caller, once: Once, user: &Identifier) -> Result<Response> {
    let mut act = once.begin(app).await?;
    store::delete(&mut act, caller.project, user).await?;
    act.commit(response::ok_empty()).await
}
