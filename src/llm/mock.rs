//! A mock model for tests, and for a server with `LLM_SDK=mock`.

use async_trait::async_trait;

use super::{
    AssistantMessage, ChatMessage, ChatRequest, ChatResponse, Llm, LlmError, StopReason, TokenUsage, ToolCall,
};

/// A model with fixed responses, like the mock model of upstream. It searches the instructions and the user messages for texts:
///
/// - `Simple Hello`: the response is `Hello World`.
/// - `CALL_TOOL_DISK_LIST`: the response calls the tool `disk.list`, unless the conversation has results of tools already.
/// - Otherwise, the response is another fixed text.
pub(super) struct MockLlm;

#[async_trait]
impl Llm for MockLlm {
    fn model(&self) -> &'static str {
        "mock"
    }

    async fn chat(&self, request: &ChatRequest<'_>) -> Result<ChatResponse, LlmError> {
        let contains = |text: &str| {
            let is_match = |message: &ChatMessage| matches!(message, ChatMessage::User(user) if user.contains(text));
            request.system.contains(text) || request.messages.iter().any(is_match)
        };
        let has_results = request.messages.iter().any(|message| matches!(message, ChatMessage::ToolResults(_)));
        let mut message = AssistantMessage::default();
        if contains("Simple Hello") {
            message.text = "Hello World".into();
        } else if contains("CALL_TOOL_DISK_LIST") && !has_results {
            message.tool_calls.push(ToolCall {
                id: "call_mock_disk_list".into(),
                name: "disk.list".into(),
                arguments: r#"{"path":"/tmp"}"#.into(),
            });
        } else {
            message.text = "This is a mock answer.".into();
        }
        let stop_reason = if message.tool_calls.is_empty() { StopReason::EndTurn } else { StopReason::ToolCalls };
        Ok(ChatResponse { message, stop_reason, usage: TokenUsage::default(), model: "mock".into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::tests::request;
    use crate::llm::{ToolChoice, ToolResult};

    async fn respond(system: &str, messages: &[ChatMessage]) -> ChatResponse {
        MockLlm.chat(&ChatRequest { system, tool_choice: ToolChoice::Auto, ..request(messages) }).await.unwrap()
    }

    #[tokio::test]
    async fn greetings_and_other_texts_have_fixed_responses() {
        let response = respond("Be kind.", &[ChatMessage::User("a Simple Hello".into())]).await;
        assert_eq!(response.message.text, "Hello World");
        assert_eq!(respond("Simple Hello", &[]).await.message.text, "Hello World");
        let response = respond("Be kind.", &[ChatMessage::User("What is this?".into())]).await;
        assert_eq!(response.message.text, "This is a mock answer.");
        assert_eq!(response.stop_reason, StopReason::EndTurn);
        assert!(response.message.tool_calls.is_empty());
    }

    #[tokio::test]
    async fn the_tool_is_called_once() {
        let mut messages = vec![ChatMessage::User("CALL_TOOL_DISK_LIST".into())];
        let response = respond("", &messages).await;
        let call = &response.message.tool_calls[0];
        assert_eq!((call.name.as_str(), call.arguments.as_str()), ("disk.list", r#"{"path":"/tmp"}"#));
        assert_eq!(response.stop_reason, StopReason::ToolCalls);
        let result = ToolResult { call_id: call.id.clone(), text: "a.txt".into(), is_error: false };
        messages.extend([ChatMessage::Assistant(response.message.clone()), ChatMessage::ToolResults(vec![result])]);
        assert_eq!(respond("", &messages).await.stop_reason, StopReason::EndTurn);
    }
}
