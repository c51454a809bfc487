//! Parses JSON that is nested more deeply than `serde_json` allows.
//!
//! `serde_json` parses by recursion and returns an error after [`SERDE_MAX_DEPTH`] levels. A deeper text is parsed without this
//! limit, but only after a scan has found that it is not deeper than [`MAX_DEPTH`], so that the stack cannot overflow.

use serde::Deserialize;
use serde::de::Error as _;
use serde_json::{Deserializer, Error, Value};

use super::string_end;

/// The maximum nesting depth of JSON from clients: the number of arrays and objects around the innermost value.
pub const MAX_DEPTH: usize = 256;
/// The maximum nesting depth of `serde_json`.
const SERDE_MAX_DEPTH: usize = 127;

/// Parses a JSON text with one value.
pub(super) fn parse(text: &[u8]) -> Result<Value, Error> {
    serde_json::from_slice(text).or_else(|err| {
        with_deep_parser(text, err, |parser| {
            let value = Value::deserialize(&mut *parser)?;
            parser.end()?;
            Ok(value)
        })
    })
}

/// Parses the first value of a JSON text.
pub(super) fn parse_first(text: &[u8]) -> Result<Value, Error> {
    let first = Value::deserialize(&mut Deserializer::from_slice(text));
    first.or_else(|err| with_deep_parser(text, err, |parser| Value::deserialize(parser)))
}

/// Parses a text again that `serde_json` has rejected with `err`, if it may be too deep only for `serde_json`.
fn with_deep_parser<'a>(
    text: &'a [u8],
    err: Error,
    parse: impl FnOnce(&mut Deserializer<serde_json::de::SliceRead<'a>>) -> Result<Value, Error>,
) -> Result<Value, Error> {
    let depth = max_depth(text);
    if depth <= SERDE_MAX_DEPTH {
        return Err(err);
    }
    if depth > MAX_DEPTH {
        return Err(Error::custom(format_args!("must not be nested more than {MAX_DEPTH} levels deep")));
    }
    let mut parser = Deserializer::from_slice(text);
    parser.disable_recursion_limit();
    parse(&mut parser)
}

/// Returns the nesting depth of a JSON text. If the text is invalid, the depth is at least that of the part before the error.
pub(super) fn max_depth(text: &[u8]) -> usize {
    let (mut depth, mut max_depth) = (0_usize, 0);
    let mut offset = 0;
    while let Some(byte) = text.get(offset) {
        offset += 1;
        match byte {
            b'"' => offset = string_end(text, offset).map_or(text.len(), |end| end + 1),
            b'{' | b'[' => {
                depth += 1;
                max_depth = max_depth.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    max_depth
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(depth: usize) -> String {
        let pairs = (0..depth).map(|level| if level % 2 == 0 { ("{\"a\":", "}") } else { ("[", "]") });
        let (open, close): (Vec<_>, Vec<_>) = pairs.unzip();
        open.concat() + "\"[[[\"" + &close.into_iter().rev().collect::<String>()
    }

    #[test]
    fn depth_is_counted_outside_of_strings() {
        for depth in [0, 1, 127, 128, 256, 1000] {
            assert_eq!(max_depth(nested(depth).as_bytes()), depth);
        }
        for (text, depth) in [("[1, [2], {\"a\": [{}]}]", 4), ("\"[[\\\"[[\"", 0), ("]]][", 1), ("[\"[[[", 1)] {
            assert_eq!(max_depth(text.as_bytes()), depth, "{text}");
        }
    }

    #[test]
    fn values_are_parsed_up_to_the_maximum_depth() {
        for depth in [1, 127, 128, MAX_DEPTH] {
            let text = nested(depth);
            for value in [parse(text.as_bytes()), parse_first((text.clone() + " rest").as_bytes())] {
                let value = value.expect("accepted");
                assert_eq!(value.to_string(), text);
                assert_eq!(value.clone(), value);
            }
            assert!(parse((text + "]").as_bytes()).is_err());
        }
        for depth in [MAX_DEPTH + 1, 100_000] {
            let error = parse(nested(depth).as_bytes()).expect_err("too deep").to_string();
            assert_eq!(error, "must not be nested more than 256 levels deep");
            assert!(parse_first("[".repeat(depth).as_bytes()).is_err());
        }
    }

    #[test]
    fn errors_in_shallow_texts_have_a_position() {
        assert_eq!(parse(b"[1,]").expect_err("invalid").to_string(), "trailing comma at line 1 column 4");
    }
}
