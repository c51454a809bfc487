//! A model for unit tests that sends prepared responses and records its requests.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::{
    AssistantMessage, ChatMessage, ChatRequest, ChatResponse, Llm, LlmError, StopReason, TokenUsage, Tool, ToolCall,
    ToolResult,
};

/// A model with prepared responses. When none is left, it responds with a text. It rejects conversations that providers reject.
pub(crate) struct ScriptedLlm {
    responses: Mutex<VecDeque<Result<ChatResponse, LlmError>>>,
    requests: Mutex<Vec<RecordedRequest>>,
}

/// A request that a [`ScriptedLlm`] has received.
#[derive(Clone, Debug)]
pub(crate) struct RecordedRequest {
    pub(crate) system: String,
    pub(crate) messages: Vec<ChatMessage>,
    pub(crate) tools: Vec<Tool>,
    pub(crate) max_tokens: u32,
    pub(crate) deadline: Instant,
}

impl RecordedRequest {
    /// Returns the text of the first message.
    pub(crate) fn first_message(&self) -> &str {
        let ChatMessage::User(text) = &self.messages[0] else { panic!("the first message is the user's") };
        text
    }

    /// Returns all tool results, oldest first.
    pub(crate) fn results(&self) -> Vec<&ToolResult> {
        let results = self.messages.iter().map(|message| match message {
            ChatMessage::ToolResults(results) => results.as_slice(),
            _ => &[],
        });
        results.flatten().collect()
    }
}

impl ScriptedLlm {
    pub(crate) fn new(responses: impl IntoIterator<Item = Result<ChatResponse, LlmError>>) -> Self {
        Self { responses: Mutex::new(responses.into_iter().collect()), requests: Mutex::default() }
    }

    pub(crate) fn requests(&self) -> MutexGuard<'_, Vec<RecordedRequest>> {
        self.requests.lock().unwrap()
    }
}

#[async_trait]
impl Llm for ScriptedLlm {
    fn model(&self) -> &'static str {
        "scripted"
    }

    async fn chat(&self, request: &ChatRequest<'_>) -> Result<ChatResponse, LlmError> {
        check_conversation(request.messages);
        self.requests().push(RecordedRequest {
            system: request.system.into(),
            messages: request.messages.to_vec(),
            tools: request.tools.to_vec(),
            max_tokens: request.max_tokens,
            deadline: request.deadline,
        });
        self.responses.lock().unwrap().pop_front().unwrap_or_else(|| text("ok"))
    }
}

/// Panics if providers would reject the conversation.
fn check_conversation(messages: &[ChatMessage]) {
    assert!(matches!(messages[0], ChatMessage::User(_)), "the first message is the user's");
    assert!(!matches!(messages[messages.len() - 1], ChatMessage::Assistant(_)), "the last message is not the model's");
    for (index, message) in messages.iter().enumerate() {
        match message {
            ChatMessage::User(text) => assert!(!text.is_empty()),
            ChatMessage::Assistant(message) => {
                assert!(!message.text.is_empty() || !message.tool_calls.is_empty(), "a message has a content");
                for call in &message.tool_calls {
                    let arguments = serde_json::from_str::<Map<String, Value>>(&call.arguments);
                    assert!(arguments.is_ok(), "arguments are an object: {}", call.arguments);
                }
                let answered: Vec<&str> = match &messages[index + 1] {
                    ChatMessage::ToolResults(results) => results.iter().map(|result| result.call_id.as_str()).collect(),
                    _ => Vec::new(),
                };
                let called: Vec<&str> = message.tool_calls.iter().map(|call| call.id.as_str()).collect();
                assert_eq!(answered, called, "every call is answered in the next message");
            }
            ChatMessage::ToolResults(results) => {
                assert!(matches!(&messages[index - 1], ChatMessage::Assistant(_)));
                assert!(results.iter().all(|result| !result.text.is_empty()));
            }
        }
    }
}

/// Returns a response that consists of tool calls. The arguments are JSON texts.
#[expect(clippy::unnecessary_wraps, reason = "an item of a script")]
pub(crate) fn calls(calls: &[(&str, &str)]) -> Result<ChatResponse, LlmError> {
    static NEXT_ID: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let tool_calls = calls.iter().map(|(name, arguments)| ToolCall {
        id: format!("call_{}", NEXT_ID.fetch_add(1, std::sync::atomic::Ordering::Relaxed)),
        name: (*name).into(),
        arguments: (*arguments).into(),
    });
    let message = AssistantMessage { tool_calls: tool_calls.collect(), ..AssistantMessage::default() };
    Ok(response(message, StopReason::ToolCalls))
}

/// Returns a response that consists of a text.
#[expect(clippy::unnecessary_wraps, reason = "an item of a script")]
pub(crate) fn text(text: &str) -> Result<ChatResponse, LlmError> {
    Ok(response(AssistantMessage { text: text.into(), ..AssistantMessage::default() }, StopReason::EndTurn))
}

/// Returns a response with another stop reason.
pub(crate) fn stopped_by(
    stop_reason: StopReason,
    response: Result<ChatResponse, LlmError>,
) -> Result<ChatResponse, LlmError> {
    response.map(|response| ChatResponse { stop_reason, ..response })
}

fn response(message: AssistantMessage, stop_reason: StopReason) -> ChatResponse {
    ChatResponse { message, stop_reason, usage: TokenUsage::default(), model: "scripted".into() }
}
