//! The `acontext` format: `{"role", "parts": [{"type", "text"?, "file_field"?, "meta"?}], "meta"?}`.
//!
//! `file_field` names the form field that contains the file of a part. In a stored body, `asset` and `filename` replace it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::changes::{AttachmentMatcher, ChangeCursor, empty_arguments};
use super::signatures::SIGNATURE_KEY;
use super::value::{
    Object, contains_nul, indexed_objects_mut, invalid, object, opaque_part, part, remove_nulls, str_at,
    take_as_string, take_opaque_block,
};
use super::{Format, InvalidMessage};
use crate::conversation::parts::{Asset, Part, PartKind, Role};

/// The types of parts, as listed in an error.
const PART_TYPES: &str = "text, image, audio, video, file, tool-call, tool-result, data, thinking or redacted_thinking";

/// Normalizes a message and returns its role, meta and body.
pub(super) fn normalize(mut body: Object) -> Result<(Role, Object, Object), InvalidMessage> {
    let role = match str_at(&body, "role") {
        "user" => Role::User,
        "assistant" => Role::Assistant,
        _ => return Err(invalid("role", "must be user or assistant")),
    };
    let meta = match body.get("meta") {
        None => Object::new(),
        Some(meta @ Value::Object(_)) if contains_nul(meta) => {
            return Err(invalid("meta", "must not contain the character NUL"));
        }
        Some(Value::Object(meta)) => meta.clone(),
        Some(_) => return Err(invalid("meta", "must be an object")),
    };
    let parts = body.entry("parts").or_insert_with(|| Value::Array(Vec::new()));
    let Some(parts) = parts.as_array_mut() else {
        return Err(invalid("parts", "must be a list"));
    };
    for (index, part) in parts.iter_mut().enumerate() {
        let field = |name: &str| format!("parts[{index}]{name}");
        let Value::Object(part) = part else {
            return Err(invalid(field(""), "must be an object"));
        };
        remove_nulls(part, &[]);
        // Only the server sets these fields.
        part.remove("asset");
        part.remove("filename");
        validate_part(part).map_err(|(name, reason)| invalid(field(name), reason))?;
        if str_at(part, "file_field").is_empty() {
            part.remove("file_field");
        }
    }
    Ok((role, meta, body))
}

/// Validates a part. Returns the field that is invalid, as a suffix of the path of the part, and the reason. Every part that
/// [`to_parts`](super::to_parts) returns for a message of any format is valid; its text may be empty.
fn validate_part(part: &Object) -> Result<(), (&'static str, String)> {
    let Some(kind) = part_kind(part) else {
        return Err((".type", format!("must be one of {PART_TYPES}")));
    };
    for (key, field) in [("text", ".text"), ("file_field", ".file_field")] {
        if part.get(key).is_some_and(|value| !value.is_string()) {
            return Err((field, "must be a string".into()));
        }
    }
    if part.get("meta").is_some_and(|meta| !meta.is_object()) {
        return Err((".meta", "must be an object".into()));
    }
    let has_meta = |key: &str| part.get("meta").is_some_and(|meta| meta.get(key).is_some());
    if kind == PartKind::Thinking && str_at(part, "text").is_empty() && !has_meta(SIGNATURE_KEY) {
        return Err((".text", "must be a non-empty string for a thought without a signature".into()));
    }
    // A result of a deprecated or unknown call has the name of the function instead of an id.
    if kind == PartKind::ToolResult && ["tool_call_id", "function_name", "name"].into_iter().any(has_meta) {
        return Ok(());
    }
    let required: &[_] = match kind {
        PartKind::ToolCall => &[("name", ".meta.name"), ("arguments", ".meta.arguments")],
        PartKind::ToolResult => &[("tool_call_id", ".meta.tool_call_id")],
        PartKind::Data => &[("data_type", ".meta.data_type")],
        _ => &[],
    };
    match required.iter().find(|(key, _)| !has_meta(key)) {
        Some((_, field)) => Err((field, "is required for a part of this type".into())),
        None => Ok(()),
    }
}

fn part_kind(part: &Object) -> Option<PartKind> {
    PartKind::deserialize(part.get("type")?).ok()
}

pub(super) fn file_fields(body: &Value) -> Vec<(usize, String)> {
    let parts = body.get("parts").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let field = |part: &Value| Some(part.get("file_field")?.as_str()?.to_owned());
    parts.iter().enumerate().filter_map(|(index, part)| Some((index, field(part)?))).collect()
}

