//! Archives that common programs write, and hand-crafted ones.

use std::io::Cursor;

use super::*;

mod broken;
mod hostile;
mod names;
mod random;
#[expect(unreachable_pub, reason = "shared with the integration tests")]
#[path = "../../../tests/it/support/zip.rs"]
mod raw;

use raw::{Entry, RawArchive, archive, deflated, stored, zip_archive};

const LIMITS: ArchiveLimits =
    ArchiveLimits { max_files: 20, max_unpacked_bytes: 100_000, max_file_bytes: 50_000, max_skill_md_bytes: 10_000 };
const FRONT_MATTER: &str = "---\nname: a\ndescription: b\n---\n";

type Files = Vec<(String, Vec<u8>)>;

/// Extracts an archive as an upload does.
fn extract_with_limits(limits: ArchiveLimits, reader: impl Read + Seek) -> Result<Files> {
    let mut archive = SkillArchive::open(reader, limits)?;
    archive.front_matter()?;
    let mut files = Vec::new();
    let spool_from_reader = |file: &mut dyn Read| {
        let mut content = Vec::new();
        file.read_to_end(&mut content).map(|_| content)
    };
    archive.extract(spool_from_reader, |path, _, content| {
        files.push((path.relative(), content));
        Ok(())
    })?;
    Ok(files)
}

fn extract(bytes: &[u8]) -> Result<Files> {
    extract_with_limits(LIMITS, Cursor::new(bytes))
}

#[track_caller]
fn names(bytes: &[u8]) -> Vec<String> {
    extract(bytes).unwrap().into_iter().map(|(name, _)| name).collect()
}

/// Returns the text of the error for an archive, which must be a 400 or 413.
#[track_caller]
fn error_with_limits(limits: ArchiveLimits, reader: impl Read + Seek) -> String {
    match extract_with_limits(limits, reader) {
        Err(Error::BadRequest { detail: Some(detail), .. }) => detail,
        Err(Error::PayloadTooLarge(msg)) => format!("413 {msg}"),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn error_of(bytes: &[u8]) -> String {
    error_with_limits(LIMITS, Cursor::new(bytes))
}

/// A valid SKILL.md.
fn skill_md() -> Entry {
    stored("SKILL.md", FRONT_MATTER)
}

/// Returns an archive of a skill with an additional file.
fn archive_with(entry: Entry) -> Vec<u8> {
    archive(&[skill_md(), entry])
}

#[test]
fn files_are_extracted_in_the_order_of_the_archive() {
    let files = [("z.txt", b"last comes first".as_slice()), ("SKILL.md", FRONT_MATTER.as_bytes()), ("empty", b"")];
    let bytes = zip_archive(&[files[0], files[1], files[2], ("b/c.bin", &vec![0; 40_000])]);
    let extracted = extract(&bytes).unwrap();
    assert_eq!(extracted[..3], files.map(|(name, content)| (name.to_owned(), content.to_vec())));
    assert_eq!(extracted[3], ("b/c.bin".to_owned(), vec![0; 40_000]));
}

#[test]
fn all_variants_of_valid_archives_are_extracted() {
    let content = "some words ".repeat(100);
    let described = Entry { flags: raw::DATA_DESCRIPTOR, ..deflated("b.txt", &content) };
    // The sizes are in a ZIP64 extra field.
    let zip64 = |entry: Entry| {
        let sizes = [u64::from(entry.size), u64::from(entry.compressed_size)].map(u64::to_le_bytes).concat();
        let extra = [b"\x01\0\x10\0".to_vec(), sizes].concat();
        Entry { extra, size: u32::MAX, compressed_size: u32::MAX, ..entry }
    };
    let commented =
        RawArchive { comment: b"a comment".to_vec(), ..RawArchive::new(&[skill_md(), deflated("b.txt", &content)]) };
    for bytes in [
        archive_with(stored("b.txt", &content)),
        archive_with(deflated("b.txt", &content)),
        archive_with(described),
        archive_with(zip64(deflated("b.txt", &content))),
        archive_with(Entry { comment: vec![b'c'; 1000], ..stored("b.txt", &content) }),
        archive_with(Entry { version_made_by: raw::UNIX, mode: 0o100_644, ..stored("b.txt", &content) }),
        archive_with(Entry { version_made_by: raw::UNIX, mode: 0o644, ..stored("b.txt", &content) }),
        commented.finish(),
        RawArchive::new(&[skill_md(), stored("b.txt", &content)]).finish_zip64(2),
    ] {
        let extracted = extract(&bytes).unwrap();
        assert_eq!(extracted[1], ("b.txt".to_owned(), content.clone().into_bytes()));
        assert_eq!(extracted.len(), 2);
    }
}

#[test]
fn a_nested_archive_is_an_ordinary_file() {
    let inner = archive(&[skill_md(), stored("../inner", "x")]);
    assert_eq!(extract(&archive_with(stored("a.zip", &inner))).unwrap()[1], ("a.zip".to_owned(), inner.clone()));
    let inner = RawArchive { comment: vec![b' '; 100], ..RawArchive::new(&[skill_md()]) }.finish();
    assert_eq!(names(&archive(&[stored("a.zip", inner), skill_md()])), ["a.zip", "SKILL.md"]);
}

#[test]
fn data_before_and_after_an_archive_is_ignored() {
    let bytes = archive_with(stored("b.txt", "b"));
    let before = [b"#!/bin/sh\nPK\x01\x02 PK\x05\x06\n".as_slice(), &bytes].concat();
    assert_eq!(names(&before), ["SKILL.md", "b.txt"]);
    let after = [bytes.as_slice(), b"\r\n\r\nmore"].concat();
    assert_eq!(names(&after), ["SKILL.md", "b.txt"]);
}

#[test]
fn the_skill_md_nearest_to_the_root_counts_and_a_common_directory_is_removed() {
    let skill = |name: &str| format!("name: {name}\ndescription: b\n");
    let (deep, near) = (skill("deep"), skill("near"));
    for (files, name, first) in [
        (vec![("a/b/SKILL.md", &deep), ("a/skill.MD", &near)], "near", "b/SKILL.md"),
        (vec![("a/SKILL.md", &near), ("b/SKILL.md", &deep)], "near", "a/SKILL.md"),
        (vec![("a/SKILL.md", &near), ("__MACOSX/SKILL.md", &deep), ("a/._SKILL.md", &deep)], "near", "SKILL.md"),
        (vec![("./a/x/SKILL.md", &near)], "near", "x/SKILL.md"),
    ] {
        let bytes = zip_archive(&files);
        assert_eq!(names(&bytes)[0], first);
        let front_matter = SkillArchive::open(Cursor::new(bytes), LIMITS).unwrap().front_matter().unwrap();
        assert_eq!(front_matter.name.as_str(), name);
    }
    for missing in
        [vec![], vec![stored("README.md", FRONT_MATTER)], vec![stored("SKILL.md/", "")], vec![stored("._SKILL.md", "")]]
    {
        assert!(error_of(&archive(&missing)).contains("SKILL.md file is required"));
    }
}
