//! Content blocks of dialects. Clients store messages of these dialects as `openai` or `anthropic` messages:
//! - the Responses API and the Agents SDK of `OpenAI`: `input_text`, `output_text`, `input_image`, `input_file`, `refusal`,
//!   `summary_text`, `reasoning_text`, `reasoning`
//! - the Vercel AI SDK: `tool-call`, `tool-result`, `reasoning`, `redacted-reasoning`, `image`, `file`
//! - blocks of one of the two formats in a message of the other: `image_url`, `input_audio`, `file`, `image`, `document`,
//!   `thinking`, `redacted_thinking`
//! - media of `LangChain` and MCP: `image`, `audio`, `video`, `file`
//!
//! The stored body contains the blocks unchanged.

use serde_json::Value;

use super::changes::ChangeCursor;
use super::media::{base64_source, is_data_url, kind_by_mime, normalize_mime};
use super::opaque::block_text;
use super::signatures::{PROVIDER_KEY, SIGNATURE_KEY};
use super::value::{
    Object, move_cache_control, object, part, str_at, stringify, take_as_string, take_nonempty_string, take_object,
    text_part,
};
use crate::conversation::parts::{Part, PartKind};

/// Converts a block of a dialect to parts. Returns `false` and changes nothing if the block is unknown or lacks a field that its
/// type requires.
///
/// [`change_block`] must visit the same blocks, because they may contain tool calls and tool results.
pub(super) fn read_block(block: &mut Object, parts: &mut Vec<Part>) -> bool {
    if is_call(block) {
        parts.push(take_call(block));
        return true;
    }
    if is_result(block) {
        push_result(block, parts);
        return true;
    }
    read_content(block, parts)
}

/// Converts a block of a dialect to parts, as [`read_block`], except that a tool call or a tool result is not converted. Calls
/// and results are not allowed inside a tool result.
pub(super) fn read_content(block: &mut Object, parts: &mut Vec<Part>) -> bool {
    let Some(mut read) = content_part(block) else { return false };
    move_cache_control(block, &mut read.meta);
    parts.push(read);
    true
}

/// Applies changes to a block that [`read_block`] converts. Does nothing for blocks without a tool call or result.
pub(super) fn change_block(block: &mut Object, changes: &mut ChangeCursor<'_>) {
    if is_call(block) {
        if changes.clears_next_call() {
            block.insert(input_key(block).into(), Value::Object(Object::new()));
        }
    } else if is_result(block)
        && let Some(text) = changes.next_result_text()
    {
        replace_result(block, text);
    }
}

fn is_call(block: &Object) -> bool {
    let has_string = |key: &str| block.get(key).is_some_and(Value::is_string);
    str_at(block, "type") == "tool-call" && has_string("toolCallId") && has_string("toolName")
}

/// Returns `true` for a tool result of the Vercel AI SDK.
pub(super) fn is_result(block: &Object) -> bool {
    str_at(block, "type") == "tool-result" && block.get("toolCallId").is_some_and(Value::is_string)
}

/// Returns the key of a call's arguments: `input`, or `args` in messages of version 4 of the SDK.
fn input_key(call: &Object) -> &'static str {
    if call.contains_key("args") && !call.contains_key("input") { "args" } else { "input" }
}

fn take_call(block: &mut Object) -> Part {
    let arguments = match block.remove(input_key(block)) {
        None | Some(Value::Null) => "{}".to_owned(),
        Some(input) => stringify(input),
    };
    let mut meta = object([("arguments", arguments.into()), ("type", "function".into())]);
    meta.insert("id".into(), take_as_string(block, "toolCallId").into());
    meta.insert("name".into(), take_as_string(block, "toolName").into());
    let signature = take_provider_field(block, &["google", "vertex"], "thoughtSignature");
    meta.extend(signature.map(|signature| ("thought_signature".to_owned(), signature.into())));
    move_cache_control(block, &mut meta);
    part(PartKind::ToolCall, String::new(), meta)
}

/// Removes and returns a string from the fields that the AI SDK keeps for one of the providers.
fn take_provider_field(block: &mut Object, providers: &[&str], key: &str) -> Option<String> {
    for options in ["providerOptions", "providerMetadata"] {
        for provider in providers {
            if let Some(Value::Object(fields)) = block.get_mut(options).and_then(|options| options.get_mut(provider))
                && let Some(text) = take_nonempty_string(fields, key)
            {
                return Some(text);
            }
        }
    }
    None
}

