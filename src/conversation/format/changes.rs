//! Changes to stored bodies. Each has the same effect on the body of a message as an edit strategy had on the parts.

use std::collections::{HashMap, HashSet};

use super::value::Object;
use crate::conversation::parts::PartKind;

/// A change to a stored body. It identifies a tool result by its index among the results of the message, and a tool call by its
/// index among the calls, both in the order of the parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BodyChange {
    /// Replaces a tool result with a text, and removes its attachments such as images.
    ReplaceResult { result_index: usize, text: String },
    /// Replaces the arguments of a tool call with `{}`, or with an empty string for a custom tool.
    ClearArguments { call_index: usize },
}

/// Returns the arguments of a tool call after [`BodyChange::ClearArguments`]: `{}`, or an empty string for a custom tool, whose
/// input is plain text.
pub(in crate::conversation) fn empty_arguments(is_custom: bool) -> &'static str {
    if is_custom { "" } else { "{}" }
}

/// The changes to one body, for code that visits all tool results and calls of the body in order.
pub(super) struct ChangeCursor<'a> {
    /// New texts of results, by the index of the result.
    result_texts: HashMap<usize, &'a str>,
    /// Indices of the calls whose arguments are cleared.
    cleared_calls: HashSet<usize>,
    results_seen: usize,
    calls_seen: usize,
}

impl<'a> ChangeCursor<'a> {
    pub(super) fn new(changes: &'a [BodyChange]) -> Self {
        let mut cursor =
            Self { result_texts: HashMap::new(), cleared_calls: HashSet::new(), results_seen: 0, calls_seen: 0 };
        for change in changes {
            match change {
                BodyChange::ReplaceResult { result_index, text } => {
                    cursor.result_texts.insert(*result_index, text);
                }
                BodyChange::ClearArguments { call_index } => {
                    cursor.cleared_calls.insert(*call_index);
                }
            }
        }
        cursor
    }

    /// Advances to the next result and returns its new text, or `None` if the result does not change.
    pub(super) fn next_result_text(&mut self) -> Option<&'a str> {
        self.results_seen += 1;
        self.result_texts.get(&(self.results_seen - 1)).copied()
    }

    /// Advances to the next call and returns `true` if its arguments must be cleared.
    pub(super) fn clears_next_call(&mut self) -> bool {
        self.calls_seen += 1;
        self.cleared_calls.contains(&(self.calls_seen - 1))
    }
}

/// A matcher for the attachments of a tool result, which are the parts that directly follow it and refer to the same call. The
/// default matches no part.
#[derive(Default)]
pub(in crate::conversation) struct AttachmentMatcher {
    /// The call that the result refers to, as in [`call_reference`]. `None` if no more attachments can follow.
    call: Option<(&'static str, String)>,
}

impl AttachmentMatcher {
    /// Returns the matcher for the parts after the tool result with this meta.
    pub(in crate::conversation) fn for_result(meta: &Object) -> Self {
        Self { call: call_reference(meta).map(|(key, call)| (key, call.to_owned())) }
    }

    /// Returns `true` if the next part, which must not be a tool result, is an attachment. A tool call is never an attachment, so
    /// that the removal of attachments does not change the index of a call.
    pub(in crate::conversation) fn matches_next(&mut self, kind: PartKind, meta: &Object) -> bool {
        let same_call = self.call.as_ref().is_some_and(|(key, call)| call_reference(meta) == Some((key, call)));
        if !same_call {
            self.call = None;
        }
        same_call && kind != PartKind::ToolCall
    }
}

/// Returns the key and value by which the meta of a part refers to a tool call: the id of the call, or the name of the function
/// for `OpenAI`'s deprecated function calls, which have no id.
fn call_reference(meta: &Object) -> Option<(&'static str, &str)> {
    ["tool_call_id", "function_name"].into_iter().find_map(|key| Some((key, meta.get(key)?.as_str()?)))
}
