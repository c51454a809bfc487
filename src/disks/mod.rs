//! Disks and the files (artifacts) on them.
//!
//! [`api`] has the routes of disks, [`artifacts`] those of one file, [`listing`] those that answer with many; [`path`] says
//! what a file may be called. [`store`] is the SQL of disks, [`files`] reads files, and [`apply`] is the one place that
//! changes them and keeps each content as a version. [`search`] is glob and grep, [`parse`] what a file's text is shown as.

pub mod api;
pub mod apply;
pub mod artifacts;
pub mod files;
pub mod listing;
pub mod parse;
pub mod path;
pub mod search;
pub mod store;

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::Semaphore;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::db::page::impl_paged;
use crate::ids::{DiskId, ProjectId, UserId};
use crate::platform::{Platform, platform_context};
use crate::time::Timestamp;

platform_context! {
    /// The context of disks.
    Disks, DisksInner
}

pub struct DisksInner {
    platform: Platform,
    grep_limiter: Arc<Semaphore>,
}

impl Disks {
    pub fn new(platform: Platform) -> Self {
        Self(Arc::new(DisksInner { platform, grep_limiter: Arc::new(Semaphore::new(search::MAX_GREPS)) }))
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

/// The key in an artifact's `meta` that is the server's.
pub const INFO: &str = "__artifact_info__";

/// A file as clients see it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Artifact {
    pub disk_id: DiskId,
    /// The directory, with a slash at both ends.
    #[schema(example = "/docs/")]
    pub path: String,
    #[schema(example = "notes.md")]
    pub filename: String,
    /// What the client keeps with the file, and under `__artifact_info__` its path, filename, mime and size in bytes.
    #[schema(value_type = Object)]
    pub meta: Map<String, Value>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl From<files::File> for Artifact {
    fn from(file: files::File) -> Self {
        let info = serde_json::json!({
            "path": file.path,
            "filename": file.filename,
            "mime": file.mime,
            "size": file.size,
        });
        let mut meta = file.meta.0;
        meta.insert(INFO.into(), info);
        Self {
            disk_id: file.disk_id,
            path: file.path,
            filename: file.filename,
            meta,
            created_at: file.created_at,
            updated_at: file.updated_at,
        }
    }
}
