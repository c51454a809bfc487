//! Normalizes messages.

use serde_json::Value;

use super::super::InvalidMessage;
use super::super::value::{Object, indexed_objects_mut, invalid, remove_nulls, str_at, stringify};
use super::TOOL_CALLS;
use crate::conversation::parts::Role;

/// The keys of the objects in a block that control the prompt cache.
const CACHE_KEYS: [&str; 2] = ["cache_control", "prompt_cache_breakpoint"];

/// Normalizes a message and returns its role, meta and body.
pub(in super::super) fn normalize(mut body: Object) -> Result<(Role, Object, Object), InvalidMessage> {
    let openai_role = str_at(&body, "role").to_owned();
    let role = match openai_role.as_str() {
        "assistant" => {
            validate_calls(&body)?;
            Role::Assistant
        }
        "user" | "system" | "developer" => {
            validate_content(body.get("content"))?;
            Role::User
        }
        "tool" | "function" => Role::User,
        _ => return Err(invalid("role", "must be one of user, assistant, system, developer, tool or function")),
    };
    let meta = extract_meta(&body)?;
    indexed_objects_mut(body.get_mut("content")).for_each(|(_, block)| normalize_block(block));
    indexed_objects_mut(body.get_mut(TOOL_CALLS)).for_each(|(_, call)| normalize_block(call));
    for key in ["function_call", "audio"] {
        if let Some(Value::Object(inner)) = body.get_mut(key) {
            remove_nulls(inner, &[]);
            // Does nothing for `audio`, which has no arguments.
            stringify_arguments(inner);
        }
    }
    Ok((role, meta, body))
}

/// Returns the meta of a message: the original role if it is `system` or `developer`, and the name of the participant.
fn extract_meta(body: &Object) -> Result<Object, InvalidMessage> {
    let mut meta = Object::new();
    let role = str_at(body, "role");
    if matches!(role, "system" | "developer") {
        meta.insert("original_role".into(), role.into());
    }
    if !matches!(role, "tool" | "function")
        && let Some(name) = body.get("name")
    {
        let name = stringify(name.clone());
        if name.contains('\0') {
            return Err(invalid("name", "must not contain the character NUL"));
        }
        meta.insert("name".into(), name.into());
    }
    Ok(meta)
}

/// Validates the content of a user, system or developer message, which is required.
fn validate_content(content: Option<&Value>) -> Result<(), InvalidMessage> {
    match content {
        Some(Value::String(_)) => Ok(()),
        Some(Value::Array(blocks)) => {
            let is_valid = |block: &Value| block.is_string() || block.get("type").is_some_and(Value::is_string);
            match blocks.iter().position(|block| !is_valid(block)) {
                Some(index) => Err(invalid(format!("content[{index}]"), "must be a string or an object with a type")),
                None => Ok(()),
            }
        }
        _ => Err(invalid("content", "must be a string or a list")),
    }
}

fn validate_calls(body: &Object) -> Result<(), InvalidMessage> {
    let calls = match body.get(TOOL_CALLS) {
        None => return Ok(()),
        Some(Value::Array(calls)) => calls,
        Some(_) => return Err(invalid(TOOL_CALLS, "must be a list")),
    };
    for (index, call) in calls.iter().enumerate() {
        let (key, reason) = match call.get("type").and_then(Value::as_str) {
            Some("function") => ("function", "must be an object with name and arguments"),
            Some("custom") => ("custom", "must be an object with name and input"),
            _ => continue,
        };
        if !call.get(key).is_some_and(Value::is_object) {
            return Err(invalid(format!("{TOOL_CALLS}[{index}].{key}"), reason));
        }
    }
    Ok(())
}

/// Removes `null` keys from a content block or tool call of a known type, and converts the arguments of a call to a string.
fn normalize_block(block: &mut Object) {
    match block_type(block) {
        "text" | "refusal" => remove_nulls(block, &CACHE_KEYS),
        kind @ ("image_url" | "input_audio" | "file" | "function" | "custom") => {
            let kind = kind.to_owned();
            remove_nulls(block, &[&kind]);
            remove_nulls(block, &CACHE_KEYS);
            if let Some(Value::Object(function)) = block.get_mut("function") {
                stringify_arguments(function);
            }
        }
        _ => {}
    }
}

/// Converts arguments that are an object or array to a JSON string. Equal arguments result in equal strings.
fn stringify_arguments(function: &mut Object) {
    if let Some(arguments @ (Value::Object(_) | Value::Array(_))) = function.get_mut("arguments") {
        *arguments = arguments.to_string().into();
    }
}

/// Returns the type of a content block or tool call: `function` for a tool call that has a `function` but no type.
pub(super) fn block_type(block: &Object) -> &str {
    match block.get("type") {
        None if block.get("function").is_some_and(Value::is_object) => "function",
        _ => str_at(block, "type"),
    }
}
