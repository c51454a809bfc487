//! Corrupt and unsupported archives.

use super::*;

#[test]
fn files_that_are_not_archives_are_rejected() {
    for bytes in [b"".as_slice(), b"PK", b"PK\x05\x06", b"no archive at all", b"\x1f\x8b\x08\0gzip", &vec![0; 70_000]] {
        assert!(error_of(bytes).contains("not a readable zip archive"), "{}", error_of(bytes));
    }
    assert!(error_of(&RawArchive::new(&[]).finish()).contains("SKILL.md file is required"));
}

#[test]
fn truncated_archives_are_rejected() {
    let bytes = archive(&[skill_md(), deflated("a/b.txt", "some words ".repeat(20)), stored("c.bin", [7; 300])]);
    assert_eq!(names(&bytes).len(), 3);
    for end in 0..bytes.len() {
        assert!(error_of(&bytes[..end]).contains("not a readable zip archive"), "{end}: {}", error_of(&bytes[..end]));
    }
}

#[test]
fn unsupported_files_are_named() {
    for (entry, reason) in [
        (Entry { flags: raw::ENCRYPTED, ..stored("a.txt", "x") }, "'a.txt' is encrypted"),
        (Entry { flags: raw::ENCRYPTED | raw::DATA_DESCRIPTOR, ..deflated("a.txt", "x") }, "'a.txt' is encrypted"),
        (Entry { method: 14, ..deflated("a.txt", "x") }, "'a.txt' uses an unsupported compression method"),
        (Entry { method: 93, ..deflated("a.txt", "x") }, "'a.txt' uses an unsupported compression method"),
        (Entry { method: 99, ..deflated("a.txt", "x") }, "'a.txt' uses an unsupported compression method"),
        (Entry { method: u16::MAX, ..deflated("a.txt", "x") }, "'a.txt' uses an unsupported compression method"),
        (Entry { method: 0, ..deflated("a.txt", "some words") }, "'a.txt' is corrupt"),
        (Entry { method: raw::DEFLATED, ..stored("a.txt", "some words") }, "'a.txt' is corrupt"),
    ] {
        let error = error_of(&archive_with(entry));
        assert!(error.contains(reason), "{error}");
    }
    // SKILL.md is checked as well.
    for entry in [Entry { crc: 7, ..skill_md() }, Entry { size: 3, ..deflated("skill.md", FRONT_MATTER) }] {
        assert!(error_of(&archive(&[entry])).contains("'SKILL.md' is corrupt"));
    }
}

#[test]
fn files_that_differ_from_the_central_directory_are_corrupt() {
    let content = "some words ".repeat(100);
    let (good, flat) = (deflated("a.txt", &content), stored("a.txt", &content));
    for entry in [
        Entry { crc: good.crc ^ 1, ..good.clone() },
        Entry { crc: 0, ..flat.clone() },
        Entry { size: good.size - 1, ..good.clone() },
        Entry { size: 0, ..good.clone() },
        Entry { size: good.size + 1, ..good.clone() },
        Entry { size: 40_000, ..good.clone() },
        Entry { size: flat.size - 1, ..flat.clone() },
        Entry { size: flat.size + 1, ..flat.clone() },
        Entry { compressed_size: good.compressed_size - 1, ..good.clone() },
        Entry { compressed_size: 0, ..good.clone() },
        Entry { compressed_size: flat.compressed_size - 1, ..flat.clone() },
        Entry { compressed_size: flat.compressed_size + 1, ..flat.clone() },
        Entry { compressed_size: 1 << 30, ..flat.clone() },
        Entry { compressed: vec![0xff; 50], compressed_size: 50, ..good.clone() },
        Entry { compressed: Vec::new(), compressed_size: 0, ..good.clone() },
    ] {
        let error = error_of(&archive_with(entry.clone()));
        assert!(error.contains("'a.txt' is corrupt"), "{} {}: {error}", entry.size, entry.compressed_size);
    }
}

#[test]
fn local_headers_that_differ_from_the_central_directory_are_rejected() {
    for entry in [
        Entry { local_name: Some(b"b.txt".to_vec()), ..stored("a.txt", "x") },
        Entry { local_name: Some(b"../a.txt".to_vec()), ..stored("a.txt", "x") },
        Entry { local_name: Some(Vec::new()), ..stored("a.txt", "x") },
        Entry { offset: Some(0), ..stored("a.txt", "x") },
        Entry { offset: Some(1), ..stored("a.txt", "x") },
        Entry { offset: Some(1 << 20), ..stored("a.txt", "x") },
        Entry { offset: Some(u32::MAX), ..stored("a.txt", "x") },
        Entry { offset: Some(u32::MAX - 1), ..stored("a.txt", "x") },
    ] {
        let error = error_of(&archive_with(entry));
        assert!(error.contains("not a readable zip archive"), "{error}");
    }
}

#[test]
fn invalid_end_records_are_rejected() {
    let raw = || RawArchive::new(&[skill_md(), stored("a.txt", "x")]);
    let (size, offset) = (raw().size, raw().offset);
    for (case, bytes) in [
        ("more files", RawArchive { count: 3, ..raw() }.finish()),
        ("very many files", RawArchive { count: u16::MAX, ..raw() }.finish()),
        ("a later directory", RawArchive { offset: offset + size, ..raw() }.finish()),
        ("a distant directory", RawArchive { offset: 1 << 30, ..raw() }.finish()),
        ("an endless directory", RawArchive { size: u32::MAX - 1, ..raw() }.finish()),
        ("ZIP64 markers only", RawArchive { count: u16::MAX, size: u32::MAX, offset: u32::MAX, ..raw() }.finish()),
        ("more files, ZIP64", raw().finish_zip64(3)),
        ("2^32 files, ZIP64", raw().finish_zip64(1 << 32)),
        ("2^64 files, ZIP64", raw().finish_zip64(u64::MAX)),
        ("2^63 bytes, ZIP64", RawArchive { offset: u32::MAX, ..raw() }.finish_zip64(2)),
    ] {
        let error = error_of(&bytes);
        let is_expected = |text: &str| error.contains(text);
        assert!(is_expected("not a readable zip archive") || is_expected("maximum of 20 files"), "{case}: {error}");
    }
}

#[test]
fn the_last_of_several_end_records_counts() {
    let with_comment = |comment: &[u8]| {
        let raw = RawArchive::new(&[skill_md(), stored("a.txt", "x")]);
        RawArchive { comment: comment.to_vec(), ..raw }.finish()
    };
    // Of two concatenated archives the second one counts, as for other programs that read from the end.
    let other = archive(&[stored("SKILL.md", "name: other\ndescription: b\n")]);
    assert_eq!(names(&with_comment(&other)), ["SKILL.md"]);
    let end = RawArchive { offset: 0, size: 0, ..RawArchive::new(&[]) }.finish();
    assert!(error_of(&with_comment(&end)).contains("SKILL.md file is required"));
    for comment in [b"PK\x05\x06".repeat(100), b"some words PK\x05\x06 and more of them".to_vec()] {
        assert!(error_of(&with_comment(&comment)).contains("not a readable zip archive"));
    }
}
