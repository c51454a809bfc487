//! `token_limit`: the oldest messages go, until the rest takes no more than so many tokens.
//!
//! With a message goes every other that holds a result of its calls or a call of its results, and what hangs on those.
//! Upstream goes from a call to the last of its results only. That leaves results without a call, or calls without a
//! result, where one message holds results of several others, a result stands before its call or comes in several
//! messages, an id is used again, or there is none (`OpenAI`'s old functions). Here a result belongs to the last call
//! before it. Where each id has one call and, later, one result in a message of its own, both do the same.
//!
//! The limit is always reached, if need be by an empty conversation.

use super::draft::{EditableMessage, drop_marked, total};
use super::groups::Groups;
use super::params::{Params, ParseError};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TokenLimit {
    limit: usize,
}

impl TokenLimit {
    pub(super) fn read(params: &Params) -> Result<Self, ParseError> {
        Ok(Self { limit: params.required("limit_tokens", params.number("limit_tokens", 1)?)? })
    }

    pub(super) fn apply(&self, drafts: &mut Vec<EditableMessage>) {
        let mut total = total(drafts);
        if total <= self.limit {
            return;
        }
        let groups = Groups::by_exchange(drafts);
        let mut gone = vec![false; drafts.len()];
        for oldest in 0..drafts.len() {
            if total <= self.limit {
                break;
            }
            if gone[oldest] {
                continue;
            }
            for member in groups.with(oldest) {
                gone[member] = true;
                total -= drafts[member].tokens();
            }
        }
        drop_marked(drafts, &gone);
    }
}
