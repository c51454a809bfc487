//! Groups of messages that are removed together, because one contains a tool call and another its result.

use std::collections::HashMap;

use super::editable_message::{EditableMessage, str_at};
use crate::conversation::parts::{Part, PartKind};

/// A partition of the messages into groups, as a union-find structure.
pub(super) struct Groups {
    /// The parent of each message in the tree of its group. The root identifies the group.
    parent: Vec<usize>,
    /// The successor of each message in the circular list of its group.
    next: Vec<usize>,
}

impl Groups {
    /// Groups all messages with the same call id. Calls without an id (`OpenAI`'s deprecated function calls) are grouped as in
    /// [`Self::by_call`].
    pub(super) fn by_call_id(messages: &[EditableMessage]) -> Self {
        Self::build(messages, |call| matches!(call, CallReference::Id(_)))
    }

    /// Groups the message of each call with the messages of its results. Several calls may have the same id. A result belongs
    /// to the last call with its id that precedes it. If no call precedes it, it belongs to the next call with its id.
    pub(super) fn by_call(messages: &[EditableMessage]) -> Self {
        Self::build(messages, |_| false)
    }

    /// Builds the groups. If `groups_all` returns `true` for a reference, all messages with this reference belong to one group.
    /// Other references are matched as in [`Self::by_call`].
    fn build(messages: &[EditableMessage], groups_all: impl Fn(&CallReference<'_>) -> bool) -> Self {
        let all: Vec<_> = (0..messages.len()).collect();
        let mut groups = Self { parent: all.clone(), next: all };
        // By reference: the message with the last call. For a reference for which `groups_all` returns `true`: the first message
        // with this reference.
        let mut calls: HashMap<CallReference<'_>, usize> = HashMap::new();
        // The first message with a result whose call has not occurred yet.
        let mut unmatched_results: HashMap<CallReference<'_>, usize> = HashMap::new();
        for (index, message) in messages.iter().enumerate() {
            for part in message.parts() {
                let Some(reference) = CallReference::from_part(part) else { continue };
                if groups_all(&reference) {
                    groups.union(*calls.entry(reference).or_insert(index), index);
                } else if part.kind == PartKind::ToolCall {
                    if let Some(result) = unmatched_results.remove(&reference) {
                        groups.union(result, index);
                    }
                    calls.insert(reference, index);
                } else {
                    let preceding_call = calls.get(&reference).copied();
                    let related =
                        preceding_call.unwrap_or_else(|| *unmatched_results.entry(reference).or_insert(index));
                    groups.union(related, index);
                }
            }
        }
        groups
    }

    /// Returns the root of a message's group.
    fn find(&mut self, mut message: usize) -> usize {
        while self.parent[message] != message {
            self.parent[message] = self.parent[self.parent[message]];
            message = self.parent[message];
        }
        message
    }

    /// Merges the groups of two messages.
    fn union(&mut self, one: usize, other: usize) {
        let (root, other_root) = (self.find(one), self.find(other));
        if root != other_root {
            self.parent[other_root] = root;
            // Merges the two circular lists.
            self.next.swap(one, other);
        }
    }

    /// Returns the messages of a message's group, beginning with this message.
    pub(super) fn members(&self, message: usize) -> impl Iterator<Item = usize> {
        std::iter::successors(Some(message), move |index| Some(self.next[*index]).filter(|next| *next != message))
    }
}

/// The value by which a tool result refers to its tool call.
#[derive(PartialEq, Eq, Hash)]
enum CallReference<'a> {
    /// The id of the call.
    Id(&'a str),
    /// The function name, for `OpenAI`'s deprecated function calls, which have no id.
    Function(&'a str),
}

impl<'a> CallReference<'a> {
    /// Returns the reference of a call, or of a result to its call. Other parts have none.
    fn from_part(part: &'a Part) -> Option<Self> {
        let (id, function) = match part.kind {
            PartKind::ToolCall => ("id", "name"),
            PartKind::ToolResult => ("tool_call_id", "function_name"),
            _ => return None,
        };
        match (str_at(&part.meta, id), str_at(&part.meta, function)) {
            ("", "") => None,
            ("", function) => Some(Self::Function(function)),
            (id, _) => Some(Self::Id(id)),
        }
    }
}
