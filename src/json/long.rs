//! Long texts inside JSON, read without holding them three times.
//!
//! `serde_json` unescapes a text in a buffer that grows by doubling, and copies it out. Here each long text is cut out first and
//! unescaped right into its place; what is left of the JSON is short, and a word that nobody can guess stands for each text.
//! Whatever is unusual is left to `serde_json` as it is, so the two can never disagree.

use memchr::memchr;
use serde_json::{Error, Value};
use uuid::Uuid;

use super::string_end;

/// Longer texts are cut out, in bytes as they stand there.
const LONG: usize = 64 * 1024;

/// Reads a JSON text.
pub(super) fn parse(text: &[u8]) -> Result<Value, Error> {
    if text.len() <= LONG {
        return serde_json::from_slice(text);
    }
    let mark = Uuid::new_v4().simple().to_string();
    if let Some((rest, mut texts)) = cut(text, &mark).filter(|(_, texts)| !texts.is_empty())
        && let Ok(mut value) = serde_json::from_slice(&rest)
    {
        restore(&mut value, &mark, &mut texts);
        return Ok(value);
    }
    // A error is told with the line and column of the text itself.
    serde_json::from_slice(text)
}

/// The JSON without its long texts, and these. `None` if there is anything about them that is not plain.
fn cut(text: &[u8], mark: &str) -> Option<(Vec<u8>, Vec<String>)> {
    let mut rest = Vec::new();
    let mut texts = Vec::new();
    let (mut at, mut kept) = (0, 0);
    while let Some(start) = memchr(b'"', &text[at..]).map(|quote| at + quote + 1) {
        let end = string_end(text, start)?;
        at = end + 1;
        let is_key = || text[at..].iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b':');
        if end - start > LONG && !is_key() {
            rest.extend_from_slice(&text[kept..start]);
            rest.extend_from_slice(format!("{mark}{}", texts.len()).as_bytes());
            texts.push(unescape(&text[start..end])?);
            kept = end;
        }
    }
    rest.extend_from_slice(&text[kept..]);
    Some((rest, texts))
}

/// What stands between two quotes.
fn unescape(raw: &[u8]) -> Option<String> {
    let mut raw = std::str::from_utf8(raw).ok().filter(|raw| !raw.bytes().any(|byte| byte < b' '))?;
    let mut text = String::with_capacity(raw.len());
    while let Some(escape) = memchr(b'\\', raw.as_bytes()) {
        text.push_str(&raw[..escape]);
        let length = match raw.as_bytes().get(escape + 1)? {
            b'u' if raw.get(escape + 2..escape + 3).is_some_and(|digit| matches!(digit, "d" | "D")) => {
                // Half of a character that takes two, or one of its neighbours.
                let is_half = raw.get(escape + 3..escape + 4).is_some_and(|digit| digit > "7");
                if is_half { 12 } else { 6 }
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

/// Puts the texts back.
fn restore(value: &mut Value, mark: &str, texts: &mut [String]) {
    match value {
        Value::String(text) => {
            let at = text.strip_prefix(mark).and_then(|at| at.parse::<usize>().ok());
            if let Some(long) = at.and_then(|at| texts.get_mut(at)) {
                *text = std::mem::take(long);
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| restore(value, mark, texts)),
        Value::Object(object) => object.values_mut().for_each(|value| restore(value, mark, texts)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Long enough to be cut out whatever stands in it.
    fn long(piece: &str) -> String {
        piece.repeat(LONG / piece.len() + 2)
    }

    #[test]
    fn long_texts_are_what_serde_reads() {
        for piece in ["plain ", "a\\nb\\\"\\\\ \\/\\b\\f\\r\\t", "\\u00e9é寿", "\\ud83d\\ude00 \\uD7FF\\ue000", "😀"]
        {
            let piece = long(piece);
            let text = format!("{{\"a\": [\"{piece}\", 1.50, \"short\"], \"{piece}\" : null, \"b\":\"x{piece}\"}}");
            let read: Value = serde_json::from_str(&text).expect("is JSON");
            let (rest, texts) = cut(text.as_bytes(), "mark").expect("is plain");
            assert_eq!(texts.len(), 2);
            assert!(rest.len() < piece.len() + 200, "a long text was left");
            assert_eq!(parse(text.as_bytes()).expect("is JSON"), read);
        }
    }

    #[test]
    fn what_serde_refuses_is_refused_in_its_words() {
        for wrong in ["\\ud83d", "\\ud83dx\\ude00", "\\x", "\\u12", "\n", "\\udc00\\ud800"] {
            let piece = long("a long text ");
            for text in
                [format!("[\"{piece}{wrong}\"]"), format!("[\"{piece}{wrong}"), format!("[\"{piece}\",\"{wrong}\"]")]
            {
                let said = serde_json::from_str::<Value>(&text).expect_err("is no JSON").to_string();
                assert_eq!(parse(text.as_bytes()).expect_err("is no JSON").to_string(), said, "{wrong}");
            }
        }
        assert!(parse(&[b"[\"".to_vec(), vec![0xff; LONG + 1], b"\"]".to_vec()].concat()).is_err());
    }

    #[test]
    fn a_mark_that_somebody_wrote_stands_for_nothing() {
        let mut value = json!(["mark0", "mark7", "markx", {"mark1": "mark1"}]);
        restore(&mut value, "mark", &mut ["zero".to_owned(), "one".to_owned()]);
        assert_eq!(value, json!(["zero", "mark7", "markx", {"mark1": "one"}]));
    }

    proptest! {
        #[test]
        fn any_long_text_is_what_serde_reads(pieces in prop::collection::vec(
            "([a-z é寿😀\"]|\\\\[nrtbf/\"\\\\]|\\\\u[0-9a-fA-F]{4}|\\\\u[dD][89aAbB][0-9]{2}\\\\u[dD][c-fC-F][0-9]{2}){0,12}",
            0..4,
        ), at in 0..5_usize) {
            let mut pieces = pieces;
            pieces.insert(at.min(pieces.len()), long("x"));
            let text = format!("[\"{}\"]", pieces.concat());
            match (parse(text.as_bytes()), serde_json::from_str::<Value>(&text)) {
                (Ok(read), Ok(serde)) => prop_assert_eq!(read, serde),
                (read, serde) => prop_assert_eq!(read.map_err(|why| why.to_string()), serde.map_err(|why| why.to_string())),
            }
        }
    }
}
