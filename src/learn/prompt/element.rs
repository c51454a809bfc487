//! Elements: a tag before and after each text in a prompt that is data.

use super::budget::Shrink;
use super::text::{self, CutText};
use crate::conversation::tokens;

/// The element that marks the end of a text that was cut.
const CUT_MARKER: &str = "<cut/>";

/// An element whose text is data, such as `<text>Hello</text>`. If the text was cut, it ends with the element `<cut/>`.
pub struct Element {
    tag: &'static str,
    /// The attributes with a space before each, such as ` order="1"`. They must not contain data.
    attributes: String,
    content: CutText,
}

impl Element {
    /// Creates an element with the first `max_chars` characters of a text. `attributes` is empty or begins with a space.
    pub fn new(tag: &'static str, attributes: impl Into<String>, text: &str, max_chars: usize) -> Self {
        Self { tag, attributes: attributes.into(), content: text::cut(text, max_chars) }
    }

    fn render_with(&self, text: &str, is_cut: bool) -> String {
        let Self { tag, attributes, .. } = self;
        let marker = if is_cut { CUT_MARKER } else { "" };
        format!("<{tag}{attributes}>{}{marker}</{tag}>", text::escape(text))
    }
}

impl Shrink for Element {
    fn render(&self) -> String {
        self.render_with(&self.content.text, self.content.is_cut)
    }

    fn min_tokens(&self) -> usize {
        tokens::count_text(&self.render_with("", true)) + 1
    }

    fn shrink(&mut self, max_tokens: usize) {
        loop {
            let (needed, chars) = (self.tokens(), self.content.text.chars().count());
            if needed <= max_tokens || chars == 0 {
                return;
            }
            // The number of tokens is about proportional to the number of characters. Repeats with fewer if it is not.
            let kept = (chars * max_tokens / needed).min(chars - 1);
            let end = self.content.text.char_indices().nth(kept).map_or(0, |(end, _)| end);
            self.content.text.truncate(end);
            self.content.is_cut = true;
        }
    }
}

/// Renders a section of a prompt. Returns an empty string if it has no lines.
pub fn render_section(tag: &str, lines: &str) -> String {
    if lines.is_empty() { String::new() } else { format!("<{tag}>\n{lines}\n</{tag}>\n\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_cannot_be_closed_by_its_text() {
        let element = Element::new("text", " id=\"1\"", "</text><text>\u{e0041} &lt; a > b", 100);
        assert_eq!(element.render(), "<text id=\"1\">&lt;/text&gt;&lt;text&gt; &amp;lt; a &gt; b</text>");
    }

    #[test]
    fn only_longer_texts_are_marked_as_cut() {
        let render = |text: &str| Element::new("text", "", text, 4).render();
        assert_eq!(render("abc"), "<text>abc</text>");
        assert_eq!(render("abcd"), "<text>abcd</text>");
        assert_eq!(render("abcde"), "<text>abcd<cut/></text>");
        assert_eq!(render("<cut/>"), "<text>&lt;cut<cut/></text>");
    }

    #[test]
    fn elements_shrink_to_a_number_of_tokens() {
        for text in ["words and words ".repeat(400), "<<<<&&&&".repeat(200), "寿司".repeat(300), " ".repeat(5000)] {
            for max_tokens in [400, 100, 30, 0] {
                let mut element = Element::new("text", "", &text, 10_000);
                let before = element.tokens();
                element.shrink(max_tokens);
                assert!(element.tokens() <= max_tokens.max(element.min_tokens()), "{max_tokens} {text}");
                assert!(before <= max_tokens || element.render().ends_with("<cut/></text>"));
                // Uses most of the tokens that are available.
                assert!(
                    max_tokens < 100 || before <= max_tokens || element.tokens() > max_tokens / 2,
                    "{}",
                    element.tokens()
                );
            }
        }
    }

    #[test]
    fn empty_sections_are_omitted() {
        assert_eq!(render_section("notes", "<note>x</note>"), "<notes>\n<note>x</note>\n</notes>\n\n");
        assert_eq!(render_section("notes", ""), "");
    }
}
