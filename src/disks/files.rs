//! SQL that reads files. What changes them is in `changes`.

use std::collections::BTreeSet;

use futures_util::TryStreamExt;
use serde_json::{Map, Value};
use sqlx::PgConnection;
use sqlx::types::Json;

use super::path::{Directory, FilePath};
use crate::blob::rows::{EncryptionFormat, StoredBlob, stored_blob};
use crate::ids::{BlobId, DiskId, ProjectId};
use crate::time::Timestamp;

/// A file with its current content.
#[derive(Debug)]
pub struct File {
    pub disk_id: DiskId,
    pub path: String,
    pub filename: String,
    pub meta: Json<Map<String, Value>>,
    pub mime: String,
    pub size: i64,
    /// Of the content, in lower-case hex.
    pub sha256: String,
    pub blob_id: BlobId,
    /// Where the bytes are, and what it takes to open them.
    pub object_key: String,
    pub encryption_format: Option<EncryptionFormat>,
    pub wrapped_key: Option<Vec<u8>>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl File {
    /// The content, to be read.
    pub fn stored(&self) -> StoredBlob {
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

/// Files with their current content, from whatever the caller calls `c`.
macro_rules! select_files {
    ($rest:literal, $($parameter:expr),* $(,)?) => {
        sqlx::query_as!(
            File,
            r#"select c.disk_id as "disk_id!: DiskId", c.path as "path!", c.filename as "filename!",
                      c.meta as "meta!: Json<Map<String, Value>>", c.mime as "mime!", c.size as "size!",
                      c.sha256 as "sha256!", c.blob_id as "blob_id!: BlobId", c.object_key as "object_key!",
                      c.encryption_format as "encryption_format: EncryptionFormat", c.wrapped_key, c.created_at as "created_at!: Timestamp",
                      c.updated_at as "updated_at!: Timestamp"
               from "# + $rest,
            $($parameter),*
        )
    };
}

/// A file of a project's disk.
pub async fn get(
    conn: &mut PgConnection,
    project: ProjectId,
    disk: DiskId,
    at: &FilePath,
) -> sqlx::Result<Option<File>> {
    select_files!(
        "current_artifacts c join disks d on d.id = c.disk_id
         where d.project_id = $1 and c.disk_id = $2 and c.path = $3 and c.filename = $4",
        project as _,
        disk as _,
        at.path(),
        at.filename(),
    )
    .fetch_optional(conn)
    .await
}

/// The files of these names, in order; names that are not there (any more) are left out.
pub async fn get_many(conn: &mut PgConnection, disk: DiskId, names: &[Name]) -> sqlx::Result<Vec<File>> {
    let paths: Vec<&str> = names.iter().map(|name| name.path.as_str()).collect();
    let filenames: Vec<&str> = names.iter().map(|name| name.filename.as_str()).collect();
    select_files!(
        // One by one, also when the planner knows nothing of the table yet.
        "unnest($2::text[], $3::text[]) as n (path, filename)
         cross join lateral (select * from current_artifacts a
                             where a.disk_id = $1 and a.path = n.path and a.filename = n.filename limit 1) c
         order by c.path, c.filename",
        disk as _,
        &paths as _,
        &filenames as _,
    )
    .fetch_all(conn)
    .await
}

/// The files that lie directly in a directory, by name; `None` if there are more than `limit`, or more than `max_bytes` are
/// kept with them.
pub async fn list(
    conn: &mut PgConnection,
    disk: DiskId,
    within: &Directory,
    limit: usize,
    max_bytes: usize,
) -> sqlx::Result<Option<Vec<File>>> {
    let mut rows = select_files!(
        "current_artifacts c where c.disk_id = $1 and c.path = $2 order by c.filename limit $3",
        disk as _,
        within.as_str(),
        i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1),
    )
    .fetch(conn);
    let (mut files, mut bytes) = (Vec::new(), 0);
    while let Some(file) = rows.try_next().await? {
        bytes += serde_json::to_vec(&file.meta).map_or(0, |meta| meta.len());
        if files.len() == limit || bytes > max_bytes {
            return Ok(None);
        }
        files.push(file);
    }
    Ok(Some(files))
}

/// The files of a disk, by path and name, up to a number of them.
pub async fn list_all(conn: &mut PgConnection, disk: DiskId, limit: usize) -> sqlx::Result<Vec<File>> {
    select_files!(
        "current_artifacts c where c.disk_id = $1 order by c.path, c.filename limit $2",
        disk as _,
        i64::try_from(limit).unwrap_or(i64::MAX),
    )
    .fetch_all(conn)
    .await
}

/// The names of the directories directly below a directory. Jumps from one to the next in the index instead of reading all
/// that lies in them.
pub async fn list_directories(
    conn: &mut PgConnection,
    disk: DiskId,
    within: &Directory,
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
        within.as_str(),
        within.end(),
    )
    .fetch_all(conn)
    .await?;
    Ok(names.into_iter().collect())
}

/// What a file is called.
#[derive(Clone, Debug, Default)]
pub struct Name {
    pub path: String,
    pub filename: String,
}

/// Names of files after the given one, in order, as long as their path is before `end`.
pub async fn list_names(
    conn: &mut PgConnection,
    disk: DiskId,
    after: &Name,
    end: &str,
    limit: i64,
) -> sqlx::Result<Vec<Name>> {
    sqlx::query_as!(
        Name,
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

/// A file to look into.
#[derive(Debug)]
pub struct Candidate {
    pub name: Name,
    pub mime: String,
    pub content: StoredBlob,
}

/// Files after the given one, in order, with where their bytes are.
pub async fn list_candidates(
    conn: &mut PgConnection,
    disk: DiskId,
    after: &Name,
    limit: i64,
) -> sqlx::Result<Vec<Candidate>> {
    let rows = sqlx::query!(
        r#"select v.path, v.filename, v.mime, v.size, v.sha256, b.id as "blob_id: BlobId", b.object_key,
                  b.encryption_format as "encryption_format: EncryptionFormat",
                  b.wrapped_key
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
    let candidate = rows.into_iter().map(|row| Candidate {
        name: Name { path: row.path, filename: row.filename },
        mime: row.mime,
        content: stored_blob!(row),
    });
    Ok(candidate.collect())
}
