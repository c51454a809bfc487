//! Parses JSON from clients and serializes JSON for clients.
//!
//! `serde_json` has keys with a special meaning: an object whose only key is `$serde_json::private::RawValue` is parsed as the
//! JSON in its value, and the nesting depth is counted from zero again. With such keys, clients could exceed the maximum depth,
//! or make the server store other data than they sent. JSON from clients must therefore be parsed with [`parse`] or
//! [`parse_first`], which reject such keys.

use std::cell::Cell;

use memchr::{memchr2, memmem};
use serde::de::Error as _;
use serde_json::{Error, Map, Value};

mod long_strings;
mod nesting;
mod surrogates;

pub use nesting::MAX_DEPTH;

/// The prefix of the keys with a special meaning.
const SERDE_PRIVATE_PREFIX: &str = "$serde_json::private::";

/// Parses a JSON text. The maximum nesting depth is [`MAX_DEPTH`]. An escape of half a surrogate pair becomes U+FFFD.
///
/// # Errors
/// Returns an error if the text is not a single JSON value, is nested too deeply, or has a key that begins with
/// `$serde_json::private::`.
pub fn parse(text: &[u8]) -> Result<Value, Error> {
    let text = &surrogates::replace_lone(text);
    check_keys(text)?;
    long_strings::parse(text)
}

/// Parses a JSON text that this server has serialized, without checking its keys.
///
/// # Errors
/// Returns an error if the text is not valid JSON.
pub fn parse_trusted(text: &[u8]) -> Result<Value, Error> {
    long_strings::parse(text)
}

/// Parses the first JSON value of a text and ignores the rest.
///
/// # Errors
/// Returns the same errors as [`parse`].
pub fn parse_first(text: &[u8]) -> Result<Value, Error> {
    let text = &surrogates::replace_lone(text);
    check_keys(text)?;
    // Usually the text is a single value, so the faster parser, which rejects any further text, is tried first.
    long_strings::parse(text).or_else(|_| nesting::parse_first(text))
}

/// An upper bound of the size of a JSON text after parsing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    /// The number of values, including nested values.
    pub values: usize,
    /// The memory of the parsed value in bytes.
    pub bytes: usize,
}

/// The memory of a value in an array or object: the value, its key, and the smallest allocations for a string and a number.
const VALUE_BYTES: usize = 112;
/// The memory of a node of a `BTreeMap<String, Value>`, of which an object has at least one.
const OBJECT_BYTES: usize = 640;
/// The memory of the smallest allocation of a vector.
const ARRAY_BYTES: usize = 128;

impl Estimate {
    /// Adds the size of a parsed object.
    pub fn add_object(&mut self, object: &Map<String, Value>) {
        self.values += object.len();
        self.bytes += if object.is_empty() { 0 } else { OBJECT_BYTES };
        for (key, value) in object {
            self.bytes += key.len() + VALUE_BYTES;
            self.add_value(value);
        }
    }

    fn add_value(&mut self, value: &Value) {
        match value {
            Value::Null | Value::Bool(_) => {}
            Value::Number(number) => self.bytes += number.as_str().len(),
            Value::String(text) => self.bytes += text.len(),
            Value::Array(items) => {
                self.values += items.len();
                self.bytes += ARRAY_BYTES + items.len() * VALUE_BYTES;
                for item in items {
                    self.add_value(item);
                }
            }
            Value::Object(object) => self.add_object(object),
        }
    }
}

/// A limit for the number of values that are parsed from the strings in a JSON document, such as the arguments of its tool calls.
pub struct ValueBudget(Cell<usize>);

impl Default for ValueBudget {
    fn default() -> Self {
        Self(Cell::new(Self::MAX_VALUES))
    }
}

impl ValueBudget {
    const MAX_VALUES: usize = 250_000;
    /// The maximum nesting depth of a parsed text. A message that contains the value must not be deeper than [`MAX_DEPTH`], so
    /// that the message can be stored again.
    const MAX_DEPTH: usize = MAX_DEPTH - 16;

    /// Resets the remaining budget to the maximum.
    pub fn reset(&self) {
        self.0.set(Self::MAX_VALUES);
    }

