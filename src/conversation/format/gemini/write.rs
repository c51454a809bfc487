//! Builds messages from parts.

use serde_json::Value;

use super::super::function_name::convert_function_name;
use super::super::media::{self, Media};
use super::super::opaque::{call_text, opaque_text};
use super::super::value::{
    NO_CONTENT, Object, is_lone_result, object, str_at, take_arguments, take_call_text_fields, take_caption,
    take_nonempty_string, take_opaque_block,
};
use super::super::{Format, RenderContext};
use super::THOUGHT_SIGNATURE_KEY;
use super::normalize::normalize_part;
use crate::conversation::parts::{Part, PartKind, Role};
use crate::json::ValueBudget;

/// Builds a message from parts. A message without content gets the text [`NO_CONTENT`], because Gemini rejects an empty list.
pub(in super::super) fn from_parts(role: Role, meta: &Object, parts: Vec<Part>, ctx: &RenderContext) -> Value {
    let mut builder = MessageBuilder {
        role,
        // Only some models accept media inside a function response, so media of other formats are placed next to it.
        is_from_gemini: str_at(meta, "source_format") == Format::Gemini.as_str(),
        ctx,
        results: Vec::new(),
        parts: Vec::new(),
    };
    for part in parts {
        builder.add(part);
    }
    let role = match role {
        Role::User => "user",
        Role::Assistant => "model",
    };
    Value::Object(object([("role", role.into()), ("parts", Value::Array(builder.into_parts()))]))
}

struct MessageBuilder<'a> {
    role: Role,
    is_from_gemini: bool,
    ctx: &'a RenderContext,
    /// The function responses, which precede all other parts.
    results: Vec<FunctionResult>,
    parts: Vec<Value>,
}

/// The converted parts of a tool result.
struct FunctionResult {
    name: String,
    call_id: String,
    is_error: bool,
    /// `true` if further results of the same call follow.
    will_continue: bool,
    texts: Vec<String>,
    /// Parts with media that belong to the response.
    media: Vec<Value>,
}

impl MessageBuilder<'_> {
    fn add(&mut self, mut part: Part) {
        if let Some(block) = take_opaque_block(&mut part, Format::Gemini).and_then(valid_block) {
            return self.parts.push(block);
        }
        let result = match part.kind {
            PartKind::ToolCall | PartKind::ToolResult => None,
            _ => self.index_of_result(str_at(&part.meta, "tool_call_id")),
        };
        let caption = take_caption(&mut part).map(text_part);
        let signature = self.take_signature(&mut part.meta, THOUGHT_SIGNATURE_KEY);
        let converted = match part.kind {
            PartKind::Text => (!part.text.is_empty() || signature.is_some()).then(|| text_part(part.text)),
            PartKind::Thinking => self.thought(part),
            PartKind::ToolCall => Some(self.call(part.meta)),
            PartKind::ToolResult => return self.add_result(part),
            PartKind::Image | PartKind::Audio | PartKind::Video | PartKind::File => {
                media_part(Media::from_part(part, self.ctx), self.is_from_gemini)
            }
            PartKind::Data => opaque_text(&part).map(text_part),
            PartKind::RedactedThinking => None,
        };
        let mut converted: Vec<_> = converted.into_iter().chain(caption).collect();
        if let Some(first) = converted.first_mut() {
            first.extend(signature.map(|signature| ("thoughtSignature".to_owned(), signature.into())));
        }
        for part in converted {
            self.push(part, result);
        }
    }

    /// Adds a part to a function response, or to the message if `result` is `None` or the response cannot contain the part.
    fn push(&mut self, mut part: Object, result: Option<usize>) {
        let Some(result) = result.map(|index| &mut self.results[index]) else {
            return self.parts.push(Value::Object(part));
        };
        if let Some(text) = take_nonempty_string(&mut part, "text") {
            result.texts.push(text);
        } else {
            let list = if self.is_from_gemini { &mut result.media } else { &mut self.parts };
            list.push(Value::Object(part));
        }
    }

    /// Returns the index of the last result for a call, to which the attachments of the result are added.
    fn index_of_result(&self, call_id: &str) -> Option<usize> {
        self.results.iter().rposition(|result| result.call_id == call_id)
    }

    /// Takes a signature of Gemini from the meta of a part. Returns `None` outside a model's message, and for a text that is not
    /// base64, which Gemini cannot have made.
    fn take_signature(&self, meta: &mut Object, key: &str) -> Option<String> {
        take_nonempty_string(meta, key).filter(|_| self.role == Role::Assistant).and_then(media::to_standard_base64)
    }

    /// Converts a thought. Returns `None` outside a model's message, and for a thought with neither a text nor a signature.
    fn thought(&self, mut part: Part) -> Option<Object> {
        let signature = self.take_signature(&mut part.meta, "signature");
        if self.role != Role::Assistant || (part.text.is_empty() && signature.is_none()) {
            return None;
        }
        let mut thought = object([("text", part.text.into()), ("thought", true.into())]);
        thought.extend(signature.map(|signature| ("thoughtSignature".to_owned(), signature.into())));
        Some(thought)
    }

    /// Converts a tool call. A call without a name, or outside a model's message, becomes a text.
    fn call(&self, mut meta: Object) -> Object {
        if self.role != Role::Assistant || str_at(&meta, "name").is_empty() {
            let (name, arguments) = take_call_text_fields(&mut meta);
            return text_part(call_text(&name, &arguments));
        }
        let mut call = Object::new();
        call.extend(take_nonempty_string(&mut meta, "id").map(|id| ("id".to_owned(), id.into())));
        call.insert("name".into(), convert_function_name(Format::Gemini, str_at(&meta, "name")).into());
        let args = take_arguments(&mut meta, &self.ctx.value_budget);
        if !args.is_empty() {
            call.insert("args".into(), Value::Object(args));
        }
        object([("functionCall", Value::Object(call))])
    }

    /// Adds a tool result. A result without the id of its call, or outside a user's message, becomes a text.
    ///
    /// Gemini requires the name of the function. An unknown name is replaced by the id of the call.
    fn add_result(&mut self, mut part: Part) {
        let meta = &mut part.meta;
        let Some(call_id) = take_nonempty_string(meta, "tool_call_id").filter(|_| self.role == Role::User) else {
            self.parts.extend((!part.text.is_empty()).then(|| Value::Object(text_part(part.text))));
            return;
        };
        let name = ["name", "function_name"].into_iter().find_map(|key| take_nonempty_string(meta, key));
        let name = convert_function_name(Format::Gemini, name.as_deref().unwrap_or(&call_id)).into_owned();
        let [is_error, will_continue] =
            ["is_error", "will_continue"].map(|key| meta.get(key) == Some(&Value::Bool(true)));
        let (texts, media) = (vec![part.text], Vec::new());
        self.results.push(FunctionResult { name, call_id, is_error, will_continue, texts, media });
    }

    fn into_parts(self) -> Vec<Value> {
        let budget = &self.ctx.value_budget;
        let results = self.results.into_iter().map(|result| Value::Object(result.into_part(budget)));
        let mut parts: Vec<_> = results.chain(self.parts).collect();
        if parts.is_empty() {
            parts.push(Value::Object(text_part(NO_CONTENT.to_owned())));
        }
        parts
    }
}

