//! Parses JSON with long strings in less memory than `serde_json`. `serde_json` unescapes a string into a buffer that grows by
//! doubling, and then copies the string.
//!
//! Long strings other than keys are extracted first, and unescaped directly into their final allocation. Each extracted string is
//! replaced in the text by an unguessable placeholder, and `serde_json` parses the short text that results. If a string is
//! invalid, `serde_json` parses the original text. The result is therefore always that of `serde_json`.

use memchr::memchr;
use serde_json::{Error, Value};
use uuid::Uuid;

use super::{nesting, string_end};

/// The length above which a string is extracted, in bytes of its escaped text.
const LONG_STRING_BYTES: usize = 64 * 1024;

/// Parses a JSON text.
pub(super) fn parse(text: &[u8]) -> Result<Value, Error> {
    if text.len() <= LONG_STRING_BYTES {
        return nesting::parse(text);
    }
    let placeholder = Uuid::new_v4().simple().to_string();
    if let Some((rest, mut strings)) = extract_long_strings(text, &placeholder)
        && !strings.is_empty()
        && let Ok(mut value) = nesting::parse(&rest)
    {
        restore_long_strings(&mut value, &placeholder, &mut strings);
        return Ok(value);
    }
    // Errors must have the line and column of the original text.
    nesting::parse(text)
}

/// Returns the JSON with placeholders for its long strings, except keys, and these strings. Returns `None` if such a string is
/// invalid, or if any string has no closing quote.
fn extract_long_strings(text: &[u8], placeholder: &str) -> Option<(Vec<u8>, Vec<String>)> {
    let mut rest = Vec::new();
    let mut strings = Vec::new();
    let (mut offset, mut copied) = (0, 0);
    while let Some(start) = memchr(b'"', &text[offset..]).map(|quote| offset + quote + 1) {
        let end = string_end(text, start)?;
        offset = end + 1;
        let is_key = || text[offset..].iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b':');
        if end - start > LONG_STRING_BYTES && !is_key() {
            rest.extend_from_slice(&text[copied..start]);
            rest.extend_from_slice(format!("{placeholder}{}", strings.len()).as_bytes());
            strings.push(unescape(&text[start..end])?);
            copied = end;
        }
    }
    rest.extend_from_slice(&text[copied..]);
    Some((rest, strings))
}

/// Unescapes the text between the quotes of a JSON string. Returns `None` if the text is invalid.
fn unescape(raw: &[u8]) -> Option<String> {
    let mut raw = std::str::from_utf8(raw).ok().filter(|raw| !raw.bytes().any(|byte| byte < b' '))?;
    let mut text = String::with_capacity(raw.len());
    while let Some(escape) = memchr(b'\\', raw.as_bytes()) {
        text.push_str(&raw[..escape]);
        let length = match raw.as_bytes().get(escape + 1)? {
            b'u' if raw.get(escape + 2..escape + 3).is_some_and(|digit| matches!(digit, "d" | "D")) => {
                // D800 to DFFF are surrogates, which come in pairs; D000 to D7FF are characters.
                let is_surrogate = raw.get(escape + 3..escape + 4).is_some_and(|digit| digit > "7");
                if is_surrogate { 12 } else { 6 }
            }
            b'u' => 6,
            _ => 2,
        };
        let (escaped, rest) = raw[escape..].split_at_checked(length)?;
        match escaped {
            "\\n" => text.push('\n'),
            "\\\"" => text.push('"'),
            "\\\\" => text.push('\\'),
            "\\t" => text.push('\t'),
            _ => text.push_str(&serde_json::from_str::<String>(&format!("\"{escaped}\"")).ok()?),
        }
        raw = rest;
    }
    text.push_str(raw);
    Some(text)
}

/// Replaces the placeholders by the extracted strings.
fn restore_long_strings(value: &mut Value, placeholder: &str, strings: &mut [String]) {
    match value {
        Value::String(text) => {
            let index = text.strip_prefix(placeholder).and_then(|index| index.parse::<usize>().ok());
            if let Some(string) = index.and_then(|index| strings.get_mut(index)) {
                *text = std::mem::take(string);
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| restore_long_strings(value, placeholder, strings)),
        Value::Object(object) => {
            object.values_mut().for_each(|value| restore_long_strings(value, placeholder, strings));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Repeats a text until it is long enough to be extracted.
    fn long(text: &str) -> String {
        text.repeat(LONG_STRING_BYTES / text.len() + 2)
    }

    #[test]
    fn long_strings_are_parsed_as_by_serde_json() {
        for part in ["plain ", "a\\nb\\\"\\\\ \\/\\b\\f\\r\\t", "\\u00e9é寿", "\\ud83d\\ude00 \\uD7FF\\ue000", "😀"]
        {
            let long = long(part);
            let text = format!("{{\"a\": [\"{long}\", 1.50, \"short\"], \"{long}\" : null, \"b\":\"x{long}\"}}");
            let expected: Value = serde_json::from_str(&text).expect("is JSON");
            let (rest, strings) = extract_long_strings(text.as_bytes(), "mark").expect("valid strings");
            assert_eq!(strings.len(), 2);
            assert!(rest.len() < long.len() + 200, "a long string was not extracted");
            assert_eq!(parse(text.as_bytes()).expect("is JSON"), expected);
        }
    }

    #[test]
    fn errors_are_those_of_serde_json() {
        for invalid in ["\\ud83d", "\\ud83dx\\ude00", "\\x", "\\u12", "\n", "\\udc00\\ud800"] {
            let long = long("a long text ");
            for text in
                [format!("[\"{long}{invalid}\"]"), format!("[\"{long}{invalid}"), format!("[\"{long}\",\"{invalid}\"]")]
            {
                let expected = serde_json::from_str::<Value>(&text).expect_err("invalid JSON").to_string();
                assert_eq!(parse(text.as_bytes()).expect_err("invalid JSON").to_string(), expected, "{invalid}");
            }
        }
        assert!(parse(&[b"[\"".to_vec(), vec![0xff; LONG_STRING_BYTES + 1], b"\"]".to_vec()].concat()).is_err());
    }

    #[test]
    fn only_placeholders_with_a_known_index_are_replaced() {
        let mut value = json!(["mark0", "mark7", "markx", {"mark1": "mark1"}]);
        restore_long_strings(&mut value, "mark", &mut ["zero".to_owned(), "one".to_owned()]);
        assert_eq!(value, json!(["zero", "mark7", "markx", {"mark1": "one"}]));
    }

    proptest! {
        #[test]
        fn any_long_string_is_parsed_as_by_serde_json(parts in prop::collection::vec(
            "([a-z é寿😀\"]|\\\\[nrtbf/\"\\\\]|\\\\u[0-9a-fA-F]{4}|\\\\u[dD][89aAbB][0-9]{2}\\\\u[dD][c-fC-F][0-9]{2}){0,12}",
            0..4,
        ), index in 0..5_usize) {
            let mut parts = parts;
            parts.insert(index.min(parts.len()), long("x"));
            let text = format!("[\"{}\"]", parts.concat());
            match (parse(text.as_bytes()), serde_json::from_str::<Value>(&text)) {
                (Ok(value), Ok(expected)) => prop_assert_eq!(value, expected),
                (result, expected) => {
                    prop_assert_eq!(result.map_err(|err| err.to_string()), expected.map_err(|err| err.to_string()));
                }
            }
        }
    }
}
