//! Creates skills. The caller first ingests the contents of the files, and makes their blobs live in a transaction. In this
//! transaction, [`PreparedSkill::insert`] inserts the disk, its files and the skill.

use serde_json::{Map, Value};
use sqlx::PgConnection;

use super::front_matter::FrontMatter;
use super::store::{self, NewSkill};
use super::{FileEntry, Skill};
use crate::auth::Caller;
use crate::blob::ingest::LiveBlobs;
use crate::blob::spool::{Spool, detect_media_type};
use crate::disks;
use crate::disks::FileMode;
use crate::disks::apply::{self, Change, FileChange, NewContent};
use crate::disks::changes::Cause;
use crate::disks::path::FilePath;
use crate::error::{Error, MapConstraint, Result, UNAUTHORIZED};
use crate::ids::{ProjectId, UserId};
use crate::platform::Platform;

/// A skill that is ready to be inserted: it is validated, and the contents of its files have been ingested.
pub struct PreparedSkill {
    pub front_matter: FrontMatter,
    pub files: Vec<PreparedFile>,
}

/// A file of a prepared skill. Its content has been ingested.
pub struct PreparedFile {
    path: FilePath,
    mime: String,
    size: i64,
    sha256: String,
    mode: FileMode,
}

/// The owner of a new skill, its user metadata, and the cause of its creation.
pub struct SkillOrigin<'a> {
    pub project: ProjectId,
    pub user: Option<UserId>,
    pub meta: Option<Map<String, Value>>,
    pub cause: Cause<'a>,
}

impl<'a> SkillOrigin<'a> {
    /// Returns the origin of a skill that a request with a project key creates.
    pub fn request(caller: &'a Caller, user: Option<UserId>, meta: Option<Map<String, Value>>) -> Self {
        Self { project: caller.project, user, meta, cause: Cause::request(caller.request_id.as_ref()) }
    }
}

impl PreparedSkill {
    /// Inserts the skill in the caller's transaction, which must have made the blobs of its files live.
    ///
    /// # Errors
    /// Returns 401 if the project has been deleted.
    pub async fn insert(
        &self,
        conn: &mut PgConnection,
        platform: &Platform,
        origin: SkillOrigin<'_>,
        blobs: &LiveBlobs,
    ) -> Result<Skill> {
        let SkillOrigin { project, user, meta, cause } = origin;
        let disk = disks::store::insert(conn, project, user)
            .await
            .map_constraint_err("disks_project_id_fkey", || UNAUTHORIZED)?
            .id;
        let changes = self.files.iter().map(|file| file.to_change(blobs)).collect::<Result<Vec<_>>>()?;
        let max_versions = platform.config.limits.max_file_versions;
        let applied = apply::apply(conn, project, disk, &changes, cause, max_versions).await?;
        applied.map_err(Error::internal)?;
        // `changed_at` of the disk is the skill's `updated_at`.
        disks::store::track_changes(conn, disk).await?;
        let new = NewSkill { disk, user, front_matter: &self.front_matter, meta };
        let row = store::insert(conn, project, new).await?;
        Ok(row.with_files(self.files.iter().map(PreparedFile::to_entry).collect()))
    }
}

impl PreparedFile {
    pub fn new(path: FilePath, content: &Spool) -> Self {
        let mime = detect_media_type(content, path.filename());
        let size = i64::try_from(content.size).unwrap_or(i64::MAX);
        Self { path, mime, size, sha256: content.sha256.clone(), mode: FileMode::Regular }
    }

    /// Returns the same file with another mode.
    #[must_use]
    pub fn with_mode(self, mode: FileMode) -> Self {
        Self { mode, ..self }
    }

    fn to_change(&self, blobs: &LiveBlobs) -> Result<FileChange> {
        let Self { path, mime, size, sha256, mode } = self;
        let content = NewContent { blob: blobs.get(sha256)?, mime: mime.clone(), size: *size, sha256: sha256.clone() };
        Ok(FileChange { path: path.clone(), change: Change::Put { content, meta: Map::new(), mode: Some(*mode) } })
    }

    fn to_entry(&self) -> FileEntry {
        FileEntry { path: self.path.relative(), mime: self.mime.clone() }
    }
}
