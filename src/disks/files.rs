//! SQL of files. Every change of a disk's files, by whichever route or job, goes through [`apply`]: it draws the change's
//! number and keeps each content as a version, so that the state of a disk at any number is one condition.

use std::collections::BTreeSet;

use futures_util::TryStreamExt;
use serde_json::{Map, Value};
use sqlx::PgConnection;
use sqlx::types::Json;

use super::path::{Directory, FilePath};
use crate::http::time::Timestamp;
use crate::ids::{BlobId, DiskId, ProjectId};

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
    /// Where the bytes are.
    pub object_key: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// A stored content to put into a file; its blob is claimed in this transaction.
#[derive(Clone, Debug)]
pub struct Content {
    pub blob: BlobId,
    pub mime: String,
    pub size: i64,
    pub sha256: String,
}

/// What happens to a file.
#[derive(Clone, Debug)]
pub enum Change {
    /// A new content, with what the client keeps with it; makes the file if it is not there.
    Put { content: Content, meta: Map<String, Value> },
    /// The same content, with something else kept with it.
    SetMeta(Map<String, Value>),
    /// The file goes, and all its versions with it.
    Erase,
}

#[derive(Clone, Debug)]
pub struct FileChange {
    pub at: FilePath,
    pub change: Change,
}

/// Who changes files and how much of the past is kept.
#[derive(Clone, Copy, Debug)]
pub struct Author<'a> {
    pub made_by: &'a str,
    pub reason: Option<&'a str>,
    /// How many contents of a file are kept, the current one among them.
    pub keep: usize,
}

/// The disk is not there, or is another project's.
#[derive(Debug, PartialEq, Eq)]
pub struct NoDisk;

/// Changes files of one disk, in the order of their names, so that two transactions cannot wait for each other. A change of
/// a file that is not there does nothing.
pub async fn apply(
    conn: &mut PgConnection,
    project: ProjectId,
    disk: DiskId,
    changes: &[FileChange],
    author: Author<'_>,
) -> sqlx::Result<Result<(), NoDisk>> {
    // Shared with other changes; whoever needs the disk to stand still takes it alone.
    let there = sqlx::query_scalar!(
        "select 1 as one from disks where id = $1 and project_id = $2 for key share",
        disk as _,
        project as _,
    );
    if there.fetch_optional(&mut *conn).await?.is_none() {
        return Ok(Err(NoDisk));
    }
    let mut in_order: Vec<&FileChange> = changes.iter().collect();
    in_order.sort_by(|one, other| one.at.cmp(&other.at));
    for FileChange { at, change } in in_order {
        match change {
            Change::Put { content, meta } => put(conn, disk, at, content, meta, author).await?,
            Change::SetMeta(meta) => set_meta(conn, disk, at, meta, author).await?,
            Change::Erase => erase(conn, disk, at).await?,
        }
    }
    Ok(Ok(()))
}

async fn put(
    conn: &mut PgConnection,
    disk: DiskId,
    at: &FilePath,
    content: &Content,
    meta: &Map<String, Value>,
    author: Author<'_>,
) -> sqlx::Result<()> {
    // The number is drawn when the row is locked, so that the numbers of one file rise.
    let file = sqlx::query!(
        r#"insert into artifacts as a (disk_id, path, filename) values ($1, $2, $3)
           on conflict (disk_id, path, filename) do update set updated_at = greatest(now(), a.updated_at)
           returning nextval('artifact_change_no') as "no!", (a.xmax = 0) as "new!""#,
        disk as _,
        at.path(),
        at.filename(),
    )
    .fetch_one(&mut *conn)
    .await?;
    if !file.new {
        end_current(conn, disk, at, file.no).await?;
        prune(conn, disk, at, author.keep).await?;
    }
    insert_version(conn, disk, at, file.no, content, meta, author).await
}

async fn set_meta(
    conn: &mut PgConnection,
    disk: DiskId,
    at: &FilePath,
    meta: &Map<String, Value>,
    author: Author<'_>,
) -> sqlx::Result<()> {
    let no = sqlx::query_scalar!(
        r#"update artifacts a set updated_at = greatest(now(), a.updated_at)
           where disk_id = $1 and path = $2 and filename = $3
           returning nextval('artifact_change_no') as "no!""#,
        disk as _,
        at.path(),
        at.filename(),
    );
    let Some(no) = no.fetch_optional(&mut *conn).await? else { return Ok(()) };
    if let Some(content) = end_current(conn, disk, at, no).await? {
        prune(conn, disk, at, author.keep).await?;
        insert_version(conn, disk, at, no, &content, meta, author).await?;
    }
    Ok(())
}

