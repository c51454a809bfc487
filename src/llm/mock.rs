//! A model without a network, for trying things out: it always responds with the same text, and never calls a tool.

use async_trait::async_trait;

use super::{AssistantMessage, ChatRequest, ChatResponse, Llm, LlmError, Message, StopReason, Usage};

pub(super) struct Mock;

#[async_trait]
impl Llm for Mock {
    async fn chat(&self, request: &ChatRequest<'_>) -> Result<ChatResponse, LlmError> {
        let is_greeting = |text: &str| text.contains("Simple Hello");
        let greets = is_greeting(request.system)
            || request.messages.iter().any(|message| matches!(message, Message::User(text) if is_greeting(text)));
        let text = if greets { "Hello World" } else { "This is a mock answer." };
        Ok(ChatResponse {
            message: AssistantMessage { text: text.into(), ..AssistantMessage::default() },
            stop_reason: StopReason::EndTurn,
            usage: Usage::default(),
            model: "mock".into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::ToolChoice;

    async fn respond(system: &str, messages: &[Message]) -> ChatResponse {
        let request = ChatRequest { system, messages, tools: &[], tool_choice: ToolChoice::Auto, max_tokens: 100 };
        Mock.chat(&request).await.unwrap()
    }

    #[tokio::test]
    async fn it_responds_to_a_greeting_and_to_everything_else() {
        let response = respond("Be kind.", &[Message::User("a Simple Hello".into())]).await;
        assert_eq!(response.message.text, "Hello World");
        assert_eq!(respond("Simple Hello", &[]).await.message.text, "Hello World");
        let response = respond("Be kind.", &[Message::User("What is this?".into())]).await;
        assert_eq!(response.message.text, "This is a mock answer.");
        assert_eq!(response.stop_reason, StopReason::EndTurn);
        assert!(response.message.tool_calls.is_empty());
    }
}
