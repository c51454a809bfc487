//! The text of blocks that have no equivalent in the common model. Other formats contain this text instead of the block, and its
//! tokens are counted.

use std::borrow::Cow;

use serde_json::Value;

use super::Format;
use super::value::{Object, str_at};
use crate::conversation::parts::{Part, PartKind};

/// The keys of a block's texts, in the order in which they are joined. The value is a string, or a block or list of blocks that
/// contain texts.
const TEXT_KEYS: [&str; 12] = [
    "title",
    "url",
    "text",
    "content",
    "code",
    "output",
    "stdout",
    "stderr",
    "error_code",
    "transcript",
    "source",
    "tool_references",
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
/// objects in the block are searched, because a Gemini part is an object in an object. A call of a server tool, which has a name
/// and an input, becomes the text of [`call_text`], and a reference to a tool names the tool. Returns `None` for a block without
/// text, and for thoughts, which must not become ordinary text.
pub(super) fn block_text(block: &Value) -> Option<String> {
    let mut texts = Vec::new();
    push_texts(block, 0, &mut texts);
    if texts.is_empty()
        && let Value::Object(block) = block
        && !is_thought(block)
    {
        block.values().filter(|value| value.is_object()).for_each(|value| push_texts(value, 1, &mut texts));
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

fn push_texts_of_object<'a>(block: &'a Object, depth: usize, texts: &mut Vec<Cow<'a, str>>) {
    let name = str_at(block, "name");
    match (str_at(block, "type"), block.get("input")) {
        ("tool_reference", _) if block.get("tool_name").is_some_and(Value::is_string) => {
            texts.push(format!("[tool {}]", str_at(block, "tool_name")).into());
        }
        // The source of a document with a text.
        ("text", _) if block.contains_key("media_type") => {
            texts.extend(block.get("data").and_then(Value::as_str).map(Cow::from));
        }
        (_, Some(input)) if !name.is_empty() => {
            let input = input.as_str().map_or_else(|| input.to_string().into(), Cow::from);
            texts.push(call_text(name, &input).into());
        }
        _ => {
            let values = TEXT_KEYS.iter().filter_map(|key| block.get(*key));
            values.for_each(|value| push_texts(value, depth + 1, texts));
        }
    }
}
