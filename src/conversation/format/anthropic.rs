//! The Anthropic format: `{"role", "content"}`, where the content is a string or a list of content blocks.

use serde_json::Value;

use super::changes::ChangeCursor;
use super::media::{Media, base64_source};
use super::value::{
    Object, indexed_objects_mut, invalid, move_cache_control, object, opaque_part, part, remove_nulls, str_at,
    stringify, take_arguments, take_as_string, take_caption, take_nonempty_string, take_object, take_opaque_block,
    text_part, type_of,
};
use super::{Format, InvalidMessage, RenderContext};
use crate::conversation::parts::{Part, PartKind, Role};

/// Normalizes a message and returns its role, meta and body.
pub(super) fn normalize(mut body: Object) -> Result<(Role, Object, Object), InvalidMessage> {
    let role = match str_at(&body, "role") {
        "user" => Role::User,
        "assistant" => Role::Assistant,
        _ => return Err(invalid("role", "must be user or assistant")),
    };
    body.entry("content").or_insert_with(|| Value::Array(Vec::new()));
    indexed_objects_mut(body.get_mut("content")).for_each(|(_, block)| normalize_block(block));
    let meta = extract_response_fields(&mut body);
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

/// Removes `null` keys from a block of a known type, and adds the missing fields of a tool result.
fn normalize_block(block: &mut Object) {
    match str_at(block, "type") {
        "text" | "image" | "document" | "thinking" | "redacted_thinking" | "tool_use" => {
            remove_nulls(block, &["source", "cache_control", "citations"]);
        }
        "tool_result" => {
            remove_nulls(block, &["cache_control"]);
            let is_error = block.get("is_error").and_then(Value::as_bool).unwrap_or_default();
            block.insert("is_error".into(), is_error.into());
            block.entry("content").or_insert_with(|| Value::Array(Vec::new()));
            // A result inside a result becomes an opaque part, whose block is not normalized.
            let nested = indexed_objects_mut(block.get_mut("content")).map(|(_, inner)| inner);
            nested.filter(|inner| str_at(inner, "type") != "tool_result").for_each(normalize_block);
        }
        _ => {}
    }
}

pub(super) fn to_parts(mut body: Object) -> Vec<Part> {
    let mut parts = Vec::new();
    match body.remove("content") {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) => parts.push(text_part(text)),
        Some(Value::Array(blocks)) => blocks.into_iter().for_each(|block| push_parts(block, &mut parts)),
        Some(other) => parts.push(opaque_part(Format::Anthropic, other)),
    }
    parts
}

fn push_parts(block: Value, parts: &mut Vec<Part>) {
    let mut block = match block {
        Value::Object(block) => block,
        other => return parts.push(opaque_part(Format::Anthropic, other)),
    };
    let mut meta = Object::new();
    let (kind, text) = match str_at(&block, "type") {
        "text" => (PartKind::Text, take_as_string(&mut block, "text")),
        "image" => {
            meta = source_meta(take_object(&mut block, "source"), None);
            (PartKind::Image, String::new())
        }
        "document" => {
            meta = source_meta(take_object(&mut block, "source"), Some("application/pdf"));
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
        _ => return parts.push(opaque_part(Format::Anthropic, Value::Object(block))),
    };
    move_cache_control(&mut block, &mut meta);
    parts.push(part(kind, text, meta));
}

/// Converts a `base64` or `url` source of an image or document to the meta of a part. A `base64` source without a MIME type gets
/// the default. Returns any other source unchanged.
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
    if let Some(mime) = default_mime.filter(|_| keys.contains(&"media_type") && str_at(&meta, "media_type").is_empty())
    {
        meta.insert("media_type".into(), mime.into());
    }
    meta
}

