//! The routes of disks.

use axum::extract::State;
use serde::Deserialize;

use super::Disk;
use super::store::{self, Filter};
use crate::auth::Caller;
use crate::db::page::PageRequest;
use crate::disks::Disks;
use crate::error::{Error, MapConstraint, UNAUTHORIZED};
use crate::http::extract::{Params, Path, Query, RequestBody};
use crate::http::idempotency::Idempotency;
use crate::http::page::{Page, PageParams};
use crate::http::response::{self, CommandResult, Created, Empty, PageBody, QueryResult};
use crate::ids::DiskId;
use crate::users::{self, Identifier};

/// The refusal of a disk that is not the caller's, where upstream has a 404.
pub const NOT_FOUND: Error = Error::NotFound("disk not found or access denied");

#[derive(Deserialize, utoipa::ToSchema)]
pub struct CreateDisk {
    /// Whose disk it is; made if there is no such user.
    #[serde(default, deserialize_with = "users::optional")]
    #[schema(value_type = Option<String>, max_length = 1024)]
    user: Option<Identifier>,
}

impl RequestBody for CreateDisk {
    const IS_FREE_FORM: bool = false;
}

/// Create a disk
#[utoipa::path(post, path = "/api/v1/disk", tag = "disk", request_body = Option<CreateDisk>)]
pub async fn create_disk(
    caller: Caller,
    idempotency: Idempotency,
    Params(body): Params<CreateDisk>,
) -> CommandResult<Created<Disk>> {
    let mut tx = idempotency.begin().await?;
    let user = users::named(&mut tx, caller.project, body.user.as_ref()).await?;
    let disk = store::insert(&mut tx, caller.project, user)
        .await
        .map_constraint_err("disks_project_id_fkey", || UNAUTHORIZED)?;
    tx.commit(response::created(disk)).await
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListDisks {
    /// Only disks of this user.
    #[serde(default)]
    user: Option<String>,
    /// Only the disk with this id.
    #[serde(default)]
    id: Option<String>,
}

/// List disks
#[utoipa::path(get, path = "/api/v1/disk", tag = "disk", params(ListDisks, PageParams))]
pub async fn list_disks(
    State(ctx): State<Disks>,
    caller: Caller,
    Query(query): Query<ListDisks>,
    Query(page): Query<PageParams>,
) -> QueryResult<PageBody<Disk>> {
    let page: PageRequest = page.parse(20, 200)?;
    let id = query.id.as_deref().filter(|id| !id.is_empty()).map(str::parse).transpose();
    let id = id.map_err(|wrong| Error::invalid_field("id", wrong))?;
    let user = users::filter(query.user.as_deref())?;
    let mut conn = ctx.db.acquire().await?;
    let disks = store::list(&mut conn, caller.project, &Filter { user, id }, &page).await?;
    Ok(response::page(Page::new(disks, &page)))
}

/// Delete a disk
///
/// With every file on it.
#[utoipa::path(delete, path = "/api/v1/disk/{disk_id}", tag = "disk", params(("disk_id" = DiskId, Path)))]
pub async fn delete_disk(caller: Caller, idempotency: Idempotency, Path(disk): Path<DiskId>) -> CommandResult<Empty> {
    let mut tx = idempotency.begin().await?;
    let deleted = store::delete(&mut tx, caller.project, disk).await?;
    if deleted { tx.commit(response::ok_empty()).await } else { Err(NOT_FOUND.into()) }
}
