//! The messages of Anthropic.

use std::collections::HashSet;

use async_trait::async_trait;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Client, Url};
use secrecy::ExposeSecret;
use serde_json::{Map, Value, json};

use super::api_error::ReportedError;
use super::echo::{self, CallIds};
use super::http::{self, InvalidResponse, ProviderApi};
use super::{
    AssistantMessage, ChatMessage, ChatRequest, ChatResponse, Llm, LlmError, StopReason, TokenUsage, ToolCall,
    ToolChoice, ToolResult,
};
use crate::config::Model;
use crate::json;

/// The version of the API.
const API_VERSION: &str = "2023-06-01";

/// A model that is used with the API of Anthropic.
pub(super) struct Anthropic {
    api: ProviderApi,
    model: String,
}

impl Anthropic {
    /// Creates a client. `base_url` is the base URL of the settings.
    pub(super) fn new(settings: &Model, client: Client, base_url: &Url) -> Self {
        let mut headers = HeaderMap::from_iter([(
            "anthropic-version".parse().expect("a valid header name"),
            HeaderValue::from_static(API_VERSION),
        )]);
        if let Some(key) = &settings.api_key {
            let mut value = HeaderValue::try_from(key.expose_secret())
                .expect("the settings accept only keys of visible ASCII characters");
            value.set_sensitive(true);
            headers.insert("x-api-key", value);
        }
        let url = http::join_path(base_url, &["v1", "messages"]);
        Self {
            api: ProviderApi::new(settings, client, url, headers, Vec::new()),
            model: settings.name().unwrap_or_default().to_owned(),
        }
    }

    fn request_body(&self, request: &ChatRequest<'_>) -> Value {
        let mut body = Map::from_iter([
            ("model".to_owned(), json!(self.model)),
            ("max_tokens".to_owned(), json!(request.max_tokens)),
            ("messages".to_owned(), write_messages(request.messages)),
        ]);
        if !request.system.trim().is_empty() {
            body.insert("system".into(), json!([cached(json!({"type": "text", "text": request.system}))]));
        }
        let tools = request
            .tools
            .iter()
            .map(|tool| json!({"name": tool.name, "description": tool.description, "input_schema": tool.parameters}));
        let mut tools: Vec<Value> = tools.collect();
        if let Some(last) = tools.pop() {
            tools.push(cached(last));
            body.insert("tools".into(), Value::Array(tools));
            let choice = match request.tool_choice {
                ToolChoice::Auto => None,
                ToolChoice::Required => Some(json!({"type": "any"})),
                ToolChoice::None => Some(json!({"type": "none"})),
                ToolChoice::Tool(name) => Some(json!({"type": "tool", "name": name})),
            };
            body.extend(choice.map(|choice| ("tool_choice".into(), choice)));
        }
        Value::Object(body)
    }
}

#[async_trait]
impl Llm for Anthropic {
    fn model(&self) -> &str {
        &self.model
    }

    async fn chat(&self, request: &ChatRequest<'_>) -> Result<ChatResponse, LlmError> {
        let used_ids = echo::call_ids(request.messages);
        let read = |body| read_response(body, &self.model, &used_ids).map_err(|error| self.api.failure(error));
        self.api.post(&self.request_body(request), request.deadline, read).await
    }
}

/// Marks the end of a part of the request that the provider caches. The tools precede the instructions, and these the messages.
fn cached(mut block: Value) -> Value {
    if let Some(block) = block.as_object_mut() {
        block.insert("cache_control".into(), json!({"type": "ephemeral"}));
    }
    block
}

/// Converts a conversation to messages. A user message becomes a part of the message before it if that has tool results or is a
/// user message. The last block is marked too, because each request of an agent repeats the conversation of the preceding one.
fn write_messages(conversation: &[ChatMessage]) -> Value {
    let mut messages: Vec<(&str, Vec<Value>)> = Vec::new();
    for message in conversation {
        let (role, mut content) = match message {
            ChatMessage::User(text) => ("user", vec![json!({"type": "text", "text": text})]),
            ChatMessage::Assistant(message) => ("assistant", write_assistant(message)),
            ChatMessage::ToolResults(results) => ("user", results.iter().map(write_result).collect()),
        };
        if std::ptr::eq(message, &raw const conversation[conversation.len() - 1]) {
            let last = content.pop();
            content.extend(last.map(cached));
        }
        match messages.last_mut() {
            // Providers reject empty messages.
            _ if content.is_empty() => {}
            Some(("user", blocks)) if matches!(message, ChatMessage::User(_)) => blocks.append(&mut content),
            _ => messages.push((role, content)),
        }
    }
    messages.into_iter().map(|(role, content)| json!({"role": role, "content": content})).collect()
}

/// Converts a message of the model to blocks.
fn write_assistant(message: &AssistantMessage) -> Vec<Value> {
    let raw = message.raw.as_ref().and_then(|raw| json::parse_trusted(raw.get().as_bytes()).ok());
    if let Some(Value::Array(blocks)) = raw {
        return blocks;
    }
    let text = Some(&message.text).filter(|text| !text.trim().is_empty());
    let text = text.map(|text| json!({"type": "text", "text": text}));
    let calls = message.tool_calls.iter().map(|call| {
        let input = json::parse(call.arguments.as_bytes()).ok().filter(Value::is_object).unwrap_or_else(|| json!({}));
        json!({"type": "tool_use", "id": call.id, "name": echo::tool_name(&call.name), "input": input})
    });
    text.into_iter().chain(calls).collect()
}

