//! Validates file paths. A path consists of a directory, which begins and ends with a slash, and a file name.
//!
//! Segments are not normalized: `.` and empty segments are kept, and case is significant. Paths are rejected if a program that
//! writes the files to a real file system could write outside of its target directory.

use crate::error::{Error, Result};

/// The maximum length of a directory, and of a file name, in bytes. It exists because Postgres limits the size of an index row.
pub const MAX_DIR_OR_FILENAME_BYTES: usize = 1024;

/// The validated path of a file on its disk.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FilePath {
    directory: String,
    filename: String,
}

impl FilePath {
    /// Parses the full path of a file to look up. Accepts an empty file name: such a file cannot be created, so none is found.
    ///
    /// # Errors
    /// Returns 400 `invalid path` if the path is not allowed.
    pub fn parse(full_path: &str) -> Result<Self> {
        let (directory, filename) = split_path(full_path);
        check_path(&directory, filename)?;
        Ok(Self { directory, filename: filename.to_owned() })
    }

    /// Returns the path of an uploaded file: the directory of `full_path`, and the last segment of the uploaded file name.
    ///
    /// # Errors
    /// Returns 400 if the path or the file name is not allowed.
    pub fn from_upload(full_path: &str, uploaded_name: &str) -> Result<Self> {
        let (directory, ignored) = split_path(full_path);
        check_path(&directory, ignored)?;
        let trimmed = uploaded_name.trim_end_matches('/');
        // `parse` trims trailing white space, so a file whose name ends in it could not be found.
        let filename = trimmed.rsplit('/').next().unwrap_or_default().trim_end();
        check_name(filename).map_err(|reason| Error::invalid_field("file", reason))?;
        Ok(Self { directory, filename: filename.to_owned() })
    }

    /// Returns the path with these segments: the directories from the root, and the file name. Segments must not contain slashes,
    /// and directories must not be empty.
    ///
    /// # Errors
    /// Returns the reason if the path is not allowed.
    pub fn from_segments(segments: &[impl AsRef<str>]) -> Result<Self, &'static str> {
        let Some((filename, directories)) = segments.split_last() else { return Err("must have a file name") };
        let directory = directories.iter().fold("/".to_owned(), |path, segment| path + segment.as_ref() + "/");
        let filename = filename.as_ref();
        check_directory(&directory)?;
        check_name(filename)?;
        if filename.trim_end() != filename {
            return Err("must not have a file name that ends in white space");
        }
        Ok(Self { directory, filename: filename.to_owned() })
    }

    /// Returns the full path without the leading slash, which is the form in which the API returns the files of skills.
    pub fn relative(&self) -> String {
        join_relative(&self.directory, &self.filename)
    }

    pub fn directory(&self) -> &str {
        &self.directory
    }

    pub fn filename(&self) -> &str {
        &self.filename
    }
}

/// Joins a directory and a file name, and removes the leading slash. See [`FilePath::relative`].
pub fn join_relative(directory: &str, filename: &str) -> String {
    format!("{}{filename}", directory.strip_prefix('/').unwrap_or(directory))
}

/// The path of a directory. It begins and ends with a slash. Only [`Directory::parse`] validates it further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory(String);

impl Directory {
    /// Parses the path of a directory. `None` and an empty text mean the root.
    ///
    /// # Errors
    /// Returns 400 if the path does not begin and end with a slash, or is not allowed.
    pub fn parse(text: Option<&str>) -> Result<Self> {
        let text = text.filter(|text| !text.is_empty()).unwrap_or("/");
        if !text.starts_with('/') || !text.ends_with('/') {
            return Err(Error::bad_request("both ends of the path must be '/'"));
        }
        check_directory(text)
            .map_err(|reason| Error::bad_request_with_reason("invalid path", format_args!("path: {reason}")))?;
        Ok(Self(text.to_owned()))
    }

    /// Returns the deepest directory that contains all paths with this prefix.
    pub fn containing(prefix: &str) -> Self {
        let (path, _) = prefix.split_at(prefix.rfind('/').map_or(0, |slash| slash + 1));
        Self(if path.starts_with('/') { path } else { "/" }.to_owned())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the exclusive upper bound, in byte order, of all paths below this directory. It ends in `0`, which follows `/` in
    /// ASCII.
    pub fn upper_bound(&self) -> String {
        format!("{}0", &self.0[..self.0.len() - 1])
    }
}

/// Splits a full path after its last slash into directory and file name. Trims white space and adds a missing leading slash.
fn split_path(full_path: &str) -> (String, &str) {
    let full_path = full_path.trim();
    let (path, filename) = full_path.split_at(full_path.rfind('/').map_or(0, |slash| slash + 1));
    let directory = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    (directory, filename)
}

fn check_path(directory: &str, filename: &str) -> Result<()> {
    check_directory(directory)
        .and_then(|()| check_storable(filename))
        .and_then(|()| check_not_windows_path(filename))
        .map_err(|reason| Error::bad_request_with_reason("invalid path", format_args!("file_path: {reason}")))
}

fn check_directory(path: &str) -> Result<(), &'static str> {
    check_storable(path)?;
    if path.contains("..") {
        return Err("must not contain `..`");
    }
    // A directory such as `/C:/x/` is rejected, because `C:/x/` is a Windows path.
    check_not_windows_path(path.trim_start_matches('/'))
}

