//! The routes of learning spaces.

use axum::extract::State;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::store::{self, Filter};
use super::{NOT_FOUND, Space, defaults};
use crate::auth::Caller;
use crate::db::page::PageRequest;
use crate::error::{Error, MapConstraint, UNAUTHORIZED};
use crate::http::extract::{Json, Path, Query, RequestBody};
use crate::http::idempotency::Idempotency;
use crate::http::json::{parse_containment_filter, validate_storable};
use crate::http::page::{Page, PageParams};
use crate::http::response::{self, CommandResult, Created, Data, Empty, PageBody, QueryResult};
use crate::ids::SpaceId;
use crate::platform::Platform;
use crate::users::{self, Identifier};

#[derive(Deserialize, utoipa::ToSchema)]
pub struct CreateSpace {
    /// Whose space it is; made if there is no such user.
    #[serde(default, deserialize_with = "users::optional")]
    #[schema(value_type = Option<String>, max_length = 1024)]
    user: Option<Identifier>,
    /// An object to keep with the space.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    meta: Option<Map<String, Value>>,
}

impl RequestBody for CreateSpace {
    const IS_FREE_FORM: bool = true;
}

/// Create a learning space
///
/// With two skills of its own: a diary of the user's days, and facts about the user.
#[utoipa::path(post, path = "/api/v1/learning_spaces", tag = "learning_spaces", request_body = CreateSpace)]
pub async fn create_space(
    State(platform): State<Platform>,
    caller: Caller,
    idempotency: Idempotency,
    Json(body): Json<CreateSpace>,
) -> CommandResult<Created<Space>> {
    if let Some(meta) = &body.meta {
        validate_storable("meta", meta, platform.config.limits.meta)?;
    }
    caller.encryption.ensure_can_store()?;
    idempotency.replay_if_completed().await?;
    let mut attempts = idempotency.attempts();
    loop {
        let (skills, contents) = defaults::upload_default_skills(&platform, &caller.encryption).await?;
        let mut tx = attempts.begin().await?;
        let Some(blobs) = contents.claim(&mut tx).await? else {
            tx.rollback().await?;
            continue;
        };
        let user = users::named(&mut tx, caller.project, body.user.as_ref()).await?;
        let space = store::insert(&mut tx, caller.project, user, body.meta.as_ref()).await;
        let space = space.map_constraint_err("learning_spaces_project_id_fkey", || UNAUTHORIZED)?;
        for skill in &skills {
            let skill = skill.insert(&mut tx, &platform, caller.project, user, None, &blobs).await?;
            store::include(&mut tx, space.id, skill.id, &skill.name).await?;
        }
        return tx.commit(response::created(space)).await;
    }
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListSpaces {
    /// Only spaces of this user.
    #[serde(default)]
    user: Option<String>,
    /// A JSON object as text: only spaces whose meta contains it.
    #[serde(default)]
    #[param(example = "{\"source\": \"cli\"}")]
    filter_by_meta: Option<String>,
}

/// List learning spaces
#[utoipa::path(get, path = "/api/v1/learning_spaces", tag = "learning_spaces", params(ListSpaces, PageParams))]
pub async fn list_spaces(
    State(platform): State<Platform>,
    caller: Caller,
    Query(query): Query<ListSpaces>,
    Query(page): Query<PageParams>,
) -> QueryResult<PageBody<Space>> {
    let page: PageRequest = page.parse(20, 200)?;
    let user = users::filter(query.user.as_deref())?;
    let meta =
        parse_containment_filter("filter_by_meta", query.filter_by_meta.as_deref(), platform.config.limits.meta)?;
    let mut conn = platform.db.acquire().await?;
    let spaces = store::list(&mut conn, caller.project, Filter { user, meta }, &page).await?;
    Ok(response::page(Page::new(spaces, &page)))
}

/// Get a learning space
#[utoipa::path(get, path = "/api/v1/learning_spaces/{space_id}", tag = "learning_spaces",
    params(("space_id" = SpaceId, Path)))]
pub async fn get_space(
    State(platform): State<Platform>,
    caller: Caller,
    Path(space): Path<SpaceId>,
) -> QueryResult<Data<Space>> {
    let mut conn = platform.db.acquire().await?;
    store::get(&mut conn, caller.project, space).await?.map(response::ok).ok_or(NOT_FOUND)
}

#[derive(Deserialize, utoipa::ToSchema)]
pub struct UpdateSpace {
    /// Keys to set; the others stay. `null` is a value like any other.
    #[serde(default)]
    #[schema(value_type = Object, required = true)]
    meta: Option<Map<String, Value>>,
}

impl RequestBody for UpdateSpace {
    const IS_FREE_FORM: bool = true;
}

/// Change what is kept with a learning space
///
/// Sets keys of the first level.
#[utoipa::path(patch, path = "/api/v1/learning_spaces/{space_id}", tag = "learning_spaces",
    params(("space_id" = SpaceId, Path)), request_body = UpdateSpace)]
pub async fn update_space(
    State(platform): State<Platform>,
    caller: Caller,
    idempotency: Idempotency,
    Path(space): Path<SpaceId>,
    Json(body): Json<UpdateSpace>,
) -> CommandResult<Data<Space>> {
    let patch = body.meta.ok_or_else(|| Error::invalid_field("meta", "is required, a JSON object"))?;
    let mut tx = idempotency.begin().await?;
    let mut meta = store::lock_meta(&mut tx, caller.project, space).await?.ok_or(NOT_FOUND)?;
    meta.extend(patch);
    validate_storable("meta", &meta, platform.config.limits.meta)?;
    let space = store::set_meta(&mut tx, caller.project, space, &meta).await?;
    tx.commit(response::ok(space)).await
}

/// Delete a learning space
///
/// Its skills and sessions stay.
#[utoipa::path(delete, path = "/api/v1/learning_spaces/{space_id}", tag = "learning_spaces",
    params(("space_id" = SpaceId, Path)))]
pub async fn delete_space(
    caller: Caller,
    idempotency: Idempotency,
    Path(space): Path<SpaceId>,
) -> CommandResult<Empty> {
    let mut tx = idempotency.begin().await?;
    let deleted = store::delete(&mut tx, caller.project, space).await?;
    if deleted { tx.commit(response::message("ok")).await } else { Err(NOT_FOUND.into()) }
}
