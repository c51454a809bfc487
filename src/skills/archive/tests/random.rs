//! Properties of all archives, valid or not.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// Checks that extracted files respect the limits and have safe names, and that errors are client errors.
fn check_archive(bytes: &[u8]) -> Result<(), TestCaseError> {
    let files = match extract(bytes) {
        Ok(files) => files,
        Err(Error::BadRequest { .. } | Error::PayloadTooLarge(_)) => return Ok(()),
        Err(other) => return Err(TestCaseError::fail(format!("{other:?}"))),
    };
    prop_assert!(files.len() <= LIMITS.max_files);
    prop_assert!(files.iter().all(|(_, content)| content.len() as u64 <= LIMITS.max_file_bytes));
    prop_assert!(files.iter().map(|(_, content)| content.len() as u64).sum::<u64>() <= LIMITS.max_unpacked_bytes);
    let mut names = BTreeSet::new();
    for (name, _) in &files {
        prop_assert!(!name.starts_with('/') && !name.contains('\\'), "{:?}", name);
        prop_assert!(!name.chars().any(char::is_control), "{:?}", name);
        prop_assert!(name.split('/').all(|segment| !matches!(segment, "" | "." | "..")), "{:?}", name);
        prop_assert!(names.insert(name.to_lowercase()), "{:?}", name);
    }
    Ok(())
}

fn valid_archive() -> Vec<u8> {
    let zip64 = stored("c/large", [7; 100]);
    let sizes = [u64::from(zip64.size); 2].map(u64::to_le_bytes).concat();
    let extra = [b"\x01\0\x10\0".to_vec(), sizes].concat();
    let entries = [
        skill_md(),
        deflated("a/b.txt", "some words ".repeat(20)),
        Entry { extra, size: u32::MAX, compressed_size: u32::MAX, ..zip64 },
        Entry {
            flags: raw::DATA_DESCRIPTOR | raw::UTF8,
            version_made_by: raw::UNIX,
            mode: 0o100_755,
            ..deflated("ü", "x")
        },
    ];
    RawArchive { comment: b"comment".to_vec(), ..RawArchive::new(&entries) }.finish()
}

/// Bytes with a special meaning in some field.
fn byte() -> impl Strategy<Value = u8> {
    prop_oneof![any::<u8>(), Just(0), Just(0xff), Just(1), Just(8), Just(b'.'), Just(b'/')]
}

fn segment() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-cA-C]{1,2}",
        Just("..".into()),
        Just(".".into()),
        Just(String::new()),
        "\\PC{1,3}",
        "[\0-\u{ff}]{1,2}"
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6000, ..ProptestConfig::default() })]

    #[test]
    fn corrupt_archives_are_extracted_or_rejected(
        changes in prop::collection::vec((any::<prop::sample::Index>(), byte()), 1..6),
        cut in any::<prop::sample::Index>(),
        truncated in prop::bool::weighted(0.1),
    ) {
        let mut bytes = valid_archive();
        for (index, byte) in changes {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        if truncated {
            bytes.truncate(cut.index(bytes.len()));
        }
        check_archive(&bytes)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_are_extracted_or_rejected(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        check_archive(&bytes)?;
        let end = b"PK\x05\x06\0\0\0\0\x01\0\x01\0\x2e\0\0\0\0\0\0\0\0\0";
        check_archive(&[b"PK\x01\x02".as_slice(), &bytes, end].concat())?;
    }

    #[test]
    fn arbitrary_names_are_extracted_or_rejected(
        names in prop::collection::vec(prop::collection::vec(segment(), 1..4), 0..5),
        version_made_by in prop_oneof![Just(20), Just(raw::UNIX)],
        mode in prop_oneof![Just(0), Just(0o100_644), 0_u32..=0xffff],
    ) {
        let entries = names.iter().map(|segments| Entry { version_made_by, mode, ..stored(segments.join("/"), "") });
        check_archive(&archive(&std::iter::once(skill_md()).chain(entries).collect::<Vec<_>>()))?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn extraction_returns_the_archived_files(
        contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..2000), 0..10),
        position in any::<prop::sample::Index>(),
    ) {
        let mut files: Files = contents.into_iter().zip(0..).map(|(content, n)| (format!("d{}/f{n}", n % 3), content)).collect();
        files.insert(position.index(files.len() + 1), ("SKILL.md".into(), FRONT_MATTER.into()));
        prop_assert_eq!(extract(&zip_archive(&files)).unwrap(), files);
    }
}
