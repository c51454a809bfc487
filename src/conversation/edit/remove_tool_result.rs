//! `remove_tool_result` replaces the texts of all tool results except the most recent ones with a placeholder.
//!
//! A replaced result remains, with the id of its call, because models require a result for each call. Its attachments, such
//! as images, are removed.

use std::collections::HashMap;

use super::editable_message::{EditableMessage, str_at};
use super::params::{Params, ParseError};
use super::selection::AllButRecent;
use crate::conversation::parts::{Part, PartKind};

const DEFAULT_PLACEHOLDER: &str = "Done";

/// The maximum length of a placeholder. A placeholder can replace many results, and the response must not be much longer than
/// the stored messages.
const MAX_PLACEHOLDER_BYTES: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RemoveToolResult {
    selection: AllButRecent,
    placeholder: String,
}

impl RemoveToolResult {
    pub(super) fn parse(params: &Params) -> Result<Self, ParseError> {
        let selection = AllButRecent::parse(params, "keep_recent_n_tool_results")?;
        let placeholder = params.string("tool_result_placeholder", MAX_PLACEHOLDER_BYTES)?.unwrap_or_default().trim();
        let placeholder = if placeholder.is_empty() { DEFAULT_PLACEHOLDER } else { placeholder };
        Ok(Self { selection, placeholder: placeholder.to_owned() })
    }

    pub(super) fn apply(&self, messages: &mut [EditableMessage]) {
        let tool_names = if self.selection.has_kept_tools() { tool_names(messages) } else { HashMap::new() };
        let is_kept =
            |part: &Part| tool_of_result(part, &tool_names).is_some_and(|tool| self.selection.keeps_tool(tool));
        let mut selected = self.selection.select(messages, |part| part.kind == PartKind::ToolResult && !is_kept(part));
        selected.retain(|position| {
            let text = &messages[position.message].parts()[position.part].text;
            self.selection.exceeds_threshold(text)
        });
        for of_message in selected.chunk_by(|position, next| position.message == next.message) {
            let indices: Vec<_> = of_message.iter().map(|position| position.part).collect();
            messages[of_message[0].message].replace_results(&indices, &self.placeholder);
        }
    }
}

/// Returns the name of the tool that returned a result. The call with the same id has the name. Results without an id
/// (`OpenAI`'s deprecated function calls) contain the name themselves.
fn tool_of_result<'a>(result: &'a Part, tool_names: &HashMap<&str, &'a str>) -> Option<&'a str> {
    match str_at(&result.meta, "tool_call_id") {
        "" => Some(str_at(&result.meta, "function_name")),
        id => tool_names.get(id).copied(),
    }
}

/// Returns the names of tools by the ids of their calls.
fn tool_names(messages: &[EditableMessage]) -> HashMap<&str, &str> {
    let calls = messages.iter().flat_map(EditableMessage::parts).filter(|part| part.kind == PartKind::ToolCall);
    let names = calls.map(|call| (str_at(&call.meta, "id"), str_at(&call.meta, "name")));
    names.filter(|(id, name)| !id.is_empty() && !name.is_empty()).collect()
}
