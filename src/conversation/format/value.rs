//! Helpers for JSON values, and constructors of parts.

use serde_json::{Map, Value};

use super::{Format, InvalidMessage};
use crate::conversation::parts::{Part, PartKind};
use crate::json::ValueBudget;

pub(super) type Object = Map<String, Value>;

/// The text of a message or of a failed tool result that would otherwise have no content, which providers reject.
pub(super) const NO_CONTENT: &str = "[no content]";

pub(super) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> InvalidMessage {
    InvalidMessage { field: field.into(), reason: reason.into() }
}

/// Builds an object from entries. The macro `json!` would copy every string.
pub(super) fn object<const N: usize>(entries: [(&str, Value); N]) -> Object {
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// Converts a value to a string: a string is unchanged, `null` becomes empty, and any other value becomes compact JSON.
pub(super) fn stringify(value: Value) -> String {
    match value {
        Value::String(text) => text,
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// Removes the value at a key and converts it with [`stringify()`]. Returns an empty string if the key is missing.
pub(super) fn take_as_string(object: &mut Object, key: &str) -> String {
    object.remove(key).map(stringify).unwrap_or_default()
}

/// Removes and returns the string at a key. Returns `None` and removes nothing if the value is missing, empty or not a string.
pub(super) fn take_nonempty_string(object: &mut Object, key: &str) -> Option<String> {
    if str_at(object, key).is_empty() { None } else { Some(take_as_string(object, key)) }
}

/// Removes the value at a key and returns it if it is an object; else returns an empty object.
pub(super) fn take_object(object: &mut Object, key: &str) -> Object {
    match object.remove(key) {
        Some(Value::Object(inner)) => inner,
        _ => Object::new(),
    }
}

/// Returns `true` for a text that is empty or consists of white space.
pub(super) fn is_blank(text: &str) -> bool {
    text.trim().is_empty()
}

/// Returns the string at a key; empty if the key is missing or its value is not a string.
pub(super) fn str_at<'a>(object: &'a Object, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Returns the `type` of a block; empty if it has none or is not an object.
pub(super) fn type_of(block: &Value) -> &str {
    block.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// Iterates over the objects in a list with their indices in the list. Yields nothing if the value is not a list.
pub(super) fn indexed_objects_mut(list: Option<&mut Value>) -> impl Iterator<Item = (usize, &mut Object)> {
    let list = list.and_then(Value::as_array_mut).map(Vec::as_mut_slice).unwrap_or_default();
    list.iter_mut().enumerate().filter_map(|(index, value)| Some((index, value.as_object_mut()?)))
}

/// Removes the keys whose value is `null` from an object and from the objects at its `inner_keys`, but not deeper.
pub(super) fn remove_nulls(object: &mut Object, inner_keys: &[&str]) {
    object.retain(|_, value| !value.is_null());
    for key in inner_keys {
        if let Some(Value::Object(inner)) = object.get_mut(*key) {
            inner.retain(|_, value| !value.is_null());
        }
    }
}

/// Returns `true` if a string or key in the value contains NUL, which Postgres cannot store.
pub(super) fn contains_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(list) => list.iter().any(contains_nul),
        Value::Object(object) => object.iter().any(|(key, value)| key.contains('\0') || contains_nul(value)),
        _ => false,
    }
}

/// Returns the text of a response of a Gemini function, and `true` if the function failed. The text is the value of a lone
/// `output` or `error`, or else the whole response as JSON.
pub(super) fn response_text(response: Value) -> (String, bool) {
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

/// Builds a part without a file.
pub(super) fn part(kind: PartKind, text: String, meta: Object) -> Part {
    Part { kind, text, asset: None, filename: String::new(), meta, extra: Object::new() }
}

pub(super) fn text_part(text: String) -> Part {
    part(PartKind::Text, text, Object::new())
}

/// Wraps a block that has no equivalent in the common model; [`take_opaque_block`] returns it.
pub(super) fn opaque_part(format: Format, block: Value) -> Part {
    part(PartKind::Data, String::new(), object([("data_type", format.as_str().into()), ("block", block)]))
}

/// Removes and returns the block that [`opaque_part`] wrapped. Returns `None` if the part does not wrap a block of this format.
pub(super) fn take_opaque_block(part: &mut Part, format: Format) -> Option<Value> {
    let same_format = part.kind == PartKind::Data && str_at(&part.meta, "data_type") == format.as_str();
    if same_format { part.meta.remove("block") } else { None }
}

/// Moves the prompt cache hint (`cache_control`) from a block to the meta of its part.
pub(super) fn move_cache_control(block: &mut Object, meta: &mut Object) {
    if let Some(hint @ Value::Object(_)) = block.remove("cache_control") {
        meta.insert("cache_control".into(), hint);
    }
}

/// Removes the arguments of a tool call from its meta and returns them as the object that Anthropic and Gemini require.
///
/// Missing, empty or `null` arguments become an empty object. Other arguments that are not an object, or whose JSON text has more
/// values than the budget allows, become `{"input": arguments}`.
pub(super) fn take_arguments(meta: &mut Object, budget: &ValueBudget) -> Object {
    let value = meta.remove("arguments").unwrap_or_default();
    // The input of a custom tool is plain text, even if it is valid JSON.
    let value = match value {
        Value::String(text) if text.trim().is_empty() => Value::Null,
        Value::String(text) if str_at(meta, "type") != "custom" => budget.parse(&text).unwrap_or(Value::String(text)),
        value => value,
    };
    match value {
        Value::Null => Object::new(),
        Value::Object(arguments) => arguments,
        other => object([("input", other)]),
    }
}

/// Removes the name and the arguments of a tool call from its meta and returns them as texts. Missing or `null` arguments become
/// `{}`.
pub(super) fn take_call_text_fields(meta: &mut Object) -> (String, String) {
    let arguments = take_as_string(meta, "arguments");
    let arguments = if matches!(arguments.as_str(), "" | "null") { "{}".to_owned() } else { arguments };
    (take_as_string(meta, "name"), arguments)
}

/// Removes and returns the caption of a part: the text of a media or data part. It is converted to a text of its own, because
/// most formats have no captions.
pub(super) fn take_caption(part: &mut Part) -> Option<String> {
    let is_media_or_data =
        matches!(part.kind, PartKind::Image | PartKind::Audio | PartKind::Video | PartKind::File | PartKind::Data);
    (is_media_or_data && !part.text.is_empty()).then(|| std::mem::take(&mut part.text))
}
