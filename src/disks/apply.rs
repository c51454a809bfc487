//! SQL that changes the files of a disk. All changes are made by [`apply`]. It stores each new content, and each new user
//! metadata, as a version, which is valid from its own revision to the revision of the next version. If a file is deleted, all
//! its versions are deleted, too.

use serde_json::{Map, Value};
use sqlx::PgConnection;
use sqlx::types::Json;

use super::path::FilePath;
use crate::blob::ingest::LiveBlob;
use crate::ids::{BlobId, DiskId, ProjectId};
use crate::text_enum::text_enum;

/// The new content of a file. It is in the object store, and the transaction has made its blob live.
#[derive(Clone, Debug)]
pub struct NewContent {
    pub blob: LiveBlob,
    pub mime: String,
    pub size: i64,
    pub sha256: String,
}

/// The content of an artifact version.
struct VersionContent {
    blob: BlobId,
    mime: String,
    size: i64,
    sha256: String,
}

/// A change of one file.
#[derive(Clone, Debug)]
pub enum Change {
    /// Sets content and user metadata; creates the file if it does not exist.
    Put { content: NewContent, meta: Map<String, Value> },
    /// Replaces the user metadata; the content stays the same.
    SetMeta(Map<String, Value>),
    /// Deletes the file and all its versions.
    Delete,
}

/// The path of a file, and the change to apply to it.
#[derive(Clone, Debug)]
pub struct FileChange {
    pub path: FilePath,
    pub change: Change,
}

text_enum! {
    /// The author of a change. Only `Key` is written so far; the CHECK constraint of `artifact_versions` allows the other values,
    /// too.
    pub enum Author {
        /// A request with a project key.
        Key = "key",
        /// A learning job.
        Learner = "learner",
        Import = "import",
        Operator = "operator",
    }
}

/// The author of a change and an optional reason.
#[derive(Clone, Copy, Debug)]
pub struct Cause<'a> {
    pub author: Author,
    pub reason: Option<&'a str>,
}

impl Cause<'_> {
    /// The cause of a change that a request with a project key makes.
    pub const REQUEST: Self = Self { author: Author::Key, reason: None };
}

/// The error for a disk that does not exist or belongs to another project.
#[derive(Debug, PartialEq, Eq)]
pub struct DiskNotFound;

/// Applies changes to the files of one disk in the order of their paths, so that two transactions cannot deadlock. Retains at
/// most `max_versions` versions of a file, including the current one. [`Change::SetMeta`] and [`Change::Delete`] of a file that
/// does not exist have no effect. Returns [`DiskNotFound`] if the project has no such disk.
pub async fn apply(
    conn: &mut PgConnection,
    project: ProjectId,
    disk: DiskId,
    changes: &[FileChange],
    cause: Cause<'_>,
    max_versions: usize,
) -> sqlx::Result<Result<(), DiskNotFound>> {
    // With this shared lock, concurrent changes do not block each other. Until the transaction ends, no other transaction can
    // delete the disk or lock it `for update`.
    let exists = sqlx::query_scalar!(
        "select 1 as one from disks where id = $1 and project_id = $2 for key share",
        disk as _,
        project as _,
    );
    if exists.fetch_optional(&mut *conn).await?.is_none() {
        return Ok(Err(DiskNotFound));
    }
    // Sets the time of the last change if it is recorded (see `track_changes`). Changes of such a disk do block each other,
    // because the update locks the row of the disk. It must precede the locks of files, so that two transactions cannot deadlock.
    sqlx::query!(
        "update disks set changed_at = greatest(clock_timestamp(), changed_at + interval '1 microsecond')
         where id = $1 and changed_at is not null",
        disk as _,
    )
    .execute(&mut *conn)
    .await?;
    let mut sorted: Vec<&FileChange> = changes.iter().collect();
    sorted.sort_by(|a, b| a.path.cmp(&b.path));
    for FileChange { path, change } in sorted {
        match change {
            Change::Put { content, meta } => put(conn, disk, path, content, meta, cause, max_versions).await?,
            Change::SetMeta(meta) => set_meta(conn, disk, path, meta, cause, max_versions).await?,
            Change::Delete => delete(conn, disk, path).await?,
        }
    }
    Ok(Ok(()))
}

