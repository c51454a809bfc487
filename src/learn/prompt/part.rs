//! The parts of messages as elements of a prompt.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::element::Element;
use super::text;
use crate::conversation::parts::{Part, PartKind};
use crate::json;

/// The maximum size of tool call arguments that are parsed, in bytes. Only the beginning of longer ones is used anyway.
const MAX_PARSED_ARGUMENTS_BYTES: usize = 64 * 1024;

/// The names of the tools that were called in the rendered messages, by the ids of the calls.
#[derive(Default)]
pub struct ToolNames(HashMap<String, String>);

/// Renders a part. Its text has at most `max_chars` characters.
///
/// A text is an element `text`. A tool call and a tool result are elements with a JSON object. Any other part, such as an image,
/// a thought or an unknown block, is an element `omitted` that contains only the name of its file.
pub(super) fn render_part(part: &Part, max_chars: usize, names: &mut ToolNames) -> Element {
    let tag = match part.kind {
        PartKind::Text => return Element::new("text", "", &part.text, max_chars),
        PartKind::ToolCall => {
            return Element::new("tool-call", "", &call_json(&part.meta, max_chars, names), max_chars);
        }
        PartKind::ToolResult => {
            return Element::new("tool-result", "", &result_json(part, max_chars, names), max_chars);
        }
        PartKind::Image => "image",
        PartKind::Audio => "audio",
        PartKind::Video => "video",
        PartKind::File => "file",
        PartKind::Data => "data",
        PartKind::Thinking => "thinking",
        PartKind::RedactedThinking => "redacted_thinking",
    };
    Element::new("omitted", format!(" type=\"{tag}\""), &part.filename, max_chars)
}

/// Estimates the number of characters in the element of a part, without rendering it.
pub(super) fn estimate_chars(part: &Part, max_chars: usize) -> usize {
    /// The characters of the tags.
    const TAGS: usize = 24;
    let arguments = match part.meta.get("arguments") {
        Some(Value::String(arguments)) => arguments.len(),
        Some(Value::Object(arguments)) if arguments.is_empty() => 0,
        None => 0,
        Some(_) => max_chars,
    };
    TAGS + (part.text.len() + arguments).min(max_chars)
}

fn call_json(meta: &Map<String, Value>, max_chars: usize, names: &mut ToolNames) -> String {
    let name = meta.get("name").unwrap_or(&Value::Null);
    if let (Some(id), Some(name)) = (nonempty_string(meta, "id"), name.as_str()) {
        names.0.insert(id.into(), name.into());
    }
    let arguments = match meta.get("arguments") {
        None => Value::Null,
        Some(Value::String(text)) => parse_arguments(text).unwrap_or_else(|| prefix(text, max_chars)),
        Some(arguments) => return call_object(name, arguments, max_chars),
    };
    call_object(name, &arguments, max_chars)
}

fn call_object(name: &Value, arguments: &Value, max_chars: usize) -> String {
    let name = name.as_str().map_or(Value::Null, |name| prefix(name, max_chars));
    // `json!` would copy the arguments.
    format!("{{\"tool_name\":{},\"arguments\":{}}}", text::ascii_json(&name), text::ascii_json(arguments))
}

/// Parses arguments that are a JSON text. Returns `None` for another text.
fn parse_arguments(text: &str) -> Option<Value> {
    if text.len() > MAX_PARSED_ARGUMENTS_BYTES { None } else { json::parse(text.as_bytes()).ok() }
}

fn result_json(part: &Part, max_chars: usize, names: &ToolNames) -> String {
    let called = nonempty_string(&part.meta, "tool_call_id").and_then(|id| names.0.get(id)).map(String::as_str);
    // A result of a deprecated kind of call has no id, but the name of the function.
    let name = called.or_else(|| nonempty_string(&part.meta, "function_name"));
    let result = prefix(&part.text, max_chars);
    match name {
        Some(name) => format!(
            "{{\"tool_name\":{},\"result\":{}}}",
            text::ascii_json(&prefix(name, max_chars)),
            text::ascii_json(&result)
        ),
        None => text::ascii_json(&json!({"result": result})),
    }
}

/// Returns the beginning of a text that fills an element, so that not all of a long text is serialized.
fn prefix(text: &str, max_chars: usize) -> Value {
    text::cut(text, max_chars).text.into()
}

