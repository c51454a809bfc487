//! The edits of skills: their rules, which are the same for the tools of the agent and for the edits that are applied to the
//! current skills when a lesson is stored.

use super::draft::{FileDraft, MAX_FILE_BYTES, Reply, SkillDraft, SkillFiles, SpaceDraft};
use super::names;
use crate::disks::path::FilePath;
use crate::error::Error;
use crate::learn::prompt::text;
use crate::learn::secrets;
use crate::skills::front_matter::FrontMatter;

/// The maximum number of skills in a space that the agent may create skills in. Each prompt of the agent lists all skills.
pub const MAX_SKILLS: usize = 200;

/// An edit of the skills of a space. Skills are named by their labels: the name, with a part of the id if the space has several
/// skills of this name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SkillEdit {
    CreateSkill { skill_md: String },
    CreateFile { skill: String, path: FilePath, content: String },
    Replace { skill: String, path: FilePath, old: String, new: String },
    DeleteFile { skill: String, path: FilePath },
    MoveFile { skill: String, from: FilePath, to: FilePath },
}

/// Applies an edit to a draft. Loads the text of the file if it is needed. Returns the reply for the agent.
///
/// # Errors
/// Returns an error if the content of a file cannot be read.
pub async fn apply_edit(draft: &mut SpaceDraft, edit: &SkillEdit, files: &dyn SkillFiles) -> anyhow::Result<Reply> {
    if let SkillEdit::Replace { skill, path, .. } = edit
        && let Err(mistake) = draft.load_text(skill, path, files).await?
    {
        return Ok(Err(mistake));
    }
    Ok(match edit {
        SkillEdit::CreateSkill { skill_md } => create_skill(draft, skill_md),
        SkillEdit::CreateFile { skill, path, content } => create_file(draft, skill, path, content),
        SkillEdit::Replace { skill, path, old, new } => replace(draft, skill, path, old, new),
        SkillEdit::DeleteFile { skill, path } => delete_file(draft, skill, path),
        SkillEdit::MoveFile { skill, from, to } => move_file(draft, skill, from, to),
    })
}

/// Applies edits to a draft, in their order. Returns `Ok(Err)` with the reason if one of them does not fit.
///
/// # Errors
/// Returns an error if the content of a file cannot be read.
pub async fn apply_edits(
    draft: &mut SpaceDraft,
    edits: &[SkillEdit],
    files: &dyn SkillFiles,
) -> anyhow::Result<Reply<()>> {
    for edit in edits {
        if let Err(mistake) = apply_edit(draft, edit, files).await? {
            return Ok(Err(mistake));
        }
    }
    Ok(Ok(()))
}

fn create_skill(draft: &mut SpaceDraft, skill_md: &str) -> Reply {
    check_text("skill_md_content", skill_md)?;
    check_skill_md_size(skill_md, draft.limits.max_skill_md_bytes)?;
    let front_matter = parse_front_matter(skill_md)?;
    check_dash_lines(skill_md)?;
    let name = front_matter.name.as_str();
    if draft.skills.iter().any(|skill| skill.name == name || skill.label == name) {
        return Err(format!(
            "The skill `{name}` exists already, so none was created. Extend it with `create_skill_file` or \
             `str_replace_skill_file`."
        ));
    }
    if draft.skills.len() >= MAX_SKILLS {
        return Err(format!(
            "The space has {} skills. The maximum is {MAX_SKILLS}, so none was created. Extend one of the existing \
             skills instead.",
            draft.skills.len()
        ));
    }
    let path = FilePath::from_segments(&[names::SKILL_MD])?;
    let mut skill = SkillDraft::new(name.into(), front_matter.description);
    skill.files.insert(path, FileDraft::new(skill_md.into()));
    draft.skills.push(skill);
    Ok(format!("The skill `{name}` was created with its SKILL.md. Add its other files with `create_skill_file`."))
}

fn create_file(draft: &mut SpaceDraft, label: &str, path: &FilePath, content: &str) -> Reply {
    let name = names::quote(&path.relative());
    if names::is_skill_md(path) {
        return Err(format!(
            "`{name}` cannot be created: each skill has one SKILL.md, which `create_skill` creates. Change it with \
             `str_replace_skill_file`."
        ));
    }
    let max_files = draft.limits.max_files;
    let skill = draft.skill_mut(label)?;
    check_free(skill, path, None)?;
    check_text("content", content)?;
    if skill.files.len() >= max_files {
        return Err(format!(
            "The skill `{}` has {} files. The maximum is {max_files}, so none was created. Add the text to an existing \
             file.",
            names::quote(label),
            skill.files.len()
        ));
    }
    skill.files.insert(path.clone(), FileDraft::new(content.into()));
    Ok(format!("The file `{name}` of the skill `{}` was created.", names::quote(label)))
}

