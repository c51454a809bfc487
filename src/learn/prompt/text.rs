//! Text that is safe to be a part of a prompt.

use std::fmt::Write as _;
use std::io;

use serde::Serialize;

/// The maximum length of JSON that is serialized for a prompt, in bytes. More than this is never used: the limits of texts are
/// much smaller.
const MAX_JSON_BYTES: usize = 64 * 1024;

/// A text without invisible characters and with a maximum length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutText {
    pub text: String,
    /// `true` if the original text was longer.
    pub is_cut: bool,
}

/// Removes the characters that a person does not see, such as control characters, overrides of the text direction, Unicode tags
/// and zero-width characters. A model reads them, so they can contain text that is hidden from people, or separate the characters
/// of a word.
///
/// Line breaks of all kinds become `\n`; tabs remain. Joiners and variation selectors remain where scripts and emoji need them: a
/// joiner between two non-ASCII characters, and one variation selector after a visible character.
pub fn clean(text: &str) -> String {
    visible_chars(text).collect()
}

/// Returns `true` if [`clean()`] would remove characters other than those of line breaks.
pub fn has_invisible_chars(text: &str) -> bool {
    text.chars().count() - text.matches("\r\n").count() != visible_chars(text).count()
}

/// Cleans a text like [`clean()`] and returns its first `max_chars` characters. Does not read more of the text than necessary.
pub fn cut(text: &str, max_chars: usize) -> CutText {
    let mut chars = visible_chars(text);
    let text = chars.by_ref().take(max_chars).collect();
    CutText { text, is_cut: chars.next().is_some() }
}

/// Escapes the characters with which an element could begin or end.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Serializes a value as JSON that consists of visible ASCII characters, without `<`, `>` and `&`. Cuts JSON that is longer than
/// 64 KiB.
pub fn ascii_json(value: &impl Serialize) -> String {
    let mut json = BoundedBuffer(Vec::new());
    // The only possible error is that the buffer is full.
    let _ = serde_json::to_writer(&mut json, value);
    let mut escaped = String::with_capacity(json.0.len());
    for c in visible_chars(&String::from_utf8_lossy(&json.0)) {
        if matches!(c, ' '..='~') && !matches!(c, '<' | '>' | '&') {
            escaped.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string cannot fail.
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        }
    }
    escaped
}

/// A buffer of at most [`MAX_JSON_BYTES`].
struct BoundedBuffer(Vec<u8>);

impl io::Write for BoundedBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(MAX_JSON_BYTES - self.0.len());
        self.0.extend_from_slice(&bytes[..length]);
        // Zero is an error of `write_all`.
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns the characters of [`clean()`].
fn visible_chars(text: &str) -> impl Iterator<Item = char> {
    let mut previous = None;
    let mut chars = text.chars().peekable();
    std::iter::from_fn(move || {
        loop {
            let c = match chars.next()? {
                '\r' if chars.peek() == Some(&'\n') => continue,
                '\r' | '\u{b}' | '\u{c}' | '\u{85}' | '\u{2028}' | '\u{2029}' => '\n',
                c @ ('\n' | '\t') => c,
                c @ ('\u{200c}' | '\u{200d}')
                    if previous.is_some_and(joins)
                        && chars.peek().is_some_and(|next| joins(*next) && !is_variation_selector(*next)) =>
                {
                    c
                }
                c @ '\u{fe00}'..='\u{fe0f}' if previous.is_some_and(|c| !is_invisible(c) && !c.is_whitespace()) => c,
                c if is_invisible(c) => continue,
                c => c,
            };
            previous = Some(c);
            return Some(c);
        }
    })
}

/// Returns `true` for a character that a joiner can join with another one.
fn joins(c: char) -> bool {
    !c.is_ascii() && !c.is_whitespace() && (!is_invisible(c) || is_variation_selector(c))
}

fn is_variation_selector(c: char) -> bool {
    matches!(c, '\u{fe00}'..='\u{fe0f}')
}

