//! HTTP handlers for users.

use axum::extract::State;
use serde::Serialize;

use super::{ResourceCounts, User, UserIdentifier, store};
use crate::auth::Caller;
use crate::error::Error;
use crate::http::extract::{Path, Query};
use crate::http::idempotency::Idempotency;
use crate::http::page::{Page, UnlimitedPageParams};
use crate::http::response::{self, CommandResult, Data, Empty, PageBody, QueryResult};
use crate::platform::Platform;

/// List users
///
/// Without `limit`, or with 0, returns up to 10 000 users (`ACONTEXTD_LIST_LIMIT`), and a cursor if there are more.
#[utoipa::path(get, path = "/api/v1/user/ls", tag = "user", params(UnlimitedPageParams))]
pub async fn list_users(
    State(platform): State<Platform>,
    caller: Caller,
    Query(page): Query<UnlimitedPageParams>,
) -> QueryResult<PageBody<User>> {
    let page = page.parse(platform.config.limits.max_list_entries, 200)?;
    let mut conn = platform.db.acquire().await?;
    let users = store::list(&mut conn, caller.project, &page).await?;
    Ok(response::page(&Page::new(users, &page)))
}

/// The numbers of resources that belong to a user.
#[derive(Serialize, utoipa::ToSchema)]
pub struct UserResources {
    counts: ResourceCounts,
}

/// Count a user's resources
#[utoipa::path(get, path = "/api/v1/user/{identifier}/resources", tag = "user",
    params(("identifier" = String, Path)))]
pub async fn get_user_resources(
    State(platform): State<Platform>,
    caller: Caller,
    Path(user): Path<UserIdentifier>,
) -> QueryResult<Data<UserResources>> {
    let mut conn = platform.db.acquire().await?;
    let counts = store::count_resources(&mut conn, caller.project, &user).await?;
    Ok(response::ok(UserResources { counts: counts.ok_or(Error::NotFound("user not found"))? }))
}

/// Delete a user
///
/// Deletes the user with all its sessions, disks, skills and learning spaces. Succeeds if the user does not exist.
#[utoipa::path(delete, path = "/api/v1/user/{identifier}", tag = "user", params(("identifier" = String, Path)))]
pub async fn delete_user(
    caller: Caller,
    idempotency: Idempotency,
    Path(user): Path<UserIdentifier>,
) -> CommandResult<Empty> {
    delete(&caller, idempotency, &user).await
}

/// Delete the user named `ls`
///
/// Deletes the user with all its sessions, disks, skills and learning spaces. This operation is listed separately, because `GET`
/// on the same path lists the users.
#[utoipa::path(delete, path = "/api/v1/user/ls", tag = "user")]
pub async fn delete_user_ls(caller: Caller, idempotency: Idempotency) -> CommandResult<Empty> {
    delete(&caller, idempotency, &UserIdentifier("ls".into())).await
}

async fn delete(caller: &Caller, idempotency: Idempotency, user: &UserIdentifier) -> CommandResult<Empty> {
    let mut tx = idempotency.begin().await?;
    store::delete(&mut tx, caller.project, user).await?;
    tx.commit(response::ok_empty()).await
}