impl FunctionResult {
    /// Builds the function response. Its response contains all texts, one per line.
    fn into_part(mut self, budget: &ValueBudget) -> Object {
        self.texts.retain(|text| !text.is_empty());
        let response = response_object(self.texts.join("\n"), self.is_error, budget);
        let mut function =
            object([("name", self.name.into()), ("id", self.call_id.into()), ("response", Value::Object(response))]);
        if !self.media.is_empty() {
            function.insert("parts".into(), Value::Array(self.media));
        }
        function.extend(self.will_continue.then(|| ("willContinue".to_owned(), true.into())));
        object([("functionResponse", Value::Object(function))])
    }
}

/// Converts the text of a tool result to the object that Gemini requires: `{"error": text}` if the tool failed, and otherwise the
/// text as an object if it is a JSON object within the budget, or `{"output": text}`.
///
/// An object whose only key is `output` or `error` is not used as it is, because it would be read as the output or error of the
/// function.
pub(super) fn response_object(text: String, is_error: bool, budget: &ValueBudget) -> Object {
    if is_error {
        return object([("error", text.into())]);
    }
    match budget.parse(&text) {
        Some(Value::Object(response)) if !is_lone_result(&response) => response,
        _ => object([("output", text.into())]),
    }
}

fn text_part(text: String) -> Object {
    object([("text", text.into())])
}

/// Returns an opaque block if it is a valid part. A client can store any value as the block of an `acontext` part.
fn valid_block(block: Value) -> Option<Value> {
    let Value::Object(mut block) = block else { return None };
    normalize_part(&mut block, "").ok()?;
    Some(Value::Object(block))
}

/// The MIME types that Gemini documents for images, audio, video and documents, and all texts. It rejects others, such as GIF.
fn is_supported_mime(mime: &str) -> bool {
    const IMAGE: [&str; 5] = ["png", "jpeg", "webp", "heic", "heif"];
    const AUDIO: [&str; 14] =
        ["wav", "mp3", "aiff", "aac", "ogg", "flac", "x-aac", "m4a", "mpeg", "mpga", "mp4", "opus", "pcm", "webm"];
    const VIDEO: [&str; 12] =
        ["mp4", "mpeg", "mov", "quicktime", "avi", "x-flv", "mpg", "mpegps", "webm", "wmv", "x-ms-wmv", "3gpp"];
    match mime.split_once('/') {
        Some(("image", subtype)) => IMAGE.contains(&subtype),
        Some(("audio", subtype)) => AUDIO.contains(&subtype),
        Some(("video", subtype)) => VIDEO.contains(&subtype),
        Some(("text", subtype)) => !subtype.is_empty(),
        _ => mime == "application/pdf",
    }
}

fn media_part(mut media: Media, has_name: bool) -> Option<Object> {
    let mime = media.guess_mime();
    if mime.as_deref().is_some_and(|mime| !is_supported_mime(mime)) {
        return media.into_text().map(text_part);
    }
    let name = Some(&media.filename).filter(|name| has_name && !name.is_empty());
    let name = name.map(|name| ("displayName".to_owned(), Value::from(name.as_str())));
    let data = media.data.take_if(|_| mime.is_some()).and_then(media::to_standard_base64);
    if let (Some(data), Some(mime)) = (data, &mime) {
        let mut inline = object([("mimeType", mime.as_str().into()), ("data", data.into())]);
        inline.extend(name);
        return Some(object([("inlineData", Value::Object(inline))]));
    }
    if let Some(url) = media.take_url() {
        let mut file = object([("fileUri", url.into())]);
        file.extend(mime.map(|mime| ("mimeType".to_owned(), mime.into())));
        file.extend(name);
        return Some(object([("fileData", Value::Object(file))]));
    }
    media.into_text().map(text_part)
}