pub(super) fn set_file(body: &mut Value, part_index: usize, asset: &Asset, filename: &str) {
    if let Some((_, part)) = indexed_objects_mut(body.get_mut("parts")).find(|(index, _)| *index == part_index) {
        part.remove("file_field");
        part.insert("asset".into(), to_value(asset));
        part.insert("filename".into(), filename.into());
    }
}

/// Serializes an [`Asset`] or a [`PartKind`], which cannot fail.
fn to_value(value: impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

pub(super) fn to_parts(mut body: Object) -> Vec<Part> {
    match body.remove("parts") {
        Some(Value::Array(parts)) => parts.into_iter().map(to_part).collect(),
        None | Some(Value::Null) => Vec::new(),
        Some(other) => vec![opaque_part(Format::Acontext, other)],
    }
}

fn to_part(value: Value) -> Part {
    let (mut fields, kind) = match value {
        Value::Object(fields) => match part_kind(&fields) {
            Some(kind) => (fields, kind),
            None => return opaque_part(Format::Acontext, Value::Object(fields)),
        },
        other => return opaque_part(Format::Acontext, other),
    };
    fields.remove("type");
    fields.remove("file_field");
    let meta = match fields.remove("meta") {
        Some(Value::Object(meta)) => meta,
        _ => Object::new(),
    };
    let text = take_as_string(&mut fields, "text");
    let filename = take_as_string(&mut fields, "filename");
    let asset = fields.remove("asset").and_then(|asset| serde_json::from_value(asset).ok());
    Part { asset, filename, extra: fields, ..part(kind, text, meta) }
}

/// Applies changes to a stored body.
pub(super) fn apply_changes(body: &mut Object, changes: &mut ChangeCursor<'_>) {
    let Some(Value::Array(parts)) = body.get_mut("parts") else { return };
    let mut attachments = AttachmentMatcher::default();
    parts.retain_mut(|part| {
        let part = part.as_object_mut().and_then(|part| Some((part_kind(part)?, part)));
        let Some((kind, part)) = part else {
            attachments = AttachmentMatcher::default();
            return true;
        };
        let no_meta = Object::new();
        if kind == PartKind::ToolResult {
            attachments = AttachmentMatcher::default();
            if let Some(text) = changes.next_result_text() {
                let meta = part.get("meta").and_then(Value::as_object).unwrap_or(&no_meta);
                attachments = AttachmentMatcher::for_result(meta);
                part.insert("text".into(), text.into());
            }
            return true;
        }
        if kind == PartKind::ToolCall && changes.clears_next_call() {
            clear_arguments(part);
        }
        !attachments.matches_next(kind, part.get("meta").and_then(Value::as_object).unwrap_or(&no_meta))
    });
}

fn clear_arguments(call: &mut Object) {
    let mut meta = match call.remove("meta") {
        Some(Value::Object(meta)) => meta,
        _ => Object::new(),
    };
    let is_custom = str_at(&meta, "type") == "custom";
    meta.insert("arguments".into(), empty_arguments(is_custom).into());
    call.insert("meta".into(), Value::Object(meta));
}

/// Builds a message from parts. It has no id and no timestamps.
pub(super) fn from_parts(role: Role, meta: &Object, parts: Vec<Part>) -> Value {
    let parts = parts.into_iter().map(part_to_value).collect();
    let mut message = object([("role", role.as_str().into()), ("parts", Value::Array(parts))]);
    if !meta.is_empty() {
        message.insert("meta".into(), Value::Object(meta.clone()));
    }
    Value::Object(message)
}

/// Converts a part to its JSON without copying its strings.
fn part_to_value(mut part: Part) -> Value {
    if let Some(block) = take_opaque_block(&mut part, Format::Acontext) {
        return block;
    }
    let mut object = part.extra;
    object.insert("type".into(), to_value(part.kind));
    let strings = [("text", part.text), ("filename", part.filename)];
    let nonempty = strings.into_iter().filter(|(_, string)| !string.is_empty());
    object.extend(nonempty.map(|(key, string)| (key.into(), string.into())));
    if let Some(asset) = part.asset {
        object.insert("asset".into(), to_value(asset));
    }
    if !part.meta.is_empty() {
        object.insert("meta".into(), Value::Object(part.meta));
    }
    Value::Object(object)
}
