//! What a file may be called: a directory that begins and ends with a slash, and a name.
//!
//! Paths are taken as they are: nothing is resolved or collapsed, and case counts. Refused is what could lead out of a
//! directory where such names meet a real file system.

use crate::error::{Error, Result};

/// Postgres' index rows hold no more than this for each of the two.
pub const MAX_BYTES: usize = 1024;

/// The place of a file on its disk. There is one door: [`FilePath::parse`] and its siblings.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FilePath {
    path: String,
    filename: String,
}

impl FilePath {
    /// Reads a full path. The name may be empty: then it names no file, which is a matter of not finding it.
    ///
    /// # Errors
    /// 400 `invalid path`.
    pub fn parse(full: &str) -> Result<Self> {
        let (path, filename) = split(full);
        check(&path, filename)?;
        Ok(Self { path, filename: filename.to_owned() })
    }

    /// The place of an uploaded file: the directory part of `full`, and the last segment of the name it was sent with.
    ///
    /// # Errors
    /// 400 `invalid path`, or for a name that is none.
    pub fn of_upload(full: &str, sent_name: &str) -> Result<Self> {
        let (path, ignored) = split(full);
        check(&path, ignored)?;
        let trimmed = sent_name.trim_end_matches('/');
        // White space at the end of a path is trimmed, so a name that ends in it would never be found again.
        let filename = trimmed.rsplit('/').next().unwrap_or_default().trim_end();
        check_name(filename).map_err(|why| Error::invalid_field("file", why))?;
        Ok(Self { path, filename: filename.to_owned() })
    }

    /// The place of a file by the folders on the way to it and its own name, neither empty nor with a slash in them.
    ///
    /// # Errors
    /// What is wrong with it, if no file may be called so.
    pub fn of_segments(segments: &[impl AsRef<str>]) -> Result<Self, &'static str> {
        let Some((filename, folders)) = segments.split_last() else { return Err("its name is empty") };
        let path = folders.iter().fold("/".to_owned(), |path, folder| path + folder.as_ref() + "/");
        let filename = filename.as_ref();
        check_directory(&path)?;
        check_name(filename)?;
        if filename.trim_end() != filename {
            return Err("its name must not end in white space");
        }
        Ok(Self { path, filename: filename.to_owned() })
    }

    /// As [`relative`].
    pub fn relative(&self) -> String {
        relative(&self.path, &self.filename)
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn filename(&self) -> &str {
        &self.filename
    }
}

/// A whole path without the slash at its beginning, as files of skills are named.
pub fn relative(path: &str, filename: &str) -> String {
    format!("{}{filename}", path.strip_prefix('/').unwrap_or(path))
}

/// A directory: begins and ends with a slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory(String);

impl Directory {
    /// Reads a directory; absent or empty is the root.
    ///
    /// # Errors
    /// 400 `both ends of the path must be '/'` or `invalid path`.
    pub fn parse(text: Option<&str>) -> Result<Self> {
        let text = text.filter(|text| !text.is_empty()).unwrap_or("/");
        if !text.starts_with('/') || !text.ends_with('/') {
            return Err(Error::bad_request("both ends of the path must be '/'"));
        }
        check_directory(text)
            .map_err(|why| Error::bad_request_with_reason("invalid path", format_args!("path: {why}")))?;
        Ok(Self(text.to_owned()))
    }

    /// The directory that everything which begins with `text` lies in or below.
    pub fn around(text: &str) -> Self {
        let (path, _) = text.split_at(text.rfind('/').map_or(0, |at| at + 1));
        Self(if path.starts_with('/') { path } else { "/" }.to_owned())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first text, in byte order, after everything below this directory: `0` follows the slash.
    pub fn end(&self) -> String {
        format!("{}0", &self.0[..self.0.len() - 1])
    }
}

/// Trims outer white space, puts the leading slash, and cuts after the last one.
fn split(full: &str) -> (String, &str) {
    let full = full.trim();
    let at = full.rfind('/').map_or(0, |at| at + 1);
    let (path, filename) = full.split_at(at);
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    (path, filename)
}

fn check(path: &str, filename: &str) -> Result<()> {
    check_directory(path)
        .and_then(|()| check_length(filename))
        .and_then(|()| check_windows(filename))
        .map_err(|why| Error::bad_request_with_reason("invalid path", format_args!("file_path: {why}")))
}

fn check_directory(path: &str) -> Result<(), &'static str> {
    check_length(path)?;
    let climbs = |segment: &str| segment.len() >= 2 && segment.bytes().all(|byte| byte == b'.');
    if path.contains("..") || path.split('/').any(climbs) {
        return Err("must not lead out of a directory (..)");
    }
    // The slash that every path begins with is ours.
    check_windows(path.trim_start_matches('/'))
}

