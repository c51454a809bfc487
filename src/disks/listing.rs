//! The routes that answer with many files: a directory, and what grep and glob find.

use axum::extract::State;
use serde::{Deserialize, Serialize};

use super::artifacts::check_disk;
use super::path::Directory;
use super::{Artifact, files, search};
use crate::auth::Caller;
use crate::disks::Disks;
use crate::error::{Error, Result};
use crate::http::extract::{Int, Path, Query};
use crate::http::response::{self, Data, ListOf, QueryResult};
use crate::ids::DiskId;

/// What the files of one listing may have in their `meta`, all together.
const LIST_BYTES: usize = 64 << 20;

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListArtifacts {
    /// The directory, with a slash at both ends.
    #[serde(default)]
    #[param(default = "/", example = "/docs/")]
    path: Option<String>,
}

#[derive(Serialize, utoipa::ToSchema)]
pub struct ListedArtifacts {
    /// The files that lie directly in it, by name.
    artifacts: Vec<Artifact>,
    /// The names of the directories directly below it.
    directories: Vec<String>,
}

/// List a directory
#[utoipa::path(get, path = "/api/v1/disk/{disk_id}/artifact/ls", tag = "artifact",
    params(("disk_id" = DiskId, Path), ListArtifacts))]
pub async fn list_artifacts(
    State(ctx): State<Disks>,
    caller: Caller,
    Path(disk): Path<DiskId>,
    Query(query): Query<ListArtifacts>,
) -> QueryResult<Data<ListedArtifacts>> {
    check_disk(&ctx, &caller, disk).await?;
    let within = Directory::parse(query.path.as_deref())?;
    let limit = ctx.config.limits.list;
    let mut conn = ctx.db.acquire().await?;
    let Some(found) = files::list(&mut conn, disk, &within, limit, LIST_BYTES).await? else {
        return Err(Error::PayloadTooLarge(format!(
            "the directory holds more than {limit} files, or too much is kept with them; narrow it down with glob"
        )));
    };
    let directories = files::list_directories(&mut conn, disk, &within).await?;
    let artifacts = found.into_iter().map(Artifact::from).collect();
    Ok(response::ok(ListedArtifacts { artifacts, directories: directories.into_iter().collect() }))
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct SearchArtifacts {
    /// What to look for.
    #[param(required = true)]
    #[serde(default)]
    query: Option<String>,
    /// How many files at most.
    #[serde(default)]
    #[param(value_type = Option<u16>, minimum = 0, maximum = 200, default = 100)]
    limit: Option<Int>,
}

impl SearchArtifacts {
    /// The pattern and the limit; 0 stands for the default.
    fn parse(&self, longest: usize) -> Result<(&str, usize)> {
        let pattern = self.query.as_deref().unwrap_or_default();
        if pattern.is_empty() {
            return Err(Error::invalid_field("query", "is required"));
        }
        if pattern.chars().count() > longest {
            return Err(Error::invalid_field("query", format_args!("must not be longer than {longest} characters")));
        }
        match self.limit.and_then(Int::given).unwrap_or_default() {
            0 => Ok((pattern, 100)),
            limit @ 1..=200 => Ok((pattern, usize::try_from(limit).map_err(Error::internal)?)),
            _ => Err(Error::invalid_field("limit", "must be from 0 to 200")),
        }
    }
}

/// Find files by their text
///
/// `query` is a regular expression of Rust's `regex` crate, case-insensitive, `^` and `$` at each line. Answers with the
/// files that contain a match, by path and name.
#[utoipa::path(get, path = "/api/v1/disk/{disk_id}/artifact/grep", tag = "artifact",
    params(("disk_id" = DiskId, Path), SearchArtifacts))]
pub async fn grep_artifacts(
    State(ctx): State<Disks>,
    caller: Caller,
    Path(disk): Path<DiskId>,
    Query(query): Query<SearchArtifacts>,
) -> QueryResult<ListOf<Artifact>> {
    check_disk(&ctx, &caller, disk).await?;
    let (pattern, limit) = query.parse(ctx.config.limits.pattern)?;
    let found = search::grep(&ctx, &caller.encryption, disk, pattern, limit).await?;
    Ok(response::list(found.into_iter().map(Artifact::from).collect()))
}

/// Find files by their names
///
/// `query` is matched against path and name together: `*` and `**` for any characters (slashes too), `?` for one, `[a-z]` and
/// `[!a-z]` for one of a class. Answers by path and name.
#[utoipa::path(get, path = "/api/v1/disk/{disk_id}/artifact/glob", tag = "artifact",
    params(("disk_id" = DiskId, Path), SearchArtifacts))]
pub async fn glob_artifacts(
    State(ctx): State<Disks>,
    caller: Caller,
    Path(disk): Path<DiskId>,
    Query(query): Query<SearchArtifacts>,
) -> QueryResult<ListOf<Artifact>> {
    check_disk(&ctx, &caller, disk).await?;
    let (pattern, limit) = query.parse(ctx.config.limits.pattern)?;
    let found = search::glob(&ctx, disk, pattern, limit).await?;
    Ok(response::list(found.into_iter().map(Artifact::from).collect()))
}
