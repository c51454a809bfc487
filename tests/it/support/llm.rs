//! A model whose responses a test decides, and which records what it was sent.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use acontextd::llm::{
    AssistantMessage, ChatRequest, ChatResponse, Llm, LlmError, Message, StopReason, ToolChoice, Usage,
};
use async_trait::async_trait;

/// Responds with what was put into it, in order; a request without a response left fails its test.
#[derive(Default)]
pub struct ScriptedLlm {
    responses: Mutex<VecDeque<Result<ChatResponse, LlmError>>>,
    requests: Mutex<Vec<RecordedRequest>>,
}

/// A request that the model was sent.
#[derive(Debug)]
pub struct RecordedRequest {
    pub messages: Vec<Message>,
    /// The names of the tools.
    pub tools: Vec<&'static str>,
    pub tool_choice: ToolChoice,
    pub max_tokens: u32,
}

impl ScriptedLlm {
    /// Responds with a text to the next request that has no response yet.
    pub fn respond(&self, text: &str) {
        self.push(Ok(ChatResponse {
            message: AssistantMessage { text: text.into(), ..AssistantMessage::default() },
            stop_reason: StopReason::EndTurn,
            usage: Usage::default(),
            model: "scripted".into(),
        }));
    }

    /// Fails the next request that has no response yet.
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
