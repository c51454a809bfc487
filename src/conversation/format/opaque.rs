//! The text of blocks that have no equivalent in the common model. Other formats contain this text instead of the block, and its
//! tokens are counted.

use std::borrow::Cow;

use serde_json::Value;

use super::Format;
use super::value::{Object, response_text, str_at};
use crate::conversation::parts::{Part, PartKind};

/// The keys of a block's texts, in the order in which they are joined. The value is a string, or a block or list of blocks that
/// contain texts.
const TEXT_KEYS: [&str; 17] = [
    "title",
    "context",
    "url",
    "text",
    "content",
    "code",
    "output",
    "stdout",
    "stderr",
    "lines",
    "error_code",
    "error_message",
    "error",
    "transcript",
    "source",
    "tool_references",
    "tabs",
];

/// The maximum depth to which texts are searched in a block.
const MAX_DEPTH: usize = 5;

/// Returns the text of a part that [`opaque_part`](super::value::opaque_part) has built, see [`block_text`]. Returns `None` for
/// another part, and for a block without text.
pub(in crate::conversation) fn opaque_text(part: &Part) -> Option<String> {
    let is_opaque = part.kind == PartKind::Data && str_at(&part.meta, "data_type").parse::<Format>().is_ok();
    if is_opaque { block_text(part.meta.get("block")?) } else { None }
}

/// Returns the text of a block of unknown type.
///
/// It consists of the texts at [`TEXT_KEYS`], also in blocks at these keys, joined with line breaks. If there are none, the
/// objects in the block are searched, because a Gemini part is an object in an object, except for the metadata of the client.
///
/// A call of a server tool, which has a name and an input, becomes the text of [`call_text`], a response of such a tool its text,
/// and a reference to a tool or to a file names it. Signs of a failure and changes of a browser's state become texts in brackets.
/// Returns `None` for a block without text, and for thoughts, which must not become ordinary text.
pub(super) fn block_text(block: &Value) -> Option<String> {
    let mut texts = Vec::new();
    push_texts(block, 0, &mut texts);
    if let Value::Object(block) = block
        && !is_thought(block)
    {
        if texts.is_empty() {
            block.iter().for_each(|(key, value)| push_texts_of_member(key, value, &mut texts));
        }
        push_texts_of_fields(block, &mut texts);
    }
    (!texts.is_empty()).then(|| texts.join("\n"))
}

/// Returns a text that describes a tool call which the target cannot represent as a call, such as `[tool call f: {"x":1}]`.
pub(super) fn call_text(name: &str, arguments: &str) -> String {
    format!("[tool call {name}: {arguments}]")
}

fn is_thought(block: &Object) -> bool {
    let kind = str_at(block, "type");
    kind.contains("thinking") || kind.contains("reasoning") || block.get("thought") == Some(&Value::Bool(true))
}

fn push_texts<'a>(value: &'a Value, depth: usize, texts: &mut Vec<Cow<'a, str>>) {
    match value {
        Value::String(text) if !text.is_empty() => texts.push(text.as_str().into()),
        Value::Array(items) if depth < MAX_DEPTH => items.iter().for_each(|item| push_texts(item, depth + 1, texts)),
        Value::Object(block) if depth < MAX_DEPTH && !is_thought(block) => push_texts_of_object(block, depth, texts),
        _ => {}
    }
}

/// Adds the texts of an object in a block that has no text at [`TEXT_KEYS`].
fn push_texts_of_member<'a>(key: &str, value: &'a Value, texts: &mut Vec<Cow<'a, str>>) {
    match (key, value) {
        ("toolCall", Value::Object(call)) => {
            // Gemini omits empty arguments.
            let arguments = call.get("args").map_or_else(|| "{}".to_owned(), Value::to_string);
            texts.push(call_text(str_at(call, "toolType"), &arguments).into());
        }
        // The metadata of the client is no text, and `push_texts_of_fields` adds the response of a tool.
        ("partMetadata" | "response", _) => {}
        (_, Value::Object(_)) => push_texts(value, 1, texts),
        _ => {}
    }
}

fn push_texts_of_object<'a>(block: &'a Object, depth: usize, texts: &mut Vec<Cow<'a, str>>) {
    match str_at(block, "type") {
        "tool_reference" if block.get("tool_name").is_some_and(Value::is_string) => {
            texts.push(format!("[tool {}]", str_at(block, "tool_name")).into());
        }
        // The source of a document with a text.
        "text" if block.contains_key("media_type") => {
            texts.extend(block.get("data").and_then(Value::as_str).map(Cow::from));
        }
        _ if let Some(call) = text_of_call(block) => texts.push(call.into()),
        _ => {
            let values = TEXT_KEYS.iter().filter_map(|key| block.get(*key));
            values.for_each(|value| push_texts(value, depth + 1, texts));
            if depth > 0 {
                push_texts_of_fields(block, texts);
            }
        }
    }
}

/// Returns the text of a call of a server tool, or of a chunk of a streamed call, which has no name. Returns `None` for any other
/// block.
fn text_of_call(block: &Object) -> Option<String> {
    let name = str_at(block, "name");
    let input = ["input", "args", "partialArgs"].into_iter().find_map(|key| block.get(key))?;
    let input = input.as_str().map_or_else(|| input.to_string(), str::to_owned);
    let is_chunk = block.get("partialArgs").and_then(Value::as_array).is_some_and(|values| !values.is_empty());
    (!name.is_empty() || is_chunk).then(|| call_text(name, &input))
}

/// Adds texts for the fields whose values are not texts: the response of a tool, a file in the provider's storage, changes of a
/// browser's state, and signs of a failure.
fn push_texts_of_fields(block: &Object, texts: &mut Vec<Cow<'_, str>>) {
    let mut is_error = block.get("is_error") == Some(&Value::Bool(true));
    if let Some(response) = block.get("response").filter(|response| !response.is_null()) {
        let (text, has_error) = response_text(response.clone());
        is_error |= has_error;
        texts.extend(Some(text).filter(|text| !text.is_empty()).map(Cow::from));
    }
    let file_id = str_at(block, "file_id");
    if !file_id.is_empty() {
        texts.push(format!("[file {file_id}]").into());
    }
    let changes = block.get("state_changes").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    texts.extend(changes.iter().filter_map(Value::as_object).map(|change| text_of_change(change).into()));
    if let Some(code) = block.get("return_code").filter(|code| code.is_number() && code.as_i64() != Some(0)) {
        texts.push(format!("[return code {code}]").into());
    }
    let outcome = str_at(block, "outcome");
    if outcome.starts_with("OUTCOME_") && outcome != "OUTCOME_OK" {
        texts.push(format!("[{outcome}]").into());
    }
    if is_error {
        texts.push("[error]".into());
    }
}

/// Returns the type of a change and its other texts, such as `[download_started d1 https://example.com/file]`.
fn text_of_change(change: &Object) -> String {
    let others = change.iter().filter(|(key, _)| *key != "type").filter_map(|(_, value)| value.as_str());
    let words: Vec<_> = [str_at(change, "type")].into_iter().chain(others).collect();
    format!("[{}]", words.join(" "))
}
