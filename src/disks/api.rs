//! HTTP handlers for disks.

use axum::extract::State;
use serde::Deserialize;

use super::Disk;
use super::store::{self, DiskFilter};
use crate::auth::Caller;
use crate::db::page::PageRequest;
use crate::disks::Disks;
use crate::error::{Error, MapConstraint, UNAUTHORIZED};
use crate::http::extract::{Path, Query, QueryAndBody, RequestBody};
use crate::http::idempotency::Idempotency;
use crate::http::page::{Page, PageParams};
use crate::http::response::{self, CommandResult, Created, Empty, PageBody, QueryResult};
use crate::ids::DiskId;
use crate::users::{self, UserIdentifier};

/// The error for a disk that does not exist or belongs to another project, on routes where upstream returns 404.
pub const DISK_NOT_FOUND: Error = Error::NotFound("disk not found or access denied");

#[derive(Deserialize, utoipa::ToSchema)]
pub struct CreateDiskRequest {
    /// Identifier of the owning user. The user is created if it does not exist.
    #[serde(default, deserialize_with = "users::deserialize_optional")]
    #[schema(value_type = Option<String>, max_length = 1024)]
    user: Option<UserIdentifier>,
}

impl RequestBody for CreateDiskRequest {
    const HAS_FREE_FORM_OBJECT: bool = false;
}

/// Create a disk
#[utoipa::path(post, path = "/api/v1/disk", tag = "disk", request_body = Option<CreateDiskRequest>)]
pub async fn create_disk(
    caller: Caller,
    idempotency: Idempotency,
    QueryAndBody(body): QueryAndBody<CreateDiskRequest>,
) -> CommandResult<Created<Disk>> {
    let mut tx = idempotency.begin().await?;
    let user = users::resolve_or_create(&mut tx, caller.project, body.user.as_ref()).await?;
    let disk = store::insert(&mut tx, caller.project, user)
        .await
        .map_constraint_err("disks_project_id_fkey", || UNAUTHORIZED)?;
    tx.commit(response::created(disk)).await
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListDisksParams {
    /// Only disks of this user.
    #[serde(default)]
    user: Option<String>,
    /// Only the disk with this id.
    #[serde(default)]
    id: Option<String>,
}

/// List disks
#[utoipa::path(get, path = "/api/v1/disk", tag = "disk", params(ListDisksParams, PageParams))]
pub async fn list_disks(
    State(ctx): State<Disks>,
    caller: Caller,
    Query(query): Query<ListDisksParams>,
    Query(page): Query<PageParams>,
) -> QueryResult<PageBody<Disk>> {
    let page: PageRequest = page.parse(20, 200)?;
    let id = query.id.as_deref().filter(|id| !id.is_empty()).map(str::parse).transpose();
    let id = id.map_err(|err| Error::invalid_field("id", err))?;
    let user = users::validate_filter(query.user.as_deref())?;
    let mut conn = ctx.db.acquire().await?;
    let disks = store::list(&mut conn, caller.project, &DiskFilter { user, id }, &page).await?;
    Ok(response::page(&Page::new(disks, &page)))
}

/// Delete a disk
///
/// Deletes the disk and all its files. If it is the disk of a skill, the skill is deleted, too.
#[utoipa::path(delete, path = "/api/v1/disk/{disk_id}", tag = "disk", params(("disk_id" = DiskId, Path)))]
pub async fn delete_disk(caller: Caller, idempotency: Idempotency, Path(disk): Path<DiskId>) -> CommandResult<Empty> {
    let mut tx = idempotency.begin().await?;
    let deleted = store::delete(&mut tx, caller.project, disk).await?;
    if deleted { tx.commit(response::ok_empty()).await } else { Err(DISK_NOT_FOUND.into()) }
}
