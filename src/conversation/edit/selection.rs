//! All tool calls or results but the most recent ones, which is what two strategies are about.

use std::collections::HashSet;

use super::draft::EditableMessage;
use super::params::{Params, ParseError};
use crate::conversation::parts::Part;
use crate::conversation::tokens;

/// How many are recent, if nobody says.
const RECENT: usize = 3;

/// Where a part stands: which message, and where in it.
pub(super) type PartIndex = (usize, usize);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AllButRecent {
    recent: usize,
    /// Tools whose calls or results always stay. They do not use up the number of recent ones.
    kept_tools: HashSet<String>,
    /// Only what takes more tokens than this changes. What is spared for it does use up the number.
    longer_than: Option<usize>,
}

impl AllButRecent {
    /// Reads `keep_tools`, `gt_token`, and the number of recent ones under its own name.
    pub(super) fn read(params: &Params, recent: &str) -> Result<Self, ParseError> {
        Ok(Self {
            recent: params.number(recent, 0)?.unwrap_or(RECENT),
            kept_tools: params.strings("keep_tools")?.into_iter().collect(),
            longer_than: params.number("gt_token", 1)?,
        })
    }

    pub(super) fn keeps_tools(&self) -> bool {
        !self.kept_tools.is_empty()
    }

    pub(super) fn keeps(&self, tool: &str) -> bool {
        self.kept_tools.contains(tool)
    }

    /// Whether a text is long enough to change.
    pub(super) fn is_long(&self, text: &str) -> bool {
        self.longer_than.is_none_or(|tokens| tokens::exceeds(text, tokens))
    }

    /// The places of the parts that `is_listed`, without the recent ones, in order.
    pub(super) fn places(&self, drafts: &[EditableMessage], is_listed: impl Fn(&Part) -> bool) -> Vec<PartIndex> {
        let mut places = Vec::new();
        for (message, draft) in drafts.iter().enumerate() {
            let listed = draft.parts().iter().enumerate().filter(|(_, part)| is_listed(part));
            places.extend(listed.map(|(part, _)| (message, part)));
        }
        places.truncate(places.len().saturating_sub(self.recent));
        places
    }
}
