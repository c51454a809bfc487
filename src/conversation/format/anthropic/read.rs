//! Normalizes messages and converts them to parts.

use serde_json::Value;

use super::super::dialect;
use super::super::value::{
    Object, indexed_objects_mut, invalid, move_cache_control, object, opaque_part, part, remove_nulls, str_at,
    stringify, take_as_string, take_object, text_part, type_of,
};
use super::super::{Format, InvalidMessage};
use crate::conversation::parts::{Part, PartKind, Role};

/// The fields of a document that describe its content.
pub(super) const DOCUMENT_FIELDS: [&str; 3] = ["title", "context", "citations"];

/// Normalizes a message and returns its role, meta and body.
pub(in super::super) fn normalize(mut body: Object) -> Result<(Role, Object, Object), InvalidMessage> {
    let (role, is_system) = match str_at(&body, "role") {
        "user" => (Role::User, false),
        "assistant" => (Role::Assistant, false),
        "system" => (Role::User, true),
        _ => return Err(invalid("role", "must be user, assistant or system")),
    };
    body.entry("content").or_insert_with(|| Value::Array(Vec::new()));
    indexed_objects_mut(body.get_mut("content")).for_each(|(_, block)| normalize_block(block));
    let mut meta = extract_response_fields(&mut body);
    if is_system {
        meta.insert("original_role".into(), "system".into());
    }
    Ok((role, meta, body))
}

/// Moves all fields of a model's response except `role` and `content`, such as its id and token counts, from the body to the
/// returned meta. Anthropic's API rejects these fields in the messages of a request.
fn extract_response_fields(body: &mut Object) -> Object {
    if str_at(body, "type") != "message" {
        return Object::new();
    }
    let is_message_field = |key: &String| matches!(key.as_str(), "role" | "content");
    let (message, response): (Object, Object) =
        std::mem::take(body).into_iter().partition(|(key, _)| is_message_field(key));
    *body = message;
    object([("response", response.into())])
}

/// Removes `null` keys from a block of a known type. Adds nothing, because a block must be returned as it was stored.
fn normalize_block(block: &mut Object) {
    match str_at(block, "type") {
        "text" | "image" | "document" | "thinking" | "redacted_thinking" | "tool_use" => {
            remove_nulls(block, &["source", "cache_control", "citations"]);
        }
        "tool_result" => {
            remove_nulls(block, &["cache_control"]);
            // A result inside a result is invalid for Anthropic. It is preserved unchanged, like an unknown block.
            let nested = indexed_objects_mut(block.get_mut("content")).map(|(_, inner)| inner);
            nested.filter(|inner| str_at(inner, "type") != "tool_result").for_each(normalize_block);
        }
        _ => {}
    }
}

pub(in super::super) fn to_parts(mut body: Object) -> Vec<Part> {
    let mut parts = Vec::new();
    match body.remove("content") {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) => parts.push(text_part(text)),
        Some(Value::Array(blocks)) => {
            for block in blocks {
                push_parts(block, dialect::read_block, &mut parts);
            }
        }
        Some(other) => parts.push(opaque_part(Format::Anthropic, other)),
    }
    parts
}

/// Converts a block. `read_dialect` converts blocks of a type that Anthropic does not define, as [`dialect::read_block`].
fn push_parts(block: Value, read_dialect: fn(&mut Object, &mut Vec<Part>) -> bool, parts: &mut Vec<Part>) {
    let mut block = match block {
        Value::Object(block) => block,
        Value::String(text) => return parts.push(text_part(text)),
        other => return parts.push(opaque_part(Format::Anthropic, other)),
    };
    let mut meta = Object::new();
    let (kind, text) = match str_at(&block, "type") {
        "text" => (PartKind::Text, take_as_string(&mut block, "text")),
        "image" if block.contains_key("source") => {
            meta = source_meta(take_object(&mut block, "source"), None);
            (PartKind::Image, String::new())
        }
        "document" => {
            meta = source_meta(take_object(&mut block, "source"), Some("application/pdf"));
            move_document_fields(&mut block, &mut meta);
            (PartKind::File, String::new())
        }
        "tool_use" => {
            let input = block.remove("input").unwrap_or_default();
            meta = object([("arguments", input.to_string().into()), ("type", "tool_use".into())]);
            meta.extend(["id", "name"].map(|key| (key.to_owned(), take_as_string(&mut block, key).into())));
            (PartKind::ToolCall, String::new())
        }
        "tool_result" => return push_tool_result(block, parts),
        "thinking" => {
            meta = object([("signature", take_as_string(&mut block, "signature").into())]);
            (PartKind::Thinking, take_as_string(&mut block, "thinking"))
        }
        "redacted_thinking" => {
            meta = object([("data", take_as_string(&mut block, "data").into())]);
            (PartKind::RedactedThinking, String::new())
        }
        _ => {
            if !read_dialect(&mut block, parts) {
                parts.push(opaque_part(Format::Anthropic, Value::Object(block)));
            }
            return;
        }
    };
    move_cache_control(&mut block, &mut meta);
    parts.push(part(kind, text, meta));
}

