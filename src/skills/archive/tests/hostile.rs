//! Archives that want to be expensive.

use std::cell::Cell;

use super::*;

/// Counts what is read of an archive.
struct Counted<'a> {
    bytes: Cursor<&'a [u8]>,
    read: &'a Cell<usize>,
}

impl Read for Counted<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.bytes.read(into)?;
        self.read.set(self.read.get() + read);
        Ok(read)
    }
}

impl Seek for Counted<'_> {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        self.bytes.seek(to)
    }
}

/// Why an archive is refused, which it is before more is read than it has, but for its end and small parts that are read twice.
#[track_caller]
fn refused_at_once(bytes: &[u8]) -> String {
    let bounds = Bounds { files: 1000, unpacked: 50 << 20, file: 16 << 20, skill_md: 1 << 20 };
    let read = Cell::new(0);
    let said = refusal_of(bounds, Counted { bytes: Cursor::new(bytes), read: &read });
    assert!(read.get() < bytes.len() + (256 << 10), "{} of {} bytes were read: {said}", read.get(), bytes.len());
    said
}

#[test]
fn more_than_the_bounds_is_told_before_anything_is_unpacked() {
    let (at, over) = (vec![0; 50_000], vec![0; 50_001]);
    assert_eq!(names(&with(deflated("a", &at))).len(), 2);
    assert_eq!(refusal(&with(deflated("a", &over))), "413 file: in it 'a' is larger than the maximum of 50000 bytes");
    let many: Vec<_> = (0..3).map(|n| deflated(format!("{n}"), &at[..33_333])).collect();
    let said = refusal(&archive(&[many, vec![skill_md()]].concat()));
    assert_eq!(said, "413 file: its files are larger than the maximum of 100000 bytes together");
    let head = format!("{HEAD}{}", "x".repeat(10_000));
    let said = refusal(&archive(&[deflated("SKILL.md", &head)]));
    assert_eq!(said, "413 file: in it 'SKILL.md' is larger than the maximum of 10000 bytes");
    // As one file among others it may be as large as they.
    assert_eq!(names(&archive(&[skill_md(), deflated("a/SKILL.md", &head)])).len(), 2);
    let huge = [b"\x01\0\x10\0".as_slice(), &[0xff; 16]].concat();
    let huge = Entry { extra: huge, size: u32::MAX, packed_size: u32::MAX, ..stored("a", "") };
    assert!(refusal(&with(huge.clone())).starts_with("413 file: in it 'a' is larger"));
    assert!(refusal(&archive(&[Entry { name: b"SKILL.md".to_vec(), ..huge }])).starts_with("413"));
}

#[test]
fn as_many_files_as_may_be_are_read_and_one_more_is_not() {
    let files = |count: usize| {
        let more = (1..count).map(|n| stored(format!("{n}"), ""));
        archive(&std::iter::once(skill_md()).chain(more).collect::<Vec<_>>())
    };
    assert_eq!(names(&files(20)).len(), 20);
    assert!(refusal(&files(21)).contains("has more than the 20 files"));
    // Folders are none, within reason.
    let folders = |count: usize| {
        let more = (1..count).map(|n| stored(format!("{n}/"), ""));
        archive(&std::iter::once(skill_md()).chain(more).collect::<Vec<_>>())
    };
    assert_eq!(names(&folders(200)).len(), 1);
    assert!(refusal(&folders(201)).contains("has more than the 20 files"));
}

#[test]
fn seventy_thousand_entries_are_refused_at_once() {
    let mut entries = vec![skill_md()];
    entries.extend((0..70_000).map(|n| stored(format!("{n}"), "")));
    assert!(refused_at_once(&Raw::new(&entries).end_64(70_001)).contains("has more than the 1000 files"));
    // Programs that cannot count so far take the rest of the number.
    let said = refused_at_once(&Raw { count: 4465, ..Raw::new(&entries) }.end());
    assert!(said.contains("is no zip archive") || said.contains("has more than the 1000 files"), "{said}");
}

#[test]
fn a_small_bomb_costs_nothing() {
    // Ten megabytes of nothing, packed once, and as many files as fit into 42 kB, all with the same bytes.
    let zeros = deflated("", vec![0; 10 << 20]);
    let honest: Vec<_> = (0..4).map(|n| Entry { name: format!("{n}").into_bytes(), ..zeros.clone() }).collect();
    let bomb = archive(&[honest.clone(), honest, vec![skill_md()]].concat());
    assert!(refused_at_once(&bomb).starts_with("413 file: its files are larger than the maximum of 52428800"));
    // It says that its files are small.
    let lie = Entry { name: b"a".to_vec(), size: 10, ..zeros.clone() };
    assert!(refused_at_once(&with(lie)).contains("'a' is broken"));
    let skill_md = Entry { name: b"SKILL.md".to_vec(), size: 10, ..zeros };
    assert!(refused_at_once(&archive(&[skill_md])).contains("'SKILL.md' is broken"));
}

