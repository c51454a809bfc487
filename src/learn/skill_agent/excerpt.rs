//! The text of a file as the result of a tool.

use crate::conversation::tokens;

/// The maximum length of the text of a file, in tokens.
const MAX_TOKENS: usize = 24_000;

/// Returns the text of a file. The middle of a text that is too long is replaced by a line with the size of what is left out: the
/// beginning explains the file, and new entries are often at the end.
///
/// The text is not escaped, because edits must match it exactly.
pub(super) fn render(text: &str) -> String {
    if text.is_empty() {
        return "[The file is empty.]".into();
    }
    let mut kept = text.len();
    // The number of tokens is about proportional to the number of bytes. Repeats with fewer if it is not.
    loop {
        let excerpt = cut_middle(text, kept);
        let count = tokens::count_text(&excerpt);
        if count <= MAX_TOKENS {
            return excerpt;
        }
        kept = (kept.min(text.len()) * MAX_TOKENS / count).min(kept - 1);
    }
}

/// Replaces the middle of a text by a line, so that about `kept` bytes remain.
fn cut_middle(text: &str, kept: usize) -> String {
    if kept >= text.len() {
        return text.into();
    }
    let start = &text[..text.floor_char_boundary(kept / 2)];
    let end = &text[text.ceil_char_boundary(text.len() - kept / 2)..];
    let omitted = text.len() - start.len() - end.len();
    format!("{start}\n[{omitted} bytes in the middle of this file are left out here, because it is too long.]\n{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_texts_are_complete() {
        for text in ["a", "<b>&\u{200b}\r\n", &"many words ".repeat(5_000)] {
            assert_eq!(render(text), text);
        }
        assert_eq!(render(""), "[The file is empty.]");
    }

    #[test]
    fn the_middle_of_long_texts_is_left_out() {
        for unit in ["many words\n", "寿司", "<&> ", "🍣"] {
            let text = format!("START {}END", unit.repeat(60_000));
            let excerpt = render(&text);
            let count = tokens::count_text(&excerpt);
            assert!(count <= MAX_TOKENS && count > MAX_TOKENS * 3 / 4, "{unit}: {count}");
            assert!(excerpt.starts_with("START ") && excerpt.ends_with("END"));
            let (start, rest) = excerpt.split_once("\n[").unwrap();
            let (omitted, rest) = rest.split_once(" bytes in the middle of this file").unwrap();
            let (_, end) = rest.split_once("]\n").unwrap();
            assert_eq!(start.len() + omitted.parse::<usize>().unwrap() + end.len(), text.len());
        }
    }
}
