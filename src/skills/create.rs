//! The only way to create a skill: its files are stored as contents, and then a transaction inserts its disk, the files on it, and the
//! skill.

use serde_json::{Map, Value};
use sqlx::PgConnection;

use super::front_matter::FrontMatter;
use super::store::{self, NewSkill};
use super::{FileEntry, Skill};
use crate::blob::ingest::Claimed;
use crate::blob::spool::{Spool, media_type_of};
use crate::disks;
use crate::disks::apply::{self, Cause, Change, FileChange, NewContent};
use crate::disks::path::FilePath;
use crate::error::{Error, MapConstraint, Result, UNAUTHORIZED};
use crate::ids::{ProjectId, UserId};
use crate::platform::Platform;

/// A skill to create.
pub struct PreparedSkill {
    pub front_matter: FrontMatter,
    pub files: Vec<PreparedFile>,
}

/// A file of a skill to create.
pub struct PreparedFile {
    at: FilePath,
    mime: String,
    size: i64,
    sha256: String,
}

impl PreparedSkill {
    /// Inserts the skill, in the caller's transaction, which has claimed the contents of its files.
    ///
    /// # Errors
    /// 401 if the project is being deleted.
    pub async fn insert(
        &self,
        conn: &mut PgConnection,
        platform: &Platform,
        project: ProjectId,
        user: Option<UserId>,
        meta: Option<Map<String, Value>>,
        blobs: &Claimed,
    ) -> Result<Skill> {
        let disk = disks::store::insert(conn, project, user)
            .await
            .map_constraint_err("disks_project_id_fkey", || UNAUTHORIZED)?
            .id;
        let changes = self.files.iter().map(|file| file.change(blobs)).collect::<Result<Vec<_>>>()?;
        let max_versions = platform.config.limits.file_versions;
        let applied = apply::apply(conn, project, disk, &changes, Cause::REQUEST, max_versions).await?;
        applied.map_err(|_| Error::internal(anyhow::anyhow!("a disk that was just inserted does not exist")))?;
        // The skill's `updated_at` from now on.
        disks::store::track_changes(conn, disk).await?;
        let row = store::insert(conn, project, NewSkill { disk, user, says: &self.front_matter, meta }).await?;
        Ok(row.with_files(self.files.iter().map(PreparedFile::entry).collect()))
    }
}

impl PreparedFile {
    pub fn new(at: FilePath, content: &Spool) -> Self {
        let mime = media_type_of(content, at.filename());
        let size = i64::try_from(content.size).unwrap_or(i64::MAX);
        Self { at, mime, size, sha256: content.sha256.clone() }
    }

    fn change(&self, blobs: &Claimed) -> Result<FileChange> {
        let Self { at, mime, size, sha256 } = self;
        let content =
            NewContent { content: blobs.get(sha256)?, mime: mime.clone(), size: *size, sha256: sha256.clone() };
        Ok(FileChange { at: at.clone(), change: Change::Put { content, meta: Map::new() } })
    }

    fn entry(&self) -> FileEntry {
        FileEntry { path: self.at.relative(), mime: self.mime.clone() }
    }
}
