//! How much of a model's context a message takes, in tokens of the encoding `o200k_base`.
//!
//! What is counted is what Acontext counts: the text of each part and the calls of tools as JSON, a line each, together.
//! Special tokens are ordinary text. Pictures and other media count nothing.

use std::borrow::Cow;
use std::cell::RefCell;

use serde_json::{Map, Value};

use super::parts::{Kind, Part};

/// About how much text is copied together before it is counted, in bytes.
const WINDOW: usize = 64 * 1024;

/// The tokens of a message. Takes about 20 ms for each MiB of text, and as much once in the life of the process.
pub fn of_parts(parts: &[Part]) -> usize {
    let mut counter = Counter::new(WINDOW);
    for line in parts.iter().filter_map(line) {
        counter.push(&line);
        counter.push("\n");
    }
    counter.finish()
}

/// The tokens of the line of one part, if it can be counted apart from the others: with another such line in its place the
/// message takes as many tokens more as that line does.
pub fn of_line(parts: &[Part], at: usize) -> Option<usize> {
    // The break of a line is read together with white space or slashes that begin the next.
    let apart = |line: &str| line.starts_with(|c: char| !c.is_whitespace() && c != '/');
    let line = line(&parts[at]).filter(|line| apart(line))?;
    let next = parts[at + 1..].iter().find(|part| is_call(part) || !part.text.is_empty());
    next.is_none_or(|next| is_call(next) || apart(&next.text)).then(|| {
        let mut counter = Counter::new(WINDOW);
        counter.push(&line);
        counter.push("\n");
        counter.finish()
    })
}

fn is_call(part: &Part) -> bool {
    part.kind == Kind::ToolCall && !part.meta.is_empty()
}

/// What a part adds to the text of its message.
fn line(part: &Part) -> Option<Cow<'_, str>> {
    if is_call(part) {
        return Some(call(&part.meta).into());
    }
    (!part.text.is_empty()).then(|| part.text.as_str().into())
}

/// Whether a text alone, without the line break that it has in a message, takes more than so many tokens. Reads no more
/// of it than that needs.
pub fn exceeds(text: &str, tokens: usize) -> bool {
    // A token is at least a byte, and no token reaches over the end of a word.
    let word_ends = |pair: &[u8]| pair[0].is_ascii_alphabetic() && matches!(pair[1], b' '..=b'&' | b'('..=b'@' | b'\n');
    let mut words = text.as_bytes().windows(2).filter(|pair| word_ends(pair));
    let encoding = bpe_openai::o200k_base();
    let is_more = || encoding.count_till_limit(&encoding.normalize(text), tokens).is_none();
    text.len() > tokens && (words.nth(tokens.saturating_sub(1)).is_some() || is_more())
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
    let encoding = bpe_openai::o200k_base();
    let text = encoding.normalize(text);
    let mut text = text.as_str();
    WORDS.with_borrow_mut(|words| {
        let mut count = 0;
        while !text.is_empty() {
            let length = plain_word(text).or_else(|| Some(encoding.split(text).next()?.len()));
            let (word, rest) = text.split_at(length.unwrap_or(text.len()));
            count += words.count(word);
            text = rest;
        }
        count
    })
}

/// How long the word is that a text begins with, if that is plain to see: one ASCII character at most that is no letter, digit
/// or end of a line, then letters, first large and then small ones, and after them neither an apostrophe nor anything that is not
/// ASCII. It is what the encoding's first pattern takes, without its regular expression.
fn plain_word(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let run = |from: usize, fits: fn(&u8) -> bool| from + bytes[from..].iter().take_while(|byte| fits(byte)).count();
    let first = *bytes.first()?;
    let before = first.is_ascii() && !first.is_ascii_alphanumeric() && !matches!(first, b'\r' | b'\n');
    let small = run(before.into(), u8::is_ascii_uppercase);
    let end = run(small, u8::is_ascii_lowercase);
    let ends = bytes.get(end).is_none_or(|byte| byte.is_ascii() && *byte != b'\'');
    (end > small && ends).then_some(end)
}

