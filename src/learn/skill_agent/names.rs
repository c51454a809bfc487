//! The names of skills and files: how the agent writes them, and how texts for the agent contain them.

use crate::disks::path::FilePath;
use crate::ids::SkillId;
use crate::learn::prompt::text;

/// The file with the front matter of a skill.
pub(super) const SKILL_MD: &str = "SKILL.md";

/// The maximum number of characters of a name in a text for the agent.
const MAX_QUOTED_CHARS: usize = 300;
/// The maximum number of names in a text for the agent.
const MAX_LISTED_NAMES: usize = 50;

/// Returns `true` for a file that is named SKILL.md, in any directory and in upper or lower case.
pub(super) fn is_skill_md(path: &FilePath) -> bool {
    path.filename().eq_ignore_ascii_case(SKILL_MD)
}

/// Returns the label of a skill whose name is not unique in its space. It does not depend on the other skills.
pub(super) fn distinct_label(name: &str, id: SkillId) -> String {
    let id = id.to_string();
    format!("{name} (id {})", &id[id.len() - 12..])
}

/// Parses a path that the agent has written. `.` and empty segments are omitted, as the route for the files of a skill does.
///
/// # Errors
/// Returns the reason for the agent if the path is empty, absolute, leaves the skill or is not allowed.
pub(super) fn parse_path(argument: &str, path: &str) -> Result<FilePath, String> {
    let invalid = |reason: &str| {
        Err(format!(
            "`{argument}` {reason}. It must be a path below the directory of the skill, such as `SKILL.md` or \
             `notes/2026-03-14.md`."
        ))
    };
    let path = path.trim();
    if path.is_empty() {
        return invalid("is empty");
    }
    if path.starts_with('/') {
        return invalid("must not begin with a slash");
    }
    if path.ends_with('/') {
        return invalid("must not end with a slash, because it names a file");
    }
    let segments: Vec<&str> = path.split('/').filter(|segment| !matches!(*segment, "" | ".")).collect();
    if segments.contains(&"..") {
        return invalid("must not contain `..`");
    }
    FilePath::from_segments(&segments).or_else(invalid)
}

/// Returns the reason why a file must not be created with a path that may be looked up.
///
/// # Errors
/// Returns the reason for the agent.
pub(super) fn check_new_path(path: &FilePath) -> Result<(), String> {
    let name = path.relative();
    if name.contains('\\') || name.chars().any(char::is_control) || text::has_invisible_chars(&name) {
        return Err(format!(
            "`{}` must not contain backslashes, control characters or invisible characters. Use `/` as separator.",
            quote(&name)
        ));
    }
    Ok(())
}

/// Returns a name as a part of a text for the agent: without invisible characters, and cut if it is long.
pub(super) fn quote(name: &str) -> String {
    let cut = text::cut(name, MAX_QUOTED_CHARS);
    let name = cut.text.replace('\n', " ");
    if cut.is_cut { name + "..." } else { name }
}

/// Returns a list of names as a part of a text for the agent. A long list is cut.
pub(super) fn list<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = names.len().saturating_sub(MAX_LISTED_NAMES);
    let quoted: Vec<String> = names.take(MAX_LISTED_NAMES).map(|name| format!("`{}`", quote(name))).collect();
    match (quoted.is_empty(), more) {
        (true, _) => "none".into(),
        (false, 0) => quoted.join(", "),
        (false, more) => format!("{} and {more} more", quoted.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_relative_to_the_skill() {
        let parse = |path: &str| parse_path("file_path", path).map(|path| path.relative());
        for (path, expected) in [
            ("SKILL.md", "SKILL.md"),
            (" notes/a b.md\n", "notes/a b.md"),
            ("./notes//./a.md", "notes/a.md"),
            ("a..b.md", "a..b.md"),
            ("寿司/ü.md", "寿司/ü.md"),
        ] {
            assert_eq!(parse(path).as_deref(), Ok(expected), "{path:?}");
        }
        for (path, reason) in [
            ("", "is empty"),
            (" \n\t", "is empty"),
            ("/x", "must not begin with a slash"),
            ("dir/", "must not end with a slash"),
            ("../x", "must not contain `..`"),
            ("a/../x", "must not contain `..`"),
            ("a/..", "must not contain `..`"),
            ("a..b/x", "must not contain `..`"),
            (".", "must have a file name"),
            ("a\0b", "NUL"),
            ("C:\\x", "Windows path"),
            ("a\\..\\b", "Windows path"),
        ] {
            let error = parse(path).unwrap_err();
            assert!(error.starts_with("`file_path` ") && error.contains(reason), "{path:?}: {error}");
        }
        assert!(parse(&"n".repeat(1025)).unwrap_err().contains("1024 bytes"));
    }

    #[test]
    fn new_paths_are_visible_and_portable() {
        let check = |path: &str| check_new_path(&parse_path("file_path", path).unwrap());
        assert_eq!(check("notes/寿司 👨‍👩‍👧.md"), Ok(()));
        for path in ["a\\b.md", "a\tb.md", "a\u{1b}[1m.md", "a\u{200b}.md", "a\u{202e}dm.exe"] {
            assert!(check(path).is_err(), "{path:?}");
        }
    }

    #[test]
    fn long_names_and_lists_are_cut() {
        assert_eq!(quote("a\n\u{202e}b"), "a b");
        assert_eq!(quote(&"x".repeat(301)), "x".repeat(300) + "...");
        assert_eq!(list([].into_iter()), "none");
        assert_eq!(list(["a", "b"].into_iter()), "`a`, `b`");
        assert!(list(vec!["a"; 52].into_iter()).ends_with("`a` and 2 more"));
    }
}
