//! Language models: the trait [`Llm`], its requests and responses, and its implementations.
//!
//! A request contains the whole conversation, because models are stateless: the caller appends each response, and the
//! results of its tool calls, to the messages of the next request.
//!
//! `openai` and `anthropic` convert requests and responses. Both use `http` for the requests themselves, with the delays of
//! `retry` and the errors of `api_error`. `limits` limits the number of concurrent requests. [`recording`] records each model
//! call, which is a request with its repeated attempts: in the database ([`usage`]) and in [`metrics`]. [`agent`] is the tool
//! loop of all agents, and [`schema`] describes the parameters of their tools.

pub mod agent;
mod anthropic;
mod api_error;
pub mod check;
mod echo;
mod http;
mod limits;
pub mod metrics;
mod mock;
mod openai;
pub mod recording;
mod retry;
pub mod schema;
#[cfg(test)]
pub(crate) mod scripted;
pub mod usage;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::config::{Model, Provider};
use crate::ids::{LearningSpaceId, ProjectId};
use crate::text_enum::text_enum;

pub use limits::LimitedLlm;

/// A request to a model.
#[derive(Clone, Copy)]
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
    /// The time at which the request fails with [`LlmError::Unavailable`]. It includes all attempts, and the wait for other
    /// requests of this process to complete.
    pub deadline: Instant,
    pub origin: CallOrigin,
}

/// The origin of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallOrigin {
    pub project: ProjectId,
    pub purpose: Purpose,
    /// The learning space whose skills the request is about.
    pub learning_space: Option<LearningSpaceId>,
}

text_enum! {
    /// The purpose of a request to a language model.
    pub enum Purpose {
        TaskAgent = "task_agent",
        Distillation = "distillation",
        SkillAgent = "skill_agent",
        Check = "check",
    }
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
    /// The message as the next request repeats it, in the format of the provider. It may contain reasoning and signatures that
    /// are not in the other fields, and differs from them where the provider would reject them: arguments that are not a JSON
    /// object are `{}`, and invalid characters in the names of tools are replaced. `None` if the other fields suffice.
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
    /// The id that the provider assigned, or one that the client assigned because the provider's was missing or repeated. It is
    /// unique within the conversation.
    pub id: String,
    /// The name of the tool. A model may call a tool that does not exist.
    pub name: String,
    /// The arguments as the model generated them: possibly invalid JSON, or JSON that does not match the schema. `{}` if the
    /// model generated none.
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

/// The number of tokens of a request and its response, as counted by the provider. All are 0 if the provider reports none.
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
    /// No model is configured.
    #[error(
        "no model is configured: set LLM_API_KEY, or LLM_BASE_URL for a server without keys, and LLM_SDK if the API is not that \
         of OpenAI"
    )]
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

/// The error of a request after which the provider requests a delay. Its text is that of the error.
#[derive(Debug, thiserror::Error)]
#[error("{error:#}")]
pub struct RetryAfter {
    error: anyhow::Error,
    delay: Duration,
}

impl LlmError {
    /// Returns the delay that the provider requests before the next request.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unavailable(error) => error.downcast_ref::<RetryAfter>().map(|error| error.delay),
            _ => None,
        }
    }

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

    /// Returns the name of the configured model; empty if no model is configured.
    fn model(&self) -> &str;

    /// Sends a conversation to the model and returns its response.
    async fn chat(&self, request: &ChatRequest<'_>) -> Result<ChatResponse, LlmError>;
}

/// Returns the implementation for the configured provider. `client` must follow no redirects.
pub fn from_config(settings: &Model, client: reqwest::Client) -> Arc<dyn Llm> {
    match (settings.provider(), settings.base_url()) {
        (Provider::OpenAi, Some(url)) => Arc::new(openai::OpenAi::new(settings, client, &url)),
        (Provider::Anthropic, Some(url)) => Arc::new(anthropic::Anthropic::new(settings, client, &url)),
        (Provider::Mock, _) => Arc::new(mock::MockLlm),
        (Provider::None, _) | (Provider::OpenAi | Provider::Anthropic, None) => Arc::new(Unconfigured),
    }
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

    fn model(&self) -> &'static str {
        ""
    }

    async fn chat(&self, _: &ChatRequest<'_>) -> Result<ChatResponse, LlmError> {
        Err(LlmError::NotConfigured)
    }
}

#[cfg(test)]
mod tests;
