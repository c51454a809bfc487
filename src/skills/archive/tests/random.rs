//! What must hold for every archive there can be.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// Whatever is read keeps within its bounds, and whatever is refused is the sender's error.
fn check(bytes: &[u8]) -> Result<(), TestCaseError> {
    let files = match read(bytes) {
        Ok(files) => files,
        Err(Error::BadRequest { .. } | Error::PayloadTooLarge(_)) => return Ok(()),
        Err(other) => return Err(TestCaseError::fail(format!("{other:?}"))),
    };
    prop_assert!(files.len() <= BOUNDS.files);
    prop_assert!(files.iter().all(|(_, content)| content.len() as u64 <= BOUNDS.file));
    prop_assert!(files.iter().map(|(_, content)| content.len() as u64).sum::<u64>() <= BOUNDS.unpacked);
    let mut known = BTreeSet::new();
    for (name, _) in &files {
        prop_assert!(!name.starts_with('/') && !name.contains('\\'), "{:?}", name);
        prop_assert!(!name.chars().any(char::is_control), "{:?}", name);
        prop_assert!(name.split('/').all(|segment| !matches!(segment, "" | "." | "..")), "{:?}", name);
        prop_assert!(known.insert(name.to_lowercase()), "{:?}", name);
    }
    Ok(())
}

fn sound() -> Vec<u8> {
    let large = stored("c/large", [7; 100]);
    let sizes = [u64::from(large.size); 2].map(u64::to_le_bytes).concat();
    let extra = [b"\x01\0\x10\0".to_vec(), sizes].concat();
    let entries = [
        skill_md(),
        deflated("a/b.txt", "some words ".repeat(20)),
        Entry { extra, size: u32::MAX, packed_size: u32::MAX, ..large },
        Entry { flags: raw::DESCRIPTOR | raw::UTF8, made_by: raw::UNIX, mode: 0o100_755, ..deflated("ü", "x") },
    ];
    Raw { comment: b"comment".to_vec(), ..Raw::new(&entries) }.end()
}

/// Bytes that mean something somewhere.
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
    fn a_sound_archive_with_damage_is_read_or_refused(
        damage in prop::collection::vec((any::<prop::sample::Index>(), byte()), 1..6),
        cut in any::<prop::sample::Index>(),
        is_cut in prop::bool::weighted(0.1),
    ) {
        let mut bytes = sound();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if is_cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        check(&bytes)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        check(&bytes)?;
        let end = b"PK\x05\x06\0\0\0\0\x01\0\x01\0\x2e\0\0\0\0\0\0\0\0\0";
        check(&[b"PK\x01\x02".as_slice(), &bytes, end].concat())?;
    }

    #[test]
    fn any_names_are_read_or_refused(
        names in prop::collection::vec(prop::collection::vec(segment(), 1..4), 0..5),
        made_by in prop_oneof![Just(20), Just(raw::UNIX)],
        mode in prop_oneof![Just(0), Just(0o100_644), 0_u32..=0xffff],
    ) {
        let entries = names.iter().map(|segments| Entry { made_by, mode, ..stored(segments.join("/"), "") });
        check(&archive(&std::iter::once(skill_md()).chain(entries).collect::<Vec<_>>()))?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn what_was_put_in_comes_out(
        contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..2000), 0..10),
        at in any::<prop::sample::Index>(),
    ) {
        let mut files: Files = contents.into_iter().zip(0..).map(|(content, n)| (format!("d{}/f{n}", n % 3), content)).collect();
        files.insert(at.index(files.len() + 1), ("SKILL.md".into(), HEAD.into()));
        prop_assert_eq!(read(&written(&files)).unwrap(), files);
    }
}
