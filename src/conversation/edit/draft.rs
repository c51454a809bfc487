//! A message while it is edited.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::{Edited, Message};
use crate::conversation::format::Change;
use crate::conversation::format::changes::{ResultAttachments, no_arguments};
use crate::conversation::parts::{Kind, Part};
use crate::conversation::tokens;

/// Results and calls keep their number among their kind through every change, since neither is ever taken out.
pub(super) struct EditableMessage {
    index: usize,
    parts: Vec<Part>,
    /// Of the parts, unless they changed since.
    tokens: usize,
    outdated: bool,
    /// The texts that stand for results, by the number of the result.
    results: BTreeMap<usize, String>,
    /// The calls that have no arguments any more.
    calls: BTreeSet<usize>,
}

impl EditableMessage {
    pub(super) fn new(index: usize, message: Message) -> Self {
        let Message { parts, tokens } = message;
        Self { index, parts, tokens, outdated: false, results: BTreeMap::new(), calls: BTreeSet::new() }
    }

    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Counts only if something changed.
    pub(super) fn tokens(&mut self) -> usize {
        if std::mem::take(&mut self.outdated) {
            self.tokens = tokens::of_parts(&self.parts);
        }
        self.tokens
    }

    /// Puts a text in the place of the results that stand at these places, in rising order. What came with them goes.
    pub(super) fn replace_results(&mut self, places: &[usize], text: &str) {
        let mut places = places.iter().peekable();
        let (mut place, mut results) = (0, 0);
        let mut came_with = ResultAttachments::default();
        self.parts.retain_mut(|part| {
            place += 1;
            if part.kind != Kind::ToolResult {
                let goes = came_with.takes(part.kind, &part.meta);
                if goes {
                    self.results.insert(results - 1, text.to_owned());
                    self.outdated = true;
                }
                return !goes;
            }
            results += 1;
            came_with = ResultAttachments::default();
            if places.next_if_eq(&&(place - 1)).is_some() {
                came_with = ResultAttachments::result(&part.meta);
                if part.text != text {
                    text.clone_into(&mut part.text);
                    self.results.insert(results - 1, text.to_owned());
                    self.outdated = true;
                }
            }
            true
        });
    }

    /// Takes the arguments from the calls that stand at these places, in rising order.
    pub(super) fn empty_arguments(&mut self, places: &[usize]) {
        let arguments =
            |place: &usize| self.parts[*place].meta.get("arguments").and_then(Value::as_str).map_or(0, str::len);
        // Counts what changes or what does not, whichever is shorter.
        let apart = places.iter().map(arguments).sum::<usize>() < tokens::text_bytes(&self.parts) / 2;
        let mut calls = 0;
        let mut places = places.iter().peekable();
        for place in 0..self.parts.len() {
            if self.parts[place].kind != Kind::ToolCall {
                continue;
            }
            calls += 1;
            if places.next_if_eq(&&place).is_some() && self.empty_call(place, apart) {
                self.calls.insert(calls - 1);
            }
        }
    }

    /// Whether that changes anything.
    fn empty_call(&mut self, place: usize, count_apart: bool) -> bool {
        let meta = &self.parts[place].meta;
        let empty = no_arguments(text_at(meta, "type") == "custom");
        if meta.get("arguments").and_then(Value::as_str) == Some(empty) {
            return false;
        }
        let count_apart = count_apart && !self.outdated;
        let before = if count_apart { tokens::of_line(&self.parts, place) } else { None };
        self.parts[place].meta.insert("arguments".into(), empty.into());
        match before.and_then(|before| Some((before, tokens::of_line(&self.parts, place)?))) {
            Some((before, after)) => self.tokens = (self.tokens + after).saturating_sub(before),
            None => self.outdated = true,
        }
        true
    }

    pub(super) fn finish(mut self) -> Edited {
        let tokens = self.tokens();
        let results = self.results.into_iter().map(|(nth, text)| Change::Result { nth, text });
        let calls = self.calls.into_iter().map(|nth| Change::Arguments { nth });
        Edited { index: self.index, parts: self.parts, tokens, changes: results.chain(calls).collect() }
    }
}

/// The text at a key; empty if there is none, or if it is no text.
pub(super) fn text_at<'a>(meta: &'a Map<String, Value>, key: &str) -> &'a str {
    meta.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// All that the messages take.
pub(super) fn total(drafts: &mut [EditableMessage]) -> usize {
    drafts.iter_mut().map(EditableMessage::tokens).sum()
}

/// Drops the messages that are marked.
pub(super) fn drop_marked(drafts: &mut Vec<EditableMessage>, marked: &[bool]) {
    let mut marks = marked.iter();
    drafts.retain(|_| !marks.next().copied().unwrap_or_default());
}
