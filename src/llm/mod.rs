//! Language models: the trait [`Llm`], its requests and responses, and its implementations.
//!
//! A request contains the whole conversation, because models are stateless: the caller appends each response, and the
//! results of its tool calls, to the messages of the next request.

mod mock;

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::config::Learning;

/// A request to a model.
pub struct ChatRequest<'a> {
    /// The instructions for the model.
    pub system: &'a str,
    /// The conversation so far, oldest first. It begins with a user message, and ends with a user message or tool results.
    pub messages: &'a [ChatMessage],
    /// The tools that the model may call.
    pub tools: &'a [Tool],
    pub tool_choice: ToolChoice,
    /// The maximum length of the response, in tokens.
    pub max_tokens: u32,
}

/// A message of a conversation with a model.
#[derive(Clone, Debug)]
pub enum ChatMessage {
    User(String),
    Assistant(AssistantMessage),
    /// The results of all tool calls in the preceding assistant message, in the same order.
    ToolResults(Vec<ToolResult>),
}

/// A message that a model generated.
#[derive(Clone, Debug, Default)]
pub struct AssistantMessage {
    /// Empty if the model only called tools.
    pub text: String,
    pub tool_calls: Vec<ToolCall>,
    /// The message as the provider sent it. The next request contains it unchanged, because it may contain signatures that are
    /// not in the other fields. `None` if the provider needs only the other fields.
    pub raw: Option<Box<RawValue>>,
}

/// A tool that a model may call.
#[derive(Clone, Debug)]
pub struct Tool {
    pub name: &'static str,
    /// Instructions for the model: when and how to use the tool.
    pub description: &'static str,
    /// The JSON Schema of the arguments, which are an object.
    pub parameters: Value,
}

/// A tool call by a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// The id that the provider assigned; unique within the conversation.
    pub id: String,
    /// The name of the tool. A model may call a tool that does not exist.
    pub name: String,
    /// The arguments as the model generated them: possibly invalid JSON, or JSON that does not match the schema.
    pub arguments: String,
}

/// The result of a tool call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolResult {
    /// The id of the [`ToolCall`].
    pub call_id: String,
    pub text: String,
    /// `true` if the call failed; `text` is the reason.
    pub is_error: bool,
}

/// The rule for tool calls in the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolChoice {
    /// The model decides.
    Auto,
    /// The model must call at least one tool.
    Required,
    /// The model must not call tools.
    None,
    /// The model must call the tool with this name.
    Tool(&'static str),
}

/// A response of a model.
#[derive(Debug)]
pub struct ChatResponse {
    pub message: AssistantMessage,
    pub stop_reason: StopReason,
    pub usage: TokenUsage,
    /// The name of the model that generated the response, as reported by the provider.
    pub model: String,
}

/// The reason why a response ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The response is complete.
    EndTurn,
    /// The model waits for the results of its tool calls.
    ToolCalls,
    /// The response reached [`ChatRequest::max_tokens`] and may be truncated anywhere.
    MaxTokens,
    /// The provider withheld the response.
    ContentFilter,
    /// Any other reason, as reported by the provider.
    Other(String),
}

/// The number of tokens of a request and its response, as counted by the provider.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenUsage {
    /// Tokens of the whole request.
    pub input_tokens: u32,
    /// Tokens that the provider read from its cache; included in `input_tokens`.
    pub cached_tokens: u32,
    /// Tokens of the response.
    pub output_tokens: u32,
}

/// An error of a request to a model.
#[derive(Debug, thiserror::Error)]
pub enum LlmError {
    /// No model is configured, or the configured provider is not implemented.
    #[error("no model is configured: set LLM_SDK to a provider that `acontextd --help` describes as implemented")]
    NotConfigured,
    /// The provider is overloaded, does not respond, or returned an invalid response. The same request may succeed later.
    #[error("{0:#}")]
    Unavailable(anyhow::Error),
    /// The API key, the base URL or the model name is wrong. The same request succeeds after the settings are corrected.
    #[error("{0:#}")]
    Misconfigured(anyhow::Error),
    /// The request exceeds the context length of the model.
    #[error("{0:#}")]
    ContextTooLong(anyhow::Error),
    /// The provider rejected the request and would reject it again.
    #[error("{0:#}")]
    Rejected(anyhow::Error),
}

impl LlmError {
    /// Returns `true` if the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotConfigured | Self::Unavailable(_) | Self::Misconfigured(_) => true,
            Self::ContextTooLong(_) | Self::Rejected(_) => false,
        }
    }
}

/// A language model.
#[async_trait]
pub trait Llm: Send + Sync {
    /// Returns `false` if no model is configured. Every request then fails with [`LlmError::NotConfigured`].
    fn is_configured(&self) -> bool {
        true
    }

    /// Sends a conversation to the model and returns its response.
    async fn chat(&self, request: &ChatRequest<'_>) -> Result<ChatResponse, LlmError>;
}

/// Returns the implementation for the provider in `LLM_SDK`.
pub fn from_config(settings: &Learning) -> Arc<dyn Llm> {
    match settings.llm_sdk.as_str() {
        "mock" => Arc::new(mock::MockLlm),
        _ => Arc::new(Unconfigured),
    }
}

/// Returns `true` if `LLM_SDK` names a provider for which this version has no client.
pub fn is_provider_unimplemented(settings: &Learning) -> bool {
    !matches!(settings.llm_sdk.as_str(), "none" | "mock")
}

/// Returns the reason why messages wait for a model, if some are pending and no model is configured.
pub fn waiting_reason(llm: &dyn Llm, has_pending_messages: bool) -> Option<String> {
    (has_pending_messages && !llm.is_configured()).then(|| LlmError::NotConfigured.to_string())
}

/// The implementation that is used if no model is configured. Every request fails.
struct Unconfigured;

#[async_trait]
impl Llm for Unconfigured {
    fn is_configured(&self) -> bool {
        false
    }

    async fn chat(&self, _: &ChatRequest<'_>) -> Result<ChatResponse, LlmError> {
        Err(LlmError::NotConfigured)
    }
}
