//! The conversation of a run, whose old tool results are shortened when it becomes too long.

use super::count_tokens;
use crate::llm::ChatMessage;

/// The number of characters of a shortened tool result. They show the model what it has read or done.
const SHORTENED_CHARS: usize = 200;
const SHORTENED_NOTE: &str = "\n[The rest of this result was removed. Call the tool again if you need it.]";

/// The conversation with a model. The first message is the user's.
pub(super) struct History {
    messages: Vec<ChatMessage>,
    /// The number of tokens of each message.
    tokens: Vec<usize>,
    /// The number of tokens, without the first message, above which results are shortened.
    max_tokens: usize,
}

impl History {
    pub(super) fn new(first_message: String, max_tokens: usize) -> Self {
        let mut history = Self { messages: Vec::new(), tokens: Vec::new(), max_tokens };
        history.push(ChatMessage::User(first_message));
        history
    }

    pub(super) fn messages(&self) -> &[ChatMessage] {
        &self.messages
    }

    pub(super) fn first_message_tokens(&self) -> usize {
        self.tokens[0]
    }

    pub(super) fn push(&mut self, message: ChatMessage) {
        self.tokens.push(count_tokens(&message));
        self.messages.push(message);
    }

    /// Shortens tool results, the oldest first, until the conversation is not too long. The last message is not shortened,
    /// because the model has not read it yet. No result is removed, so every call remains answered.
    pub(super) fn shorten_old_results(&mut self) {
        let read = self.messages.len() - 1;
        self.shorten_results(read);
    }

    /// Replaces the first message, and shortens the results to half of the limit, including those of the last message.
    pub(super) fn halve(&mut self, first_message: String) {
        self.messages[0] = ChatMessage::User(first_message);
        self.tokens[0] = count_tokens(&self.messages[0]);
        self.max_tokens /= 2;
        self.shorten_results(self.messages.len());
    }

    /// Shortens the results in the first `end` messages, until the conversation is not too long.
    fn shorten_results(&mut self, end: usize) {
        for index in 1..end {
            if self.tokens[1..].iter().sum::<usize>() <= self.max_tokens {
                return;
            }
            if let ChatMessage::ToolResults(results) = &mut self.messages[index] {
                for result in results {
                    shorten(&mut result.text);
                }
                self.tokens[index] = count_tokens(&self.messages[index]);
            }
        }
    }
}

/// Shortens a text unless it is short or already shortened.
fn shorten(text: &mut String) {
    let end = text.char_indices().nth(SHORTENED_CHARS).map(|(end, _)| end);
    if let Some(end) = end.filter(|end| text.len() - end > SHORTENED_NOTE.len()) {
        text.truncate(end);
        text.push_str(SHORTENED_NOTE);
    }
}
