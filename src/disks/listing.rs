//! HTTP handlers that return several artifacts: the listing of a directory, grep and glob.

use axum::extract::State;
use serde::{Deserialize, Serialize};

use super::artifacts::ensure_disk_access;
use super::path::Directory;
use super::{Artifact, files, search};
use crate::auth::Caller;
use crate::disks::Disks;
use crate::error::{Error, Result};
use crate::http::extract::{LenientInt, Path, Query};
use crate::http::response::{self, Data, ListOf, QueryResult};
use crate::ids::DiskId;

/// The maximum total size of the user metadata in one listing, in bytes.
const MAX_LISTING_META_BYTES: usize = 64 << 20;

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListArtifactsParams {
    /// The directory, with a leading and a trailing slash.
    #[serde(default)]
    #[param(default = "/", example = "/docs/")]
    path: Option<String>,
}

#[derive(Serialize, utoipa::ToSchema)]
pub struct ListArtifactsResponse {
    /// The files directly in the directory, ordered by name.
    artifacts: Vec<Artifact>,
    /// The names of the subdirectories, in order.
    directories: Vec<String>,
}

/// List a directory
#[utoipa::path(get, path = "/api/v1/disk/{disk_id}/artifact/ls", tag = "artifact",
    params(("disk_id" = DiskId, Path), ListArtifactsParams))]
pub async fn list_artifacts(
    State(ctx): State<Disks>,
    caller: Caller,
    Path(disk): Path<DiskId>,
    Query(query): Query<ListArtifactsParams>,
) -> QueryResult<Data<ListArtifactsResponse>> {
    ensure_disk_access(&ctx, &caller, disk).await?;
    let dir = Directory::parse(query.path.as_deref())?;
    let limit = ctx.config.limits.max_list_entries;
    let mut conn = ctx.db.acquire().await?;
    let Some(files) = files::list(&mut conn, disk, &dir, limit, MAX_LISTING_META_BYTES).await? else {
        return Err(Error::PayloadTooLarge(format!(
            "path: the directory has more than {limit} files or {MAX_LISTING_META_BYTES} bytes of metadata; \
             list a part of it with /artifact/glob"
        )));
    };
    let directories = files::list_directories(&mut conn, disk, &dir).await?;
    let artifacts = files.into_iter().map(Artifact::from).collect();
    Ok(response::ok(ListArtifactsResponse { artifacts, directories: directories.into_iter().collect() }))
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct SearchArtifactsParams {
    /// The pattern: a regular expression for grep, or a glob pattern for glob.
    #[param(required = true)]
    #[serde(default)]
    query: Option<String>,
    /// Maximum number of files; 0 means the default.
    #[serde(default)]
    #[param(value_type = Option<u16>, minimum = 0, maximum = 200, default = 100)]
    limit: Option<LenientInt>,
}

impl SearchArtifactsParams {
    /// Returns the pattern and the limit. Returns 400 if one of them is invalid.
    fn parse(&self, max_chars: usize) -> Result<(&str, usize)> {
        let pattern = self.query.as_deref().unwrap_or_default();
        if pattern.is_empty() {
            return Err(Error::invalid_field("query", "is required"));
        }
        if pattern.chars().count() > max_chars {
            return Err(Error::invalid_field("query", format_args!("must not be longer than {max_chars} characters")));
        }
        match self.limit.and_then(LenientInt::get).unwrap_or_default() {
            0 => Ok((pattern, 100)),
            limit @ 1..=200 => Ok((pattern, usize::try_from(limit).map_err(Error::internal)?)),
            _ => Err(Error::invalid_field("limit", "must be from 0 to 200")),
        }
    }
}

/// Search file contents
///
/// `query` is a regular expression in the syntax of Rust's `regex` crate. It is case-insensitive, and `^` and `$` match at each
/// line. Returns the text files that contain a match, ordered by path and name.
#[utoipa::path(get, path = "/api/v1/disk/{disk_id}/artifact/grep", tag = "artifact",
    params(("disk_id" = DiskId, Path), SearchArtifactsParams))]
pub async fn grep_artifacts(
    State(ctx): State<Disks>,
    caller: Caller,
    Path(disk): Path<DiskId>,
    Query(query): Query<SearchArtifactsParams>,
) -> QueryResult<ListOf<Artifact>> {
    ensure_disk_access(&ctx, &caller, disk).await?;
    let (pattern, limit) = query.parse(ctx.config.limits.max_pattern_chars)?;
    let files = search::grep(&ctx, &caller.encryption, disk, pattern, limit).await?;
    Ok(response::list(files.into_iter().map(Artifact::from).collect()))
}

/// Search file paths
///
/// `query` is a glob pattern for the full path: `*` and `**` match any characters including slashes, `?` matches one character,
/// `[a-z]` and `[!a-z]` match one character of a class or outside of it. Returns files ordered by path and name.
#[utoipa::path(get, path = "/api/v1/disk/{disk_id}/artifact/glob", tag = "artifact",
    params(("disk_id" = DiskId, Path), SearchArtifactsParams))]
pub async fn glob_artifacts(
    State(ctx): State<Disks>,
    caller: Caller,
    Path(disk): Path<DiskId>,
    Query(query): Query<SearchArtifactsParams>,
) -> QueryResult<ListOf<Artifact>> {
    ensure_disk_access(&ctx, &caller, disk).await?;
    let (pattern, limit) = query.parse(ctx.config.limits.max_pattern_chars)?;
    let files = search::glob(&ctx, disk, pattern, limit).await?;
    Ok(response::list(files.into_iter().map(Artifact::from).collect()))
}
