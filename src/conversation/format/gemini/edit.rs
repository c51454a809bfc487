//! Applies changes to a stored body.

use serde_json::Value;

use super::super::changes::ChangeCursor;
use super::super::value::{Object, indexed_objects_mut, is_lone_result, str_at};
use super::chunks::ChunkMatcher;
use super::is_partial_call;
use super::write::response_object;
use crate::json::ValueBudget;

pub(in super::super) fn apply_changes(body: &mut Object, changes: &mut ChangeCursor<'_>) {
    let mut chunks = ChunkMatcher::default();
    let mut is_cleared = false;
    for (_, part) in indexed_objects_mut(body.get_mut("parts")) {
        if let Some(Value::Object(call)) = part.get_mut("functionCall") {
            if chunks.matches_next(call) {
                clear_chunk(call, is_cleared);
            } else if !is_partial_call(call) {
                is_cleared = changes.clears_next_call();
                clear_call(call, is_cleared);
            }
        }
        if let Some(Value::Object(response)) = part.get_mut("functionResponse")
            && let Some(text) = changes.next_result_text()
        {
            change_response(response, text);
        }
    }
}

/// Removes the arguments of a call if `is_cleared` is set.
fn clear_call(call: &mut Object, is_cleared: bool) {
    if is_cleared {
        call.remove("partialArgs");
        call.insert("args".into(), Value::Object(Object::new()));
    }
}

/// Removes the arguments from a chunk of a call if `is_cleared` is set. The chunk remains one.
fn clear_chunk(chunk: &mut Object, is_cleared: bool) {
    if let Some(arguments) = chunk.get_mut("partialArgs").filter(|_| is_cleared) {
        *arguments = Value::Array(Vec::new());
    }
}

/// Replaces a function response. The response of a failed function remains one.
fn change_response(function: &mut Object, text: &str) {
    // In a response without a call id, the nested parts do not refer to the call, so they are not attachments.
    if !str_at(function, "id").is_empty() {
        function.remove("parts");
    }
    let old = function.get("response").and_then(Value::as_object);
    let is_error = old.is_some_and(|old| is_lone_result(old) && old.contains_key("error"));
    let response = response_object(text.to_owned(), is_error, &ValueBudget::default());
    function.insert("response".into(), Value::Object(response));
}
