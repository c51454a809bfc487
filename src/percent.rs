//! Percent-encoding and decoding (RFC 3986).

use std::fmt::Write as _;

/// Encodes every byte except letters, digits, `-._~` and those in `safe`.
pub fn encode(bytes: &[u8], safe: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) || safe.contains(byte) {
            out.push(char::from(*byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// Decodes the `%XX` escapes in `text`. Returns `None` if an escape is malformed or the result is not UTF-8.
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
        fn decode_reverses_encode(text in ".{0,40}") {
            let encoded = encode(text.as_bytes(), b"/");
            prop_assert!(encoded.is_ascii());
            prop_assert_eq!(decode(encoded.as_bytes()), Some(text));
        }
    }

    #[test]
    fn malformed_escapes_are_rejected() {
        for text in ["%", "%2", "%zz", "%ff"] {
            assert_eq!(decode(text.as_bytes()), None, "{text}");
        }
    }
}
