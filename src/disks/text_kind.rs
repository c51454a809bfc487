//! Detects and validates text files. Only text files have a `content` in responses, and grep searches only text files.
//!
//! A file has the first kind whose extension or MIME type matches. If the file is not valid for this kind, the response has no
//! `content`, and no other kind is tried. JSON and CSV are validated by the rules of Go's standard library, with which upstream
//! parses them.
//!
//! The MIME types come from [`mime`](crate::mime).

use serde::de::IgnoredAny;

use crate::mime::{csv_rows, extension};

/// The prefixes of the MIME types of source code. `text/x-c` also matches C++ and C#, and `text/x-r` also matches Ruby and Rust.
const CODE_TYPE_PREFIXES: [&str; 23] = [
    "application/graphql",
    "application/javascript",
    "application/sql",
    "application/typescript",
    "text/javascript",
    "text/typescript",
    "text/x-c",
    "text/x-dockerfile",
    "text/x-go",
    "text/x-java-source",
    "text/x-kotlin",
    "text/x-lua",
    "text/x-makefile",
    "text/x-perl",
    "text/x-php",
    "text/x-protobuf",
    "text/x-python",
    "text/x-r",
    "text/x-scala",
    "text/x-shellscript",
    "text/x-swift",
    "text/x-thrift",
    "text/x-vim",
];

/// The kind of a text file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TextKind {
    Json,
    Csv,
    Code,
    Text,
}

impl TextKind {
    /// Returns the kind of a file by its name and MIME type, or `None` if it is not a text file.
    pub(crate) fn detect(filename: &str, mime: &str) -> Option<Self> {
        let extension = extension(filename);
        [Self::Json, Self::Csv, Self::Code, Self::Text]
            .into_iter()
            .find(|kind| kind.has_extension(&extension) || kind.has_mime_type(mime))
    }

    /// Returns the name of the kind, which is the `type` of the content in responses.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Csv => "csv",
            Self::Code => "code",
            Self::Text => "text",
        }
    }

    /// Returns `true` if `bytes` are valid for this kind. Code and text may contain any bytes.
    pub(crate) fn is_valid(self, bytes: &[u8]) -> bool {
        match self {
            Self::Json => is_json(bytes),
            Self::Csv => is_csv(bytes),
            Self::Code | Self::Text => true,
        }
    }

    #[rustfmt::skip]
    fn has_extension(self, extension: &str) -> bool {
        match self {
            Self::Json => extension == ".json",
            Self::Csv => extension == ".csv",
            Self::Code => matches!(
                extension,
                ".go" | ".py" | ".js" | ".ts" | ".tsx" | ".jsx" | ".java" | ".cpp" | ".c" | ".h"
                | ".hpp" | ".cs" | ".php" | ".rb" | ".rs" | ".swift" | ".kt" | ".scala" | ".sh"
                | ".bash" | ".zsh" | ".sql" | ".r" | ".m" | ".pl" | ".lua" | ".vim" | ".dockerfile"
                | ".makefile" | ".cmake" | ".proto" | ".thrift" | ".graphql" | ".gql" | ".vue"
                | ".svelte" | ".astro"
            ),
            Self::Text => matches!(
                extension,
                ".txt" | ".md" | ".markdown" | ".log" | ".yml" | ".yaml" | ".xml" | ".html" | ".htm"
            ),
        }
    }

    fn has_mime_type(self, mime: &str) -> bool {
        let starts_with = |types: &[&str]| types.iter().any(|prefix| mime.starts_with(prefix));
        match self {
            Self::Json => starts_with(&["application/json"]),
            Self::Csv => starts_with(&["text/csv"]) || mime == "application/csv",
            Self::Code => starts_with(&CODE_TYPE_PREFIXES),
            Self::Text => starts_with(&["text/", "application/xml", "application/x-yaml"]),
        }
    }
}

/// Returns `true` if `bytes` are one JSON value. Invalid UTF-8 is allowed in strings: it is replaced by the replacement
/// character, which JSON allows only in strings.
///
/// `IgnoredAny` skips the value without recursion, so that nested values cannot overflow the stack.
fn is_json(bytes: &[u8]) -> bool {
    serde_json::from_str::<IgnoredAny>(&String::from_utf8_lossy(bytes)).is_ok()
}

/// Returns `true` if all rows have the same number of fields and strict quoting. Blank lines and files without rows are valid.
fn is_csv(bytes: &[u8]) -> bool {
    let mut field_count = None;
    csv_rows(bytes, b',', None)
        .all(|row| row.is_strict && *field_count.get_or_insert(row.field_count) == row.field_count)
}

