//! Zip archives byte by byte, for what no packer writes. What is not set otherwise is as it should be.

use std::io::{Cursor, Read, Write};

use zip::write::SimpleFileOptions;
use zip::{ZipArchive, ZipWriter};

pub const DEFLATED: u16 = 8;
/// Flags of an entry.
pub const ENCRYPTED: u16 = 1;
pub const DESCRIPTOR: u16 = 8;
pub const UTF8: u16 = 1 << 11;
/// Made on Unix.
pub const UNIX: u16 = 0x0314;

/// One file as it lies in the archive and as the list at the end tells of it.
#[derive(Clone)]
pub struct Entry {
    pub made_by: u16,
    pub flags: u16,
    pub method: u16,
    pub crc: u32,
    pub packed: Vec<u8>,
    /// What it says it is unpacked.
    pub size: u32,
    /// What the list says it is packed.
    pub packed_size: u32,
    pub name: Vec<u8>,
    /// The name where the file lies, if it is another one.
    pub local_name: Option<Vec<u8>>,
    pub extra: Vec<u8>,
    pub comment: Vec<u8>,
    pub mode: u32,
    /// Where the list says it lies.
    pub offset: Option<u32>,
}

/// A file that is not compressed.
pub fn stored(name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Entry {
    let content = content.as_ref();
    let crc = if content.is_empty() { 0 } else { pack(content).1 };
    Entry {
        made_by: 20,
        flags: 0,
        method: 0,
        crc,
        packed: content.to_vec(),
        size: length(content),
        packed_size: length(content),
        name: name.as_ref().to_vec(),
        local_name: None,
        extra: Vec::new(),
        comment: Vec::new(),
        mode: 0,
        offset: None,
    }
}

/// A file that is compressed.
pub fn deflated(name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Entry {
    let content = content.as_ref();
    let (packed, crc) = pack(content);
    let size = length(content);
    Entry { method: DEFLATED, crc, size, packed_size: length(&packed), packed, ..stored(name, "") }
}

/// An archive of these files.
pub fn archive(entries: &[Entry]) -> Vec<u8> {
    Raw::new(entries).end()
}

/// An archive whose list was written; what its end says can be changed.
pub struct Raw {
    pub bytes: Vec<u8>,
    pub count: u16,
    pub size: u32,
    pub offset: u32,
    pub comment: Vec<u8>,
}

impl Raw {
    pub fn new(entries: &[Entry]) -> Self {
        let (mut bytes, mut list) = (Vec::new(), Vec::new());
        for entry in entries {
            let offset = entry.offset.unwrap_or(length(&bytes));
            entry.write_local(&mut bytes);
            entry.write_central(&mut list, offset);
        }
        let (offset, size) = (length(&bytes), length(&list));
        bytes.extend(list);
        let count = u16::try_from(entries.len()).unwrap_or(u16::MAX);
        Self { bytes, count, size, offset, comment: Vec::new() }
    }

    pub fn end(mut self) -> Vec<u8> {
        let count = self.count.to_le_bytes();
        self.bytes.extend([b"PK\x05\x06\0\0\0\0".as_slice(), &count, &count].concat());
        self.bytes.extend([self.size.to_le_bytes(), self.offset.to_le_bytes()].concat());
        self.bytes.extend(u16::try_from(self.comment.len()).unwrap().to_le_bytes());
        self.bytes.extend(self.comment);
        self.bytes
    }

    /// The end as large archives have it.
    pub fn end_64(mut self, count: u64) -> Vec<u8> {
        let at = u64::from(length(&self.bytes));
        self.bytes.extend(b"PK\x06\x06\x2c\0\0\0\0\0\0\0\x2d\0\x2d\0\0\0\0\0\0\0\0\0");
        for number in [count, count, u64::from(self.size), u64::from(self.offset)] {
            self.bytes.extend(number.to_le_bytes());
        }
        self.bytes.extend([b"PK\x06\x07\0\0\0\0".as_slice(), &at.to_le_bytes(), b"\x01\0\0\0"].concat());
        Self { count: u16::MAX, size: u32::MAX, offset: u32::MAX, ..self }.end()
    }
}

impl Entry {
    fn write_local(&self, into: &mut Vec<u8>) {
        let name = self.local_name.as_ref().unwrap_or(&self.name);
        into.extend(b"PK\x03\x04\x14\0");
        self.write_common(into);
        into.extend([length16(name), length16(&self.extra)].concat());
        into.extend([name.as_slice(), &self.extra, &self.packed].concat());
        if self.flags & DESCRIPTOR != 0 {
            into.extend([*b"PK\x07\x08", self.crc.to_le_bytes()].concat());
            into.extend([self.packed_size.to_le_bytes(), self.size.to_le_bytes()].concat());
        }
    }

    fn write_central(&self, into: &mut Vec<u8>, offset: u32) {
        into.extend([b"PK\x01\x02".as_slice(), &self.made_by.to_le_bytes(), b"\x14\0"].concat());
        self.write_common(into);
        into.extend([length16(&self.name), length16(&self.extra), length16(&self.comment), [0; 2], [0; 2]].concat());
        into.extend([(self.mode << 16).to_le_bytes(), offset.to_le_bytes()].concat());
        into.extend([self.name.as_slice(), &self.extra, &self.comment].concat());
    }

    /// Flags, method, 1 January 1980, checksum and sizes.
    fn write_common(&self, into: &mut Vec<u8>) {
        into.extend([self.flags.to_le_bytes(), self.method.to_le_bytes(), [0, 0], [0x21, 0]].concat());
        into.extend([self.crc, self.packed_size, self.size].map(u32::to_le_bytes).concat());
    }
}

fn length(of: &[u8]) -> u32 {
    u32::try_from(of.len()).unwrap()
}

fn length16(of: &[u8]) -> [u8; 2] {
    u16::try_from(of.len()).unwrap().to_le_bytes()
}

/// What content becomes when it is compressed, and its checksum.
fn pack(content: &[u8]) -> (Vec<u8>, u32) {
    let mut archive = ZipArchive::new(Cursor::new(written(&[("a", content)]))).unwrap();
    let mut file = archive.by_index_raw(0).unwrap();
    let (mut packed, crc) = (Vec::new(), file.crc32());
    file.read_to_end(&mut packed).unwrap();
    (packed, crc)
}

/// An archive as a packer writes it.
pub fn written(files: &[(impl AsRef<str>, impl AsRef<[u8]>)]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in files {
        writer.start_file(name.as_ref(), SimpleFileOptions::default()).unwrap();
        writer.write_all(content.as_ref()).unwrap();
    }
    writer.finish().unwrap().into_inner()
}
