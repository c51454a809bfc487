//! Normalizes messages and converts them to parts.

use serde_json::Value;

use super::super::value::{
    Object, indexed_objects_mut, invalid, move_cache_control, object, opaque_part, part, remove_nulls, str_at,
    stringify, take_as_string, take_object, text_part,
};
use super::super::{Format, InvalidMessage};
use super::{BLOCK_FIELD_KEY, TOOL_CALLS};
use crate::conversation::parts::{Part, PartKind, Role};

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
    if openai_role == "tool" {
        normalize_tool_message(&mut body);
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

/// Adds a missing `tool_call_id` and `content`, and joins a content list of only texts into one string. Clients of Acontext
/// require both fields and the string.
fn normalize_tool_message(body: &mut Object) {
    /// Returns `None` for a text with further keys such as `cache_control`, which would be lost.
    fn text_of_block(block: &Value) -> Option<&str> {
        let block = block.as_object().filter(|block| block.len() == 2 && str_at(block, "type") == "text")?;
        block.get("text")?.as_str()
    }
    body.entry("tool_call_id").or_insert_with(|| "".into());
    let content = body.entry("content").or_insert_with(|| "".into());
    let texts = content.as_array().and_then(|blocks| blocks.iter().map(text_of_block).collect::<Option<String>>());
    if let Some(texts) = texts {
        *content = texts.into();
    }
}

/// Validates the content of a user, system or developer message, which is required.
fn validate_content(content: Option<&Value>) -> Result<(), InvalidMessage> {
    match content {
        Some(Value::String(_)) => Ok(()),
        Some(Value::Array(blocks)) if !blocks.is_empty() => {
            match blocks.iter().position(|block| !block.get("type").is_some_and(Value::is_string)) {
                Some(index) => Err(invalid(format!("content[{index}]"), "must be an object with a type")),
                None => Ok(()),
            }
        }
        _ => Err(invalid("content", "must be a string or a non-empty list")),
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
        "text" | "refusal" => remove_nulls(block, &["cache_control"]),
        kind @ ("image_url" | "input_audio" | "file" | "function" | "custom") => {
            let kind = kind.to_owned();
            remove_nulls(block, &[&kind, "cache_control"]);
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

pub(in super::super) fn to_parts(mut body: Object) -> Vec<Part> {
    match str_at(&body, "role") {
        "tool" => {
            let id = take_as_string(&mut body, "tool_call_id");
            tool_result_parts(body, "tool_call_id", id)
        }
        "function" => {
            let name = take_as_string(&mut body, "name");
            tool_result_parts(body, "function_name", name)
        }
        "assistant" => assistant_parts(body),
        _ => content_parts(body.remove("content")),
    }
}

fn content_parts(content: Option<Value>) -> Vec<Part> {
    match content {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(text)) => vec![text_part(text)],
        Some(Value::Array(blocks)) => blocks.into_iter().map(block_to_part).collect(),
        Some(other) => vec![opaque_part(Format::OpenAi, other)],
    }
}

fn block_to_part(value: Value) -> Part {
    let mut block = match value {
        Value::Object(block) => block,
        other => return opaque_part(Format::OpenAi, other),
    };
    let mut part = match str_at(&block, "type") {
        "text" => text_part(take_as_string(&mut block, "text")),
        "refusal" => refusal_part(take_as_string(&mut block, "refusal")),
        "image_url" => {
            let (url, detail) = match block.remove("image_url") {
                Some(Value::Object(mut image)) => {
                    (take_as_string(&mut image, "url"), take_as_string(&mut image, "detail"))
                }
                url => (stringify(url.unwrap_or_default()), String::new()),
            };
            part(PartKind::Image, String::new(), object([("url", url.into()), ("detail", detail.into())]))
        }
        "input_audio" => {
            let meta = take_strings(&mut block, "input_audio", &["data", "format"]);
            part(PartKind::Audio, String::new(), meta)
        }
        "file" => {
            let meta = take_strings(&mut block, "file", &["file_id", "file_data", "filename"]);
            part(PartKind::File, String::new(), meta)
        }
        _ => return opaque_part(Format::OpenAi, Value::Object(block)),
    };
    move_cache_control(&mut block, &mut part.meta);
    part
}

/// Removes the object at `inner_key` and returns its values at `keys` as strings. Missing keys are omitted.
fn take_strings(block: &mut Object, inner_key: &str, keys: &[&str]) -> Object {
    let mut inner = take_object(block, inner_key);
    keys.iter().filter_map(|key| Some(((*key).to_owned(), stringify(inner.remove(*key)?).into()))).collect()
}

fn refusal_part(text: String) -> Part {
    part(PartKind::Text, text, object([("is_refusal", true.into())]))
}

/// Converts a tool or function message. Its texts become the text of a tool result. Its other content blocks become parts that
/// follow the tool result.
///
/// All these parts refer to the call in their meta, with the key `tool_call_id` or `function_name` and the id or name.
fn tool_result_parts(mut body: Object, reference_key: &str, id_or_name: String) -> Vec<Part> {
    let mut text = String::new();
    let mut attachments = Vec::new();
    match body.remove("content") {
        Some(content @ Value::Array(_)) => {
            for mut part in content_parts(Some(content)) {
                if part.kind == PartKind::Text {
                    text.push_str(&part.text);
                } else {
                    part.meta.insert(reference_key.into(), id_or_name.as_str().into());
                    attachments.push(part);
                }
            }
        }
        content => text = stringify(content.unwrap_or_default()),
    }
    let mut parts = vec![part(PartKind::ToolResult, text, object([(reference_key, id_or_name.into())]))];
    parts.append(&mut attachments);
    parts
}

/// Converts an assistant message: reasoning, content, refusal, audio transcript, tool calls and the deprecated function call.
fn assistant_parts(mut body: Object) -> Vec<Part> {
    let mut parts = Vec::new();
    let reasoning = take_as_string(&mut body, "reasoning_content");
    if !reasoning.is_empty() {
        parts.push(part(PartKind::Thinking, reasoning, Object::new()));
    }
    let content = content_parts(body.remove("content"));
    parts.extend(content.into_iter().filter(|part| part.kind != PartKind::Text || !part.text.is_empty()));
    let refusal = take_as_string(&mut body, "refusal");
    if !refusal.is_empty() {
        parts.push(refusal_part(refusal));
    }
    // A spoken response has no content, only audio with its transcript.
    let transcript = take_as_string(&mut take_object(&mut body, "audio"), "transcript");
    if !transcript.is_empty() {
        parts.push(text_part(transcript));
    }
    match body.remove(TOOL_CALLS) {
        None | Some(Value::Null) => {}
        Some(Value::Array(calls)) => parts.extend(calls.into_iter().map(call_to_part)),
        Some(other) => parts.push(opaque_call(other)),
    }
    let mut function_call = take_object(&mut body, "function_call");
    if !function_call.is_empty() {
        parts.push(part(PartKind::ToolCall, String::new(), call_meta(&mut function_call, "arguments", "function")));
    }
    parts
}

fn call_to_part(value: Value) -> Part {
    let mut call = match value {
        Value::Object(call) => call,
        other => return opaque_call(other),
    };
    let mut meta = match block_type(&call) {
        "function" => call_meta(&mut take_object(&mut call, "function"), "arguments", "function"),
        "custom" => call_meta(&mut take_object(&mut call, "custom"), "input", "custom"),
        _ => return opaque_call(Value::Object(call)),
    };
    meta.insert("id".into(), take_as_string(&mut call, "id").into());
    part(PartKind::ToolCall, String::new(), meta)
}

fn call_meta(call: &mut Object, input_key: &str, kind: &str) -> Object {
    let name = take_as_string(call, "name").into();
    object([("name", name), ("arguments", take_as_string(call, input_key).into()), ("type", kind.into())])
}

fn opaque_call(call: Value) -> Part {
    let mut part = opaque_part(Format::OpenAi, call);
    part.meta.insert(BLOCK_FIELD_KEY.into(), TOOL_CALLS.into());
    part
}
