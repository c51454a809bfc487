//! The chat completions of `OpenAI`, and of the many servers with the same API: Ollama, vLLM, llama.cpp, `LiteLLM`, `OpenRouter`
//! and others. [`response`] reads their responses, which differ in many details.

mod response;

use async_trait::async_trait;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Client, Url};
use secrecy::ExposeSecret;
use serde_json::{Map, Value, json};

use super::http::{self, ProviderApi};
use super::{AssistantMessage, ChatMessage, ChatRequest, ChatResponse, Llm, LlmError, ToolChoice, ToolResult, echo};
use crate::config::Model;
use crate::json;

/// The fields of the request that limit the length of the response. `OpenAI` has replaced the first one with the second one, and
/// its reasoning models reject the first one. Many other servers know only the first one.
const TOKEN_LIMIT: &str = "max_tokens";
const OPENAI_TOKEN_LIMIT: &str = "max_completion_tokens";

/// The message of the model between tool results and a user message. `OpenAI` does not need it, but Mistral and the chat
/// templates of its models reject a user message that follows tool results directly.
const MESSAGE_AFTER_RESULTS: &str = "Done.";

/// A model that is used with the API of `OpenAI`.
pub(super) struct OpenAi {
    api: ProviderApi,
    model: String,
    /// `LLM_OPENAI_COMPLETION_KWARGS`: fields to add to each request.
    kwargs: Map<String, Value>,
    /// The name of the field for [`ChatRequest::max_tokens`]. `None` if the kwargs contain a limit.
    token_limit: Option<&'static str>,
}

impl OpenAi {
    /// Creates a client. `base_url` is the base URL of the settings.
    pub(super) fn new(settings: &Model, client: Client, base_url: &Url) -> Self {
        let mut url = http::join_path(base_url, &["chat", "completions"]);
        if settings.openai_query().next().is_some() {
            url.query_pairs_mut().extend_pairs(settings.openai_query());
        }
        let mut headers = settings.openai_headers();
        let header_texts = headers.values().filter_map(|value| value.to_str().ok());
        // A provider that repeats the key of `Authorization: Bearer <key>` leaves out the scheme.
        let header_texts = header_texts.flat_map(|text| [Some(text), text.rsplit_once(' ').map(|(_, key)| key)]);
        let query_texts = settings.openai_query().map(|(_, value)| value);
        let secrets = header_texts.flatten().chain(query_texts).map(str::to_owned).collect();
        if let Some(key) = &settings.api_key {
            let value = HeaderValue::try_from(format!("Bearer {}", key.expose_secret()));
            let mut value = value.expect("the settings accept only keys of visible ASCII characters");
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let kwargs = settings.openai_kwargs();
        let has_limit = kwargs.contains_key(TOKEN_LIMIT) || kwargs.contains_key(OPENAI_TOKEN_LIMIT);
        let limit = if settings.uses_host_of_provider() { OPENAI_TOKEN_LIMIT } else { TOKEN_LIMIT };
        Self {
            api: ProviderApi::new(settings, client, url, headers, secrets),
            model: settings.name().unwrap_or_default().to_owned(),
            kwargs,
            token_limit: (!has_limit).then_some(limit),
        }
    }

    fn request_body(&self, request: &ChatRequest<'_>) -> Value {
        let mut body = self.kwargs.clone();
        body.insert("model".into(), json!(self.model));
        body.insert("messages".into(), write_messages(request));
        if let Some(name) = self.token_limit {
            body.insert(name.into(), json!(request.max_tokens));
        }
        // The field `tool_choice` is invalid without tools.
        if !request.tools.is_empty() {
            let tools = request.tools.iter().map(|tool| {
                let function =
                    json!({"name": tool.name, "description": tool.description, "parameters": tool.parameters});
                json!({"type": "function", "function": function})
            });
            body.insert("tools".into(), tools.collect());
            let choice = match request.tool_choice {
                // The default. Some servers reject the field.
                ToolChoice::Auto => None,
                ToolChoice::Required => Some(json!("required")),
                ToolChoice::None => Some(json!("none")),
                ToolChoice::Tool(name) => Some(json!({"type": "function", "function": {"name": name}})),
            };
            body.extend(choice.map(|choice| ("tool_choice".into(), choice)));
        }
        Value::Object(body)
    }
}

#[async_trait]
impl Llm for OpenAi {
    fn model(&self) -> &str {
        &self.model
    }

    async fn chat(&self, request: &ChatRequest<'_>) -> Result<ChatResponse, LlmError> {
        let used_ids = echo::call_ids(request.messages);
        let read = |body| response::read(&body, &self.model, &used_ids).map_err(|error| self.api.failure(error));
        self.api.post(&self.request_body(request), request.deadline, read).await
    }
}

/// Converts the instructions and the conversation to messages.
fn write_messages(request: &ChatRequest<'_>) -> Value {
    let mut messages = Vec::new();
    if !request.system.is_empty() {
        messages.push(json!({"role": "system", "content": request.system}));
    }
    for message in request.messages {
        match message {
            ChatMessage::User(text) => {
                if messages.last().is_some_and(|last| last["role"] == "tool") {
                    messages.push(json!({"role": "assistant", "content": MESSAGE_AFTER_RESULTS}));
                }
                messages.push(json!({"role": "user", "content": text}));
            }
            ChatMessage::Assistant(message) => messages.extend(write_assistant(message)),
            ChatMessage::ToolResults(results) => messages.extend(results.iter().map(write_result)),
        }
    }
    Value::Array(messages)
}

/// Converts a message of the model. Returns `None` if it is empty, because providers reject empty messages.
fn write_assistant(message: &AssistantMessage) -> Option<Value> {
    if message.text.is_empty() && message.tool_calls.is_empty() {
        return None;
    }
    let raw = message.raw.as_ref().and_then(|raw| json::parse_trusted(raw.get().as_bytes()).ok());
    Some(raw.unwrap_or_else(|| response::write_echo(message, &Value::Null, &[])))
}

fn write_result(result: &ToolResult) -> Value {
    json!({"role": "tool", "tool_call_id": result.call_id, "content": result.text})
}

#[cfg(test)]
mod tests;
