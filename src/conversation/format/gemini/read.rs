//! Converts messages to parts.

use serde_json::Value;

use super::super::value::{
    Object, indexed_objects_mut, object, opaque_part, part, str_at, take_as_string, take_nonempty_string,
};
use super::super::{Format, media};
use super::{THOUGHT_SIGNATURE_KEY, is_partial_call};
use crate::conversation::parts::{Part, PartKind};

pub(in super::super) fn to_parts(mut body: Object) -> Vec<Part> {
    let mut parts = Vec::new();
    match body.remove("parts") {
        None | Some(Value::Null) => {}
        Some(Value::Array(list)) => list.into_iter().for_each(|part| push_parts(part, &mut parts)),
        Some(other) => parts.push(opaque_part(Format::Gemini, other)),
    }
    parts
}

/// Converts a part. A Gemini part should have only one value; if it has several, each value becomes a part. A signature belongs
/// to the first of them.
fn push_parts(value: Value, parts: &mut Vec<Part>) {
    let mut fields = match value {
        Value::Object(fields) => fields,
        other => return parts.push(opaque_part(Format::Gemini, other)),
    };
    if !has_known_content(&fields) {
        return parts.push(opaque_part(Format::Gemini, Value::Object(fields)));
    }
    let first = parts.len();
    let is_thought = fields.get("thought") == Some(&Value::Bool(true));
    let has_only_text = fields.keys().all(|key| matches!(key.as_str(), "text" | "thought" | "thoughtSignature"));
    let text = take_as_string(&mut fields, "text");
    if !text.is_empty() || has_only_text {
        parts.push(part(if is_thought { PartKind::Thinking } else { PartKind::Text }, text, Object::new()));
    }
    parts.extend(take_media(&mut fields));
    if let Some(Value::Object(call)) = fields.remove("functionCall") {
        push_function_call(call, parts);
    }
    if let Some(Value::Object(response)) = fields.remove("functionResponse") {
        push_function_response(response, parts);
    }
    if let Some(signature) = take_nonempty_string(&mut fields, "thoughtSignature")
        && let Some(signed) = parts.get_mut(first)
    {
        let key = if signed.kind == PartKind::Thinking { "signature" } else { THOUGHT_SIGNATURE_KEY };
        signed.meta.insert(key.into(), signature.into());
    }
}

/// Returns `true` if a part has content that the common model can represent. An empty text counts if nothing but a signature is
/// next to it, because streams end with such parts. The image of a thought does not count, because it would become an ordinary one.
fn has_known_content(fields: &Object) -> bool {
    let is_thought = fields.get("thought") == Some(&Value::Bool(true));
    let object = |key: &str| fields.get(key).and_then(Value::as_object);
    let has_media = object("inlineData").or(object("fileData")).is_some();
    let has_call = object("functionCall").is_some_and(|call| !is_partial_call(call));
    if (has_media && !is_thought) || has_call || object("functionResponse").is_some() {
        return true;
    }
    let is_signed = !str_at(fields, "thoughtSignature").is_empty();
    match fields.get("text") {
        Some(Value::String(text)) if !text.is_empty() => true,
        None | Some(Value::String(_)) if !fields.is_empty() => fields.keys().all(|key| match key.as_str() {
            "text" | "thoughtSignature" => true,
            "thought" => is_signed,
            _ => false,
        }),
        _ => false,
    }
}

fn push_function_call(mut call: Object, parts: &mut Vec<Part>) {
    if is_partial_call(&call) {
        let block = object([("functionCall", Value::Object(call))]);
        return parts.push(opaque_part(Format::Gemini, Value::Object(block)));
    }
    let args = call.remove("args").unwrap_or_default().to_string();
    let mut meta = object([("arguments", args.into()), ("type", "function".into())]);
    meta.extend(["id", "name"].map(|key| (key.to_owned(), take_as_string(&mut call, key).into())));
    parts.push(part(PartKind::ToolCall, String::new(), meta));
}

/// Converts a function response to a tool result, followed by its media as parts with the same `tool_call_id`.
fn push_function_response(mut response: Object, parts: &mut Vec<Part>) {
    let (text, is_error) = response_text(response.remove("response").unwrap_or_default());
    let id = take_nonempty_string(&mut response, "id").map(|id| ("tool_call_id".to_owned(), Value::from(id)));
    let mut meta = object([("name", take_as_string(&mut response, "name").into())]);
    meta.extend(id.clone());
    if is_error {
        meta.insert("is_error".into(), true.into());
    }
    if response.get("willContinue") == Some(&Value::Bool(true)) {
        meta.insert("will_continue".into(), true.into());
    }
    parts.push(part(PartKind::ToolResult, text, meta));
    for (_, inner) in indexed_objects_mut(response.get_mut("parts")) {
        for mut media in take_media(inner) {
            media.meta.extend(id.clone());
            parts.push(media);
        }
    }
}

/// Returns the text of a function's response, and `true` if the function failed: the value of a lone `output` or `error`, or else
/// the whole response as JSON.
fn response_text(response: Value) -> (String, bool) {
    let to_text = |value: Value| if let Value::String(text) = value { text } else { value.to_string() };
    match response {
        Value::Object(mut fields) if is_lone_result(&fields) => {
            let error = fields.remove("error");
            let is_error = error.is_some();
            (to_text(error.or_else(|| fields.remove("output")).unwrap_or_default()), is_error)
        }
        other => (to_text(other), false),
    }
}

/// Returns `true` for a response whose only key is `output` or `error`, which Gemini defines as the output and the error of the
/// function.
pub(super) fn is_lone_result(response: &Object) -> bool {
    response.len() == 1 && ["output", "error"].iter().any(|key| response.contains_key(*key))
}

/// Removes `inlineData` and `fileData` from a part and converts them.
fn take_media(fields: &mut Object) -> Vec<Part> {
    let mut media = Vec::new();
    if let Some(Value::Object(mut inline)) = fields.remove("inlineData") {
        let mime = take_as_string(&mut inline, "mimeType");
        let kind = if mime.is_empty() { PartKind::Image } else { media_kind(&mime) };
        let data = take_as_string(&mut inline, "data");
        media.push(part(kind, String::new(), media::base64_source(mime, data)));
    }
    if let Some(Value::Object(mut file)) = fields.remove("fileData") {
        let mime = take_nonempty_string(&mut file, "mimeType");
        let kind = media_kind(mime.as_deref().unwrap_or_default());
        let mut meta = object([("type", "url".into()), ("url", take_as_string(&mut file, "fileUri").into())]);
        meta.extend(mime.map(|mime| ("media_type".to_owned(), mime.into())));
        media.push(part(kind, String::new(), meta));
    }
    media
}

fn media_kind(mime: &str) -> PartKind {
    media::kind_by_mime(&media::normalize_mime(mime)).unwrap_or(PartKind::File)
}
