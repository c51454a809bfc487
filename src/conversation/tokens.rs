//! Counts the tokens of messages with the encoding `o200k_base`.
//!
//! The counted text is the same as upstream's. It has one line for each part with a text, and one with the JSON of each tool
//! call. Special tokens are treated as ordinary text. Images and other media have no tokens. Unlike upstream, a block of an
//! unknown type is counted by the text that other formats contain instead of it.

use std::borrow::Cow;
use std::cell::RefCell;

use serde_json::{Map, Value};

use super::format::opaque_text;
use super::parts::{Part, PartKind};

/// The approximate size of the chunks in which a text is counted.
const CHUNK_BYTES: usize = 64 * 1024;

/// Returns the number of tokens of a message. Takes about 20 ms per MiB of text, and another 20 ms for the first call in a
/// process.
pub fn count_parts(parts: &[Part]) -> usize {
    let mut counter = TokenCounter::new(CHUNK_BYTES);
    for line in parts.iter().filter_map(part_line) {
        counter.push(&line);
        counter.push("\n");
    }
    counter.finish()
}

/// Returns the number of tokens of a text, without a line break after it.
pub fn count_text(text: &str) -> usize {
    let mut counter = TokenCounter::new(CHUNK_BYTES);
    counter.push(text);
    counter.finish()
}

/// Returns the number of tokens of one part's line, or `None` if the line cannot be counted separately.
///
/// If a line is replaced, and both the old and the new line can be counted separately, the number of tokens of the message
/// changes by the difference between the two results.
pub fn count_line(parts: &[Part], index: usize) -> Option<usize> {
    // A token can contain a line break together with the white space or slashes after it.
    let is_separate = |line: &str| line.starts_with(|c: char| !c.is_whitespace() && c != '/');
    let line = part_line(&parts[index]).filter(|line| is_separate(line))?;
    let next_part = parts[index + 1..].iter().find(|part| has_call_line(part) || text_of(part).is_some());
    next_part.is_none_or(|next| has_call_line(next) || text_of(next).is_some_and(|text| is_separate(&text))).then(
        || {
            let mut counter = TokenCounter::new(CHUNK_BYTES);
            counter.push(&line);
            counter.push("\n");
            counter.finish()
        },
    )
}

/// Returns `true` if the line of a part is the JSON of a tool call.
fn has_call_line(part: &Part) -> bool {
    part.kind == PartKind::ToolCall && !part.meta.is_empty()
}

/// Returns the counted line of a part, without the line break. Returns `None` if the part has no line.
fn part_line(part: &Part) -> Option<Cow<'_, str>> {
    if has_call_line(part) {
        return Some(call_json(&part.meta).into());
    }
    text_of(part)
}

/// Returns the text of a part that is not a tool call: its own text or the text of an unknown block, or both on separate lines.
fn text_of(part: &Part) -> Option<Cow<'_, str>> {
    match (opaque_text(part), part.text.as_str()) {
        (None, "") => None,
        (None, text) => Some(text.into()),
        (Some(text), "") => Some(text.into()),
        (Some(block_text), text) => Some(format!("{block_text}\n{text}").into()),
    }
}

/// Returns `true` if a text, without the line break that it has in a message, has more than `limit` tokens. Reads no more of
/// the text than necessary.
pub fn exceeds(text: &str, limit: usize) -> bool {
    // A token has at least one byte, so a text of at most `limit` bytes does not exceed the limit. Every word end is the
    // end of a token. A text with `limit` word ends before its last byte therefore has more than `limit` tokens.
    let is_word_end =
        |pair: &[u8]| pair[0].is_ascii_alphabetic() && matches!(pair[1], b' '..=b'&' | b'('..=b'@' | b'\n');
    let mut word_ends = text.as_bytes().windows(2).filter(|pair| is_word_end(pair));
    let encoding = bpe_openai::o200k_base();
    let is_over = || encoding.count_till_limit(&encoding.normalize(text), limit).is_none();
    text.len() > limit && (word_ends.nth(limit.saturating_sub(1)).is_some() || is_over())
}