thread_local! {
    static WORDS: RefCell<WordCache> = RefCell::new(WordCache(vec![(0, 0); 2048]));
}

/// An odd number without a pattern (the fraction of the golden ratio): its multiples spread over the upper bits.
const HASH: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;

/// What short words were found to take. Most of a text is a few hundred words over and over, and looking one up takes a
/// tenth of the time. A word has one place, which it takes from the one that was there. The number of places is a power of two.
struct WordCache(Vec<(u128, u8)>);

impl WordCache {
    fn count(&mut self, word: &str) -> usize {
        let count = || bpe_openai::o200k_base().bpe.count(word.as_bytes());
        let Some(key) = Self::key(word) else { return count() };
        let place = usize::try_from(HASH.wrapping_mul(key) >> 112).unwrap_or_default() & (self.0.len() - 1);
        let place = &mut self.0[place];
        if place.0 != key {
            *place = (key, u8::try_from(count()).unwrap_or(u8::MAX));
        }
        place.1.into()
    }

    /// The bytes of a word of up to 15 and their number; so no word is 0. It takes no more tokens than bytes.
    fn key(word: &str) -> Option<u128> {
        let mut bytes = [0; 16];
        bytes.get_mut(..word.len()).filter(|room| room.len() < 16)?.copy_from_slice(word.as_bytes());
        bytes[15] = u8::try_from(word.len()).ok()?;
        Some(u128::from_le_bytes(bytes))
    }
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

    #[test]
    fn a_text_exceeds_what_it_does_not_fit_into() {
        for text in ["", "a", "The quick brown fox.", "{\"a\":1,\"b_c\":[\"don't\"]}", "aaaa bbbb cccc dddd"] {
            let tokens = count(text);
            assert!(!exceeds(text, tokens) && !exceeds(text, tokens + 1) && !exceeds(text, usize::MAX), "{text}");
            assert!(tokens == 0 || exceeds(text, tokens - 1), "{text}");
            assert_eq!(exceeds(text, 0), !text.is_empty());
        }
    }

    #[test]
    fn words_that_share_a_place_are_told_apart() {
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
        fn remembered_words_change_nothing(text in "(?s)([a-zA-Z' .,!\n\t0-9é寿/\"{}]|don't|  |\r\n|\\PC){0,60}") {
            prop_assert_eq!(count(&text), bpe_openai::o200k_base().count(&text[..]));
        }

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

        #[test]
        fn exceeding_means_a_higher_count(
            text in "(?s)([a-zA-Z' .,!\n\t0-9é寿/\"{}:\\\\_]|don't|  |\r\n|\\PC){0,60}",
            limit in 0_usize..40,
        ) {
            prop_assert_eq!(exceeds(&text, limit), count(&text) > limit);
        }

        #[test]
        fn a_line_that_can_be_counted_apart_adds_up(
            texts in prop::collection::vec("(?s)([a-z' .\n\t0-9é/\"{]|\r\n|\\PC){0,12}", 1..6),
            calls in prop::collection::vec(any::<bool>(), 6),
            at in any::<prop::sample::Index>(),
            other in "(?s)([a-z' .\n\t0-9é/\"{]|\r\n|\\PC){0,12}",
        ) {
            let one = |(text, is_call): (&String, &bool)| match is_call {
                true => part(Kind::ToolCall, "", json!({"arguments": text})),
                false => part(Kind::Text, text, json!({})),
            };
            let mut parts: Vec<_> = texts.iter().zip(&calls).map(one).collect();
            let at = at.index(parts.len());
            let (whole, line) = (of_parts(&parts), of_line(&parts, at));
            parts[at] = one((&other, &calls[at]));
            if let (Some(before), Some(after)) = (line, of_line(&parts, at)) {
                prop_assert_eq!(of_parts(&parts) + before, whole + after);
            } else {
                prop_assert!(!parts[at..].iter().all(is_call));
            }
        }
    }
}
