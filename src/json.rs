//! JSON text that comes from outside.
//!
//! `serde_json` has keys that mean something to itself: an object with the one key `$serde_json::private::RawValue` is read as
//! the JSON that stands in its text, with a fresh count of how deep it goes. So whoever may choose keys could nest without an
//! end, or have something else stored than what was sent. Such a key is refused here, and everything from outside is read
//! here.

use serde::Deserialize;
use serde::de::Error as _;
use serde_json::{Deserializer, Error, Value};

const PRIVATE: &str = "$serde_json::private::";

/// Reads a JSON text. It may nest 127 deep.
///
/// # Errors
/// It is no JSON, is more than one value, or has a key that begins with `$serde_json::private::`.
pub fn parse(text: &[u8]) -> Result<Value, Error> {
    check_keys(text)?;
    serde_json::from_slice(text)
}

/// Reads the first JSON value of a text; what follows it is ignored.
///
/// # Errors
/// As for [`parse`].
pub fn parse_first(text: &[u8]) -> Result<Value, Error> {
    check_keys(text)?;
    Value::deserialize(&mut Deserializer::from_slice(text))
}

fn check_keys(text: &[u8]) -> Result<(), Error> {
    // Spelled in full or with escapes; most texts have neither.
    let suspicious = text.windows(2).any(|two| two == b"\\u") || contains(text, b"$serde_json::");
    if suspicious && has_private_key(text) {
        return Err(Error::custom(format_args!("a key must not begin with {PRIVATE}")));
    }
    Ok(())
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
}

/// Whether a string that a colon follows begins with the private prefix, however it is escaped.
fn has_private_key(text: &[u8]) -> bool {
    let mut at = 0;
    while let Some(start) = text[at..].iter().position(|byte| *byte == b'"').map(|quote| at + quote + 1) {
        let Some(end) = string_end(text, start) else { return false };
        at = end + 1;
        let colon = text[at..].iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b':');
        if colon && is_private(&text[start - 1..=end]) {
            return true;
        }
    }
    false
}

/// Where the quote stands that ends the string which begins at `start`.
fn string_end(text: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        match text.get(at)? {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

fn is_private(quoted: &[u8]) -> bool {
    // Longer than the longest spelling of the prefix need not be looked at to its end, but keys are short.
    serde_json::from_slice::<String>(quoted).is_ok_and(|key| key.starts_with(PRIVATE))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn private_keys_are_refused_however_they_are_spelled() {
        for key in
            ["$serde_json::private::RawValue", "\\u0024serde_json::private::Number", "$serde_json\\u003a:private::x"]
        {
            for text in [format!("{{\"{key}\":\"12\"}}"), format!("[1, {{\"a\": \"b\", \"{key}\" \n : \"12\"}}]")] {
                assert!(parse(text.as_bytes()).is_err(), "{text}");
                assert!(parse_first(text.as_bytes()).is_err(), "{text}");
            }
        }
    }

    #[test]
    fn speaking_of_them_is_fine() {
        for text in [
            r#"{"a":"$serde_json::private::RawValue"}"#,
            r#"["$serde_json::private::RawValue", ": 1"]"#,
            r#"{"a":"\"$serde_json::private::RawValue\": 1"}"#,
            r#"{"\u0041":"\\"}"#,
        ] {
            assert!(parse(text.as_bytes()).is_ok(), "{text}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        assert!(parse("[".repeat(200).as_bytes()).is_err());
        assert!(parse(format!("{}{}", "[".repeat(100), "]".repeat(100)).as_bytes()).is_ok());
    }

    proptest! {
        #[test]
        fn any_text_is_looked_at_without_a_panic(text in "[\"\\\\u:{}$a0-9 \n]{0,60}") {
            let _ = parse(text.as_bytes());
            let _ = has_private_key(text.as_bytes());
        }
    }
}
