//! The check of the configured model by `acontextd check-model`: one short request with a tool.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;
use uuid::Uuid;

use super::http::host_and_port;
use super::{CallOrigin, ChatMessage, ChatRequest, ChatResponse, Llm, LlmError, Purpose, StopReason, Tool, ToolChoice};
use crate::config::{Model, Provider};
use crate::ids::ProjectId;
use crate::json;

/// The time that the deadline adds to the timeout of an attempt, so that an attempt that fails early can be repeated.
const RETRY_TIME: Duration = Duration::from_secs(10);

/// The name of the tool that the model is instructed to call.
const TOOL_NAME: &str = "report_status";

/// What to do if the model cannot call tools.
const OTHER_MODEL: &str = "set LLM_SIMPLE_MODEL to a model that supports tool calls";

/// The arguments that the model is instructed to send.
const EXPECTED_TEXT: &str = "ready";

/// The result of a check.
pub struct CheckReport {
    /// Lines about what works, for the operator.
    pub text: String,
    /// A sentence about what to correct, if the model cannot be used.
    pub problem: Option<String>,
}

/// Sends a short request with a tool to the model, and returns what works.
pub async fn check_model(settings: &Model, llm: &dyn Llm) -> CheckReport {
    let mut report = CheckReport { text: format!("provider    {}\n", describe_provider(settings)), problem: None };
    match settings.provider() {
        Provider::None => report.problem = Some(LlmError::NotConfigured.to_string()),
        Provider::Mock => {
            report.problem = Some("LLM_SDK is mock, which extracts no tasks: set it to openai or anthropic".into());
        }
        Provider::OpenAi | Provider::Anthropic => {
            let started_at = Instant::now();
            match send_request(settings, llm).await {
                Ok((response, is_forced)) => report.add_response(&response, is_forced, started_at.elapsed()),
                Err(error @ LlmError::Unavailable(_)) if error.to_string().contains("returned 429") => {
                    report.problem = Some(format!(
                        "{error}: wait and run the check again, or check the rate limits and the billing of the account"
                    ));
                }
                Err(error @ LlmError::Unavailable(_)) => {
                    report.problem = Some(format!("{error}: check LLM_BASE_URL, and whether the server works"));
                }
                Err(error) => report.problem = Some(error.to_string()),
            }
        }
    }
    report
}

/// Returns the provider, the host and port of its base URL, and the model as a text.
pub fn describe_provider(settings: &Model) -> String {
    let provider = settings.provider().name();
    let host = settings.base_url().map(|url| host_and_port(&url));
    match (host, settings.name()) {
        (Some(host), Some(model)) => format!("{provider} at {host}, model {model}"),
        _ => provider.to_owned(),
    }
}

/// Sends the request. Returns the response, and `true` if the tool call was required. If the server rejects the request, repeats
/// it without this requirement, which not every server supports.
async fn send_request(settings: &Model, llm: &dyn Llm) -> Result<(ChatResponse, bool), LlmError> {
    let tools = [Tool {
        name: TOOL_NAME,
        description: "Reports that you can call tools.",
        parameters: serde_json::json!({
            "type": "object",
            "properties": {"status": {"type": "string", "description": "The status to report."}},
            "required": ["status"],
        }),
    }];
    let user = format!("Call the tool {TOOL_NAME} with the status \"{EXPECTED_TEXT}\". Write nothing else.");
    let request = ChatRequest {
        system: "You check whether an application can use you. Follow the user's instruction exactly.",
        messages: &[ChatMessage::User(user)],
        tools: &tools,
        tool_choice: ToolChoice::Required,
        max_tokens: settings.max_tokens,
        deadline: Instant::now() + settings.response_timeout + RETRY_TIME,
        origin: CallOrigin { project: ProjectId(Uuid::nil()), purpose: Purpose::Check, learning_space: None },
    };
    match llm.chat(&request).await {
        Err(LlmError::Rejected(_)) => {
            let response = llm.chat(&ChatRequest { tool_choice: ToolChoice::Auto, ..request }).await?;
            Ok((response, false))
        }
        result => Ok((result?, true)),
    }
}

impl CheckReport {
    fn add_response(&mut self, response: &ChatResponse, is_forced: bool, duration: Duration) {
        let mut add = |name: &str, value: String| self.text.extend([&format!("{name:<12}"), value.as_str(), "\n"]);
        add("connection", format!("works; the response took {} ms", duration.as_millis()));
        add("model", format!("{} (as reported)", response.model));
        let usage = response.usage;
        add(
            "usage",
            if usage.input_tokens == 0 {
                "not reported, so the token counts of the model usage will be 0".into()
            } else {
                format!(
                    "reported: {} input tokens ({} cached), {} output tokens",
                    usage.input_tokens, usage.cached_tokens, usage.output_tokens
                )
            },
        );
        let forced_text = if is_forced { "" } else { "; the server does not support tool_choice" };
        let (result, problem) = check_tool_call(response);
        add("tool call", format!("{result}{forced_text}"));
        self.problem = problem;
    }
}

/// Checks the tool call in a response. Returns the result for the report, and what to correct if the call is not as instructed.
fn check_tool_call(response: &ChatResponse) -> (&'static str, Option<String>) {
    let cut_off = response.stop_reason == StopReason::MaxTokens;
    match response.message.tool_calls.first() {
        None if cut_off => (
            "missing",
            Some("the response was cut off before the tool call: increase ACONTEXTD_LLM_MAX_TOKENS".to_owned()),
        ),
        None => (
            "missing",
            Some(format!("the model responded without the tool call that it was instructed to make: {OTHER_MODEL}")),
        ),
        Some(call) if call.name != TOOL_NAME => (
            "has a wrong name",
            Some(format!("the model called a tool of another name than {TOOL_NAME}: {OTHER_MODEL}")),
        ),
        Some(call) => match json::parse(call.arguments.as_bytes()) {
            Ok(Value::Object(arguments)) if arguments.get("status").is_some_and(Value::is_string) => {
                ("works, with valid arguments", None)
            }
            Ok(Value::Object(_)) if !cut_off => (
                "has invalid arguments",
                Some(format!("the model called the tool without the text `status` in the arguments: {OTHER_MODEL}")),
            ),
            _ => (
                "has invalid arguments",
                Some(format!(
                    "the model called the tool with arguments that are incomplete or not a JSON object: \
                     {OTHER_MODEL}, or increase ACONTEXTD_LLM_MAX_TOKENS"
                )),
            ),
        },
    }
}
