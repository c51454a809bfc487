//! A mock model for tests, and for a server with `LLM_SDK=mock`.

use async_trait::async_trait;

use super::{AssistantMessage, ChatMessage, ChatRequest, ChatResponse, Llm, LlmError, StopReason, TokenUsage};

/// A model that never calls a tool. It returns `Hello World` if the instructions or a user message contain `Simple Hello`, like
/// the mock model of upstream, and otherwise another fixed text.
pub(super) struct MockLlm;

#[async_trait]
impl Llm for MockLlm {
    async fn chat(&self, request: &ChatRequest<'_>) -> Result<ChatResponse, LlmError> {
        let is_greeting = |text: &str| text.contains("Simple Hello");
        let has_greeting = is_greeting(request.system)
            || request.messages.iter().any(|message| matches!(message, ChatMessage::User(text) if is_greeting(text)));
        let text = if has_greeting { "Hello World" } else { "This is a mock answer." };
        Ok(ChatResponse {
            message: AssistantMessage { text: text.into(), ..AssistantMessage::default() },
            stop_reason: StopReason::EndTurn,
            usage: TokenUsage::default(),
            model: "mock".into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::ToolChoice;

    async fn respond(system: &str, messages: &[ChatMessage]) -> ChatResponse {
        let request = ChatRequest { system, messages, tools: &[], tool_choice: ToolChoice::Auto, max_tokens: 100 };
        MockLlm.chat(&request).await.unwrap()
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
}
