//! Converts messages to parts.

use serde_json::Value;

use super::super::value::{
    Object, indexed_objects_mut, object, opaque_part, part, response_text, str_at, take_as_string, take_nonempty_string,
};
use super::super::{Format, media};
use super::chunks::{join_chunks, take_call_arguments};
use super::{THOUGHT_SIGNATURE_KEY, is_partial_call};
use crate::conversation::parts::{Part, PartKind};

/// The keys of content that the common model cannot represent.
const OTHER_CONTENT_KEYS: [&str; 5] =
    ["audioTranscription", "codeExecutionResult", "executableCode", "toolCall", "toolResponse"];

pub(in super::super) fn to_parts(mut body: Object) -> Vec<Part> {
    let mut parts = Vec::new();
    match body.remove("parts") {
        None | Some(Value::Null) => {}
        Some(Value::Array(list)) => join_chunks(list).into_iter().for_each(|part| push_parts(part, &mut parts)),
        Some(other) => parts.push(opaque_part(Format::Gemini, other)),
    }
    parts
}

/// Converts a part. A Gemini part should have only one value; if it has several, each value becomes a part. Those that the common
/// model cannot represent become one part together. A signature belongs to the first part.
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
    let mut media = take_media(&mut fields);
    if let Some(media) = media.first_mut()
        && let Some(Value::Object(mut transcription)) = fields.remove("audioTranscription")
    {
        let text = take_nonempty_string(&mut transcription, "text");
        media.meta.extend(text.map(|text| ("transcript".to_owned(), text.into())));
    }
    parts.append(&mut media);
    if let Some(Value::Object(call)) = fields.remove("functionCall") {
        push_function_call(call, parts);
    }
    if let Some(Value::Object(response)) = fields.remove("functionResponse") {
        push_function_response(response, parts);
    }
    let mut other: Object = OTHER_CONTENT_KEYS.into_iter().filter_map(|key| fields.remove_entry(key)).collect();
    if !other.is_empty() {
        other.extend(is_thought.then(|| ("thought".to_owned(), true.into())));
        parts.push(opaque_part(Format::Gemini, Value::Object(other)));
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
    let args = take_call_arguments(&mut call).to_string();
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

/// Removes `inlineData` and `fileData` from a part and converts them.
fn take_media(fields: &mut Object) -> Vec<Part> {
    let mut media = Vec::new();
    if let Some(Value::Object(mut inline)) = fields.remove("inlineData") {
        let mime = take_as_string(&mut inline, "mimeType");
        let kind = if mime.is_empty() { PartKind::Image } else { media_kind(&mime) };
        let data = take_as_string(&mut inline, "data");
        let mut meta = media::base64_source(mime, data);
        meta.extend(take_filename(&mut inline));
        media.push(part(kind, String::new(), meta));
    }
    if let Some(Value::Object(mut file)) = fields.remove("fileData") {
        let mime = take_nonempty_string(&mut file, "mimeType");
        let kind = media_kind(mime.as_deref().unwrap_or_default());
        let mut meta = object([("type", "url".into()), ("url", take_as_string(&mut file, "fileUri").into())]);
        meta.extend(mime.map(|mime| ("media_type".to_owned(), mime.into())));
        meta.extend(take_filename(&mut file));
        media.push(part(kind, String::new(), meta));
    }
    media
}

/// Removes the name of a file and returns it as an entry of the meta of its part.
fn take_filename(media: &mut Object) -> Option<(String, Value)> {
    Some(("filename".to_owned(), take_nonempty_string(media, "displayName")?.into()))
}

fn media_kind(mime: &str) -> PartKind {
    media::kind_by_mime(&media::normalize_mime(mime)).unwrap_or(PartKind::File)
}
