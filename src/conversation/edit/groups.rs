//! Messages that go together, because one holds a tool call and another its result.

use std::collections::HashMap;

use super::draft::{EditableMessage, text_at};
use crate::conversation::parts::{Kind, Part};

/// The messages in groups that have none in common.
pub(super) struct Groups {
    /// The members of a group form a tree; its root stands for the group.
    parent: Vec<usize>,
    /// And they form a ring, in which each knows the next.
    next: Vec<usize>,
}

impl Groups {
    /// An id joins all messages that name it. An old function without ids has a result for each call.
    pub(super) fn by_id(drafts: &[EditableMessage]) -> Self {
        Self::of(drafts, |call| matches!(call, FunctionCall::Id(_)))
    }

    /// A call is joined to its results. An id may come again: a result belongs to the last call before it, and one
    /// without a call before it to the next.
    pub(super) fn by_exchange(drafts: &[EditableMessage]) -> Self {
        Self::of(drafts, |_| false)
    }

    fn of(drafts: &[EditableMessage], is_one: impl Fn(&FunctionCall<'_>) -> bool) -> Self {
        let all: Vec<_> = (0..drafts.len()).collect();
        let mut groups = Self { parent: all.clone(), next: all };
        let mut called: HashMap<FunctionCall<'_>, usize> = HashMap::new();
        let mut answered_early: HashMap<FunctionCall<'_>, usize> = HashMap::new();
        for (at, draft) in drafts.iter().enumerate() {
            for part in draft.parts() {
                let Some(call) = FunctionCall::of(part) else { continue };
                if is_one(&call) {
                    groups.join(*called.entry(call).or_insert(at), at);
                } else if part.kind == Kind::ToolCall {
                    if let Some(result) = answered_early.remove(&call) {
                        groups.join(result, at);
                    }
                    called.insert(call, at);
                } else {
                    let other = called.get(&call).copied();
                    groups.join(other.unwrap_or_else(|| *answered_early.entry(call).or_insert(at)), at);
                }
            }
        }
        groups
    }

    fn root(&mut self, mut of: usize) -> usize {
        while self.parent[of] != of {
            self.parent[of] = self.parent[self.parent[of]];
            of = self.parent[of];
        }
        of
    }

    fn join(&mut self, one: usize, other: usize) {
        let (root, joined) = (self.root(one), self.root(other));
        if root != joined {
            self.parent[joined] = root;
            // Two rings become one.
            self.next.swap(one, other);
        }
    }

    /// A message, and all that go with it.
    pub(super) fn with(&self, message: usize) -> impl Iterator<Item = usize> {
        std::iter::successors(Some(message), move |at| Some(self.next[*at]).filter(|next| *next != message))
    }
}

/// What a call and its result both name.
#[derive(PartialEq, Eq, Hash)]
enum FunctionCall<'a> {
    Id(&'a str),
    /// `OpenAI`'s old functions have no ids.
    Function(&'a str),
}

impl<'a> FunctionCall<'a> {
    fn of(part: &'a Part) -> Option<Self> {
        let (id, function) = match part.kind {
            Kind::ToolCall => ("id", "name"),
            Kind::ToolResult => ("tool_call_id", "function_name"),
            _ => return None,
        };
        match (text_at(&part.meta, id), text_at(&part.meta, function)) {
            ("", "") => None,
            ("", function) => Some(Self::Function(function)),
            (id, _) => Some(Self::Id(id)),
        }
    }
}
