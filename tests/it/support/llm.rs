//! A model that returns the responses of a test and records its requests.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use acontextd::llm::{
    AssistantMessage, ChatMessage, ChatRequest, ChatResponse, Llm, LlmError, StopReason, TokenUsage, ToolChoice,
};
use async_trait::async_trait;

/// Returns the responses that a test has added, in order. A request without a remaining response fails its test.
#[derive(Default)]
pub struct ScriptedLlm {
    responses: Mutex<VecDeque<Result<ChatResponse, LlmError>>>,
    requests: Mutex<Vec<RecordedRequest>>,
}

/// A request that the model has received.
#[derive(Debug)]
pub struct RecordedRequest {
    pub messages: Vec<ChatMessage>,
    /// The names of the tools.
    pub tools: Vec<&'static str>,
    pub tool_choice: ToolChoice,
    pub max_tokens: u32,
}

impl ScriptedLlm {
    /// Adds a response with a text.
    pub fn respond(&self, text: &str) {
        self.push(Ok(ChatResponse {
            message: AssistantMessage { text: text.into(), ..AssistantMessage::default() },
            stop_reason: StopReason::EndTurn,
            usage: TokenUsage::default(),
            model: "scripted".into(),
        }));
    }

    /// Adds an error response.
    pub fn fail(&self, error: LlmError) {
        self.push(Err(error));
    }

    fn push(&self, response: Result<ChatResponse, LlmError>) {
        self.responses.lock().unwrap_or_else(PoisonError::into_inner).push_back(response);
    }

    /// Returns the requests since the last call.
    pub fn take_requests(&self) -> Vec<RecordedRequest> {
        std::mem::take(&mut *self.requests.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
impl Llm for ScriptedLlm {
    fn model(&self) -> &'static str {
        "scripted"
    }

    async fn chat(&self, request: &ChatRequest<'_>) -> Result<ChatResponse, LlmError> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).push(RecordedRequest {
            messages: request.messages.to_vec(),
            tools: request.tools.iter().map(|tool| tool.name).collect(),
            tool_choice: request.tool_choice,
            max_tokens: request.max_tokens,
        });
        let response = self.responses.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        response.expect("a request that the test did not expect")
    }
}
