//! Tests of [`detect`] with whole files and with the start of longer ones.

use super::{MAX_HEAD_BYTES, detect, extension, is_active_content};

fn assert_types(cases: &[(&[u8], &str)]) {
    for (content, expected) in cases {
        assert_eq!(detect(content, true, "file"), *expected, "{}", content.escape_ascii());
    }
}

/// Returns the start of a long file, in which `text` is repeated after `begin`.
fn start_of_long_file(begin: &[u8], text: &[u8]) -> Vec<u8> {
    let body = text.iter().cycle().copied();
    begin.iter().copied().chain(body).take(MAX_HEAD_BYTES).collect()
}

#[test]
fn extension_is_the_lowercased_suffix_of_the_last_element() {
    let cases = [
        ("notes.md", ".md"),
        ("A.TXT", ".txt"),
        ("a.tar.gz", ".gz"),
        (".gitignore", ".gitignore"),
        ("Makefile", ""),
        ("dir.d/file", ""),
        ("dir/inner/b.txt", ".txt"),
        ("ends.", "."),
        ("", ""),
    ];
    for (filename, expected) in cases {
        assert_eq!(extension(filename), expected, "{filename}");
    }
}

#[test]
fn plain_text_is_refined_by_extension_and_keeps_its_charset() {
    let types = [
        ("text/markdown", "md markdown"),
        ("text/yaml", "yaml yml"),
        ("text/csv", "csv"),
        ("application/json", "json"),
        ("application/xml", "xml"),
        ("text/html", "html htm"),
        ("text/css", "css"),
        ("text/javascript", "js"),
        ("text/typescript", "ts"),
        ("text/x-go", "go"),
        ("text/x-python", "py"),
        ("text/x-rust", "rs"),
        ("text/x-ruby", "rb"),
        ("text/x-java", "java"),
        ("text/x-c", "c h"),
        ("text/x-c++", "cpp hpp"),
        ("text/x-shellscript", "sh bash"),
        ("text/x-sql", "sql"),
        ("text/x-toml", "toml"),
        ("text/x-ini", "ini cfg conf"),
        ("text/plain", "txt log tsx unknown"),
    ];
    for (kind, extensions) in types {
        for extension in extensions.split(' ') {
            let name = format!("a.{}", extension.to_uppercase());
            assert_eq!(detect(b"some words", true, &name), format!("{kind}; charset=utf-8"), "{name}");
            assert_eq!(detect(b"", true, &name), kind, "empty {name}");
        }
    }
    assert_eq!(detect(b"x", true, "Makefile"), "text/plain; charset=utf-8");
    assert_eq!(detect(b"x", true, ".env"), "text/plain; charset=utf-8");
    assert_eq!(detect(b"", true, "no-extension"), "text/plain");
    assert_eq!(detect(b"\xff\xfeh\0i\0", true, "a.md"), "text/markdown; charset=utf-16le");
}

#[test]
fn only_plain_text_is_refined_by_extension() {
    assert_eq!(detect(b"\x89PNG\r\n\x1a\n", true, "a.md"), "image/png");
    assert_eq!(detect(b"{}", true, "a.md"), "application/json");
    assert_eq!(detect(b"\0\x01\x02", true, "a.txt"), "application/octet-stream");
    assert_eq!(detect(b"<!-- note -->\n# Title\n", true, "a.md"), "text/html; charset=utf-8");
    assert_eq!(detect(b"<p align=center>\n", true, "README.md"), "text/html; charset=utf-8");
    assert_eq!(detect(b"a,b\n1,2\n", true, "table.md"), "text/csv");
}

#[test]
fn signatures_come_before_text() {
    assert_types(&[
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "image/png"),
        (b"\xff\xd8\xff\xe0 no control bytes", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\x24\0\0\0WEBPVP8 ", "image/webp"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "image/jxl"),
        (b"%PDF-1.4\n", "application/pdf"),
        (b"\0junk\n%PDF-1.4\n", "application/pdf"),
        (b"PK\x03\x04\x14\0\0\0\x08\0", "application/zip"),
        (b"\x1f\x8b\x08\0", "application/gzip"),
        (b"BZh91AY&SY\x01", "application/x-bzip2"),
        (b"\xfd7zXZ\0", "application/x-xz"),
        (b"7z\xbc\xaf\x27\x1c", "application/x-7z-compressed"),
        (b"SQLite format 3\0", "application/vnd.sqlite3"),
        (b"\0asm\x01\0\0\0", "application/wasm"),
        (b"MZ\x90\0", "application/vnd.microsoft.portable-executable"),
        (b"ID3\x04\0", "audio/mpeg"),
        (b"wOF2\0", "font/woff2"),
        (b"FWS\x08", "application/x-shockwave-flash"),
    ]);
}