/// Converts a tool result. Its text blocks become the text of one part; its other blocks become parts after it, with the same
/// `tool_call_id`.
fn push_tool_result(mut block: Object, parts: &mut Vec<Part>) {
    let id = take_as_string(&mut block, "tool_use_id");
    let is_error = block.get("is_error").and_then(Value::as_bool).unwrap_or_default();
    let mut meta = object([("tool_call_id", id.as_str().into()), ("is_error", is_error.into())]);
    move_cache_control(&mut block, &mut meta);
    let mut text = String::new();
    let mut attachments = Vec::new();
    match block.remove("content") {
        Some(Value::Array(blocks)) => {
            for block in blocks {
                match block {
                    Value::String(string) => text.push_str(&string),
                    Value::Null => {}
                    Value::Object(mut block) if str_at(&block, "type") == "text" => {
                        text.push_str(&take_as_string(&mut block, "text"));
                    }
                    // The common model has no nested results.
                    block if type_of(&block) == "tool_result" => {
                        attachments.push(opaque_part(Format::Anthropic, block));
                    }
                    block => push_parts(block, &mut attachments),
                }
            }
        }
        content => text = stringify(content.unwrap_or_default()),
    }
    parts.push(part(PartKind::ToolResult, text, meta));
    for mut attachment in attachments {
        attachment.meta.insert("tool_call_id".into(), id.as_str().into());
        parts.push(attachment);
    }
}

/// Applies changes to a stored body.
pub(super) fn apply_changes(body: &mut Object, changes: &mut ChangeCursor<'_>) {
    for (_, block) in indexed_objects_mut(body.get_mut("content")) {
        match str_at(block, "type") {
            "tool_use" => change_call(block, changes),
            "tool_result" => change_result(block, changes),
            _ => {}
        }
    }
}

fn change_call(block: &mut Object, changes: &mut ChangeCursor<'_>) {
    if changes.clears_next_call() {
        block.insert("input".into(), Value::Object(Object::new()));
    }
}

/// Replaces the content of a tool result: a string with a string, any other content with a list.
///
/// Tool calls inside a tool result are invalid for Anthropic. They are changed like other calls, and never removed, so that the
/// index of a call does not change.
fn change_result(block: &mut Object, changes: &mut ChangeCursor<'_>) {
    let text = changes.next_result_text();
    let nested = indexed_objects_mut(block.get_mut("content"));
    for (_, inner) in nested.filter(|(_, inner)| str_at(inner, "type") == "tool_use") {
        change_call(inner, changes);
    }
    let Some(text) = text else { return };
    let content = match block.remove("content") {
        Some(Value::String(_)) => text.into(),
        content => {
            let mut blocks = vec![Value::Object(text_block(text.to_owned()))];
            if let Some(Value::Array(inner)) = content {
                blocks.extend(inner.into_iter().filter(|inner| type_of(inner) == "tool_use"));
            }
            Value::Array(blocks)
        }
    };
    block.insert("content".into(), content);
}

/// The MIME types of images that Anthropic accepts.
const SUPPORTED_IMAGE_TYPES: [&str; 4] = ["image/jpeg", "image/png", "image/gif", "image/webp"];

/// Builds a message from parts.
pub(super) fn from_parts(role: Role, _meta: &Object, parts: Vec<Part>, ctx: &RenderContext) -> Value {
    let mut content = Vec::new();
    for mut part in parts {
        let caption = take_caption(&mut part);
        let call_id =
            if part.kind == PartKind::ToolResult { None } else { take_nonempty_string(&mut part.meta, "tool_call_id") };
        let block = take_opaque_block(&mut part, Format::Anthropic).or_else(|| to_block(part, ctx).map(Value::Object));
        match call_id.and_then(|id| result_content_mut(&mut content, &id)) {
            Some(result_content) => {
                // A result without text has one empty text block. An attachment replaces this block.
                if result_content.len() == 1 && result_content[0]["text"] == "" {
                    result_content.clear();
                }
                result_content.extend(block);
            }
            None => content.extend(block),
        }
        content.extend(caption.map(|caption| Value::Object(text_block(caption))));
    }
    Value::Object(object([("role", role.as_str().into()), ("content", Value::Array(content))]))
}

/// Returns the content of the last tool result for a call, to which the attachments of the result are added.
fn result_content_mut<'a>(content: &'a mut [Value], id: &str) -> Option<&'a mut Vec<Value>> {
    let is_result = |block: &&mut Value| type_of(block) == "tool_result" && block["tool_use_id"] == id;
    content.iter_mut().rev().find(is_result)?.get_mut("content")?.as_array_mut()
}

fn text_block(text: String) -> Object {
    object([("type", "text".into()), ("text", text.into())])
}

