//! Messages as elements of a prompt.

use super::budget::{self, OMISSION_TOKENS, OmitFrom, Shrink};
use super::element::Element;
use super::part;
pub use super::part::ToolNames;
use crate::conversation::parts::{Part, Role};
use crate::conversation::tokens;

/// A message of a session, decrypted.
#[derive(Clone, Debug)]
pub struct PromptMessage {
    pub role: Role,
    pub parts: Vec<Part>,
}

/// The maximum number of characters per token that a list of messages may have before its tokens are counted. Most texts have
/// fewer characters per token. The limit bounds the time for counting.
const MAX_CHARS_PER_TOKEN: usize = 8;

/// A list of messages in a prompt.
pub struct MessageList<'a> {
    pub messages: Vec<&'a PromptMessage>,
    /// The tag of each message.
    pub tag: &'static str,
    /// The attributes of each message, with a space before each. They must not contain data.
    pub attributes: &'a dyn Fn(usize) -> String,
    /// The maximum number of characters of the text of a part.
    pub max_part_chars: usize,
}

impl MessageList<'_> {
    /// Renders the messages with at most `max_tokens`, which they share fairly. If the messages would become empty by that, the
    /// oldest ones are omitted.
    pub fn render(&self, max_tokens: usize, names: &mut ToolNames) -> String {
        let estimate = |message: &&PromptMessage| {
            message.parts.iter().map(|part| part::estimate_chars(part, self.max_part_chars)).sum()
        };
        let estimates: Vec<usize> = self.messages.iter().map(estimate).collect();
        let max_chars = budget::share(max_tokens.saturating_mul(MAX_CHARS_PER_TOKEN), &estimates);
        let messages = self.messages.iter().zip(max_chars).enumerate();
        let elements =
            messages.map(|(index, (message, max_chars))| self.render_message(index, message, max_chars, names));
        budget::render_list(&mut elements.collect(), max_tokens, OmitFrom::Start)
    }

    /// Renders parts until they have about `max_chars` characters.
    fn render_message(
        &self,
        index: usize,
        message: &PromptMessage,
        max_chars: usize,
        names: &mut ToolNames,
    ) -> MessageElement {
        let role = match message.role {
            Role::User => "user",
            Role::Assistant => "agent",
        };
        let open = format!("<{}{} role=\"{role}\">", self.tag, (self.attributes)(index));
        let mut remaining = max_chars;
        let mut parts = Vec::new();
        for part in &message.parts {
            let estimate = part::estimate_chars(part, self.max_part_chars);
            // The first part is rendered in any case, so that no message becomes empty here.
            if estimate > remaining && !parts.is_empty() {
                break;
            }
            remaining = remaining.saturating_sub(estimate);
            parts.push(part::render_part(part, self.max_part_chars, names));
        }
        let omitted = message.parts.len() - parts.len();
        let mut element =
            MessageElement { open, parts, omitted, lines: String::new(), close: format!("</{}>", self.tag) };
        element.render_parts(usize::MAX);
        element
    }
}

/// A message with its parts.
struct MessageElement {
    open: String,
    parts: Vec<Element>,
    /// The number of parts that are not in `parts`.
    omitted: usize,
    /// The rendered parts.
    lines: String,
    close: String,
}

impl MessageElement {
    fn render_parts(&mut self, max_tokens: usize) {
        let list_tokens = max_tokens.saturating_sub(if self.omitted > 0 { OMISSION_TOKENS } else { 0 });
        self.lines = budget::render_list(&mut self.parts, list_tokens, OmitFrom::End);
        if self.omitted > 0 {
            let line_break = if self.lines.is_empty() { "" } else { "\n" };
            self.lines = format!("{}{line_break}{}", self.lines, budget::omission(self.omitted));
        }
    }

    fn render_with(&self, lines: &str) -> String {
        let line_break = if lines.is_empty() { "" } else { "\n" };
        format!("{}\n{lines}{line_break}{}", self.open, self.close)
    }
}

impl Shrink for MessageElement {
    fn render(&self) -> String {
        self.render_with(&self.lines)
    }

    fn min_tokens(&self) -> usize {
        // The tags of a part, or of the line that replaces all parts.
        const PART_TOKENS: usize = 12;
        tokens::count_text(&self.render_with("")) + PART_TOKENS
    }

    fn shrink(&mut self, max_tokens: usize) {
        let available = max_tokens.saturating_sub(tokens::count_text(&self.render_with("")) + 1);
        self.render_parts(available);
    }
}
