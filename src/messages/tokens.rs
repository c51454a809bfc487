//! How much of a model's context a message takes, in tokens of the encoding `o200k_base`.
//!
//! What is counted is what Acontext counts: the text of each part and the calls of tools as JSON, a line each, together.
//! Special tokens are ordinary text. Pictures and other media count nothing.

use serde_json::{Map, Value};

use super::parts::{Kind, Part};

/// About how much text is copied together before it is counted, in bytes.
const WINDOW: usize = 64 * 1024;

/// The tokens of a message. Takes about 20 ms for each MiB of text, and as much once in the life of the process.
pub fn of_parts(parts: &[Part]) -> usize {
    let mut counter = Counter::new(WINDOW);
    for part in parts {
        if part.kind == Kind::ToolCall && !part.meta.is_empty() {
            counter.push(&call(&part.meta));
            counter.push("\n");
        } else if !part.text.is_empty() {
            counter.push(&part.text);
            counter.push("\n");
        }
    }
    counter.finish()
}

/// How much text there is to count, in bytes; a call's is an estimate.
pub fn text_bytes(parts: &[Part]) -> usize {
    let arguments = |part: &Part| match part.meta.get("arguments") {
        Some(Value::String(text)) if part.kind == Kind::ToolCall => text.len(),
        _ => 0,
    };
    parts.iter().map(|part| part.text.len() + arguments(part)).sum()
}

/// A call as JSON, with the escapes that Acontext's server writes.
fn call(meta: &Map<String, Value>) -> String {
    let named = ["arguments", "name"].into_iter().filter_map(|key| Some((key.to_owned(), meta.get(key)?.clone())));
    let json = Value::Object(named.collect()).to_string();
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' => escaped.push_str("\\u003c"),
            '>' => escaped.push_str("\\u003e"),
            '&' => escaped.push_str("\\u0026"),
            '\u{2028}' => escaped.push_str("\\u2028"),
            '\u{2029}' => escaped.push_str("\\u2029"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Counts a text that comes in pieces, without holding it whole.
struct Counter {
    window: usize,
    pending: String,
    /// How far no place was found where `pending` can be cut.
    searched: usize,
    counted: usize,
}

impl Counter {
    fn new(window: usize) -> Self {
        Self { window, pending: String::new(), searched: 0, counted: 0 }
    }

    fn push(&mut self, mut text: &str) {
        while !text.is_empty() {
            let (piece, rest) = text.split_at(text.floor_char_boundary(self.window.max(4)));
            self.pending.push_str(piece);
            text = rest;
            if self.pending.len() > self.window {
                if let Some(end) = safe_end(&self.pending, self.searched) {
                    self.counted += count(&self.pending[..end]);
                    self.pending.drain(..end);
                }
                self.searched = self.pending.len();
            }
        }
    }

    fn finish(self) -> usize {
        self.counted + count(&self.pending)
    }
}

/// The last place after what was searched where a text can be cut without changing its tokens: a word never reaches over the blank after it, and
/// what follows is split the same way whatever stood before.
fn safe_end(text: &str, searched: usize) -> Option<usize> {
    let between = |pair: &[u8]| pair[0].is_ascii_alphabetic() && matches!(pair[1], b' ' | b'\n');
    let from = searched.saturating_sub(1);
    text.as_bytes()[from..].windows(2).rposition(between).map(|at| from + at + 1)
}

fn count(text: &str) -> usize {
    bpe_openai::o200k_base().count(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn part(kind: Kind, text: &str, meta: Value) -> Part {
        let Value::Object(meta) = meta else { panic!("meta is an object") };
        Part { kind, text: text.into(), asset: None, filename: String::new(), meta, extra: Map::new() }
    }

    #[test]
    fn texts_and_calls_are_counted_a_line_each() {
        let parts = [
            part(Kind::Text, "Hello, world!", json!({})),
            part(Kind::ToolCall, "", json!({"id": "c1", "name": "f", "arguments": "{\"a\":\"<&>\"}"})),
            part(Kind::Image, "", json!({"url": "https://example.com/long/name.png"})),
            part(Kind::Image, "a caption", json!({})),
        ];
        let told =
            "Hello, world!\n{\"arguments\":\"{\\\"a\\\":\\\"\\u003c\\u0026\\u003e\\\"}\",\"name\":\"f\"}\na caption\n";
        assert_eq!(of_parts(&parts), count(told));
        assert_eq!(of_parts(&[]), 0);
        assert_eq!(of_parts(&[part(Kind::ToolCall, "", json!({"id": "x"}))]), count("{}\n"));
    }

    #[test]
    fn known_numbers() {
        for (text, tokens) in [("The quick brown fox jumps over the lazy dog.", 10), ("t1", 3), ("<|endoftext|>", 7)] {
            assert_eq!(of_parts(&[part(Kind::Text, text, json!({}))]), tokens, "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

        #[test]
        fn counting_in_pieces_changes_nothing(
            pieces in prop::collection::vec("(?s)([a-zA-Z' .,!\n\t0-9é寿/]|don't|  |\r\n|\\PC){0,40}", 0..12),
            window in 1_usize..60,
        ) {
            let mut counter = Counter::new(window);
            for piece in &pieces {
                counter.push(piece);
            }
            prop_assert_eq!(counter.finish(), count(&pieces.concat()));
        }
    }
}
