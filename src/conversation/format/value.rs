//! Small helpers around JSON values, and the parts that are made of them.

use serde_json::{Map, Value};

use super::{Format, InvalidMessage};
use crate::conversation::parts::{Kind, Part};
use crate::json::ValueBudget;

pub(super) type Object = Map<String, Value>;

pub(super) fn refused(field: impl Into<String>, why: impl Into<String>) -> InvalidMessage {
    InvalidMessage { field: field.into(), why: why.into() }
}

/// An object of these entries. (The macro `json!` would copy every text in it.)
pub(super) fn object<const N: usize>(entries: [(&str, Value); N]) -> Object {
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// A value as the text that stands for it: a text itself, `null` as nothing, all else as compact JSON.
pub(super) fn text_of(value: Value) -> String {
    match value {
        Value::String(text) => text,
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// The text at a key, taken out; empty if there is none.
pub(super) fn take_text(object: &mut Object, key: &str) -> String {
    object.remove(key).map(text_of).unwrap_or_default()
}

/// The text at a key if it is one that says something, taken out.
pub(super) fn take_filled(object: &mut Object, key: &str) -> Option<String> {
    if text_at(object, key).is_empty() { None } else { Some(take_text(object, key)) }
}

/// The object at a key, taken out; empty if there is none.
pub(super) fn take_object(object: &mut Object, key: &str) -> Object {
    match object.remove(key) {
        Some(Value::Object(inner)) => inner,
        _ => Object::new(),
    }
}

/// The text at a key; empty if there is none, or if it is no text.
pub(super) fn text_at<'a>(object: &'a Object, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The type of a block; empty for what is no block at all.
pub(super) fn type_of(block: &Value) -> &str {
    block.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// The objects of a list, with their places; nothing if it is no list.
pub(super) fn objects(list: Option<&mut Value>) -> impl Iterator<Item = (usize, &mut Object)> {
    let list = list.and_then(Value::as_array_mut).map(Vec::as_mut_slice).unwrap_or_default();
    list.iter_mut().enumerate().filter_map(|(at, value)| Some((at, value.as_object_mut()?)))
}

/// Drops the keys that are `null`, in the object itself and in the objects at these keys, no deeper.
pub(super) fn drop_nulls(object: &mut Object, inner: &[&str]) {
    object.retain(|_, value| !value.is_null());
    for key in inner {
        if let Some(Value::Object(inner)) = object.get_mut(*key) {
            inner.retain(|_, value| !value.is_null());
        }
    }
}

/// Whether a text in it, or a key, contains the character that the database cannot hold.
pub(super) fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(list) => list.iter().any(has_nul),
        Value::Object(object) => object.iter().any(|(key, value)| key.contains('\0') || has_nul(value)),
        _ => false,
    }
}

pub(super) fn part(kind: Kind, text: String, meta: Object) -> Part {
    Part { kind, text, asset: None, filename: String::new(), meta, extra: Object::new() }
}

pub(super) fn text_part(text: String) -> Part {
    part(Kind::Text, text, Object::new())
}

/// What a format has and nobody else understands; [`take_block`] gives it back.
pub(super) fn unknown(format: Format, block: Value) -> Part {
    part(Kind::Data, String::new(), object([("data_type", format.as_str().into()), ("block", block)]))
}

/// The block that [`unknown`] wrapped, if it is one of this format.
pub(super) fn take_block(part: &mut Part, format: Format) -> Option<Value> {
    let own = part.kind == Kind::Data && text_at(&part.meta, "data_type") == format.as_str();
    if own { part.meta.remove("block") } else { None }
}

/// A hint for the cache of prompts is kept wherever it was put.
pub(super) fn keep_cache_control(from: &mut Object, meta: &mut Object) {
    if let Some(hint @ Value::Object(_)) = from.remove("cache_control") {
        meta.insert("cache_control".into(), hint);
    }
}

/// Returns the arguments of a tool call as the object that Anthropic and Gemini require. Any other value, and a text with more
/// values than the budget allows, is wrapped: `{"input": ...}`.
pub(super) fn arguments(meta: &mut Object, values: &ValueBudget) -> Object {
    let value = meta.remove("arguments").unwrap_or_default();
    // The input of a custom tool is a plain text, even if it looks like something else.
    let value = match value {
        Value::String(text) if text.trim().is_empty() => Value::Null,
        Value::String(text) if text_at(meta, "type") != "custom" => values.parse(&text).unwrap_or(Value::String(text)),
        value => value,
    };
    match value {
        Value::Null => Object::new(),
        Value::Object(arguments) => arguments,
        other => object([("input", other)]),
    }
}

/// The text that media or data carry besides, which every target can say.
pub(super) fn take_caption(part: &mut Part) -> Option<String> {
    let carries = matches!(part.kind, Kind::Image | Kind::Audio | Kind::Video | Kind::File | Kind::Data);
    (carries && !part.text.is_empty()).then(|| std::mem::take(&mut part.text))
}
