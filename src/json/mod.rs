//! JSON text that comes from outside, and that goes there.
//!
//! `serde_json` has keys that mean something to itself: an object with the one key `$serde_json::private::RawValue` is read as
//! the JSON that stands in its text, with a fresh count of how deep it goes. So whoever may choose keys could nest without an
//! end, or have something else stored than what was sent. Such a key is refused here, and everything from outside is read
//! here.

use std::cell::Cell;

use memchr::{memchr2, memmem};
use serde::Deserialize;
use serde::de::Error as _;
use serde_json::{Deserializer, Error, Map, Value};

mod long;

const PRIVATE: &str = "$serde_json::private::";

/// Reads a JSON text. It may nest 127 deep.
///
/// # Errors
/// It is no JSON, is more than one value, or has a key that begins with `$serde_json::private::`.
pub fn parse(text: &[u8]) -> Result<Value, Error> {
    check_keys(text)?;
    long::parse(text)
}

/// Reads a JSON text that was written here.
///
/// # Errors
/// It is no JSON.
pub fn parse_own(text: &[u8]) -> Result<Value, Error> {
    long::parse(text)
}

/// Reads the first JSON value of a text; what follows it is ignored.
///
/// # Errors
/// As for [`parse`].
pub fn parse_first(text: &[u8]) -> Result<Value, Error> {
    check_keys(text)?;
    // Hardly ever does something follow.
    long::parse(text).or_else(|_| Value::deserialize(&mut Deserializer::from_slice(text)))
}

/// An upper bound of what a JSON text becomes when it is parsed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Values, those inside of others included.
    pub values: usize,
    /// Memory of the parsed value, in bytes.
    pub bytes: usize,
}

/// Memory of one value in its array or object: itself, its key, and the smallest allocations for a text and a number.
const VALUE_BYTES: usize = 112;
/// Memory of a node of a `BTreeMap<String, Value>`, which an object takes even for a single key.
const OBJECT_BYTES: usize = 640;
/// Memory of the smallest vector.
const ARRAY_BYTES: usize = 128;

impl Estimate {
    /// Adds what a parsed object takes, in the same measure.
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

/// Bounds how many values are parsed from the texts inside of one JSON document, such as the arguments of its tool calls.
pub struct ValueBudget(Cell<usize>);

impl Default for ValueBudget {
    fn default() -> Self {
        Self(Cell::new(Self::MAX_VALUES))
    }
}

impl ValueBudget {
    const MAX_VALUES: usize = 250_000;

    /// Starts with the whole budget again.
    pub fn reset(&self) {
        self.0.set(Self::MAX_VALUES);
    }

    /// Parses a text. Returns `None` if it is not JSON, or may have more values than are left.
    pub fn parse(&self, text: &str) -> Option<Value> {
        let values = estimate(text.as_bytes()).values;
        let left = self.0.get().checked_sub(values)?;
        let value = parse(text.as_bytes()).ok()?;
        self.0.set(left);
        Some(value)
    }
}

/// Estimates a JSON text without parsing it. A text that is not JSON has some estimate too.
pub fn estimate(text: &[u8]) -> Estimate {
    let (mut separators, mut objects, mut arrays) = (0, 0, 0);
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        at += 1;
        match byte {
            b'"' => at = string_end(text, at).map_or(text.len(), |end| end + 1),
            b',' => separators += 1,
            b'{' => objects += 1,
            b'[' => arrays += 1,
            _ => {}
        }
    }
    // An object or array has one value more than commas.
    let values = 1 + separators + objects + arrays;
    Estimate { values, bytes: text.len() + values * VALUE_BYTES + objects * OBJECT_BYTES + arrays * ARRAY_BYTES }
}

/// Writes a value at the end of a text, as `serde_json` would and in half the time: most of a message is long texts.
pub fn write(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(number) => out.extend_from_slice(number.as_str().as_bytes()),
        Value::String(text) => write_text(text, out),
        Value::Array(list) => {
            out.push(b'[');
            for (at, value) in list.iter().enumerate() {
                if at > 0 {
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

/// Writes a text with its quotes.
pub fn write_text(text: &str, out: &mut Vec<u8>) {
    json_escape_simd::escape_into(text, out);
}

/// Writes the fields of an object, without its braces. They follow others if the text does not end with a brace.
pub fn write_fields(object: &Map<String, Value>, out: &mut Vec<u8>) {
    for (key, value) in object {
        if out.last() != Some(&b'{') {
            out.push(b',');
        }
        write_text(key, out);
        out.push(b':');
        write(value, out);
    }
}

/// Writes a value.
pub fn to_vec(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    write(value, &mut out);
    out
}

fn check_keys(text: &[u8]) -> Result<(), Error> {
    // Spelled in full or with escapes; most texts have neither.
    let suspicious = memmem::find(text, b"\\u").is_some() || memmem::find(text, b"$serde_json::").is_some();
    if suspicious && has_private_key(text) {
        return Err(Error::custom(format_args!("a key must not begin with {PRIVATE}")));
    }
    Ok(())
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

/// Returns the position of the quote that ends the string whose first character is at `start`.
fn string_end(text: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        at += memchr2(b'"', b'\\', text.get(at..)?)?;
        if text[at] == b'"' {
            return Some(at);
        }
        at += 2;
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
    fn estimates_count_values_and_skip_texts() {
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

    #[test]
    fn depth_is_bounded() {
        assert!(parse("[".repeat(200).as_bytes()).is_err());
        assert!(parse(format!("{}{}", "[".repeat(100), "]".repeat(100)).as_bytes()).is_ok());
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let number = "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?";
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            number.prop_map(|digits| parse(digits.as_bytes()).expect("a number")),
            // Around the widths that are looked at together, with everything that is escaped.
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
        fn what_is_written_is_what_serde_writes(value in any_value()) {
            prop_assert_eq!(String::from_utf8(to_vec(&value)).expect("UTF-8"), value.to_string());
        }

        #[test]
        fn any_text_is_looked_at_without_a_panic(text in "[\"\\\\u:{}$a0-9 \n]{0,60}") {
            let _ = parse(text.as_bytes());
            let _ = has_private_key(text.as_bytes());
        }
    }
}