fn check_name(name: &str) -> Result<(), &'static str> {
    check_length(name)?;
    match name {
        "" => Err("its name is empty"),
        "." | ".." => Err("its name must not be . or .."),
        _ => check_windows(name),
    }
}

fn check_length(text: &str) -> Result<(), &'static str> {
    if text.contains('\0') {
        return Err("must not contain the character NUL");
    }
    if text.len() > MAX_BYTES { Err("directory and name must not be longer than 1024 bytes each") } else { Ok(()) }
}

/// `C:\` and `\\server` are absolute where these names may end up.
fn check_windows(text: &str) -> Result<(), &'static str> {
    let bytes = text.as_bytes();
    let drive =
        bytes.len() >= 3 && bytes[0].is_ascii_alphabetic() && bytes[1] == b':' && matches!(bytes[2], b'\\' | b'/');
    if drive || text.starts_with('\\') || text.contains("..\\") || text.contains("\\..") {
        return Err("must not be a path of Windows; separate directories with /");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parts(full: &str) -> (String, String) {
        let path = FilePath::parse(full).unwrap();
        (path.path, path.filename)
    }

    #[test]
    fn a_path_is_cut_after_its_last_slash() {
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
            assert_eq!(parts(full), (path.into(), filename.into()), "{full:?}");
        }
    }

    #[test]
    fn what_leads_elsewhere_is_refused() {
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
    fn an_upload_is_named_by_its_own_last_segment() {
        let name = |sent: &str| FilePath::of_upload("/docs/x.txt", sent).map(|path| (path.path, path.filename)).ok();
        let at = |filename: &str| Some(("/docs/".to_owned(), filename.to_owned()));
        assert_eq!(name("b.txt"), at("b.txt"));
        assert_eq!(name("dir/inner/b.txt"), at("b.txt"));
        assert_eq!(name("/etc/passwd"), at("passwd"));
        assert_eq!(name("a.txt \t"), at("a.txt"));
        assert_eq!(name("with \"quotes\" & %22.txt"), at("with \"quotes\" & %22.txt"));
        for sent in ["", "/", "..", "a/..", ".", "C:\\x\\y.txt", "..\\y.txt", "a\0b", &"n".repeat(1025)] {
            assert_eq!(name(sent), None, "{sent:?}");
        }
    }

    #[test]
    fn a_directory_has_slashes_at_both_ends() {
        assert_eq!(Directory::parse(None).unwrap().as_str(), "/");
        assert_eq!(Directory::parse(Some("")).unwrap().as_str(), "/");
        assert_eq!(Directory::parse(Some("/docs/")).unwrap().end(), "/docs0");
        assert_eq!(Directory::around("/docs/a").as_str(), "/docs/");
        assert_eq!(Directory::around("docs/a").as_str(), "/");
        assert_eq!(Directory::around("").end(), "0");
        for text in ["docs", "/docs", "docs/", " /docs/ ", "/a/../docs/", "/.../"] {
            assert!(Directory::parse(Some(text)).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_stays_inside(full in ".{0,60}") {
            if let Ok(path) = FilePath::parse(&full) {
                prop_assert!(path.path.starts_with('/') && path.path.ends_with('/'));
                prop_assert!(!path.filename.contains('/'));
                prop_assert!(path.path.split('/').all(|segment| segment != ".."));
                let again = FilePath::parse(&format!("{}{}", path.path, path.filename.trim_end())).unwrap();
                prop_assert_eq!(again.path, path.path);
            }
        }
    }
}