/// Converts the result of a tool call. The content must not be blank, and must not be missing if the call failed.
fn write_result(result: &ToolResult) -> Value {
    let mut block = json!({"type": "tool_result", "tool_use_id": result.call_id});
    if !result.text.trim().is_empty() {
        block["content"] = json!(result.text);
    } else if result.is_error {
        block["content"] = json!("The tool call failed.");
    }
    if result.is_error {
        block["is_error"] = json!(true);
    }
    block
}

/// Reads the body of a response. `model` is the requested model, and `used_ids` are the ids of the tool calls in the conversation
/// so far.
fn read_response(body: Value, model: &str, used_ids: &HashSet<String>) -> Result<ChatResponse, InvalidResponse> {
    if body.get("type").is_some_and(|kind| kind == "error") {
        return Err(InvalidResponse::Error(with_status(ReportedError::from_body(&body))));
    }
    let Value::Object(mut body) = body else { return Err(InvalidResponse::Incomplete("is not an object")) };
    let Some(Value::Array(blocks)) = body.remove("content") else {
        return Err(InvalidResponse::Incomplete("has no content"));
    };
    let message = read_blocks(blocks, used_ids);
    let stop_reason = match body.get("stop_reason").and_then(Value::as_str).unwrap_or_default() {
        // The context window limits the response like `max_tokens` does.
        "max_tokens" | "model_context_window_exceeded" => StopReason::MaxTokens,
        "refusal" => StopReason::ContentFilter,
        _ if !message.tool_calls.is_empty() => StopReason::ToolCalls,
        "" | "end_turn" | "stop_sequence" => StopReason::EndTurn,
        // Such as `pause_turn`, which only tools of the provider cause.
        other => StopReason::Other(other.to_owned()),
    };
    Ok(ChatResponse {
        message,
        stop_reason,
        usage: read_usage(body.get("usage").unwrap_or(&Value::Null)),
        model: echo::model_name(body.get("model"), model),
    })
}

/// Converts the blocks of a response. [`AssistantMessage::raw`] has the blocks as received, because thinking blocks are signed,
/// except that blank texts are removed and calls are changed where the API would reject them.
fn read_blocks(blocks: Vec<Value>, used_ids: &HashSet<String>) -> AssistantMessage {
    let (mut message, mut ids) = (AssistantMessage::default(), CallIds::new(used_ids));
    let mut echo = Vec::new();
    for mut block in blocks {
        match block.get("type").and_then(Value::as_str) {
            Some("text") => {
                let text = block.get("text").and_then(Value::as_str).unwrap_or_default();
                message.text.push_str(text);
                if text.trim().is_empty() {
                    continue;
                }
            }
            Some("tool_use") => message.tool_calls.push(read_call(&mut block, &mut ids)),
            _ => {}
        }
        echo.push(block);
    }
    message.raw = echo::to_raw(&Value::Array(echo));
    message
}

/// Reads a `tool_use` block, and corrects it for the next request.
fn read_call(block: &mut Value, ids: &mut CallIds<'_>) -> ToolCall {
    let text = |key: &str| block.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (id, name) = (ids.assign(&text("id")), text("name"));
    let arguments = match block.get("input") {
        None | Some(Value::Null) => "{}".into(),
        // Servers that convert from the API of OpenAI may return the text of the object.
        Some(Value::String(text)) => text.clone(),
        Some(input) => input.to_string(),
    };
    block["id"] = json!(id);
    block["name"] = json!(echo::tool_name(&name));
    if !block.get("input").is_some_and(Value::is_object) {
        let input = json::parse(arguments.as_bytes()).ok().filter(Value::is_object);
        block["input"] = input.unwrap_or_else(|| json!({}));
    }
    ToolCall { id, name, arguments }
}

/// Adds the status that belongs to the type of an error (page "Errors" of the API reference).
fn with_status(mut error: ReportedError) -> ReportedError {
    let status = match error.codes.as_str() {
        "invalid_request_error" => 400,
        "authentication_error" => 401,
        "billing_error" => 402,
        "permission_error" => 403,
        "not_found_error" => 404,
        "request_too_large" => 413,
        "rate_limit_error" => 429,
        "overloaded_error" => 529,
        _ => 500,
    };
    error.status.get_or_insert(status);
    error
}

/// Reads the token counts. `input_tokens` does not include tokens that the provider reads from its cache or writes to it.
fn read_usage(usage: &Value) -> TokenUsage {
    let count = |key: &str| usage.get(key).and_then(echo::token_count).unwrap_or_default();
    let cached_tokens = count("cache_read_input_tokens");
    let uncached = count("input_tokens").saturating_add(count("cache_creation_input_tokens"));
    TokenUsage {
        input_tokens: uncached.saturating_add(cached_tokens),
        cached_tokens,
        output_tokens: count("output_tokens"),
    }
}

#[cfg(test)]
mod tests;
