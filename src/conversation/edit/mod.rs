//! Edit strategies: a conversation made shorter while it is read. What is stored never changes.
//!
//! [`parse()`] reads the strategies of a request, [`apply`] makes a page shorter. Each strategy is a file; together they
//! work in a fixed order, however they were written: `remove_tool_result`, `remove_tool_call_params`, `middle_out`,
//! `token_limit`; two of a kind in the order given. Everything here is pure, so the same messages with the
//! same strategies always give the same bytes, which is what a cache of prompts needs.
//!
//! What always holds:
//! - nothing is reordered, and nothing is new but the text that stands for a result, and empty arguments;
//! - `token_limit` and `middle_out` take whole messages, and a call with its result; the other two leave both in place;
//! - messages after the pin are never touched, and nothing depends on them.

use super::format::Change;
use super::parts::Part;

mod draft;
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

use draft::EditableMessage;
use middle_out::MiddleOut;
pub use params::ParseError;
pub use parse::{MAX_STRATEGIES, parse};
use remove_tool_call_params::RemoveToolCallParams;
use remove_tool_result::RemoveToolResult;
use token_limit::TokenLimit;

/// One strategy with its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strategy(Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    RemoveToolResult(RemoveToolResult),
    RemoveToolCallParams(RemoveToolCallParams),
    MiddleOut(MiddleOut),
    TokenLimit(TokenLimit),
}

/// A message of a page, before.
#[derive(Clone, Debug)]
pub struct Message {
    pub parts: Vec<Part>,
    /// What [`tokens::of_parts`](super::tokens::of_parts) says of these parts; it is not counted again.
    pub tokens: usize,
}

/// A message that stays, after.
#[derive(Clone, Debug, PartialEq)]
pub struct Edited {
    /// Which message of the page it is.
    pub index: usize,
    pub parts: Vec<Part>,
    /// Of these parts.
    pub tokens: usize,
    /// What makes of the message's stored body what the parts say; empty if nothing changed.
    pub changes: Vec<Change>,
}

/// Edits a page up to and with the message at `pin`; all of it without one. `strategies` come as [`parse()`] gave them.
///
/// Limits and numbers of recent things are about the edited messages alone. Every message may go, the pinned one too.
pub fn apply(strategies: &[Strategy], messages: Vec<Message>, pin: Option<usize>) -> Vec<Edited> {
    let numbered = messages.into_iter().enumerate();
    let mut drafts: Vec<_> = numbered.map(|(index, message)| EditableMessage::new(index, message)).collect();
    let after = pin.filter(|pin| *pin < drafts.len()).map(|pin| drafts.split_off(pin + 1));
    for Strategy(kind) in strategies {
        match kind {
            Kind::RemoveToolResult(strategy) => strategy.apply(&mut drafts),
            Kind::RemoveToolCallParams(strategy) => strategy.apply(&mut drafts),
            Kind::MiddleOut(strategy) => strategy.apply(&mut drafts),
            Kind::TokenLimit(strategy) => strategy.apply(&mut drafts),
        }
    }
    drafts.into_iter().chain(after.into_iter().flatten()).map(EditableMessage::finish).collect()
}

/// Where a page was edited: the message to pin at for the same again, whatever is stored later. `None` if the page is
/// empty.
pub fn edited_at(strategies: &[Strategy], messages: usize, pin: Option<usize>) -> Option<usize> {
    pin.filter(|pin| *pin < messages && !strategies.is_empty()).or(messages.checked_sub(1))
}
