//! Builds messages from parts.

use serde_json::Value;

use super::super::changes::AttachmentMatcher;
use super::super::function_name::convert_function_name;
use super::super::media::{self, Media};
use super::super::opaque::{call_text, opaque_text};
use super::super::value::{
    NO_CONTENT, Object, object, str_at, stringify, take_as_string, take_call_text_fields, take_caption,
    take_nonempty_string, take_opaque_block, type_of,
};
use super::super::{Format, RenderContext};
use super::{BLOCK_FIELD_KEY, THOUGHT_SIGNATURE_KEY, TOOL_CALLS};
use crate::conversation::parts::{Part, PartKind, Role};

/// The converted parts of one message.
struct MessageBuilder<'a> {
    openai_role: &'a str,
    /// Calls and results without an id are deprecated, so only messages that came from `OpenAI` may have them.
    allows_missing_ids: bool,
    ctx: &'a RenderContext,
    /// One message for each tool result.
    result_messages: Vec<ResultMessage>,
    /// Matches the parts that belong to the last tool result.
    attachments: AttachmentMatcher,
    /// Content blocks of the message that contains the other parts.
    content: Vec<Value>,
    thoughts: Vec<String>,
    tool_calls: Vec<Value>,
    function_call: Option<Value>,
    /// Google's signature of the last text.
    text_signature: Option<Value>,
}

/// A message with the role `tool` or `function`.
struct ResultMessage {
    /// The message without its content.
    fields: Object,
    /// Content blocks, at least one.
    content: Vec<Value>,
}

/// Builds messages from parts: one for each tool result, and one for the other parts, which is omitted if there are only results.
/// A message without content gets the text [`NO_CONTENT`], because `OpenAI` rejects it.
///
/// The results come before that message, except for the results of its own calls.
pub(in super::super) fn from_parts(role: Role, meta: &Object, parts: Vec<Part>, ctx: &RenderContext) -> Vec<Value> {
    let openai_role = match str_at(meta, "original_role") {
        original @ ("system" | "developer") => original,
        _ => role.as_str(),
    };
    let allows_missing_ids = str_at(meta, "source_format") == Format::OpenAi.as_str();
    let mut builder = MessageBuilder::new(openai_role, allows_missing_ids, ctx);
    for part in parts {
        builder.add(part);
    }
    let results = std::mem::take(&mut builder.result_messages);
    let (own, other): (Vec<_>, Vec<_>) = results.into_iter().partition(|result| builder.has_call_of(result));
    let mut messages: Vec<_> = other.into_iter().map(ResultMessage::build).collect();
    if messages.is_empty() || !builder.is_empty() {
        let mut message = builder.build();
        let name = str_at(meta, "name");
        if !name.is_empty() {
            message.insert("name".into(), name.into());
        }
        messages.push(Value::Object(message));
    }
    messages.extend(own.into_iter().map(ResultMessage::build));
    messages
}

/// Builds the content of a message that has no tool calls. A single text becomes a string. The texts of a system or developer
/// message are joined into one string.
fn build_content(openai_role: &str, mut blocks: Vec<Value>) -> Value {
    let all_texts = blocks.iter().all(|block| type_of(block) == "text");
    match (openai_role, blocks.len()) {
        (_, 0) => NO_CONTENT.into(),
        ("system" | "developer", _) if all_texts => {
            blocks.iter().filter_map(|block| block["text"].as_str()).collect::<String>().into()
        }
        (_, 1) if all_texts => blocks[0]["text"].take(),
        _ => Value::Array(blocks),
    }
}

impl ResultMessage {
    /// Builds the message. A single text becomes a string. The content of a function message must be a string.
    fn build(self) -> Value {
        let Self { mut fields, mut content } = self;
        let is_text = |block: &Value| type_of(block) == "text";
        if content.len() > 1 {
            content.retain(|block| !is_text(block) || block["text"] != "");
        }
        let content = if str_at(&fields, "role") == "function" {
            let texts: Vec<_> = content.iter().filter_map(|block| block["text"].as_str()).collect();
            texts.join("\n").into()
        } else if content.len() == 1 && content.iter().all(is_text) {
            content[0]["text"].take()
        } else {
            Value::Array(content)
        };
        fields.insert("content".into(), content);
        Value::Object(fields)
    }
}