#[cfg(test)]
mod tests {
    use super::TextKind;

    #[test]
    fn the_first_kind_with_a_matching_extension_or_type_decides() {
        let cases = [
            ("a.json", "application/x-ndjson", Some(TextKind::Json)),
            ("a", "application/json; charset=utf-8", Some(TextKind::Json)),
            ("a.py", "application/json", Some(TextKind::Json)),
            ("A.CSV", "text/plain", Some(TextKind::Csv)),
            ("a.md", "text/csv", Some(TextKind::Csv)),
            ("a", "application/csv", Some(TextKind::Csv)),
            ("a", "application/csv; charset=utf-8", None),
            ("a.tsx", "text/plain; charset=utf-8", Some(TextKind::Code)),
            ("a.java", "text/x-java; charset=utf-8", Some(TextKind::Code)),
            (".dockerfile", "application/octet-stream", Some(TextKind::Code)),
            ("a.txt", "text/x-python", Some(TextKind::Code)),
            ("a", "text/x-csharp", Some(TextKind::Code)),
            ("a", "text/x-rust", Some(TextKind::Code)),
            ("a", "application/sql", Some(TextKind::Code)),
            ("a.log", "application/octet-stream", Some(TextKind::Text)),
            ("a.xml", "application/xml; charset=utf-8", Some(TextKind::Text)),
            ("a.toml", "text/x-toml; charset=utf-8", Some(TextKind::Text)),
            ("a", "application/x-yaml", Some(TextKind::Text)),
            ("a.png", "image/png", None),
            ("a.svg", "image/svg+xml", None),
            ("Makefile", "application/octet-stream", None),
        ];
        for (filename, mime, expected) in cases {
            assert_eq!(TextKind::detect(filename, mime), expected, "{filename} {mime}");
        }
    }

    #[test]
    fn code_and_text_may_contain_any_bytes() {
        for (kind, name) in [(TextKind::Code, "code"), (TextKind::Text, "text")] {
            assert_eq!(kind.name(), name);
            assert!(kind.is_valid(b"\xff\0 {"));
        }
    }

    #[test]
    fn json_is_one_valid_value() {
        assert_eq!(TextKind::Json.name(), "json");
        for json in [
            &b"{\"k\": [1, -2.5e+3, true, null, \"\\u00e9\"]}\n"[..],
            b" 42 ",
            b"\"\\ud800\"",
            b"1e999",
            b"[\"\xe9\xff\"]",
        ] {
            assert!(TextKind::Json.is_valid(json), "{}", json.escape_ascii());
        }
        for other in [
            &b""[..],
            b"{\"k\": ",
            b"{\"a\":1}\n{\"a\":2}",
            b"[1,]",
            b"01",
            b"\xef\xbb\xbf{}",
            b"\xff",
            b"\"a\nb\"",
            b"nul",
        ] {
            assert!(!TextKind::Json.is_valid(other), "{}", other.escape_ascii());
        }
    }

    #[test]
    fn deep_json_takes_no_stack() {
        let deep = [b"[".repeat(1_000_000), b"]".repeat(1_000_000)].concat();
        assert!(TextKind::Json.is_valid(&deep));
        assert!(!TextKind::Json.is_valid(&deep[1..]));
    }

    #[test]
    fn csv_is_strict() {
        assert_eq!(TextKind::Csv.name(), "csv");
        let tables = [
            "",
            "\n\n",
            "one",
            "a,b\n1,2\n",
            "a,b\r\n1,2",
            "a,b\n\n1,2\n\r\n",
            "a,b\n\"x,y\",\"say \"\"hi\"\"\"\n",
            "a,b\n\"two\n\nlines\",2\n",
            ",\n,\n",
            "a,\"b\"\r",
            "ä,ö\n",
            "a\rb,c\n1,2\n",
            " \n",
            "#,b\n1,2",
        ];
        for table in tables {
            assert!(TextKind::Csv.is_valid(table.as_bytes()), "{table:?}");
        }
        let invalid = [
            "a,b\n1\n",
            "a,b\n1,2,3\n",
            "a,b\nx\"y,2\n",
            "a, \"b\"\n",
            "\"a\" ,b\n",
            "\"a\"b\n",
            "\"open\n",
            "\"",
            "\"a\"\rb\n",
            "\u{feff}\"a\",b\n",
            "a,b\n \n",
        ];
        for table in invalid {
            assert!(!TextKind::Csv.is_valid(table.as_bytes()), "{table:?}");
        }
        assert!(TextKind::Csv.is_valid(b"\xff,\xfe\n1,2"));
    }
}
