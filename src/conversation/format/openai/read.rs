//! Converts messages to parts.

use serde_json::Value;

use super::super::value::{
    Object, move_cache_control, object, opaque_part, part, str_at, stringify, take_as_string, take_nonempty_string,
    take_object, text_part,
};
use super::super::{Format, dialect};
use super::normalize::block_type;
use super::reasoning::take_thoughts;
use super::{BLOCK_FIELD_KEY, THOUGHT_SIGNATURE_KEY, TOOL_CALLS};
use crate::conversation::parts::{Part, PartKind};

pub(in super::super) fn to_parts(mut body: Object) -> Vec<Part> {
    let mut parts = Vec::new();
    match str_at(&body, "role") {
        "tool" if has_dialect_results(&body) => push_content(body.remove("content"), true, &mut parts),
        "tool" => {
            let id = take_as_string(&mut body, "tool_call_id");
            push_tool_result(body, "tool_call_id", &id, &mut parts);
        }
        "function" => {
            let name = take_as_string(&mut body, "name");
            push_tool_result(body, "function_name", &name, &mut parts);
        }
        "assistant" => push_assistant_parts(body, &mut parts),
        _ => push_content(body.remove("content"), true, &mut parts),
    }
    parts
}

/// Returns `true` for a tool message of the Vercel AI SDK, which has no `tool_call_id` and consists of blocks with tool results.
pub(super) fn has_dialect_results(body: &Object) -> bool {
    let blocks = body.get("content").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let is_result = |block: &Value| block.as_object().is_some_and(dialect::is_result);
    str_at(body, "tool_call_id").is_empty() && blocks.iter().any(is_result)
}

/// Converts the content of a message. Tool calls and results in blocks of a dialect are only converted if `with_tools` is set.
fn push_content(content: Option<Value>, with_tools: bool, parts: &mut Vec<Part>) {
    match content {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) => parts.push(text_part(text)),
        Some(Value::Array(blocks)) => blocks.into_iter().for_each(|block| push_block(block, with_tools, parts)),
        Some(other) => parts.push(opaque_part(Format::OpenAi, other)),
    }
}

fn push_block(value: Value, with_tools: bool, parts: &mut Vec<Part>) {
    let mut block = match value {
        Value::Object(block) => block,
        Value::String(text) => return parts.push(text_part(text)),
        other => return parts.push(opaque_part(Format::OpenAi, other)),
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
        // A file without the object `file` belongs to another dialect.
        "file" if block.get("file").is_some_and(Value::is_object) => {
            let meta = take_strings(&mut block, "file", &["file_id", "file_data", "filename"]);
            part(PartKind::File, String::new(), meta)
        }
        _ => {
            let read = if with_tools { dialect::read_block } else { dialect::read_content };
            if !read(&mut block, parts) {
                parts.push(opaque_part(Format::OpenAi, Value::Object(block)));
            }
            return;
        }
    };
    move_cache_control(&mut block, &mut part.meta);
    parts.push(part);
}

/// Removes the object at `inner_key` and returns its values at `keys` as strings. Missing keys are omitted.
fn take_strings(block: &mut Object, inner_key: &str, keys: &[&str]) -> Object {
    let mut inner = take_object(block, inner_key);
    keys.iter().filter_map(|key| Some(((*key).to_owned(), stringify(inner.remove(*key)?).into()))).collect()
}

fn refusal_part(text: String) -> Part {
    part(PartKind::Text, text, object([("is_refusal", true.into())]))
}

