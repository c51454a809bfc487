//! `middle_out` repeatedly removes the middle message until the remaining messages have at most the given number of tokens.
//! The beginning and the end of the conversation are therefore removed last. If only two messages remain, the older one is
//! removed first.
//!
//! If a message is removed, all messages that contain one of its call ids are removed too, transitively. `OpenAI`'s
//! deprecated function calls have no id. This implementation removes such a call together with its result; upstream does
//! not.

use super::editable_message::{EditableMessage, remove_messages, total_tokens};
use super::groups::Groups;
use super::params::{Params, ParseError};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MiddleOut {
    target: usize,
}

impl MiddleOut {
    pub(super) fn parse(params: &Params) -> Result<Self, ParseError> {
        Ok(Self { target: params.require("token_reduce_to", params.integer("token_reduce_to", 1)?)? })
    }

    pub(super) fn apply(&self, messages: &mut Vec<EditableMessage>) {
        let mut total = total_tokens(messages);
        if total <= self.target {
            return;
        }
        let groups = Groups::by_call_id(messages);
        let mut remaining = FenwickTree::full(messages.len());
        let mut removed = vec![false; messages.len()];
        while total > self.target && remaining.len > 0 {
            let middle = remaining.nth(if remaining.len <= 2 { 0 } else { remaining.len / 2 });
            for member in groups.members(middle) {
                removed[member] = true;
                remaining.remove(member);
                total -= messages[member].tokens();
            }
        }
        remove_messages(messages, &removed);
    }
}

/// The set of remaining messages, as a Fenwick tree. It finds the nth remaining message, and removes a message, in logarithmic
/// time.
///
/// Messages and nodes are numbered from 1. Node `n` contains the number of remaining messages among the `n & -n` messages up to
/// and including message `n`.
struct FenwickTree {
    /// The nodes. Node 0 is not used.
    tree: Vec<usize>,
    /// The number of remaining messages.
    len: usize,
}

impl FenwickTree {
    fn full(len: usize) -> Self {
        Self { tree: (0..=len).map(lowest_bit).collect(), len }
    }

    /// Returns the index of the remaining message that follows exactly `rank` other remaining messages.
    fn nth(&self, mut rank: usize) -> usize {
        let mut before = 0;
        let mut step = (self.tree.len() - 1).checked_ilog2().map_or(0, |bits| 1 << bits);
        while step > 0 {
            if let Some(count) = self.tree.get(before + step).filter(|count| **count <= rank) {
                rank -= count;
                before += step;
            }
            step /= 2;
        }
        before
    }

    /// Removes the message with an index.
    fn remove(&mut self, index: usize) {
        self.len -= 1;
        let mut node = index + 1;
        while let Some(count) = self.tree.get_mut(node) {
            *count -= 1;
            node += lowest_bit(node);
        }
    }
}

/// Returns the lowest set bit of a number.
fn lowest_bit(node: usize) -> usize {
    node & node.wrapping_neg()
}
