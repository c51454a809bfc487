//! Changes to a stored body: the same that were made to its parts, so that a message looks the same whichever of the
//! two it is shown from.

use std::collections::{HashMap, HashSet};

use super::value::Object;
use crate::conversation::parts::Kind;

/// One thing that was left out of a message. Results and calls are counted from 0 as they come in its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// This text stands for what a tool returned. Images and whatever else came with it are gone.
    Result { nth: usize, text: String },
    /// A call has no arguments any more: `{}`, or nothing for a custom tool, which takes a plain text.
    Arguments { nth: usize },
}

/// What an emptied call has as its arguments.
pub(in crate::conversation) fn no_arguments(custom: bool) -> &'static str {
    if custom { "" } else { "{}" }
}

/// Tells of each result and each call, as they come, what becomes of it.
pub(super) struct Changes<'a> {
    results: HashMap<usize, &'a str>,
    calls: HashSet<usize>,
    results_seen: usize,
    calls_seen: usize,
}

impl<'a> Changes<'a> {
    pub(super) fn new(changes: &'a [Change]) -> Self {
        let mut all = Self { results: HashMap::new(), calls: HashSet::new(), results_seen: 0, calls_seen: 0 };
        for change in changes {
            match change {
                Change::Result { nth, text } => _ = all.results.insert(*nth, text),
                Change::Arguments { nth } => _ = all.calls.insert(*nth),
            }
        }
        all
    }

    /// The text that stands for the next result, if it changes.
    pub(super) fn next_result(&mut self) -> Option<&'a str> {
        self.results_seen += 1;
        self.results.get(&(self.results_seen - 1)).copied()
    }

    /// Whether the next call loses its arguments.
    pub(super) fn next_call(&mut self) -> bool {
        self.calls_seen += 1;
        self.calls.contains(&(self.calls_seen - 1))
    }
}

/// What came with the result of a tool: the parts right after it that name the same call.
#[derive(Default)]
pub(in crate::conversation) struct ResultAttachments(Option<(&'static str, String)>);

impl ResultAttachments {
    /// Begins after a result that has this meta.
    pub(in crate::conversation) fn result(meta: &Object) -> Self {
        Self(call_named(meta).map(|(key, call)| (key, call.to_owned())))
    }

    /// Whether the next part, which is no result itself, goes with the result. Calls stay, so that they keep their
    /// number.
    pub(in crate::conversation) fn takes(&mut self, kind: Kind, meta: &Object) -> bool {
        let same = self.0.as_ref().is_some_and(|(key, call)| call_named(meta) == Some((key, call)));
        if !same {
            self.0 = None;
        }
        same && kind != Kind::ToolCall
    }
}

/// The call that a result answers: its id, or the function's name, which is all that `OpenAI`'s old functions have.
fn call_named(meta: &Object) -> Option<(&'static str, &str)> {
    ["tool_call_id", "function_name"].into_iter().find_map(|key| Some((key, meta.get(key)?.as_str()?)))
}
