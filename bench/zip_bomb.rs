//! Builds a zip bomb: an archive of 42 kB whose unpacked size is several gigabytes, because its files overlap. The
//! compressed data of each file contains the local headers of all later files as stored blocks, and ends with the
//! compressed zeros that all files share.

use std::io::{Cursor, Write};

use bytes::Bytes;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

const FILES: usize = 300;
/// The unpacked size of the zeros. The server would accept a single file of this size.
const ZEROS: usize = 15 << 20;
/// The size that an archive with false sizes declares for each file.
const DECLARED_SIZE: u32 = 1_000;
const SKILL_MD: &[u8] = b"---\nname: bomb\ndescription: Becomes very large.\n---\n";

/// An archive and its unpacked size.
pub struct Bomb {
    pub archive: Bytes,
    pub unpacked: u64,
}

/// The metadata of one file in the archive.
#[derive(Clone)]
struct Entry {
    name: String,
    method: u16,
    crc: u32,
    packed: u32,
    /// The real unpacked size.
    size: u32,
    /// The size that the archive declares.
    declared_size: u32,
}

impl Entry {
    /// Returns the fields that the local header and the entry in the central directory have in common.
    fn common_fields(&self) -> anyhow::Result<Vec<u8>> {
        let mut common_fields = Vec::new();
        // Version 2.0, no flags, the method, and the earliest date of the format.
        for short in [20, 0, self.method, 0, 0x21] {
            common_fields.extend(u16::to_le_bytes(short));
        }
        for long in [self.crc, self.packed, self.declared_size] {
            common_fields.extend(u32::to_le_bytes(long));
        }
        common_fields.extend(u16::try_from(self.name.len())?.to_le_bytes());
        common_fields.extend([0; 2]);
        Ok(common_fields)
    }

    fn local_header(&self) -> anyhow::Result<Vec<u8>> {
        Ok([b"PK\x03\x04", &self.common_fields()?[..], self.name.as_bytes()].concat())
    }

    fn directory_entry(&self, offset: usize) -> anyhow::Result<Vec<u8>> {
        let offset = u32::try_from(offset)?.to_le_bytes();
        Ok([b"PK\x01\x02\x14\x00", &self.common_fields()?[..], &[0; 10], &offset, self.name.as_bytes()].concat())
    }
}

/// Builds a zip bomb that declares the real sizes of its files, or [`DECLARED_SIZE`] for each.
pub fn build(declares_real_sizes: bool) -> anyhow::Result<Bomb> {
    let declared_size = |size: u32| if declares_real_sizes { size } else { DECLARED_SIZE };
    let (zeros, crc) = compress_zeros()?;
    let (packed, size) = (u32::try_from(zeros.len())?, u32::try_from(ZEROS)?);
    let last = Entry { name: name(FILES - 1), method: 8, crc, packed, size, declared_size: declared_size(size) };
    // From the last to the first, because each file contains all later ones.
    let mut entries = vec![last];
    for number in (0..FILES - 1).rev() {
        let next = &entries[entries.len() - 1];
        let local_header = next.local_header()?;
        let length = u32::try_from(local_header.len())?;
        let size = next.size + length;
        let crc = crc32_combine(crc32(&local_header), next.crc, next.size);
        let packed = next.packed + length + 5;
        entries.push(Entry { name: name(number), method: 8, crc, packed, size, declared_size: declared_size(size) });
    }
    entries.reverse();
    let size = u32::try_from(SKILL_MD.len())?;
    let skill =
        Entry { name: "SKILL.md".into(), method: 0, crc: crc32(SKILL_MD), packed: size, size, declared_size: size };
    let unpacked = entries.iter().map(|entry| u64::from(entry.size)).sum();
    Ok(Bomb { archive: write_archive(&skill, &entries, &zeros)?.into(), unpacked })
}

fn write_archive(skill: &Entry, entries: &[Entry], zeros: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut archive = [&skill.local_header()?[..], SKILL_MD].concat();
    let mut directory = skill.directory_entry(0)?;
    for (number, entry) in entries.iter().enumerate() {
        let local_header = entry.local_header()?;
        if number > 0 {
            // The header of a stored block in the compressed data of the previous file.
            let length = u16::try_from(local_header.len())?;
            archive.push(0);
            archive.extend(length.to_le_bytes());
            archive.extend((!length).to_le_bytes());
        }
        directory.extend(entry.directory_entry(archive.len())?);
        archive.extend(local_header);
    }
    archive.extend(zeros);
    let (count, start) = (u16::try_from(entries.len() + 1)?.to_le_bytes(), u32::try_from(archive.len())?);
    let length = u32::try_from(directory.len())?;
    archive.extend(directory);
    archive.extend([b"PK\x05\x06\0\0\0\0", &count[..], &count].concat());
    archive.extend([length.to_le_bytes(), start.to_le_bytes()].concat());
    archive.extend([0; 2]);
    Ok(archive)
}

fn name(number: usize) -> String {
    format!("{number:03}")
}

/// Returns the compressed zeros and the checksum of the zeros.
fn compress_zeros() -> anyhow::Result<(Vec<u8>, u32)> {
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

/// Returns the checksum of the concatenation of two contents, given both checksums and the length of the second
/// content.
fn crc32_combine(first: u32, second: u32, length: u32) -> u32 {
    // x^(8 * length), modulo the polynomial.
    let (mut shift, mut square, mut remaining) = (1 << 31, 1 << 23, length);
    while remaining > 0 {
        if remaining & 1 == 1 {
            shift = gf2_multiply(shift, square);
        }
        square = gf2_multiply(square, square);
        remaining >>= 1;
    }
    gf2_multiply(shift, first) ^ second
}

/// Multiplies two polynomials over GF(2) modulo the polynomial of the checksum. The highest bit is the coefficient of
/// x^0.
fn gf2_multiply(one: u32, other: u32) -> u32 {
    let (mut sum, mut power) = (0, other);
    for bit in (0..32).rev() {
        if (one >> bit) & 1 == 1 {
            sum ^= power;
        }
        power = if power & 1 == 1 { (power >> 1) ^ POLYNOMIAL } else { power >> 1 };
    }
    sum
}