    /// Parses a text. Returns `None` if the text is not valid JSON, is nested too deeply to be a part of a message, or may have
    /// more values than the remaining budget.
    pub fn parse(&self, text: &str) -> Option<Value> {
        let values = estimate(text.as_bytes()).values;
        let remaining = self.0.get().checked_sub(values)?;
        // Each level is a value, so a text with few values needs no scan of its depth.
        if values > Self::MAX_DEPTH && nesting::max_depth(text.as_bytes()) > Self::MAX_DEPTH {
            return None;
        }
        let value = parse(text.as_bytes()).ok()?;
        self.0.set(remaining);
        Some(value)
    }
}

/// Estimates the size of a JSON text without parsing it. For invalid JSON, the estimate is arbitrary.
pub fn estimate(text: &[u8]) -> Estimate {
    let (mut separators, mut objects, mut arrays) = (0, 0, 0);
    let mut offset = 0;
    while let Some(byte) = text.get(offset) {
        offset += 1;
        match byte {
            b'"' => offset = string_end(text, offset).map_or(text.len(), |end| end + 1),
            b',' => separators += 1,
            b'{' => objects += 1,
            b'[' => arrays += 1,
            _ => {}
        }
    }
    // An object or array has at most one value more than it has commas.
    let values = 1 + separators + objects + arrays;
    Estimate { values, bytes: text.len() + values * VALUE_BYTES + objects * OBJECT_BYTES + arrays * ARRAY_BYTES }
}

/// Serializes a value and appends the JSON to `out`. The JSON equals that of `serde_json`. For messages, which consist mainly of
/// long strings, this function takes half the time of `serde_json`.
pub fn write(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(number) => out.extend_from_slice(number.as_str().as_bytes()),
        Value::String(text) => write_string(text, out),
        Value::Array(list) => {
            out.push(b'[');
            for (i, value) in list.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write(value, out);
            }
            out.push(b']');
        }
        Value::Object(object) => {
            out.push(b'{');
            write_fields(object, out);
            out.push(b'}');
        }
    }
}

/// Serializes a string and appends it to `out`, with quotes.
pub fn write_string(text: &str, out: &mut Vec<u8>) {
    json_escape_simd::escape_into(text, out);
}

/// Serializes the fields of an object and appends them to `out`, without braces. Writes a comma before the first field unless
/// `out` ends with `{`.
pub fn write_fields(object: &Map<String, Value>, out: &mut Vec<u8>) {
    for (key, value) in object {
        if out.last() != Some(&b'{') {
            out.push(b',');
        }
        write_string(key, out);
        out.push(b':');
        write(value, out);
    }
}

/// Serializes a value.
pub fn to_vec(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    write(value, &mut out);
    out
}

/// Rejects keys that begin with [`SERDE_PRIVATE_PREFIX`].
fn check_keys(text: &[u8]) -> Result<(), Error> {
    // A text with such a key contains a `\u` escape or a part of the prefix. Most texts contain neither.
    let may_have_private_key = memmem::find(text, b"\\u").is_some() || memmem::find(text, b"$serde_json::").is_some();
    if may_have_private_key && has_private_key(text) {
        return Err(Error::custom(format_args!("a key must not begin with {SERDE_PRIVATE_PREFIX}")));
    }
    Ok(())
}

/// Returns `true` if a key begins with [`SERDE_PRIVATE_PREFIX`], escaped or not. A key is a string that is followed by a colon.
fn has_private_key(text: &[u8]) -> bool {
    let mut offset = 0;
    while let Some(start) = text[offset..].iter().position(|byte| *byte == b'"').map(|quote| offset + quote + 1) {
        let Some(end) = string_end(text, start) else { return false };
        offset = end + 1;
        let is_key = text[offset..].iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b':');
        if is_key && has_private_prefix(&text[start - 1..=end]) {
            return true;
        }
    }
    false
}

/// Returns the offset of the closing quote of the string whose first character is at `start`, or `None` if there is no closing
/// quote.
fn string_end(text: &[u8], start: usize) -> Option<usize> {
    let mut offset = start;
    loop {
        offset += memchr2(b'"', b'\\', text.get(offset..)?)?;
        if text[offset] == b'"' {
            return Some(offset);
        }
        offset += 2;
    }
}

