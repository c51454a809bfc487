//! The draft of a space's skills, which the edits of a run change. The texts of stored files are loaded when they are needed.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;

use super::names;
use crate::disks::path::FilePath;
use crate::ids::SkillId;

/// The maximum size in bytes of a file that the agent reads or writes.
pub const MAX_FILE_BYTES: usize = 1024 * 1024;

/// A skill of the space, as it is stored.
#[derive(Clone, Debug)]
pub struct StoredSkill {
    pub id: SkillId,
    pub name: String,
    pub description: String,
    pub files: Vec<StoredFile>,
}

/// A file of a skill, as it is stored.
#[derive(Clone, Debug)]
pub struct StoredFile {
    pub path: FilePath,
    pub mime: String,
    /// The size in bytes.
    pub size: u64,
}

/// The contents of stored files.
#[async_trait]
pub trait SkillFiles: Send + Sync {
    /// Reads the current content of a file. It is not called for files that are larger than [`MAX_FILE_BYTES`].
    ///
    /// # Errors
    /// Returns an error if the content cannot be read. The run ends then.
    async fn read_text(&self, skill: SkillId, path: &FilePath) -> anyhow::Result<FileText>;
}

/// The content of a stored file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileText {
    Text(String),
    /// The file is not a text file, or is not valid UTF-8.
    NotText,
    /// The file, or its skill, has been deleted.
    Missing,
}

/// The limits of skills.
#[derive(Clone, Copy, Debug)]
pub struct SkillLimits {
    /// The maximum number of files of a skill.
    pub max_files: usize,
    /// The maximum size of a SKILL.md in bytes.
    pub max_skill_md_bytes: usize,
}

/// The reply to the model. `Err` is a mistake of the model, which has had no effect: what is wrong and what to do instead.
pub type Reply<T = String> = Result<T, String>;

/// The skills of a space with the edits of a run.
#[derive(Clone, Debug)]
pub struct SpaceDraft {
    pub(super) skills: Vec<SkillDraft>,
    pub(super) limits: SkillLimits,
}

/// A skill with the edits of a run.
#[derive(Clone, Debug)]
pub(super) struct SkillDraft {
    /// `None` for a skill that the run has created.
    pub(super) id: Option<SkillId>,
    pub(super) name: String,
    /// The name by which the agent addresses the skill: `name`, or `name` with a part of the id if several skills have this name.
    pub(super) label: String,
    pub(super) description: String,
    /// The description at the start of the run.
    pub(super) stored_description: String,
    pub(super) files: BTreeMap<FilePath, FileDraft>,
    /// The paths of the files at the start of the run.
    pub(super) stored_paths: BTreeSet<FilePath>,
}

/// A file with the edits of a run.
#[derive(Clone, Debug)]
pub(super) struct FileDraft {
    /// The path at the start of the run. `None` for a file that the run has created.
    pub(super) stored_path: Option<FilePath>,
    pub(super) mime: String,
    /// The size of the stored content, in bytes.
    stored_size: u64,
    /// The stored content, once it is loaded.
    stored_text: Option<String>,
    /// The content that the run has written, if it differs from the stored one.
    written_text: Option<String>,
}

impl SpaceDraft {
    pub fn new(skills: Vec<StoredSkill>, limits: SkillLimits) -> Self {
        let mut counts = BTreeMap::<String, usize>::new();
        for skill in &skills {
            *counts.entry(skill.name.clone()).or_default() += 1;
        }
        let to_draft = |skill: StoredSkill| {
            let is_unique = counts.get(&skill.name).is_none_or(|count| *count == 1);
            let label = if is_unique { skill.name.clone() } else { names::distinct_label(&skill.name, skill.id) };
            let stored_paths = skill.files.iter().map(|file| file.path.clone()).collect();
            let files = skill.files.into_iter().map(|file| (file.path.clone(), FileDraft::from_stored(file)));
            SkillDraft {
                id: Some(skill.id),
                name: skill.name,
                label,
                stored_description: skill.description.clone(),
                description: skill.description,
                files: files.collect(),
                stored_paths,
            }
        };
        Self { skills: skills.into_iter().map(to_draft).collect(), limits }
    }

    /// Returns the skill with a label.
    pub(super) fn skill(&self, label: &str) -> Reply<&SkillDraft> {
        self.skills.iter().find(|skill| skill.label == label).ok_or_else(|| self.unknown_skill(label))
    }

    pub(super) fn skill_mut(&mut self, label: &str) -> Reply<&mut SkillDraft> {
        match self.skills.iter().position(|skill| skill.label == label) {
            Some(index) => Ok(&mut self.skills[index]),
            None => Err(self.unknown_skill(label)),
        }
    }

