//! The difference between a draft and the skills at its start, which the caller stores.

use std::collections::{BTreeMap, BTreeSet};

use super::draft::{FileDraft, SkillDraft, SpaceDraft};
use crate::disks::path::FilePath;
use crate::ids::SkillId;

/// What a draft changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpaceDiff {
    pub new_skills: Vec<NewSkill>,
    /// The stored skills with changes.
    pub changed_skills: Vec<ChangedSkill>,
}

/// A skill that was created, with all its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSkill {
    pub name: String,
    pub description: String,
    /// The paths and texts of the files, among them a valid SKILL.md.
    pub files: Vec<(FilePath, String)>,
}

/// A stored skill with changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedSkill {
    pub id: SkillId,
    /// The new description, if it has changed.
    pub description: Option<String>,
    /// The changes of the files, in an order in which each of them can be applied to the result of those before it: deletions,
    /// moves, then new contents. A file that is moved and changed has one change of each kind.
    pub files: Vec<DraftChange>,
}

/// A change of a draft's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DraftChange {
    Delete {
        path: FilePath,
    },
    Move {
        from: FilePath,
        to: FilePath,
    },
    /// New content of an existing file.
    Replace {
        path: FilePath,
        text: String,
    },
    Create {
        path: FilePath,
        text: String,
    },
}

impl SpaceDiff {
    pub fn is_empty(&self) -> bool {
        self.new_skills.is_empty() && self.changed_skills.is_empty()
    }
}

impl SpaceDraft {
    /// Returns what differs from the skills at the start.
    pub fn diff(&self) -> SpaceDiff {
        let mut diff = SpaceDiff::default();
        for skill in &self.skills {
            let Some(id) = skill.id else {
                diff.new_skills.push(new_skill(skill));
                continue;
            };
            let description = (skill.description != skill.stored_description).then(|| skill.description.clone());
            let files = file_changes(skill);
            if description.is_some() || !files.is_empty() {
                diff.changed_skills.push(ChangedSkill { id, description, files });
            }
        }
        diff
    }
}

fn new_skill(skill: &SkillDraft) -> NewSkill {
    let files = skill.files.iter().map(|(path, file)| (path.clone(), file.text().unwrap_or_default().to_owned()));
    NewSkill { name: skill.name.clone(), description: skill.description.clone(), files: files.collect() }
}

fn file_changes(skill: &SkillDraft) -> Vec<DraftChange> {
    let kept: BTreeSet<&FilePath> = skill.files.values().filter_map(|file| file.stored_path.as_ref()).collect();
    let deleted: BTreeSet<&FilePath> = skill.stored_paths.iter().filter(|path| !kept.contains(path)).collect();
    let is_recreated = |path: &FilePath| skill.files.get(path).is_some_and(|file| file.stored_path.is_none());
    let deletions = deleted.iter().filter(|path| !is_recreated(path));
    let mut changes: Vec<DraftChange> = deletions.map(|path| DraftChange::Delete { path: (*path).clone() }).collect();
    changes.extend(ordered_moves(skill));
    let written = skill.files.iter().filter_map(|(path, file)| Some((path, file, file.written_text()?)));
    changes.extend(written.map(|(path, file, text)| {
        let (path, text) = (path.clone(), text.to_owned());
        if file.stored_path.is_none() && !deleted.contains(&path) {
            DraftChange::Create { path, text }
        } else {
            DraftChange::Replace { path, text }
        }
    }));
    changes
}

/// Returns the moves in an order in which each destination is free.
fn ordered_moves(skill: &SkillDraft) -> Vec<DraftChange> {
    let to_move = |(to, file): (&FilePath, &FileDraft)| {
        let from = file.stored_path.clone().filter(|from| from != to)?;
        Some((from, to.clone()))
    };
    let mut remaining: BTreeMap<FilePath, FilePath> = skill.files.iter().filter_map(to_move).collect();
    let mut ordered = Vec::with_capacity(remaining.len());
    // Files never exchange their paths, so one destination is always free.
    while let Some(from) = remaining.iter().find(|(_, to)| !remaining.contains_key(to)).map(|(from, _)| from.clone()) {
        if let Some((from, to)) = remaining.remove_entry(&from) {
            ordered.push(DraftChange::Move { from, to });
        }
    }
    ordered
}
