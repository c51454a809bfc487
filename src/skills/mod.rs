//! Agent skills: folders of instructions and files that an agent can take up.
//!
//! A skill is a disk with a name. Its files are the disk's, are read and changed through the disk as well, and keep their
//! versions there; whoever changes one moves the skill's `updated_at`.
//!
//! [`api`] has the routes of skills, [`files`] those of what is in one. [`archive`] and [`front_matter`] read what a skill comes
//! as, [`create`] is the one way a skill comes into being, [`store`] the SQL.

pub mod api;
pub mod archive;
pub mod create;
pub mod files;
pub mod front_matter;
pub mod store;
pub mod upload;

use serde::Serialize;
use serde_json::{Map, Value};
use sqlx::types::Json;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::ids::{DiskId, SkillId, UserId};
use crate::platform::Platform;
use crate::time::Timestamp;

pub fn router() -> OpenApiRouter<Platform> {
    OpenApiRouter::new()
        .routes(routes!(api::create_skill, api::list_skills))
        .routes(routes!(api::get_skill, api::delete_skill))
        .routes(routes!(files::get_skill_file))
        .routes(routes!(files::download_skill))
}

/// A skill.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Skill {
    pub id: SkillId,
    pub user_id: Option<UserId>,
    #[schema(example = "pdf-forms")]
    pub name: String,
    pub description: String,
    /// The disk that its files lie on. Left out of entries of a list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_id: Option<DiskId>,
    pub file_index: Vec<FileEntry>,
    /// What the client keeps with it.
    #[schema(value_type = Option<Object>)]
    pub meta: Option<Json<Map<String, Value>>>,
    pub created_at: Timestamp,
    /// Moves whenever a file of the skill changes.
    pub updated_at: Timestamp,
}

/// A file of a skill.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct FileEntry {
    #[schema(example = "scripts/run.py")]
    pub path: String,
    #[schema(example = "text/x-python; charset=utf-8")]
    pub mime: String,
}
