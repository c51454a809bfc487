//! SQL that reads files. The SQL that changes them is in [`apply`](super::apply).

use std::collections::BTreeSet;

use futures_util::TryStreamExt;
use serde_json::{Map, Value};
use sqlx::PgConnection;
use sqlx::types::Json;

use super::FileMode;
use super::path::{Directory, FilePath};
use crate::blob::rows::{EncryptionFormat, StoredBlob, stored_blob};
use crate::ids::{BlobId, DiskId, ProjectId, VersionId};
use crate::time::Timestamp;

/// A row of `current_artifacts`: a file, with the metadata and the blob of its current content.
#[derive(Debug)]
pub struct ArtifactRow {
    pub disk_id: DiskId,
    pub path: String,
    pub filename: String,
    pub meta: Json<Map<String, Value>>,
    pub mime: String,
    pub size: i64,
    /// SHA-256 of the content in lower-case hex.
    pub sha256: String,
    pub blob_id: BlobId,
    /// Key of the object that holds the content.
    pub object_key: String,
    pub encryption_format: Option<EncryptionFormat>,
    pub wrapped_key: Option<Vec<u8>>,
    pub mode: FileMode,
    /// The current version.
    pub version_id: VersionId,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl ArtifactRow {
    /// Returns the blob of the content.
    pub fn blob(&self) -> StoredBlob {
        StoredBlob {
            id: self.blob_id,
            object_key: self.object_key.clone(),
            size: self.size,
            sha256: self.sha256.clone(),
            encryption_format: self.encryption_format,
            wrapped_key: self.wrapped_key.clone(),
        }
    }
}

/// Selects [`ArtifactRow`]s from the relation that the caller names `c`, such as `current_artifacts c`.
macro_rules! select_files {
    ($rest:literal, $($parameter:expr),* $(,)?) => {
        sqlx::query_as!(
            ArtifactRow,
            r#"select c.disk_id as "disk_id!: DiskId", c.path as "path!", c.filename as "filename!",
                      c.meta as "meta!: Json<Map<String, Value>>", c.mime as "mime!", c.size as "size!",
                      c.sha256 as "sha256!", c.blob_id as "blob_id!: BlobId", c.object_key as "object_key!",
                      c.encryption_format as "encryption_format: EncryptionFormat", c.wrapped_key,
                      c.mode as "mode!: FileMode", c.version_id as "version_id!: VersionId",
                      c.created_at as "created_at!: Timestamp", c.updated_at as "updated_at!: Timestamp"
               from "# + $rest,
            $($parameter),*
        )
    };
}

/// Returns a file of a disk. Returns `None` if there is no such file, or if the disk does not belong to the project.
pub async fn get(
    conn: &mut PgConnection,
    project: ProjectId,
    disk: DiskId,
    path: &FilePath,
) -> sqlx::Result<Option<ArtifactRow>> {
    select_files!(
        "current_artifacts c join disks d on d.id = c.disk_id
         where d.project_id = $1 and c.disk_id = $2 and c.path = $3 and c.filename = $4",
        project as _,
        disk as _,
        path.directory(),
        path.filename(),
    )
    .fetch_optional(conn)
    .await
}

/// Returns the files with these paths, ordered by directory and file name. Omits paths at which there is no file.
pub async fn get_many(conn: &mut PgConnection, disk: DiskId, paths: &[ArtifactPath]) -> sqlx::Result<Vec<ArtifactRow>> {
    let directories: Vec<&str> = paths.iter().map(|path| path.path.as_str()).collect();
    let filenames: Vec<&str> = paths.iter().map(|path| path.filename.as_str()).collect();
    select_files!(
        // Because of `lateral … limit 1`, Postgres reads each path from the index, even if the table has no statistics yet.
        "unnest($2::text[], $3::text[]) as name (path, filename)
         cross join lateral (select * from current_artifacts a
                             where a.disk_id = $1 and a.path = name.path and a.filename = name.filename limit 1) c
         order by c.path, c.filename",
        disk as _,
        &directories as _,
        &filenames as _,
    )
    .fetch_all(conn)
    .await
}

/// Returns the files directly in a directory, ordered by name, or `None` if there are more than `limit`, or their metadata is
/// larger than `max_meta_bytes` in total.
pub async fn list(
    conn: &mut PgConnection,
    disk: DiskId,
    dir: &Directory,
    limit: usize,
    max_meta_bytes: usize,
) -> sqlx::Result<Option<Vec<ArtifactRow>>> {
    let mut rows = select_files!(
        "current_artifacts c where c.disk_id = $1 and c.path = $2 order by c.filename limit $3",
        disk as _,
        dir.as_str(),
        i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1),
    )
    .fetch(conn);
    let (mut files, mut meta_bytes) = (Vec::new(), 0);
    while let Some(file) = rows.try_next().await? {
        meta_bytes += serde_json::to_vec(&file.meta).map_or(0, |meta| meta.len());
        if files.len() == limit || meta_bytes > max_meta_bytes {
            return Ok(None);
        }
        files.push(file);
    }
    Ok(Some(files))
}