async fn erase(conn: &mut PgConnection, disk: DiskId, at: &FilePath) -> sqlx::Result<()> {
    let gone = sqlx::query!(
        "delete from artifacts where disk_id = $1 and path = $2 and filename = $3",
        disk as _,
        at.path(),
        at.filename(),
    );
    if gone.execute(&mut *conn).await?.rows_affected() == 0 {
        // Without the row there is no lock either: the versions may be those of a file that comes back right now.
        return Ok(());
    }
    sqlx::query!(
        "delete from artifact_versions where disk_id = $1 and path = $2 and filename = $3",
        disk as _,
        at.path(),
        at.filename(),
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Ends the current version at change number `no`; answers with its content.
async fn end_current(conn: &mut PgConnection, disk: DiskId, at: &FilePath, no: i64) -> sqlx::Result<Option<Content>> {
    sqlx::query_as!(
        Content,
        r#"update artifact_versions set to_no = $4
           where disk_id = $1 and path = $2 and filename = $3 and to_no is null
           returning blob_id as "blob: BlobId", mime, size, sha256"#,
        disk as _,
        at.path(),
        at.filename(),
        no,
    )
    .fetch_optional(conn)
    .await
}

async fn insert_version(
    conn: &mut PgConnection,
    disk: DiskId,
    at: &FilePath,
    no: i64,
    content: &Content,
    meta: &Map<String, Value>,
    author: Author<'_>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into artifact_versions
             (disk_id, path, filename, from_no, blob_id, meta, mime, size, sha256, made_by, reason)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        disk as _,
        at.path(),
        at.filename(),
        no,
        content.blob as _,
        Json(meta) as _,
        content.mime,
        content.size,
        content.sha256,
        author.made_by,
        author.reason,
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Forgets the oldest versions of a file, so that with the current one `keep` are left.
async fn prune(conn: &mut PgConnection, disk: DiskId, at: &FilePath, keep: usize) -> sqlx::Result<()> {
    sqlx::query!(
        "delete from artifact_versions
         where disk_id = $1 and path = $2 and filename = $3 and to_no is not null and from_no <= (
             select from_no from artifact_versions
             where disk_id = $1 and path = $2 and filename = $3 and to_no is not null
             order by from_no desc offset $4 limit 1)",
        disk as _,
        at.path(),
        at.filename(),
        i64::try_from(keep.saturating_sub(1)).unwrap_or(i64::MAX),
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Files with their current content, from whatever the caller calls `c`.
macro_rules! select_files {
    ($rest:literal, $($parameter:expr),* $(,)?) => {
        sqlx::query_as!(
            File,
            r#"select c.disk_id as "disk_id!: DiskId", c.path as "path!", c.filename as "filename!",
                      c.meta as "meta!: Json<Map<String, Value>>", c.mime as "mime!", c.size as "size!",
                      c.sha256 as "sha256!", c.object_key as "object_key!", c.created_at as "created_at!: Timestamp",
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
    pub object_key: String,
}

/// Files after the given one, in order, with where their bytes are.
pub async fn list_candidates(
    conn: &mut PgConnection,
    disk: DiskId,
    after: &Name,
    limit: i64,
) -> sqlx::Result<Vec<Candidate>> {
    let rows = sqlx::query!(
        r#"select v.path, v.filename, v.mime, b.object_key
           from artifact_versions v join blobs b on b.id = v.blob_id
           where v.disk_id = $1 and v.to_no is null and (v.path, v.filename) > ($2, $3)
           order by v.path, v.filename limit $4"#,
        disk as _,
        after.path,
        after.filename,
        limit,
    )
    .fetch_all(conn)
    .await?;
    let candidate = |row: (String, String, String, String)| Candidate {
        name: Name { path: row.0, filename: row.1 },
        mime: row.2,
        object_key: row.3,
    };
    Ok(rows.into_iter().map(|row| candidate((row.path, row.filename, row.mime, row.object_key))).collect())
}
