//! The archive that a skill comes in: its list of contents is looked through before anything is unpacked, and what is unpacked
//! never grows beyond its bounds, whatever the list says.
//!
//! What an archive's names could do where they are unpacked is refused: leaving the folder, meeting each other, links. What
//! only packers put there is left out, and so is a folder that everything lies in.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Seek};

use zip::read::{ArchiveOffset, Config, OwnedZipFileEntry, ZipFileEntry};
use zip::result::ZipError;
use zip::unstable::read::ZipIterable;
use zip::{CompressionMethod, ZipReadOptions};

use super::front_matter::FrontMatter;
use crate::disks::path::FilePath;
use crate::error::{Error, Result};

mod end;
#[cfg(test)]
mod tests;

/// The file that says what a skill is.
const SKILL_MD: &str = "SKILL.md";
/// Folders and what packers add do not count as files, but are looked at.
const ENTRIES_PER_FILE: usize = 10;
/// Names, and what packers add to them, in bytes: in memory they take many times as much.
const LIST_PER_FILE: u64 = 4096;
/// What lies before the packed bytes of an entry, besides its name.
const LOCAL_HEADER: u64 = 30;
/// The kinds of files in a Unix mode.
const KIND_MASK: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;

/// How large an archive may become, sizes in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub files: usize,
    pub unpacked: u64,
    pub file: u64,
    pub skill_md: u64,
}

/// An archive that was looked through and found fit to be unpacked.
pub struct Archive<R> {
    list: ZipIterable<R>,
    bounds: Bounds,
    files: Vec<Packed>,
    /// Which of them says what the skill is.
    skill_md: usize,
}

struct Packed {
    at: FilePath,
    entry: OwnedZipFileEntry,
}

impl<R: Read + Seek> Archive<R> {
    /// Looks through an archive.
    ///
    /// # Errors
    /// 400 for what is no archive, or none that can be unpacked without harm; 413 if it is too large.
    pub fn open(mut reader: R, bounds: Bounds) -> Result<Self> {
        let end = end::find(&mut reader).map_err(|err| unreadable(&err.into()))?;
        let end = end.ok_or_else(|| no_archive(&"its end is missing or wrong"))?;
        if end.list > (bounds.files as u64).saturating_mul(LIST_PER_FILE) {
            return Err(no_archive(&"its list of contents is too long for that many files"));
        }
        let offset = ArchiveOffset::Known(end.begin);
        let list = ZipIterable::try_new(reader, Config { archive_offset: offset });
        // Two programs shall not find different files in it.
        let mut list = list.map_err(|err| unreadable(&err))?.enforce_header_consistency(true);
        if list.len() > bounds.files.saturating_mul(ENTRIES_PER_FILE) {
            return Err(too_many(bounds));
        }
        let mut kept = Vec::new();
        let (mut unpacked, mut places) = (0_u64, Places::default());
        for entry in list.files().map_err(|err| unreadable(&err))? {
            let entry = entry.map_err(|err| unreadable(&err))?;
            let name = name(&entry)?;
            if !places.take(&entry) {
                return Err(refuse(&name, "lies where another one does"));
            }
            if entry.is_dir() || is_junk(&name) {
                continue;
            }
            check_kind(&entry, &name)?;
            if kept.len() == bounds.files {
                return Err(too_many(bounds));
            }
            unpacked = unpacked.saturating_add(entry.size());
            check_size(&name, entry.size(), unpacked, bounds)?;
            kept.push((segments(&name)?, OwnedZipFileEntry::from(entry)));
        }
        strip_root(&mut kept);
        let skill_md = find_skill_md(&kept)?;
        let mut files = Vec::with_capacity(kept.len());
        for (segments, entry) in kept {
            let at = FilePath::of_segments(&segments).map_err(|why| refuse(&segments.join("/"), why))?;
            files.push(Packed { at, entry });
        }
        check_meetings(&files)?;
        let size = files[skill_md].entry.as_ref().size();
        if size > bounds.skill_md {
            return Err(too_large(SKILL_MD, bounds.skill_md));
        }
        Ok(Self { list, bounds, files, skill_md })
    }

