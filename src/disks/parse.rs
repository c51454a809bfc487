//! Which artifacts can be read as text, and as what: the `content` of a file that is fetched, and what grep searches.
//!
//! The first kind whose extension or MIME type fits decides; if the file then does not parse it has no content, and no other
//! kind is tried. JSON and CSV are what Go's standard library takes for them, for Acontext reads them with it.
//!
//! Next: `mime`, which makes the MIME types that are asked about here.

use serde::de::IgnoredAny;

use super::mime::{csv_rows, extension};

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

/// One JSON value. Strings may hold any bytes, so the text is repaired first: no repair makes or hides an error elsewhere.
///
/// The value is skipped and not built, which takes no stack however deep it is.
fn is_json(bytes: &[u8]) -> bool {
    serde_json::from_str::<IgnoredAny>(&String::from_utf8_lossy(bytes)).is_ok()
}

/// Rows of one width, quoted strictly; blank lines and files without any row are fine.
fn is_csv(bytes: &[u8]) -> bool {
    let mut width = None;
    csv_rows(bytes, b',', None).all(|row| row.is_strict && *width.get_or_insert(row.width) == row.width)
}
