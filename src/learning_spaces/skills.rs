//! HTTP handlers for the skills of a learning space.

use axum::extract::State;
use serde::Deserialize;

use super::{LEARNING_SPACE_NOT_FOUND, LearningSpaceSkill, store};
use crate::auth::Caller;
use crate::error::Error;
use crate::http::extract::{Json, Path, RequestBody};
use crate::http::idempotency::Idempotency;
use crate::http::response::{self, CommandResult, Created, Empty, ListOf, QueryResult};
use crate::ids::{LearningSpaceId, SkillId};
use crate::platform::Platform;
use crate::skills::api::{MAX_FILES_PER_RESPONSE, list_files};
use crate::skills::{self, Skill};

#[derive(Deserialize, utoipa::ToSchema)]
pub struct IncludeSkillRequest {
    /// Id of the skill.
    #[serde(default)]
    #[schema(value_type = SkillId, required = true)]
    skill_id: Option<String>,
}

impl RequestBody for IncludeSkillRequest {
    const HAS_FREE_FORM_OBJECT: bool = false;
}

/// Add a skill to a learning space
///
/// Skill names are unique within a learning space.
#[utoipa::path(post, path = "/api/v1/learning_spaces/{space_id}/skills", tag = "learning_spaces",
    params(("space_id" = LearningSpaceId, Path)), request_body = IncludeSkillRequest)]
pub async fn include_skill(
    caller: Caller,
    idempotency: Idempotency,
    Path(space): Path<LearningSpaceId>,
    Json(body): Json<IncludeSkillRequest>,
) -> CommandResult<Created<LearningSpaceSkill>> {
    let skill: SkillId = match body.skill_id.as_deref() {
        None | Some("") => Err("is required"),
        Some(text) => text.parse(),
    }
    .map_err(|reason| Error::invalid_field("skill_id", reason))?;
    let mut tx = idempotency.begin().await?;
    if !store::lock_for_share(&mut tx, caller.project, space).await? {
        return Err(LEARNING_SPACE_NOT_FOUND.into());
    }
    let name = skills::store::lock_for_share(&mut tx, caller.project, skill).await?;
    let name = name.ok_or(skills::api::SKILL_NOT_FOUND)?;
    if let Some(space_skill) = store::add_skill(&mut tx, space, skill, &name).await? {
        return tx.commit(response::created(space_skill)).await;
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
/// Returns all skills, in the order in which they were added.
#[utoipa::path(get, path = "/api/v1/learning_spaces/{space_id}/skills", tag = "learning_spaces",
    params(("space_id" = LearningSpaceId, Path)))]
pub async fn list_space_skills(
    State(platform): State<Platform>,
    caller: Caller,
    Path(space): Path<LearningSpaceId>,
) -> QueryResult<ListOf<Skill>> {
    let limit = platform.config.limits.max_list_entries;
    let mut conn = platform.db.acquire().await?;
    if !store::exists(&mut conn, caller.project, space).await? {
        return Err(LEARNING_SPACE_NOT_FOUND);
    }
    let rows = skills::store::list_by_space(&mut conn, caller.project, space, limit.saturating_add(1)).await?;
    let files = list_files(&mut conn, &platform, &rows).await?;
    // `list_files` returns fewer lists if the skills have too many files.
    if rows.len() > limit || files.len() < rows.len() {
        let msg = format!(
            "the learning space has more than {limit} skills or {MAX_FILES_PER_RESPONSE} files; request the skills \
             individually"
        );
        return Err(Error::PayloadTooLarge(msg));
    }
    let skills = rows.into_iter().zip(files).map(|(row, files)| row.with_files(files));
    Ok(response::list(skills.collect()))
}

/// Remove a skill from a learning space
///
/// The skill itself is not deleted. Succeeds if the skill is not in the learning space.
#[utoipa::path(delete, path = "/api/v1/learning_spaces/{space_id}/skills/{skill_id}", tag = "learning_spaces",
    params(("space_id" = LearningSpaceId, Path), ("skill_id" = SkillId, Path)))]
pub async fn exclude_skill(
    caller: Caller,
    idempotency: Idempotency,
    Path(space): Path<LearningSpaceId>,
    Path(skill): Path<SkillId>,
) -> CommandResult<Empty> {
    let mut tx = idempotency.begin().await?;
    if !store::lock_for_share(&mut tx, caller.project, space).await? {
        return Err(LEARNING_SPACE_NOT_FOUND.into());
    }
    store::remove_skill(&mut tx, space, skill).await?;
    tx.commit(response::ok_message("ok")).await
}
