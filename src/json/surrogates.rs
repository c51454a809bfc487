//! Replaces lone surrogates in the escapes of a JSON text.
//!
//! Escapes are UTF-16, in which a character such as an emoji is a pair of surrogates: `\ud83d\ude00`. Tools that cut a text
//! between the two leave half a character, which JSON libraries such as Python's write without an error. `serde_json` rejects it,
//! because no UTF-8 string can contain it.

use std::borrow::Cow;

use memchr::memmem;

/// Returns the text with U+FFFD, the replacement character, in place of each lone surrogate escape. The length does not change, so
/// the position of an error is that in the original text. Copies the text only if there is such an escape.
pub(super) fn replace_lone(text: &[u8]) -> Cow<'_, [u8]> {
    let mut replaced = Cow::Borrowed(text);
    let finder = memmem::Finder::new(b"\\u");
    let mut offset = 0;
    while let Some(escape) = finder.find(&text[offset..]).map(|found| offset + found) {
        offset = match unit_at(text, escape) {
            // The backslash is escaped itself.
            _ if !is_escape_start(text, escape) => escape + 2,
            Some(0xd800..=0xdbff) if matches!(unit_at(text, escape + 6), Some(0xdc00..=0xdfff)) => escape + 12,
            Some(0xd800..=0xdfff) => {
                replaced.to_mut()[escape + 2..escape + 6].copy_from_slice(b"fffd");
                escape + 6
            }
            _ => escape + 2,
        };
    }
    replaced
}

/// Returns the UTF-16 code unit of the escape at an offset, or `None` if there is no complete escape.
fn unit_at(text: &[u8], offset: usize) -> Option<u16> {
    let digits = text.get(offset..offset + 6)?.strip_prefix(b"\\u")?;
    // `from_str_radix` would accept a sign.
    let digits =
        std::str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
    u16::from_str_radix(digits, 16).ok()
}

/// Returns `true` unless the backslash at the offset is the second one of an escaped backslash.
fn is_escape_start(text: &[u8], offset: usize) -> bool {
    text[..offset].iter().rev().take_while(|byte| **byte == b'\\').count().is_multiple_of(2)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn replaced(text: &str) -> String {
        String::from_utf8(replace_lone(text.as_bytes()).into_owned()).expect("UTF-8")
    }

    #[test]
    fn lone_surrogates_become_the_replacement_character() {
        for (text, expected) in [
            (r#""cut \ud83d""#, r#""cut \ufffd""#),
            (r#""\uDE00 rest""#, r#""\ufffd rest""#),
            (r#""\ud83dx\ude00""#, r#""\ufffdx\ufffd""#),
            (r#""\ude00\ud83d""#, r#""\ufffd\ufffd""#),
            (r#""\ud83d\ud83d\ude00""#, r#""\ufffd\ud83d\ude00""#),
            (r#""\ud83d\\ude00""#, r#""\ufffd\\ude00""#),
            (r#"{"\ud83d": "\\\ud83d"}"#, r#"{"\ufffd": "\\\ufffd"}"#),
            (r#""\ud83d\u0041""#, r#""\ufffd\u0041""#),
        ] {
            assert_eq!(replaced(text), expected);
        }
    }

    #[test]
    fn other_texts_are_not_copied() {
        for text in [
            r#""\ud83d\ude00\uD83D\uDE00""#,
            r#""\\ud83d \\\\ude00""#,
            r#""\ud7ff\ue000 \u00e9""#,
            r#""\ud83""#,
            r#""\ud8+3""#,
            r#""\u"#,
            "plain 😀",
        ] {
            assert!(matches!(replace_lone(text.as_bytes()), Cow::Borrowed(_)), "{text}");
        }
    }

    proptest! {
        #[test]
        fn result_is_that_of_lossy_utf16(units in prop::collection::vec(
            prop_oneof![0xd800_u16..0xe000, Just(0xd83d), Just(0xde00), Just(0x5c), 0x20_u16..0x7f],
            0..12,
        )) {
            let escaped: Vec<_> = units.iter().map(|unit| format!("\\u{unit:04x}")).collect();
            let text = replaced(&format!("\"{}\"", escaped.concat()));
            let parsed: String = serde_json::from_str(&text).expect("valid JSON");
            prop_assert_eq!(parsed, String::from_utf16_lossy(&units));
        }

        #[test]
        fn valid_texts_do_not_change(text in "(?s)[\\\\ud83eDE0 \"\u{1f600}\u{0}]{0,30}") {
            // Serialized strings have no lone surrogates, but backslashes before a `u`.
            let json = serde_json::to_string(&text).expect("serializable");
            prop_assert_eq!(replaced(&json), json);
        }
    }
}
