//! Edit strategies, which shorten a conversation when it is read. The stored messages never change.
//!
//! [`parse()`] parses the strategies of a request, and [`apply`] applies them to a page of messages. Each type of strategy
//! has a file of its name. Strategies are applied in a fixed order, regardless of their order in the request:
//! `remove_tool_result`, `remove_tool_call_params`, `middle_out`, `token_limit`. Strategies of the same type are applied in
//! the order of the request.
//!
//! All functions are pure: the same messages and strategies always yield the same bytes, so that the provider of a model can
//! reuse its prompt cache.
//!
//! Invariants:
//! - Messages are never reordered. The only new texts are the placeholders of results and empty arguments.
//! - `token_limit` and `middle_out` remove whole messages, and a call together with its result. The other two strategies
//!   remove neither calls nor results.
//! - Messages after the pin are never changed, and the edits of the other messages do not depend on them.

use super::format::BodyChange;
use super::parts::{Part, Role};

mod editable_message;
mod groups;
mod middle_out;
mod params;
mod parse;
#[cfg(test)]
mod proptests;
mod remove_tool_call_params;
mod remove_tool_result;
mod selection;
#[cfg(test)]
mod tests;
mod token_limit;

use editable_message::EditableMessage;
use middle_out::MiddleOut;
pub use params::ParseError;
pub use parse::{MAX_STRATEGIES, parse};
use remove_tool_call_params::RemoveToolCallParams;
use remove_tool_result::RemoveToolResult;
use token_limit::TokenLimit;

/// An edit strategy with its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strategy(StrategyKind);

#[derive(Clone, Debug, PartialEq, Eq)]
enum StrategyKind {
    RemoveToolResult(RemoveToolResult),
    RemoveToolCallParams(RemoveToolCallParams),
    MiddleOut(MiddleOut),
    TokenLimit(TokenLimit),
}

/// A message of a page, before editing.
#[derive(Clone, Debug)]
pub struct Message {
    pub role: Role,
    /// The message contains instructions for the model: its original role is `system` or `developer`.
    pub is_system: bool,
    pub parts: Vec<Part>,
    /// The result of [`tokens::count_parts`](super::tokens::count_parts) for these parts. [`apply`] relies on it.
    pub tokens: usize,
}

/// A message that was not removed, after editing.
#[derive(Clone, Debug, PartialEq)]
pub struct EditedMessage {
    /// The index of the message in the page.
    pub index: usize,
    pub parts: Vec<Part>,
    /// The number of tokens of these parts.
    pub tokens: usize,
    /// The changes of the stored body that correspond to the edits of the parts. Empty if the message is unchanged.
    pub changes: Vec<BodyChange>,
}

/// Applies strategies, as returned by [`parse()`], to the messages of a page up to and including the message at index `pin`.
/// If there is no such message, applies them to all messages. Returns the messages that were not removed, including unchanged
/// messages and the messages after `pin`.
///
/// Token limits and numbers of recent calls or results refer only to the messages to which the strategies are applied. Each of
/// these messages may be removed, including the message at `pin`.
pub fn apply(strategies: &[Strategy], messages: Vec<Message>, pin: Option<usize>) -> Vec<EditedMessage> {
    let numbered = messages.into_iter().enumerate();
    let mut messages: Vec<_> = numbered.map(|(index, message)| EditableMessage::new(index, message)).collect();
    let after_pin = pin.filter(|pin| *pin < messages.len()).map(|pin| messages.split_off(pin + 1));
    for Strategy(kind) in strategies {
        match kind {
            StrategyKind::RemoveToolResult(strategy) => strategy.apply(&mut messages),
            StrategyKind::RemoveToolCallParams(strategy) => strategy.apply(&mut messages),
            StrategyKind::MiddleOut(strategy) => strategy.apply(&mut messages),
            StrategyKind::TokenLimit(strategy) => strategy.apply(&mut messages),
        }
    }
    messages.into_iter().chain(after_pin.into_iter().flatten()).map(EditableMessage::into_edited).collect()
}

/// Returns the index of the message that a response names as its pin: `pin`, or the last message if the page has no message at
/// `pin` or there are no strategies. A later request with this message as the pin applies the strategies to the same messages,
/// even if more messages are stored in the meantime. Returns `None` if the page is empty.
pub fn pin_index(strategies: &[Strategy], message_count: usize, pin: Option<usize>) -> Option<usize> {
    pin.filter(|pin| *pin < message_count && !strategies.is_empty()).or(message_count.checked_sub(1))
}