fn replace(draft: &mut SpaceDraft, label: &str, path: &FilePath, old: &str, new: &str) -> Reply {
    let max_skill_md_bytes = draft.limits.max_skill_md_bytes;
    let skill = draft.skill_mut(label)?;
    let is_skill_md = skill.skill_md() == Some(path);
    let skill_name = skill.name.clone();
    let unknown = skill.unknown_file(path);
    // `apply_edit` has loaded the text.
    let file = skill.files.get_mut(path).ok_or(unknown)?;
    let (previous, name) = (file.text().unwrap_or_default(), names::quote(&path.relative()));
    check_text("new_string", new)?;
    if old == new && !old.is_empty() {
        return Err("`old_string` and `new_string` are equal, so nothing was changed.".into());
    }
    let text = replace_once(previous, old, new).map_err(|reason| format!("`old_string` {reason} in `{name}`."))?;
    if let Some(kind) = secrets::find_added_secret(previous, &text) {
        return Err(secret_mistake(&format!("With this change, `{name}`"), kind));
    }
    if text.len() > MAX_FILE_BYTES {
        return Err(format!(
            "`{name}` would have {} bytes. The maximum is {MAX_FILE_BYTES}, so nothing was changed. Put the text into \
             another file.",
            text.len()
        ));
    }
    if is_skill_md {
        check_skill_md_size(&text, max_skill_md_bytes)?;
        let front_matter = parse_front_matter(&text)?;
        // A skill that a user has uploaded may do without.
        if has_dash_lines(previous) {
            check_dash_lines(&text)?;
        }
        if front_matter.name.as_str() != skill_name {
            return Err(format!(
                "Nothing was changed: the name of a skill cannot change. `name` in the front matter must remain \
                 `{skill_name}`."
            ));
        }
        file.write(text);
        skill.description = front_matter.description;
    } else {
        file.write(text);
    }
    Ok(format!("The file `{name}` of the skill `{}` was changed.", names::quote(label)))
}

/// Replaces the only occurrence of a text. If there is none in a text with line breaks of Windows, `old` and `new` are assumed to
/// have those of Unix instead.
fn replace_once(text: &str, old: &str, new: &str) -> Result<String, String> {
    if old.is_empty() {
        return Err("is empty. It must be a text that occurs exactly once".into());
    }
    match text.matches(old).count() {
        1 => Ok(text.replacen(old, new, 1)),
        0 if text.contains("\r\n") && old.contains('\n') && !old.contains('\r') => {
            replace_once(text, &old.replace('\n', "\r\n"), &new.replace("\r\n", "\n").replace('\n', "\r\n"))
        }
        0 => {
            Err("has no match, so nothing was changed. It must be exactly the text of the file, with all white space \
                  and line breaks. Read the file with `get_skill_file` for the exact text"
                .into())
        }
        count => Err(format!(
            "has {count} matches, so nothing was changed. Add lines before or after it, so that it has exactly one match"
        )),
    }
}

fn delete_file(draft: &mut SpaceDraft, label: &str, path: &FilePath) -> Reply {
    let name = names::quote(&path.relative());
    if names::is_skill_md(path) {
        return Err(format!("`{name}` cannot be deleted: each skill must have a SKILL.md."));
    }
    let skill = draft.skill_mut(label)?;
    skill.file(path)?;
    skill.files.remove(path);
    Ok(format!("The file `{name}` of the skill `{}` was deleted.", names::quote(label)))
}

fn move_file(draft: &mut SpaceDraft, label: &str, from: &FilePath, to: &FilePath) -> Reply {
    let (from_name, to_name) = (names::quote(&from.relative()), names::quote(&to.relative()));
    if from == to {
        return Err(format!("`source_path` and `destination_path` are both `{from_name}`, so nothing was changed."));
    }
    for (path, name) in [(from, &from_name), (to, &to_name)] {
        if names::is_skill_md(path) {
            return Err(format!("`{name}` cannot be moved or replaced: each skill must have its SKILL.md."));
        }
    }
    let skill = draft.skill_mut(label)?;
    skill.file(from)?;
    check_free(skill, to, Some(from))?;
    if completes_cycle(skill, from, to) {
        return Err(format!(
            "Nothing was changed: files cannot exchange their paths. Choose another path than `{to_name}`."
        ));
    }
    let unknown = skill.unknown_file(from);
    let file = skill.files.remove(from).ok_or(unknown)?;
    skill.files.insert(to.clone(), file);
    Ok(format!("The file `{from_name}` of the skill `{}` was moved to `{to_name}`.", names::quote(label)))
}

