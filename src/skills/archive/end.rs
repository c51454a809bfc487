//! The end of an archive, which says where its list of contents is.
//!
//! The library would look for another end, and for another place of the list, as long as something is wrong. That takes the
//! square of the archive's size, and it may then read a list that other programs do not see. So the last end counts here.

use std::io::{self, Read, Seek, SeekFrom};

/// What the last record takes, without its comment.
const END: usize = 22;
/// What large archives have before it: a record of its own kind, and where that one is.
const LARGE: usize = 56;
const LOCATOR: usize = 20;
const LONGEST: usize = LARGE + LOCATOR + END + u16::MAX as usize;
/// What an entry of the list takes at the least.
const ENTRY: u64 = 46;

pub(super) struct End {
    /// Where the archive begins; something else may lie before it.
    pub begin: u64,
    /// The bytes of the list.
    pub list: u64,
    /// Where the list is.
    at: u64,
    count: u64,
}

/// Finds the end. `None` if there is none, or if it cannot be true.
///
/// # Errors
/// The archive cannot be read.
pub(super) fn find(reader: &mut (impl Read + Seek)) -> io::Result<Option<End>> {
    let length = reader.seek(SeekFrom::End(0))?;
    let from = reader.seek(SeekFrom::Start(length.saturating_sub(LONGEST as u64)))?;
    let mut tail = Vec::with_capacity(LONGEST);
    reader.by_ref().take(LONGEST as u64).read_to_end(&mut tail)?;
    let Some(end) = in_tail(&tail, from) else { return Ok(None) };
    if end.count == 0 {
        return Ok(Some(end));
    }
    if end.count > end.list / ENTRY {
        return Ok(None);
    }
    reader.seek(SeekFrom::Start(end.at))?;
    let mut magic = [0; 4];
    reader.read_exact(&mut magic)?;
    Ok((&magic == b"PK\x01\x02").then_some(end))
}

/// Reads it in the last bytes of an archive, which begin at `from`.
fn in_tail(tail: &[u8], from: u64) -> Option<End> {
    let at = memchr::memmem::rfind(tail, b"PK\x05\x06")?;
    let end = tail.get(at..at + END)?;
    tail.get(at + END..at + END + usize::from(u16_at(end, 20)))?;
    if u16_at(end, 10) == u16::MAX || u32_at(end, 12) == u32::MAX || u32_at(end, 16) == u32::MAX {
        let locator = at.checked_sub(LOCATOR).map(|locator| &tail[locator..at]);
        if let Some(locator) = locator.filter(|locator| locator.starts_with(b"PK\x06\x07")) {
            let at = at.checked_sub(LOCATOR + LARGE)?;
            return large(locator, &tail[at..at + LARGE], from + at as u64);
        }
    }
    let (list, offset) = (u64::from(u32_at(end, 12)), u64::from(u32_at(end, 16)));
    // There is one disk, and everything lies on it.
    let is_whole = end[4..8] == [0; 4] && end[8..10] == end[10..12];
    let at = (from + at as u64).checked_sub(list)?;
    is_whole.then_some(End { begin: at.checked_sub(offset)?, list, at, count: u64::from(u16_at(end, 10)) })
}

/// The end of a large archive, which lies at `at`.
fn large(locator: &[u8], end: &[u8], at: u64) -> Option<End> {
    let is_whole = locator[4..8] == [0; 4] && u32_at(locator, 16) <= 1 && end[16..24] == [0; 8];
    // Further fields may follow in it; no program writes any.
    let is_known = end.starts_with(b"PK\x06\x06") && u64_at(end, 4) == (LARGE - 12) as u64;
    let begin = at.checked_sub(u64_at(locator, 8))?;
    let (list, offset) = (u64_at(end, 40), u64_at(end, 48));
    let list_at = at.checked_sub(list)?;
    let is_there = list_at.checked_sub(offset) == Some(begin);
    let is_sound = is_whole && is_known && is_there && end[24..32] == end[32..40];
    is_sound.then_some(End { begin, list, at: list_at, count: u64_at(end, 32) })
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
