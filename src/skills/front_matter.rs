//! The front matter of a SKILL.md: YAML between two lines of three dashes, with the skill's name and description.
//!
//! If there are no two such lines, the first YAML document in the file is parsed. Upstream does the same.

use serde::Deserialize;

use crate::error::{Error, Result};

/// The maximum length of a name in bytes. Common file systems have the same maximum for the name of a directory.
const MAX_NAME_BYTES: usize = 255;
/// The maximum length of a description in bytes. It exists because models read the descriptions of all skills together.
const MAX_DESCRIPTION_BYTES: usize = 16 * 1024;

/// The name of a skill. It can be used as the name of a directory. Several skills can have the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkillName(String);

impl SkillName {
    /// Validates a name. Replaces each space, and each character that has a special meaning in paths, by a dash.
    ///
    /// # Errors
    /// Returns 400 if the name is `.` or `..`, has control characters, or is longer than 255 bytes.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid_name =
            |reason: &str| Error::bad_request_with_reason("parameter error", format_args!("name in SKILL.md {reason}"));
        if text.chars().any(char::is_control) {
            return Err(invalid_name("must not contain control characters"));
        }
        if matches!(text, "." | "..") {
            return Err(invalid_name("must not be . or .."));
        }
        if text.len() > MAX_NAME_BYTES {
            return Err(invalid_name(&format!("must not be longer than {MAX_NAME_BYTES} bytes")));
        }
        Ok(Self(text.replace([' ', '/', '\\', ':', '*', '?', '"', '<', '>', '|'], "-")))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The front matter of a SKILL.md.
#[derive(Debug, PartialEq, Eq)]
pub struct FrontMatter {
    pub name: SkillName,
    pub description: String,
}

impl FrontMatter {
    /// Parses the front matter of a SKILL.md.
    ///
    /// # Errors
    /// Returns 400 if there is no front matter, if it is not valid YAML, or if name or description are missing or invalid.
    pub fn parse(skill_md: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Fields {
            name: Option<String>,
            description: Option<String>,
        }
        let parameter_error =
            |reason: &dyn std::fmt::Display| Error::bad_request_with_reason("parameter error", reason);
        let invalid_yaml =
            |reason: &dyn std::fmt::Display| parameter_error(&format_args!("parse SKILL.md YAML: {reason}"));
        let yaml =
            std::str::from_utf8(find_yaml(skill_md)).map_err(|_| invalid_yaml(&"the text is not valid UTF-8"))?;
        if yaml.is_empty() {
            return Err(parameter_error(&"SKILL.md must contain YAML front matter"));
        }
        let fields: Fields =
            serde_saphyr::from_str_with_options(yaml, yaml_options()).map_err(|err| invalid_yaml(&err))?;
        let non_empty =
            |field: Option<String>| field.map(|text| trim_added_newline(text, yaml)).filter(|text| !text.is_empty());
        let name = non_empty(fields.name).ok_or_else(|| parameter_error(&"name is required in SKILL.md"))?;
        let description = non_empty(fields.description);
        let description = description.ok_or_else(|| parameter_error(&"description is required in SKILL.md"))?;
        if description.len() > MAX_DESCRIPTION_BYTES || description.contains('\0') {
            let reason = "must not be longer than 16384 bytes or contain the character NUL";
            return Err(parameter_error(&format_args!("description in SKILL.md {reason}")));
        }
        Ok(Self { name: SkillName::parse(&name)?, description })
    }
}

/// Removes a line break that the parser has added to a value. It adds a line break to a block scalar at the end of the YAML text
/// if the text does not end in a line break.
fn trim_added_newline(mut value: String, yaml: &str) -> String {
    let last_line = value.strip_suffix('\n').and_then(|text| text.rsplit('\n').next());
    if last_line.is_some_and(|line| !line.is_empty() && yaml.ends_with(line)) {
        value.pop();
    }
    value
}

/// Returns the limits of the parser. They prevent the exponential expansion of aliases, and allow the fields that other programs
/// add.
fn yaml_options() -> serde_saphyr::Options {
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

/// Returns the part of a SKILL.md that is YAML.
fn find_yaml(file: &[u8]) -> &[u8] {
    // Editors on Windows add a byte order mark.
    let file = file.strip_prefix(b"\xef\xbb\xbf").unwrap_or(file);
    let mut dash_lines = find_dash_lines(file);
    let (first, second) = (dash_lines.next(), dash_lines.next());
    match (first, second) {
        (Some((_, start)), Some((end, _))) => trim_line_break(&file[start..end.max(start)]),
        // A single line of dashes begins or ends the first document.
        (Some((end, start)), None) if is_blank_or_comments(&file[..end]) => &file[start..],
        (Some((end, _)), None) => &file[..end],
        (None, _) => file,
    }
}

/// Returns the lines of three dashes, as pairs of the offset of the line and the offset of the next line.
fn find_dash_lines(file: &[u8]) -> impl Iterator<Item = (usize, usize)> {
    let mut offset = 0;
    let lines = file.split_inclusive(|byte| *byte == b'\n').map(move |line| {
        let start = offset;
        offset += line.len();
        (line, start, offset)
    });
    lines.filter(|(line, ..)| line.trim_ascii() == b"---").map(|(_, start, end)| (start, end))
}

fn trim_line_break(text: &[u8]) -> &[u8] {
    text.strip_suffix(b"\n").unwrap_or(text)
}

/// Returns `true` if all lines are blank or comments.
fn is_blank_or_comments(text: &[u8]) -> bool {
    text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).all(|line| line.is_empty() || line.starts_with(b"#"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(file: &str) -> Option<(String, String)> {
        let front_matter = FrontMatter::parse(file.as_bytes()).ok()?;
        Some((front_matter.name.0, front_matter.description))
    }

    fn fields(name: &str, description: &str) -> (String, String) {
        (name.into(), description.into())
    }

    fn error(file: impl AsRef<[u8]>) -> String {
        match FrontMatter::parse(file.as_ref()).unwrap_err() {
            Error::BadRequest { detail: Some(detail), .. } => detail,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn front_matter_is_between_two_lines_of_dashes() {
        for file in [
            "---\nname: a\ndescription: b\n---\n# Body\n",
            "\u{feff}---\nname: a\ndescription: b\n---\n# Body\n",
            "---\r\nname: a\r\ndescription: b\r\n---\r\nBody",
            "  ---  \nname: a\ndescription: b\n ---",
            "A word before it\n---\nname: a\ndescription: b\n---\n",
            "---\nname: a\ndescription: b\n---\nmore\n---\nname: c\n",
        ] {
            assert_eq!(parse(file), Some(fields("a", "b")), "{file:?}");
        }
        let literal = "---\nname: a\ndescription: |\n  one\n  two\n---\n";
        assert_eq!(parse(literal), Some(fields("a", "one\ntwo")));
        let not_at_the_end = "---\ndescription: |\n  one\n  two\nname: a\n---\n";
        assert_eq!(parse(not_at_the_end), Some(fields("a", "one\ntwo\n")));
        assert_eq!(parse("---\nname: a\ndescription: >-\n  one\n  two\n---\n"), Some(fields("a", "one two")));
    }

    #[test]
    fn without_two_lines_of_dashes_the_whole_file_is_yaml() {
        for file in [
            "name: a\ndescription: b\n",
            "---\nname: a\ndescription: b\n",
            "# comment\n---\nname: a\ndescription: b\n",
            "name: a\ndescription: b\n---\n# Body: [\n",
        ] {
            assert_eq!(parse(file), Some(fields("a", "b")), "{file:?}");
        }
    }

    #[test]
    fn every_scalar_is_read_as_text() {
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
            assert_eq!(parse(&format!("name: a\ndescription: {scalar}\n")), Some(fields("a", text)), "{scalar}");
        }
        let others = "name: a\nversion: 3\ntags: [a, {b: c}]\ndescription: b\nnested:\n  name: inner\n";
        assert_eq!(parse(others), Some(fields("a", "b")));
    }

    #[test]
    fn missing_fields_are_named() {
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
            assert!(error(file).contains(missing), "{file:?}: {}", error(file));
        }
    }

    #[test]
    fn invalid_yaml_is_rejected() {
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
            assert!(error(file).starts_with("parse SKILL.md YAML"), "{file:?}: {}", error(file));
        }
        assert!(error(b"name: \xff\ndescription: b").contains("UTF-8"));
        // The text after the front matter may be in any charset.
        assert!(FrontMatter::parse(b"---\nname: a\ndescription: b\n---\n\xff").is_ok());
    }

    #[test]
    fn expensive_yaml_is_rejected() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..12 {
            let aliases = vec![format!("*a{}", n - 1); 10].join(", ");
            bomb = format!("{bomb}a{n}: &a{n} [{aliases}]\n");
        }
        assert!(error(format!("{bomb}name: a\ndescription: b")).starts_with("parse SKILL.md YAML"));
        let deep = format!("name: a\ndescription: b\nc: {}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(error(deep).starts_with("parse SKILL.md YAML"));
        let many = format!("name: a\ndescription: b\nc: [{}]", "x, ".repeat(100_000));
        assert!(error(many).starts_with("parse SKILL.md YAML"));
    }

    #[test]
    fn a_name_is_a_valid_directory_name() {
        assert_eq!(SkillName::parse("My Skill: v1/2").unwrap().as_str(), "My-Skill--v1-2");
        assert_eq!(SkillName::parse("a*b?c<d>e|f\"g\\h").unwrap().as_str(), "a-b-c-d-e-f-g-h");
        assert_eq!(SkillName::parse("寿司 🍣; $x").unwrap().as_str(), "寿司-🍣;-$x");
        assert_eq!(SkillName::parse("  ").unwrap().as_str(), "--");
        for name in [".", "..", "a\tb", "a\nb", "a\0b", "a\u{85}b", "a\x1b[1mb", &"n".repeat(256)] {
            assert!(SkillName::parse(name).is_err(), "{name:?}");
        }
        assert!(error("name: \"a\\0b\"\ndescription: b").contains("name in SKILL.md"));
        assert!(error("name: a\ndescription: \"a\\0b\"").contains("description in SKILL.md"));
        assert!(error(format!("name: a\ndescription: {}", "d".repeat(16_385))).contains("description in SKILL.md"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_a_panic(file in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = FrontMatter::parse(&file);
        }

        #[test]
        fn yaml_like_text_is_parsed_without_a_panic(file in "(---\n|name: |description: |[a-z&*!|>{}\\[\\]:,'\"#-]{0,6}|\n|  ){0,40}") {
            let _ = FrontMatter::parse(file.as_bytes());
        }
    }
}
