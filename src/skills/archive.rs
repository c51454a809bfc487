//! The zip archive of an uploaded skill. Its central directory is validated before anything is extracted, and the extracted bytes
//! never exceed the limits, whatever the central directory claims.
//!
//! Entries that are unsafe to extract are rejected: names that escape the archive root, colliding names and links. Metadata files
//! of macOS are ignored. If a single top-level directory contains all files, it is removed from their paths.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Seek};

use zip::read::{ArchiveOffset, Config, OwnedZipFileEntry, ZipFileEntry};
use zip::result::ZipError;
use zip::unstable::read::ZipIterable;
use zip::{CompressionMethod, ZipReadOptions};

use super::front_matter::FrontMatter;
use crate::disks::FileMode;
use crate::disks::path::FilePath;
use crate::error::storage::temp_file_error;
use crate::error::{Error, Result};

mod end_of_central_directory;
#[cfg(test)]
mod tests;

/// The file with the front matter of a skill.
const SKILL_MD: &str = "SKILL.md";
/// The maximum number of entries, as a multiple of `max_files`. Entries are the files, the directories and the ignored files.
const MAX_ENTRIES_FACTOR: usize = 10;
/// The maximum length of the central directory in bytes, as a multiple of `max_files`. It limits the memory that parsing takes,
/// which is many times the length.
const MAX_DIRECTORY_BYTES_FACTOR: u64 = 4096;
/// The length of a local file header without the file name and the extra field.
const LOCAL_HEADER_LEN: u64 = 30;
/// The bits of a Unix mode that contain the file type.
const S_IFMT: u32 = 0o170_000;
/// The file type of regular files.
const S_IFREG: u32 = 0o100_000;

/// The limits for the content of an archive.
#[derive(Clone, Copy, Debug)]
pub struct ArchiveLimits {
    pub max_files: usize,
    /// The maximum total size of the extracted files.
    pub max_unpacked_bytes: u64,
    /// The maximum size of one extracted file.
    pub max_file_bytes: u64,
    pub max_skill_md_bytes: u64,
}

/// A validated archive that can be extracted.
pub struct SkillArchive<R> {
    central_directory: ZipIterable<R>,
    limits: ArchiveLimits,
    files: Vec<ArchiveFile>,
    /// The index of SKILL.md in `files`.
    skill_md: usize,
}

struct ArchiveFile {
    path: FilePath,
    entry: OwnedZipFileEntry,
}

impl<R: Read + Seek> SkillArchive<R> {
    /// Reads and validates the central directory of an archive.
    ///
    /// # Errors
    /// Returns 400 if the archive is invalid or unsafe to extract, 413 if it is too large, and 503 if its temporary file cannot
    /// be read.
    pub fn open(mut reader: R, limits: ArchiveLimits) -> Result<Self> {
        let location = end_of_central_directory::locate(&mut reader).map_err(|err| zip_error(&err.into()))?;
        let location =
            location.ok_or_else(|| not_an_archive(&"end of central directory record is missing or invalid"))?;
        if location.directory_len > (limits.max_files as u64).saturating_mul(MAX_DIRECTORY_BYTES_FACTOR) {
            return Err(not_an_archive(&"central directory is too long"));
        }
        let offset = ArchiveOffset::Known(location.archive_offset);
        let central_directory = ZipIterable::try_new(reader, Config { archive_offset: offset });
        // If local headers could differ from the central directory, other programs could extract other files.
        let mut central_directory = central_directory.map_err(|err| zip_error(&err))?.enforce_header_consistency(true);
        if central_directory.len() > limits.max_files.saturating_mul(MAX_ENTRIES_FACTOR) {
            return Err(too_many_entries(limits));
        }
        let mut entries = Vec::new();
        let (mut unpacked_bytes, mut ranges) = (0_u64, EntryRanges::default());
        for entry in central_directory.files().map_err(|err| zip_error(&err))? {
            let entry = entry.map_err(|err| zip_error(&err))?;
            let name = entry_name(&entry)?;
            if !ranges.insert(&entry) {
                return Err(entry_error(&name, "overlaps another entry"));
            }
            if entry.is_dir() || is_macos_metadata(&name) {
                continue;
            }
            validate_entry(&entry, &name)?;
            if entries.len() == limits.max_files {
                return Err(too_many_files(limits));
            }
            unpacked_bytes = unpacked_bytes.saturating_add(entry.size());
            check_limits(&name, entry.size(), unpacked_bytes, limits)?;
            entries.push((name_segments(&name)?, OwnedZipFileEntry::from(entry)));
        }
        strip_top_level_directory(&mut entries);
        let skill_md = find_skill_md(&entries)?;
        let mut files = Vec::with_capacity(entries.len());
        for (segments, entry) in entries {
            let path = FilePath::from_segments(&segments).map_err(|reason| entry_error(&segments.join("/"), reason))?;
            files.push(ArchiveFile { path, entry });
        }
        check_name_collisions(&files)?;
        let size = files[skill_md].entry.as_ref().size();
        if size > limits.max_skill_md_bytes {
            return Err(too_large(SKILL_MD, limits.max_skill_md_bytes));
        }
        Ok(Self { central_directory, limits, files, skill_md })
    }

