//! Archives that are designed to be expensive.

use std::cell::Cell;

use super::*;

/// Counts the bytes that are read from an archive.
struct CountingReader<'a> {
    bytes: Cursor<&'a [u8]>,
    read: &'a Cell<usize>,
}

impl Read for CountingReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.bytes.read(into)?;
        self.read.set(self.read.get() + read);
        Ok(read)
    }
}

impl Seek for CountingReader<'_> {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        self.bytes.seek(to)
    }
}

/// Returns the text of the error for an archive, after checking that it was not read more than once, except for its end and
/// other small parts.
#[track_caller]
fn error_without_extraction(bytes: &[u8]) -> String {
    let limits = ArchiveLimits {
        max_files: 1000,
        max_unpacked_bytes: 50 << 20,
        max_file_bytes: 16 << 20,
        max_skill_md_bytes: 1 << 20,
    };
    let read = Cell::new(0);
    let error = error_with_limits(limits, CountingReader { bytes: Cursor::new(bytes), read: &read });
    assert!(read.get() < bytes.len() + (256 << 10), "{} of {} bytes were read: {error}", read.get(), bytes.len());
    error
}

#[test]
fn limits_are_checked_before_anything_is_extracted() {
    let (max, over) = (vec![0; 50_000], vec![0; 50_001]);
    assert_eq!(names(&archive_with(deflated("a", &max))).len(), 2);
    assert_eq!(error_of(&archive_with(deflated("a", &over))), "413 file: entry 'a' exceeds the maximum of 50000 bytes");
    let many: Vec<_> = (0..3).map(|n| deflated(format!("{n}"), &max[..33_333])).collect();
    let error = error_of(&archive(&[many, vec![skill_md()]].concat()));
    assert_eq!(error, "413 file: the files exceed the maximum of 100000 bytes in total");
    let skill_text = format!("{FRONT_MATTER}{}", "x".repeat(10_000));
    let error = error_of(&archive(&[deflated("SKILL.md", &skill_text)]));
    assert_eq!(error, "413 file: entry 'SKILL.md' exceeds the maximum of 10000 bytes");
    // A SKILL.md that is not used may be as large as any file.
    assert_eq!(names(&archive(&[skill_md(), deflated("a/SKILL.md", &skill_text)])).len(), 2);
    let huge = [b"\x01\0\x10\0".as_slice(), &[0xff; 16]].concat();
    let huge = Entry { extra: huge, size: u32::MAX, compressed_size: u32::MAX, ..stored("a", "") };
    assert!(error_of(&archive_with(huge.clone())).starts_with("413 file: entry 'a' exceeds the maximum"));
    assert!(error_of(&archive(&[Entry { name: b"SKILL.md".to_vec(), ..huge }])).starts_with("413"));
}

#[test]
fn the_maximum_number_of_files_is_enforced() {
    let files = |count: usize| {
        let more = (1..count).map(|n| stored(format!("{n}"), ""));
        archive(&std::iter::once(skill_md()).chain(more).collect::<Vec<_>>())
    };
    assert_eq!(names(&files(20)).len(), 20);
    assert!(error_of(&files(21)).contains("exceeds the maximum of 20 files"));
    // Directories do not count as files, but are limited too.
    let directories = |count: usize| {
        let more = (1..count).map(|n| stored(format!("{n}/"), ""));
        archive(&std::iter::once(skill_md()).chain(more).collect::<Vec<_>>())
    };
    assert_eq!(names(&directories(200)).len(), 1);
    assert!(error_of(&directories(201)).contains("exceeds the maximum of 200 entries"));
}

#[test]
fn seventy_thousand_entries_are_rejected_early() {
    let mut entries = vec![skill_md()];
    entries.extend((0..70_000).map(|n| stored(format!("{n}"), "")));
    let error = error_without_extraction(&RawArchive::new(&entries).finish_zip64(70_001));
    assert!(error.contains("exceeds the maximum of 10000 entries"), "{error}");
    // Programs without ZIP64 use the number modulo 65 536.
    let error = error_without_extraction(&RawArchive { count: 4465, ..RawArchive::new(&entries) }.finish());
    let is_expected = |text: &str| error.contains(text);
    assert!(is_expected("not a readable zip archive") || is_expected("maximum of 1000 files"), "{error}");
}

#[test]
fn a_zip_bomb_is_rejected_early() {
    // Files of 10 MiB of zeros, each compressed to about 10 kB.
    let zeros = deflated("", vec![0; 10 << 20]);
    let honest: Vec<_> = (0..4).map(|n| Entry { name: format!("{n}").into_bytes(), ..zeros.clone() }).collect();
    let bomb = archive(&[honest.clone(), honest, vec![skill_md()]].concat());
    assert!(error_without_extraction(&bomb).starts_with("413 file: the files exceed the maximum of 52428800"));
    // The central directory claims that the file is small.
    let lie = Entry { name: b"a".to_vec(), size: 10, ..zeros.clone() };
    assert!(error_without_extraction(&archive_with(lie)).contains("'a' is corrupt"));
    let skill_md = Entry { name: b"SKILL.md".to_vec(), size: 10, ..zeros };
    assert!(error_without_extraction(&archive(&[skill_md])).contains("'SKILL.md' is corrupt"));
}