/// Returns `true` if stored files would have exchanged their paths after a move. Such moves cannot be stored one after another.
fn completes_cycle(skill: &SkillDraft, from: &FilePath, to: &FilePath) -> bool {
    let Some(start) = skill.files.get(from).and_then(|file| file.stored_path.as_ref()) else { return false };
    let mut occupied = to;
    // Each step follows another stored file, so the walk ends.
    while occupied != start {
        let moved =
            skill.files.iter().find(|(path, file)| *path != from && file.stored_path.as_ref() == Some(occupied));
        match moved {
            Some((path, _)) if path != occupied => occupied = path,
            _ => return false,
        }
    }
    // A file that moves back to its own path exchanges nothing.
    to != start
}

/// Checks that a file can be created with a path. `moved` is the file that leaves its path.
fn check_free(skill: &SkillDraft, path: &FilePath, moved: Option<&FilePath>) -> Result<(), String> {
    names::check_new_path(path)?;
    if skill.files.contains_key(path) {
        return Err(format!(
            "`{}` exists already, so nothing was changed. Change it with `str_replace_skill_file`, or choose another \
             path.",
            names::quote(&path.relative())
        ));
    }
    // Skills are extracted to real file systems, which may ignore the case of names.
    let new = path.relative().to_lowercase();
    for existing in skill.files.keys().filter(|existing| Some(*existing) != moved) {
        let lower = existing.relative().to_lowercase();
        let reason = if lower == new {
            "differs from it only in upper and lower case"
        } else if new.starts_with(&format!("{lower}/")) {
            "is a file, so it cannot be a directory"
        } else if lower.starts_with(&format!("{new}/")) {
            "is below it, so it is a directory"
        } else {
            continue;
        };
        return Err(format!(
            "`{}` cannot be created: `{}` {reason}. Choose another path.",
            names::quote(&path.relative()),
            names::quote(&existing.relative())
        ));
    }
    Ok(())
}

/// Checks a text that the agent has written.
fn check_text(argument: &str, text: &str) -> Result<(), String> {
    if text.len() > MAX_FILE_BYTES {
        return Err(format!(
            "`{argument}` has {} bytes. The maximum is {MAX_FILE_BYTES}, so nothing was changed. Send a shorter text.",
            text.len()
        ));
    }
    if text::has_invisible_chars(text) {
        return Err(format!(
            "`{argument}` contains control characters or invisible characters, so nothing was changed. Send it without \
             them."
        ));
    }
    secrets::find_secret(text).map_or(Ok(()), |kind| Err(secret_mistake(&format!("`{argument}`"), kind)))
}

fn secret_mistake(subject: &str, kind: &str) -> String {
    format!(
        "{subject} contains what looks like {kind}, so nothing was changed. Skills must not contain secrets. Write where \
         the secret is configured instead of its value."
    )
}

fn check_skill_md_size(text: &str, max_bytes: usize) -> Result<(), String> {
    if text.len() <= max_bytes {
        return Ok(());
    }
    Err(format!(
        "The SKILL.md would have {} bytes. The maximum is {max_bytes}, so nothing was changed. Put details into other \
         files.",
        text.len()
    ))
}

/// Checks that the front matter of a SKILL.md is between two lines of three dashes. The parser also accepts a file without them, but
/// other programs do not.
fn check_dash_lines(skill_md: &str) -> Result<(), String> {
    if has_dash_lines(skill_md) {
        return Ok(());
    }
    Err("The SKILL.md would not be valid, so nothing was changed: it must begin with a line `---`, and another line `---` must follow \
         the `name` and the `description`."
        .into())
}

fn has_dash_lines(skill_md: &str) -> bool {
    let mut lines = skill_md.lines();
    lines.next().is_some_and(|line| line.trim_end() == "---") && lines.any(|line| line.trim_end() == "---")
}

fn parse_front_matter(skill_md: &str) -> Result<FrontMatter, String> {
    FrontMatter::parse(skill_md.as_bytes()).map_err(|err| {
        let reason = match err {
            Error::BadRequest { detail: Some(detail), .. } => detail,
            other => other.to_string(),
        };
        format!(
            "The SKILL.md would not be valid, so nothing was changed: {}. It must begin with YAML between two lines \
             `---`, with `name` and `description`.",
            names::quote(&reason)
        )
    })
}