fn nonempty_string<'a>(meta: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    meta.get(key)?.as_str().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::prompt::budget::Shrink;

    fn part(kind: PartKind, text: &str, meta: Value) -> Part {
        let Value::Object(meta) = meta else { panic!("meta is an object") };
        Part { kind, text: text.into(), asset: None, filename: String::new(), meta, extra: Map::new() }
    }

    fn render(parts: &[Part]) -> Vec<String> {
        let mut names = ToolNames::default();
        parts.iter().map(|part| render_part(part, 100, &mut names).render()).collect()
    }

    #[test]
    fn each_kind_of_part_is_rendered() {
        let image =
            Part { filename: "a<b>.png".into(), ..part(PartKind::Image, "caption", json!({"url": "http://x"})) };
        let rendered = render(&[
            part(PartKind::Text, "2 > 1", json!({})),
            part(PartKind::ToolCall, "", json!({"id": "c1", "name": "look", "arguments": "{\"q\": \"é<\"}"})),
            part(PartKind::ToolCall, "", json!({"id": "c2", "name": "look", "arguments": {"q": 1.5}})),
            part(PartKind::ToolResult, "found \"it\"", json!({"tool_call_id": "c1"})),
            image,
            part(PartKind::Thinking, "a secret thought", json!({"signature": "x"})),
            part(PartKind::RedactedThinking, "", json!({"data": "x"})),
            part(PartKind::Data, "", json!({"data_type": "anthropic", "block": {"text": "hidden"}})),
        ]);
        assert_eq!(
            rendered,
            [
                "<text>2 &gt; 1</text>",
                r#"<tool-call>{"tool_name":"look","arguments":{"q":"\u00e9\u003c"}}</tool-call>"#,
                r#"<tool-call>{"tool_name":"look","arguments":{"q":1.5}}</tool-call>"#,
                r#"<tool-result>{"tool_name":"look","result":"found \"it\""}</tool-result>"#,
                r#"<omitted type="image">a&lt;b&gt;.png</omitted>"#,
                r#"<omitted type="thinking"></omitted>"#,
                r#"<omitted type="redacted_thinking"></omitted>"#,
                r#"<omitted type="data"></omitted>"#,
            ]
        );
    }

    #[test]
    fn malformed_parts_are_rendered_as_far_as_possible() {
        let rendered = render(&[
            part(PartKind::ToolCall, "", json!({})),
            part(PartKind::ToolCall, "", json!({"name": "f", "arguments": "{broken"})),
            part(PartKind::ToolCall, "", json!({"name": {"a": 1}, "arguments": ["x"]})),
            part(PartKind::ToolCall, "", json!({"id": 7, "name": "f", "arguments": " "})),
            part(PartKind::ToolResult, "", json!({})),
            part(PartKind::ToolResult, "x", json!({"tool_call_id": "c9"})),
            part(PartKind::ToolResult, "x", json!({"function_name": "g"})),
        ]);
        assert_eq!(
            rendered,
            [
                r#"<tool-call>{"tool_name":null,"arguments":null}</tool-call>"#,
                r#"<tool-call>{"tool_name":"f","arguments":"{broken"}</tool-call>"#,
                r#"<tool-call>{"tool_name":null,"arguments":["x"]}</tool-call>"#,
                r#"<tool-call>{"tool_name":"f","arguments":" "}</tool-call>"#,
                r#"<tool-result>{"result":""}</tool-result>"#,
                r#"<tool-result>{"result":"x"}</tool-result>"#,
                r#"<tool-result>{"tool_name":"g","result":"x"}</tool-result>"#,
            ]
        );
    }

    #[test]
    fn long_parts_are_cut() {
        let long = "x".repeat(1_000_000);
        let rendered = render(&[
            part(PartKind::Text, &long, json!({})),
            part(PartKind::ToolCall, "", json!({"name": "f", "arguments": long})),
            part(PartKind::ToolCall, "", json!({"name": "f", "arguments": {"a": [long]}})),
            part(PartKind::ToolCall, "", json!({"name": long, "arguments": "{}"})),
            part(PartKind::ToolResult, &long, json!({"tool_call_id": "c1"})),
            Part { filename: long.clone(), ..part(PartKind::File, "", json!({})) },
        ]);
        for element in rendered {
            let text = element.split_once('>').unwrap().1.rsplit_once("<cut/></").unwrap().0;
            assert_eq!(text.chars().count(), 100, "{element}");
        }
    }
}