/// Returns up to `limit` files of a disk, ordered by directory and file name.
pub async fn list_all(conn: &mut PgConnection, disk: DiskId, limit: usize) -> sqlx::Result<Vec<ArtifactRow>> {
    select_files!(
        "current_artifacts c where c.disk_id = $1 order by c.path, c.filename limit $2",
        disk as _,
        i64::try_from(limit).unwrap_or(i64::MAX),
    )
    .fetch_all(conn)
    .await
}

/// Returns the files of several disks, ordered by directory and file name. Returns at most `per_disk_limit` files of each disk.
pub async fn list_on_disks(
    conn: &mut PgConnection,
    disks: &[DiskId],
    per_disk_limit: usize,
) -> sqlx::Result<Vec<ArtifactRow>> {
    select_files!(
        "unnest($1::uuid[]) as disk (id)
         cross join lateral (select * from current_artifacts a where a.disk_id = disk.id
                             order by a.path, a.filename limit $2) c
         order by c.path, c.filename",
        disks as _,
        i64::try_from(per_disk_limit).unwrap_or(i64::MAX),
    )
    .fetch_all(conn)
    .await
}

/// Returns the names of the subdirectories of a directory. The query does not read all their files. It is a loose index scan: it
/// reads the first file of a subdirectory from the index, and continues after the last file of this subdirectory. All paths below
/// a subdirectory are less than the name of the subdirectory followed by `0` (see [`Directory::upper_bound`]).
pub async fn list_directories(
    conn: &mut PgConnection,
    disk: DiskId,
    dir: &Directory,
) -> sqlx::Result<BTreeSet<String>> {
    let names = sqlx::query_scalar!(
        r#"with recursive directory (name) as (
               (select split_part(substr(a.path, length($2) + 1), '/', 1) from artifacts a
                where a.disk_id = $1 and a.path > $2 and a.path < $3 order by a.path limit 1)
               union all
               select (select split_part(substr(a.path, length($2) + 1), '/', 1) from artifacts a
                       where a.disk_id = $1 and a.path >= $2 || d.name || '0' and a.path < $3 order by a.path limit 1)
               from directory d where d.name is not null
           )
           select name as "name!" from directory where name <> ''"#,
        disk as _,
        dir.as_str(),
        dir.upper_bound(),
    )
    .fetch_all(conn)
    .await?;
    Ok(names.into_iter().collect())
}

/// The path of a file, as it is stored: not validated, unlike [`FilePath`].
#[derive(Clone, Debug, Default)]
pub struct ArtifactPath {
    /// The directory.
    pub path: String,
    pub filename: String,
}

/// Returns the paths of up to `limit` files, ordered by directory and file name. They come after `after`, and their directory
/// comes before `end`.
pub async fn list_paths(
    conn: &mut PgConnection,
    disk: DiskId,
    after: &ArtifactPath,
    end: &str,
    limit: i64,
) -> sqlx::Result<Vec<ArtifactPath>> {
    sqlx::query_as!(
        ArtifactPath,
        "select path, filename from artifacts
         where disk_id = $1 and (path, filename) > ($2, $3) and path < $4 order by path, filename limit $5",
        disk as _,
        after.path,
        after.filename,
        end,
        limit,
    )
    .fetch_all(conn)
    .await
}

/// A file that grep may search.
#[derive(Debug)]
pub struct GrepCandidate {
    pub path: ArtifactPath,
    pub mime: String,
    pub blob: StoredBlob,
}

/// Returns up to `limit` files that come after `after`, ordered by directory and file name.
pub async fn list_grep_candidates(
    conn: &mut PgConnection,
    disk: DiskId,
    after: &ArtifactPath,
    limit: i64,
) -> sqlx::Result<Vec<GrepCandidate>> {
    let rows = sqlx::query!(
        r#"select v.path, v.filename, v.mime, v.size, v.sha256, b.id as "blob_id: BlobId", b.object_key,
                  b.encryption_format as "encryption_format: EncryptionFormat", b.wrapped_key
           from artifact_versions v join blobs b on b.id = v.blob_id
           where v.disk_id = $1 and v.to_revision is null and (v.path, v.filename) > ($2, $3)
           order by v.path, v.filename limit $4"#,
        disk as _,
        after.path,
        after.filename,
        limit,
    )
    .fetch_all(conn)
    .await?;
    let candidates = rows.into_iter().map(|row| GrepCandidate {
        path: ArtifactPath { path: row.path, filename: row.filename },
        mime: row.mime,
        blob: stored_blob!(row),
    });
    Ok(candidates.collect())
}