/// Returns the size of the counted text in bytes. The sizes of tool calls are estimates, and unknown blocks are left out.
pub fn text_bytes(parts: &[Part]) -> usize {
    let arguments_len = |part: &Part| match part.meta.get("arguments") {
        Some(Value::String(text)) if part.kind == PartKind::ToolCall => text.len(),
        _ => 0,
    };
    parts.iter().map(|part| part.text.len() + arguments_len(part)).sum()
}

/// Returns the arguments and the name of a tool call as JSON, with the same escapes as upstream.
fn call_json(meta: &Map<String, Value>) -> String {
    let fields = ["arguments", "name"].into_iter().filter_map(|key| Some((key.to_owned(), meta.get(key)?.clone())));
    let json = Value::Object(fields.collect()).to_string();
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

/// A counter for the tokens of a text. It counts the text in chunks and does not buffer all of it.
struct TokenCounter {
    chunk_bytes: usize,
    /// The text that is not counted yet.
    pending: String,
    /// The length of the prefix of `pending` that has no split point.
    searched: usize,
    /// The number of tokens that are already counted.
    counted: usize,
}

impl TokenCounter {
    fn new(chunk_bytes: usize) -> Self {
        Self { chunk_bytes, pending: String::new(), searched: 0, counted: 0 }
    }

    fn push(&mut self, mut text: &str) {
        while !text.is_empty() {
            // A character has up to 4 bytes, and a chunk must contain at least one character.
            let (chunk, rest) = text.split_at(text.floor_char_boundary(self.chunk_bytes.max(4)));
            self.pending.push_str(chunk);
            text = rest;
            if self.pending.len() > self.chunk_bytes {
                if let Some(end) = last_split_point(&self.pending, self.searched) {
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

/// Returns the last offset at which a text can be split without changing its tokens. Returns `None` if there is no such offset
/// after the first `searched` bytes.
///
/// A text can be split between a word and the space or line break that follows: no token contains both, and the tokens of the
/// following text do not depend on the word.
fn last_split_point(text: &str, searched: usize) -> Option<usize> {
    let is_word_end = |pair: &[u8]| pair[0].is_ascii_alphabetic() && matches!(pair[1], b' ' | b'\n');
    let from = searched.saturating_sub(1);
    text.as_bytes()[from..].windows(2).rposition(is_word_end).map(|at| from + at + 1)
}

/// Returns the number of tokens of a text.
fn count(text: &str) -> usize {
    let encoding = bpe_openai::o200k_base();
    let text = encoding.normalize(text);
    let mut text = text.as_str();
    WORD_CACHE.with_borrow_mut(|words| {
        let mut count = 0;
        while !text.is_empty() {
            let length = ascii_word_len(text).or_else(|| Some(encoding.split(text).next()?.len()));
            let (word, rest) = text.split_at(length.unwrap_or(text.len()));
            count += words.count(word);
            text = rest;
        }
        count
    })
}

/// Returns the length of the ASCII word with which a text begins, or `None` if the text does not begin with one.
///
/// An ASCII word consists of an optional character that is not a letter, digit or line break, any number of upper-case letters,
/// and at least one lower-case letter. The word must not precede an apostrophe or a non-ASCII character. The first pattern of
/// the encoding matches the same word; this function is faster than the regular expression.
fn ascii_word_len(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let end_of_run =
        |from: usize, matches: fn(&u8) -> bool| from + bytes[from..].iter().take_while(|byte| matches(byte)).count();
    let first = *bytes.first()?;
    let has_prefix = first.is_ascii() && !first.is_ascii_alphanumeric() && !matches!(first, b'\r' | b'\n');
    let lowercase_start = end_of_run(usize::from(has_prefix), u8::is_ascii_uppercase);
    let end = end_of_run(lowercase_start, u8::is_ascii_lowercase);
    let is_complete = bytes.get(end).is_none_or(|byte| byte.is_ascii() && *byte != b'\'');
    (end > lowercase_start && is_complete).then_some(end)
}

thread_local! {
    /// The cache of this thread.
    static WORD_CACHE: RefCell<WordCache> = RefCell::new(WordCache(vec![(0, 0); 2048]));
}

/// The multiplier of Fibonacci hashing: the fractional part of the golden ratio times 2^128. The upper bits of its multiples are
/// evenly distributed.
const FIBONACCI_MULTIPLIER: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;

/// A cache of the token counts of short words. Most texts repeat a few hundred words, and a lookup takes a tenth of the time of a
/// count.
///
/// The cache has slots with a [`key`](Self::key) and a count. The hash of a key selects its slot, and a new key replaces the
/// previous one. The number of slots is a power of two. An unused slot contains the key and the count of the empty word, which
/// are 0.
struct WordCache(Vec<(u128, u8)>);

impl WordCache {
    /// Returns the number of tokens of a word.
    fn count(&mut self, word: &str) -> usize {
        let count = || bpe_openai::o200k_base().bpe.count(word.as_bytes());
        let Some(key) = Self::key(word) else { return count() };
        let hash = usize::try_from(FIBONACCI_MULTIPLIER.wrapping_mul(key) >> 112).unwrap_or_default();
        let slot = hash & (self.0.len() - 1);
        let slot = &mut self.0[slot];
        if slot.0 != key {
            // A word of up to 15 bytes has at most 15 tokens.
            *slot = (key, u8::try_from(count()).unwrap_or(u8::MAX));
        }
        slot.1.into()
    }

    /// Returns the key of a word: its bytes, zeros, and its length in the last byte. Returns `None` if the word has more than 15
    /// bytes.
    fn key(word: &str) -> Option<u128> {
        let mut bytes = [0; 16];
        bytes.get_mut(..word.len()).filter(|target| target.len() < 16)?.copy_from_slice(word.as_bytes());
        bytes[15] = u8::try_from(word.len()).ok()?;
        Some(u128::from_le_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn part(kind: PartKind, text: &str, meta: Value) -> Part {
        let Value::Object(meta) = meta else { panic!("meta is an object") };
        Part { kind, text: text.into(), asset: None, filename: String::new(), meta, extra: Map::new() }
    }

    #[test]
    fn texts_and_calls_are_counted_as_lines() {
        let parts = [
            part(PartKind::Text, "Hello, world!", json!({})),
            part(PartKind::ToolCall, "", json!({"id": "c1", "name": "f", "arguments": "{\"a\":\"<&>\"}"})),
            part(PartKind::Image, "", json!({"url": "https://example.com/long/name.png"})),
            part(PartKind::Image, "a caption", json!({})),
        ];
        let lines =
            "Hello, world!\n{\"arguments\":\"{\\\"a\\\":\\\"\\u003c\\u0026\\u003e\\\"}\",\"name\":\"f\"}\na caption\n";
        assert_eq!(count_parts(&parts), count(lines));
        assert_eq!(count_parts(&[]), 0);
        assert_eq!(count_parts(&[part(PartKind::ToolCall, "", json!({"id": "x"}))]), count("{}\n"));
    }

    #[test]
    fn the_text_of_an_unknown_block_is_counted() {
        let block =
            json!({"type": "unheard_of", "content": [{"type": "unheard_of", "text": "Hello"}, "world"], "x": "y"});
        let opaque = |text| part(PartKind::Data, text, json!({"data_type": "anthropic", "block": block}));
        assert_eq!(count_parts(&[opaque("")]), count("Hello\nworld\n"));
        assert_eq!(count_parts(&[opaque("a caption")]), count("Hello\nworld\na caption\n"));
        let other = part(PartKind::Data, "", json!({"data_type": "chart", "block": {"text": "y"}}));
        assert_eq!(count_parts(&[other]), 0);
    }

    #[test]
    fn known_token_counts() {
        for (text, tokens) in [("The quick brown fox jumps over the lazy dog.", 10), ("t1", 3), ("<|endoftext|>", 7)] {
            assert_eq!(count_parts(&[part(PartKind::Text, text, json!({}))]), tokens, "{text}");
        }
    }

    #[test]
    fn a_text_exceeds_lower_limits_only() {
        for text in ["", "a", "The quick brown fox.", "{\"a\":1,\"b_c\":[\"don't\"]}", "aaaa bbbb cccc dddd"] {
            let tokens = count(text);
            assert!(!exceeds(text, tokens) && !exceeds(text, tokens + 1) && !exceeds(text, usize::MAX), "{text}");
            assert!(tokens == 0 || exceeds(text, tokens - 1), "{text}");
            assert_eq!(exceeds(text, 0), !text.is_empty());
        }
    }

    #[test]
    fn words_in_the_same_slot_are_distinguished() {
        let mut words = WordCache(vec![(0, 0); 1]);
        for word in [
            " the",
            " internationalization",
            "x",
            "",
            "xyzzy",
            " the",
            "\0",
            "\0\0",
            "fifteen bytes..",
            "sixteen bytes...",
        ] {
            assert_eq!(words.count(word), bpe_openai::o200k_base().bpe.count(word.as_bytes()), "{word:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

        #[test]
        fn cached_counts_equal_those_of_the_library(text in "(?s)([a-zA-Z' .,!\n\t0-9é寿/\"{}]|don't|  |\r\n|\\PC){0,60}") {
            prop_assert_eq!(count(&text), bpe_openai::o200k_base().count(&text[..]));
        }

        #[test]
        fn counting_in_chunks_changes_nothing(
            chunks in prop::collection::vec("(?s)([a-zA-Z' .,!\n\t0-9é寿/]|don't|  |\r\n|\\PC){0,40}", 0..12),
            chunk_bytes in 1_usize..60,
        ) {
            let mut counter = TokenCounter::new(chunk_bytes);
            for chunk in &chunks {
                counter.push(chunk);
            }
            prop_assert_eq!(counter.finish(), count(&chunks.concat()));
        }

        #[test]
        fn exceeds_agrees_with_the_count(
            text in "(?s)([a-zA-Z' .,!\n\t0-9é寿/\"{}:\\\\_]|don't|  |\r\n|\\PC){0,60}",
            limit in 0_usize..40,
        ) {
            prop_assert_eq!(exceeds(&text, limit), count(&text) > limit);
        }

        #[test]
        fn counts_of_separate_lines_add_up(
            texts in prop::collection::vec("(?s)([a-z' .\n\t0-9é/\"{]|\r\n|\\PC){0,12}", 1..6),
            kinds in prop::collection::vec(0_u8..3, 6),
            index in any::<prop::sample::Index>(),
            other in "(?s)([a-z' .\n\t0-9é/\"{]|\r\n|\\PC){0,12}",
        ) {
            let new_part = |(text, kind): (&String, &u8)| match kind {
                0 => part(PartKind::ToolCall, "", json!({"arguments": text})),
                1 => part(PartKind::Data, "", json!({"data_type": "openai", "block": {"text": text}})),
                _ => part(PartKind::Text, text, json!({})),
            };
            let mut parts: Vec<_> = texts.iter().zip(&kinds).map(new_part).collect();
            let index = index.index(parts.len());
            let (total, line) = (count_parts(&parts), count_line(&parts, index));
            parts[index] = new_part((&other, &kinds[index]));
            if let (Some(before), Some(after)) = (line, count_line(&parts, index)) {
                prop_assert_eq!(count_parts(&parts) + before, total + after);
            } else {
                prop_assert!(!parts[index..].iter().all(has_call_line));
            }
        }
    }
}
