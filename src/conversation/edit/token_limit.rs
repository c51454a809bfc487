//! `token_limit` removes the oldest messages until the remaining messages have at most the given number of tokens. If
//! necessary, it removes all messages.
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
}

impl TokenLimit {
    pub(super) fn parse(params: &Params) -> Result<Self, ParseError> {
        Ok(Self { limit: params.require("limit_tokens", params.truncated_number("limit_tokens", 1)?)? })
    }

    pub(super) fn apply(&self, messages: &mut Vec<EditableMessage>) {
        let mut total = total_tokens(messages);
        if total <= self.limit {
            return;
        }
        let groups = Groups::by_call(messages);
        let mut removed = vec![false; messages.len()];
        for oldest in 0..messages.len() {
            if total <= self.limit {
                break;
            }
            if removed[oldest] {
                continue;
            }
            for member in groups.members(oldest) {
                removed[member] = true;
                total -= messages[member].tokens();
            }
        }
        remove_messages(messages, &removed);
    }
}
