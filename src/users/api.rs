//! The routes of users.

use axum::extract::State;
use serde::Serialize;

use super::{Identifier, ResourceCounts, User, store};
use crate::auth::Caller;
use crate::error::Error;
use crate::http::extract::{Path, Query};
use crate::http::idempotency::Idempotency;
use crate::http::page::{Page, PageParams};
use crate::http::response::{self, CommandResult, Data, Empty, PageBody, QueryResult};
use crate::platform::Platform;

/// List users
///
/// Without a limit, or with 0, all of them: up to 10 000, and then a cursor.
#[utoipa::path(get, path = "/api/v1/user/ls", tag = "user", params(PageParams))]
pub async fn list_users(
    State(platform): State<Platform>,
    caller: Caller,
    Query(page): Query<PageParams>,
) -> QueryResult<PageBody<User>> {
    let page = page.parse_or_all(platform.config.limits.list, 200)?;
    let mut conn = platform.db.acquire().await?;
    let users = store::list(&mut conn, caller.project, &page).await?;
    Ok(response::page(Page::new(users, &page)))
}

#[derive(Serialize, utoipa::ToSchema)]
pub struct UserResources {
    counts: ResourceCounts,
}

/// Count what a user has
#[utoipa::path(get, path = "/api/v1/user/{identifier}/resources", tag = "user",
    params(("identifier" = String, Path)))]
pub async fn get_user_resources(
    State(platform): State<Platform>,
    caller: Caller,
    Path(user): Path<Identifier>,
) -> QueryResult<Data<UserResources>> {
    let mut conn = platform.db.acquire().await?;
    let counts = store::count(&mut conn, caller.project, &user).await?;
    Ok(response::ok(UserResources { counts: counts.ok_or(Error::NotFound("user not found"))? }))
}

/// Delete a user
///
/// With all sessions, disks, skills and learning spaces of the user. One that is not there is fine.
#[utoipa::path(delete, path = "/api/v1/user/{identifier}", tag = "user", params(("identifier" = String, Path)))]
pub async fn delete_user(
    caller: Caller,
    idempotency: Idempotency,
    Path(user): Path<Identifier>,
) -> CommandResult<Empty> {
    delete(&caller, idempotency, &user).await
}

/// Delete the user who is called `ls`
///
/// As any other; the path is that of the list.
#[utoipa::path(delete, path = "/api/v1/user/ls", tag = "user")]
pub async fn delete_user_ls(caller: Caller, idempotency: Idempotency) -> CommandResult<Empty> {
    delete(&caller, idempotency, &Identifier("ls".into())).await
}

async fn delete(caller: &Caller, idempotency: Idempotency, user: &Identifier) -> CommandResult<Empty> {
    let mut tx = idempotency.begin().await?;
    store::delete(&mut tx, caller.project, user).await?;
    tx.commit(response::ok_empty()).await
}