/// Converts a part to a block; returns `None` if Anthropic cannot represent it.
fn to_block(mut part: Part, ctx: &RenderContext) -> Option<Object> {
    let hint = part.meta.remove("cache_control").filter(|hint| type_of(hint) == "ephemeral");
    let mut block = match part.kind {
        PartKind::Text | PartKind::Thinking if part.text.is_empty() => return None,
        PartKind::Text => text_block(part.text),
        // A thinking block cannot have a cache hint.
        PartKind::Thinking => {
            let signature = take_as_string(&mut part.meta, "signature").into();
            return Some(object([
                ("type", "thinking".into()),
                ("thinking", part.text.into()),
                ("signature", signature),
            ]));
        }
        PartKind::RedactedThinking => {
            let data = take_nonempty_string(&mut part.meta, "data")?;
            return Some(object([("type", "redacted_thinking".into()), ("data", data.into())]));
        }
        PartKind::ToolCall => tool_use_block(part.meta, ctx)?,
        PartKind::ToolResult => tool_result_block(part)?,
        PartKind::Data => return None,
        PartKind::Image | PartKind::Audio | PartKind::Video | PartKind::File => {
            media_block(Media::from_part(part, ctx))?
        }
    };
    if let Some(hint) = hint {
        block.insert("cache_control".into(), hint);
    }
    Some(block)
}

fn tool_use_block(mut meta: Object, ctx: &RenderContext) -> Option<Object> {
    let id = take_nonempty_string(&mut meta, "id")?;
    let name = take_nonempty_string(&mut meta, "name")?;
    let input = Value::Object(take_arguments(&mut meta, &ctx.value_budget));
    Some(object([("type", "tool_use".into()), ("id", id.into()), ("name", name.into()), ("input", input)]))
}

/// Converts a tool result. A result without the id of its call becomes a text block, or `None` if it has no text.
fn tool_result_block(mut part: Part) -> Option<Object> {
    let Some(id) = take_nonempty_string(&mut part.meta, "tool_call_id") else {
        return (!part.text.is_empty()).then(|| text_block(part.text));
    };
    let is_error = part.meta.get("is_error").and_then(Value::as_bool).unwrap_or_default();
    Some(object([
        ("type", "tool_result".into()),
        ("tool_use_id", id.into()),
        ("is_error", is_error.into()),
        ("content", Value::Array(vec![Value::Object(text_block(part.text))])),
    ]))
}

/// Returns the source of a file in Anthropic's storage, or of a document that consists of content blocks. Returns `None` if the
/// media has another source, which [`media_block`] builds.
fn native_source(media: &mut Media) -> Option<Object> {
    let (kind, key) = match str_at(&media.meta, "type") {
        "file" if media.data.is_none() && media.url.is_none() => ("file", "file_id"),
        "content" if media.text.is_some() => ("content", "content"),
        _ => return None,
    };
    Some(object([("type", kind.into()), (key, media.meta.remove(key)?)]))
}

/// Converts media to an image or document block, or to a text block if Anthropic does not support the type. Returns `None` if
/// there is nothing to describe.
fn media_block(mut media: Media) -> Option<Object> {
    let is_image = media.kind == PartKind::Image;
    let title = media.filename.clone();
    let is_supported = if is_image {
        SUPPORTED_IMAGE_TYPES.contains(&media.mime.as_str())
    } else {
        media.kind == PartKind::File && media.mime == "application/pdf"
    };
    // The file at a URL may have a supported type even if its MIME type is unknown.
    let may_be_supported =
        is_supported || (media.mime.is_empty() && matches!(media.kind, PartKind::Image | PartKind::File));
    let source = if let Some(native) = native_source(&mut media) {
        native
    } else if let Some(data) = media.data.take_if(|_| is_supported) {
        base64_source(media.mime, data)
    } else if may_be_supported && let Some(url) = media.take_public_url() {
        object([("type", "url".into()), ("url", url.into())])
    } else if let Some(text) = media.take_text() {
        object([("type", "text".into()), ("media_type", "text/plain".into()), ("data", text.into())])
    } else {
        return media.placeholder_text().map(text_block);
    };
    let mut block =
        object([("type", if is_image { "image" } else { "document" }.into()), ("source", Value::Object(source))]);
    if !is_image && !title.is_empty() {
        block.insert("title".into(), title.into());
    }
    Some(block)
}
