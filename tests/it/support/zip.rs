//! Writes zip archives byte by byte, because no library writes invalid ones. Fields that a test does not set are valid.

use std::io::{Cursor, Read, Write};

use zip::write::SimpleFileOptions;
use zip::{ZipArchive, ZipWriter};

pub const DEFLATED: u16 = 8;
/// Flag bits of an entry.
pub const ENCRYPTED: u16 = 1;
pub const DATA_DESCRIPTOR: u16 = 8;
pub const UTF8: u16 = 1 << 11;
/// The value of `version_made_by` for archives that were made on Unix.
pub const UNIX: u16 = 0x0314;

/// A file of an archive: its local header, its data and its entry in the central directory.
#[derive(Clone)]
pub struct Entry {
    pub version_made_by: u16,
    pub flags: u16,
    pub method: u16,
    pub crc: u32,
    pub compressed: Vec<u8>,
    /// The declared size of the uncompressed data.
    pub size: u32,
    /// The declared size of the compressed data.
    pub compressed_size: u32,
    pub name: Vec<u8>,
    /// The name in the local header, if it differs from `name`.
    pub local_name: Option<Vec<u8>>,
    pub extra: Vec<u8>,
    pub comment: Vec<u8>,
    pub mode: u32,
    /// The offset of the local header in the central directory, if it differs from the real one.
    pub offset: Option<u32>,
}

/// Returns an entry that is not compressed.
pub fn stored(name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Entry {
    let content = content.as_ref();
    let crc = if content.is_empty() { 0 } else { compress(content).1 };
    Entry {
        version_made_by: 20,
        flags: 0,
        method: 0,
        crc,
        compressed: content.to_vec(),
        size: length(content),
        compressed_size: length(content),
        name: name.as_ref().to_vec(),
        local_name: None,
        extra: Vec::new(),
        comment: Vec::new(),
        mode: 0,
        offset: None,
    }
}

/// Returns an entry that is compressed.
pub fn deflated(name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Entry {
    let content = content.as_ref();
    let (compressed, crc) = compress(content);
    let size = length(content);
    Entry { method: DEFLATED, crc, size, compressed_size: length(&compressed), compressed, ..stored(name, "") }
}

/// Returns an archive with these entries.
pub fn archive(entries: &[Entry]) -> Vec<u8> {
    RawArchive::new(entries).finish()
}

/// An archive without its end-of-central-directory record, whose fields can be changed.
pub struct RawArchive {
    /// The local entries and the central directory.
    pub bytes: Vec<u8>,
    /// The declared number of entries.
    pub count: u16,
    /// The declared size of the central directory.
    pub size: u32,
    /// The declared offset of the central directory.
    pub offset: u32,
    pub comment: Vec<u8>,
}

impl RawArchive {
    pub fn new(entries: &[Entry]) -> Self {
        let (mut bytes, mut directory) = (Vec::new(), Vec::new());
        for entry in entries {
            let offset = entry.offset.unwrap_or(length(&bytes));
            entry.write_local(&mut bytes);
            entry.write_central(&mut directory, offset);
        }
        let (offset, size) = (length(&bytes), length(&directory));
        bytes.extend(directory);
        let count = u16::try_from(entries.len()).unwrap_or(u16::MAX);
        Self { bytes, count, size, offset, comment: Vec::new() }
    }

    /// Appends the end-of-central-directory record.
    pub fn finish(mut self) -> Vec<u8> {
        let count = self.count.to_le_bytes();
        self.bytes.extend([b"PK\x05\x06\0\0\0\0".as_slice(), &count, &count].concat());
        self.bytes.extend([self.size.to_le_bytes(), self.offset.to_le_bytes()].concat());
        self.bytes.extend(u16::try_from(self.comment.len()).unwrap().to_le_bytes());
        self.bytes.extend(self.comment);
        self.bytes
    }

    /// Appends the ZIP64 end-of-central-directory record with its locator, and the record of [`RawArchive::finish`].
    pub fn finish_zip64(mut self, count: u64) -> Vec<u8> {
        let record_offset = u64::from(length(&self.bytes));
        self.bytes.extend(b"PK\x06\x06\x2c\0\0\0\0\0\0\0\x2d\0\x2d\0\0\0\0\0\0\0\0\0");
        for number in [count, count, u64::from(self.size), u64::from(self.offset)] {
            self.bytes.extend(number.to_le_bytes());
        }
        self.bytes.extend([b"PK\x06\x07\0\0\0\0".as_slice(), &record_offset.to_le_bytes(), b"\x01\0\0\0"].concat());
        Self { count: u16::MAX, size: u32::MAX, offset: u32::MAX, ..self }.finish()
    }
}

impl Entry {
    fn write_local(&self, output: &mut Vec<u8>) {
        let name = self.local_name.as_ref().unwrap_or(&self.name);
        output.extend(b"PK\x03\x04\x14\0");
        self.write_common(output);
        output.extend([length16(name), length16(&self.extra)].concat());
        output.extend([name.as_slice(), &self.extra, &self.compressed].concat());
        if self.flags & DATA_DESCRIPTOR != 0 {
            output.extend([*b"PK\x07\x08", self.crc.to_le_bytes()].concat());
            output.extend([self.compressed_size.to_le_bytes(), self.size.to_le_bytes()].concat());
        }
    }

    fn write_central(&self, output: &mut Vec<u8>, offset: u32) {
        output.extend([b"PK\x01\x02".as_slice(), &self.version_made_by.to_le_bytes(), b"\x14\0"].concat());
        self.write_common(output);
        output.extend([length16(&self.name), length16(&self.extra), length16(&self.comment), [0; 2], [0; 2]].concat());
        output.extend([(self.mode << 16).to_le_bytes(), offset.to_le_bytes()].concat());
        output.extend([self.name.as_slice(), &self.extra, &self.comment].concat());
    }

    /// Writes the flags, the method, 1 January 1980, the checksum and the sizes.
    fn write_common(&self, output: &mut Vec<u8>) {
        output.extend([self.flags.to_le_bytes(), self.method.to_le_bytes(), [0, 0], [0x21, 0]].concat());
        output.extend([self.crc, self.compressed_size, self.size].map(u32::to_le_bytes).concat());
    }
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap()
}

fn length16(bytes: &[u8]) -> [u8; 2] {
    u16::try_from(bytes.len()).unwrap().to_le_bytes()
}

/// Returns the compressed content and the checksum.
fn compress(content: &[u8]) -> (Vec<u8>, u32) {
    let mut archive = ZipArchive::new(Cursor::new(zip_archive(&[("a", content)]))).unwrap();
    let mut file = archive.by_index_raw(0).unwrap();
    let (mut compressed, crc) = (Vec::new(), file.crc32());
    file.read_to_end(&mut compressed).unwrap();
    (compressed, crc)
}

/// Returns an archive as a zip library writes it.
pub fn zip_archive(files: &[(impl AsRef<str>, impl AsRef<[u8]>)]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in files {
        writer.start_file(name.as_ref(), SimpleFileOptions::default()).unwrap();
        writer.write_all(content.as_ref()).unwrap();
    }
    writer.finish().unwrap().into_inner()
}
