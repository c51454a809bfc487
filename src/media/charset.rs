//! The `charset` parameter of the three text types that have one, from the first kilobyte of the file.
//!
//! A name that the file gives itself is passed on as written, but only if it is a charset name and not something that
//! could break a header; otherwise the bytes decide, or nothing does and the parameter is left out.
//!
//! Next: `text`, which asks for the type first.

use std::sync::LazyLock;

use regex::bytes::{Regex, RegexBuilder};

/// How many bytes from the start of a file are searched for its charset.
const WINDOW: usize = 1024;

/// The longer marks first: that of UTF-32LE begins like that of UTF-16LE.
const BYTE_ORDER_MARKS: [(&[u8], &str); 5] = [
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\x00\x00\xfe\xff", "utf-32be"),
    (b"\xff\xfe\x00\x00", "utf-32le"),
    (b"\xfe\xff", "utf-16be"),
    (b"\xff\xfe", "utf-16le"),
];

static XML_PROLOG: LazyLock<Regex> =
    LazyLock::new(|| pattern(r#"<\?xml(?:\s[^>]*?)?\sencoding\s*=\s*["']([^"']*)["']"#));

/// A comment, the start of the body, or the attributes of a `meta` tag.
static HTML_HEAD: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?i)<!--.*?-->|(<body)|<meta[\s/]([^>]*)"));

static ATTRIBUTE: LazyLock<Regex> =
    LazyLock::new(|| pattern(r#"([^\s"'/=]+)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"']+))"#));

static CHARSET_IN_CONTENT: LazyLock<Regex> = LazyLock::new(|| pattern(r#"charset\s*=\s*["']?([^"';\s]+)"#));

/// The charset to name behind the type `kind`, if that type has one and the file lets it be known.
pub(super) fn parameter(kind: &str, head: &[u8], whole: bool) -> Option<String> {
    let text = &head[..head.len().min(WINDOW)];
    let declared = match kind {
        "text/plain" => None,
        "text/html" if of_byte_order_mark(text).is_some() => None,
        "text/html" => declared_in_html(text),
        "text/xml" => capture(&XML_PROLOG, text),
        _ => return None,
    };
    let whole = whole && head.len() <= WINDOW;
    declared
        .filter(|name| is_charset_name(name))
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .or_else(|| from_bytes(text, whole).map(str::to_owned))
}

pub(super) fn of_byte_order_mark(text: &[u8]) -> Option<&'static str> {
    BYTE_ORDER_MARKS.iter().find(|(mark, _)| text.starts_with(mark)).map(|(_, charset)| *charset)
}

fn from_bytes(text: &[u8], whole: bool) -> Option<&'static str> {
    if let Some(charset) = of_byte_order_mark(text) {
        return Some(charset);
    }
    if text.is_empty() {
        return None;
    }
    let is_utf8 = match str::from_utf8(text) {
        Ok(_) => true,
        // The end of the window may cut a character; the end of the file may not.
        Err(error) => !whole && error.error_len().is_none(),
    };
    let has_delete = text.contains(&0x7f);
    if is_utf8 && !(text.is_ascii() && has_delete) {
        return Some("utf-8");
    }
    // The one control character in the upper half that counts as text is 85, a line break.
    if text.iter().any(|byte| matches!(byte, 0x7f..=0x84 | 0x86..=0x9f)) {
        return None;
    }
    Some(if text.contains(&0x85) { "windows-1252" } else { "iso-8859-1" })
}

/// The charset in the first `meta` tag of the head that has one, found as
/// <https://html.spec.whatwg.org/#prescan-a-byte-stream-to-determine-its-encoding> says.
fn declared_in_html(html: &[u8]) -> Option<&[u8]> {
    for found in HTML_HEAD.captures_iter(html) {
        if found.get(1).is_some() {
            return None;
        }
        let charset = found.get(2).and_then(|meta| declared_in_meta(meta.as_bytes()));
        if charset.is_some() {
            return charset;
        }
    }
    None
}

fn declared_in_meta(attributes: &[u8]) -> Option<&[u8]> {
    let mut in_content = None;
    let mut is_content_type = false;
    for (_, [name, value]) in ATTRIBUTE.captures_iter(attributes).map(|found| found.extract()) {
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

fn capture<'a>(pattern: &Regex, text: &'a [u8]) -> Option<&'a [u8]> {
    Some(pattern.captures(text)?.get(1)?.as_bytes())
}

fn pattern(expression: &str) -> Regex {
    RegexBuilder::new(expression)
        .unicode(false)
        .dot_matches_new_line(true)
        .build()
        .expect("the expressions of this file are valid")
}
