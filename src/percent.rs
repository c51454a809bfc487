//! Percent-encoding, both ways.

use std::fmt::Write as _;

/// Escapes every byte but letters, digits, `-._~` and those in `keep`.
pub fn encode(bytes: &[u8], keep: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) || keep.contains(byte) {
            out.push(char::from(*byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// Undoes `%XX`; `None` for a broken escape or what is not UTF-8.
pub fn decode(text: &[u8]) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(byte) = rest.next() {
        out.push(if *byte == b'%' {
            let mut digit = || char::from(*rest.next()?).to_digit(16).and_then(|n| u8::try_from(n).ok());
            digit()? << 4 | digit()?
        } else {
            *byte
        });
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(text in ".{0,40}") {
            let encoded = encode(text.as_bytes(), b"/");
            prop_assert!(encoded.is_ascii());
            prop_assert_eq!(decode(encoded.as_bytes()), Some(text));
        }
    }

    #[test]
    fn broken_escapes_are_noticed() {
        for text in ["%", "%2", "%zz", "%ff"] {
            assert_eq!(decode(text.as_bytes()), None, "{text}");
        }
    }
}