impl<'a> MessageBuilder<'a> {
    fn new(openai_role: &'a str, allows_missing_ids: bool, ctx: &'a RenderContext) -> Self {
        Self {
            openai_role,
            allows_missing_ids,
            ctx,
            result_messages: Vec::new(),
            attachments: AttachmentMatcher::default(),
            content: Vec::new(),
            thoughts: Vec::new(),
            tool_calls: Vec::new(),
            function_call: None,
            text_signature: None,
        }
    }

    /// Returns `true` if there are no parts but tool results and thoughts that are left out.
    fn is_empty(&self) -> bool {
        self.content.is_empty()
            && self.tool_calls.is_empty()
            && self.function_call.is_none()
            && self.thoughts.is_empty()
    }

    /// Returns `true` if the message contains the call of a tool result.
    fn has_call_of(&self, result: &ResultMessage) -> bool {
        match str_at(&result.fields, "tool_call_id") {
            "" => self.function_call.is_some(),
            id => self.tool_calls.iter().any(|call| call["id"] == id),
        }
    }

    /// Builds the message that contains all parts but the tool results. The content of an assistant message with only tool calls
    /// is `null`, because clients such as `LangChain` require the key.
    fn build(self) -> Object {
        let has_calls = !self.tool_calls.is_empty() || self.function_call.is_some();
        let content = if self.content.is_empty() && has_calls {
            Value::Null
        } else {
            build_content(self.openai_role, self.content)
        };
        let mut message = object([("role", self.openai_role.into()), ("content", content)]);
        if !self.thoughts.is_empty() {
            message.insert("reasoning_content".into(), self.thoughts.join("\n").into());
        }
        if !self.tool_calls.is_empty() {
            message.insert(TOOL_CALLS.into(), Value::Array(self.tool_calls));
        }
        message.extend(self.function_call.map(|call| ("function_call".to_owned(), call)));
        message.extend(self.text_signature.map(extra_content));
        message
    }

    fn add(&mut self, mut part: Part) {
        let is_attachment = part.kind != PartKind::ToolResult && self.attachments.matches_next(part.kind, &part.meta);
        // Only user messages can contain media, so the media of a result follow its message.
        let is_in_result = is_attachment && matches!(part.kind, PartKind::Text | PartKind::Data);
        let caption = take_caption(&mut part);
        if let Some(block) = take_opaque_block(&mut part, Format::OpenAi) {
            let is_call = str_at(&part.meta, BLOCK_FIELD_KEY) == TOOL_CALLS;
            let list = if is_call { &mut self.tool_calls } else { self.content_of(is_in_result) };
            list.push(block);
        } else if is_in_result {
            let text = opaque_text(&part).unwrap_or(part.text);
            self.content_of(true).extend(Some(text).filter(|text| !text.is_empty()).map(text_block));
        } else {
            self.convert_and_add(part);
        }
        self.content_of(is_in_result).extend(caption.map(text_block));
    }

    /// Returns the content of the last tool result for an attachment, or else the content of the message.
    fn content_of(&mut self, is_attachment: bool) -> &mut Vec<Value> {
        match self.result_messages.last_mut().filter(|_| is_attachment) {
            Some(result) => &mut result.content,
            None => &mut self.content,
        }
    }

    /// Adds a part that is not opaque, in the format of `OpenAI`.
    fn convert_and_add(&mut self, mut part: Part) {
        let is_assistant = self.openai_role == "assistant";
        match part.kind {
            PartKind::Text => self.add_text(part),
            PartKind::Thinking if is_assistant && self.ctx.options.with_reasoning_content && !part.text.is_empty() => {
                self.thoughts.push(part.text);
            }
            PartKind::ToolCall if is_assistant => self.add_call(part.meta),
            PartKind::ToolCall => {
                let (name, arguments) = take_call_text_fields(&mut part.meta);
                self.content.push(text_block(call_text(&name, &arguments)));
            }
            PartKind::ToolResult => self.add_result(part),
            PartKind::Image | PartKind::Audio | PartKind::Video | PartKind::File => {
                let has_asset = part.asset.is_some();
                let media = Media::from_part(part, self.ctx);
                self.content.extend(media_block(media, self.openai_role == "user", has_asset));
            }
            PartKind::Data => self.content.extend(opaque_text(&part).map(text_block)),
            PartKind::Thinking | PartKind::RedactedThinking => {}
        }
    }

