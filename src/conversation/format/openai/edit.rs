//! Making changes in a stored message.

use serde_json::Value;

use super::super::changes::{Changes, no_arguments};
use super::super::value::{Object, objects, text_at};
use super::TOOL_CALLS;
use super::read::kind_of;

pub(in super::super) fn edit(body: &mut Object, changes: &mut Changes<'_>) {
    match text_at(body, "role") {
        "tool" | "function" => {
            if let Some(text) = changes.next_result() {
                body.insert("content".into(), text.into());
            }
        }
        "assistant" => edit_calls(body, changes),
        _ => {}
    }
}

fn edit_calls(body: &mut Object, changes: &mut Changes<'_>) {
    for (_, call) in objects(body.get_mut(TOOL_CALLS)) {
        let (key, input, custom) = match kind_of(call) {
            "function" => ("function", "arguments", false),
            "custom" => ("custom", "input", true),
            _ => continue,
        };
        if changes.next_call() {
            let mut called = match call.remove(key) {
                Some(Value::Object(called)) => called,
                _ => Object::new(),
            };
            called.insert(input.into(), no_arguments(custom).into());
            call.insert(key.into(), Value::Object(called));
        }
    }
    if let Some(Value::Object(called)) = body.get_mut("function_call")
        && !called.is_empty()
        && changes.next_call()
    {
        called.insert("arguments".into(), no_arguments(false).into());
    }
}
