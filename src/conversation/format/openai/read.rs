//! Checking a message, and taking it apart.

use serde_json::Value;

use super::super::value::{
    Object, drop_nulls, keep_cache_control, object, objects, part, refused, take_object, take_text, text_at, text_of,
    text_part, unknown,
};
use super::super::{Format, InvalidMessage};
use super::{PLACE, TOOL_CALLS};
use crate::conversation::parts::{Kind, Part, Role};

/// Checks a message; gives its role, its meta and its body.
pub(in super::super) fn read(mut body: Object) -> Result<(Role, Object, Object), InvalidMessage> {
    let said = text_at(&body, "role").to_owned();
    let role = match said.as_str() {
        "assistant" => {
            check_calls(&body)?;
            Role::Assistant
        }
        "user" | "system" | "developer" => {
            check_content(body.get("content"))?;
            Role::User
        }
        "tool" | "function" => Role::User,
        _ => return Err(refused("role", "must be one of user, assistant, system, developer, tool or function")),
    };
    let meta = meta(&body)?;
    objects(body.get_mut("content")).for_each(|(_, item)| clean(item));
    objects(body.get_mut(TOOL_CALLS)).for_each(|(_, call)| clean(call));
    for key in ["function_call", "audio"] {
        if let Some(Value::Object(inner)) = body.get_mut(key) {
            drop_nulls(inner, &[]);
            write_arguments_out(inner);
        }
    }
    if said == "tool" {
        complete_result(&mut body);
    }
    Ok((role, meta, body))
}

/// Who speaks, beyond the role.
fn meta(body: &Object) -> Result<Object, InvalidMessage> {
    let mut meta = Object::new();
    let said = text_at(body, "role");
    if matches!(said, "system" | "developer") {
        meta.insert("original_role".into(), said.into());
    }
    if !matches!(said, "tool" | "function")
        && let Some(name) = body.get("name")
    {
        let name = text_of(name.clone());
        if name.contains('\0') {
            return Err(refused("name", "must not contain the character NUL"));
        }
        meta.insert("name".into(), name.into());
    }
    Ok(meta)
}

/// Clients of Acontext find an id in each result, and one text where a list had nothing but texts.
fn complete_result(body: &mut Object) {
    fn text(item: &Value) -> Option<&str> {
        let item = item.as_object().filter(|item| item.len() == 2 && text_at(item, "type") == "text")?;
        item.get("text")?.as_str()
    }
    body.entry("tool_call_id").or_insert_with(|| "".into());
    let content = body.entry("content").or_insert_with(|| "".into());
    let texts = content.as_array().and_then(|items| items.iter().map(text).collect::<Option<String>>());
    if let Some(texts) = texts {
        *content = texts.into();
    }
}

/// Who asks must say something.
fn check_content(content: Option<&Value>) -> Result<(), InvalidMessage> {
    match content {
        Some(Value::String(_)) => Ok(()),
        Some(Value::Array(items)) if !items.is_empty() => {
            match items.iter().position(|item| !item.get("type").is_some_and(Value::is_string)) {
                Some(at) => Err(refused(format!("content[{at}]"), "must be an object with a type")),
                None => Ok(()),
            }
        }
        _ => Err(refused("content", "must be a string, or a list that is not empty")),
    }
}

fn check_calls(body: &Object) -> Result<(), InvalidMessage> {
    let calls = match body.get(TOOL_CALLS) {
        None => return Ok(()),
        Some(Value::Array(calls)) => calls,
        Some(_) => return Err(refused(TOOL_CALLS, "must be a list")),
    };
    for (at, call) in calls.iter().enumerate() {
        let (key, why) = match call.get("type").and_then(Value::as_str) {
            Some("function") => ("function", "must be an object with name and arguments"),
            Some("custom") => ("custom", "must be an object with name and input"),
            _ => continue,
        };
        if !call.get(key).is_some_and(Value::is_object) {
            return Err(refused(format!("{TOOL_CALLS}[{at}].{key}"), why));
        }
    }
    Ok(())
}

/// Drops what is `null` from an item of the content or from a tool call, if its type is known.
fn clean(block: &mut Object) {
    match kind_of(block) {
        "text" | "refusal" => drop_nulls(block, &["cache_control"]),
        kind @ ("image_url" | "input_audio" | "file" | "function" | "custom") => {
            let kind = kind.to_owned();
            drop_nulls(block, &[&kind, "cache_control"]);
            if let Some(Value::Object(called)) = block.get_mut("function") {
                write_arguments_out(called);
            }
        }
        _ => {}
    }
}

/// Arguments are a JSON text here. Given as a value they become one, which is always the same for the same value.
fn write_arguments_out(function: &mut Object) {
    if let Some(arguments @ (Value::Object(_) | Value::Array(_))) = function.get_mut("arguments") {
        *arguments = arguments.to_string().into();
    }
}

/// The type of a block. A tool call without one is the call of a function if it has one.
pub(super) fn kind_of(block: &Object) -> &str {
    match block.get("type") {
        None if block.get("function").is_some_and(Value::is_object) => "function",
        _ => text_at(block, "type"),
    }
}

