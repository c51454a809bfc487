//! The product's own format: `{"role", "parts": [{"type", "text"?, "file_field"?, "meta"?}], "meta"?}`.
//!
//! A part that came with a file has `asset` and `filename` once the file is stored.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::changes::{Changes, ResultAttachments, no_arguments};
use super::value::{
    Object, drop_nulls, has_nul, object, objects, part, refused, take_block, take_text, text_at, unknown,
};
use super::{Format, InvalidMessage};
use crate::conversation::parts::{Asset, Kind, Part, Role};

const KINDS: &str = "text, image, audio, video, file, tool-call, tool-result, data, thinking or redacted_thinking";

/// Checks a message; gives its role, its meta and its body.
pub(super) fn read(mut body: Object) -> Result<(Role, Object, Object), InvalidMessage> {
    let role = match text_at(&body, "role") {
        "user" => Role::User,
        "assistant" => Role::Assistant,
        _ => return Err(refused("role", "must be user or assistant")),
    };
    let meta = match body.get("meta") {
        None => Object::new(),
        Some(meta @ Value::Object(_)) if has_nul(meta) => {
            return Err(refused("meta", "must not contain the character NUL"));
        }
        Some(Value::Object(meta)) => meta.clone(),
        Some(_) => return Err(refused("meta", "must be an object")),
    };
    let parts = body.entry("parts").or_insert_with(|| Value::Array(Vec::new()));
    let Some(parts) = parts.as_array_mut() else {
        return Err(refused("parts", "must be a list"));
    };
    for (at, part) in parts.iter_mut().enumerate() {
        let field = |name: &str| format!("parts[{at}]{name}");
        let Value::Object(part) = part else {
            return Err(refused(field(""), "must be an object"));
        };
        drop_nulls(part, &[]);
        // Only what this server stored itself may stand there.
        part.remove("asset");
        part.remove("filename");
        check(part).map_err(|(name, why)| refused(field(name), why))?;
        if text_at(part, "file_field").is_empty() {
            part.remove("file_field");
        }
    }
    Ok((role, meta, body))
}

/// Where a part is wrong, and what would do.
fn check(part: &Object) -> Result<(), (&'static str, String)> {
    let Some(kind) = kind_of(part) else {
        return Err((".type", format!("must be one of {KINDS}")));
    };
    for (key, field) in [("text", ".text"), ("file_field", ".file_field")] {
        if part.get(key).is_some_and(|value| !value.is_string()) {
            return Err((field, "must be a string".into()));
        }
    }
    if part.get("meta").is_some_and(|meta| !meta.is_object()) {
        return Err((".meta", "must be an object".into()));
    }
    let needed: &[_] = match kind {
        Kind::Text | Kind::Thinking if text_at(part, "text").is_empty() => {
            return Err((".text", "must be a string that is not empty".into()));
        }
        Kind::ToolCall => &[("name", ".meta.name"), ("arguments", ".meta.arguments")],
        Kind::ToolResult => &[("tool_call_id", ".meta.tool_call_id")],
        Kind::Data => &[("data_type", ".meta.data_type")],
        _ => &[],
    };
    let meta = part.get("meta").and_then(Value::as_object);
    match needed.iter().find(|(key, _)| !meta.is_some_and(|meta| meta.contains_key(*key))) {
        Some((_, field)) => Err((field, "is required for a part of this type".into())),
        None => Ok(()),
    }
}

fn kind_of(part: &Object) -> Option<Kind> {
    Kind::deserialize(part.get("type")?).ok()
}

pub(super) fn file_fields(body: &Value) -> Vec<(usize, String)> {
    let parts = body.get("parts").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let field = |part: &Value| Some(part.get("file_field")?.as_str()?.to_owned());
    parts.iter().enumerate().filter_map(|(at, part)| Some((at, field(part)?))).collect()
}

