//! The head of a SKILL.md: YAML between two lines of three dashes, with the skill's name and what it is for.
//!
//! Where there are no two such lines the whole file is taken as YAML, as Acontext does, up to the end of its first document.

use serde::Deserialize;

use crate::error::{Error, Result};

/// A longer one is no name of a folder, in bytes.
const MAX_NAME: usize = 255;
/// Descriptions are read by models, all of them at once; in bytes.
const MAX_DESCRIPTION: usize = 16 * 1024;

/// How a skill is called: a name that a folder can have. Not unique.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkillName(String);

impl SkillName {
    /// Signs that separate or mean something in paths become dashes.
    ///
    /// # Errors
    /// 400 for what can be no folder: nothing, dots alone, control characters, or more than 255 bytes.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong =
            |why: &str| Error::bad_request_with_reason("parameter error", format_args!("name in SKILL.md {why}"));
        if text.chars().any(char::is_control) {
            return Err(wrong("must not contain control characters"));
        }
        if matches!(text, "." | "..") {
            return Err(wrong("must not be . or .."));
        }
        if text.len() > MAX_NAME {
            return Err(wrong(&format!("must not be longer than {MAX_NAME} bytes")));
        }
        Ok(Self(text.replace([' ', '/', '\\', ':', '*', '?', '"', '<', '>', '|'], "-")))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What the head of a SKILL.md says.
#[derive(Debug, PartialEq, Eq)]
pub struct FrontMatter {
    pub name: SkillName,
    pub description: String,
}

impl FrontMatter {
    /// Reads the head of a SKILL.md.
    ///
    /// # Errors
    /// 400: there is none, it is no YAML, or name or description are missing or cannot be kept.
    pub fn parse(skill_md: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Fields {
            name: Option<String>,
            description: Option<String>,
        }
        let refuse = |why: &dyn std::fmt::Display| Error::bad_request_with_reason("parameter error", why);
        let not_yaml = |why: &dyn std::fmt::Display| refuse(&format_args!("parse SKILL.md YAML: {why}"));
        let yaml = std::str::from_utf8(yaml(skill_md)).map_err(|_| not_yaml(&"is not valid UTF-8"))?;
        if yaml.is_empty() {
            return Err(refuse(&"SKILL.md must contain YAML front matter"));
        }
        let fields: Fields = serde_saphyr::from_str_with_options(yaml, limits()).map_err(|err| not_yaml(&err))?;
        let given = |field: Option<String>| field.map(|text| as_it_ends(text, yaml)).filter(|text| !text.is_empty());
        let name = given(fields.name).ok_or_else(|| refuse(&"name is required in SKILL.md"))?;
        let description = given(fields.description).ok_or_else(|| refuse(&"description is required in SKILL.md"))?;
        if description.len() > MAX_DESCRIPTION || description.contains('\0') {
            let wrong = "must not be longer than 16384 bytes, nor contain the character NUL";
            return Err(refuse(&format_args!("description in SKILL.md {wrong}")));
        }
        Ok(Self { name: SkillName::parse(&name)?, description })
    }
}

/// The parser ends a block at the end of the text with a line break that is not there.
fn as_it_ends(mut value: String, yaml: &str) -> String {
    let last_line = value.strip_suffix('\n').and_then(|text| text.rsplit('\n').next());
    if last_line.is_some_and(|line| !line.is_empty() && yaml.ends_with(line)) {
        value.pop();
    }
    value
}

/// What two names and their values take, with room for what other programs keep there; an alias may not make much of little.
fn limits() -> serde_saphyr::Options {
    serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_depth: 32,
            max_nodes: 4_000,
            max_events: 10_000,
            max_aliases: 64,
            max_anchors: 64,
            max_documents: 1,
        },
    }
}

/// The part of the file that is YAML.
fn yaml(file: &[u8]) -> &[u8] {
    // Editors of Windows put it there.
    let file = file.strip_prefix(b"\xef\xbb\xbf").unwrap_or(file);
    let mut fences = fences(file);
    let (first, second) = (fences.next(), fences.next());
    match (first, second) {
        (Some((_, from)), Some((to, _))) => without_line_break(&file[from..to.max(from)]),
        // One line of dashes begins the first document, or ends it.
        (Some((to, from)), None) if is_blank(&file[..to]) => &file[from..],
        (Some((to, _)), None) => &file[..to],
        (None, _) => file,
    }
}

/// The lines of three dashes: where each begins, and where the next line does.
fn fences(file: &[u8]) -> impl Iterator<Item = (usize, usize)> {
    let mut at = 0;
    let lines = file.split_inclusive(|byte| *byte == b'\n').map(move |line| {
        let begin = at;
        at += line.len();
        (line, begin, at)
    });
    lines.filter(|(line, ..)| line.trim_ascii() == b"---").map(|(_, begin, end)| (begin, end))
}

fn without_line_break(text: &[u8]) -> &[u8] {
    text.strip_suffix(b"\n").unwrap_or(text)
}

