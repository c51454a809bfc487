//! Archives that packers write, and those that nobody should.

use std::io::Cursor;

use super::*;

mod broken;
mod hostile;
mod names;
mod random;
#[expect(unreachable_pub, reason = "shared with the integration tests")]
#[path = "../../../tests/it/support/zip.rs"]
mod raw;

use raw::{Entry, Raw, archive, deflated, stored, written};

const BOUNDS: Bounds = Bounds { files: 20, unpacked: 100_000, file: 50_000, skill_md: 10_000 };
const HEAD: &str = "---\nname: a\ndescription: b\n---\n";

type Files = Vec<(String, Vec<u8>)>;

/// Reads an archive as an upload does.
fn read_within(bounds: Bounds, reader: impl Read + Seek) -> Result<Files> {
    let mut archive = Archive::open(reader, bounds)?;
    archive.front_matter()?;
    let mut files = Vec::new();
    let spool_from_reader = |file: &mut dyn Read| {
        let mut content = Vec::new();
        file.read_to_end(&mut content).map(|_| content)
    };
    archive.unpack(spool_from_reader, |at, content| {
        files.push((at.relative(), content));
        Ok(())
    })?;
    Ok(files)
}

fn read(bytes: &[u8]) -> Result<Files> {
    read_within(BOUNDS, Cursor::new(bytes))
}

#[track_caller]
fn names(bytes: &[u8]) -> Vec<String> {
    read(bytes).unwrap().into_iter().map(|(name, _)| name).collect()
}

/// Why an archive is refused; anything but 400 and 413 fails.
#[track_caller]
fn refusal_of(bounds: Bounds, reader: impl Read + Seek) -> String {
    match read_within(bounds, reader) {
        Err(Error::BadRequest { detail: Some(detail), .. }) => detail,
        Err(Error::PayloadTooLarge(why)) => format!("413 {why}"),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn refusal(bytes: &[u8]) -> String {
    refusal_of(BOUNDS, Cursor::new(bytes))
}

/// A SKILL.md that says what it must.
fn skill_md() -> Entry {
    stored("SKILL.md", HEAD)
}

/// An archive of a skill with one more file.
fn with(entry: Entry) -> Vec<u8> {
    archive(&[skill_md(), entry])
}

#[test]
fn what_a_packer_packs_comes_out_in_its_order() {
    let files = [("z.txt", b"last comes first".as_slice()), ("SKILL.md", HEAD.as_bytes()), ("empty", b"")];
    let packed = written(&[files[0], files[1], files[2], ("b/c.bin", &vec![0; 40_000])]);
    let read = read(&packed).unwrap();
    assert_eq!(read[..3], files.map(|(name, content)| (name.to_owned(), content.to_vec())));
    assert_eq!(read[3], ("b/c.bin".to_owned(), vec![0; 40_000]));
}

#[test]
fn every_way_to_write_a_sound_archive_is_read() {
    let content = "some words ".repeat(100);
    let described = Entry { flags: raw::DESCRIPTOR, ..deflated("b.txt", &content) };
    // Sizes that are told by a field for large files only.
    let large = |entry: Entry| {
        let sizes = [u64::from(entry.size), u64::from(entry.packed_size)].map(u64::to_le_bytes).concat();
        let extra = [b"\x01\0\x10\0".to_vec(), sizes].concat();
        Entry { extra, size: u32::MAX, packed_size: u32::MAX, ..entry }
    };
    let commented = Raw { comment: b"a comment".to_vec(), ..Raw::new(&[skill_md(), deflated("b.txt", &content)]) };
    for bytes in [
        with(stored("b.txt", &content)),
        with(deflated("b.txt", &content)),
        with(described),
        with(large(deflated("b.txt", &content))),
        with(Entry { comment: vec![b'c'; 1000], ..stored("b.txt", &content) }),
        with(Entry { made_by: raw::UNIX, mode: 0o100_644, ..stored("b.txt", &content) }),
        with(Entry { made_by: raw::UNIX, mode: 0o644, ..stored("b.txt", &content) }),
        commented.end(),
        Raw::new(&[skill_md(), stored("b.txt", &content)]).end_64(2),
    ] {
        let read = read(&bytes).unwrap();
        assert_eq!(read[1], ("b.txt".to_owned(), content.clone().into_bytes()));
        assert_eq!(read.len(), 2);
    }
}

#[test]
fn an_archive_inside_is_a_file_like_others() {
    let inner = archive(&[skill_md(), stored("../inner", "x")]);
    assert_eq!(read(&with(stored("a.zip", &inner))).unwrap()[1], ("a.zip".to_owned(), inner.clone()));
    let inner = Raw { comment: vec![b' '; 100], ..Raw::new(&[skill_md()]) }.end();
    assert_eq!(names(&archive(&[stored("a.zip", inner), skill_md()])), ["a.zip", "SKILL.md"]);
}

#[test]
fn what_lies_before_and_after_an_archive_does_not_matter() {
    let bytes = with(stored("b.txt", "b"));
    let before = [b"#!/bin/sh\nPK\x01\x02 PK\x05\x06\n".as_slice(), &bytes].concat();
    assert_eq!(names(&before), ["SKILL.md", "b.txt"]);
    let after = [bytes.as_slice(), b"\r\n\r\nmore"].concat();
    assert_eq!(names(&after), ["SKILL.md", "b.txt"]);
}

#[test]
fn the_skill_md_nearest_to_the_root_counts_and_a_common_folder_is_dropped() {
    let head = |name: &str| format!("name: {name}\ndescription: b\n");
    let (deep, near) = (head("deep"), head("near"));
    for (files, name, first) in [
        (vec![("a/b/SKILL.md", &deep), ("a/skill.MD", &near)], "near", "b/SKILL.md"),
        (vec![("a/SKILL.md", &near), ("b/SKILL.md", &deep)], "near", "a/SKILL.md"),
        (vec![("a/SKILL.md", &near), ("__MACOSX/SKILL.md", &deep), ("a/._SKILL.md", &deep)], "near", "SKILL.md"),
        (vec![("./a/x/SKILL.md", &near)], "near", "x/SKILL.md"),
    ] {
        let bytes = written(&files);
        assert_eq!(names(&bytes)[0], first);
        let says = Archive::open(Cursor::new(bytes), BOUNDS).unwrap().front_matter().unwrap();
        assert_eq!(says.name.as_str(), name);
    }
    for missing in
        [vec![], vec![stored("README.md", HEAD)], vec![stored("SKILL.md/", "")], vec![stored("._SKILL.md", "")]]
    {
        assert!(refusal(&archive(&missing)).contains("SKILL.md file is required"));
    }
}