    /// What SKILL.md says: the one nearest to the root, in whatever case its name is written.
    ///
    /// # Errors
    /// 400 if it says nothing, or cannot be unpacked.
    pub fn front_matter(&mut self) -> Result<FrontMatter> {
        let mut text = Vec::new();
        let limit = self.bounds.skill_md;
        let file = open(&mut self.list, &self.files[self.skill_md])?;
        file.take(limit + 1).read_to_end(&mut text).map_err(|err| broken(SKILL_MD, err))?;
        if text.len() as u64 > limit {
            return Err(too_large(SKILL_MD, limit));
        }
        FrontMatter::parse(&text)
    }

    /// Unpacks the files in the order of the archive. `spool_from_reader` reads one to its end.
    ///
    /// # Errors
    /// 400 for a file that cannot be unpacked, 413 for one that is larger than the list says and the bounds allow, and
    /// whatever `spool_from_reader` says.
    pub fn unpack<T>(
        &mut self,
        mut spool_from_reader: impl FnMut(&mut dyn Read) -> io::Result<T>,
        mut each: impl FnMut(&FilePath, T) -> Result<()>,
    ) -> Result<()> {
        let mut left = self.bounds.unpacked;
        for packed in &self.files {
            let name = packed.at.relative();
            let limit = left.min(self.bounds.file);
            let mut file = open(&mut self.list, packed)?.take(limit + 1);
            let taken = spool_from_reader(&mut file).map_err(|err| broken(&name, err))?;
            let size = limit + 1 - file.limit();
            if size > limit {
                return Err(too_large(&name, limit));
            }
            // Other programs go by what the list says.
            if size != packed.entry.size() {
                return Err(refuse(&name, "is broken"));
            }
            left -= size;
            each(&packed.at, taken)?;
        }
        Ok(())
    }
}

/// Where the entries lie, as far as they are known. In an archive that wants to be expensive many share the same bytes.
#[derive(Default)]
struct Places(BTreeMap<u64, u64>);

impl Places {
    /// Takes the place of an entry, if it is free.
    fn take(&mut self, entry: &ZipFileEntry<'_>) -> bool {
        let begin = entry.header_start();
        let end = begin.saturating_add(LOCAL_HEADER).saturating_add(entry.compressed_size());
        let before = self.0.range(..end).next_back();
        let is_free = before.is_none_or(|(_, before_ends)| *before_ends <= begin);
        self.0.insert(begin, end);
        is_free
    }
}

fn open<'a, R: Read + Seek>(list: &'a mut ZipIterable<R>, packed: &'a Packed) -> Result<zip::read::ZipFile<'a, R>> {
    let reader = list.files().map_err(|err| unreadable(&err))?.reader_mut();
    packed.entry.as_ref().with_reader(reader, ZipReadOptions::new()).map_err(|err| unreadable(&err))
}

/// The name of an entry. Packers write UTF-8 whether they say so or not; what is none is of the charset that ZIP began with.
fn name(entry: &ZipFileEntry<'_>) -> Result<String> {
    match std::str::from_utf8(entry.name_raw()) {
        Ok(name) => Ok(name.to_owned()),
        Err(_) => Ok(entry.name().map_err(|err| unreadable(&err))?.into_owned()),
    }
}

/// What packers put beside the files: folders and files of macOS.
fn is_junk(name: &str) -> bool {
    let base = name.rsplit('/').next().unwrap_or_default();
    name.contains("__MACOSX/") || name.contains("__MACOSX\\") || base.starts_with("._") || base == ".DS_Store"
}

fn check_kind(entry: &ZipFileEntry<'_>, name: &str) -> Result<()> {
    let kind = entry.unix_mode().unwrap_or_default() & KIND_MASK;
    if entry.is_symlink() || !matches!(kind, 0 | REGULAR) {
        return Err(refuse(name, "is a link or another thing that is no file"));
    }
    if entry.encrypted() {
        return Err(refuse(name, "is encrypted"));
    }
    if !matches!(entry.compression(), CompressionMethod::Stored | CompressionMethod::Deflated) {
        return Err(refuse(name, "is packed in a way that is not known here; deflate is"));
    }
    Ok(())
}

fn check_size(name: &str, size: u64, so_far: u64, bounds: Bounds) -> Result<()> {
    if size > bounds.file {
        return Err(too_large(name, bounds.file));
    }
    if so_far > bounds.unpacked {
        let most = bounds.unpacked;
        return Err(Error::PayloadTooLarge(format!(
            "file: its files are larger than the maximum of {most} bytes together"
        )));
    }
    Ok(())
}

