//! Builds messages from parts.

use serde_json::Value;

use super::super::media::{self, Media};
use super::super::value::{
    Object, object, str_at, stringify, take_as_string, take_caption, take_nonempty_string, take_opaque_block, type_of,
};
use super::super::{Format, RenderContext};
use super::{BLOCK_FIELD_KEY, TOOL_CALLS};
use crate::conversation::parts::{Part, PartKind, Role};

/// The converted parts of one message.
#[derive(Default)]
struct MessageBuilder {
    /// One message for each tool result.
    result_messages: Vec<Value>,
    /// Content blocks of the message that contains the other parts.
    content: Vec<Value>,
    tool_calls: Vec<Value>,
    function_call: Option<Value>,
}

/// Builds messages from parts: one for each tool result, and one for the other parts, which is omitted if there are only results.
/// The results come before the message of a user and after the message of an assistant.
pub(in super::super) fn from_parts(role: Role, meta: &Object, parts: Vec<Part>, ctx: &RenderContext) -> Vec<Value> {
    let openai_role = match str_at(meta, "original_role") {
        original @ ("system" | "developer") => original,
        _ => role.as_str(),
    };
    // Calls and results without an id are deprecated, so only messages that came from OpenAI may have them.
    let allows_missing_ids = str_at(meta, "source_format") == Format::OpenAi.as_str();
    let mut builder = MessageBuilder::default();
    for part in parts {
        builder.add(part, openai_role, allows_missing_ids, ctx);
    }
    let MessageBuilder { result_messages: mut messages, content, tool_calls, function_call } = builder;
    let only_results = content.is_empty() && tool_calls.is_empty() && function_call.is_none();
    if only_results && !messages.is_empty() {
        return messages;
    }
    let mut message = object([("role", openai_role.into())]);
    if let Some(content) = build_content(openai_role, content) {
        message.insert("content".into(), content);
    }
    if !tool_calls.is_empty() {
        message.insert(TOOL_CALLS.into(), Value::Array(tool_calls));
    }
    message.extend(function_call.map(|call| ("function_call".to_owned(), call)));
    let name = str_at(meta, "name");
    if !name.is_empty() {
        message.insert("name".into(), name.into());
    }
    let index = if role == Role::Assistant { 0 } else { messages.len() };
    messages.insert(index, Value::Object(message));
    messages
}

/// Builds the content of a message. A single text becomes a string. The texts of a system or developer message are joined into
/// one string. Returns `None` for an assistant message without blocks.
fn build_content(openai_role: &str, mut blocks: Vec<Value>) -> Option<Value> {
    let all_texts = blocks.iter().all(|block| type_of(block) == "text");
    match (openai_role, blocks.len()) {
        ("assistant", 0) => None,
        ("system" | "developer", _) if all_texts => {
            Some(blocks.iter().filter_map(|block| block["text"].as_str()).collect::<String>().into())
        }
        (_, 1) if all_texts => Some(blocks[0]["text"].take()),
        _ => Some(Value::Array(blocks)),
    }
}

impl MessageBuilder {
    fn add(&mut self, mut part: Part, openai_role: &str, allows_missing_ids: bool, ctx: &RenderContext) {
        let caption = take_caption(&mut part);
        if let Some(block) = take_opaque_block(&mut part, Format::OpenAi) {
            let is_call = str_at(&part.meta, BLOCK_FIELD_KEY) == TOOL_CALLS;
            let list = if is_call { &mut self.tool_calls } else { &mut self.content };
            list.push(block);
        } else {
            self.convert_and_add(part, openai_role, allows_missing_ids, ctx);
        }
        self.content.extend(caption.map(text_block));
    }

    /// Adds a part that is not opaque, in the format of `OpenAI`.
    fn convert_and_add(&mut self, mut part: Part, openai_role: &str, allows_missing_ids: bool, ctx: &RenderContext) {
        let is_assistant = openai_role == "assistant";
        match part.kind {
            PartKind::Text if is_assistant && part.text.is_empty() => {}
            PartKind::Text if is_assistant && part.meta.get("is_refusal") == Some(&Value::Bool(true)) => {
                let block = object([("type", "refusal".into()), ("refusal", part.text.into())]);
                self.content.push(Value::Object(block));
            }
            PartKind::Text => self.content.push(text_block(part.text)),
            PartKind::Thinking if is_assistant && !part.text.is_empty() => self.content.push(text_block(part.text)),
            PartKind::ToolCall if is_assistant => self.add_call(part.meta, allows_missing_ids),
            PartKind::ToolResult => {
                let name = take_nonempty_string(&mut part.meta, "function_name").filter(|_| allows_missing_ids);
                let id = take_as_string(&mut part.meta, "tool_call_id");
                let message = match name.filter(|_| id.is_empty()) {
                    Some(name) => [("role", "function".into()), ("name", name.into()), ("content", part.text.into())],
                    None => [("role", "tool".into()), ("tool_call_id", id.into()), ("content", part.text.into())],
                };
                self.result_messages.push(Value::Object(object(message)));
            }
            PartKind::Image | PartKind::Audio | PartKind::Video | PartKind::File => {
                let has_asset = part.asset.is_some();
                let media = Media::from_part(part, ctx);
                self.content.extend(media_block(media, openai_role == "user", has_asset));
            }
            PartKind::Thinking | PartKind::RedactedThinking | PartKind::ToolCall | PartKind::Data => {}
        }
    }

