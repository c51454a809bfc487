//! Agent skills: directories of instructions and files that an agent can load.
//!
//! A skill is a disk with a name. Its files are the artifacts of this disk: they can also be read and changed with the routes of
//! disks, and have versions. Each change of a file updates the skill's `updated_at`.
//!
//! [`api`] has the handlers for skills, and [`files`] those for the files of a skill. [`upload`] stores the files of an uploaded
//! archive, which [`archive`] and [`front_matter`] read and validate. [`create`] inserts uploaded skills and default skills, and
//! [`store`] has the SQL.

pub mod api;
pub mod archive;
pub mod create;
pub mod files;
pub mod front_matter;
pub mod sandbox;
pub mod store;
pub mod upload;

use serde::Serialize;
use serde_json::{Map, Value};
use sqlx::types::Json;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::ids::{DiskId, SkillId, UserId};
use crate::platform::Platform;
use crate::sandboxes::Sandboxes;
use crate::time::Timestamp;

pub fn router() -> OpenApiRouter<Platform> {
    OpenApiRouter::new()
        .routes(routes!(api::create_skill, api::list_skills))
        .routes(routes!(api::get_skill, api::delete_skill))
        .routes(routes!(files::get_skill_file))
        .routes(routes!(files::download_skill))
}

/// The routes that need a provider of sandboxes.
pub fn sandbox_router() -> OpenApiRouter<Sandboxes> {
    OpenApiRouter::new().routes(routes!(sandbox::download_skill_to_sandbox))
}

/// A skill.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Skill {
    pub id: SkillId,
    pub user_id: Option<UserId>,
    #[schema(example = "pdf-forms")]
    pub name: String,
    pub description: String,
    /// The disk with the skill's files. Absent in the list of a project's skills.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_id: Option<DiskId>,
    /// The files of the skill, ordered by directory and file name, by default at most 10 000. The response to the creation of a
    /// skill has all files, in the order of the archive.
    pub file_index: Vec<FileEntry>,
    /// Client-supplied metadata.
    #[schema(value_type = Option<Object>)]
    pub meta: Option<Json<Map<String, Value>>>,
    pub created_at: Timestamp,
    /// Time of the last change of a file of the skill.
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