#[test]
fn unknown_bytes_are_an_octet_stream() {
    assert_types(&[
        (b"\0", "application/octet-stream"),
        (b"text with a \x0b in it", "application/octet-stream"),
        (b"\x01\x08 a program for the Commodore 64", "application/octet-stream"),
        (b"\x80\x04\x95 a pickle", "application/octet-stream"),
        (b"\x03\x04\x05\x06 no dBase", "application/octet-stream"),
    ]);
}

#[test]
fn words_that_look_like_a_short_signature_are_text() {
    assert_types(&[
        (b"BMW builds cars", "text/plain; charset=utf-8"),
        (b"MAC addresses", "text/plain; charset=utf-8"),
        (b"OTTO is a name", "text/plain; charset=utf-8"),
        (b"x = 1", "text/plain; charset=utf-8"),
        (b"looks for b'%PDF-'", "text/plain; charset=utf-8"),
    ]);
}

/// The crate indexes past the end of the header of such a file.
#[test]
fn a_corrupt_file_does_not_cause_a_panic() {
    let mut asf = b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c".to_vec();
    asf.resize(600, 0);
    assert_types(&[(&asf, "video/x-ms-asf")]);
}

#[test]
fn markup_begins_with_a_known_tag() {
    assert_types(&[
        (b" \r\n<!doctype html>\n", "text/html; charset=utf-8"),
        (b"<!DOCTYPE HTML PUBLIC>", "text/html; charset=utf-8"),
        (b"<BODY\tclass=a>", "text/html; charset=utf-8"),
        (b"<a href=x>", "text/html; charset=utf-8"),
        (b"\xef\xbb\xbf <h1>", "text/html; charset=utf-8"),
        (b"<h2>", "text/plain; charset=utf-8"),
        (b"<html", "text/plain; charset=utf-8"),
        (b"<articles>", "text/plain; charset=utf-8"),
        (b"text <html>", "text/plain; charset=utf-8"),
        (b"<svg width='1' xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
        (b"<!-- c --><svg xmlns=\"http://www.w3.org/2000/svg\">", "image/svg+xml"),
        (b"<?xml version=\"1.0\"?>\n<svg>", "image/svg+xml"),
        (b"<svg>", "text/plain; charset=utf-8"),
        (b"<?xml version=\"1.0\"?><a/>", "text/xml; charset=utf-8"),
        (b"<?xml version=\"1.0\"?><rss>", "application/rss+xml"),
        (b"<?xml version=\"1.0\"?>\n<feed xmlns=\"http://www.w3.org/2005/Atom\">", "application/atom+xml"),
        (
            b"<?xml version=\"1.0\"?><kml xmlns=\"http://www.opengis.net/kml/2.2\">",
            "application/vnd.google-earth.kml+xml",
        ),
        (b"<?xml version=\"1.0\"?><!doctype html>", "application/xhtml+xml"),
        (b"<?php echo 1;", "text/x-php"),
    ]);
}

#[test]
fn scripts_begin_with_their_interpreter() {
    assert_types(&[
        (b"#!/usr/bin/python3\n", "text/x-python"),
        (b"#! /usr/bin/env python\n", "text/x-python"),
        (b"#!/usr/bin/env -S python3 -u\n", "text/x-python"),
        (b"#!/bin/sh", "text/x-shellscript"),
        (b"#!/bin/bash -e\r\n", "text/x-shellscript"),
        (b"#!/usr/bin/env zsh\n", "text/x-shellscript"),
        (b"#!/bin/shell\n", "text/plain; charset=utf-8"),
        (b"#!/usr/bin/perl -w\n", "text/x-perl"),
        (b"#!/usr/bin/env ruby\n", "text/x-ruby"),
        (b"#!/usr/bin/lua\n", "text/x-lua"),
        (b"#!/usr/bin/luajit\n", "text/plain; charset=utf-8"),
        (b"#!/usr/bin/tclsh\n", "text/x-tcl"),
        (b"#!/usr/bin/env node\n", "text/javascript"),
        (b"#!/usr/bin/php\n", "text/x-php"),
        (b"print('no first line')\n", "text/plain; charset=utf-8"),
        // Tables are detected before shell scripts.
        (b"#!/bin/sh\necho a,b\necho c,d\n", "text/csv"),
    ]);
}

#[test]
fn json_is_a_container_that_parses() {
    assert_types(&[
        (b" {\"a\": [1, 2.5e3, null]}\n", "application/json"),
        (b"[]", "application/json"),
        (b"[\"\xe9\"]", "application/json"),
        (b"42", "text/plain; charset=utf-8"),
        (b"\"words\"", "text/plain; charset=utf-8"),
        (b"{\"a\": ", "text/plain; charset=utf-8"),
        (b"{\"type\": \"Feature\"}", "application/geo+json"),
        (b"{\"type\": \"other\", \"asset\": {\"version\": \"2.0\"}}", "model/gltf+json"),
        (b"{\"in\": {\"type\": \"Feature\"}}", "application/json"),
        (b"{\"a\":1}\n{\"a\":2}\n", "application/x-ndjson"),
        (b"{\"a\":1}\r\n\r\n[2]", "application/x-ndjson"),
        (b"1\n2\n", "text/plain; charset=utf-8"),
        (b"{\"a\":1}\n{\"a\":\n", "text/plain; charset=utf-8"),
    ]);
}

#[test]
fn json_may_be_truncated_at_the_end_of_the_head() {
    for body in [&b"1.5e3, "[..], b"\"text \xe4\xb8\xad\", ", b"{\"a\": [true, -0.5]}, "] {
        // Each shift truncates the body at another position.
        for shift in 0..body.len() {
            let begin = [b"[".repeat(shift + 1), b" ".to_vec()].concat();
            let head = start_of_long_file(&begin, body);
            assert_eq!(detect(&head, false, ""), "application/json", "{shift}");
            assert_ne!(detect(&head, true, ""), "application/json", "{shift}");
        }
    }
    let head = start_of_long_file(b"[1] ", b"words ");
    assert_eq!(detect(&head, false, ""), "text/plain; charset=utf-8");
    let head = start_of_long_file(b"{\"type\": \"FeatureCollection\", \"features\": [", b"{}, ");
    assert_eq!(detect(&head, false, ""), "application/geo+json");
    let head = start_of_long_file(b"", b"{\"a\": 1}\n");
    assert_eq!(detect(&head, false, ""), "application/x-ndjson");
}

#[test]
fn tables_have_at_least_two_rows_and_columns() {
    assert_types(&[
        (b"a,b\n1,2\n", "text/csv"),
        (b"a,b\r\n1,2", "text/csv"),
        (b"# about\n\na,b\n\"1,5\",\"two\nlines\"\n", "text/csv"),
        (b"a,b\nx\"y,2\n", "text/csv"),
        (b"a\tb\n1\t2\n", "text/tab-separated-values"),
        (b"a,b\n", "text/plain; charset=utf-8"),
        (b"a\n1\n", "text/plain; charset=utf-8"),
        (b"a,b\n1,2,3\n", "text/plain; charset=utf-8"),
    ]);
    let ragged_later = [b"a,b\n".repeat(10), b"words\n".to_vec()].concat();
    assert_types(&[(&ragged_later, "text/csv")]);

    let head = start_of_long_file(b"", b"first,second\n");
    assert_eq!(detect(&head, false, ""), "text/csv");
}

#[test]
fn other_texts_are_detected_by_their_beginning() {
    assert_types(&[
        (b"{\\rtf1\\ansi}", "text/rtf"),
        (b"1\n00:02:16,612 --> 00:02:19,376\nHello\n", "application/x-subrip"),
        (b"WEBVTT\n\n", "text/vtt"),
        (b"BEGIN:VCARD\nVERSION:4.0\n", "text/vcard"),
        (b"BEGIN:VCALENDAR\r\nVERSION:2.0\r\n", "text/calendar"),
        (b"WARC/1.1\r\n", "application/warc"),
        (b"P1\n# small\n2 2\n1 0\n0 1\n", "image/x-portable-bitmap"),
        (b"P2\n3 4\n255\n", "image/x-portable-graymap"),
        (b"P3\n3 4\n255\n", "image/x-portable-pixmap"),
        (b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 1\nMAXVAL 1\nENDHDR\n", "image/x-portable-arbitrarymap"),
        (b"P1\nis the first choice\n", "text/plain; charset=utf-8"),
        (b"From: Ann\nX-Mailer: none\nSubject: Hi\n\nText\n", "message/rfc822"),
        (b"Subject: a sentence\nand another\n", "text/plain; charset=utf-8"),
    ]);
}

#[test]
fn charset_is_detected_from_the_bytes() {
    assert_types(&[
        (b"ascii", "text/plain; charset=utf-8"),
        ("grün".as_bytes(), "text/plain; charset=utf-8"),
        ("only the last is not ascii: ü".as_bytes(), "text/plain; charset=utf-8"),
        ("ends in 中".as_bytes(), "text/plain; charset=utf-8"),
        (b"cut at the end of the file \xc3", "text/plain; charset=iso-8859-1"),
        (b"gr\xfcn", "text/plain; charset=iso-8859-1"),
        (b"gr\xfcn\x85", "text/plain; charset=windows-1252"),
        (b"\x93quoted\x94 \xfc", "text/plain"),
        (b"\x85\x93", "text/plain"),
        (b"del\x7f", "text/plain"),
        (b"gr\xfcn\x7f", "text/plain"),
        (b"\xef\xbb\xbftext", "text/plain; charset=utf-8"),
        (b"\xff\xfet\0", "text/plain; charset=utf-16le"),
        (b"\xfe\xff\0t", "text/plain; charset=utf-16be"),
        (b"\xff\xfe\0\0t\0\0\0", "text/plain; charset=utf-32le"),
        (b"\0\0\xfe\xff\0\0\0t", "text/plain; charset=utf-32be"),
    ]);
}

#[test]
fn a_character_split_at_the_end_of_the_head_is_valid_utf8() {
    for letter in ["é", "中", "😀"] {
        for shift in 0..letter.len() {
            let text = start_of_long_file(&b"-".repeat(shift), letter.as_bytes());
            assert_eq!(detect(&text, false, ""), "text/plain; charset=utf-8", "{letter} {shift}");
            // Shorter than the head for types, longer than the head for charsets.
            assert_eq!(detect(&text[..1500], false, ""), "text/plain; charset=utf-8", "{letter} {shift}");
        }
    }
}

#[test]
fn charset_may_be_declared_in_the_text() {
    assert_types(&[
        (b"<html><meta charset=\"UTF-8\">", "text/html; charset=UTF-8"),
        (b"<html><META CHARSET=Shift_JIS>", "text/html; charset=Shift_JIS"),
        (b"<html><meta http-equiv='Content-Type' content='text/html; charset=koi8-r'/>", "text/html; charset=koi8-r"),
        (b"<html><meta name=x content='a; charset=koi8-r'>", "text/html; charset=utf-8"),
        (b"<html><!-- <meta charset=koi8-r> -->", "text/html; charset=utf-8"),
        (b"<html><body><meta charset=koi8-r>", "text/html; charset=utf-8"),
        (b"\xef\xbb\xbf<html><meta charset=koi8-r>", "text/html; charset=utf-8"),
        (b"<html><meta charset=''>", "text/html; charset=utf-8"),
        (b"<?xml version='1.0' encoding='ISO-8859-2'?><a/>", "text/xml; charset=ISO-8859-2"),
        (b"<?xml version='1.0' encoding=''?><a>\xfc</a>", "text/xml; charset=iso-8859-1"),
    ]);
}

#[test]
fn a_declared_charset_cannot_break_a_header() {
    assert_types(&[
        (b"<html><meta charset='a\r\nX-Evil: 1'>", "text/html; charset=utf-8"),
        (b"<html><meta charset='a; b'>", "text/html; charset=utf-8"),
        (b"<html><meta charset='\xe9'>", "text/html; charset=iso-8859-1"),
    ]);
}

#[test]
fn active_content_is_recognized() {
    let active = "text/html TEXT/HTML application/xhtml+xml image/svg+xml text/xml application/xml application/rss+xml \
        application/xml-dtd text/xsl text/javascript application/javascript application/x-javascript \
        text/javascript1.5 application/ecmascript text/x-ecmascript text/jscript text/livescript \
        application/x-shockwave-flash multipart/related message/rfc822 application/x-mimearchive";
    let passive = "text/plain text/markdown text/csv text/css text/typescript application/json application/pdf \
        application/octet-stream application/zip image/png video/mp4 application/postscript text/x-shellscript \
        application/vnd.openxmlformats-officedocument.wordprocessingml.document";
    for mime in active.split_whitespace() {
        assert!(is_active_content(mime), "{mime}");
        assert!(is_active_content(&format!(" {mime} ; charset=utf-8")), "{mime}");
    }
    for mime in passive.split_whitespace() {
        assert!(!is_active_content(mime), "{mime}");
        assert!(!is_active_content(&format!("{mime}; profile=text/html")), "{mime}");
    }
    assert!(!is_active_content(""));
}
