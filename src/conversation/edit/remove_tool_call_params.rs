//! `remove_tool_call_params` clears the arguments of all tool calls except the most recent ones.

use serde_json::Value;

use super::editable_message::{EditableMessage, str_at};
use super::params::{Params, ParseError};
use super::selection::AllButRecent;
use crate::conversation::parts::{Part, PartKind};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RemoveToolCallParams {
    selection: AllButRecent,
}

impl RemoveToolCallParams {
    pub(super) fn parse(params: &Params) -> Result<Self, ParseError> {
        Ok(Self { selection: AllButRecent::parse(params, "keep_recent_n_tool_calls")? })
    }

    pub(super) fn apply(&self, messages: &mut [EditableMessage]) {
        let is_kept = |part: &Part| self.selection.keeps_tool(str_at(&part.meta, "name"));
        let mut selected = self.selection.select(messages, |part| part.kind == PartKind::ToolCall && !is_kept(part));
        selected.retain(|position| self.must_clear(&messages[position.message].parts()[position.part]));
        for of_message in selected.chunk_by(|position, next| position.message == next.message) {
            let indices: Vec<_> = of_message.iter().map(|position| position.part).collect();
            messages[of_message[0].message].clear_arguments(&indices);
        }
    }

    /// Returns `true` if the arguments of a call must be cleared. A call without arguments gets empty arguments, unless it has
    /// no fields at all or there is a token threshold.
    fn must_clear(&self, call: &Part) -> bool {
        match call.meta.get("arguments") {
            None => !call.meta.is_empty() && self.selection.exceeds_threshold(""),
            Some(Value::String(arguments)) => self.selection.exceeds_threshold(arguments),
            Some(arguments) => self.selection.exceeds_threshold(&arguments.to_string()),
        }
    }
}