fn has_private_prefix(quoted: &[u8]) -> bool {
    // The whole string is unescaped although the prefix would be enough, because keys are short.
    serde_json::from_slice::<String>(quoted).is_ok_and(|key| key.starts_with(SERDE_PRIVATE_PREFIX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn private_keys_are_rejected_with_and_without_escapes() {
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
    fn private_prefix_is_allowed_in_values() {
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
    fn estimates_count_values_and_skip_strings() {
        for (text, values) in [
            ("1", 1),
            (r#"{"a": 1}"#, 2),
            (r#"[1, 2, [3, {"a": {}}]]"#, 8),
            (r#"{"a": "[1, 2, {\"b\": 3}]", "c\\": ","}"#, 3),
            (r#""unfinished \", [,,,"#, 1),
        ] {
            assert_eq!(estimate(text.as_bytes()).values, values, "{text}");
        }
        let dense = format!("[{}]", vec![r#"{"a":1}"#; 1000].join(","));
        assert_eq!(estimate(dense.as_bytes()).values, 2001);
        assert!(estimate(dense.as_bytes()).bytes > 80 * dense.len());
        let long = format!("[\"{}\"]", "x".repeat(100_000));
        assert!(estimate(long.as_bytes()).bytes < 101_000);
    }

    fn nested(depth: usize) -> String {
        format!("{}{}", "[".repeat(depth), "]".repeat(depth))
    }

    #[test]
    fn json_nested_256_deep_is_accepted() {
        for depth in [100, 200, MAX_DEPTH] {
            for text in [nested(depth), format!("{{\"a\":\"{}\",\"b\":{}}}", "x".repeat(100_000), nested(depth - 1))] {
                let value = parse(text.as_bytes()).expect("accepted");
                assert_eq!(String::from_utf8(to_vec(&value)).expect("UTF-8"), text);
                assert_eq!(parse_trusted(text.as_bytes()).expect("accepted"), value);
                assert_eq!(parse_first((text + " rest").as_bytes()).expect("accepted"), value);
            }
        }
        for depth in [MAX_DEPTH + 1, 1_000_000] {
            assert!(parse(nested(depth).as_bytes()).is_err());
            assert!(parse_first(nested(depth).as_bytes()).is_err());
        }
    }

    #[test]
    fn nested_json_fits_into_a_message() {
        let budget = ValueBudget::default();
        assert!(budget.parse(&nested(240)).is_some());
        assert!(budget.parse(&nested(241)).is_none());
        assert!(budget.parse("[".repeat(1_000_000).as_str()).is_none());
    }

    #[test]
    fn lone_surrogates_become_the_replacement_character() {
        let expected = serde_json::json!({"a\u{fffd}": ["half \u{fffd}", "\u{fffd}", "😀"]});
        let text = r#"{"a\ud83d": ["half \ud83d", "\ude00", "\ud83d\ude00"]}"#;
        assert_eq!(parse(text.as_bytes()).expect("accepted"), expected);
        assert_eq!(parse_first(text.as_bytes()).expect("accepted"), expected);
        let long = "x".repeat(100_000);
        assert_eq!(parse(format!("\"{long}\\ud83d\"").as_bytes()).expect("accepted"), format!("{long}\u{fffd}"));
        // JSON inside of a string, such as the arguments of a call.
        let arguments = r#"{"q":"half \ud83d"}"#;
        assert_eq!(ValueBudget::default().parse(arguments), Some(serde_json::json!({"q": "half \u{fffd}"})));
        // The replacement does not hide a key with a special meaning.
        assert!(parse(r#"{"$serde_json::private::\ud83d": 1}"#.as_bytes()).is_err());
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let number = "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?";
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            number.prop_map(|digits| parse(digits.as_bytes()).expect("a number")),
            // Around the vector widths of the escaping code, with all characters that are escaped.
            "(?s)[a-z\"\\\\/\u{0}-\u{20}\u{7f}-\u{a0}\u{2028}é寿😀]{0,80}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec(("(?s).{0,6}", inner), 0..6).prop_map(|fields| fields.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn output_is_that_of_serde_json(value in any_value()) {
            prop_assert_eq!(String::from_utf8(to_vec(&value)).expect("UTF-8"), value.to_string());
        }

        #[test]
        fn arbitrary_text_does_not_panic(text in "[\"\\\\u:{}$a0-9 \n]{0,60}") {
            let _ = parse(text.as_bytes());
            let _ = has_private_key(text.as_bytes());
        }
    }
}