    fn add_call(&mut self, mut meta: Object, allows_missing_ids: bool) {
        let Some(name) = take_nonempty_string(&mut meta, "name") else { return };
        let arguments = match meta.remove("arguments") {
            None | Some(Value::Null) => "{}".into(),
            // The parts of Gemini and Anthropic calls without arguments have the text `null` as arguments.
            Some(Value::String(text)) if text == "null" => "{}".into(),
            Some(arguments) => stringify(arguments),
        };
        let is_custom = str_at(&meta, "type") == "custom";
        let (kind, input_key) = if is_custom { ("custom", "input") } else { ("function", "arguments") };
        let inner = Value::Object(object([("name", name.into()), (input_key, arguments.into())]));
        match take_nonempty_string(&mut meta, "id") {
            Some(id) => {
                let call = object([("id", id.into()), ("type", kind.into()), (kind, inner)]);
                self.tool_calls.push(Value::Object(call));
            }
            None if allows_missing_ids && !is_custom => self.function_call = Some(inner),
            None => {}
        }
    }
}

fn text_block(text: String) -> Value {
    Value::Object(object([("type", "text".into()), ("text", text.into())]))
}

/// Converts media to a block. Only user messages can contain media. In other messages, and for types that `OpenAI` does not
/// support, the block is a text. Returns `None` if there is nothing to describe.
fn media_block(mut media: Media, is_user: bool, has_asset: bool) -> Option<Value> {
    if !is_user {
        return media.placeholder_text().map(text_block);
    }
    let (kind, inner) = match media.kind {
        PartKind::Image => ("image_url", image_object(&mut media)),
        PartKind::Audio => ("input_audio", audio_object(&mut media)),
        PartKind::File => ("file", file_object(&mut media, has_asset)),
        _ => ("", None),
    };
    match inner {
        Some(inner) => Some(Value::Object(object([("type", kind.into()), (kind, Value::Object(inner))]))),
        None => media.take_text().or_else(|| media.placeholder_text()).map(text_block),
    }
}

fn image_object(media: &mut Media) -> Option<Object> {
    let url = match media.url.take_if(|url| !url.starts_with("gs://")) {
        Some(url) => url,
        None => media::data_url(&media.mime, media.data.as_ref()?),
    };
    let mut image = object([("url", url.into())]);
    image.extend(take_nonempty_string(&mut media.meta, "detail").map(|detail| ("detail".to_owned(), detail.into())));
    Some(image)
}

fn audio_object(media: &mut Media) -> Option<Object> {
    let format = match media.mime.as_str() {
        "audio/wav" | "audio/x-wav" | "audio/wave" | "audio/vnd.wave" => "wav",
        "audio/mp3" | "audio/mpeg" => "mp3",
        _ => return None,
    };
    Some(object([("data", media.data.take()?.into()), ("format", format.into())]))
}

/// Builds the `file` object. A `file_id` is only valid if it names a file in `OpenAI`'s storage. A part with an asset, or with a
/// `type` in its meta, comes from another format.
fn file_object(media: &mut Media, has_asset: bool) -> Option<Object> {
    let mut file = Object::new();
    if !has_asset && str_at(&media.meta, "type").is_empty() {
        file.extend(take_nonempty_string(&mut media.meta, "file_id").map(|id| ("file_id".to_owned(), id.into())));
    }
    if media.data.is_some() && !media.mime.is_empty() {
        let data = media.data.take().unwrap_or_default();
        file.insert("file_data".into(), media::data_url(&media.mime, &data).into());
    } else if let Some(data) = media.url.take_if(|url| media::is_data_url(url)) {
        file.insert("file_data".into(), data.into());
    }
    if file.is_empty() {
        return None;
    }
    if !media.filename.is_empty() {
        file.insert("filename".into(), media.filename.as_str().into());
    }
    Some(file)
}