    /// Returns the front matter of the SKILL.md that is nearest to the root. The name of the file is compared case-insensitively.
    ///
    /// # Errors
    /// Returns 400 if the front matter is invalid or the file is corrupt, 413 if the file is too large, and 503 if the temporary
    /// file of the archive cannot be read.
    pub fn front_matter(&mut self) -> Result<FrontMatter> {
        let mut text = Vec::new();
        let limit = self.limits.max_skill_md_bytes;
        let file = open_file(&mut self.central_directory, &self.files[self.skill_md])?;
        file.take(limit + 1).read_to_end(&mut text).map_err(|err| extract_error(SKILL_MD, err))?;
        if text.len() as u64 > limit {
            return Err(too_large(SKILL_MD, limit));
        }
        FrontMatter::parse(&text)
    }

    /// Extracts the files in the order of the archive. `spool_from_reader` must read a file to its end. A file is executable if
    /// its entry has any execute bit.
    ///
    /// # Errors
    /// Returns 400 if a file is corrupt or its size differs from that in the central directory, 413 if the extracted bytes exceed
    /// a limit, 503 if a temporary file cannot be read or written, and the errors of `on_file`.
    pub fn extract<T>(
        &mut self,
        mut spool_from_reader: impl FnMut(&mut dyn Read) -> io::Result<T>,
        mut on_file: impl FnMut(&FilePath, FileMode, T) -> Result<()>,
    ) -> Result<()> {
        let mut remaining = self.limits.max_unpacked_bytes;
        for file in &self.files {
            let name = file.path.relative();
            let limit = remaining.min(self.limits.max_file_bytes);
            let mut reader = open_file(&mut self.central_directory, file)?.take(limit + 1);
            let content = spool_from_reader(&mut reader).map_err(|err| extract_error(&name, err))?;
            let size = limit + 1 - reader.limit();
            if size > self.limits.max_file_bytes {
                return Err(too_large(&name, self.limits.max_file_bytes));
            }
            if size > remaining {
                return Err(too_large_in_total(self.limits));
            }
            // Other programs may trust the size in the central directory.
            if size != file.entry.size() {
                return Err(entry_error(&name, "is corrupt"));
            }
            remaining -= size;
            let mode = FileMode::from_permissions(file.entry.as_ref().unix_mode().unwrap_or_default());
            on_file(&file.path, mode, content)?;
        }
        Ok(())
    }
}

/// The byte ranges of the entries: a map from the start of each range to its end. The ranges must not overlap, because zip bombs
/// consist of many entries that share the same bytes.
#[derive(Default)]
struct EntryRanges(BTreeMap<u64, u64>);

