//! `remove_tool_call_params`: calls of tools lose their arguments, but for the most recent calls.

use serde_json::Value;

use super::draft::{EditableMessage, text_at};
use super::params::{Params, ParseError};
use super::selection::AllButRecent;
use crate::conversation::parts::{Kind, Part};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RemoveToolCallParams {
    older: AllButRecent,
}

impl RemoveToolCallParams {
    pub(super) fn read(params: &Params) -> Result<Self, ParseError> {
        Ok(Self { older: AllButRecent::read(params, "keep_recent_n_tool_calls")? })
    }

    pub(super) fn apply(&self, drafts: &mut [EditableMessage]) {
        let is_kept = |part: &Part| self.older.keeps(text_at(&part.meta, "name"));
        let mut places = self.older.places(drafts, |part| part.kind == Kind::ToolCall && !is_kept(part));
        places.retain(|&(message, part)| self.changes(&drafts[message].parts()[part]));
        for places in places.chunk_by(|one, next| one.0 == next.0) {
            let (message, _) = places[0];
            let places: Vec<_> = places.iter().map(|place| place.1).collect();
            drafts[message].empty_arguments(&places);
        }
    }

    /// A call that says nothing at all is left alone. One without arguments gets empty ones, unless only long ones
    /// change.
    fn changes(&self, call: &Part) -> bool {
        match call.meta.get("arguments") {
            None => !call.meta.is_empty() && self.older.is_long(""),
            Some(Value::String(arguments)) => self.older.is_long(arguments),
            Some(arguments) => self.older.is_long(&arguments.to_string()),
        }
    }
}
