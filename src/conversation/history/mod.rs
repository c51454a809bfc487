//! Converts a history: messages in their order, possibly stored in several formats, to the items of one format.
//!
//! [`crate::conversation::format`] converts single messages. This module adds what providers require of messages that belong
//! together: each result names its call by an id that the provider accepts (`call_ids`, `pairing`), and the messages of a
//! tool turn stand together ([`turns`], `join`). A message that is stored in the target format is unchanged, unless it belongs
//! to a tool turn with a message of another format, or the request asks for a repair or for placeholders of signatures.
//!
//! All functions are pure. Messages are added one by one, and memory is only needed for the current turn, or for all messages if
//! they are repaired.

mod call_ids;
mod earlier_calls;
mod join;
mod pairing;
mod repair;
pub mod turns;

use std::sync::Arc;

use serde_json::{Map, Value};
use uuid::Uuid;

pub use self::call_ids::{all_ids, generate_call_id};
pub use self::earlier_calls::EarlierCalls;
pub use self::join::Item;
use self::join::{join_assistant, join_user};
use self::pairing::CallPairing;
use self::repair::repair;
use self::turns::{MessageShape, ToolTurn, TurnFinder};
use crate::conversation::format::{self, Format, RenderContext};
use crate::conversation::parts::{Part, PartKind, Role};

/// A message of a history.
pub struct HistoryMessage<'a> {
    pub id: Uuid,
    pub role: Role,
    pub meta: &'a Map<String, Value>,
    pub body: HistoryBody,
    /// `true` if an edit strategy has removed the message before this one.
    pub follows_gap: bool,
}

/// The content of a message.
pub enum HistoryBody {
    /// The message in the target format, as it is stored.
    Own(Value),
    Parts(Vec<Part>),
}

/// Pairs the calls and results of stored messages, which may name a call by the id that another format has for it. Afterwards,
/// each call has an id, no two calls have the same id, and each result that belongs to a call has the id of the call.
///
/// Edit strategies need this to keep calls and results together.
pub struct CallResolver(CallPairing);

impl CallResolver {
    /// Begins a history. `earlier_calls` are the calls that precede its first message.
    pub fn new(earlier_calls: Arc<EarlierCalls>) -> Self {
        Self(CallPairing::new(Format::Acontext, earlier_calls))
    }

    /// Changes the parts of the next message.
    pub fn resolve(&mut self, message: Uuid, role: Role, parts: &mut [Part]) {
        self.0.add(message, role, false, parts);
    }
}

/// Converts the messages of a history, in their order. The target must not be `acontext`, whose items are single messages.
pub struct HistoryConverter<'a> {
    target: Format,
    ctx: &'a RenderContext,
    pairing: CallPairing,
    finder: TurnFinder,
    /// The converted messages that may belong to a turn with a later message.
    pending: Vec<ConvertedMessage>,
    /// The number of messages whose items have been returned.
    finished: usize,
    /// If the history is repaired: all items.
    unrepaired: Vec<Item>,
}

struct ConvertedMessage {
    is_own: bool,
    follows_gap: bool,
    items: Vec<Value>,
}

impl<'a> HistoryConverter<'a> {
    /// Begins a history. `earlier_calls` are the calls that precede its first message.
    pub fn new(target: Format, ctx: &'a RenderContext, earlier_calls: Arc<EarlierCalls>) -> Self {
        let pairing = CallPairing::new(target, earlier_calls);
        Self {
            target,
            ctx,
            pairing,
            finder: TurnFinder::default(),
            pending: Vec::new(),
            finished: 0,
            unrepaired: Vec::new(),
        }
    }

    /// Adds the next message. Returns the items of the messages that are complete.
    pub fn push(&mut self, message: HistoryMessage<'_>) -> Vec<Item> {
        let HistoryMessage { id, role, meta, body, follows_gap } = message;
        let (shape, converted) = match body {
            HistoryBody::Own(value) => {
                let shape = self.pair(id, role, true, &mut format::to_parts(self.target, value.clone()));
                (shape, ConvertedMessage { is_own: true, follows_gap, items: vec![value] })
            }
            HistoryBody::Parts(mut parts) => {
                let shape = self.pair(id, role, false, &mut parts);
                self.ctx.value_budget.reset();
                let items = format::from_parts(self.target, role, meta, parts, self.ctx);
                (shape, ConvertedMessage { is_own: false, follows_gap, items })
            }
        };
        let ended = self.finder.push(shape);
        let mut items = ended.map(|turn| self.take_turn(&turn)).unwrap_or_default();
        self.pending.push(converted);
        items.append(&mut self.take_messages(self.finder.first_open()));
        if self.ctx.options.with_repair {
            self.unrepaired.append(&mut items);
        }
        self.add_placeholder_signatures(items)
    }

