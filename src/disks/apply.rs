//! SQL that changes files. Every change of a disk's files, by whichever route or job, goes through [`apply`]: it draws the revision of
//! the change and keeps each content as a version, so that the state of a disk at any revision is one condition.

use serde_json::{Map, Value};
use sqlx::PgConnection;
use sqlx::types::Json;

use super::path::FilePath;
use crate::blob::ingest::Claim;
use crate::ids::{BlobId, DiskId, ProjectId};
use crate::text_enum::text_enum;

/// A stored content to put into a file.
#[derive(Clone, Debug)]
pub struct NewContent {
    pub content: Claim,
    pub mime: String,
    pub size: i64,
    pub sha256: String,
}

/// The content of a version.
struct Content {
    blob: BlobId,
    mime: String,
    size: i64,
    sha256: String,
}

/// What happens to a file.
#[derive(Clone, Debug)]
pub enum Change {
    /// A new content, with what the client keeps with it; makes the file if it is not there.
    Put { content: NewContent, meta: Map<String, Value> },
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

text_enum! {
    /// Who changes files.
    pub enum Actor {
        /// A request with a project's key.
        Key = "key",
        /// A job that learns.
        Learner = "learner",
        Import = "import",
        Operator = "operator",
    }
}

/// Why files change.
#[derive(Clone, Copy, Debug)]
pub struct Cause<'a> {
    pub actor: Actor,
    pub reason: Option<&'a str>,
}

impl Cause<'_> {
    /// A request asks for the change.
    pub const REQUEST: Self = Self { actor: Actor::Key, reason: None };
}

/// The disk is not there, or is another project's.
#[derive(Debug, PartialEq, Eq)]
pub struct NoDisk;

/// Changes files of one disk, in the order of their names, so that two transactions cannot wait for each other. Keeps at most
/// `max_versions` contents of a file, the current one among them. A change of a file that does not exist does nothing.
pub async fn apply(
    conn: &mut PgConnection,
    project: ProjectId,
    disk: DiskId,
    changes: &[FileChange],
    cause: Cause<'_>,
    max_versions: usize,
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
    // First, so that two transactions which change several files of a tracked disk do not wait for each other.
    sqlx::query!(
        "update disks set changed_at = greatest(clock_timestamp(), changed_at + interval '1 microsecond')
         where id = $1 and changed_at is not null",
        disk as _,
    )
    .execute(&mut *conn)
    .await?;
    let mut in_order: Vec<&FileChange> = changes.iter().collect();
    in_order.sort_by(|one, other| one.at.cmp(&other.at));
    for FileChange { at, change } in in_order {
        match change {
            Change::Put { content, meta } => put(conn, disk, at, content, meta, cause, max_versions).await?,
            Change::SetMeta(meta) => set_meta(conn, disk, at, meta, cause, max_versions).await?,
            Change::Erase => erase(conn, disk, at).await?,
        }
    }
    Ok(Ok(()))
}

async fn put(
    conn: &mut PgConnection,
    disk: DiskId,
    at: &FilePath,
    content: &NewContent,
    meta: &Map<String, Value>,
    cause: Cause<'_>,
    max_versions: usize,
) -> sqlx::Result<()> {
    // The revision is drawn when the row is locked, so that the revisions of one file rise.
    let file = sqlx::query!(
        r#"insert into artifacts as a (disk_id, path, filename) values ($1, $2, $3)
           on conflict (disk_id, path, filename) do update set updated_at = greatest(now(), a.updated_at)
           returning nextval('artifact_revision') as "no!", (a.xmax = 0) as "new!""#,
        disk as _,
        at.path(),
        at.filename(),
    )
    .fetch_one(&mut *conn)
    .await?;
    if !file.new {
        end_current(conn, disk, at, file.no).await?;
        prune(conn, disk, at, max_versions).await?;
    }
    let NewContent { content, mime, size, sha256 } = content.clone();
    let content = Content { blob: content.blob(), mime, size, sha256 };
    insert_version(conn, disk, at, file.no, &content, meta, cause).await
}

async fn set_meta(
    conn: &mut PgConnection,
    disk: DiskId,
    at: &FilePath,
    meta: &Map<String, Value>,
    cause: Cause<'_>,
    max_versions: usize,
) -> sqlx::Result<()> {
    let no = sqlx::query_scalar!(
        r#"update artifacts a set updated_at = greatest(now(), a.updated_at)
           where disk_id = $1 and path = $2 and filename = $3
           returning nextval('artifact_revision') as "no!""#,
        disk as _,
        at.path(),
        at.filename(),
    );
    let Some(no) = no.fetch_optional(&mut *conn).await? else { return Ok(()) };
    if let Some(content) = end_current(conn, disk, at, no).await? {
        prune(conn, disk, at, max_versions).await?;
        insert_version(conn, disk, at, no, &content, meta, cause).await?;
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
        r#"update artifact_versions set to_revision = $4
           where disk_id = $1 and path = $2 and filename = $3 and to_revision is null
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
    cause: Cause<'_>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into artifact_versions
             (disk_id, path, filename, from_revision, blob_id, meta, mime, size, sha256, author, reason)
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
        cause.actor as _,
        cause.reason,
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Deletes the oldest versions of a file, so that `max_versions` remain, the current one among them.
async fn prune(conn: &mut PgConnection, disk: DiskId, at: &FilePath, max_versions: usize) -> sqlx::Result<()> {
    sqlx::query!(
        "delete from artifact_versions
         where disk_id = $1 and path = $2 and filename = $3 and to_revision is not null and from_revision <= (
             select from_revision from artifact_versions
             where disk_id = $1 and path = $2 and filename = $3 and to_revision is not null
             order by from_revision desc offset $4 limit 1)",
        disk as _,
        at.path(),
        at.filename(),
        i64::try_from(max_versions.saturating_sub(1)).unwrap_or(i64::MAX),
    )
    .execute(conn)
    .await
    .map(drop)
}
