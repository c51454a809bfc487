//! The content blocks of Anthropic's messages. Types are those of `anthropic.types`.

use serde_json::{Map, Value};

use super::anthropic::{check_call, check_result};
use super::server_tools::{RESULT_TYPES, check_server_call, check_server_result};
use super::{At, Check, base64, demand, fields, list, nonempty, object, one_of, string, violation, web_url};

/// Checks a block in a message of a role, or in a `tool_result` or the content of a document.
pub(super) fn check_block(block: &Value, place: &str) -> Check {
    let block = object(block)?;
    let kind = string(block, "type")?;
    // `SystemMessageParam`, `ToolResultBlockParam.content`, `ContentBlockSourceContentParam`, `WebFetchBlockParam.content`. API: "'image' blocks are not
    // permitted within assistant turns", and accordingly for the other blocks of the other role.
    let allowed: &[&str] = match place {
        "user" => &["text", "image", "document", "search_result", "tool_result", "container_upload"],
        "assistant" => {
            &[&["text", "thinking", "redacted_thinking", "tool_use", "server_tool_use"], &RESULT_TYPES[..]].concat()
        }
        "tool_result" => &["text", "image", "document", "search_result", "tool_reference"],
        "document" => &["text", "image"],
        "web_fetch_result" => &["document"],
        "tool_search_result" => &["tool_reference"],
        _ => &["text"],
    };
    demand(allowed.contains(&kind), format_args!("must be one of {} here", allowed.join(", "))).at("type")?;
    check_cache_control(block)?;
    match kind {
        "text" => check_text(block),
        "image" => {
            fields(block, &["type", "source"], &["cache_control?", "transformations?"])?;
            object(&block["source"]).and_then(check_image_source).at("source")
        }
        "document" => check_document(block),
        "search_result" => {
            fields(block, &["type", "source", "title", "content"], &["cache_control?", "citations"])?;
            nonempty(block, "source").and(nonempty(block, "title"))?;
            check_blocks(&block["content"], "search_result")
        }
        "tool_use" => check_call(block),
        "tool_result" => check_result(block),
        "tool_reference" => {
            fields(block, &["type", "tool_name"], &["cache_control?"])?;
            nonempty(block, "tool_name").map(drop)
        }
        "container_upload" => {
            fields(block, &["type", "file_id"], &["cache_control?"])?;
            nonempty(block, "file_id").map(drop)
        }
        _ => check_model_block(kind, block),
    }
}

/// Checks a block that only the API itself makes.
fn check_model_block(kind: &str, block: &Map<String, Value>) -> Check {
    match kind {
        // `ThinkingBlockParam`. `thinking` is empty if the model omits it. The signature is required, and a signature that the
        // API has not made is rejected: "Invalid `signature` in `thinking` block".
        "thinking" => {
            fields(block, &["type", "thinking", "signature"], &[])?;
            string(block, "thinking")?;
            nonempty(block, "signature").map(drop)
        }
        // `RedactedThinkingBlockParam`.
        "redacted_thinking" => {
            fields(block, &["type", "data"], &[])?;
            nonempty(block, "data").map(drop)
        }
        "server_tool_use" => check_server_call(block),
        _ => check_server_result(kind, block),
    }
}

/// `CacheControlEphemeralParam`.
fn check_cache_control(block: &Map<String, Value>) -> Check {
    let Some(control) = block.get("cache_control").filter(|control| !control.is_null()) else { return Ok(()) };
    let check = || {
        let control = object(control)?;
        fields(control, &["type"], &["ttl"])?;
        one_of(string(control, "type")?, &["ephemeral"]).at("type")?;
        if control.contains_key("ttl") { one_of(string(control, "ttl")?, &["5m", "1h"]).at("ttl") } else { Ok(()) }
    };
    check().at("cache_control")
}

/// `TextBlockParam`. API: "text content blocks must be non-empty", "text content blocks must contain non-whitespace text".
fn check_text(block: &Map<String, Value>) -> Check {
    fields(block, &["type", "text"], &["cache_control?", "citations?"])?;
    demand(!string(block, "text")?.trim().is_empty(), "must not be blank").at("text")
}

fn check_blocks(content: &Value, place: &str) -> Check {
    let blocks = list(content).at("content")?;
    demand(!blocks.is_empty(), "must have at least one block").at("content")?;
    let mut blocks = blocks.iter().enumerate();
    blocks.try_for_each(|(index, block)| check_block(block, place).at_index("content", index))
}

/// `Base64ImageSourceParam`, `URLImageSourceParam`, `FileImageSourceParam`.
fn check_image_source(source: &Map<String, Value>) -> Check {
    match string(source, "type")? {
        "base64" => check_base64_source(source, &["image/jpeg", "image/png", "image/gif", "image/webp"]),
        _ => check_remote_source(source),
    }
}

fn check_base64_source(source: &Map<String, Value>, mimes: &[&str]) -> Check {
    fields(source, &["type", "media_type", "data"], &[])?;
    one_of(string(source, "media_type")?, mimes).at("media_type")?;
    base64(string(source, "data")?).at("data")
}

fn check_remote_source(source: &Map<String, Value>) -> Check {
    let (key, is_url) = match string(source, "type")? {
        "url" => ("url", true),
        "file" => ("file_id", false),
        _ => return violation("is not a type of source for this block").at("type"),
    };
    fields(source, &["type", key], &[])?;
    let location = nonempty(source, key)?;
    if is_url { web_url(location).at(key) } else { Ok(()) }
}

/// `DocumentBlockParam` and its sources. API reference: a title has 1 to 500 characters.
fn check_document(block: &Map<String, Value>) -> Check {
    fields(block, &["type", "source"], &["cache_control?", "citations?", "context?", "title?"])?;
    if block.get("title").is_some_and(|title| !title.is_null()) {
        let length = string(block, "title")?.chars().count();
        demand((1..=500).contains(&length), "must have 1 to 500 characters").at("title")?;
    }
    object(&block["source"]).and_then(check_document_source).at("source")
}

fn check_document_source(source: &Map<String, Value>) -> Check {
    match string(source, "type")? {
        "base64" => check_base64_source(source, &["application/pdf"]),
        "text" => {
            fields(source, &["type", "media_type", "data"], &[])?;
            one_of(string(source, "media_type")?, &["text/plain"]).at("media_type")?;
            nonempty(source, "data").map(drop)
        }
        "content" => {
            fields(source, &["type", "content"], &[])?;
            match &source["content"] {
                Value::String(text) => demand(!text.trim().is_empty(), "must not be blank").at("content"),
                content => check_blocks(content, "document"),
            }
        }
        _ => check_remote_source(source),
    }
}