async fn put(
    conn: &mut PgConnection,
    disk: DiskId,
    path: &FilePath,
    content: &NewContent,
    meta: &Map<String, Value>,
    cause: Cause<'_>,
    max_versions: usize,
) -> sqlx::Result<()> {
    // The revision is assigned while the row is locked, so that the revisions of one file increase.
    let file = sqlx::query!(
        r#"insert into artifacts as a (disk_id, path, filename) values ($1, $2, $3)
           on conflict (disk_id, path, filename) do update set updated_at = greatest(now(), a.updated_at)
           returning nextval('artifact_revision') as "revision!", (a.xmax = 0) as "new!""#,
        disk as _,
        path.directory(),
        path.filename(),
    )
    .fetch_one(&mut *conn)
    .await?;
    if !file.new {
        close_current_version(conn, disk, path, file.revision).await?;
        prune_versions(conn, disk, path, max_versions).await?;
    }
    let NewContent { blob, mime, size, sha256 } = content.clone();
    let content = VersionContent { blob: blob.id(), mime, size, sha256 };
    insert_version(conn, disk, path, file.revision, &content, meta, cause).await
}

async fn set_meta(
    conn: &mut PgConnection,
    disk: DiskId,
    path: &FilePath,
    meta: &Map<String, Value>,
    cause: Cause<'_>,
    max_versions: usize,
) -> sqlx::Result<()> {
    let revision = sqlx::query_scalar!(
        r#"update artifacts a set updated_at = greatest(now(), a.updated_at)
           where disk_id = $1 and path = $2 and filename = $3
           returning nextval('artifact_revision') as "revision!""#,
        disk as _,
        path.directory(),
        path.filename(),
    );
    let Some(revision) = revision.fetch_optional(&mut *conn).await? else { return Ok(()) };
    if let Some(content) = close_current_version(conn, disk, path, revision).await? {
        prune_versions(conn, disk, path, max_versions).await?;
        insert_version(conn, disk, path, revision, &content, meta, cause).await?;
    }
    Ok(())
}

async fn delete(conn: &mut PgConnection, disk: DiskId, path: &FilePath) -> sqlx::Result<()> {
    let deleted = sqlx::query!(
        "delete from artifacts where disk_id = $1 and path = $2 and filename = $3",
        disk as _,
        path.directory(),
        path.filename(),
    );
    if deleted.execute(&mut *conn).await?.rows_affected() == 0 {
        // The file does not exist, so this transaction has not locked it. If there are versions, they belong to a file that
        // another transaction is creating.
        return Ok(());
    }
    sqlx::query!(
        "delete from artifact_versions where disk_id = $1 and path = $2 and filename = $3",
        disk as _,
        path.directory(),
        path.filename(),
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Ends the validity of the current version at `revision`. Returns its content, or `None` if the file has no current version.
async fn close_current_version(
    conn: &mut PgConnection,
    disk: DiskId,
    path: &FilePath,
    revision: i64,
) -> sqlx::Result<Option<VersionContent>> {
    sqlx::query_as!(
        VersionContent,
        r#"update artifact_versions set to_revision = $4
           where disk_id = $1 and path = $2 and filename = $3 and to_revision is null
           returning blob_id as "blob: BlobId", mime, size, sha256"#,
        disk as _,
        path.directory(),
        path.filename(),
        revision,
    )
    .fetch_optional(conn)
    .await
}

async fn insert_version(
    conn: &mut PgConnection,
    disk: DiskId,
    path: &FilePath,
    revision: i64,
    content: &VersionContent,
    meta: &Map<String, Value>,
    cause: Cause<'_>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into artifact_versions
             (disk_id, path, filename, from_revision, blob_id, meta, mime, size, sha256, author, reason)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        disk as _,
        path.directory(),
        path.filename(),
        revision,
        content.blob as _,
        Json(meta) as _,
        content.mime,
        content.size,
        content.sha256,
        cause.author as _,
        cause.reason,
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Deletes the oldest versions of a file, and keeps the newest `max_versions - 1`. The caller then inserts the current version.
/// Must be called after [`close_current_version`].
async fn prune_versions(
    conn: &mut PgConnection,
    disk: DiskId,
    path: &FilePath,
    max_versions: usize,
) -> sqlx::Result<()> {
    sqlx::query!(
        "delete from artifact_versions
         where disk_id = $1 and path = $2 and filename = $3 and to_revision is not null and from_revision <= (
             select from_revision from artifact_versions
             where disk_id = $1 and path = $2 and filename = $3 and to_revision is not null
             order by from_revision desc offset $4 limit 1)",
        disk as _,
        path.directory(),
        path.filename(),
        i64::try_from(max_versions.saturating_sub(1)).unwrap_or(i64::MAX),
    )
    .execute(conn)
    .await
    .map(drop)
}
