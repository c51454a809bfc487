//! Messages from parts.

use serde_json::Value;

use super::super::media::{self, Media};
use super::super::value::{
    Object, object, take_block, take_caption, take_filled, take_text, text_at, text_of, type_of,
};
use super::super::{Format, RenderContext};
use super::{PLACE, TOOL_CALLS};
use crate::conversation::parts::{Kind, Part, Role};

/// What the parts of one message become.
#[derive(Default)]
struct Written {
    /// One message for each tool result.
    results: Vec<Value>,
    /// Items of the content.
    items: Vec<Value>,
    tool_calls: Vec<Value>,
    function_call: Option<Value>,
}

/// The messages of these parts: one for each tool result, and one for what else there is. The results of calls come
/// before what a user says, and after what an assistant says.
pub(in super::super) fn write(role: Role, meta: &Object, parts: Vec<Part>, around: &RenderContext) -> Vec<Value> {
    let speaker = match text_at(meta, "original_role") {
        original @ ("system" | "developer") => original,
        _ => role.as_str(),
    };
    // Calls and results without ids are only said where they came from.
    let legacy = text_at(meta, "source_format") == Format::OpenAi.as_str();
    let mut written = Written::default();
    for part in parts {
        written.add(part, speaker, legacy, around);
    }
    let Written { mut results, items, tool_calls, function_call } = written;
    let nothing = items.is_empty() && tool_calls.is_empty() && function_call.is_none();
    if nothing && !results.is_empty() {
        return results;
    }
    let mut message = object([("role", speaker.into())]);
    if let Some(content) = content_of(speaker, items) {
        message.insert("content".into(), content);
    }
    if !tool_calls.is_empty() {
        message.insert(TOOL_CALLS.into(), Value::Array(tool_calls));
    }
    message.extend(function_call.map(|call| ("function_call".to_owned(), call)));
    let name = text_at(meta, "name");
    if !name.is_empty() {
        message.insert("name".into(), name.into());
    }
    let place = if role == Role::Assistant { 0 } else { results.len() };
    results.insert(place, Value::Object(message));
    results
}

/// The content: a lone text as a string, and of a system message all texts as one. An assistant may have none.
fn content_of(speaker: &str, mut items: Vec<Value>) -> Option<Value> {
    let all_texts = items.iter().all(|item| type_of(item) == "text");
    match (speaker, items.len()) {
        ("assistant", 0) => None,
        ("system" | "developer", _) if all_texts => {
            Some(items.iter().filter_map(|item| item["text"].as_str()).collect::<String>().into())
        }
        (_, 1) if all_texts => Some(items[0]["text"].take()),
        _ => Some(Value::Array(items)),
    }
}

impl Written {
    fn add(&mut self, mut part: Part, speaker: &str, legacy: bool, around: &RenderContext) {
        let caption = take_caption(&mut part);
        if let Some(block) = take_block(&mut part, Format::OpenAi) {
            let list = if text_at(&part.meta, PLACE) == TOOL_CALLS { &mut self.tool_calls } else { &mut self.items };
            list.push(block);
        } else {
            self.add_known(part, speaker, legacy, around);
        }
        self.items.extend(caption.map(text_item));
    }

    fn add_known(&mut self, mut part: Part, speaker: &str, legacy: bool, around: &RenderContext) {
        let assistant = speaker == "assistant";
        match part.kind {
            Kind::Text if assistant && part.text.is_empty() => {}
            Kind::Text if assistant && part.meta.get("is_refusal") == Some(&Value::Bool(true)) => {
                let item = object([("type", "refusal".into()), ("refusal", part.text.into())]);
                self.items.push(Value::Object(item));
            }
            Kind::Text => self.items.push(text_item(part.text)),
            Kind::Thinking if assistant && !part.text.is_empty() => self.items.push(text_item(part.text)),
            Kind::ToolCall if assistant => self.add_call(part.meta, legacy),
            Kind::ToolResult => {
                let name = take_filled(&mut part.meta, "function_name").filter(|_| legacy);
                let id = take_text(&mut part.meta, "tool_call_id");
                let message = match name.filter(|_| id.is_empty()) {
                    Some(name) => [("role", "function".into()), ("name", name.into()), ("content", part.text.into())],
                    None => [("role", "tool".into()), ("tool_call_id", id.into()), ("content", part.text.into())],
                };
                self.results.push(Value::Object(object(message)));
            }
            Kind::Image | Kind::Audio | Kind::Video | Kind::File => {
                let stored = part.asset.is_some();
                let media = Media::of(part, around);
                self.items.extend(media_item(media, speaker == "user", stored));
            }
            Kind::Thinking | Kind::RedactedThinking | Kind::ToolCall | Kind::Data => {}
        }
    }

    fn add_call(&mut self, mut meta: Object, legacy: bool) {
        let Some(name) = take_filled(&mut meta, "name") else { return };
        let arguments = match meta.remove("arguments") {
            None | Some(Value::Null) => "{}".into(),
            // What Gemini's calls without arguments are stored as.
            Some(Value::String(text)) if text == "null" => "{}".into(),
            Some(arguments) => text_of(arguments),
        };
        let custom = text_at(&meta, "type") == "custom";
        let (kind, input) = if custom { ("custom", "input") } else { ("function", "arguments") };
        let called = Value::Object(object([("name", name.into()), (input, arguments.into())]));
        match take_filled(&mut meta, "id") {
            Some(id) => {
                let call = object([("id", id.into()), ("type", kind.into()), (kind, called)]);
                self.tool_calls.push(Value::Object(call));
            }
            None if legacy && !custom => self.function_call = Some(called),
            None => {}
        }
    }
}

fn text_item(text: String) -> Value {
    Value::Object(object([("type", "text".into()), ("text", text.into())]))
}

/// Media of a user as such; elsewhere, and if `OpenAI` has no form for them, the words that name them.
fn media_item(mut media: Media, of_user: bool, stored: bool) -> Option<Value> {
    if !of_user {
        return media.named().map(text_item);
    }
    let (kind, inner) = match media.kind {
        Kind::Image => ("image_url", image(&mut media)),
        Kind::Audio => ("input_audio", audio(&mut media)),
        Kind::File => ("file", file(&mut media, stored)),
        _ => ("", None),
    };
    match inner {
        Some(inner) => Some(Value::Object(object([("type", kind.into()), (kind, Value::Object(inner))]))),
        None => media.text().or_else(|| media.named()).map(text_item),
    }
}

fn image(media: &mut Media) -> Option<Object> {
    let url = match media.url.take_if(|url| !url.starts_with("gs://")) {
        Some(url) => url,
        None => media::data_url(&media.mime, media.data.as_ref()?),
    };
    let mut image = object([("url", url.into())]);
    image.extend(take_filled(&mut media.meta, "detail").map(|detail| ("detail".to_owned(), detail.into())));
    Some(image)
}

fn audio(media: &mut Media) -> Option<Object> {
    let format = match media.mime.as_str() {
        "audio/wav" | "audio/x-wav" | "audio/wave" | "audio/vnd.wave" => "wav",
        "audio/mp3" | "audio/mpeg" => "mp3",
        _ => return None,
    };
    Some(object([("data", media.data.take()?.into()), ("format", format.into())]))
}

/// A file that `OpenAI` stores is named by its id there; ids of others mean nothing here.
fn file(media: &mut Media, stored: bool) -> Option<Object> {
    let mut file = Object::new();
    if !stored && text_at(&media.meta, "type").is_empty() {
        file.extend(take_filled(&mut media.meta, "file_id").map(|id| ("file_id".to_owned(), id.into())));
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