/// The compressed bytes of each file contain the files after it, as stored deflate blocks with the local headers.
#[test]
fn overlapping_files_are_rejected() {
    let inner = deflated("0", vec![0; 1 << 20]);
    let mut compressed = inner.compressed.clone();
    let mut entries = vec![inner.clone()];
    for n in 1..60 {
        let before = &entries[n - 1];
        let header = archive(std::slice::from_ref(before));
        let header = &header[..30 + before.name.len()];
        let length = u16::try_from(header.len()).unwrap();
        compressed = [&[0], &length.to_le_bytes()[..], &(!length).to_le_bytes(), header, &compressed].concat();
        let content = [header, &vec![0; 1 << 20]].concat();
        let whole = stored(format!("{n}"), content);
        let compressed_size = u32::try_from(compressed.len()).unwrap();
        entries.push(Entry { method: raw::DEFLATED, compressed: Vec::new(), compressed_size, ..whole });
    }
    entries.reverse();
    entries[0].compressed.clone_from(&compressed);
    let mut at = 0;
    for entry in &mut entries {
        entry.offset = Some(at);
        at += 35 + u32::try_from(entry.name.len()).unwrap();
    }
    entries.push(skill_md());
    let error = error_without_extraction(&archive(&entries));
    assert!(error.contains("'58' overlaps another entry"), "{error}");
}

#[test]
fn a_central_directory_of_tiny_extra_fields_is_rejected() {
    // Each field of four bytes takes many times as much memory.
    let extra = b"xx\0\0".repeat(16_000);
    let entries = (0..100).map(|n| Entry { extra: extra.clone(), ..stored(format!("{n}"), "") });
    let bytes = archive(&std::iter::once(skill_md()).chain(entries).collect::<Vec<_>>());
    assert!(error_without_extraction(&bytes).contains("central directory is too long"));
}

#[test]
fn archives_of_repeated_signatures_are_rejected_early() {
    for (magic, size) in [(b"PK\x06\x06", 2 << 20), (b"PK\x01\x02", 20 << 20), (b"PK\x05\x06", 20 << 20)] {
        let body = magic.repeat(size / 4);
        // As many end records as are searched for, each with a ZIP64 locator that points to the beginning.
        let locator = [b"PK\x06\x07\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0".as_slice()].concat();
        let end = [locator.as_slice(), b"PK\x05\x06\0\0\0\0\xff\xff\xff\xff\0\0\0\0\0\0\0\0\0\0"].concat();
        let bytes = [body, end.repeat(1500)].concat();
        assert!(error_without_extraction(&bytes).contains("not a readable zip archive"));
    }
}

#[test]
fn a_local_header_shared_by_thousands_of_entries_is_read_once() {
    let fat = Entry { extra: b"xx\0\0".repeat(16_000), ..stored("a/", "") };
    let thin = Entry { extra: Vec::new(), offset: Some(0), ..fat.clone() };
    let (files, directory) = (RawArchive::new(&[fat]), RawArchive::new(&vec![thin; 9_990]));
    let entries = &directory.bytes[usize::try_from(directory.offset).unwrap()..];
    let bytes = [&files.bytes[..usize::try_from(files.offset).unwrap()], entries].concat();
    let error = error_without_extraction(&RawArchive { bytes, offset: files.offset, ..directory }.finish());
    assert!(error.contains("'a/' overlaps another entry"), "{error}");
}

#[test]
fn files_may_be_in_any_order_without_overlap() {
    let text = |name: &str| deflated(name, "some words ".repeat(9));
    let valid = RawArchive::new(&[skill_md(), text("a"), text("b")]);
    let (first, second) = (30 + 8 + FRONT_MATTER.len(), 31 + text("a").compressed.len());
    let offset = |offset: usize| Some(u32::try_from(offset).unwrap());
    // The central directory is in reverse order.
    let reversed = [
        Entry { offset: offset(first + second), ..text("b") },
        Entry { offset: offset(first), ..text("a") },
        Entry { offset: Some(0), ..skill_md() },
    ];
    let directory = RawArchive::new(&reversed);
    let entries = &directory.bytes[usize::try_from(directory.offset).unwrap()..];
    let bytes = [&valid.bytes[..usize::try_from(valid.offset).unwrap()], entries].concat();
    assert_eq!(names(&RawArchive { bytes, offset: valid.offset, ..directory }.finish()), ["b", "a", "SKILL.md"]);
    // The first file claims to extend into the second one.
    let long = Entry { compressed_size: text("a").compressed_size + 40, ..text("a") };
    assert!(error_of(&archive(&[skill_md(), long, text("b")])).contains("'b' overlaps another entry"));
}
