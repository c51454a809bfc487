//! Determines the `charset` parameter of the three text types that have one, from the first KiB of the file.
//!
//! A charset that the file declares is returned unchanged, but only if it is a valid charset name, so that it cannot break a
//! header. Otherwise the charset is detected from the bytes; if that fails, there is no parameter.

use std::sync::LazyLock;

use regex::bytes::{Regex, RegexBuilder};

/// The number of bytes at the start of a file from which its charset is determined.
const CHARSET_HEAD_BYTES: usize = 1024;

/// The byte order marks and their charsets. The mark of UTF-16LE is a prefix of the mark of UTF-32LE, which therefore comes
/// first.
const BYTE_ORDER_MARKS: [(&[u8], &str); 5] = [
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\x00\x00\xfe\xff", "utf-32be"),
    (b"\xff\xfe\x00\x00", "utf-32le"),
    (b"\xfe\xff", "utf-16be"),
    (b"\xff\xfe", "utf-16le"),
];

/// Captures the encoding in an XML declaration.
static XML_ENCODING: LazyLock<Regex> =
    LazyLock::new(|| compile(r#"<\?xml(?:\s[^>]*?)?\sencoding\s*=\s*["']([^"']*)["']"#));

/// Matches a comment, the start of the body, or a `meta` tag. Captures the start of the body or the attributes of the tag.
static HTML_HEAD_ITEM: LazyLock<Regex> = LazyLock::new(|| compile(r"(?i)<!--.*?-->|(<body)|<meta[\s/]([^>]*)"));

/// Captures the name and the value of an HTML attribute.
static ATTRIBUTE: LazyLock<Regex> =
    LazyLock::new(|| compile(r#"([^\s"'/=]+)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"']+))"#));

/// Captures the charset in the attribute `content` of a `meta` tag.
static CHARSET_IN_CONTENT: LazyLock<Regex> = LazyLock::new(|| compile(r#"charset\s*=\s*["']?([^"';\s]+)"#));

/// Returns the charset of a text of the type `mime`. Returns `None` if the type has no `charset` parameter or the charset cannot
/// be determined.
pub(super) fn charset_parameter(mime: &str, head: &[u8], is_complete: bool) -> Option<String> {
    let text = &head[..head.len().min(CHARSET_HEAD_BYTES)];
    let declared = match mime {
        "text/plain" => None,
        "text/html" if from_bom(text).is_some() => None,
        "text/html" => declared_in_html(text),
        "text/xml" => capture(&XML_ENCODING, text),
        _ => return None,
    };
    let is_complete = is_complete && head.len() <= CHARSET_HEAD_BYTES;
    declared
        .filter(|name| is_charset_name(name))
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .or_else(|| from_content(text, is_complete).map(str::to_owned))
}

/// Returns the charset of the byte order mark with which a text begins.
pub(super) fn from_bom(text: &[u8]) -> Option<&'static str> {
    BYTE_ORDER_MARKS.iter().find(|(mark, _)| text.starts_with(mark)).map(|(_, charset)| *charset)
}

/// Detects the charset of a text from its bytes.
fn from_content(text: &[u8], is_complete: bool) -> Option<&'static str> {
    if let Some(charset) = from_bom(text) {
        return Some(charset);
    }
    if text.is_empty() {
        return None;
    }
    let is_utf8 = match str::from_utf8(text) {
        Ok(_) => true,
        // The end of `text` may split a character, unless it is the end of the file.
        Err(error) => !is_complete && error.error_len().is_none(),
    };
    let has_delete = text.contains(&0x7f);
    if is_utf8 && !(text.is_ascii() && has_delete) {
        return Some("utf-8");
    }
    // As in upstream, a text with DEL (0x7f) or a byte from 0x80 to 0x9f is neither ISO 8859-1 nor Windows-1252. The exception
    // is 0x85, which is a line break in ISO 8859-1 and an ellipsis in Windows-1252.
    if text.iter().any(|byte| matches!(byte, 0x7f..=0x84 | 0x86..=0x9f)) {
        return None;
    }
    Some(if text.contains(&0x85) { "windows-1252" } else { "iso-8859-1" })
}

/// Returns the charset in the first `meta` tag of the HTML head that has one, as specified by
/// <https://html.spec.whatwg.org/#prescan-a-byte-stream-to-determine-its-encoding>.
fn declared_in_html(html: &[u8]) -> Option<&[u8]> {
    for item in HTML_HEAD_ITEM.captures_iter(html) {
        if item.get(1).is_some() {
            return None;
        }
        let charset = item.get(2).and_then(|attributes| declared_in_meta(attributes.as_bytes()));
        if charset.is_some() {
            return charset;
        }
    }
    None
}

/// Returns the charset that the attributes of a `meta` tag declare.
fn declared_in_meta(attributes: &[u8]) -> Option<&[u8]> {
    let mut in_content = None;
    let mut is_content_type = false;
    for (_, [name, value]) in ATTRIBUTE.captures_iter(attributes).map(|attribute| attribute.extract()) {
        match name.to_ascii_lowercase().as_slice() {
            b"charset" => return Some(value),
            b"content" => in_content = capture(&CHARSET_IN_CONTENT, value),
            b"http-equiv" => is_content_type = value.eq_ignore_ascii_case(b"content-type"),
            _ => {}
        }
    }
    in_content.filter(|_| is_content_type)
}

fn is_charset_name(name: &[u8]) -> bool {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:+".contains(byte);
    !name.is_empty() && name.iter().all(allowed)
}

/// Returns the first group of the first match.
fn capture<'a>(pattern: &Regex, text: &'a [u8]) -> Option<&'a [u8]> {
    Some(pattern.captures(text)?.get(1)?.as_bytes())
}

fn compile(pattern: &str) -> Regex {
    RegexBuilder::new(pattern)
        .unicode(false)
        .dot_matches_new_line(true)
        .build()
        .expect("the patterns in this file are valid")
}