    /// Pairs the calls and results of the next message. Returns its shape, in which only results of the open turn count.
    fn pair(&mut self, id: Uuid, role: Role, is_own: bool, parts: &mut [Part]) -> MessageShape {
        let call_message = self.pairing.add(id, role, is_own, parts);
        let is_assistant = role == Role::Assistant;
        MessageShape {
            is_assistant,
            has_calls: is_assistant && parts.iter().any(|part| part.kind == PartKind::ToolCall),
            has_results: !is_assistant && call_message.is_some_and(|message| message >= self.finder.first_open()),
        }
    }

    /// Returns the items of the messages that [`Self::push`] has not returned.
    pub fn finish(mut self) -> Vec<Item> {
        let mut items = self.finder.finish().map(|turn| self.take_turn(&turn)).unwrap_or_default();
        let end = self.finished + self.pending.len();
        items.append(&mut self.take_messages(end));
        if self.ctx.options.with_repair {
            self.unrepaired.append(&mut items);
            items = repair(self.target, std::mem::take(&mut self.unrepaired));
        }
        self.add_placeholder_signatures(items)
    }

    /// Adds the placeholders for missing signatures, if the request asks for them.
    fn add_placeholder_signatures(&self, mut items: Vec<Item>) -> Vec<Item> {
        if self.target == Format::Gemini && self.ctx.options.with_placeholder_signatures {
            for item in &mut items {
                format::add_placeholder_signature(&mut item.value);
            }
        }
        items
    }

    /// Removes the messages before the index `end` and returns their items.
    fn take_messages(&mut self, end: usize) -> Vec<Item> {
        let start = self.finished;
        let messages = self.pending.drain(..end.saturating_sub(start)).enumerate();
        let items = messages.flat_map(|(offset, converted)| {
            converted.items.into_iter().map(move |value| Item { message: start + offset, value })
        });
        let items = items.collect();
        self.finished = end.max(start);
        items
    }

    /// Removes the messages up to the end of a turn and returns their items.
    fn take_turn(&mut self, turn: &ToolTurn) -> Vec<Item> {
        let mut items = self.take_messages(turn.assistant.start);
        let is_own = |message: usize| self.pending[message - turn.assistant.start].is_own;
        // Messages that did not stand together when they were stored may have to be joined now.
        let has_gap = self.pending[1..turn.range().len()].iter().any(|message| message.follows_gap);
        let must_be_joined = turn.is_joined(is_own) || has_gap;
        if !must_be_joined && !self.ctx.options.with_repair {
            items.append(&mut self.take_messages(turn.user.end));
            return items;
        }
        let mut assistant = self.take_messages(turn.assistant.end);
        if !must_be_joined && self.target != Format::Gemini {
            // Texts before the first call are accepted as they are stored. Only Gemini rejects calls that follow a text.
            let texts = assistant.iter().take_while(|item| !has_calls(&item.value)).count();
            items.extend(assistant.drain(..texts));
        }
        let user = self.take_messages(turn.user.end);
        items.append(&mut join_assistant(self.target, assistant));
        items.append(&mut join_user(self.target, user));
        items
    }
}

/// Returns `true` if an `OpenAI` or Anthropic message has tool calls.
fn has_calls(item: &Value) -> bool {
    let is_set = |key: &str| match item.get(key) {
        Some(Value::Array(list)) => !list.is_empty(),
        value => value.is_some_and(|value| !value.is_null()),
    };
    let blocks = item.get("content").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let is_call = |block: &Value| block.get("type").is_some_and(|kind| kind == "tool_use");
    is_set("tool_calls") || is_set("function_call") || blocks.iter().any(is_call)
}

#[cfg(test)]
mod tests;
