//! `token_limit` removes the oldest messages until the remaining messages have at most the given number of tokens. If
//! necessary, it removes all messages.
//!
//! Two parameters, which upstream does not have, make the remaining messages a valid conversation:
//! - `pin_system`: The system messages at the beginning are never removed, even if they exceed the limit.
//! - `start_on_user`: Then the messages before the first message of a user are removed, even if the limit is met. Tool results and
//!   system messages are not messages of a user. If none remains, all messages are removed. Pinned system messages remain.
//!
//! If a message is removed, the messages with the results of its calls and the messages with the calls of its results are
//! removed too, transitively. A result belongs to the last call with its id that precedes it.
//!
//! Upstream removes only the message with the last result of each call, and not transitively. It leaves results without a
//! call, or calls without a result, in the following cases. In all other cases the behavior is the same.
//! - A message contains results of calls in several messages, or results and calls.
//! - A result precedes its call, or occurs in several messages.
//! - Several calls have the same id, or there is no id (`OpenAI`'s deprecated function calls).

use super::editable_message::{EditableMessage, remove_messages, total_tokens};
use super::groups::Groups;
use super::params::{Params, ParseError};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TokenLimit {
    limit: usize,
    pin_system: bool,
    start_on_user: bool,
}

impl TokenLimit {
    pub(super) fn parse(params: &Params) -> Result<Self, ParseError> {
        Ok(Self {
            limit: params.require("limit_tokens", params.truncated_number("limit_tokens", 1)?)?,
            pin_system: params.boolean("pin_system")?,
            start_on_user: params.boolean("start_on_user")?,
        })
    }

    pub(super) fn apply(&self, messages: &mut Vec<EditableMessage>) {
        let mut total = total_tokens(messages);
        if total <= self.limit && !self.start_on_user {
            return;
        }
        let pinned_count = messages.iter().take_while(|message| self.pin_system && message.is_system()).count();
        let groups = Groups::by_call(messages);
        let mut removed = vec![false; messages.len()];
        for oldest in pinned_count..messages.len() {
            if removed[oldest] {
                continue;
            }
            // A message that starts the conversation has neither calls nor results, so it is the only one of its group.
            let is_start = !self.start_on_user || messages[oldest].starts_conversation();
            if total <= self.limit && is_start {
                break;
            }
            for member in groups.members(oldest) {
                removed[member] = true;
                total -= messages[member].tokens();
            }
        }
        remove_messages(messages, &removed);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::{Message, apply, parse};
    use crate::conversation::format::{Format, to_parts};
    use crate::conversation::parts::Role;
    use crate::conversation::tokens;

    fn message(role: &str, body: Value) -> Message {
        let parts = to_parts(Format::Anthropic, body);
        Message {
            role: if role == "assistant" { Role::Assistant } else { Role::User },
            is_system: role == "system",
            tokens: tokens::count_parts(&parts),
            parts,
        }
    }

    /// Returns a conversation of eight messages.
    fn conversation() -> Vec<Message> {
        let text = |text: &str| json!({"content": text});
        let calls = ["a", "b"].map(|id| json!({"type": "tool_use", "id": id, "name": "f", "input": {}}));
        let result =
            |id: &str| json!({"content": [{"type": "tool_result", "tool_use_id": id, "content": "some text"}]});
        vec![
            message("system", text("Answer briefly, politely and in the language of the user.")),
            message("system", text("Today is Monday.")),
            message("user", text("How is the weather in the north?")),
            message("assistant", json!({"content": calls})),
            message("user", result("a")),
            message("user", result("b")),
            message("assistant", text("It rains.")),
            message("user", text("Thanks")),
        ]
    }

    /// Returns the indices of the messages that remain.
    fn remaining(messages: &[Message], limit: usize, flags: &[&str]) -> Vec<usize> {
        let mut params = json!({"limit_tokens": limit});
        for flag in flags {
            params[flag] = true.into();
        }
        let strategies = parse(&json!([{"type": "token_limit", "params": params}]).to_string()).expect("valid");
        apply(&strategies, messages.to_vec(), None).iter().map(|message| message.index).collect()
    }

    fn tokens_of(messages: &[Message]) -> usize {
        messages.iter().map(|message| message.tokens).sum()
    }

    #[test]
    fn pin_system_keeps_the_system_messages_at_the_beginning() {
        let messages = conversation();
        let all = tokens_of(&messages);
        assert_eq!(remaining(&messages, all - 1, &[]), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(remaining(&messages, all - 1, &["pin_system"]), [0, 1, 3, 4, 5, 6, 7]);
        // They count towards the limit, but remain even if they exceed it.
        let pinned = tokens_of(&messages[..2]);
        assert_eq!(remaining(&messages, pinned + messages[7].tokens, &["pin_system"]), [0, 1, 7]);
        assert_eq!(remaining(&messages, 1, &["pin_system"]), [0, 1]);
        assert_eq!(remaining(&messages, 1, &[]), [0_usize; 0]);
        // A later system message is not pinned.
        let later = [&messages[2..], &messages[..1]].concat();
        assert_eq!(remaining(&later, 1, &["pin_system"]), [0_usize; 0]);
    }

    #[test]
    fn start_on_user_removes_the_messages_before_the_first_of_a_user() {
        let messages = conversation();
        // Without system messages and the first question, the limit is met by the calls, results and answers.
        let limit = tokens_of(&messages[3..]);
        assert_eq!(remaining(&messages, limit, &[]), [3, 4, 5, 6, 7]);
        assert_eq!(remaining(&messages, limit, &["start_on_user"]), [7]);
        assert_eq!(remaining(&messages, limit, &["start_on_user", "pin_system"]), [0, 1, 7]);
        // A tool result of a removed call is removed too, and cannot be the start.
        assert_eq!(remaining(&messages[3..7], 10_000, &["start_on_user"]), [0_usize; 0]);
        assert_eq!(remaining(&messages[2..], 10_000, &["start_on_user"]), [0, 1, 2, 3, 4, 5]);
        let with_text = json!({"content": [
            {"type": "tool_result", "tool_use_id": "z", "content": "x"},
            {"type": "text", "text": "Continue."},
        ]});
        let messages = [message("user", with_text), message("user", json!({"content": "Hello"}))];
        assert_eq!(remaining(&messages, 10_000, &["start_on_user"]), [1]);
    }

    #[test]
    fn nothing_is_removed_if_the_conversation_fits_and_starts_on_a_user() {
        let messages = conversation();
        let (all, rest) = (tokens_of(&messages), tokens_of(&messages[2..]));
        assert_eq!(remaining(&messages, all, &["pin_system"]).len(), 8);
        assert_eq!(remaining(&messages, all, &["pin_system", "start_on_user"]).len(), 8);
        assert_eq!(remaining(&messages[2..], rest, &["start_on_user"]).len(), 6);
    }
}
