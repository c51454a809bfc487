//! HTTP handlers for learning spaces.

use axum::extract::State;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::store::{self, LearningSpaceFilter};
use super::{LEARNING_SPACE_NOT_FOUND, LearningSpace, defaults};
use crate::auth::Caller;
use crate::db::page::PageRequest;
use crate::error::{Error, MapConstraint, UNAUTHORIZED};
use crate::http::extract::{Json, Path, Query, RequestBody};
use crate::http::idempotency::Idempotency;
use crate::http::json_fields::{parse_containment_filter, validate_storable};
use crate::http::page::{Page, PageParams};
use crate::http::response::{self, CommandResult, Created, Data, Empty, PageBody, QueryResult};
use crate::ids::LearningSpaceId;
use crate::platform::Platform;
use crate::skills::create::SkillOrigin;
use crate::users::{self, UserIdentifier};

#[derive(Deserialize, utoipa::ToSchema)]
pub struct CreateLearningSpaceRequest {
    /// Identifier of the owning user. The user is created if it does not exist.
    #[serde(default, deserialize_with = "users::deserialize_optional")]
    #[schema(value_type = Option<String>, max_length = 1024)]
    user: Option<UserIdentifier>,
    /// Client-supplied metadata.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    meta: Option<Map<String, Value>>,
}

impl RequestBody for CreateLearningSpaceRequest {
    const HAS_FREE_FORM_OBJECT: bool = true;
}

/// Create a learning space
///
/// The new learning space contains two default skills: daily logs and general facts about the user.
#[utoipa::path(post, path = "/api/v1/learning_spaces", tag = "learning_spaces",
    request_body = CreateLearningSpaceRequest)]
pub async fn create_space(
    State(platform): State<Platform>,
    caller: Caller,
    idempotency: Idempotency,
    Json(body): Json<CreateLearningSpaceRequest>,
) -> CommandResult<Created<LearningSpace>> {
    if let Some(meta) = &body.meta {
        validate_storable("meta", meta, platform.config.limits.max_meta_bytes)?;
    }
    caller.encryption.ensure_can_store()?;
    idempotency.replay_if_completed().await?;
    let mut attempts = idempotency.tx_attempts();
    loop {
        let (skills, contents) = defaults::upload_default_skills(&platform, &caller.encryption).await?;
        let mut tx = attempts.begin().await?;
        let Some(blobs) = contents.make_live(&mut tx).await? else {
            // A concurrent change made the upload of the skills invalid. The next attempt uploads them again.
            tx.rollback().await?;
            continue;
        };
        let user = users::resolve_or_create(&mut tx, caller.project, body.user.as_ref()).await?;
        let space = store::insert(&mut tx, caller.project, user, body.meta.as_ref()).await;
        let space = space.map_constraint_err("learning_spaces_project_id_fkey", || UNAUTHORIZED)?;
        for skill in &skills {
            let origin = SkillOrigin::request(&caller, user, None);
            let skill = skill.insert(&mut tx, &platform, origin, &blobs).await?;
            store::add_skill(&mut tx, space.id, skill.id, &skill.name).await?;
        }
        return tx.commit(response::created(space)).await;
    }
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListLearningSpacesParams {
    /// Only learning spaces of the user with this identifier.
    #[serde(default)]
    user: Option<String>,
    /// A JSON object as text. Only learning spaces whose `meta` contains it.
    #[serde(default)]
    #[param(example = "{\"source\": \"cli\"}")]
    filter_by_meta: Option<String>,
}

/// List learning spaces
#[utoipa::path(
    get,
    path = "/api/v1/learning_spaces",
    tag = "learning_spaces",
    params(ListLearningSpacesParams, PageParams)
)]
pub async fn list_spaces(
    State(platform): State<Platform>,
    caller: Caller,
    Query(query): Query<ListLearningSpacesParams>,
    Query(page): Query<PageParams>,
) -> QueryResult<PageBody<LearningSpace>> {
    let page: PageRequest = page.parse(20, 200)?;
    let user = users::validate_filter(query.user.as_deref())?;
    let max_bytes = platform.config.limits.max_meta_bytes;
    let meta = parse_containment_filter("filter_by_meta", query.filter_by_meta.as_deref(), max_bytes)?;
    let mut conn = platform.db.acquire().await?;
    let spaces = store::list(&mut conn, caller.project, LearningSpaceFilter { user, meta }, &page).await?;
    Ok(response::page(&Page::new(spaces, &page)))
}

/// Get a learning space
#[utoipa::path(get, path = "/api/v1/learning_spaces/{space_id}", tag = "learning_spaces",
    params(("space_id" = LearningSpaceId, Path)))]
pub async fn get_space(
    State(platform): State<Platform>,
    caller: Caller,
    Path(space): Path<LearningSpaceId>,
) -> QueryResult<Data<LearningSpace>> {
    let mut conn = platform.db.acquire().await?;
    store::get(&mut conn, caller.project, space).await?.map(response::ok).ok_or(LEARNING_SPACE_NOT_FOUND)
}

#[derive(Deserialize, utoipa::ToSchema)]
pub struct UpdateLearningSpaceRequest {
    /// Top-level keys to set; other keys are unchanged. `null` is stored as a value.
    #[serde(default)]
    #[schema(value_type = Object, required = true)]
    meta: Option<Map<String, Value>>,
}

impl RequestBody for UpdateLearningSpaceRequest {
    const HAS_FREE_FORM_OBJECT: bool = true;
}

/// Update a learning space's metadata
///
/// Sets top-level keys; other keys are unchanged.
#[utoipa::path(patch, path = "/api/v1/learning_spaces/{space_id}", tag = "learning_spaces",
    params(("space_id" = LearningSpaceId, Path)), request_body = UpdateLearningSpaceRequest)]
pub async fn update_space(
    State(platform): State<Platform>,
    caller: Caller,
    idempotency: Idempotency,
    Path(space): Path<LearningSpaceId>,
    Json(body): Json<UpdateLearningSpaceRequest>,
) -> CommandResult<Data<LearningSpace>> {
    let patch = body.meta.ok_or_else(|| Error::invalid_field("meta", "is required and must be a JSON object"))?;
    let mut tx = idempotency.begin().await?;
    let mut meta = store::lock_meta(&mut tx, caller.project, space).await?.ok_or(LEARNING_SPACE_NOT_FOUND)?;
    meta.extend(patch);
    validate_storable("meta", &meta, platform.config.limits.max_meta_bytes)?;
    let space = store::set_meta(&mut tx, caller.project, space, &meta).await?;
    tx.commit(response::ok(space)).await
}

/// Delete a learning space
///
/// Its skills and sessions are not deleted.
#[utoipa::path(delete, path = "/api/v1/learning_spaces/{space_id}", tag = "learning_spaces",
    params(("space_id" = LearningSpaceId, Path)))]
pub async fn delete_space(
    caller: Caller,
    idempotency: Idempotency,
    Path(space): Path<LearningSpaceId>,
) -> CommandResult<Empty> {
    let mut tx = idempotency.begin().await?;
    let deleted = store::delete(&mut tx, caller.project, space).await?;
    if deleted { tx.commit(response::ok_message("ok")).await } else { Err(LEARNING_SPACE_NOT_FOUND.into()) }
}
