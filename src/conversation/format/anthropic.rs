//! Messages of Anthropic: `{"role", "content"}`, where the content is a string or a list of blocks.

use serde_json::Value;

use super::changes::Changes;
use super::media::{Media, held};
use super::value::{
    Object, arguments, drop_nulls, keep_cache_control, object, objects, part, refused, take_block, take_caption,
    take_filled, take_object, take_text, text_at, text_of, text_part, type_of, unknown,
};
use super::{Format, InvalidMessage, RenderContext};
use crate::conversation::parts::{Kind, Part, Role};

/// Checks a message; gives its role, its meta and its body.
pub(super) fn read(mut body: Object) -> Result<(Role, Object, Object), InvalidMessage> {
    let role = match text_at(&body, "role") {
        "user" => Role::User,
        "assistant" => Role::Assistant,
        _ => return Err(refused("role", "must be user or assistant")),
    };
    body.entry("content").or_insert_with(|| Value::Array(Vec::new()));
    objects(body.get_mut("content")).for_each(|(_, block)| clean(block));
    let meta = take_response(&mut body);
    Ok((role, meta, body))
}

/// A model's answer as its SDK holds it has an id, token counts and more. The API refuses them in a message that is sent
/// back, so they are kept beside it.
fn take_response(body: &mut Object) -> Object {
    if text_at(body, "type") != "message" {
        return Object::new();
    }
    let message = |key: &String| matches!(key.as_str(), "role" | "content");
    let (message, response): (Object, Object) = std::mem::take(body).into_iter().partition(|(key, _)| message(key));
    *body = message;
    object([("response", response.into())])
}

/// Drops what is `null` from a block of a known type.
fn clean(block: &mut Object) {
    match text_at(block, "type") {
        "text" | "image" | "document" | "thinking" | "redacted_thinking" | "tool_use" => {
            drop_nulls(block, &["source", "cache_control", "citations"]);
        }
        "tool_result" => {
            drop_nulls(block, &["cache_control"]);
            let is_error = block.get("is_error").and_then(Value::as_bool).unwrap_or_default();
            block.insert("is_error".into(), is_error.into());
            block.entry("content").or_insert_with(|| Value::Array(Vec::new()));
            let inner = objects(block.get_mut("content"));
            inner.filter(|(_, block)| text_at(block, "type") != "tool_result").for_each(|(_, block)| clean(block));
        }
        _ => {}
    }
}

pub(super) fn parts(mut body: Object) -> Vec<Part> {
    let mut parts = Vec::new();
    match body.remove("content") {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) => parts.push(text_part(text)),
        Some(Value::Array(blocks)) => blocks.into_iter().for_each(|block| take_apart(block, &mut parts)),
        Some(other) => parts.push(unknown(Format::Anthropic, other)),
    }
    parts
}

fn take_apart(block: Value, parts: &mut Vec<Part>) {
    let mut block = match block {
        Value::Object(block) => block,
        other => return parts.push(unknown(Format::Anthropic, other)),
    };
    let mut meta = Object::new();
    let (kind, text) = match text_at(&block, "type") {
        "text" => (Kind::Text, take_text(&mut block, "text")),
        "image" => {
            meta = source(take_object(&mut block, "source"), None);
            (Kind::Image, String::new())
        }
        "document" => {
            meta = source(take_object(&mut block, "source"), Some("application/pdf"));
            (Kind::File, String::new())
        }
        "tool_use" => {
            let input = block.remove("input").unwrap_or_default();
            meta = object([("arguments", input.to_string().into()), ("type", "tool_use".into())]);
            meta.extend(["id", "name"].map(|key| (key.to_owned(), take_text(&mut block, key).into())));
            (Kind::ToolCall, String::new())
        }
        "tool_result" => return tool_result(block, parts),
        "thinking" => {
            meta = object([("signature", take_text(&mut block, "signature").into())]);
            (Kind::Thinking, take_text(&mut block, "thinking"))
        }
        "redacted_thinking" => {
            meta = object([("data", take_text(&mut block, "data").into())]);
            (Kind::RedactedThinking, String::new())
        }
        _ => return parts.push(unknown(Format::Anthropic, Value::Object(block))),
    };
    keep_cache_control(&mut block, &mut meta);
    parts.push(part(kind, text, meta));
}

