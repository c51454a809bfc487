//! Applies changes to a stored body.

use serde_json::Value;

use super::super::changes::ChangeCursor;
use super::super::dialect;
use super::super::value::{Object, indexed_objects_mut, object, str_at, type_of};

pub(in super::super) fn apply_changes(body: &mut Object, changes: &mut ChangeCursor<'_>) {
    for (_, block) in indexed_objects_mut(body.get_mut("content")) {
        match str_at(block, "type") {
            "tool_use" => change_call(block, changes),
            "tool_result" => change_result(block, changes),
            _ => dialect::change_block(block, changes),
        }
    }
}

fn change_call(block: &mut Object, changes: &mut ChangeCursor<'_>) {
    if changes.clears_next_call() {
        block.insert("input".into(), Value::Object(Object::new()));
    }
}

/// Replaces the content of a tool result: a string with a string, any other content with a list.
///
/// Tool calls inside a tool result are invalid for Anthropic. They are changed like other calls, and never removed, so that the
/// index of a call does not change.
fn change_result(block: &mut Object, changes: &mut ChangeCursor<'_>) {
    let text = changes.next_result_text();
    let nested = indexed_objects_mut(block.get_mut("content"));
    for (_, inner) in nested.filter(|(_, inner)| str_at(inner, "type") == "tool_use") {
        change_call(inner, changes);
    }
    let Some(text) = text else { return };
    let content = match block.remove("content") {
        Some(Value::String(_)) => text.into(),
        content => {
            let mut blocks = vec![Value::Object(object([("type", "text".into()), ("text", text.into())]))];
            if let Some(Value::Array(inner)) = content {
                blocks.extend(inner.into_iter().filter(|inner| type_of(inner) == "tool_use"));
            }
            Value::Array(blocks)
        }
    };
    block.insert("content".into(), content);
}