    /// Adds a text that is not empty, and remembers its signature.
    fn add_text(&mut self, mut part: Part) {
        if let Some(signature) = take_nonempty_string(&mut part.meta, THOUGHT_SIGNATURE_KEY) {
            self.text_signature = Some(signature.into());
        }
        if part.text.is_empty() {
            return;
        }
        let is_refusal = part.meta.get("is_refusal") == Some(&Value::Bool(true));
        self.content.push(if self.openai_role == "assistant" && is_refusal {
            Value::Object(object([("type", "refusal".into()), ("refusal", part.text.into())]))
        } else {
            text_block(part.text)
        });
    }

    /// Adds a message for a tool result. A result that does not refer to a call becomes a text.
    fn add_result(&mut self, mut part: Part) {
        let attachments = AttachmentMatcher::for_result(&part.meta);
        self.attachments = AttachmentMatcher::default();
        let name = take_nonempty_string(&mut part.meta, "function_name").filter(|_| self.allows_missing_ids);
        let id = take_as_string(&mut part.meta, "tool_call_id");
        let fields = match name.filter(|_| id.is_empty()) {
            Some(name) => {
                let name = convert_function_name(Format::OpenAi, &name).into();
                object([("role", "function".into()), ("name", name)])
            }
            None if !id.is_empty() => object([("role", "tool".into()), ("tool_call_id", id.into())]),
            None => {
                self.content.extend(Some(part.text).filter(|text| !text.is_empty()).map(text_block));
                return;
            }
        };
        self.attachments = attachments;
        self.result_messages.push(ResultMessage { fields, content: vec![text_block(part.text)] });
    }

    fn add_call(&mut self, mut meta: Object) {
        let id = take_nonempty_string(&mut meta, "id");
        let name = take_nonempty_string(&mut meta, "name").or_else(|| id.is_some().then(|| "unknown".to_owned()));
        let Some(name) = name else { return };
        let is_custom = str_at(&meta, "type") == "custom";
        let arguments = meta.remove("arguments").map(stringify).unwrap_or_default();
        // The parts of Gemini and Anthropic calls without arguments have the text `null` as arguments.
        let is_missing = !is_custom && matches!(arguments.trim(), "" | "null");
        let arguments = if is_missing { "{}".into() } else { arguments };
        let (kind, input_key) = if is_custom { ("custom", "input") } else { ("function", "arguments") };
        let name = convert_function_name(Format::OpenAi, &name).into();
        let inner = Value::Object(object([("name", name), (input_key, arguments.into())]));
        match id {
            Some(id) => {
                let mut call = object([("id", id.into()), ("type", kind.into()), (kind, inner)]);
                let signature = take_nonempty_string(&mut meta, THOUGHT_SIGNATURE_KEY);
                call.extend(signature.map(|signature| extra_content(signature.into())));
                self.tool_calls.push(Value::Object(call));
            }
            None if self.allows_missing_ids && !is_custom => self.function_call = Some(inner),
            None => {}
        }
    }
}

/// Returns the field in which Google's API expects a signature.
fn extra_content(signature: Value) -> (String, Value) {
    let google = object([(THOUGHT_SIGNATURE_KEY, signature)]);
    ("extra_content".into(), Value::Object(object([("google", Value::Object(google))])))
}

fn text_block(text: String) -> Value {
    Value::Object(object([("type", "text".into()), ("text", text.into())]))
}

/// Converts media to a block. Only user messages can contain media. In other messages, and for types that `OpenAI` does not
/// support, the block is a text. Returns `None` if there is nothing to describe.
fn media_block(mut media: Media, is_user: bool, has_asset: bool) -> Option<Value> {
    if !is_user {
        return media.into_text().map(text_block);
    }
    let (kind, inner) = match media.kind {
        PartKind::Image => ("image_url", image_object(&mut media)),
        PartKind::Audio => ("input_audio", audio_object(&mut media)),
        PartKind::File => ("file", file_object(&mut media, has_asset)),
        _ => ("", None),
    };
    match inner {
        Some(inner) => Some(Value::Object(object([("type", kind.into()), (kind, Value::Object(inner))]))),
        None => media.into_text().map(text_block),
    }
}

/// The MIME types of images that `OpenAI` accepts.
const IMAGE_TYPES: [&str; 4] = ["image/png", "image/jpeg", "image/webp", "image/gif"];

fn image_object(media: &mut Media) -> Option<Object> {
    let url = match media.url.take_if(|url| !url.starts_with("gs://")) {
        Some(url) => url,
        None if IMAGE_TYPES.contains(&media.mime.as_str()) => media::data_url(&media.mime, media.data.as_ref()?),
        None => return None,
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