fn is_blank(text: &[u8]) -> bool {
    text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).all(|line| line.is_empty() || line.starts_with(b"#"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(file: &str) -> Option<(String, String)> {
        let read = FrontMatter::parse(file.as_bytes()).ok()?;
        Some((read.name.0, read.description))
    }

    fn said(name: &str, description: &str) -> (String, String) {
        (name.into(), description.into())
    }

    fn refusal(file: impl AsRef<[u8]>) -> String {
        match FrontMatter::parse(file.as_ref()).unwrap_err() {
            Error::BadRequest { detail: Some(detail), .. } => detail,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_head_lies_between_two_lines_of_dashes() {
        for file in [
            "---\nname: a\ndescription: b\n---\n# Body\n",
            "\u{feff}---\nname: a\ndescription: b\n---\n# Body\n",
            "---\r\nname: a\r\ndescription: b\r\n---\r\nBody",
            "  ---  \nname: a\ndescription: b\n ---",
            "A word before it\n---\nname: a\ndescription: b\n---\n",
            "---\nname: a\ndescription: b\n---\nmore\n---\nname: c\n",
        ] {
            assert_eq!(read(file), Some(said("a", "b")), "{file:?}");
        }
        let literal = "---\nname: a\ndescription: |\n  one\n  two\n---\n";
        assert_eq!(read(literal), Some(said("a", "one\ntwo")));
        let not_at_the_end = "---\ndescription: |\n  one\n  two\nname: a\n---\n";
        assert_eq!(read(not_at_the_end), Some(said("a", "one\ntwo\n")));
        assert_eq!(read("---\nname: a\ndescription: >-\n  one\n  two\n---\n"), Some(said("a", "one two")));
    }

    #[test]
    fn without_two_such_lines_the_whole_file_is_yaml() {
        for file in [
            "name: a\ndescription: b\n",
            "---\nname: a\ndescription: b\n",
            "# told first\n---\nname: a\ndescription: b\n",
            "name: a\ndescription: b\n---\n# Body: [\n",
        ] {
            assert_eq!(read(file), Some(said("a", "b")), "{file:?}");
        }
    }

    #[test]
    fn every_scalar_is_a_text_as_it_stands() {
        for (scalar, text) in [
            ("123", "123"),
            ("45.50", "45.50"),
            ("true", "true"),
            ("0x1F", "0x1F"),
            ("2024-01-02", "2024-01-02"),
            ("'quoted: yes'", "quoted: yes"),
            ("\"gr\\u00f6\\u00dfe\"", "größe"),
            ("!local tagged", "tagged"),
        ] {
            assert_eq!(read(&format!("name: a\ndescription: {scalar}\n")), Some(said("a", text)), "{scalar}");
        }
        let others = "name: a\nversion: 3\ntags: [a, {b: c}]\ndescription: b\nnested:\n  name: inner\n";
        assert_eq!(read(others), Some(said("a", "b")));
    }

    #[test]
    fn what_is_missing_is_named() {
        for (file, missing) in [
            ("", "must contain YAML front matter"),
            ("---\n---\n", "must contain YAML front matter"),
            ("description: b", "name is required"),
            ("name:\ndescription: b", "name is required"),
            ("name: ''\ndescription: b", "name is required"),
            ("name: ~\ndescription: b", "name is required"),
            ("name: null\ndescription: b", "name is required"),
            ("name: a", "description is required"),
            ("name: a\ndescription: \"\"", "description is required"),
        ] {
            assert!(refusal(file).contains(missing), "{file:?}: {}", refusal(file));
        }
    }

    #[test]
    fn what_is_no_yaml_of_this_kind_is_refused() {
        for file in [
            "name: [a\ndescription: b",
            "name: [a, b]\ndescription: c",
            "name: {a: b}\ndescription: c",
            "name: a: b: c\ndescription: d",
            "name: a\nname: b\ndescription: c",
            "# Only text\n\nNothing is set here.\n",
            "- name: a\n- description: b\n",
            "name: *nowhere\ndescription: b",
            "\tname: a\ndescription: b",
        ] {
            assert!(refusal(file).starts_with("parse SKILL.md YAML"), "{file:?}: {}", refusal(file));
        }
        assert!(refusal(b"name: \xff\ndescription: b").contains("UTF-8"));
        // What follows the head may be in any charset.
        assert!(FrontMatter::parse(b"---\nname: a\ndescription: b\n---\n\xff").is_ok());
    }

    #[test]
    fn little_yaml_does_not_become_much() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..12 {
            let aliases = vec![format!("*a{}", n - 1); 10].join(", ");
            bomb = format!("{bomb}a{n}: &a{n} [{aliases}]\n");
        }
        assert!(refusal(format!("{bomb}name: a\ndescription: b")).starts_with("parse SKILL.md YAML"));
        let deep = format!("name: a\ndescription: b\nc: {}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(refusal(deep).starts_with("parse SKILL.md YAML"));
        let many = format!("name: a\ndescription: b\nc: [{}]", "x, ".repeat(100_000));
        assert!(refusal(many).starts_with("parse SKILL.md YAML"));
    }

    #[test]
    fn a_name_can_be_a_folder() {
        assert_eq!(SkillName::parse("My Skill: v1/2").unwrap().as_str(), "My-Skill--v1-2");
        assert_eq!(SkillName::parse("a*b?c<d>e|f\"g\\h").unwrap().as_str(), "a-b-c-d-e-f-g-h");
        assert_eq!(SkillName::parse("寿司 🍣; $x").unwrap().as_str(), "寿司-🍣;-$x");
        assert_eq!(SkillName::parse("  ").unwrap().as_str(), "--");
        for name in [".", "..", "a\tb", "a\nb", "a\0b", "a\u{85}b", "a\x1b[1mb", &"n".repeat(256)] {
            assert!(SkillName::parse(name).is_err(), "{name:?}");
        }
        assert!(refusal("name: \"a\\0b\"\ndescription: b").contains("name in SKILL.md"));
        assert!(refusal("name: a\ndescription: \"a\\0b\"").contains("description in SKILL.md"));
        assert!(refusal(format!("name: a\ndescription: {}", "d".repeat(16_385))).contains("description in SKILL.md"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(file in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = FrontMatter::parse(&file);
        }

        #[test]
        fn yaml_like_text_is_read_without_a_panic(file in "(---\n|name: |description: |[a-z&*!|>{}\\[\\]:,'\"#-]{0,6}|\n|  ){0,40}") {
            let _ = FrontMatter::parse(file.as_bytes());
        }
    }
}
