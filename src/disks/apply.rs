//! SQL that changes the files of a disk. All changes are made by [`apply`]. It stores each new content, and each new user
//! metadata, as a version, which is valid from its own revision to the revision of the next version. A change of contents or
//! paths inserts a row of `changes` with its cause, and a row of `change_files` for each file (see [`changes`]).

use serde_json::{Map, Value};
use sqlx::PgConnection;
use sqlx::types::Json;

use super::FileMode;
use super::changes::{self, Cause};
use super::path::FilePath;
use crate::blob::ingest::LiveBlob;
use crate::ids::{ChangeId, DiskId, ProjectId, VersionId};

/// The new content of a file. It is in the object store, and the transaction has made its blob live.
#[derive(Clone, Debug)]
pub struct NewContent {
    pub blob: LiveBlob,
    pub mime: String,
    pub size: i64,
    pub sha256: String,
}

/// A change of one file.
#[derive(Clone, Debug)]
pub enum Change {
    /// Sets content and user metadata; creates the file if it does not exist. Without a mode, an existing file keeps its mode,
    /// and a new one is not executable.
    Put { content: NewContent, meta: Map<String, Value>, mode: Option<FileMode> },
    /// Replaces the user metadata; the content stays the same.
    SetMeta(Map<String, Value>),
    /// Deletes the file and all its versions.
    Delete,
    /// Deletes the file, but keeps its versions, so that it can be restored.
    Remove,
    /// Moves the file to a path at which there is no file. The versions of its earlier contents stay at the old path.
    Move { to: FilePath },
}

/// The path of a file, and the change to apply to it.
#[derive(Clone, Debug)]
pub struct FileChange {
    pub path: FilePath,
    pub change: Change,
}

/// The reason why changes could not be applied. Some of them may have been, so the transaction must be rolled back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    #[error("the disk does not exist, or belongs to another project")]
    DiskNotFound,
    #[error("{} cannot be moved to {}: it does not exist, or the other file exists already", .from.relative(), .to.relative())]
    CannotMove { from: FilePath, to: FilePath },
}

/// Applies changes to the files of one disk. Returns the id of the change, or `None` if no content and no path has changed.
///
/// If the changes of the disk are tracked, as those of a skill are, the disk is locked before its files, so all other writers
/// wait, and the changes are applied in their order. Otherwise they are applied in the order of their paths, so that two
/// transactions cannot deadlock; [`Change::Remove`] and [`Change::Move`] are only for tracked disks.
///
/// Retains at most `max_versions` versions at a path, including the current one. [`Change::SetMeta`], [`Change::Delete`] and
/// [`Change::Remove`] of a file that does not exist have no effect.
pub async fn apply(
    conn: &mut PgConnection,
    project: ProjectId,
    disk: DiskId,
    file_changes: &[FileChange],
    cause: Cause<'_>,
    max_versions: usize,
) -> sqlx::Result<Result<Option<ChangeId>, ApplyError>> {
    let is_recorded = file_changes.iter().any(|change| !matches!(change.change, Change::SetMeta(_)));
    let change = is_recorded.then(ChangeId::new);
    let Some(locked) = changes::lock_disk_and_insert(conn, project, disk, change, &cause).await? else {
        return Ok(Err(ApplyError::DiskNotFound));
    };
    let is_tracked = locked.is_tracked;
    let mut sorted: Vec<&FileChange> = file_changes.iter().collect();
    if is_tracked {
        // The update locks the disk. It must precede the locks of files, so that two transactions cannot deadlock.
        sqlx::query!(
            "update disks set changed_at = greatest(clock_timestamp(), changed_at + interval '1 microsecond')
             where id = $1 and changed_at is not null",
            disk as _,
        )
        .execute(&mut *conn)
        .await?;
    } else {
        sorted.sort_by(|a, b| a.path.cmp(&b.path));
    }
    let mut writer = FileWriter { conn, disk, change, is_tracked, max_versions, changed_files: 0 };
    for FileChange { path, change } in sorted {
        match change {
            Change::Put { content, meta, mode } => writer.put(path, content, meta, *mode).await?,
            Change::SetMeta(meta) => writer.set_meta(path, meta).await?,
            Change::Delete => writer.delete(path).await?,
            Change::Remove => writer.remove(path).await?,
            Change::Move { to } if writer.move_file(path, to).await? => {}
            Change::Move { to } => return Ok(Err(ApplyError::CannotMove { from: path.clone(), to: to.clone() })),
        }
    }
    match change {
        Some(change) if writer.changed_files == 0 => {
            changes::delete(conn, change).await?;
            Ok(Ok(None))
        }
        _ => Ok(Ok(change)),
    }
}

/// Changes the files of one disk in one transaction.
struct FileWriter<'a> {
    conn: &'a mut PgConnection,
    disk: DiskId,
    /// `None` if only user metadata changes.
    change: Option<ChangeId>,
    is_tracked: bool,
    max_versions: usize,
    /// The number of files that have changed so far, which is the position of the next one in `change_files`.
    changed_files: i32,
}

