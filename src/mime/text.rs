//! Detects the type of a text from its beginning.
//!
//! The order of the rules must not change, because many texts match several rules and the first match decides. For example, a
//! shell script with one comma in each line is a table, and a Markdown file that begins with an HTML comment is
//! HTML, as in upstream.

use std::sync::LazyLock;

use regex::bytes::{RegexSet, RegexSetBuilder};

use super::json_and_tables;

/// The number of bytes at the start of an XML file that are searched for its root element.
const XML_HEAD_BYTES: usize = 1024;

/// The number of lines after the first that are searched for another mail header.
const MAIL_LINES: usize = 20;

/// Expands to the pattern of the first line of a script whose interpreter is in a standard directory or found by `env`.
macro_rules! script_of {
    ($interpreter:literal) => {
        concat!(r"\A#![ \t]*/usr/(?:(?:local/)?bin/|bin/env[ \t]+(?:-S[ \t]+)?)", $interpreter)
    };
}

/// Expands to the pattern of a Netpbm header: `P` and one of the digits, comments, the width and the height.
macro_rules! netpbm {
    ($digits:literal) => {
        concat!(r"\AP[", $digits, r"]\n(?:#[^\n]*\n|\s)*0*[1-9]\d*[ \t]+0*[1-9]\d*(?:\s|\z)")
    };
}