/// Returns `true` for characters without a visible form: control and format characters, fillers, and non-characters. White space
/// is visible.
fn is_invisible(c: char) -> bool {
    c.is_control() && !matches!(c, '\n' | '\t')
        || is_variation_selector(c)
        || matches!(c,
            // Soft hyphen, combining grapheme joiner, Arabic letter mark.
            '\u{ad}' | '\u{34f}' | '\u{61c}'
            // Hangul fillers, Khmer inherent vowels.
            | '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}' | '\u{17b4}' | '\u{17b5}'
            // Mongolian variation selectors and vowel separator.
            | '\u{180b}'..='\u{180f}'
            // Zero-width characters and direction marks; direction overrides and embeddings; invisible operators and isolates.
            | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            // Byte order mark, interlinear annotations, non-characters.
            | '\u{feff}' | '\u{fff0}'..='\u{fffb}' | '\u{fdd0}'..='\u{fdef}' | '\u{fffe}' | '\u{ffff}'
            // Shorthand and musical format controls.
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            // Tags and the supplementary variation selectors.
            | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn invisible_characters_are_removed() {
        for (text, cleaned) in [
            ("a\u{0}b\u{1b}[31mc\u{7f}\u{9b}", "ab[31mc"),
            ("user\u{202e}txt.exe\u{202c} \u{2066}x\u{2069}\u{200e}\u{200f}\u{61c}", "usertxt.exe x"),
            ("i\u{200b}g\u{2060}n\u{feff}o\u{ad}r\u{180e}e", "ignore"),
            ("flag\u{e0001}\u{e0069}\u{e0067}\u{e007f}", "flag"),
            ("x\u{e0100}\u{e01ef}", "x"),
            ("\u{fe0f}\u{fe0e}a", "a"),
            ("a\u{fe0f}\u{fe0e}\u{fe0f}", "a\u{fe0f}"),
            ("<\u{200d}/message>", "</message>"),
            ("a\u{200d}b\u{200c}\u{200d}é", "abé"),
            ("one\r\ntwo\rthree\u{2028}four\u{85}five\tsix", "one\ntwo\nthree\nfour\nfive\tsix"),
        ] {
            assert_eq!(clean(text), cleaned, "{text:?}");
        }
    }

    #[test]
    fn scripts_and_emoji_are_preserved() {
        for text in ["می‌خواهم", "क्‍ष", "👨‍👩‍👧", "❤️‍🔥", "1️⃣", "שלום", "寿司 naïve e\u{301}", "a  b"]
        {
            assert!(!has_invisible_chars(text));
            assert_eq!(clean(text), text);
        }
    }

    #[test]
    fn line_breaks_are_not_invisible() {
        for text in ["", "a\r\nb\rc\nd\te", "a\u{2028}b\u{85}\u{b}\u{c}", "\r\r\n"] {
            assert!(!has_invisible_chars(text), "{text:?}");
        }
        for text in ["\u{feff}a", "a\u{200b}b", "a\u{0}", "x\u{e0041}", "\r\n\u{202e}"] {
            assert!(has_invisible_chars(text), "{text:?}");
        }
    }

    #[test]
    fn texts_are_cut_between_characters() {
        let cut_to = |text: &str, max_chars| {
            let CutText { text, is_cut } = cut(text, max_chars);
            (text, is_cut)
        };
        assert_eq!(cut_to("寿司😀", 4), ("寿司😀".into(), false));
        assert_eq!(cut_to("寿司😀", 3), ("寿司😀".into(), false));
        assert_eq!(cut_to("寿司😀", 2), ("寿司".into(), true));
        assert_eq!(cut_to("ab\u{200b}\u{200b}", 2), ("ab".into(), false), "what is removed does not count");
        assert_eq!(cut_to("", 0), (String::new(), false));
    }

    #[test]
    fn json_is_visible_ascii() {
        let value = json!({"a": "<é & 😀>\u{202e}\u{7f}\u{1}\n", "b": [1, null]});
        let json = ascii_json(&value);
        assert_eq!(json, r#"{"a":"\u003c\u00e9 \u0026 \ud83d\ude00\u003e\u0001\n","b":[1,null]}"#);
    }

    #[test]
    fn long_json_is_cut() {
        let json = ascii_json(&json!({"a": "é".repeat(MAX_JSON_BYTES)}));
        assert!(json.len() > MAX_JSON_BYTES / 2 && json.len() < 4 * MAX_JSON_BYTES, "{}", json.len());
    }

    proptest! {
        #[test]
        fn cleaning_is_idempotent(text in "[a-z<>&é👨\u{200c}-\u{200f}\u{fe0e}\u{fe0f}\u{202e}\u{e0041}\r\n ]{0,40}") {
            let cleaned = clean(&text);
            prop_assert_eq!(&clean(&cleaned), &cleaned);
            prop_assert!(!escape(&cleaned).contains(['<', '>']));
        }

        #[test]
        fn json_without_invisible_characters_can_be_parsed(text in "[ -~é寿😀\n\t]{0,40}") {
            let value = Value::from(text);
            let json = ascii_json(&value);
            prop_assert!(json.is_ascii() && !json.contains(['<', '>', '&', '\n']));
            prop_assert_eq!(serde_json::from_str::<Value>(&json).expect("is JSON"), value);
        }
    }
}