pub(super) fn set_file(body: &mut Value, part: usize, asset: &Asset, filename: &str) {
    if let Some((_, part)) = objects(body.get_mut("parts")).find(|(at, _)| *at == part) {
        part.remove("file_field");
        part.insert("asset".into(), json(asset));
        part.insert("filename".into(), filename.into());
    }
}

/// Small things of ours as a value; they are never refused.
fn json(thing: impl Serialize) -> Value {
    serde_json::to_value(thing).unwrap_or_default()
}

pub(super) fn parts(mut body: Object) -> Vec<Part> {
    match body.remove("parts") {
        Some(Value::Array(parts)) => parts.into_iter().map(one_part).collect(),
        None | Some(Value::Null) => Vec::new(),
        Some(other) => vec![unknown(Format::Acontext, other)],
    }
}

fn one_part(value: Value) -> Part {
    let (mut from, kind) = match value {
        Value::Object(from) => match kind_of(&from) {
            Some(kind) => (from, kind),
            None => return unknown(Format::Acontext, Value::Object(from)),
        },
        other => return unknown(Format::Acontext, other),
    };
    from.remove("type");
    from.remove("file_field");
    let meta = match from.remove("meta") {
        Some(Value::Object(meta)) => meta,
        _ => Object::new(),
    };
    let text = take_text(&mut from, "text");
    let filename = take_text(&mut from, "filename");
    let asset = from.remove("asset").and_then(|asset| serde_json::from_value(asset).ok());
    Part { asset, filename, extra: from, ..part(kind, text, meta) }
}

/// Makes changes in a stored message.
pub(super) fn edit(body: &mut Object, changes: &mut Changes<'_>) {
    let Some(Value::Array(parts)) = body.get_mut("parts") else { return };
    let mut came_with = ResultAttachments::default();
    parts.retain_mut(|part| {
        let known = part.as_object_mut().and_then(|part| Some((kind_of(part)?, part)));
        let Some((kind, part)) = known else {
            came_with = ResultAttachments::default();
            return true;
        };
        let nothing = Object::new();
        if kind == Kind::ToolResult {
            came_with = ResultAttachments::default();
            if let Some(text) = changes.next_result() {
                came_with = ResultAttachments::result(part.get("meta").and_then(Value::as_object).unwrap_or(&nothing));
                part.insert("text".into(), text.into());
            }
            return true;
        }
        if kind == Kind::ToolCall && changes.next_call() {
            empty_arguments(part);
        }
        !came_with.takes(kind, part.get("meta").and_then(Value::as_object).unwrap_or(&nothing))
    });
}

fn empty_arguments(call: &mut Object) {
    let mut meta = match call.remove("meta") {
        Some(Value::Object(meta)) => meta,
        _ => Object::new(),
    };
    let custom = text_at(&meta, "type") == "custom";
    meta.insert("arguments".into(), no_arguments(custom).into());
    call.insert("meta".into(), Value::Object(meta));
}

/// A message of these parts. Unlike a stored one it has no id and no times.
pub(super) fn write(role: Role, meta: &Object, parts: Vec<Part>) -> Value {
    let parts = parts.into_iter().map(part_value).collect();
    let mut message = object([("role", role.as_str().into()), ("parts", Value::Array(parts))]);
    if !meta.is_empty() {
        message.insert("meta".into(), Value::Object(meta.clone()));
    }
    Value::Object(message)
}

/// A part as it is shown, made without copying its texts.
fn part_value(mut part: Part) -> Value {
    if let Some(block) = take_block(&mut part, Format::Acontext) {
        return block;
    }
    let mut shown = part.extra;
    shown.insert("type".into(), json(part.kind));
    let texts = [("text", part.text), ("filename", part.filename)];
    shown.extend(texts.into_iter().filter(|(_, text)| !text.is_empty()).map(|(key, text)| (key.into(), text.into())));
    if let Some(asset) = part.asset {
        shown.insert("asset".into(), json(asset));
    }
    if !part.meta.is_empty() {
        shown.insert("meta".into(), Value::Object(part.meta));
    }
    Value::Object(shown)
}
