//! Which artifacts can be read as text, and as what: the `content` of a file that is fetched, and what grep searches.
//!
//! The first kind whose extension or MIME type fits decides; if the file then does not parse it has no content, and no
//! other kind is tried. JSON and CSV are what Go's standard library takes for them, for Acontext reads them with it.
//!
//! Next: `media`, which makes the MIME types that are asked about here.

use serde::de::IgnoredAny;

use crate::media::{csv_rows, extension};

/// Beginnings, so `text/x-c` stands for C++ and C# as well, and `text/x-r` for Ruby and Rust.
const CODE_TYPES: [&str; 23] = [
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

/// What the text of an artifact is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Json,
    Csv,
    Code,
    Text,
}

impl Kind {
    /// The kind of a file by its name and its MIME type; `None` if it is not for reading.
    pub(crate) fn of(filename: &str, mime: &str) -> Option<Self> {
        let extension = extension(filename);
        [Self::Json, Self::Csv, Self::Code, Self::Text]
            .into_iter()
            .find(|kind| kind.has_extension(&extension) || kind.has_type(mime))
    }

    /// Its name in replies.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Csv => "csv",
            Self::Code => "code",
            Self::Text => "text",
        }
    }

    /// Whether a file of this kind holds what it promises. Code and text may hold anything.
    pub(crate) fn parses(self, bytes: &[u8]) -> bool {
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

    fn has_type(self, mime: &str) -> bool {
        let begins_with = |types: &[&str]| types.iter().any(|start| mime.starts_with(start));
        match self {
            Self::Json => begins_with(&["application/json"]),
            Self::Csv => begins_with(&["text/csv"]) || mime == "application/csv",
            Self::Code => begins_with(&CODE_TYPES),
            Self::Text => begins_with(&["text/", "application/xml", "application/x-yaml"]),
        }
    }
}

/// One JSON value. Strings may hold any bytes, so these are repaired first, which cannot hide a error elsewhere.
///
/// The value is skipped and not built: that takes no stack, however deep it is.
fn is_json(bytes: &[u8]) -> bool {
    serde_json::from_str::<IgnoredAny>(&String::from_utf8_lossy(bytes)).is_ok()
}

/// Rows of one width, quoted strictly; blank lines and files without any row are fine.
fn is_csv(bytes: &[u8]) -> bool {
    let mut width = None;
    csv_rows(bytes, b',', None).all(|row| row.is_strict && *width.get_or_insert(row.width) == row.width)
}

#[cfg(test)]
mod tests {
    use super::Kind;

    #[test]
    fn the_first_kind_that_fits_by_name_or_type_decides() {
        let cases = [
            ("a.json", "application/x-ndjson", Some(Kind::Json)),
            ("a", "application/json; charset=utf-8", Some(Kind::Json)),
            ("a.py", "application/json", Some(Kind::Json)),
            ("A.CSV", "text/plain", Some(Kind::Csv)),
            ("a.md", "text/csv", Some(Kind::Csv)),
            ("a", "application/csv", Some(Kind::Csv)),
            ("a", "application/csv; charset=utf-8", None),
            ("a.tsx", "text/plain; charset=utf-8", Some(Kind::Code)),
            ("a.java", "text/x-java; charset=utf-8", Some(Kind::Code)),
            (".dockerfile", "application/octet-stream", Some(Kind::Code)),
            ("a.txt", "text/x-python", Some(Kind::Code)),
            ("a", "text/x-csharp", Some(Kind::Code)),
            ("a", "text/x-rust", Some(Kind::Code)),
            ("a", "application/sql", Some(Kind::Code)),
            ("a.log", "application/octet-stream", Some(Kind::Text)),
            ("a.xml", "application/xml; charset=utf-8", Some(Kind::Text)),
            ("a.toml", "text/x-toml; charset=utf-8", Some(Kind::Text)),
            ("a", "application/x-yaml", Some(Kind::Text)),
            ("a.png", "image/png", None),
            ("a.svg", "image/svg+xml", None),
            ("Makefile", "application/octet-stream", None),
        ];
        for (filename, mime, expected) in cases {
            assert_eq!(Kind::of(filename, mime), expected, "{filename} {mime}");
        }
    }

    #[test]
    fn code_and_text_may_hold_anything() {
        for (kind, name) in [(Kind::Code, "code"), (Kind::Text, "text")] {
            assert_eq!(kind.name(), name);
            assert!(kind.parses(b"\xff\0 {"));
        }
    }

    #[test]
    fn json_is_one_valid_value() {
        assert_eq!(Kind::Json.name(), "json");
        for json in [
            &b"{\"k\": [1, -2.5e+3, true, null, \"\\u00e9\"]}\n"[..],
            b" 42 ",
            b"\"\\ud800\"",
            b"1e999",
            b"[\"\xe9\xff\"]",
        ] {
            assert!(Kind::Json.parses(json), "{}", json.escape_ascii());
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
            assert!(!Kind::Json.parses(other), "{}", other.escape_ascii());
        }
    }

    #[test]
    fn deep_json_takes_no_stack() {
        let deep = [b"[".repeat(1_000_000), b"]".repeat(1_000_000)].concat();
        assert!(Kind::Json.parses(&deep));
        assert!(!Kind::Json.parses(&deep[1..]));
    }

    #[test]
    fn csv_is_strict() {
        assert_eq!(Kind::Csv.name(), "csv");
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
            assert!(Kind::Csv.parses(table.as_bytes()), "{table:?}");
        }
        let faults = [
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
        for err in faults {
            assert!(!Kind::Csv.parses(err.as_bytes()), "{err:?}");
        }
        assert!(Kind::Csv.parses(b"\xff,\xfe\n1,2"));
    }
}
