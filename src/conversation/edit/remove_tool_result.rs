//! `remove_tool_result`: a word stands for what tools returned, but for the most recent results.
//!
//! The result itself stays, with the id of its call, so that a model still finds each call answered. What came with it,
//! such as an image, goes.

use std::collections::HashMap;

use super::draft::{EditableMessage, text_at};
use super::params::{Params, ParseError};
use super::selection::AllButRecent;
use crate::conversation::parts::{Kind, Part};

const PLACEHOLDER: &str = "Done";

/// A word stands for many results, and must not make an answer much longer than what is stored. In bytes.
const MAX_PLACEHOLDER: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RemoveToolResult {
    older: AllButRecent,
    placeholder: String,
}

impl RemoveToolResult {
    pub(super) fn read(params: &Params) -> Result<Self, ParseError> {
        let older = AllButRecent::read(params, "keep_recent_n_tool_results")?;
        let placeholder = params.text("tool_result_placeholder", MAX_PLACEHOLDER)?.unwrap_or_default().trim();
        let placeholder = if placeholder.is_empty() { PLACEHOLDER } else { placeholder };
        Ok(Self { older, placeholder: placeholder.to_owned() })
    }

    pub(super) fn apply(&self, drafts: &mut [EditableMessage]) {
        let names = if self.older.keeps_tools() { names(drafts) } else { HashMap::new() };
        let is_kept = |part: &Part| tool(part, &names).is_some_and(|tool| self.older.keeps(tool));
        let mut places = self.older.places(drafts, |part| part.kind == Kind::ToolResult && !is_kept(part));
        places.retain(|&(message, part)| {
            let text = &drafts[message].parts()[part].text;
            self.older.is_long(text)
        });
        for places in places.chunk_by(|one, next| one.0 == next.0) {
            let (message, _) = places[0];
            let places: Vec<_> = places.iter().map(|place| place.1).collect();
            drafts[message].replace_results(&places, &self.placeholder);
        }
    }
}

/// The tool whose result it is: by its call, if that is among the messages. Results without an id, as `OpenAI`'s old
/// functions give them, say it themselves.
fn tool<'a>(result: &'a Part, names: &HashMap<&str, &'a str>) -> Option<&'a str> {
    match text_at(&result.meta, "tool_call_id") {
        "" => Some(text_at(&result.meta, "function_name")),
        id => names.get(id).copied(),
    }
}

/// The names of tools by the ids of their calls.
fn names(drafts: &[EditableMessage]) -> HashMap<&str, &str> {
    let calls = drafts.iter().flat_map(EditableMessage::parts).filter(|part| part.kind == Kind::ToolCall);
    let named = calls.map(|call| (text_at(&call.meta, "id"), text_at(&call.meta, "name")));
    named.filter(|(id, name)| !id.is_empty() && !name.is_empty()).collect()
}