/// Converts a tool or function message. Its first text becomes the text of a tool result. Its other content blocks become parts
/// that follow the tool result, in their order.
///
/// All these parts refer to the call in their meta, with the key `tool_call_id` or `function_name` and the id or name.
fn push_tool_result(mut body: Object, reference_key: &str, id_or_name: &str, parts: &mut Vec<Part>) {
    let mut result = part(PartKind::ToolResult, String::new(), object([(reference_key, id_or_name.into())]));
    let mut attachments = Vec::new();
    match body.remove("content") {
        Some(content @ Value::Array(_)) => push_content(Some(content), false, &mut attachments),
        content => result.text = stringify(content.unwrap_or_default()),
    }
    if let Some(first) = attachments.iter().position(|part| part.kind == PartKind::Text) {
        result.text = attachments.remove(first).text;
    }
    for attachment in &mut attachments {
        attachment.meta.insert(reference_key.into(), id_or_name.into());
    }
    parts.push(result);
    parts.append(&mut attachments);
}

/// Converts an assistant message: reasoning, content, refusal, audio transcript, tool calls and the deprecated function call.
fn push_assistant_parts(mut body: Object, parts: &mut Vec<Part>) {
    let thoughts = take_thoughts(&mut body);
    parts.extend(thoughts.parts);
    let content_start = parts.len();
    push_content(body.remove("content"), true, parts);
    let refusal = take_as_string(&mut body, "refusal");
    if !refusal.is_empty() {
        parts.push(refusal_part(refusal));
    }
    // A spoken response has no content, only audio with its transcript.
    let transcript = take_as_string(&mut take_object(&mut body, "audio"), "transcript");
    if !transcript.is_empty() {
        parts.push(text_part(transcript));
    }
    let mut index = 0;
    parts.retain(|part| {
        index += 1;
        index <= content_start || part.kind != PartKind::Text || !part.text.is_empty()
    });
    if let Some(signature) = take_google_signature(&mut body) {
        sign_last_text(signature, content_start, parts);
    }
    match body.remove(TOOL_CALLS) {
        None | Some(Value::Null) => {}
        Some(Value::Array(calls)) => {
            parts.extend(calls.into_iter().map(|call| call_to_part(call, &thoughts.call_signatures)));
        }
        Some(other) => parts.push(opaque_call(other)),
    }
    let mut function_call = take_object(&mut body, "function_call");
    if !function_call.is_empty() {
        parts.push(part(PartKind::ToolCall, String::new(), call_meta(&mut function_call, "arguments", "function")));
    }
}

/// Removes and returns the signature that Google's API adds to a message or tool call.
fn take_google_signature(object: &mut Object) -> Option<String> {
    let mut google = take_object(&mut take_object(object, "extra_content"), "google");
    take_nonempty_string(&mut google, THOUGHT_SIGNATURE_KEY)
}

/// Adds Google's signature of a message to its last text, or adds an empty text if there is none.
fn sign_last_text(signature: String, content_start: usize, parts: &mut Vec<Part>) {
    let content = &mut parts[content_start..];
    if let Some(text) = content.iter_mut().rev().find(|part| part.kind == PartKind::Text) {
        text.meta.insert(THOUGHT_SIGNATURE_KEY.into(), signature.into());
    } else {
        let meta = object([(THOUGHT_SIGNATURE_KEY, signature.into())]);
        parts.push(part(PartKind::Text, String::new(), meta));
    }
}

/// Converts a tool call. Its signature is that of Google's API, or else the one in `signatures`, by call id.
fn call_to_part(value: Value, signatures: &Object) -> Part {
    let mut call = match value {
        Value::Object(call) => call,
        other => return opaque_call(other),
    };
    let mut meta = match block_type(&call) {
        "function" => call_meta(&mut take_object(&mut call, "function"), "arguments", "function"),
        "custom" => call_meta(&mut take_object(&mut call, "custom"), "input", "custom"),
        _ => return opaque_call(Value::Object(call)),
    };
    let id = take_as_string(&mut call, "id");
    let signature = take_google_signature(&mut call).map(Value::from).or_else(|| signatures.get(&id).cloned());
    meta.extend(signature.map(|signature| (THOUGHT_SIGNATURE_KEY.to_owned(), signature)));
    meta.insert("id".into(), id.into());
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