/// Where the content of an image or a document is, in the words of parts. An unusual source is kept as it is.
fn source(mut source: Object, default_mime: Option<&str>) -> Object {
    let texts: &[&str] = match text_at(&source, "type") {
        "base64" => &["type", "media_type", "data"],
        "url" => &["type", "url"],
        _ => return source,
    };
    let mut meta = Object::new();
    for key in texts {
        if let Some(value) = source.remove(*key) {
            meta.insert((*key).to_owned(), text_of(value).into());
        }
    }
    if let Some(mime) =
        default_mime.filter(|_| texts.contains(&"media_type") && text_at(&meta, "media_type").is_empty())
    {
        meta.insert("media_type".into(), mime.into());
    }
    meta
}

/// The texts of a result are its text; what else it contains follows it as parts that name its call.
fn tool_result(mut block: Object, parts: &mut Vec<Part>) {
    let id = take_text(&mut block, "tool_use_id");
    let is_error = block.get("is_error").and_then(Value::as_bool).unwrap_or_default();
    let mut meta = object([("tool_call_id", id.as_str().into()), ("is_error", is_error.into())]);
    keep_cache_control(&mut block, &mut meta);
    let mut text = String::new();
    let mut others = Vec::new();
    match block.remove("content") {
        Some(Value::Array(inner)) => {
            for block in inner {
                match block {
                    Value::String(word) => text.push_str(&word),
                    Value::Null => {}
                    Value::Object(mut block) if text_at(&block, "type") == "text" => {
                        text.push_str(&take_text(&mut block, "text"));
                    }
                    // Results do not contain results.
                    block if type_of(&block) == "tool_result" => others.push(unknown(Format::Anthropic, block)),
                    block => take_apart(block, &mut others),
                }
            }
        }
        content => text = text_of(content.unwrap_or_default()),
    }
    parts.push(part(Kind::ToolResult, text, meta));
    for mut other in others {
        other.meta.insert("tool_call_id".into(), id.as_str().into());
        parts.push(other);
    }
}

/// Makes changes in a stored message.
pub(super) fn edit(body: &mut Object, changes: &mut Changes<'_>) {
    for (_, block) in objects(body.get_mut("content")) {
        match text_at(block, "type") {
            "tool_use" => edit_call(block, changes),
            "tool_result" => edit_result(block, changes),
            _ => {}
        }
    }
}

fn edit_call(block: &mut Object, changes: &mut Changes<'_>) {
    if changes.next_call() {
        block.insert("input".into(), Value::Object(Object::new()));
    }
}

/// A text stays a text, all else becomes a list. Calls do not belong into a result, but nothing else takes them out.
fn edit_result(block: &mut Object, changes: &mut Changes<'_>) {
    let text = changes.next_result();
    for (_, inner) in objects(block.get_mut("content")).filter(|(_, inner)| text_at(inner, "type") == "tool_use") {
        edit_call(inner, changes);
    }
    let Some(text) = text else { return };
    let content = match block.remove("content") {
        Some(Value::String(_)) => text.into(),
        content => {
            let mut said = vec![Value::Object(text_block(text.to_owned()))];
            if let Some(Value::Array(inner)) = content {
                said.extend(inner.into_iter().filter(|inner| type_of(inner) == "tool_use"));
            }
            Value::Array(said)
        }
    };
    block.insert("content".into(), content);
}

/// The only images that Anthropic reads.
const IMAGES: [&str; 4] = ["image/jpeg", "image/png", "image/gif", "image/webp"];

/// A message of these parts.
pub(super) fn write(role: Role, parts: Vec<Part>, around: &RenderContext) -> Value {
    let mut content = Vec::new();
    for mut part in parts {
        let caption = take_caption(&mut part);
        let result = if part.kind == Kind::ToolResult { None } else { take_filled(&mut part.meta, "tool_call_id") };
        let block = take_block(&mut part, Format::Anthropic).or_else(|| block(part, around).map(Value::Object));
        match result.and_then(|id| content_of_result(&mut content, &id)) {
            Some(inner) => {
                // A result without words has an empty text, which is only needed as long as there is nothing else.
                if inner.len() == 1 && inner[0]["text"] == "" {
                    inner.clear();
                }
                inner.extend(block);
            }
            None => content.extend(block),
        }
        content.extend(caption.map(|caption| Value::Object(text_block(caption))));
    }
    Value::Object(object([("role", role.as_str().into()), ("content", Value::Array(content))]))
}

