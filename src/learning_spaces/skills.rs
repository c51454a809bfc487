//! The routes of the skills in a learning space.

use axum::extract::State;
use serde::Deserialize;

use super::{NOT_FOUND, SpaceSkill, store};
use crate::auth::Caller;
use crate::error::Error;
use crate::http::extract::{Json, Path, RequestBody};
use crate::http::idempotency::Idempotency;
use crate::http::response::{self, CommandResult, Created, Empty, ListOf, QueryResult};
use crate::ids::{SkillId, SpaceId};
use crate::platform::Platform;
use crate::skills::api::list_files;
use crate::skills::{self, Skill};

#[derive(Deserialize, utoipa::ToSchema)]
pub struct IncludeSkill {
    #[serde(default)]
    #[schema(value_type = SkillId, required = true)]
    skill_id: Option<String>,
}

impl RequestBody for IncludeSkill {
    const IS_FREE_FORM: bool = false;
}

/// Put a skill into a learning space
///
/// A space has one skill of each name.
#[utoipa::path(post, path = "/api/v1/learning_spaces/{space_id}/skills", tag = "learning_spaces",
    params(("space_id" = SpaceId, Path)), request_body = IncludeSkill)]
pub async fn include_skill(
    caller: Caller,
    idempotency: Idempotency,
    Path(space): Path<SpaceId>,
    Json(body): Json<IncludeSkill>,
) -> CommandResult<Created<SpaceSkill>> {
    let skill: SkillId = match body.skill_id.as_deref() {
        None | Some("") => Err("is required"),
        Some(text) => text.parse(),
    }
    .map_err(|wrong| Error::invalid_field("skill_id", wrong))?;
    let mut tx = idempotency.begin().await?;
    if !store::hold(&mut tx, caller.project, space).await? {
        return Err(NOT_FOUND.into());
    }
    let name = skills::store::hold(&mut tx, caller.project, skill).await?.ok_or(skills::api::NOT_FOUND)?;
    if let Some(included) = store::include(&mut tx, space, skill, &name).await? {
        return tx.commit(response::created(included)).await;
    }
    Err(if store::has_skill(&mut tx, space, skill).await? {
        Error::Conflict("skill already included in this space".into())
    } else {
        Error::Conflict(format!("skill with name '{name}' already exists in this space").into())
    }
    .into())
}

/// List the skills of a learning space
///
/// All of them, in the order they came into it.
#[utoipa::path(get, path = "/api/v1/learning_spaces/{space_id}/skills", tag = "learning_spaces",
    params(("space_id" = SpaceId, Path)))]
pub async fn list_space_skills(
    State(platform): State<Platform>,
    caller: Caller,
    Path(space): Path<SpaceId>,
) -> QueryResult<ListOf<Skill>> {
    let limit = platform.config.limits.list;
    let mut conn = platform.db.acquire().await?;
    if !store::exists(&mut conn, caller.project, space).await? {
        return Err(NOT_FOUND);
    }
    let rows = skills::store::list_by_space(&mut conn, caller.project, space, limit.saturating_add(1)).await?;
    let files = list_files(&mut conn, &platform, &rows).await?;
    if rows.len() > limit || files.len() < rows.len() {
        let msg = format!("the space has more than {limit} skills, or more files than one answer shows");
        return Err(Error::PayloadTooLarge(msg));
    }
    let skills = rows.into_iter().zip(files).map(|(row, files)| row.with_files(files));
    Ok(response::list(skills.collect()))
}

/// Take a skill out of a learning space
///
/// The skill itself stays. One that is not in the space is fine.
#[utoipa::path(delete, path = "/api/v1/learning_spaces/{space_id}/skills/{skill_id}", tag = "learning_spaces",
    params(("space_id" = SpaceId, Path), ("skill_id" = SkillId, Path)))]
pub async fn exclude_skill(
    caller: Caller,
    idempotency: Idempotency,
    Path(space): Path<SpaceId>,
    Path(skill): Path<SkillId>,
) -> CommandResult<Empty> {
    let mut tx = idempotency.begin().await?;
    if !store::hold(&mut tx, caller.project, space).await? {
        return Err(NOT_FOUND.into());
    }
    store::exclude(&mut tx, space, skill).await?;
    tx.commit(response::message("ok")).await
}
