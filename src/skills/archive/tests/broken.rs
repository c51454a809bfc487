//! Archives that are damaged, or that cannot be read here.

use super::*;

#[test]
fn what_is_no_archive_is_refused() {
    for bytes in [b"".as_slice(), b"PK", b"PK\x05\x06", b"no archive at all", b"\x1f\x8b\x08\0gzip", &vec![0; 70_000]] {
        assert!(refusal(bytes).contains("is no zip archive"), "{}", refusal(bytes));
    }
    assert!(refusal(&Raw::new(&[]).end()).contains("SKILL.md file is required"));
}

#[test]
fn an_archive_that_ends_too_early_is_refused_wherever_it_ends() {
    let bytes = archive(&[skill_md(), deflated("a/b.txt", "some words ".repeat(20)), stored("c.bin", [7; 300])]);
    assert_eq!(names(&bytes).len(), 3);
    for end in 0..bytes.len() {
        assert!(refusal(&bytes[..end]).contains("is no zip archive"), "{end}: {}", refusal(&bytes[..end]));
    }
}

#[test]
fn files_that_cannot_be_read_here_are_named() {
    for (entry, why) in [
        (Entry { flags: raw::ENCRYPTED, ..stored("a.txt", "x") }, "'a.txt' is encrypted"),
        (Entry { flags: raw::ENCRYPTED | raw::DESCRIPTOR, ..deflated("a.txt", "x") }, "'a.txt' is encrypted"),
        (Entry { method: 14, ..deflated("a.txt", "x") }, "'a.txt' is packed in a way"),
        (Entry { method: 93, ..deflated("a.txt", "x") }, "'a.txt' is packed in a way"),
        (Entry { method: 99, ..deflated("a.txt", "x") }, "'a.txt' is packed in a way"),
        (Entry { method: u16::MAX, ..deflated("a.txt", "x") }, "'a.txt' is packed in a way"),
        (Entry { method: 0, ..deflated("a.txt", "some words") }, "'a.txt' is broken"),
        (Entry { method: raw::DEFLATED, ..stored("a.txt", "some words") }, "'a.txt' is broken"),
    ] {
        let said = refusal(&with(entry));
        assert!(said.contains(why), "{said}");
    }
    // It may be the SKILL.md itself.
    for entry in [Entry { crc: 7, ..skill_md() }, Entry { size: 3, ..deflated("skill.md", HEAD) }] {
        assert!(refusal(&archive(&[entry])).contains("'SKILL.md' is broken"));
    }
}

#[test]
fn files_that_are_not_what_the_list_says_are_broken() {
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
        Entry { packed_size: good.packed_size - 1, ..good.clone() },
        Entry { packed_size: 0, ..good.clone() },
        Entry { packed_size: flat.packed_size - 1, ..flat.clone() },
        Entry { packed_size: flat.packed_size + 1, ..flat.clone() },
        Entry { packed_size: 1 << 30, ..flat.clone() },
        Entry { packed: vec![0xff; 50], packed_size: 50, ..good.clone() },
        Entry { packed: Vec::new(), packed_size: 0, ..good.clone() },
    ] {
        let said = refusal(&with(entry.clone()));
        assert!(said.contains("'a.txt' is broken"), "{} {}: {said}", entry.size, entry.packed_size);
    }
}

#[test]
fn what_lies_elsewhere_than_the_list_says_is_refused() {
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
        let said = refusal(&with(entry));
        assert!(said.contains("is no zip archive"), "{said}");
    }
}

#[test]
fn an_end_that_lies_is_refused() {
    let raw = || Raw::new(&[skill_md(), stored("a.txt", "x")]);
    let (size, offset) = (raw().size, raw().offset);
    for (what, bytes) in [
        ("more files", Raw { count: 3, ..raw() }.end()),
        ("very many files", Raw { count: u16::MAX, ..raw() }.end()),
        ("a later list", Raw { offset: offset + size, ..raw() }.end()),
        ("a list far away", Raw { offset: 1 << 30, ..raw() }.end()),
        ("a list without an end", Raw { size: u32::MAX - 1, ..raw() }.end()),
        ("nothing but a marker", Raw { count: u16::MAX, size: u32::MAX, offset: u32::MAX, ..raw() }.end()),
        ("more files, large", raw().end_64(3)),
        ("2^32 files, large", raw().end_64(1 << 32)),
        ("2^64 files, large", raw().end_64(u64::MAX)),
        ("2^63 bytes, large", Raw { offset: u32::MAX, ..raw() }.end_64(2)),
    ] {
        let said = refusal(&bytes);
        assert!(said.contains("is no zip archive") || said.contains("more than the 20 files"), "{what}: {said}");
    }
}

#[test]
fn of_several_ends_the_last_one_counts() {
    let with_comment = |comment: &[u8]| {
        let raw = Raw::new(&[skill_md(), stored("a.txt", "x")]);
        Raw { comment: comment.to_vec(), ..raw }.end()
    };
    // An archive behind an archive: programs that read from the end find the second one, and so does this one.
    let other = archive(&[stored("SKILL.md", "name: other\ndescription: b\n")]);
    assert_eq!(names(&with_comment(&other)), ["SKILL.md"]);
    let end = Raw { offset: 0, size: 0, ..Raw::new(&[]) }.end();
    assert!(refusal(&with_comment(&end)).contains("SKILL.md file is required"));
    for comment in [b"PK\x05\x06".repeat(100), b"some words PK\x05\x06 and more of them".to_vec()] {
        assert!(refusal(&with_comment(&comment)).contains("is no zip archive"));
    }
}