    fn unknown_skill(&self, label: &str) -> String {
        let known = names::list(self.skills.iter().map(|skill| skill.label.as_str()));
        match self.skills.len() {
            0 => "The space has no skills. Create one with `create_skill`.".into(),
            _ => format!("There is no skill `{}`. The skills are: {known}.", names::quote(label)),
        }
    }

    /// Loads the text of a file unless it is loaded.
    ///
    /// # Errors
    /// Returns an error if the content cannot be read. The inner error is for the model: the skill or the file does not exist, or
    /// is not a text.
    pub(super) async fn load_text(
        &mut self,
        label: &str,
        path: &FilePath,
        source: &dyn SkillFiles,
    ) -> anyhow::Result<Reply<()>> {
        let skill = match self.skill_mut(label) {
            Ok(skill) => skill,
            Err(mistake) => return Ok(Err(mistake)),
        };
        let file = match skill.file(path) {
            Ok(file) => file,
            Err(mistake) => return Ok(Err(mistake)),
        };
        let (Some(id), Some(stored_path), None) = (skill.id, &file.stored_path, file.text()) else {
            return Ok(Ok(()));
        };
        if file.stored_size > MAX_FILE_BYTES as u64 {
            return Ok(Err(format!(
                "`{}` has {} bytes. Files of more than {MAX_FILE_BYTES} bytes cannot be read or edited.",
                names::quote(&path.relative()),
                file.stored_size
            )));
        }
        let content = source.read_text(id, stored_path).await?;
        Ok(skill.set_loaded(path, content))
    }
}

impl SkillDraft {
    /// Returns a skill without files that the run creates.
    pub(super) fn new(name: String, description: String) -> Self {
        Self {
            id: None,
            label: name.clone(),
            name,
            description,
            stored_description: String::new(),
            files: BTreeMap::new(),
            stored_paths: BTreeSet::new(),
        }
    }

    /// Returns the file with a path.
    pub(super) fn file(&self, path: &FilePath) -> Reply<&FileDraft> {
        self.files.get(path).ok_or_else(|| self.unknown_file(path))
    }

    pub(super) fn unknown_file(&self, path: &FilePath) -> String {
        let paths: Vec<String> = self.files.keys().map(FilePath::relative).collect();
        format!(
            "The skill `{}` has no file `{}`. Its files are: {}.",
            names::quote(&self.label),
            names::quote(&path.relative()),
            names::list(paths.iter().map(String::as_str))
        )
    }

    /// Returns the path of the SKILL.md with the skill's front matter: the one that is nearest to the root.
    pub(super) fn skill_md(&self) -> Option<&FilePath> {
        let candidates = self.files.keys().filter(|path| names::is_skill_md(path));
        candidates.min_by_key(|path| path.directory().matches('/').count())
    }

    /// Records the stored content of a file. A file that has been deleted is removed from the draft.
    fn set_loaded(&mut self, path: &FilePath, content: FileText) -> Reply<()> {
        let name = names::quote(&path.relative());
        let Some(file) = self.files.get_mut(path) else { return Err(self.unknown_file(path)) };
        match content {
            FileText::Text(text) => {
                file.stored_text = Some(text);
                Ok(())
            }
            FileText::NotText => Err(format!(
                "`{name}` is not a text file (type {}, {} bytes). It cannot be read or edited.",
                file.mime, file.stored_size
            )),
            FileText::Missing => {
                if let Some(FileDraft { stored_path: Some(stored_path), .. }) = self.files.remove(path) {
                    self.stored_paths.remove(&stored_path);
                }
                Err(format!("`{name}` has just been deleted by someone else. Continue without it."))
            }
        }
    }
}

impl FileDraft {
    /// Returns a file that the run creates.
    pub(super) fn new(text: String) -> Self {
        Self { stored_path: None, mime: String::new(), stored_size: 0, stored_text: None, written_text: Some(text) }
    }

    fn from_stored(file: StoredFile) -> Self {
        Self {
            stored_path: Some(file.path),
            mime: file.mime,
            stored_size: file.size,
            stored_text: None,
            written_text: None,
        }
    }

    /// Returns the current text. `None` if it is not loaded.
    pub(super) fn text(&self) -> Option<&str> {
        self.written_text.as_deref().or(self.stored_text.as_deref())
    }

    /// Returns the text that must be stored. `None` if the content is the stored one.
    pub(super) fn written_text(&self) -> Option<&str> {
        self.written_text.as_deref()
    }

    pub(super) fn write(&mut self, text: String) {
        self.written_text = (self.stored_text.as_ref() != Some(&text)).then_some(text);
    }
}