impl EntryRanges {
    /// Adds the range of an entry. Returns `false` if it overlaps another one.
    fn insert(&mut self, entry: &ZipFileEntry<'_>) -> bool {
        let start = entry.header_start();
        let end = start.saturating_add(LOCAL_HEADER_LEN).saturating_add(entry.compressed_size());
        let previous = self.0.range(..end).next_back();
        let is_disjoint = previous.is_none_or(|(_, previous_end)| *previous_end <= start);
        self.0.insert(start, end);
        is_disjoint
    }
}

fn open_file<'a, R: Read + Seek>(
    central_directory: &'a mut ZipIterable<R>,
    file: &'a ArchiveFile,
) -> Result<zip::read::ZipFile<'a, R>> {
    let reader = central_directory.files().map_err(|err| zip_error(&err))?.reader_mut();
    file.entry.as_ref().with_reader(reader, ZipReadOptions::new()).map_err(|err| zip_error(&err))
}

/// Returns the name of an entry. A valid UTF-8 name is decoded as UTF-8 even if the UTF-8 flag is not set, because many programs
/// do not set it. Other names are decoded as code page 437.
fn entry_name(entry: &ZipFileEntry<'_>) -> Result<String> {
    match std::str::from_utf8(entry.name_raw()) {
        Ok(name) => Ok(name.to_owned()),
        Err(_) => Ok(entry.name().map_err(|err| zip_error(&err))?.into_owned()),
    }
}

/// Returns `true` for the metadata files that macOS adds to archives.
fn is_macos_metadata(name: &str) -> bool {
    let base = name.rsplit('/').next().unwrap_or_default();
    name.contains("__MACOSX/") || name.contains("__MACOSX\\") || base.starts_with("._") || base == ".DS_Store"
}

fn validate_entry(entry: &ZipFileEntry<'_>, name: &str) -> Result<()> {
    let file_type = entry.unix_mode().unwrap_or_default() & S_IFMT;
    if entry.is_symlink() || !matches!(file_type, 0 | S_IFREG) {
        return Err(entry_error(name, "is not a regular file"));
    }
    if entry.encrypted() {
        return Err(entry_error(name, "is encrypted"));
    }
    if !matches!(entry.compression(), CompressionMethod::Stored | CompressionMethod::Deflated) {
        return Err(entry_error(name, "uses an unsupported compression method; use deflate"));
    }
    Ok(())
}

fn check_limits(name: &str, size: u64, total: u64, limits: ArchiveLimits) -> Result<()> {
    if size > limits.max_file_bytes {
        return Err(too_large(name, limits.max_file_bytes));
    }
    if total > limits.max_unpacked_bytes {
        return Err(too_large_in_total(limits));
    }
    Ok(())
}

/// Splits the name of an entry into segments, and omits empty segments and `.`. Returns 400 if the name is unsafe to extract.
fn name_segments(name: &str) -> Result<Vec<String>> {
    let invalid = |reason: &'static str| Err(entry_error(name, reason));
    if name.chars().any(char::is_control) {
        return invalid("has control characters in its name");
    }
    if name.contains('\\') {
        return invalid("has a backslash in its name; use `/` as separator");
    }
    let has_drive = matches!(name.as_bytes(), [drive, b':', ..] if drive.is_ascii_alphabetic());
    if name.starts_with('/') || has_drive {
        return invalid("is an absolute path");
    }
    let segments = name.split('/').filter(|segment| !matches!(*segment, "" | "."));
    let segments: Vec<String> = segments.map(ToOwned::to_owned).collect();
    if segments.iter().any(|segment| segment == "..") {
        return invalid("must not contain `..` segments");
    }
    if segments.is_empty() {
        return invalid("has no name");
    }
    Ok(segments)
}

