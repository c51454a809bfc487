//! A message of a page, to which edit strategies are applied. It records the changes to the stored body.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::{EditedMessage, Message};
use crate::conversation::format::BodyChange;
use crate::conversation::format::changes::{AttachmentMatcher, empty_arguments};
use crate::conversation::parts::{Part, PartKind, Role};
use crate::conversation::tokens;

/// A message whose parts are edited. Edits never remove tool results or tool calls. The index of a result among the results of
/// the message, and the index of a call among its calls, therefore stay the same.
pub(super) struct EditableMessage {
    index: usize,
    role: Role,
    is_system: bool,
    parts: Vec<Part>,
    /// The number of tokens of the parts. Out of date if `tokens_stale` is set.
    tokens: usize,
    tokens_stale: bool,
    /// The new texts of results, by the index of the result among the results.
    result_texts: BTreeMap<usize, String>,
    /// The indices, among the calls, of the calls whose arguments were cleared.
    cleared_calls: BTreeSet<usize>,
}

impl EditableMessage {
    pub(super) fn new(index: usize, message: Message) -> Self {
        let Message { role, is_system, parts, tokens } = message;
        Self {
            index,
            role,
            is_system,
            parts,
            tokens,
            tokens_stale: false,
            result_texts: BTreeMap::new(),
            cleared_calls: BTreeSet::new(),
        }
    }

    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    pub(super) fn is_system(&self) -> bool {
        self.is_system
    }

    /// Returns `true` if a conversation can start with the message: a user has sent it, and it has no tool results.
    pub(super) fn starts_conversation(&self) -> bool {
        let has_results = self.parts.iter().any(|part| part.kind == PartKind::ToolResult);
        self.role == Role::User && !self.is_system && !self.parts.is_empty() && !has_results
    }

    /// Returns the number of tokens of the message. Counts them only if the parts have changed.
    pub(super) fn tokens(&mut self) -> usize {
        if std::mem::take(&mut self.tokens_stale) {
            self.tokens = tokens::count_parts(&self.parts);
        }
        self.tokens
    }

    /// Replaces the texts of tool results, and removes the attachments of these results. `indices` are indices of parts, in
    /// ascending order.
    pub(super) fn replace_results(&mut self, indices: &[usize], text: &str) {
        let mut indices = indices.iter().peekable();
        let (mut parts_seen, mut results_seen) = (0, 0);
        let mut attachments = AttachmentMatcher::default();
        self.parts.retain_mut(|part| {
            parts_seen += 1;
            if part.kind != PartKind::ToolResult {
                let is_removed = attachments.matches_next(part.kind, &part.meta);
                if is_removed {
                    // The stored result must be changed even if it already has this text.
                    self.result_texts.insert(results_seen - 1, text.to_owned());
                    self.tokens_stale = true;
                }
                return !is_removed;
            }
            results_seen += 1;
            attachments = AttachmentMatcher::default();
            if indices.next_if_eq(&&(parts_seen - 1)).is_some() {
                attachments = AttachmentMatcher::for_result(&part.meta);
                if part.text != text {
                    text.clone_into(&mut part.text);
                    self.result_texts.insert(results_seen - 1, text.to_owned());
                    self.tokens_stale = true;
                }
            }
            true
        });
    }

    /// Clears the arguments of tool calls. `indices` are indices of parts, in ascending order.
    pub(super) fn clear_arguments(&mut self, indices: &[usize]) {
        let arguments_len =
            |index: &usize| self.parts[*index].meta.get("arguments").and_then(Value::as_str).map_or(0, str::len);
        // If the old arguments are shorter than the rest of the message, their tokens are subtracted. Otherwise the rest
        // is counted again.
        let adjust_tokens = indices.iter().map(arguments_len).sum::<usize>() < tokens::text_bytes(&self.parts) / 2;
        let mut calls_seen = 0;
        let mut indices = indices.iter().peekable();
        for index in 0..self.parts.len() {
            if self.parts[index].kind != PartKind::ToolCall {
                continue;
            }
            calls_seen += 1;
            if indices.next_if_eq(&&index).is_some() && self.clear_call(index, adjust_tokens) {
                self.cleared_calls.insert(calls_seen - 1);
            }
        }
    }

    /// Clears the arguments of a call. Returns `true` if this changes the call. If `adjust_tokens` is set and the call can be
    /// counted separately, adjusts the number of tokens; otherwise the whole message is counted again later.
    fn clear_call(&mut self, index: usize, adjust_tokens: bool) -> bool {
        let meta = &self.parts[index].meta;
        let empty = empty_arguments(str_at(meta, "type") == "custom");
        if meta.get("arguments").and_then(Value::as_str) == Some(empty) {
            return false;
        }
        let adjust_tokens = adjust_tokens && !self.tokens_stale;
        let before = if adjust_tokens { tokens::count_line(&self.parts, index) } else { None };
        self.parts[index].meta.insert("arguments".into(), empty.into());
        match before.and_then(|before| Some((before, tokens::count_line(&self.parts, index)?))) {
            Some((before, after)) => self.tokens = (self.tokens + after).saturating_sub(before),
            None => self.tokens_stale = true,
        }
        true
    }

    /// Returns the edited parts, and the corresponding changes to the stored body.
    pub(super) fn into_edited(mut self) -> EditedMessage {
        let tokens = self.tokens();
        let results =
            self.result_texts.into_iter().map(|(result_index, text)| BodyChange::ReplaceResult { result_index, text });
        let calls = self.cleared_calls.into_iter().map(|call_index| BodyChange::ClearArguments { call_index });
        EditedMessage { index: self.index, parts: self.parts, tokens, changes: results.chain(calls).collect() }
    }
}

/// Returns the string at a key; empty if the key is missing or its value is not a string.
pub(super) fn str_at<'a>(meta: &'a Map<String, Value>, key: &str) -> &'a str {
    meta.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Returns the total number of tokens of the messages.
pub(super) fn total_tokens(messages: &mut [EditableMessage]) -> usize {
    messages.iter_mut().map(EditableMessage::tokens).sum()
}

/// Removes messages. `removed` has a flag for each message, in the same order.
pub(super) fn remove_messages(messages: &mut Vec<EditableMessage>, removed: &[bool]) {
    let mut removed = removed.iter();
    messages.retain(|_| !removed.next().copied().unwrap_or_default());
}