fn check_name(name: &str) -> Result<(), &'static str> {
    check_storable(name)?;
    match name {
        "" => Err("must have a file name"),
        "." | ".." => Err("must not be named `.` or `..`"),
        _ => check_not_windows_path(name),
    }
}

/// Rejects a text that Postgres cannot store, because it contains NUL, or that is too long for an index.
fn check_storable(text: &str) -> Result<(), &'static str> {
    if text.contains('\0') {
        return Err("must not contain the character NUL");
    }
    if text.len() > MAX_DIR_OR_FILENAME_BYTES {
        return Err("must not have a directory or file name longer than 1024 bytes");
    }
    Ok(())
}

/// Rejects paths that are absolute or leave their directory on Windows, such as `C:\x`, `\\server\x` and `..\x`.
fn check_not_windows_path(text: &str) -> Result<(), &'static str> {
    let bytes = text.as_bytes();
    let has_drive =
        bytes.len() >= 3 && bytes[0].is_ascii_alphabetic() && bytes[1] == b':' && matches!(bytes[2], b'\\' | b'/');
    if has_drive || text.starts_with('\\') || text.contains("..\\") || text.contains("\\..") {
        return Err("must not be a Windows path; use `/` as separator");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(full: &str) -> (String, String) {
        let path = FilePath::parse(full).unwrap();
        (path.directory, path.filename)
    }

    #[test]
    fn a_path_is_split_after_its_last_slash() {
        for (full, path, filename) in [
            ("/documents/report.pdf", "/documents/", "report.pdf"),
            (" report.pdf ", "/", "report.pdf"),
            ("report.pdf", "/", "report.pdf"),
            ("/documents/", "/documents/", ""),
            ("documents", "/", "documents"),
            ("d/a b.txt", "/d/", "a b.txt"),
            ("//documents//report.pdf", "//documents//", "report.pdf"),
            ("///", "///", ""),
            ("", "/", ""),
            ("/./x", "/./", "x"),
            ("/ünï/寿司.txt", "/ünï/", "寿司.txt"),
        ] {
            assert_eq!(split(full), (path.into(), filename.into()), "{full:?}");
        }
    }

    #[test]
    fn paths_that_escape_their_directory_are_rejected() {
        for full in [
            "/../a",
            "/a/../b",
            "/a..b/c",
            "/.../a",
            "/a/..../b",
            "/a\0b/c",
            "C:\\docs/a",
            "/C:/docs/a",
            "C:\\docs\\",
            "/C:\\docs\\a",
            "\\\\srv/a",
        ] {
            assert!(FilePath::parse(full).is_err(), "{full:?}");
        }
        assert!(FilePath::parse(&format!("/{}/a", "d".repeat(1022))).is_ok());
        assert!(FilePath::parse(&format!("/{}/a", "d".repeat(1023))).is_err());
        assert!(FilePath::parse(&format!("/{}", "d".repeat(1025))).is_err());
    }

    #[test]
    fn an_upload_is_named_by_the_last_segment_of_its_name() {
        let name = |uploaded: &str| {
            FilePath::from_upload("/docs/x.txt", uploaded).map(|path| (path.directory, path.filename)).ok()
        };
        let path = |filename: &str| Some(("/docs/".to_owned(), filename.to_owned()));
        assert_eq!(name("b.txt"), path("b.txt"));
        assert_eq!(name("dir/inner/b.txt"), path("b.txt"));
        assert_eq!(name("/etc/passwd"), path("passwd"));
        assert_eq!(name("a.txt \t"), path("a.txt"));
        assert_eq!(name("with \"quotes\" & %22.txt"), path("with \"quotes\" & %22.txt"));
        for uploaded in ["", "/", "..", "a/..", ".", "C:\\x\\y.txt", "..\\y.txt", "a\0b", &"n".repeat(1025)] {
            assert_eq!(name(uploaded), None, "{uploaded:?}");
        }
    }

    #[test]
    fn a_directory_has_slashes_at_both_ends() {
        assert_eq!(Directory::parse(None).unwrap().as_str(), "/");
        assert_eq!(Directory::parse(Some("")).unwrap().as_str(), "/");
        assert_eq!(Directory::parse(Some("/docs/")).unwrap().upper_bound(), "/docs0");
        assert_eq!(Directory::containing("/docs/a").as_str(), "/docs/");
        assert_eq!(Directory::containing("docs/a").as_str(), "/");
        assert_eq!(Directory::containing("").upper_bound(), "0");
        for text in ["docs", "/docs", "docs/", " /docs/ ", "/a/../docs/", "/.../"] {
            assert!(Directory::parse(Some(text)).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn accepted_paths_do_not_escape(full in ".{0,60}") {
            if let Ok(path) = FilePath::parse(&full) {
                prop_assert!(path.directory.starts_with('/') && path.directory.ends_with('/'));
                prop_assert!(!path.filename.contains('/'));
                prop_assert!(path.directory.split('/').all(|segment| segment != ".."));
                let again = FilePath::parse(&format!("{}{}", path.directory, path.filename.trim_end())).unwrap();
                prop_assert_eq!(again.directory, path.directory);
            }
        }
    }
}