/// If a single top-level directory contains all files, removes it from their paths.
fn strip_top_level_directory(files: &mut [(Vec<String>, OwnedZipFileEntry)]) {
    let Some((first, _)) = files.first() else { return };
    let root = first[0].clone();
    if files.iter().all(|(segments, _)| segments.len() > 1 && segments[0] == root) {
        for (segments, _) in files {
            segments.remove(0);
        }
    }
}

/// Returns the index of the SKILL.md that is nearest to the root. If several are at the same depth, returns the first of them.
fn find_skill_md(files: &[(Vec<String>, OwnedZipFileEntry)]) -> Result<usize> {
    let candidates = files
        .iter()
        .enumerate()
        .filter(|(_, (segments, _))| segments.last().is_some_and(|name| name.eq_ignore_ascii_case(SKILL_MD)));
    let nearest = candidates.min_by_key(|(_, (segments, _))| segments.len());
    let missing = || Error::bad_request_with_reason("parameter error", "SKILL.md file is required in the zip package");
    nearest.map(|(index, _)| index).ok_or_else(missing)
}

/// Rejects names that are equal in a case-insensitive file system, and files with the name of a directory.
fn check_name_collisions(files: &[ArchiveFile]) -> Result<()> {
    let mut names = BTreeSet::new();
    for ArchiveFile { path, .. } in files {
        if !names.insert(path.relative().to_lowercase()) {
            let reason = "duplicates another entry (names are compared case-insensitively)";
            return Err(entry_error(&path.relative(), reason));
        }
    }
    for ArchiveFile { path, .. } in files {
        let dir = format!("{}/", path.relative().to_lowercase());
        if names.range(dir.clone()..).next().is_some_and(|name| name.starts_with(&dir)) {
            return Err(entry_error(&path.relative(), "is both a file and a directory"));
        }
    }
    Ok(())
}

fn entry_error(name: &str, reason: &str) -> Error {
    Error::invalid_field("file", format_args!("entry '{}' {reason}", name.escape_debug()))
}

fn zip_error(err: &ZipError) -> Error {
    match err {
        ZipError::Io(err) if !is_archive_error(err) => temp_file_error(io::Error::new(err.kind(), err.to_string())),
        _ => not_an_archive(err),
    }
}

fn not_an_archive(reason: &dyn std::fmt::Display) -> Error {
    Error::invalid_field("file", format_args!("not a readable zip archive: {reason}"))
}

/// Returns the error for a file that could not be extracted, because it is corrupt or a temporary file could not be read or
/// written.
fn extract_error(name: &str, err: io::Error) -> Error {
    if is_archive_error(&err) { entry_error(name, "is corrupt") } else { temp_file_error(err) }
}

/// Returns `true` if the content of the archive caused the error, and not the access to a temporary file.
fn is_archive_error(err: &io::Error) -> bool {
    use io::ErrorKind;
    matches!(err.kind(), ErrorKind::InvalidData | ErrorKind::InvalidInput | ErrorKind::UnexpectedEof | ErrorKind::Other)
}

fn too_many_entries(limits: ArchiveLimits) -> Error {
    let max = limits.max_files.saturating_mul(MAX_ENTRIES_FACTOR);
    Error::invalid_field("file", format_args!("exceeds the maximum of {max} entries (files and directories)"))
}

fn too_many_files(limits: ArchiveLimits) -> Error {
    Error::invalid_field("file", format_args!("exceeds the maximum of {} files", limits.max_files))
}

fn too_large_in_total(limits: ArchiveLimits) -> Error {
    let max = limits.max_unpacked_bytes;
    Error::PayloadTooLarge(format!("file: the files exceed the maximum of {max} bytes in total"))
}

fn too_large(name: &str, limit: u64) -> Error {
    Error::PayloadTooLarge(format!("file: entry '{}' exceeds the maximum of {limit} bytes", name.escape_debug()))
}
