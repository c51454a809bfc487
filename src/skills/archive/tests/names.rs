//! Names that lead elsewhere, meet each other, or cannot be written down.

use super::*;

#[track_caller]
fn assert_refused(name: impl AsRef<[u8]>, why: &str) {
    let said = refusal(&with(stored(&name, "x")));
    assert!(said.contains(why), "{}: {said}", name.as_ref().escape_ascii());
    assert!(!said.chars().any(char::is_control), "{said:?}");
}

#[test]
fn names_that_lead_out_are_refused_and_named() {
    for name in ["../a", "a/../../b", "a/..", "..", "./../a", "a/b/../c"] {
        assert_refused(name, &format!("'{name}' leads out"));
    }
    for name in ["/etc/passwd", "//server/share", "/", "C:/Windows/a", "c:", "C:a", "C:/../a"] {
        // What ends in a slash is a folder and left out.
        if name != "/" {
            assert_refused(name, &format!("'{name}' is an absolute path"));
        }
    }
    for name in ["..\\a", "a\\b", "\\\\server\\a", "C:\\a", "a\\..\\b"] {
        assert_refused(name, "has a backslash");
    }
    for name in ["a/.../b", "a..b/c", "./C:/a"] {
        assert_refused(name, &format!("in it '{}'", name.trim_start_matches("./")));
    }
}

#[test]
fn names_with_signs_that_nobody_sees_are_refused() {
    for (name, shown) in [
        ("a\0b", "a\\0b"),
        ("a\nb", "a\\nb"),
        ("a\x1b[2J", "a\\u{1b}[2J"),
        ("a\u{7f}", "a\\u{7f}"),
        ("dir\t/a", "dir\\t/a"),
        ("a\u{85}", "a\\u{85}"),
    ] {
        assert_refused(name, &format!("'{shown}' has control characters"));
    }
    assert_refused("a.txt ", "white space");
    assert_refused("n".repeat(1025), "1024");
    assert_refused([b"d/".repeat(600), b"a".to_vec()].concat(), "1024");
    for name in ["", ".", "./."] {
        assert_refused(name, "has no name");
    }
}

#[test]
fn a_name_is_read_in_its_charset() {
    let name = |entry: Entry| names(&with(entry)).pop().unwrap();
    assert_eq!(name(stored("größe/寿司.txt", "x")), "größe/寿司.txt", "UTF-8 that does not say so");
    assert_eq!(name(Entry { flags: raw::UTF8, ..stored("größe/寿司.txt", "x") }), "größe/寿司.txt");
    assert_eq!(name(stored(b"gr\x94\xe1e.txt", "x")), "größe.txt", "the charset that ZIP began with");
}

#[test]
fn a_second_name_in_a_field_is_looked_at_as_well() {
    // Some programs take this one, some the other.
    let other = |name: &str| {
        let crc = stored("", "a.txt").crc.to_le_bytes();
        let field = [&[1], crc.as_slice(), name.as_bytes()].concat();
        let length = u16::try_from(field.len()).unwrap().to_le_bytes();
        with(Entry { extra: [b"up", length.as_slice(), &field].concat(), ..stored("a.txt", "x") })
    };
    for name in ["../a.txt", "b.txt", "SKILL.md", "a/a.txt", "a.txt\n"] {
        assert!(refusal(&other(name)).contains("is no zip archive"), "{name}: {}", refusal(&other(name)));
    }
    // It is there for what the first one cannot say.
    assert_eq!(names(&other("ä.txt")), ["SKILL.md", "ä.txt"]);
}

#[test]
fn folders_and_what_packers_add_are_left_out() {
    let junk = ["a/", "../", "__MACOSX/a", "a/__MACOSX/b", "._a", "a/._b", ".DS_Store", "a/.DS_Store"];
    let mut entries: Vec<_> = junk.iter().map(|name| stored(name, "")).collect();
    entries.extend([skill_md(), stored("a/.hidden", "x"), stored("a//b/./c", "x")]);
    assert_eq!(names(&archive(&entries)), ["SKILL.md", "a/.hidden", "a/b/c"]);
}

#[test]
fn files_that_would_meet_are_refused() {
    for (one, other) in [
        ("a.txt", "a.txt"),
        ("a.txt", "A.TXT"),
        ("a/b", "A/B"),
        ("a/b", "a//b"),
        ("a", "./a"),
        ("STRAẞE", "straße"),
        ("Ω", "ω"),
    ] {
        let said = refusal(&archive(&[skill_md(), stored(one, "1"), stored(other, "2")]));
        assert!(said.contains("stands in it twice"), "{one} {other}: {said}");
    }
    for (one, other) in [("a", "a/b"), ("A/b", "a"), ("a/b/c", "a/B")] {
        let said = refusal(&archive(&[skill_md(), stored(one, "1"), stored(other, "2")]));
        assert!(said.contains("is a file and a folder"), "{one} {other}: {said}");
    }
    let apart = [skill_md(), stored("a", ""), stored("a.b", ""), stored("a-b/c", ""), stored("a0", "")];
    assert_eq!(names(&archive(&apart)).len(), 5);
    // The folder that everything lies in is one only in the same case.
    let roots = [stored("s/SKILL.md", HEAD), stored("S/a", "")];
    assert_eq!(names(&archive(&roots)), ["s/SKILL.md", "S/a"]);
}

#[test]
fn what_is_no_file_is_refused() {
    for kind in [0o120_777, 0o020_666, 0o060_666, 0o010_644, 0o140_755, 0o040_755] {
        let entry = Entry { made_by: raw::UNIX, mode: kind, ..stored("a/link", "/etc/passwd") };
        let said = refusal(&with(entry));
        assert!(said.contains("'a/link' is a link or another thing that is no file"), "{kind:o}: {said}");
    }
    // Systems that have no links of this kind.
    assert!(read(&with(Entry { mode: 0o120_777, ..stored("a/link", "/etc/passwd") })).is_ok());
}