/// Converts a tool result: its first text becomes the text of the result, and its other content becomes parts after it with the
/// same `tool_call_id`.
fn push_result(block: &mut Object, parts: &mut Vec<Part>) {
    let id = take_as_string(block, "toolCallId");
    let mut meta = object([("tool_call_id", id.as_str().into())]);
    meta.extend(take_nonempty_string(block, "toolName").map(|name| ("name".to_owned(), name.into())));
    move_cache_control(block, &mut meta);
    let mut is_error = block.remove("isError") == Some(Value::Bool(true));
    let mut content = Vec::new();
    match block.remove("output") {
        Some(Value::Object(mut output)) if output.get("type").is_some_and(Value::is_string) => {
            is_error |= is_error_output(&output);
            let is_content = str_at(&output, "type") == "content";
            match (is_content, output.remove("value")) {
                (true, Some(Value::Array(items))) => content = items,
                (_, Some(value)) => content.push(stringify(value).into()),
                (_, None) => content.push(take_as_string(&mut output, "reason").into()),
            }
        }
        Some(output) => content.push(stringify(output).into()),
        None => match (block.remove("result"), block.remove("experimental_content")) {
            (None | Some(Value::Null), Some(Value::Array(items))) => content = items,
            (result, _) => content.push(stringify(result.unwrap_or_default()).into()),
        },
    }
    if is_error {
        meta.insert("is_error".into(), true.into());
    }
    let result_index = parts.len();
    parts.push(part(PartKind::ToolResult, String::new(), meta));
    for mut attachment in content.into_iter().filter_map(result_content) {
        if attachment.kind == PartKind::Text && parts[result_index].text.is_empty() {
            parts[result_index].text = attachment.text;
        } else {
            attachment.meta.insert("tool_call_id".into(), id.as_str().into());
            parts.push(attachment);
        }
    }
}

/// Returns `true` if a typed output says that the tool failed or was not allowed to run.
fn is_error_output(output: &Object) -> bool {
    matches!(str_at(output, "type"), "error-text" | "error-json" | "execution-denied")
}

/// Converts an item of a tool result's content. Returns `None` if it has neither text nor media.
fn result_content(item: Value) -> Option<Part> {
    let mut item = match item {
        Value::Object(item) => item,
        other => return block_text(&other).map(text_part),
    };
    match str_at(&item, "type") {
        "text" => return Some(text_part(take_as_string(&mut item, "text"))),
        kind @ ("media" | "file-data" | "file-url" | "image-data" | "image-url") => {
            let kind = if kind.starts_with("image") { PartKind::Image } else { PartKind::File };
            if let Some(media) = take_media(&mut item, kind) {
                return Some(media);
            }
        }
        _ => {}
    }
    content_part(&mut item).or_else(|| block_text(&Value::Object(item)).map(text_part))
}

/// Replaces the content of a tool result by a text. A failed result remains a failed one.
fn replace_result(block: &mut Object, text: &str) {
    block.remove("experimental_content");
    let Some(output) = block.get("output") else {
        block.insert("result".into(), text.into());
        return;
    };
    let kind = if output.as_object().is_some_and(is_error_output) { "error-text" } else { "text" };
    block.insert("output".into(), Value::Object(object([("type", kind.into()), ("value", text.into())])));
}

/// Converts a block that is neither a tool call nor a tool result. Returns `None` and changes nothing if it is unknown.
fn content_part(block: &mut Object) -> Option<Part> {
    match str_at(block, "type") {
        "input_text" | "output_text" => take_string(block, "text").map(text_part),
        "refusal" => {
            let refusal = take_string(block, "refusal")?;
            Some(part(PartKind::Text, refusal, object([("is_refusal", true.into())])))
        }
        "summary_text" | "reasoning_text" => thought(take_string(block, "text")?, None),
        "thinking" if block.get("thinking").is_some_and(Value::is_string) => {
            let text = take_as_string(block, "thinking");
            let signature = take_nonempty_string(block, "signature").map(|signature| (signature, "anthropic"));
            Some(thought_part(text, signature))
        }
        "redacted_thinking" | "redacted-reasoning" => take_nonempty_string(block, "data").map(redacted_part),
        "reasoning" => reasoning_part(block),
        "input_image" => input_image_part(block),
        "image_url" => image_part(block, None),
        "input_file" => input_file_part(block),
        "file" if block.get("file").is_some_and(Value::is_object) => {
            let mut file = take_object(block, "file");
            Some(part(PartKind::File, String::new(), take_strings(&mut file, &["file_id", "file_data", "filename"])))
        }
        "input_audio" if block.get("input_audio").is_some_and(Value::is_object) => {
            let mut audio = take_object(block, "input_audio");
            Some(part(PartKind::Audio, String::new(), take_strings(&mut audio, &["data", "format"])))
        }
        "image" => take_source(block, PartKind::Image).or_else(|| take_media(block, PartKind::Image)),
        "document" => take_source(block, PartKind::File),
        "audio" => take_media(block, PartKind::Audio),
        "video" => take_media(block, PartKind::Video),
        "file" => take_media(block, PartKind::File),
        _ => None,
    }
}

/// Removes and returns the string at a key. Returns `None` and removes nothing if the value is missing or not a string.
fn take_string(block: &mut Object, key: &str) -> Option<String> {
    block.get(key)?.as_str()?;
    Some(take_as_string(block, key))
}

/// Removes the strings at `keys` and returns those that are not empty.
fn take_strings(block: &mut Object, keys: &[&str]) -> Object {
    keys.iter().filter_map(|key| Some(((*key).to_owned(), take_nonempty_string(block, key)?.into()))).collect()
}

