//! Builds messages from parts.

use serde_json::Value;

use super::super::function_name::convert_function_name;
use super::super::media::{self, Media, base64_source, has_images};
use super::super::opaque::{call_text, opaque_text};
use super::super::value::{
    NO_CONTENT, Object, is_blank, object, str_at, take_arguments, take_call_text_fields, take_caption,
    take_nonempty_string, take_opaque_block, type_of,
};
use super::super::{Format, RenderContext};
use super::read::DOCUMENT_FIELDS;
use crate::conversation::parts::{Part, PartKind, Role};

/// The MIME types of images that Anthropic accepts.
const SUPPORTED_IMAGE_TYPES: [&str; 4] = ["image/jpeg", "image/png", "image/gif", "image/webp"];

/// Builds a message from parts. A message without content gets the text [`NO_CONTENT`], because Anthropic rejects an empty list.
pub(in super::super) fn from_parts(role: Role, meta: &Object, parts: Vec<Part>, ctx: &RenderContext) -> Value {
    let is_system = matches!(str_at(meta, "original_role"), "system" | "developer");
    let role = match role {
        Role::User if is_system && ctx.options.with_native_system => "system",
        role => role.as_str(),
    };
    let mut builder = MessageBuilder { role, ctx, results: Vec::new(), content: Vec::new() };
    for part in parts {
        builder.add(part);
    }
    Value::Object(object([("role", role.into()), ("content", Value::Array(builder.into_blocks()))]))
}

struct MessageBuilder<'a> {
    role: &'a str,
    ctx: &'a RenderContext,
    /// The tool results. Anthropic requires them before all other blocks.
    results: Vec<ToolResult>,
    content: Vec<Value>,
}

/// A `tool_result` block without its type.
struct ToolResult {
    call_id: String,
    is_error: bool,
    cache_control: Option<Value>,
    content: Vec<Value>,
}

impl MessageBuilder<'_> {
    fn add(&mut self, mut part: Part) {
        let result = match part.kind {
            PartKind::ToolCall | PartKind::ToolResult => None,
            _ => self.index_of_result(str_at(&part.meta, "tool_call_id")),
        };
        if let Some(block) = take_opaque_block(&mut part, Format::Anthropic) {
            return self.push(block, result);
        }
        let caption = take_caption(&mut part).and_then(text_block);
        let block = match part.kind {
            PartKind::ToolResult => return self.add_result(part),
            PartKind::ToolCall => self.call_block(part),
            PartKind::Data => opaque_text(&part).and_then(text_block),
            _ => self.block(part),
        };
        block.into_iter().chain(caption).for_each(|block| self.push(Value::Object(block), result));
    }

    /// Adds a block to a tool result, or to the message if `result` is `None`. A failed result can only contain texts.
    fn push(&mut self, block: Value, result: Option<usize>) {
        match result.map(|index| &mut self.results[index]) {
            Some(result) if !result.is_error || type_of(&block) == "text" => result.content.push(block),
            _ => self.content.push(block),
        }
    }

    /// Returns the index of the last result for a call, to which the attachments of the result are added.
    fn index_of_result(&self, call_id: &str) -> Option<usize> {
        self.results.iter().rposition(|result| result.call_id == call_id)
    }

    /// Adds a tool result. A result without the id of its call, or outside a user message, becomes a text.
    fn add_result(&mut self, mut part: Part) {
        let cache_control = take_cache_control(&mut part.meta);
        let text = text_block(part.text).map(Value::Object);
        match take_nonempty_string(&mut part.meta, "tool_call_id").filter(|_| self.role == "user") {
            Some(call_id) => {
                let is_error = part.meta.get("is_error") == Some(&Value::Bool(true));
                self.results.push(ToolResult { call_id, is_error, cache_control, content: text.into_iter().collect() });
            }
            None => self.content.extend(text),
        }
    }

    /// Converts a tool call. A call without an id or a name, or outside an assistant message, becomes a text.
    fn call_block(&self, mut part: Part) -> Option<Object> {
        let has_fields = ["id", "name"].iter().all(|key| !str_at(&part.meta, key).is_empty());
        if self.role != "assistant" || !has_fields {
            let (name, arguments) = take_call_text_fields(&mut part.meta);
            return text_block(call_text(&name, &arguments));
        }
        let hint = take_cache_control(&mut part.meta);
        let name = convert_function_name(Format::Anthropic, str_at(&part.meta, "name")).into();
        let mut block = object([("type", "tool_use".into()), ("name", name)]);
        block.extend(part.meta.remove_entry("id"));
        let input = take_arguments(&mut part.meta, &self.ctx.value_budget);
        block.insert("input".into(), Value::Object(input));
        block.extend(hint.map(|hint| ("cache_control".to_owned(), hint)));
        Some(block)
    }

    /// Converts a part that is neither opaque nor a tool call or result. Returns `None` if Anthropic cannot represent it.
    fn block(&self, mut part: Part) -> Option<Object> {
        let hint = take_cache_control(&mut part.meta);
        let mut block = match part.kind {
            PartKind::Text => text_block(part.text)?,
            // Only the thoughts of an assistant are valid, and they cannot have a cache hint.
            PartKind::Thinking => {
                let signature =
                    take_nonempty_string(&mut part.meta, "signature").filter(|_| self.role == "assistant")?;
                let thinking = part.text.into();
                return Some(object([
                    ("type", "thinking".into()),
                    ("thinking", thinking),
                    ("signature", signature.into()),
                ]));
            }
            PartKind::RedactedThinking => {
                let data = take_nonempty_string(&mut part.meta, "data").filter(|_| self.role == "assistant")?;
                return Some(object([("type", "redacted_thinking".into()), ("data", data.into())]));
            }
            PartKind::Image | PartKind::Audio | PartKind::Video | PartKind::File => {
                let media = Media::from_part(part, self.ctx);
                // Only the messages of a user can contain media.
                if self.role == "user" { media_block(media)? } else { media.into_text().and_then(text_block)? }
            }
            PartKind::ToolCall | PartKind::ToolResult | PartKind::Data => return None,
        };
        block.extend(hint.map(|hint| ("cache_control".to_owned(), hint)));
        Some(block)
    }

    fn into_blocks(self) -> Vec<Value> {
        let results = self.results.into_iter().map(|result| Value::Object(result.into_block()));
        let mut blocks: Vec<_> = results.chain(self.content).collect();
        if blocks.is_empty() {
            blocks.extend(text_block(NO_CONTENT.to_owned()).map(Value::Object));
        }
        blocks
    }
}