/// Where the other things that a tool returned belong: into the block of its result.
fn content_of_result<'a>(content: &'a mut [Value], id: &str) -> Option<&'a mut Vec<Value>> {
    let is_it = |block: &&mut Value| type_of(block) == "tool_result" && block["tool_use_id"] == id;
    content.iter_mut().rev().find(is_it)?.get_mut("content")?.as_array_mut()
}

fn text_block(text: String) -> Object {
    object([("type", "text".into()), ("text", text.into())])
}

/// The block of a part; `None` if Anthropic has no form for it.
fn block(mut part: Part, around: &RenderContext) -> Option<Object> {
    let hint = part.meta.remove("cache_control").filter(|hint| type_of(hint) == "ephemeral");
    let mut block = match part.kind {
        Kind::Text | Kind::Thinking if part.text.is_empty() => return None,
        Kind::Text => text_block(part.text),
        Kind::Thinking => {
            let signature = take_text(&mut part.meta, "signature").into();
            return Some(object([
                ("type", "thinking".into()),
                ("thinking", part.text.into()),
                ("signature", signature),
            ]));
        }
        Kind::RedactedThinking => {
            let data = take_filled(&mut part.meta, "data")?;
            return Some(object([("type", "redacted_thinking".into()), ("data", data.into())]));
        }
        Kind::ToolCall => tool_use(part.meta, around)?,
        Kind::ToolResult => result_block(part)?,
        Kind::Data => return None,
        Kind::Image | Kind::Audio | Kind::Video | Kind::File => media_block(Media::of(part, around))?,
    };
    if let Some(hint) = hint {
        block.insert("cache_control".into(), hint);
    }
    Some(block)
}

fn tool_use(mut meta: Object, around: &RenderContext) -> Option<Object> {
    let id = take_filled(&mut meta, "id")?;
    let name = take_filled(&mut meta, "name")?;
    let input = Value::Object(arguments(&mut meta, &around.values));
    Some(object([("type", "tool_use".into()), ("id", id.into()), ("name", name.into()), ("input", input)]))
}

/// A result that names no call cannot be said as one, but its text can.
fn result_block(mut part: Part) -> Option<Object> {
    let Some(id) = take_filled(&mut part.meta, "tool_call_id") else {
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

/// A source that only Anthropic has: a file that it stores, or blocks.
fn own_source(media: &mut Media) -> Option<Object> {
    let (kind, key) = match text_at(&media.meta, "type") {
        "file" if media.data.is_none() && media.url.is_none() => ("file", "file_id"),
        "content" if media.words.is_some() => ("content", "content"),
        _ => return None,
    };
    Some(object([("type", kind.into()), (key, media.meta.remove(key)?)]))
}

fn media_block(mut media: Media) -> Option<Object> {
    let is_image = media.kind == Kind::Image;
    let title = media.filename.clone();
    let readable = if is_image {
        IMAGES.contains(&media.mime.as_str())
    } else {
        media.kind == Kind::File && media.mime == "application/pdf"
    };
    let maybe = readable || (media.mime.is_empty() && matches!(media.kind, Kind::Image | Kind::File));
    let source = if let Some(own) = own_source(&mut media) {
        own
    } else if let Some(data) = media.data.take_if(|_| readable) {
        held(media.mime, data)
    } else if let Some(url) = if maybe { media.public_link() } else { None } {
        object([("type", "url".into()), ("url", url.into())])
    } else if let Some(text) = media.text() {
        object([("type", "text".into()), ("media_type", "text/plain".into()), ("data", text.into())])
    } else {
        return media.named().map(text_block);
    };
    let mut block =
        object([("type", if is_image { "image" } else { "document" }.into()), ("source", Value::Object(source))]);
    if !is_image && !title.is_empty() {
        block.insert("title".into(), title.into());
    }
    Some(block)
}