pub(in super::super) fn parts(mut body: Object) -> Vec<Part> {
    match text_at(&body, "role") {
        "tool" => {
            let id = take_text(&mut body, "tool_call_id");
            result(body, "tool_call_id", id)
        }
        "function" => {
            let name = take_text(&mut body, "name");
            result(body, "function_name", name)
        }
        "assistant" => assistant(body),
        _ => content(body.remove("content")),
    }
}

fn content(content: Option<Value>) -> Vec<Part> {
    match content {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(text)) => vec![text_part(text)],
        Some(Value::Array(items)) => items.into_iter().map(item).collect(),
        Some(other) => vec![unknown(Format::OpenAi, other)],
    }
}

fn item(value: Value) -> Part {
    let mut item = match value {
        Value::Object(item) => item,
        other => return unknown(Format::OpenAi, other),
    };
    let mut part = match text_at(&item, "type") {
        "text" => text_part(take_text(&mut item, "text")),
        "refusal" => refusal(take_text(&mut item, "refusal")),
        "image_url" => {
            let (url, detail) = match item.remove("image_url") {
                Some(Value::Object(mut image)) => (take_text(&mut image, "url"), take_text(&mut image, "detail")),
                url => (text_of(url.unwrap_or_default()), String::new()),
            };
            part(Kind::Image, String::new(), object([("url", url.into()), ("detail", detail.into())]))
        }
        "input_audio" => part(Kind::Audio, String::new(), some_of(&mut item, "input_audio", &["data", "format"])),
        "file" => part(Kind::File, String::new(), some_of(&mut item, "file", &["file_id", "file_data", "filename"])),
        _ => return unknown(Format::OpenAi, Value::Object(item)),
    };
    keep_cache_control(&mut item, &mut part.meta);
    part
}

/// Those texts of an inner object that are there.
fn some_of(item: &mut Object, inner: &str, keys: &[&str]) -> Object {
    let mut inner = take_object(item, inner);
    keys.iter().filter_map(|key| Some(((*key).to_owned(), text_of(inner.remove(*key)?).into()))).collect()
}

fn refusal(text: String) -> Part {
    part(Kind::Text, text, object([("is_refusal", true.into())]))
}

/// The texts are the result; what else there is follows it as parts that name the call.
fn result(mut body: Object, key: &str, of: String) -> Vec<Part> {
    let mut text = String::new();
    let mut others = Vec::new();
    match body.remove("content") {
        Some(content @ Value::Array(_)) => {
            for mut part in self::content(Some(content)) {
                if part.kind == Kind::Text {
                    text.push_str(&part.text);
                } else {
                    part.meta.insert(key.into(), of.as_str().into());
                    others.push(part);
                }
            }
        }
        content => text = text_of(content.unwrap_or_default()),
    }
    let mut parts = vec![part(Kind::ToolResult, text, object([(key, of.into())]))];
    parts.append(&mut others);
    parts
}

/// Thoughts, content, tool calls, and the one call that old models make.
fn assistant(mut body: Object) -> Vec<Part> {
    let mut parts = Vec::new();
    let thoughts = take_text(&mut body, "reasoning_content");
    if !thoughts.is_empty() {
        parts.push(part(Kind::Thinking, thoughts, Object::new()));
    }
    let said = content(body.remove("content"));
    parts.extend(said.into_iter().filter(|part| part.kind != Kind::Text || !part.text.is_empty()));
    let refused = take_text(&mut body, "refusal");
    if !refused.is_empty() {
        parts.push(refusal(refused));
    }
    // Who answers aloud says nothing else; the transcript is what was said.
    let spoken = take_text(&mut take_object(&mut body, "audio"), "transcript");
    if !spoken.is_empty() {
        parts.push(text_part(spoken));
    }
    match body.remove(TOOL_CALLS) {
        None | Some(Value::Null) => {}
        Some(Value::Array(calls)) => parts.extend(calls.into_iter().map(call)),
        Some(other) => parts.push(unknown_call(other)),
    }
    let mut legacy = take_object(&mut body, "function_call");
    if !legacy.is_empty() {
        parts.push(part(Kind::ToolCall, String::new(), call_meta(&mut legacy, "arguments", "function")));
    }
    parts
}

fn call(value: Value) -> Part {
    let mut call = match value {
        Value::Object(call) => call,
        other => return unknown_call(other),
    };
    let mut meta = match kind_of(&call) {
        "function" => call_meta(&mut take_object(&mut call, "function"), "arguments", "function"),
        "custom" => call_meta(&mut take_object(&mut call, "custom"), "input", "custom"),
        _ => return unknown_call(Value::Object(call)),
    };
    meta.insert("id".into(), take_text(&mut call, "id").into());
    part(Kind::ToolCall, String::new(), meta)
}

fn call_meta(of: &mut Object, input: &str, kind: &str) -> Object {
    let name = take_text(of, "name").into();
    object([("name", name), ("arguments", take_text(of, input).into()), ("type", kind.into())])
}

fn unknown_call(call: Value) -> Part {
    let mut part = unknown(Format::OpenAi, call);
    part.meta.insert(PLACE.into(), TOOL_CALLS.into());
    part
}