impl ToolResult {
    /// Builds the block. The content of a successful result may be missing, but a failed one must have a text.
    fn into_block(mut self) -> Object {
        if self.is_error && self.content.is_empty() {
            self.content.extend(text_block(NO_CONTENT.to_owned()).map(Value::Object));
        }
        let mut block = object([
            ("type", "tool_result".into()),
            ("tool_use_id", self.call_id.into()),
            ("is_error", self.is_error.into()),
        ]);
        if !self.content.is_empty() {
            block.insert("content".into(), Value::Array(self.content));
        }
        block.extend(self.cache_control.map(|hint| ("cache_control".to_owned(), hint)));
        block
    }
}

/// Builds a text block. Returns `None` for a text without visible characters, which Anthropic rejects.
fn text_block(text: String) -> Option<Object> {
    (!is_blank(&text)).then(|| object([("type", "text".into()), ("text", text.into())]))
}

fn take_cache_control(meta: &mut Object) -> Option<Value> {
    meta.remove("cache_control").filter(|hint| type_of(hint) == "ephemeral")
}

/// Returns the source of a file in Anthropic's storage, or of a document that consists of content blocks. Returns `None` if the
/// media has another source, which [`media_block`] builds.
fn native_source(media: &mut Media) -> Option<Object> {
    let (kind, key) = match str_at(&media.meta, "type") {
        "file" if media.data.is_none() && media.url.is_none() => ("file", "file_id"),
        "content" if media.text.is_some() || has_images(media.meta.get("content")) => ("content", "content"),
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
    } else if let Some(data) = media.data.take_if(|_| is_supported).and_then(media::to_standard_base64) {
        base64_source(media.mime, data)
    } else if may_be_supported && let Some(url) = media.take_public_url() {
        object([("type", "url".into()), ("url", url.into())])
    } else if let Some(text) = media.take_text().filter(|text| !is_blank(text)) {
        object([("type", "text".into()), ("media_type", "text/plain".into()), ("data", text.into())])
    } else {
        return media.into_text().and_then(text_block);
    };
    let mut block =
        object([("type", if is_image { "image" } else { "document" }.into()), ("source", Value::Object(source))]);
    if !is_image {
        let fields = DOCUMENT_FIELDS.into_iter().filter_map(|key| media.meta.remove_entry(key));
        block.extend(fields.filter(|(key, value)| is_document_field(key, value)));
        if !title.is_empty() {
            block.entry("title").or_insert_with(|| title.into());
        }
    }
    Some(block)
}

/// Returns `true` if a field of a document, which may come from a client's meta, has the type that Anthropic requires.
fn is_document_field(key: &str, value: &Value) -> bool {
    match key {
        "citations" => value.get("enabled").is_some_and(Value::is_boolean),
        _ => value.as_str().is_some_and(|text| !text.is_empty()),
    }
}
