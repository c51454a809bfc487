//! The types of text, told apart by how the text begins.
//!
//! The order is part of the contract: the first rule that matches decides, and many texts match several. So a shell
//! script whose lines all have one comma is a table, and an HTML comment makes HTML of a Markdown file, as in Acontext.
//!
//! Next: `data` for the rules that have to parse; `charset` for what is added to some of the answers.

use std::sync::LazyLock;

use regex::bytes::{RegexSet, RegexSetBuilder};

use super::data;

/// How many bytes from the start of an XML file are searched for its root element.
const XML_WINDOW: usize = 1024;

/// How many lines after the first are searched for another mail header.
const MAIL_LINES: usize = 20;

/// A script of an interpreter in the usual folders, or of one that `env` is to find.
macro_rules! script_of {
    ($interpreter:literal) => {
        concat!(r"\A#![ \t]*/usr/(?:(?:local/)?bin/|bin/env[ \t]+(?:-S[ \t]+)?)", $interpreter)
    };
}

/// A Netpbm image with one of these digits in its name: comments, width, height.
macro_rules! netpbm {
    ($digits:literal) => {
        concat!(r"\AP[", $digits, r"]\n(?:#[^\n]*\n|\s)*0*[1-9]\d*[ \t]+0*[1-9]\d*(?:\s|\z)")
    };
}

static MARKUP_AND_SCRIPTS: LazyLock<Rules> = LazyLock::new(|| {
    Rules::new(&[
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

static XML_FORMATS: LazyLock<Rules> = LazyLock::new(|| {
    Rules::new(&[
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

static OTHER_FORMATS: LazyLock<Rules> = LazyLock::new(|| {
    Rules::new(&[
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

static MAIL_HEADER: LazyLock<RegexSet> = LazyLock::new(|| {
    compile(&[
        r"\A(?:From|To|Date|Subject|Received|Relay-Version|Content-Type|Content-Transfer-Encoding): ",
        r"(?i)\A(?:CC|DELIVERED-TO|RETURN-PATH): ",
        r"\A(?:N?#! rnews|Forward to|Pipe to)",
    ])
});

/// Expressions and what they show; the first that matches wins.
struct Rules {
    expressions: RegexSet,
    kinds: Vec<&'static str>,
}

impl Rules {
    fn new(rules: &[(&str, &'static str)]) -> Self {
        let (expressions, kinds): (Vec<_>, Vec<_>) = rules.iter().copied().unzip();
        Self { expressions: compile(&expressions), kinds }
    }

    fn kind_of(&self, text: &[u8]) -> Option<&'static str> {
        let first = self.expressions.matches(text).iter().next()?;
        Some(self.kinds[first])
    }
}

fn compile(expressions: &[&str]) -> RegexSet {
    RegexSetBuilder::new(expressions)
        .unicode(false)
        .dot_matches_new_line(true)
        .build()
        .expect("the expressions of this file are valid")
}

/// The type of a text without its parameters.
pub(super) fn kind(text: &[u8], whole: bool) -> &'static str {
    match MARKUP_AND_SCRIPTS.kind_of(text) {
        Some("text/xml") => {
            let start = &text[..text.len().min(XML_WINDOW)];
            XML_FORMATS.kind_of(start).unwrap_or("text/xml")
        }
        Some(kind) => kind,
        None => data::json(text, whole)
            .or_else(|| data::table(text, whole))
            .or_else(|| OTHER_FORMATS.kind_of(text))
            .or_else(|| is_mail(text).then_some("message/rfc822"))
            .unwrap_or("text/plain"),
    }
}

/// A mail begins with a header and has another one soon; a single one may be the first words of anything.
fn is_mail(text: &[u8]) -> bool {
    let is_header = |line: &[u8]| MAIL_HEADER.is_match(line);
    let mut lines = text.split(|byte| *byte == b'\n');
    lines.next().is_some_and(is_header) && lines.take(MAIL_LINES).any(is_header)
}