/// The segments of a name. `.` and nothing between two slashes mean the same folder.
fn segments(name: &str) -> Result<Vec<String>> {
    let wrong = |why: &'static str| Err(refuse(name, why));
    if name.chars().any(char::is_control) {
        return wrong("has control characters in its name");
    }
    if name.contains('\\') {
        return wrong("has a backslash in its name; separate folders with /");
    }
    let begins_with_drive = matches!(name.as_bytes(), [drive, b':', ..] if drive.is_ascii_alphabetic());
    if name.starts_with('/') || begins_with_drive {
        return wrong("is an absolute path");
    }
    let segments = name.split('/').filter(|segment| !matches!(*segment, "" | "."));
    let segments: Vec<String> = segments.map(ToOwned::to_owned).collect();
    if segments.iter().any(|segment| segment == "..") {
        return wrong("leads out of its folder (..)");
    }
    if segments.is_empty() {
        return wrong("has no name");
    }
    Ok(segments)
}

/// A folder that everything lies in is the packer's and not the skill's.
fn strip_root(files: &mut [(Vec<String>, OwnedZipFileEntry)]) {
    let Some((first, _)) = files.first() else { return };
    let root = first[0].clone();
    if files.iter().all(|(segments, _)| segments.len() > 1 && segments[0] == root) {
        for (segments, _) in files {
            segments.remove(0);
        }
    }
}

/// The SKILL.md nearest to the root, the first of several.
fn find_skill_md(files: &[(Vec<String>, OwnedZipFileEntry)]) -> Result<usize> {
    let named = files
        .iter()
        .enumerate()
        .filter(|(_, (segments, _))| segments.last().is_some_and(|name| name.eq_ignore_ascii_case(SKILL_MD)));
    let nearest = named.min_by_key(|(_, (segments, _))| segments.len());
    let missing = || Error::bad_request_with_reason("parameter error", "SKILL.md file is required in the zip package");
    nearest.map(|(at, _)| at).ok_or_else(missing)
}

/// Refuses files that would meet where case does not count, or where a folder has the name of a file.
fn check_meetings(files: &[Packed]) -> Result<()> {
    let mut names = BTreeSet::new();
    for Packed { at, .. } in files {
        if !names.insert(at.relative().to_lowercase()) {
            return Err(refuse(&at.relative(), "stands in it twice, or differs from another one only in case"));
        }
    }
    for Packed { at, .. } in files {
        let folder = format!("{}/", at.relative().to_lowercase());
        if names.range(folder.clone()..).next().is_some_and(|name| name.starts_with(&folder)) {
            return Err(refuse(&at.relative(), "is a file and a folder"));
        }
    }
    Ok(())
}

fn refuse(name: &str, why: &str) -> Error {
    Error::invalid_field("file", format_args!("in it '{}' {why}", name.escape_debug()))
}

fn unreadable(err: &ZipError) -> Error {
    match err {
        ZipError::Io(err) if !is_of_archive(err) => no_room(io::Error::new(err.kind(), err.to_string())),
        _ => no_archive(err),
    }
}

fn no_archive(why: &dyn std::fmt::Display) -> Error {
    Error::invalid_field("file", format_args!("is no zip archive that can be read ({why})"))
}

/// A file that could not be unpacked: it is broken, or there is no room.
fn broken(name: &str, err: io::Error) -> Error {
    if is_of_archive(&err) { refuse(name, "is broken") } else { no_room(err) }
}

fn is_of_archive(err: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(err.kind(), Kind::InvalidData | Kind::InvalidInput | Kind::UnexpectedEof | Kind::Other)
}

fn no_room(err: io::Error) -> Error {
    let msg = "the server has no room for the upload; try again in a moment".into();
    Error::Unavailable { msg, cause: Some(err.into()) }
}

fn too_many(bounds: Bounds) -> Error {
    Error::invalid_field("file", format_args!("has more than the {} files that a skill may have", bounds.files))
}

fn too_large(name: &str, limit: u64) -> Error {
    Error::PayloadTooLarge(format!("file: in it '{}' is larger than the maximum of {limit} bytes", name.escape_debug()))
}
