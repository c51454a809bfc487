//! Disks and the files (artifacts) on them.
//!
//! [`api`] has the handlers for disks. [`artifacts`] has the handlers for one file, and [`listing`] has those that return several
//! files. [`path`] validates the paths of files. [`store`] has the SQL of disks, [`files`] has the SQL that reads files, and
//! [`apply`] has the SQL that changes files and their versions. [`changes`] has the causes of these changes. [`search`]
//! implements glob and grep, and [`text_kind`] detects text files.

pub mod api;
pub mod apply;
pub mod artifacts;
pub mod changes;
pub mod file_content;
pub mod files;
pub mod listing;
pub mod path;
pub mod pattern;
pub mod sandbox;
pub mod search;
pub mod store;
pub mod text_kind;

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::Semaphore;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::db::page::impl_paged;
use crate::ids::{DiskId, ProjectId, UserId};
use crate::platform::{Platform, platform_context};
use crate::sandboxes::Sandboxes;
use crate::text_enum::text_enum;
use crate::time::Timestamp;

platform_context! {
    /// The state of the handlers for disks and artifacts.
    Disks, DisksInner
}

/// The fields of [`Disks`].
pub struct DisksInner {
    platform: Platform,
    pub sandboxes: Sandboxes,
    /// Has one permit for each grep that may run concurrently.
    pub grep_limiter: Arc<Semaphore>,
    /// Has one permit for each glob that may run concurrently.
    pub glob_limiter: Arc<Semaphore>,
}

impl Disks {
    pub fn new(platform: Platform, sandboxes: Sandboxes) -> Self {
        let limiter = |permits| Arc::new(Semaphore::new(permits));
        let grep_limiter = limiter(search::MAX_CONCURRENT_GREPS);
        let glob_limiter = limiter(search::MAX_CONCURRENT_GLOBS);
        Self(Arc::new(DisksInner { platform, sandboxes, grep_limiter, glob_limiter }))
    }
}

pub fn router() -> OpenApiRouter<Disks> {
    OpenApiRouter::new()
        .routes(routes!(api::create_disk, api::list_disks))
        .routes(routes!(api::delete_disk))
        .routes(routes!(
            artifacts::upsert_artifact,
            artifacts::get_artifact,
            artifacts::update_artifact,
            artifacts::delete_artifact
        ))
        .routes(routes!(artifacts::download_artifact))
        .routes(routes!(sandbox::download_to_sandbox))
        .routes(routes!(sandbox::upload_from_sandbox))
        .routes(routes!(listing::list_artifacts))
        .routes(routes!(listing::grep_artifacts))
        .routes(routes!(listing::glob_artifacts))
}

/// A disk.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Disk {
    pub id: DiskId,
    pub project_id: ProjectId,
    pub user_id: Option<UserId>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl_paged!(Disk);

text_enum! {
    /// The Unix permissions of a file. They are part of its version.
    pub enum FileMode {
        Regular = "0644",
        /// A program that extracts the file may make it executable.
        Executable = "0755",
    }
}

impl FileMode {
    /// The bits of a Unix mode that permit execution.
    const EXECUTE_BITS: u32 = 0o111;

    /// Returns the mode of a file with these Unix permissions.
    pub const fn from_permissions(permissions: u32) -> Self {
        if permissions & Self::EXECUTE_BITS == 0 { Self::Regular } else { Self::Executable }
    }

    /// Returns the Unix permissions.
    pub const fn permissions(self) -> u32 {
        match self {
            Self::Regular => 0o644,
            Self::Executable => 0o755,
        }
    }
}

/// The key in an artifact's `meta` that is reserved for the server.
pub const ARTIFACT_INFO_KEY: &str = "__artifact_info__";

/// A file on a disk.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Artifact {
    pub disk_id: DiskId,
    /// The directory, with a leading and a trailing slash.
    #[schema(example = "/docs/")]
    pub path: String,
    #[schema(example = "notes.md")]
    pub filename: String,
    /// Client-supplied metadata. The server adds the key `__artifact_info__`, which has the path, file name, MIME type and size
    /// in bytes of the file.
    #[schema(value_type = Object)]
    pub meta: Map<String, Value>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl From<files::ArtifactRow> for Artifact {
    fn from(row: files::ArtifactRow) -> Self {
        let info = serde_json::json!({
            "path": row.path,
            "filename": row.filename,
            "mime": row.mime,
            "size": row.size,
        });
        let mut meta = row.meta.0;
        meta.insert(ARTIFACT_INFO_KEY.into(), info);
        Self {
            disk_id: row.disk_id,
            path: row.path,
            filename: row.filename,
            meta,
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}