impl FileWriter<'_> {
    async fn put(
        &mut self,
        path: &FilePath,
        content: &NewContent,
        meta: &Map<String, Value>,
        mode: Option<FileMode>,
    ) -> sqlx::Result<()> {
        let version = VersionId::new();
        // The revision is assigned while the row is locked, so that the revisions of one file increase. A new file has no current
        // version, so this statement can insert it.
        let file = sqlx::query!(
            r#"with file as (
                   insert into artifacts as a (disk_id, path, filename) values ($1, $2, $3)
                   on conflict (disk_id, path, filename) do update set updated_at = greatest(now(), a.updated_at)
                   returning nextval('artifact_revision') as revision, a.xmax = 0 as is_new
               ), version as (
                   insert into artifact_versions
                       (disk_id, path, filename, from_revision, id, change_id, blob_id, meta, mime, size, sha256, mode)
                   select $1, $2, $3, revision, $4::uuid, $5::uuid, $6::uuid, $7::jsonb, $8::text, $9::bigint, $10::text,
                          coalesce($11::text, '0644')
                   from file where is_new
               ), changed_file as (
                   insert into change_files (change_id, position, path, filename, op, version_id)
                   select $5, $12::int, $2, $3, 'create', $4 from file where is_new
               )
               select revision as "revision!", is_new as "is_new!" from file"#,
            self.disk as _,
            path.directory(),
            path.filename(),
            version as _,
            self.change as _,
            content.blob.id() as _,
            Json(meta) as _,
            content.mime,
            content.size,
            content.sha256,
            mode as _,
            self.changed_files,
        )
        .fetch_one(&mut *self.conn)
        .await?;
        if !file.is_new {
            self.replace_version(path, file.revision, version, content, meta, mode).await?;
        }
        self.changed_files += 1;
        // The disk of a skill has versions of removed files, which a new file continues.
        if !file.is_new || self.is_tracked {
            self.prune_versions(path, self.max_versions.saturating_sub(1)).await?;
        }
        Ok(())
    }

    /// Ends the validity of the current version, and inserts a new one. The caller has locked the file in an earlier statement,
    /// so this one sees the version that another transaction may have inserted before.
    async fn replace_version(
        &mut self,
        path: &FilePath,
        revision: i64,
        version: VersionId,
        content: &NewContent,
        meta: &Map<String, Value>,
        mode: Option<FileMode>,
    ) -> sqlx::Result<()> {
        sqlx::query!(
            // The aggregate ends the old version before the new one is inserted: there is only one current version.
            "with closed as (
                 update artifact_versions set to_revision = $4
                 where disk_id = $1 and path = $2 and filename = $3 and to_revision is null
                 returning mode
             ), version as (
                 insert into artifact_versions
                     (disk_id, path, filename, from_revision, id, change_id, blob_id, meta, mime, size, sha256, mode)
                 select $1, $2, $3, $4, $5::uuid, $6::uuid, $7::uuid, $8::jsonb, $9::text, $10::bigint, $11::text,
                        coalesce($12::text, closed.mode, '0644')
                 from (select max(mode) as mode from closed) closed
             )
             insert into change_files (change_id, position, path, filename, op, version_id)
             values ($6, $13, $2, $3, 'replace', $5)",
            self.disk as _,
            path.directory(),
            path.filename(),
            revision,
            version as _,
            self.change as _,
            content.blob.id() as _,
            Json(meta) as _,
            content.mime,
            content.size,
            content.sha256,
            mode as _,
            self.changed_files,
        )
        .execute(&mut *self.conn)
        .await
        .map(drop)
    }

    async fn set_meta(&mut self, path: &FilePath, meta: &Map<String, Value>) -> sqlx::Result<()> {
        let revision = sqlx::query_scalar!(
            r#"update artifacts a set updated_at = greatest(now(), a.updated_at)
               where disk_id = $1 and path = $2 and filename = $3
               returning nextval('artifact_revision') as "revision!""#,
            self.disk as _,
            path.directory(),
            path.filename(),
        );
        let Some(revision) = revision.fetch_optional(&mut *self.conn).await? else { return Ok(()) };
        sqlx::query!(
            "with closed as (
                 update artifact_versions set to_revision = $4
                 where disk_id = $1 and path = $2 and filename = $3 and to_revision is null
                 returning blob_id, mime, size, sha256, mode
             )
             insert into artifact_versions
                 (disk_id, path, filename, from_revision, id, change_id, blob_id, meta, mime, size, sha256, mode)
             select $1, $2, $3, $4, $5::uuid, $6::uuid, blob_id, $7::jsonb, mime, size, sha256, mode from closed",
            self.disk as _,
            path.directory(),
            path.filename(),
            revision,
            VersionId::new() as _,
            self.change as _,
            Json(meta) as _,
        )
        .execute(&mut *self.conn)
        .await?;
        self.prune_versions(path, self.max_versions.saturating_sub(1)).await
    }

    async fn delete(&mut self, path: &FilePath) -> sqlx::Result<()> {
        let deleted = sqlx::query!(
            "delete from artifacts where disk_id = $1 and path = $2 and filename = $3",
            self.disk as _,
            path.directory(),
            path.filename(),
        );
        if deleted.execute(&mut *self.conn).await?.rows_affected() == 0 {
            // The file does not exist, so this transaction has not locked it. If there are versions, they belong to a file that
            // another transaction is creating.
            return Ok(());
        }
        sqlx::query!(
            "with versions as (delete from artifact_versions where disk_id = $1 and path = $2 and filename = $3)
             insert into change_files (change_id, position, path, filename, op) values ($4, $5, $2, $3, 'delete')",
            self.disk as _,
            path.directory(),
            path.filename(),
            self.change as _,
            self.changed_files,
        )
        .execute(&mut *self.conn)
        .await?;
        self.changed_files += 1;
        Ok(())
    }

    async fn remove(&mut self, path: &FilePath) -> sqlx::Result<()> {
        let revision = sqlx::query_scalar!(
            r#"delete from artifacts where disk_id = $1 and path = $2 and filename = $3
               returning nextval('artifact_revision') as "revision!""#,
            self.disk as _,
            path.directory(),
            path.filename(),
        );
        let Some(revision) = revision.fetch_optional(&mut *self.conn).await? else { return Ok(()) };
        sqlx::query!(
            "with closed as (
                 update artifact_versions set to_revision = $4
                 where disk_id = $1 and path = $2 and filename = $3 and to_revision is null
                 returning id
             )
             insert into change_files (change_id, position, path, filename, op, version_id)
             select $5::uuid, $6::int, $2, $3, 'delete', (select id from closed)",
            self.disk as _,
            path.directory(),
            path.filename(),
            revision,
            self.change as _,
            self.changed_files,
        )
        .execute(&mut *self.conn)
        .await?;
        self.changed_files += 1;
        self.prune_versions(path, self.max_versions).await
    }

    /// Returns `false` if the file does not exist, or if there is a file at the other path. The version at the old path ends at
    /// the revision at which that at the new path begins.
    async fn move_file(&mut self, from: &FilePath, to: &FilePath) -> sqlx::Result<bool> {
        let revision = sqlx::query_scalar!(
            r#"update artifacts a set path = $4, filename = $5, updated_at = greatest(now(), a.updated_at)
               where a.disk_id = $1 and a.path = $2 and a.filename = $3
                 and not exists (select from artifacts b where b.disk_id = $1 and b.path = $4 and b.filename = $5)
               returning nextval('artifact_revision') as "revision!""#,
            self.disk as _,
            from.directory(),
            from.filename(),
            to.directory(),
            to.filename(),
        );
        let Some(revision) = revision.fetch_optional(&mut *self.conn).await? else { return Ok(false) };
        sqlx::query!(
            "with closed as (
                 update artifact_versions set to_revision = $6
                 where disk_id = $1 and path = $2 and filename = $3 and to_revision is null
                 returning blob_id, meta, mime, size, sha256, mode
             ), version as (
                 insert into artifact_versions
                     (disk_id, path, filename, from_revision, id, change_id, blob_id, meta, mime, size, sha256, mode)
                 select $1, $4::text, $5::text, $6, $7::uuid, $8::uuid, blob_id, meta, mime, size, sha256, mode from closed
             )
             insert into change_files (change_id, position, path, filename, op, from_path, from_filename, version_id)
             values ($8, $9, $4, $5, 'move', $2, $3, $7)",
            self.disk as _,
            from.directory(),
            from.filename(),
            to.directory(),
            to.filename(),
            revision,
            VersionId::new() as _,
            self.change as _,
            self.changed_files,
        )
        .execute(&mut *self.conn)
        .await?;
        self.changed_files += 1;
        self.prune_versions(from, self.max_versions).await?;
        self.prune_versions(to, self.max_versions.saturating_sub(1)).await?;
        Ok(true)
    }

    /// Deletes the oldest versions of a file that are not current, and keeps the newest `max_versions` of them.
    async fn prune_versions(&mut self, path: &FilePath, max_versions: usize) -> sqlx::Result<()> {
        sqlx::query!(
            "delete from artifact_versions
             where disk_id = $1 and path = $2 and filename = $3 and to_revision is not null and from_revision <= (
                 select from_revision from artifact_versions
                 where disk_id = $1 and path = $2 and filename = $3 and to_revision is not null
                 order by from_revision desc offset $4 limit 1)",
            self.disk as _,
            path.directory(),
            path.filename(),
            i64::try_from(max_versions).unwrap_or(i64::MAX),
        )
        .execute(&mut *self.conn)
        .await
        .map(drop)
    }
}