/// The formats that take precedence over JSON and tables.
static MARKUP_AND_SCRIPTS: LazyLock<PatternTable> = LazyLock::new(|| {
    PatternTable::new(&[
        (r#"\A\s*(?:<!--.*?-->)*<svg[^>]*?\sxmlns\s*=\s*["']?http://www\.w3\.org/2000/svg["'\s>]"#, "image/svg+xml"),
        (r"\A\s*<\?xml[^>]*?\sversion[\s=].*<svg", "image/svg+xml"),
        (
            concat!(
                r"(?i)\A(?:\xef\xbb\xbf)?\s*<(?:!DOCTYPE HTML|HTML|HEAD|SCRIPT|IFRAME|H1|DIV|FONT|TABLE",
                r"|A|STYLE|TITLE|B|BODY|BR|P|!--)[\s>]",
            ),
            "text/html",
        ),
        (r"(?i)\A(?:\xef\xbb\xbf)?\s*<\?XML[\s>]", "text/xml"),
        (r"(?i)\A<\?(?:PHP|[\n\r ]).", "text/x-php"),
        (script_of!("php"), "text/x-php"),
        (r"\A#![ \t]*(?:(?:/usr)?/bin/|/usr/bin/env[ \t]+(?:-S[ \t]+)?)node", "text/javascript"),
        (script_of!(r"lua(?:\s|\z)"), "text/x-lua"),
        (r"\A#![ \t]*/usr/bin/(?:env (?:-S )?)?perl(?:\s|\z)", "text/x-perl"),
        (script_of!("python"), "text/x-python"),
        (script_of!("ruby"), "text/x-ruby"),
        (r"\A\{\\rtf", "text/rtf"),
        (r"\A1\r?\n\d\d:\d\d:\d\d,\d{3} --> \d\d:\d\d:\d\d,\d{3}\r?\n[^\r\n]", "application/x-subrip"),
        (script_of!("(?:tcl|wish)"), "text/x-tcl"),
    ])
});

/// The formats based on XML.
static XML_FORMATS: LazyLock<PatternTable> = LazyLock::new(|| {
    PatternTable::new(&[
        ("<rss", "application/rss+xml"),
        (r#"<feed.*xmlns="http://www\.w3\.org/2005/Atom""#, "application/atom+xml"),
        (r#"<X3D.*xmlns:xsd="http://www\.w3\.org/2001/XMLSchema-instance""#, "model/x3d+xml"),
        (
            r#"<kml.*xmlns="http://(?:www\.opengis\.net/kml/2\.2|earth\.google\.com/kml/2\.[012])""#,
            "application/vnd.google-earth.kml+xml",
        ),
        (r#"<xliff.*xmlns="urn:oasis:names:tc:xliff:document:1\.2""#, "application/x-xliff+xml"),
        (r#"<COLLADA.*xmlns="http://www\.collada\.org/2005/11/COLLADASchema""#, "model/vnd.collada+xml"),
        (r#"xmlns:gml="http://www\.opengis\.net/gml(?:/3\.2|/3\.3/exr)?""#, "application/gml+xml"),
        (r#"<gpx.*xmlns="http://www\.topografix\.com/GPX/1/1""#, "application/gpx+xml"),
        (
            r#"<TrainingCenterDatabase.*xmlns="http://www\.garmin\.com/xmlschemas/TrainingCenterDatabase/v2""#,
            "application/vnd.garmin.tcx+xml",
        ),
        ("<amf", "application/x-amf"),
        (
            r#"<model.*xmlns="http://schemas\.microsoft\.com/3dmanufacturing/core/2015/02""#,
            "application/vnd.ms-package.3dmanufacturing-3dmodel+xml",
        ),
        (r#"<xfdf.*xmlns="http://ns\.adobe\.com/xfdf/""#, "application/vnd.adobe.xfdf"),
        (r#"<Ontology.*xmlns="http://www\.w3\.org/2002/07/owl#""#, "application/owl+xml"),
        (r"(?i)<!DOCTYPE\s+HTML|<HTML\s+XMLNS=", "application/xhtml+xml"),
    ])
});

/// The formats of texts that are neither JSON nor tables.
static OTHER_FORMATS: LazyLock<PatternTable> = LazyLock::new(|| {
    PatternTable::new(&[
        (r"(?i)\ABEGIN:VCARD\r?\n.", "text/vcard"),
        (r"(?i)\ABEGIN:VCALENDAR\r?\n.", "text/calendar"),
        (r"\AWARC/1\.[01]", "application/warc"),
        (r"\A(?:\xef\xbb\xbf)?WEBVTT(?:[\n\r \t]|\z)", "text/vtt"),
        (
            r"\A#![ \t]*(?:/bin/sh|(?:/bin/|/usr/local/bin/|/usr/bin/env (?:-S )?)(?:ba|c|da|k|tc|z)sh)(?:\s|\z)",
            "text/x-shellscript",
        ),
        (netpbm!("14"), "image/x-portable-bitmap"),
        (netpbm!("25"), "image/x-portable-graymap"),
        (netpbm!("36"), "image/x-portable-pixmap"),
        (r"\AP7\n(?:.*\n)?WIDTH .*\nHEIGHT .*\nDEPTH .*\nMAXVAL .*\nENDHDR", "image/x-portable-arbitrarymap"),
    ])
});

/// The beginnings of mail headers and of the special first lines of mails.
static MAIL_HEADER: LazyLock<RegexSet> = LazyLock::new(|| {
    compile(&[
        r"\A(?:From|To|Date|Subject|Received|Relay-Version|Content-Type|Content-Transfer-Encoding): ",
        r"(?i)\A(?:CC|DELIVERED-TO|RETURN-PATH): ",
        r"\A(?:N?#! rnews|Forward to|Pipe to)",
    ])
});

/// Patterns and the MIME types that they imply. The first match decides.
struct PatternTable {
    patterns: RegexSet,
    mimes: Vec<&'static str>,
}

impl PatternTable {
    fn new(rules: &[(&str, &'static str)]) -> Self {
        let (patterns, mimes): (Vec<_>, Vec<_>) = rules.iter().copied().unzip();
        Self { patterns: compile(&patterns), mimes }
    }

    /// Returns the MIME type of the first pattern that matches.
    fn first_match(&self, text: &[u8]) -> Option<&'static str> {
        let first = self.patterns.matches(text).iter().next()?;
        Some(self.mimes[first])
    }
}

fn compile(patterns: &[&str]) -> RegexSet {
    RegexSetBuilder::new(patterns)
        .unicode(false)
        .dot_matches_new_line(true)
        .build()
        .expect("the patterns in this file are valid")
}

/// Returns the MIME type of a text, without parameters.
pub(super) fn detect_text(text: &[u8], is_complete: bool) -> &'static str {
    match MARKUP_AND_SCRIPTS.first_match(text) {
        Some("text/xml") => {
            let start = &text[..text.len().min(XML_HEAD_BYTES)];
            XML_FORMATS.first_match(start).unwrap_or("text/xml")
        }
        Some(mime) => mime,
        None => json_and_tables::detect_json(text, is_complete)
            .or_else(|| json_and_tables::detect_table(text, is_complete))
            .or_else(|| OTHER_FORMATS.first_match(text))
            .or_else(|| is_mail(text).then_some("message/rfc822"))
            .unwrap_or("text/plain"),
    }
}

/// Returns `true` if the first line and at least one of the next lines are mail headers. A single header may be ordinary text.
fn is_mail(text: &[u8]) -> bool {
    let is_header = |line: &[u8]| MAIL_HEADER.is_match(line);
    let mut lines = text.split(|byte| *byte == b'\n');
    lines.next().is_some_and(is_header) && lines.take(MAIL_LINES).any(is_header)
}
