//! The selection of all tool calls or results except the most recent ones, for `remove_tool_call_params` and
//! `remove_tool_result`.

use std::collections::HashSet;

use super::editable_message::EditableMessage;
use super::params::{Params, ParseError};
use crate::conversation::parts::Part;
use crate::conversation::tokens;

/// The number of the most recent calls or results that are not changed by default.
const DEFAULT_RECENT_COUNT: usize = 3;

/// The position of a part in a page.
#[derive(Clone, Copy)]
pub(super) struct PartPosition {
    /// The index of the message in the page.
    pub(super) message: usize,
    /// The index of the part in the message.
    pub(super) part: usize,
}

/// A selection of all calls or results except the most recent ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AllButRecent {
    /// The number of the most recent calls or results, which are not changed.
    recent_count: usize,
    /// The tools whose calls or results are never changed. These calls or results are not counted as recent ones.
    kept_tools: HashSet<String>,
    /// Only texts with more tokens than this are changed. Shorter texts are counted as recent ones, too.
    token_threshold: Option<usize>,
}

impl AllButRecent {
    /// Parses `keep_tools`, `gt_token`, and the number of the most recent calls or results. `recent_key` is the name of the
    /// parameter with this number.
    pub(super) fn parse(params: &Params, recent_key: &str) -> Result<Self, ParseError> {
        Ok(Self {
            recent_count: params.truncated_number(recent_key, 0)?.unwrap_or(DEFAULT_RECENT_COUNT),
            kept_tools: params.strings("keep_tools")?.into_iter().collect(),
            token_threshold: params.truncated_number("gt_token", 1)?,
        })
    }

    pub(super) fn has_kept_tools(&self) -> bool {
        !self.kept_tools.is_empty()
    }

    pub(super) fn keeps_tool(&self, tool: &str) -> bool {
        self.kept_tools.contains(tool)
    }

    /// Returns `true` if a text is long enough to be changed.
    pub(super) fn exceeds_threshold(&self, text: &str) -> bool {
        self.token_threshold.is_none_or(|limit| tokens::exceeds(text, limit))
    }

    /// Returns the positions of the parts that match, except the most recent ones, in ascending order.
    pub(super) fn select(&self, messages: &[EditableMessage], is_match: impl Fn(&Part) -> bool) -> Vec<PartPosition> {
        let mut selected = Vec::new();
        for (message_index, message) in messages.iter().enumerate() {
            let matches = message.parts().iter().enumerate().filter(|(_, part)| is_match(part));
            selected.extend(matches.map(|(part, _)| PartPosition { message: message_index, part }));
        }
        selected.truncate(selected.len().saturating_sub(self.recent_count));
        selected
    }
}
