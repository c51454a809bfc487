//! Helpers for the unit tests of the clients.

use std::time::Duration;

use uuid::Uuid;

use super::*;
use crate::config::Config;

/// Returns a request with a conversation, without instructions and tools.
pub(super) fn request(messages: &[ChatMessage]) -> ChatRequest<'_> {
    ChatRequest {
        system: "",
        messages,
        tools: &[],
        tool_choice: ToolChoice::Auto,
        max_tokens: 100,
        deadline: Instant::now() + Duration::from_mins(1),
        origin: CallOrigin { project: ProjectId(Uuid::nil()), purpose: Purpose::Check, learning_space: None },
    }
}

/// Returns the settings of a model.
pub(super) fn settings(variables: &[(&str, &str)]) -> Model {
    let environment = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
    Config::from_args_and_env(["acontextd"], &environment).unwrap_or_else(|_| panic!("{variables:?}")).model
}

/// Returns a tool with one optional argument.
pub(super) fn tool() -> Tool {
    let parameters = serde_json::json!({"type": "object", "properties": {"text": {"type": "string"}}, "required": []});
    Tool { name: "report", description: "Reports a text.", parameters }
}

#[test]
fn every_provider_has_an_implementation() {
    for (variables, is_configured) in [
        (&[("LLM_SDK", "none")][..], false),
        (&[], false),
        (&[("LLM_SDK", "mock")], true),
        (&[("LLM_API_KEY", "a-key")], true),
        (&[("LLM_SDK", "anthropic"), ("LLM_API_KEY", "a-key"), ("LLM_SIMPLE_MODEL", "claude")], true),
    ] {
        let llm = from_config(&settings(variables), reqwest::Client::new());
        assert_eq!(llm.is_configured(), is_configured, "{variables:?}");
    }
}