/// Files whose packed bytes are the files behind them: blocks that are not compressed, with a header in each.
#[test]
fn files_that_lie_in_each_other_are_refused() {
    let inner = deflated("0", vec![0; 1 << 20]);
    let mut packed = inner.packed.clone();
    let mut entries = vec![inner.clone()];
    for n in 1..60 {
        let before = &entries[n - 1];
        let header = archive(std::slice::from_ref(before));
        let header = &header[..30 + before.name.len()];
        let length = u16::try_from(header.len()).unwrap();
        packed = [&[0], &length.to_le_bytes()[..], &(!length).to_le_bytes(), header, &packed].concat();
        let content = [header, &vec![0; 1 << 20]].concat();
        let whole = stored(format!("{n}"), content);
        let packed_size = u32::try_from(packed.len()).unwrap();
        entries.push(Entry { method: raw::DEFLATED, packed: Vec::new(), packed_size, ..whole });
    }
    entries.reverse();
    entries[0].packed.clone_from(&packed);
    let mut at = 0;
    for entry in &mut entries {
        entry.offset = Some(at);
        at += 35 + u32::try_from(entry.name.len()).unwrap();
    }
    entries.push(skill_md());
    let said = refused_at_once(&archive(&entries));
    assert!(said.contains("'58' lies where another one does"), "{said}");
}

#[test]
fn a_list_full_of_little_fields_is_not_kept() {
    // Each field of four bytes becomes many in memory.
    let extra = b"xx\0\0".repeat(16_000);
    let entries = (0..100).map(|n| Entry { extra: extra.clone(), ..stored(format!("{n}"), "") });
    let bytes = archive(&std::iter::once(skill_md()).chain(entries).collect::<Vec<_>>());
    assert!(refused_at_once(&bytes).contains("its list of contents is too long"));
}

#[test]
fn an_archive_that_is_all_ends_is_refused_at_once() {
    for (magic, size) in [(b"PK\x06\x06", 2 << 20), (b"PK\x01\x02", 20 << 20), (b"PK\x05\x06", 20 << 20)] {
        let body = magic.repeat(size / 4);
        // As many ends as are looked for, each with a locator for the large kind, which points to the beginning.
        let locator = [b"PK\x06\x07\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0".as_slice()].concat();
        let end = [locator.as_slice(), b"PK\x05\x06\0\0\0\0\xff\xff\xff\xff\0\0\0\0\0\0\0\0\0\0"].concat();
        let bytes = [body, end.repeat(1500)].concat();
        assert!(refused_at_once(&bytes).contains("is no zip archive"));
    }
}

#[test]
fn one_header_for_thousands_of_folders_is_read_once() {
    let fat = Entry { extra: b"xx\0\0".repeat(16_000), ..stored("a/", "") };
    let thin = Entry { extra: Vec::new(), offset: Some(0), ..fat.clone() };
    let (places, list) = (Raw::new(&[fat]), Raw::new(&vec![thin; 9_990]));
    let listed = &list.bytes[usize::try_from(list.offset).unwrap()..];
    let bytes = [&places.bytes[..usize::try_from(places.offset).unwrap()], listed].concat();
    let said = refused_at_once(&Raw { bytes, offset: places.offset, ..list }.end());
    assert!(said.contains("'a/' lies where another one does"), "{said}");
}

#[test]
fn each_file_may_lie_anywhere_as_long_as_it_is_alone_there() {
    let text = |name: &str| deflated(name, "some words ".repeat(9));
    let sound = Raw::new(&[skill_md(), text("a"), text("b")]);
    let (first, second) = (30 + 8 + HEAD.len(), 31 + text("a").packed.len());
    let at = |place: usize| Some(u32::try_from(place).unwrap());
    // The list the other way round.
    let back = [
        Entry { offset: at(first + second), ..text("b") },
        Entry { offset: at(first), ..text("a") },
        Entry { offset: Some(0), ..skill_md() },
    ];
    let list = Raw::new(&back);
    let listed = &list.bytes[usize::try_from(list.offset).unwrap()..];
    let bytes = [&sound.bytes[..usize::try_from(sound.offset).unwrap()], listed].concat();
    assert_eq!(names(&Raw { bytes, offset: sound.offset, ..list }.end()), ["b", "a", "SKILL.md"]);
    // The first one says that it reaches into the second.
    let long = Entry { packed_size: text("a").packed_size + 40, ..text("a") };
    assert!(refusal(&archive(&[skill_md(), long, text("b")])).contains("'b' lies where another one does"));
}
