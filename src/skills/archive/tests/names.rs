//! Unsafe, colliding and invalid names.

use super::*;

#[track_caller]
fn assert_rejected(name: impl AsRef<[u8]>, reason: &str) {
    let error = error_of(&archive_with(stored(&name, "x")));
    assert!(error.contains(reason), "{}: {error}", name.as_ref().escape_ascii());
    assert!(!error.chars().any(char::is_control), "{error:?}");
}

#[test]
fn names_that_escape_the_root_are_rejected() {
    for name in ["../a", "a/../../b", "a/..", "..", "./../a", "a/b/../c"] {
        assert_rejected(name, &format!("'{name}' must not contain `..`"));
    }
    for name in ["/etc/passwd", "//server/share", "/", "C:/Windows/a", "c:", "C:a", "C:/../a"] {
        // A name with a trailing slash is a directory, which is ignored.
        if name != "/" {
            assert_rejected(name, &format!("'{name}' is an absolute path"));
        }
    }
    for name in ["..\\a", "a\\b", "\\\\server\\a", "C:\\a", "a\\..\\b"] {
        assert_rejected(name, "has a backslash");
    }
    for name in ["a/.../b", "a..b/c", "./C:/a"] {
        assert_rejected(name, &format!("entry '{}'", name.trim_start_matches("./")));
    }
}

#[test]
fn names_with_invisible_characters_are_rejected() {
    for (name, escaped) in [
        ("a\0b", "a\\0b"),
        ("a\nb", "a\\nb"),
        ("a\x1b[2J", "a\\u{1b}[2J"),
        ("a\u{7f}", "a\\u{7f}"),
        ("dir\t/a", "dir\\t/a"),
        ("a\u{85}", "a\\u{85}"),
    ] {
        assert_rejected(name, &format!("'{escaped}' has control characters"));
    }
    assert_rejected("a.txt ", "white space");
    assert_rejected("n".repeat(1025), "1024");
    assert_rejected([b"d/".repeat(600), b"a".to_vec()].concat(), "1024");
    for name in ["", ".", "./."] {
        assert_rejected(name, "has no name");
    }
}

#[test]
fn names_are_decoded_from_their_charset() {
    let name = |entry: Entry| names(&archive_with(entry)).pop().unwrap();
    assert_eq!(name(stored("größe/寿司.txt", "x")), "größe/寿司.txt", "UTF-8 without the flag");
    assert_eq!(name(Entry { flags: raw::UTF8, ..stored("größe/寿司.txt", "x") }), "größe/寿司.txt");
    assert_eq!(name(stored(b"gr\x94\xe1e.txt", "x")), "größe.txt", "code page 437");
}

#[test]
fn a_unicode_path_field_must_match_the_name() {
    // Some programs use this name, some the one in the header.
    let other = |name: &str| {
        let crc = stored("", "a.txt").crc.to_le_bytes();
        let field = [&[1], crc.as_slice(), name.as_bytes()].concat();
        let length = u16::try_from(field.len()).unwrap().to_le_bytes();
        archive_with(Entry { extra: [b"up", length.as_slice(), &field].concat(), ..stored("a.txt", "x") })
    };
    for name in ["../a.txt", "b.txt", "SKILL.md", "a/a.txt", "a.txt\n"] {
        assert!(error_of(&other(name)).contains("not a readable zip archive"), "{name}: {}", error_of(&other(name)));
    }
    // A name that the header cannot represent is accepted.
    assert_eq!(names(&other("ä.txt")), ["SKILL.md", "ä.txt"]);
}

#[test]
fn directories_and_macos_metadata_are_ignored() {
    let junk = ["a/", "../", "__MACOSX/a", "a/__MACOSX/b", "._a", "a/._b", ".DS_Store", "a/.DS_Store"];
    let mut entries: Vec<_> = junk.iter().map(|name| stored(name, "")).collect();
    entries.extend([skill_md(), stored("a/.hidden", "x"), stored("a//b/./c", "x")]);
    assert_eq!(names(&archive(&entries)), ["SKILL.md", "a/.hidden", "a/b/c"]);
}

#[test]
fn colliding_names_are_rejected() {
    for (one, other) in [
        ("a.txt", "a.txt"),
        ("a.txt", "A.TXT"),
        ("a/b", "A/B"),
        ("a/b", "a//b"),
        ("a", "./a"),
        ("STRAẞE", "straße"),
        ("Ω", "ω"),
    ] {
        let error = error_of(&archive(&[skill_md(), stored(one, "1"), stored(other, "2")]));
        assert!(error.contains("duplicates another entry"), "{one} {other}: {error}");
    }
    for (one, other) in [("a", "a/b"), ("A/b", "a"), ("a/b/c", "a/B")] {
        let error = error_of(&archive(&[skill_md(), stored(one, "1"), stored(other, "2")]));
        assert!(error.contains("is both a file and a directory"), "{one} {other}: {error}");
    }
    let distinct = [skill_md(), stored("a", ""), stored("a.b", ""), stored("a-b/c", ""), stored("a0", "")];
    assert_eq!(names(&archive(&distinct)).len(), 5);
    // A common directory must be equal in case.
    let roots = [stored("s/SKILL.md", FRONT_MATTER), stored("S/a", "")];
    assert_eq!(names(&archive(&roots)), ["s/SKILL.md", "S/a"]);
}

#[test]
fn links_and_special_files_are_rejected() {
    for mode in [0o120_777, 0o020_666, 0o060_666, 0o010_644, 0o140_755, 0o040_755] {
        let entry = Entry { version_made_by: raw::UNIX, mode, ..stored("a/link", "/etc/passwd") };
        let error = error_of(&archive_with(entry));
        assert!(error.contains("'a/link' is not a regular file"), "{mode:o}: {error}");
    }
    // The mode has no meaning on systems other than Unix.
    assert!(extract(&archive_with(Entry { mode: 0o120_777, ..stored("a/link", "/etc/passwd") })).is_ok());
}
