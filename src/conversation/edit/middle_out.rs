//! `middle_out`: the message in the middle goes, again and again, until the rest takes no more than so many tokens. The
//! beginning and the end of the conversation stay longest, and of the last two messages the newer one.
//!
//! With a message go all that share the id of a tool call with it, and all that share one with those.
//! `OpenAI`'s old functions have no ids; upstream parts their calls from their results, here these stay together.

use super::draft::{EditableMessage, drop_marked, total};
use super::groups::Groups;
use super::params::{Params, ParseError};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MiddleOut {
    target: usize,
}

impl MiddleOut {
    pub(super) fn read(params: &Params) -> Result<Self, ParseError> {
        Ok(Self { target: params.required("token_reduce_to", params.whole_number("token_reduce_to", 1)?)? })
    }

    pub(super) fn apply(&self, drafts: &mut Vec<EditableMessage>) {
        let mut total = total(drafts);
        if total <= self.target {
            return;
        }
        let groups = Groups::by_id(drafts);
        let mut left = FenwickTree::all(drafts.len());
        let mut gone = vec![false; drafts.len()];
        while total > self.target && left.count > 0 {
            let middle = left.at(if left.count <= 2 { 0 } else { left.count / 2 });
            for member in groups.with(middle) {
                gone[member] = true;
                left.remove(member);
                total -= drafts[member].tokens();
            }
        }
        drop_marked(drafts, &gone);
    }
}

/// Which messages are left; finds and removes the nth of them in logarithmic time.
///
/// A Fenwick tree: the node `n`, counted from 1, knows how many are left of the last `n & -n` messages up to
/// the nth.
struct FenwickTree {
    tree: Vec<usize>,
    count: usize,
}

impl FenwickTree {
    fn all(count: usize) -> Self {
        Self { tree: (0..=count).map(lowest_bit).collect(), count }
    }

    /// The message that has `rank` others before it.
    fn at(&self, mut rank: usize) -> usize {
        let mut before = 0;
        let mut step = (self.tree.len() - 1).checked_ilog2().map_or(0, |bits| 1 << bits);
        while step > 0 {
            if let Some(held) = self.tree.get(before + step).filter(|held| **held <= rank) {
                rank -= held;
                before += step;
            }
            step /= 2;
        }
        before
    }

    fn remove(&mut self, message: usize) {
        self.count -= 1;
        let mut node = message + 1;
        while let Some(held) = self.tree.get_mut(node) {
            *held -= 1;
            node += lowest_bit(node);
        }
    }
}

fn lowest_bit(node: usize) -> usize {
    node & node.wrapping_neg()
}
