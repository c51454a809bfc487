//! The end of central directory record (EOCD) of a zip archive, which locates the central directory.
//!
//! If a record is invalid, the zip library searches for another one and for other offsets of the central directory. That takes
//! time quadratic in the size of the archive, and may find a directory that other programs do not see. Therefore only the last
//! record is used here.

use std::io::{self, Read, Seek, SeekFrom};

/// The length of the EOCD record without its comment.
const EOCD_LEN: usize = 22;
/// The length of the ZIP64 EOCD record without extensible data.
const ZIP64_EOCD_LEN: usize = 56;
/// The length of the ZIP64 locator, which is between the ZIP64 EOCD record and the EOCD record.
const ZIP64_LOCATOR_LEN: usize = 20;
/// The maximum total length of the ZIP64 EOCD record, the locator, and the EOCD record with its comment.
const MAX_TAIL_LEN: usize = ZIP64_EOCD_LEN + ZIP64_LOCATOR_LEN + EOCD_LEN + u16::MAX as usize;
/// The minimum length of a central directory entry.
const MIN_ENTRY_LEN: u64 = 46;

/// The location of the central directory.
pub(super) struct CentralDirectoryLocation {
    /// The offset of the archive in the file. It is not 0 if other data precedes the archive.
    pub archive_offset: u64,
    /// The length of the central directory in bytes.
    pub directory_len: u64,
    /// The offset of the central directory in the file.
    directory_offset: u64,
    entry_count: u64,
}

/// Locates the central directory. Returns `None` if there is no EOCD record, or if the last one is invalid.
///
/// # Errors
/// Returns an error if the archive cannot be read.
pub(super) fn locate(reader: &mut (impl Read + Seek)) -> io::Result<Option<CentralDirectoryLocation>> {
    let file_len = reader.seek(SeekFrom::End(0))?;
    let tail_offset = reader.seek(SeekFrom::Start(file_len.saturating_sub(MAX_TAIL_LEN as u64)))?;
    let mut tail = Vec::with_capacity(MAX_TAIL_LEN);
    reader.by_ref().take(MAX_TAIL_LEN as u64).read_to_end(&mut tail)?;
    let Some(location) = parse_tail(&tail, tail_offset) else { return Ok(None) };
    if location.entry_count == 0 {
        return Ok(Some(location));
    }
    if location.entry_count > location.directory_len / MIN_ENTRY_LEN {
        return Ok(None);
    }
    reader.seek(SeekFrom::Start(location.directory_offset))?;
    let mut signature = [0; 4];
    reader.read_exact(&mut signature)?;
    Ok((&signature == b"PK\x01\x02").then_some(location))
}

/// Parses the last EOCD record in `tail`, the bytes of a file from `tail_offset` to its end.
fn parse_tail(tail: &[u8], tail_offset: u64) -> Option<CentralDirectoryLocation> {
    let start = memchr::memmem::rfind(tail, b"PK\x05\x06")?;
    let record = tail.get(start..start + EOCD_LEN)?;
    let comment_len = usize::from(u16_at(record, 20));
    tail.get(start + EOCD_LEN..start + EOCD_LEN + comment_len)?;
    let (entry_count, directory_len, relative_offset) = (u16_at(record, 10), u32_at(record, 12), u32_at(record, 16));
    // If a field has its maximum value, its actual value is in the ZIP64 EOCD record. Without a ZIP64 locator there is no such
    // record, and the maximum value is the actual value.
    if entry_count == u16::MAX || directory_len == u32::MAX || relative_offset == u32::MAX {
        let locator = start.checked_sub(ZIP64_LOCATOR_LEN).map(|locator| &tail[locator..start]);
        if let Some(locator) = locator.filter(|locator| locator.starts_with(b"PK\x06\x07")) {
            let start = start.checked_sub(ZIP64_LOCATOR_LEN + ZIP64_EOCD_LEN)?;
            return parse_zip64(locator, &tail[start..start + ZIP64_EOCD_LEN], tail_offset + start as u64);
        }
    }
    let (entry_count, directory_len) = (u64::from(entry_count), u64::from(directory_len));
    // The archive is not split into several volumes, which the specification calls disks.
    let is_single_volume = record[4..8] == [0; 4] && record[8..10] == record[10..12];
    let directory_offset = (tail_offset + start as u64).checked_sub(directory_len)?;
    let archive_offset = directory_offset.checked_sub(u64::from(relative_offset))?;
    is_single_volume.then_some(CentralDirectoryLocation {
        archive_offset,
        directory_len,
        directory_offset,
        entry_count,
    })
}

/// Parses the ZIP64 EOCD record, which begins at `offset` in the file, and its locator.
fn parse_zip64(locator: &[u8], record: &[u8], offset: u64) -> Option<CentralDirectoryLocation> {
    let is_single_volume = locator[4..8] == [0; 4] && u32_at(locator, 16) <= 1 && record[16..24] == [0; 8];
    // The record could also contain extensible data, but no known program writes any.
    let has_known_size = record.starts_with(b"PK\x06\x06") && u64_at(record, 4) == (ZIP64_EOCD_LEN - 12) as u64;
    let archive_offset = offset.checked_sub(u64_at(locator, 8))?;
    let (directory_len, relative_offset) = (u64_at(record, 40), u64_at(record, 48));
    let directory_offset = offset.checked_sub(directory_len)?;
    let offsets_match = directory_offset.checked_sub(relative_offset) == Some(archive_offset);
    let is_valid = is_single_volume && has_known_size && offsets_match && record[24..32] == record[32..40];
    let entry_count = u64_at(record, 32);
    is_valid.then_some(CentralDirectoryLocation { archive_offset, directory_len, directory_offset, entry_count })
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([bytes[offset], bytes[offset + 1]])
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from(u16_at(bytes, offset)) | u32::from(u16_at(bytes, offset + 2)) << 16
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from(u32_at(bytes, offset)) | u64::from(u32_at(bytes, offset + 4)) << 32
}