/// Converts a `base64` or `url` source of an image or document to the meta of a part. A source without a MIME type gets the
/// default: Anthropic's documents with such a source are PDFs. Returns any other source unchanged.
fn source_meta(mut source: Object, default_mime: Option<&str>) -> Object {
    let keys: &[&str] = match str_at(&source, "type") {
        "base64" => &["type", "media_type", "data"],
        "url" => &["type", "url"],
        _ => return source,
    };
    let mut meta = Object::new();
    for key in keys {
        if let Some(value) = source.remove(*key) {
            meta.insert((*key).to_owned(), stringify(value).into());
        }
    }
    if let Some(mime) = default_mime.filter(|_| str_at(&meta, "media_type").is_empty()) {
        meta.insert("media_type".into(), mime.into());
    }
    meta
}

/// Moves the fields that describe a document to the meta of its part. The meta already has the fields of the source.
fn move_document_fields(block: &mut Object, meta: &mut Object) {
    for key in DOCUMENT_FIELDS {
        let value =
            block.remove(key).filter(|value| if key == "citations" { value.is_object() } else { value.is_string() });
        if let Some(value) = value.filter(|_| !meta.contains_key(key)) {
            meta.insert(key.into(), value);
        }
    }
}

/// Converts a tool result. Its first text becomes the text of a part. Its further texts and its other blocks become parts after
/// it, in their order, with the same `tool_call_id`.
fn push_tool_result(mut block: Object, parts: &mut Vec<Part>) {
    let id = take_as_string(&mut block, "tool_use_id");
    let is_error = block.get("is_error").and_then(Value::as_bool).unwrap_or_default();
    let mut meta = object([("tool_call_id", id.as_str().into()), ("is_error", is_error.into())]);
    move_cache_control(&mut block, &mut meta);
    let mut content = ResultContent::default();
    match block.remove("content") {
        Some(Value::Array(blocks)) => blocks.into_iter().for_each(|block| content.push(block, false)),
        other => content.push_text(stringify(other.unwrap_or_default())),
    }
    parts.push(part(PartKind::ToolResult, content.text.unwrap_or_default(), meta));
    for mut attachment in content.attachments {
        attachment.meta.insert("tool_call_id".into(), id.as_str().into());
        parts.push(attachment);
    }
}

/// The converted content of a tool result.
#[derive(Default)]
struct ResultContent {
    text: Option<String>,
    attachments: Vec<Part>,
}

impl ResultContent {
    fn push_text(&mut self, text: String) {
        match self.text {
            None => self.text = Some(text),
            Some(_) => self.attachments.push(text_part(text)),
        }
    }

    /// Adds a block. `is_nested` is set for the blocks of a result that is inside the result.
    fn push(&mut self, block: Value, is_nested: bool) {
        match block {
            Value::Null => {}
            Value::String(text) => self.push_text(text),
            Value::Object(mut block) if str_at(&block, "type") == "text" && self.text.is_none() => {
                self.text = Some(take_as_string(&mut block, "text"));
            }
            // The common model has no nested results, so the content of one belongs to the outer result.
            Value::Object(mut block) if str_at(&block, "type") == "tool_result" => match block.remove("content") {
                Some(Value::Array(blocks)) => blocks.into_iter().for_each(|block| self.push(block, true)),
                None | Some(Value::Null) => {}
                Some(other) => self.push_text(stringify(other)),
            },
            // Only the calls in the result itself are counted, see `apply_changes`.
            block if is_nested && type_of(&block) == "tool_use" => {
                self.attachments.push(opaque_part(Format::Anthropic, block));
            }
            block => push_parts(block, dialect::read_content, &mut self.attachments),
        }
    }
}
