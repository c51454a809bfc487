//! The skills of a learning space as they are stored at one time, and the texts of their files.

use std::collections::HashMap;

use async_trait::async_trait;
use sqlx::PgConnection;

use crate::blob::content::ContentKey;
use crate::disks::files::{self, ArtifactRow};
use crate::disks::path::FilePath;
use crate::encryption::ProjectEncryption;
use crate::error::Error;
use crate::ids::{DiskId, LearningSpaceId, SkillId};
use crate::learn::skill_agent::draft::{FileText, SkillFiles, StoredFile, StoredSkill};
use crate::learn::skill_agent::edits::MAX_SKILLS;
use crate::platform::Platform;
use crate::skills;
use crate::skills::store::SkillRow;

/// The skills of a space. It has at most [`MAX_SKILLS`] of them, in the order in which they were added.
pub(super) struct Snapshot {
    pub skills: Vec<SkillRow>,
    /// The files by the disk of their skill.
    files: HashMap<DiskId, Vec<ArtifactRow>>,
}

impl Snapshot {
    /// Loads the skills of a space with two statements.
    ///
    /// # Errors
    /// Returns an error if the database fails.
    pub(super) async fn load(
        conn: &mut PgConnection,
        platform: &Platform,
        encryption: &ProjectEncryption,
        space: LearningSpaceId,
    ) -> sqlx::Result<Self> {
        let skills = skills::store::list_by_space(conn, encryption.project, space, MAX_SKILLS).await?;
        let disks: Vec<DiskId> = skills.iter().map(|skill| skill.disk_id).collect();
        let mut by_disk: HashMap<DiskId, Vec<ArtifactRow>> = HashMap::new();
        for file in files::list_on_disks(conn, &disks, platform.config.limits.max_skill_files).await? {
            by_disk.entry(file.disk_id).or_default().push(file);
        }
        Ok(Self { skills, files: by_disk })
    }

    /// Returns the skills as the skill agent gets them.
    pub(super) fn stored_skills(&self) -> Vec<StoredSkill> {
        let to_stored = |skill: &SkillRow| StoredSkill {
            id: skill.id,
            name: skill.name.clone(),
            description: skill.description.clone(),
            files: self.files_of(skill).iter().filter_map(to_stored_file).collect(),
        };
        self.skills.iter().map(to_stored).collect()
    }

    pub(super) fn find_skill(&self, id: SkillId) -> Option<&SkillRow> {
        self.skills.iter().find(|skill| skill.id == id)
    }

    /// Returns a file of a skill.
    pub(super) fn find_file(&self, id: SkillId, path: &FilePath) -> Option<&ArtifactRow> {
        let files = self.files_of(self.find_skill(id)?);
        files.iter().find(|file| file.path == path.directory() && file.filename == path.filename())
    }

    fn files_of(&self, skill: &SkillRow) -> &[ArtifactRow] {
        self.files.get(&skill.disk_id).map(Vec::as_slice).unwrap_or_default()
    }
}

/// Returns a file as the skill agent gets it. Returns `None` if its path is one that the server does not accept anymore.
fn to_stored_file(file: &ArtifactRow) -> Option<StoredFile> {
    let path = FilePath::parse(&format!("{}{}", file.path, file.filename)).ok()?;
    Some(StoredFile { path, mime: file.mime.clone(), size: file.size.try_into().unwrap_or_default() })
}

/// Reads the files of a snapshot.
pub(super) struct SnapshotFiles<'a> {
    pub platform: &'a Platform,
    pub encryption: &'a ProjectEncryption,
    pub snapshot: &'a Snapshot,
}

#[async_trait]
impl SkillFiles for SnapshotFiles<'_> {
    async fn read_text(&self, skill: SkillId, path: &FilePath) -> anyhow::Result<FileText> {
        let Some(file) = self.snapshot.find_file(skill, path) else { return Ok(FileText::Missing) };
        let key = ContentKey::Kek(self.encryption.kek.as_deref());
        match self.platform.blobs.read_within_budget(key, &file.blob()).await {
            Ok((_permit, bytes)) => Ok(String::from_utf8(bytes.to_vec()).map_or(FileText::NotText, FileText::Text)),
            // The file was deleted or replaced after the snapshot was loaded, and its old content is gone.
            Err(Error::NotFound(_)) => Ok(FileText::Missing),
            Err(err) => Err(err.into()),
        }
    }
}
