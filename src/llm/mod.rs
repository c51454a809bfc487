//! Language models: the trait [`Llm`] with its requests and responses, and the implementations that the settings name.
//!
//! A request is a whole conversation, because models keep no state: the caller appends each response, and the results of the tools that
//! it called, to the messages of the next request.

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
    /// The conversation so far, oldest first. It begins with a message of the user, and ends with one or with tool results.
    pub messages: &'a [Message],
    /// The tools that the model may call.
    pub tools: &'a [Tool],
    pub tool_choice: ToolChoice,
    /// The maximum length of the response, in tokens.
    pub max_tokens: u32,
}

/// A message of a conversation with a model.
#[derive(Clone, Debug)]
pub enum Message {
    User(String),
    Assistant(AssistantMessage),
    /// The results of all tool calls in the assistant message before it, in the same order.
    ToolResults(Vec<ToolResult>),
}

/// What a model responded.
#[derive(Clone, Debug, Default)]
pub struct AssistantMessage {
    /// Empty if the model only called tools.
    pub text: String,
    pub tool_calls: Vec<ToolCall>,
    /// The message as the provider sent it. It is sent back unchanged with the next request, because it may have signatures that the
    /// fields above do not contain. `None` if the provider needs only these fields.
    pub raw: Option<Box<RawValue>>,
}

/// A tool that a model may call.
#[derive(Clone, Debug)]
pub struct Tool {
    pub name: &'static str,
    /// When and how to use it.
    pub description: &'static str,
    /// The JSON Schema of its arguments, an object.
    pub parameters: Value,
}

/// A call of a tool by a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// Assigned by the provider; unique within the conversation.
    pub id: String,
    /// May be a name that no tool has.
    pub name: String,
    /// JSON as the model wrote it, which may be invalid or not match the schema.
    pub arguments: String,
}

/// The result of a tool call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolResult {
    /// The id of the [`ToolCall`].
    pub call_id: String,
    pub text: String,
    /// The call failed, and `text` says why.
    pub is_error: bool,
}

/// Whether the model calls tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolChoice {
    /// The model decides.
    Auto,
    /// The model must call at least one tool.
    Required,
    /// The model must not call tools.
    None,
    /// The model must call the tool of this name.
    Tool(&'static str),
}

/// A response of a model.
#[derive(Debug)]
pub struct ChatResponse {
    pub message: AssistantMessage,
    pub stop_reason: StopReason,
    pub usage: Usage,
    /// The model that responded, as the provider names it.
    pub model: String,
}

/// Why a model stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The response is complete.
    EndTurn,
    /// The model waits for the results of its tool calls.
    ToolCalls,
    /// The response is as long as the request allows, and may be cut off anywhere.
    MaxTokens,
    /// The provider withheld the response.
    ContentFilter,
    /// A reason that is not known here, as the provider names it.
    Other(String),
}

/// The tokens that a request took, as the provider counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the whole request.
    pub input_tokens: u32,
    /// The part of `input_tokens` that the provider read from its cache.
    pub cached_tokens: u32,
    /// Of the response.
    pub output_tokens: u32,
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub enum LlmError {
    /// The settings name no model.
    #[error("no model is configured that this version can speak to (LLM_SDK)")]
    NotConfigured,
    /// The same request may succeed later: the provider is overloaded, does not respond, or responds with something unreadable.
    #[error("{0:#}")]
    Unavailable(anyhow::Error),
    /// The key, the base URL or the name of the model is wrong. The same request succeeds once the settings are right.
    #[error("{0:#}")]
    Denied(anyhow::Error),
    /// The request is longer than the model accepts.
    #[error("{0:#}")]
    ContextTooLong(anyhow::Error),
    /// The provider rejects the request, and would reject it again.
    #[error("{0:#}")]
    Rejected(anyhow::Error),
}

impl LlmError {
    /// Returns `true` if the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotConfigured | Self::Unavailable(_) | Self::Denied(_) => true,
            Self::ContextTooLong(_) | Self::Rejected(_) => false,
        }
    }
}

/// A language model.
#[async_trait]
pub trait Llm: Send + Sync {
    /// Returns `false` if no model is configured; every request fails then with [`LlmError::NotConfigured`].
    fn is_configured(&self) -> bool {
        true
    }

    /// Sends a conversation to the model and returns its response.
    async fn chat(&self, request: &ChatRequest<'_>) -> Result<ChatResponse, LlmError>;
}

/// Returns the model that the settings name.
pub fn from_config(settings: &Learning) -> Arc<dyn Llm> {
    match settings.sdk.as_str() {
        "mock" => Arc::new(mock::Mock),
        _ => Arc::new(Unconfigured),
    }
}

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