/// Converts an image of `OpenAI`, whose URL is a string or an object with the URL.
fn image_part(block: &mut Object, detail: Option<String>) -> Option<Part> {
    let meta = match block.get_mut("image_url")? {
        Value::Object(image) if !str_at(image, "url").is_empty() => take_strings(image, &["url", "detail"]),
        Value::String(url) if !url.is_empty() => object([("url", std::mem::take(url).into())]),
        _ => return None,
    };
    let mut image = part(PartKind::Image, String::new(), meta);
    image.meta.extend(detail.map(|detail| ("detail".to_owned(), detail.into())));
    Some(image)
}

fn input_image_part(block: &mut Object) -> Option<Part> {
    let detail = Some(str_at(block, "detail").to_owned()).filter(|detail| !detail.is_empty());
    image_part(block, detail).or_else(|| {
        let file_id = take_nonempty_string(block, "file_id")?;
        Some(part(PartKind::Image, String::new(), object([("file_id", file_id.into())])))
    })
}

fn input_file_part(block: &mut Object) -> Option<Part> {
    let mut meta = take_strings(block, &["file_id", "file_data", "filename"]);
    if let Some(url) = take_nonempty_string(block, "file_url") {
        meta.insert("type".into(), "url".into());
        meta.insert("url".into(), url.into());
    }
    (!meta.is_empty()).then(|| part(PartKind::File, String::new(), meta))
}

/// Converts the source of an Anthropic image or document.
fn take_source(block: &mut Object, kind: PartKind) -> Option<Part> {
    let Some(Value::Object(source)) = block.get_mut("source") else { return None };
    let key = match str_at(source, "type") {
        "base64" | "text" => "data",
        "url" => "url",
        _ => return None,
    };
    if str_at(source, key).is_empty() {
        return None;
    }
    Some(part(kind, String::new(), take_strings(source, &["type", "media_type", key])))
}

/// Converts media whose content is a string in the block: a URL, a `data:` URL or base64. The MIME type determines the kind of
/// the part, or else `kind`.
fn take_media(block: &mut Object, kind: PartKind) -> Option<Part> {
    let content = ["image", "data", "base64", "url"].into_iter().find_map(|key| take_nonempty_string(block, key))?;
    let mime = ["mediaType", "mimeType", "media_type", "mime_type"]
        .into_iter()
        .find_map(|key| take_nonempty_string(block, key))
        .map(|mime| normalize_mime(&mime))
        .unwrap_or_default();
    let kind = kind_by_mime(&mime).unwrap_or(kind);
    let is_url =
        is_data_url(&content) || ["http://", "https://", "gs://"].iter().any(|scheme| content.starts_with(scheme));
    let mut meta = if is_url {
        let mut meta = object([("type", "url".into()), ("url", content.into())]);
        if !mime.is_empty() {
            meta.insert("media_type".into(), mime.into());
        }
        meta
    } else {
        base64_source(mime, content)
    };
    let filename = take_nonempty_string(block, "filename");
    meta.extend(filename.map(|filename| ("filename".to_owned(), filename.into())));
    Some(part(kind, String::new(), meta))
}

/// Builds a thought without a signature, or `None` if it is empty.
fn thought(text: String, signature: Option<(String, &str)>) -> Option<Part> {
    (!text.is_empty() || signature.is_some()).then(|| thought_part(text, signature))
}

/// Builds a thought. The signature comes with the format of the provider that has made it.
pub(super) fn thought_part(text: String, signature: Option<(String, &str)>) -> Part {
    let meta = signature
        .map(|(signature, provider)| object([(SIGNATURE_KEY, signature.into()), (PROVIDER_KEY, provider.into())]));
    part(PartKind::Thinking, text, meta.unwrap_or_default())
}

/// Builds an encrypted thought of Anthropic.
pub(super) fn redacted_part(data: String) -> Part {
    let meta = object([("data", data.into()), (PROVIDER_KEY, "anthropic".into())]);
    part(PartKind::RedactedThinking, String::new(), meta)
}

/// Converts a thought of the Vercel AI SDK, the Responses API or `LangChain`. Returns `None` if it has neither a text nor a
/// signature, as thoughts that only `OpenAI` can decrypt.
fn reasoning_part(block: &mut Object) -> Option<Part> {
    if let Some(data) = take_provider_field(block, &["anthropic"], "redactedData") {
        return Some(redacted_part(data));
    }
    let signature = take_provider_field(block, &["anthropic"], SIGNATURE_KEY).map(|signature| (signature, "anthropic"));
    let signature = signature.or_else(|| {
        take_provider_field(block, &["google", "vertex"], "thoughtSignature").map(|signature| (signature, "gemini"))
    });
    let text = ["text", "reasoning"].into_iter().find_map(|key| take_nonempty_string(block, key));
    let text = text.or_else(|| ["content", "summary"].into_iter().find_map(|key| joined_texts(block.get(key)?)));
    thought(text.unwrap_or_default(), signature)
}

/// Joins the texts of the objects in a list with line breaks. Returns `None` if there are none.
fn joined_texts(list: &Value) -> Option<String> {
    let texts: Vec<_> = list.as_array()?.iter().filter_map(|item| item.get("text")?.as_str()).collect();
    Some(texts.join("\n")).filter(|text| !text.is_empty())
}
