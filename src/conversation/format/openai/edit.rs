//! Applies changes to a stored body.

use serde_json::Value;

use super::super::changes::{ChangeCursor, empty_arguments};
use super::super::dialect;
use super::super::value::{Object, indexed_objects_mut, str_at};
use super::TOOL_CALLS;
use super::normalize::block_type;
use super::read::has_dialect_results;

pub(in super::super) fn apply_changes(body: &mut Object, changes: &mut ChangeCursor<'_>) {
    match str_at(body, "role") {
        "tool" if has_dialect_results(body) => change_content(body, changes),
        "tool" | "function" => {
            if let Some(text) = changes.next_result_text() {
                body.insert("content".into(), text.into());
            }
        }
        "assistant" => {
            change_content(body, changes);
            change_calls(body, changes);
        }
        _ => change_content(body, changes),
    }
}

/// Changes the calls and results in content blocks of a dialect.
fn change_content(body: &mut Object, changes: &mut ChangeCursor<'_>) {
    indexed_objects_mut(body.get_mut("content")).for_each(|(_, block)| dialect::change_block(block, changes));
}

fn change_calls(body: &mut Object, changes: &mut ChangeCursor<'_>) {
    for (_, call) in indexed_objects_mut(body.get_mut(TOOL_CALLS)) {
        let (key, input_key, is_custom) = match block_type(call) {
            "function" => ("function", "arguments", false),
            "custom" => ("custom", "input", true),
            _ => continue,
        };
        if changes.clears_next_call() {
            let mut inner = match call.remove(key) {
                Some(Value::Object(inner)) => inner,
                _ => Object::new(),
            };
            inner.insert(input_key.into(), empty_arguments(is_custom).into());
            call.insert(key.into(), Value::Object(inner));
        }
    }
    if let Some(Value::Object(call)) = body.get_mut("function_call")
        && !call.is_empty()
        && changes.clears_next_call()
    {
        call.insert("arguments".into(), empty_arguments(false).into());
    }
}
