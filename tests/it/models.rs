//! The clients of model providers, with the scripted model behind both APIs.

use std::sync::Arc;
use std::time::Duration;

use acontextd::ids::ProjectId;
use acontextd::llm::{
    self, AssistantMessage, CallOrigin, ChatMessage, ChatRequest, ChatResponse, LimitedLlm, Llm, LlmError, Purpose,
    StopReason, Tool, ToolChoice, ToolResult,
};
use acontextd::platform;
use serde_json::json;
use tokio::time::Instant;
use tracing::Level;
use uuid::Uuid;

use crate::support::captured_log::CapturedLog;
use crate::support::model_server::{Lane, Latch, ModelServer, Step, Wire};
use crate::support::server_process::ServerProcess;
use crate::support::{app_config, run_with};

const MARKER: &str = "[[S1]]";

/// A scripted model and a real client for it.
struct Model {
    server: ModelServer,
    wire: Wire,
    llm: Arc<dyn Llm>,
    settings: Vec<(&'static str, String)>,
}

impl Model {
    async fn start(wire: Wire) -> Self {
        Self::start_with(wire, &[]).await
    }

    /// Starts the model. An empty setting replaces that of [`ModelServer::settings`] with the default.
    async fn start_with(wire: Wire, settings: &[(&'static str, &str)]) -> Self {
        let server = ModelServer::start().await;
        let mut all = server.settings(wire);
        all.extend(settings.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let llm = llm::from_config(&app_config(&all).model, platform::build_http_client().unwrap());
        Self { server, wire, llm, settings: all }
    }

    fn script(&self, steps: impl IntoIterator<Item = Step>) {
        self.server.script(Lane::Task, MARKER, steps);
    }

    async fn chat(&self, messages: &[ChatMessage]) -> Result<ChatResponse, LlmError> {
        self.chat_within(messages, Duration::from_mins(2)).await
    }

    async fn chat_within(&self, messages: &[ChatMessage], time: Duration) -> Result<ChatResponse, LlmError> {
        self.llm.chat(&request(messages, &tools(), time)).await
    }

    /// Sends the first request of a conversation.
    async fn ask(&self) -> Result<ChatResponse, LlmError> {
        self.chat(&[user()]).await
    }

    /// Asserts that the server has received `count` requests, and rejected none.
    fn assert_requests(&self, count: usize) {
        assert_eq!(self.server.take_requests().len(), count, "{:?}", self.wire);
        self.server.assert_nothing_rejected();
    }
}

fn user() -> ChatMessage {
    ChatMessage::User(format!("Plan the work. {MARKER}"))
}

fn tools() -> Vec<Tool> {
    let schema = |property: &str| {
        let properties = json!({property: {"type": "string"}});
        json!({"type": "object", "properties": properties, "required": [property]})
    };
    let insert = Tool { name: "insert_task", description: "Inserts a task.", parameters: schema("task") };
    let no_arguments = json!({"type": "object", "properties": {}, "required": []});
    vec![insert, Tool { name: "finish", description: "Ends the work.", parameters: no_arguments }]
}

fn request<'a>(messages: &'a [ChatMessage], tools: &'a [Tool], time: Duration) -> ChatRequest<'a> {
    ChatRequest {
        system: "You plan work.",
        messages,
        tools,
        tool_choice: ToolChoice::Auto,
        max_tokens: 1_000,
        deadline: Instant::now() + time,
        origin: origin(1),
    }
}

fn origin(project: u128) -> CallOrigin {
    CallOrigin { project: ProjectId(Uuid::from_u128(project)), purpose: Purpose::TaskAgent, learning_space: None }
}

/// Returns the conversation after a response, with a result for each of its tool calls.
fn continue_with(message: &AssistantMessage) -> Vec<ChatMessage> {
    let results = message.tool_calls.iter().enumerate().map(|(index, call)| ToolResult {
        call_id: call.id.clone(),
        text: format!("result {index}"),
        is_error: index == 1,
    });
    vec![user(), ChatMessage::Assistant(message.clone()), ChatMessage::ToolResults(results.collect())]
}

fn insert(task: &str) -> Step {
    Step::call("insert_task", json!({"task": task}))
}

#[tokio::test]
async fn parallel_calls_are_answered_as_the_provider_requires() {
    for wire in Wire::ALL {
        let model = Model::start(wire).await;
        let calls = insert("one").and_call("insert_task", json!({"task": "two"})).and_call("finish", json!({}));
        model.script([calls.with_text("I plan."), Step::text("Done.")]);
        let response = model.ask().await.unwrap();
        assert_eq!((response.stop_reason, response.model.as_str()), (StopReason::ToolCalls, "test-model-1"));
        assert_eq!((response.message.text.as_str(), response.message.tool_calls.len()), ("I plan.", 3));
        assert_eq!(response.message.tool_calls[1].arguments, r#"{"task":"two"}"#);
        let last = model.chat(&continue_with(&response.message)).await.unwrap();
        assert_eq!((last.message.text.as_str(), last.stop_reason), ("Done.", StopReason::EndTurn));
        let requests = model.server.take_requests();
        assert_eq!(requests[1].last_results(), ["result 0", "result 1", "result 2"]);
        assert_eq!(requests[1].system(), "You plan work.");
        let ids: Vec<_> = requests[1].tool_results().into_iter().map(|(id, _)| id).collect();
        let call_ids: Vec<_> = response.message.tool_calls.into_iter().map(|call| call.id).collect();
        assert_eq!(ids, call_ids);
        let roles: Vec<_> =
            requests[1].body["messages"].as_array().unwrap().iter().map(|message| &message["role"]).collect();
        match wire {
            Wire::OpenAi => assert_eq!(roles, ["system", "user", "assistant", "tool", "tool", "tool"]),
            Wire::Anthropic => assert_eq!(roles, ["user", "assistant", "user"], "all results are one message"),
        }
        model.server.assert_nothing_rejected();
    }
}

#[tokio::test]
async fn retry_after_delays_the_next_attempt() {
    for wire in Wire::ALL {
        let model = Model::start(wire).await;
        model.script([Step::status(429).retry_after("1"), Step::text("Done.")]);
        assert_eq!(model.ask().await.unwrap().message.text, "Done.");
        let requests = model.server.take_requests();
        let delay = requests[1].received_at - requests[0].received_at;
        assert!(requests.len() == 2 && delay >= Duration::from_secs(1), "{delay:?}");
        assert_eq!(requests[0].body, requests[1].body);
    }
}

#[tokio::test]
async fn transient_errors_are_repeated() {
    for wire in Wire::ALL {
        let model = Model::start(wire).await;
        for step in [408, 409, 429, 500, 502, 503, 529].map(Step::status) {
            model.script([step.retry_after("0"), insert("one")]);
            assert_eq!(model.ask().await.unwrap().message.tool_calls.len(), 1);
            model.assert_requests(2);
        }
    }
}

#[tokio::test]
async fn unreadable_responses_are_repeated() {
    for wire in Wire::ALL {
        let model = Model::start(wire).await;
        for (name, step) in [
            ("cut off", Step::reset()),
            ("not JSON", Step::invalid_json()),
            ("truncated", Step::body(r#"{"choices": [{"#)),
            ("empty", Step::body("")),
            ("without an answer", Step::body(r#"{"choices": [], "usage": null}"#)),
            ("an error with status 200", Step::body(r#"{"error": {"code": 502, "message": "upstream failed"}}"#)),
        ] {
            model.script([step, insert("one")]);
            let response = model.ask().await.unwrap_or_else(|err| panic!("{name}: {err}"));
            assert_eq!(response.message.tool_calls.len(), 1, "{name}");
            model.assert_requests(2);
        }
    }
}

#[tokio::test]
async fn an_answer_that_is_not_json_is_described() {
    for wire in Wire::ALL {
        let model = Model::start(wire).await;
        model.script((0..3).map(|_| Step::invalid_json()));
        let error = model.ask().await.unwrap_err().to_string();
        assert!(
            error.contains("content type application/json") && error.contains("LLM_BASE_URL may be wrong"),
            "{error}"
        );
        model.assert_requests(3);
    }
}

#[tokio::test]
async fn attempts_are_bounded() {
    for wire in Wire::ALL {
        let model = Model::start(wire).await;
        model.script((0..5).map(|_| Step::error(503, "The model is overloaded.").retry_after("0")));
        let error = model.ask().await.unwrap_err();
        assert!(matches!(error, LlmError::Unavailable(_)) && error.is_retryable());
        assert!(error.to_string().contains("returned 503: The model is overloaded."), "{error}");
        model.assert_requests(3);
    }
}

#[tokio::test]
async fn a_request_that_hangs_is_aborted_at_the_timeout() {
    for wire in Wire::ALL {
        let model = Model::start_with(wire, &[("LLM_RESPONSE_TIMEOUT", "200ms")]).await;
        model.script([Step::hang(), Step::hang(), Step::text("Done.")]);
        let started_at = Instant::now();
        assert_eq!(model.ask().await.unwrap().message.text, "Done.");
        let requests = model.server.take_requests();
        assert!(started_at.elapsed() >= Duration::from_millis(400) && requests.len() == 3);
        assert!(requests[1].received_at - requests[0].received_at >= Duration::from_millis(200));
    }
}

#[tokio::test]
async fn no_attempt_begins_without_half_of_its_timeout() {
    for wire in Wire::ALL {
        let model = Model::start_with(wire, &[("LLM_RESPONSE_TIMEOUT", "1s")]).await;
        // The second attempt would begin at least 1.375 s after the first, with less than half a second.
        model.script([Step::hang()]);
        let error = model.chat_within(&[user()], Duration::from_millis(1_800)).await.unwrap_err();
        assert!(error.to_string().contains("did not respond within 1.0 s"), "{error}");
        model.assert_requests(1);
        // The timeout of an attempt ends at the deadline, too.
        model.script([Step::hang()]);
        let started_at = Instant::now();
        let error = model.chat_within(&[user()], Duration::from_millis(700)).await.unwrap_err();
        assert!(matches!(error, LlmError::Unavailable(_)) && started_at.elapsed() < Duration::from_secs(1));
        model.assert_requests(1);
        // The requested delay leaves too little time.
        model.script([Step::status(429).retry_after("2")]);
        let started_at = Instant::now();
        let error = model.chat_within(&[user()], Duration::from_millis(2_300)).await.unwrap_err();
        assert!(error.to_string().contains("returned 429") && started_at.elapsed() < Duration::from_secs(2), "{error}");
        model.assert_requests(1);
        // Too little time is left for the first attempt.
        for time in [Duration::ZERO, Duration::from_millis(400)] {
            let error = model.chat_within(&[user()], time).await.unwrap_err();
            assert!(error.to_string().contains("the time of the job is used up"), "{error}");
            model.assert_requests(0);
        }
    }
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_named() {
    for wire in Wire::ALL {
        let address = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let url = format!("http://{address}/v1");
        let model = Model::start_with(wire, &[("LLM_BASE_URL", &url), ("LLM_RESPONSE_TIMEOUT", "1s")]).await;
        let error = model.chat_within(&[user()], Duration::from_millis(700)).await.unwrap_err();
        assert!(matches!(error, LlmError::Unavailable(_)));
        let text = error.to_string();
        assert!(text.contains(&format!("failed to connect to {address}: Connection refused")), "{text}");
    }
}

#[tokio::test]
async fn permanent_errors_are_not_repeated() {
    for wire in Wire::ALL {
        let model = Model::start(wire).await;
        for (status, message, setting) in [
            (401, "Incorrect API key provided: test-key-0123456789", "LLM_API_KEY"),
            (403, "not allowed", "LLM_SIMPLE_MODEL"),
            (404, "model: test-model", "LLM_SIMPLE_MODEL"),
            (404, "not found", "LLM_BASE_URL"),
        ] {
            model.script([Step::error(status, message)]);
            let error = model.ask().await.unwrap_err();
            assert!(matches!(error, LlmError::Misconfigured(_)) && error.is_retryable(), "{error}");
            assert!(error.to_string().contains(setting) && !error.to_string().contains("0123456789"), "{error}");
            model.assert_requests(1);
        }
        for status in [400, 422] {
            model.script([Step::error(status, "unknown\u{0} field")]);
            let error = model.ask().await.unwrap_err();
            assert!(matches!(error, LlmError::Rejected(_)) && !error.is_retryable(), "{error}");
            assert!(error.to_string().contains(&format!("({status}: unknown field)")), "{error}");
            model.assert_requests(1);
        }
    }
}

#[tokio::test]
async fn a_key_in_a_header_is_named_and_not_repeated() {
    let header = r#"{"Authorization": "Bearer hunter2-0123456789"}"#;
    let model = Model::start_with(Wire::OpenAi, &[("LLM_API_KEY", ""), ("LLM_OPENAI_DEFAULT_HEADER", header)]).await;
    for (status, setting) in [(401, "a valid key in LLM_OPENAI_DEFAULT_HEADER"), (402, "in LLM_OPENAI_DEFAULT_HEADER")]
    {
        model.script([Step::error(status, "Incorrect API key provided: hunter2-0123456789")]);
        let error = model.ask().await.unwrap_err().to_string();
        assert!(error.contains("provided: [secret]") && error.contains(setting), "{error}");
        assert!(!error.contains("hunter2") && !error.contains("LLM_API_KEY"), "{error}");
    }
    assert_eq!(model.server.take_requests()[0].headers["authorization"], "Bearer hunter2-0123456789");
}

#[tokio::test]
async fn a_context_that_is_too_long_is_an_error_of_its_own() {
    for (wire, message) in [
        (Wire::OpenAi, "This model's maximum context length is 8192 tokens."),
        (Wire::OpenAi, "the request exceeds the available context size, try to increase it"),
        (Wire::Anthropic, "prompt is too long: 200001 tokens > 200000 maximum"),
    ] {
        let model = Model::start(wire).await;
        model.script([Step::error(400, message)]);
        let error = model.ask().await.unwrap_err();
        assert!(matches!(error, LlmError::ContextTooLong(_)) && !error.is_retryable(), "{error}");
        model.assert_requests(1);
    }
}

#[tokio::test]
async fn empty_arguments_missing_usage_and_unknown_fields_are_accepted() {
    for wire in Wire::ALL {
        let model = Model::start(wire).await;
        let step = Step::call("finish", json!("")).without_usage();
        model.script([step.edit(|body| body["new_field"] = json!({"a": [1]})), Step::text("Done.")]);
        let response = model.ask().await.unwrap();
        let call = &response.message.tool_calls[0];
        assert_eq!((call.name.as_str(), call.arguments.as_str()), ("finish", "{}"));
        assert_eq!(response.usage.input_tokens, 0);
        model.chat(&continue_with(&response.message)).await.unwrap();
        model.assert_requests(2);
    }
}

#[tokio::test]
async fn arguments_may_be_an_object_and_ids_may_be_missing_or_repeated() {
    let model = Model::start(Wire::OpenAi).await;
    let calls = insert("one").and_call("insert_task", json!({"task": "two"})).and_call("finish", json!({}));
    model.script([calls.with_call_id("same").edit(|body| {
        let calls = &mut body["choices"][0]["message"]["tool_calls"];
        calls[0]["function"]["arguments"] = json!({"task": "one"});
        calls[0].as_object_mut().unwrap().remove("id");
        body["choices"][0]["finish_reason"] = json!("stop");
    })]);
    let response = model.ask().await.unwrap();
    let calls: Vec<_> =
        response.message.tool_calls.iter().map(|call| (call.id.as_str(), call.arguments.as_str())).collect();
    assert_eq!(calls, [("call_1", r#"{"task":"one"}"#), ("same", r#"{"task":"two"}"#), ("call_3", "{}")]);
    assert_eq!(response.stop_reason, StopReason::ToolCalls);
    model.chat(&continue_with(&response.message)).await.unwrap();
    model.assert_requests(2);
}

#[tokio::test]
async fn ids_that_are_repeated_in_the_conversation_are_replaced() {
    for wire in Wire::ALL {
        let model = Model::start(wire).await;
        let both = insert("one").and_call("finish", json!({})).with_call_id("same");
        model.script([both, insert("two").with_call_id("same"), Step::text("Done.")]);
        let first = model.ask().await.unwrap();
        let mut messages = continue_with(&first.message);
        let second = model.chat(&messages).await.unwrap();
        messages.extend(continue_with(&second.message).drain(1..));
        model.chat(&messages).await.unwrap();
        let calls = [first.message.tool_calls, second.message.tool_calls].concat();
        assert_eq!(calls.iter().map(|call| call.id.as_str()).collect::<Vec<_>>(), ["same", "call_2", "call_3"]);
        model.assert_requests(3);
    }
}

#[tokio::test]
async fn truncated_arguments_are_detected() {
    for wire in Wire::ALL {
        let model = Model::start(wire).await;
        model.script([Step::truncated("insert_task", r#"{"task": "Wri"#), Step::text("Done.")]);
        let response = model.ask().await.unwrap();
        assert_eq!(response.stop_reason, StopReason::MaxTokens);
        let arguments = if wire == Wire::OpenAi { r#"{"task": "Wri"# } else { "{}" };
        assert_eq!(response.message.tool_calls[0].arguments, arguments);
        model.chat(&continue_with(&response.message)).await.unwrap();
        model.assert_requests(2);
    }
}

#[tokio::test]
async fn a_refusal_is_a_content_filter_with_its_text() {
    for wire in Wire::ALL {
        let model = Model::start(wire).await;
        model.script([Step::refusal("I cannot help with that.")]);
        let response = model.ask().await.unwrap();
        assert_eq!(response.stop_reason, StopReason::ContentFilter);
        assert_eq!(response.message.text, "I cannot help with that.");
        model.assert_requests(1);
    }
}

#[tokio::test]
async fn unknown_stop_reasons_are_returned() {
    for wire in Wire::ALL {
        let model = Model::start(wire).await;
        model.script([Step::text("Hm.").with_stop_reason("eos_token")]);
        assert_eq!(model.ask().await.unwrap().stop_reason, StopReason::Other("eos_token".into()));
    }
}

#[tokio::test]
async fn usage_contains_cached_tokens() {
    for wire in Wire::ALL {
        let model = Model::start(wire).await;
        model.script([Step::text("Done.").with_usage(1_000, 900, 20)]);
        let usage = model.ask().await.unwrap().usage;
        assert_eq!((usage.input_tokens, usage.cached_tokens, usage.output_tokens), (1_000, 900, 20));
    }
}

#[tokio::test]
async fn reasoning_is_repeated_with_its_signature() {
    let thinking = json!({"type": "thinking", "thinking": "Think.", "signature": "c2ln"});
    let model = Model::start(Wire::Anthropic).await;
    let block = thinking.clone();
    model.script([insert("one").edit(move |body| body["content"].as_array_mut().unwrap().insert(0, block))]);
    let response = model.ask().await.unwrap();
    model.chat(&continue_with(&response.message)).await.unwrap();
    assert_eq!(model.server.take_requests()[1].body["messages"][1]["content"][0], thinking);
    model.server.assert_nothing_rejected();

    let model = Model::start(Wire::OpenAi).await;
    model.script([insert("one").edit(|body| body["choices"][0]["message"]["reasoning_content"] = json!("Think."))]);
    let response = model.ask().await.unwrap();
    model.chat(&continue_with(&response.message)).await.unwrap();
    let request = model.server.take_requests().remove(1);
    assert_eq!(request.body["messages"][2]["reasoning_content"], "Think.");
    model.server.assert_nothing_rejected();
}

#[tokio::test]
async fn requests_have_the_headers_query_and_fields_of_the_settings() {
    let model = Model::start_with(
        Wire::OpenAi,
        &[
            ("LLM_OPENAI_DEFAULT_QUERY", r#"{"api-version": "2024-10-21", "a": "b c&d"}"#),
            ("LLM_OPENAI_DEFAULT_HEADER", r#"{"X-Title": "planner"}"#),
            ("LLM_OPENAI_COMPLETION_KWARGS", r#"{"max_tokens": 77, "temperature": 0.5}"#),
        ],
    )
    .await;
    model.ask().await.unwrap();
    let request = model.server.take_requests().remove(0);
    assert_eq!(request.uri.query(), Some("a=b+c%26d&api-version=2024-10-21"));
    let header = |name: &str| request.headers.get(name).map(|value| value.to_str().unwrap());
    assert_eq!((header("x-title"), header("content-type")), (Some("planner"), Some("application/json")));
    assert_eq!(header("authorization"), Some("Bearer test-key-0123456789"));
    assert!(header("user-agent").unwrap().starts_with("acontextd/"));
    assert_eq!((&request.body["max_tokens"], &request.body["temperature"]), (&json!(77), &json!(0.5)));
    assert_eq!(request.body["model"], "test-model");
}

#[tokio::test]
async fn anthropic_requests_have_the_key_and_the_version() {
    let model = Model::start(Wire::Anthropic).await;
    model.ask().await.unwrap();
    let request = model.server.take_requests().remove(0);
    assert_eq!(request.headers["x-api-key"], "test-key-0123456789");
    assert_eq!(request.headers["anthropic-version"], "2023-06-01");
    assert!(!request.headers.contains_key("authorization"));
    assert_eq!((&request.body["max_tokens"], &request.body["model"]), (&json!(1_000), &json!("test-model")));
}

#[tokio::test]
async fn without_a_key_there_is_no_header_with_one() {
    for wire in Wire::ALL {
        let model = Model::start_with(wire, &[("LLM_API_KEY", "")]).await;
        model.ask().await.unwrap();
        let headers = model.server.take_requests().remove(0).headers;
        assert!(!headers.contains_key("authorization") && !headers.contains_key("x-api-key"), "{headers:?}");
    }
}

#[tokio::test]
async fn base_urls_may_end_with_a_slash_or_the_version() {
    for (wire, path) in [
        (Wire::OpenAi, "/v1/"),
        (Wire::OpenAi, "/v1/chat/completions"),
        (Wire::Anthropic, "/"),
        (Wire::Anthropic, "/v1"),
        (Wire::Anthropic, "/v1/"),
    ] {
        let server = ModelServer::start().await;
        let mut settings = server.settings(wire);
        settings.push(("LLM_BASE_URL", format!("{}{path}", server.url)));
        let llm = llm::from_config(&app_config(&settings).model, platform::build_http_client().unwrap());
        llm.chat(&request(&[user()], &tools(), Duration::from_mins(2))).await.unwrap();
        assert_eq!(server.take_requests().len(), 1, "{path}");
    }
}

#[tokio::test]
async fn redirects_are_not_followed() {
    for wire in Wire::ALL {
        let (model, other) = (Model::start(wire).await, ModelServer::start().await);
        let location = format!("{}/v1/messages?key=hunter2", other.url);
        model.script([Step::status(307).with_header("location", &location)]);
        let error = model.ask().await.unwrap_err();
        assert!(matches!(error, LlmError::Misconfigured(_)));
        let text = error.to_string();
        assert!(text.contains(&format!("redirect to {}", other.url)) && text.contains("LLM_BASE_URL"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
        assert!(other.take_requests().is_empty(), "the key was sent to another host");
    }
}

#[tokio::test]
async fn responses_have_a_maximum_size() {
    for wire in Wire::ALL {
        let model = Model::start(wire).await;
        model.script([Step::body(&" ".repeat((2 << 20) + 1))]);
        let error = model.ask().await.unwrap_err();
        assert!(matches!(error, LlmError::Unavailable(_)) && error.to_string().contains("more than 2 MiB"), "{error}");
        model.assert_requests(1);
    }
}

#[tokio::test]
async fn requests_of_a_project_wait_for_its_other_requests() {
    for wire in Wire::ALL {
        let model = Model::start(wire).await;
        let limited = Arc::new(LimitedLlm::new(Arc::clone(&model.llm), 16, 1));
        let (latch, tools, messages) = (Latch::new(), tools(), [user()]);
        model.script((0..3).map(|_| Step::text("Done.").after(&latch)));
        let of_project = |project| {
            let request = request(&messages, &tools, Duration::from_mins(2));
            let llm = Arc::clone(&limited);
            async move { llm.chat(&ChatRequest { origin: origin(project), ..request }).await }
        };
        let (first, second, other, ()) = tokio::join!(of_project(1), of_project(1), of_project(2), async {
            latch.wait_for_requests(2).await;
            assert_eq!(model.server.take_requests().len(), 2, "the second request of the project waits");
            latch.release();
        });
        assert!(first.is_ok() && second.is_ok() && other.is_ok());
        model.assert_requests(1);
    }
}

#[tokio::test]
async fn wrong_settings_are_logged_once_a_minute() {
    let (log, _guard) = CapturedLog::start(Level::INFO);
    let model = Model::start(Wire::OpenAi).await;
    model.script((0..3).map(|_| Step::status(401)));
    for _ in 0..3 {
        model.ask().await.unwrap_err();
    }
    let log = log.text();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("LLM_API_KEY")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert!(!log.contains("0123456789") && !log.contains("Plan the work"), "{log}");
}

#[tokio::test]
async fn the_scripted_model_rejects_what_providers_reject() {
    for wire in Wire::ALL {
        let model = Model::start(wire).await;
        model.script([insert("one")]);
        let message = model.ask().await.unwrap().message;
        let unanswered = [user(), ChatMessage::Assistant(message.clone()), user()];
        let unknown = ToolResult { call_id: "unknown".into(), text: "x".into(), is_error: false };
        let orphan = [user(), ChatMessage::ToolResults(vec![unknown])];
        let mut invalid_tools = tools();
        invalid_tools[0].parameters = json!({"type": "object", "properties": {}, "required": ["task"]});
        let mut no_object = tools();
        no_object[0].parameters = json!({"properties": {}});
        for (messages, tools, max_tokens, rule) in [
            (&unanswered[..], tools(), 1, "result"),
            (&orphan, tools(), 1, "call"),
            (&[ChatMessage::User(String::new())], tools(), 1, "must not be"),
            (&[user()], invalid_tools, 1, "is required, but not a property"),
            (&[user()], no_object, 1, "type of the schema must be object"),
            (&[user()], tools(), 0, "max_tokens is required"),
        ] {
            let request = ChatRequest { max_tokens, ..request(messages, &tools, Duration::from_mins(2)) };
            let error = model.llm.chat(&request).await.unwrap_err();
            assert!(matches!(error, LlmError::Rejected(_)), "{rule}: {error}");
            let rejections = model.server.take_rejections();
            assert!(rejections.len() == 1 && rejections[0].contains(rule), "{rule}: {rejections:?}");
        }
    }
}

#[tokio::test]
async fn a_user_message_may_follow_tool_results_and_texts() {
    for wire in Wire::ALL {
        let model = Model::start(wire).await;
        model.script([insert("one"), Step::text("I am done."), Step::text("Done.")]);
        let message = model.ask().await.unwrap().message;
        let result = |id: &str| ToolResult { call_id: id.into(), text: "x".into(), is_error: false };
        let results = message.tool_calls.iter().map(|call| result(&call.id)).collect();
        let mut messages = vec![user(), ChatMessage::Assistant(message), ChatMessage::ToolResults(results), user()];
        let text = model.chat(&messages).await.unwrap().message;
        messages.extend([ChatMessage::Assistant(text), user()]);
        assert_eq!(model.chat(&messages).await.unwrap().message.text, "Done.");
        model.server.assert_nothing_rejected();
    }
}

#[tokio::test]
async fn hooks_choose_the_response_to_a_request() {
    for wire in Wire::ALL {
        let model = Model::start(wire).await;
        model.script([Step::hook(|request| Step::text(&request.user_texts()[0]))]);
        assert!(model.ask().await.unwrap().message.text.starts_with("Plan the work."));
        assert_eq!(model.server.remaining_steps(), 0);
        // Another marker has no script.
        assert_eq!(model.chat(&[ChatMessage::User("[[S2]]".into())]).await.unwrap().message.text, "Done.");
        let requests = model.server.take_requests();
        assert_eq!((requests[1].lane, requests[1].markers.as_slice()), (Lane::Task, &["[[S2]]".to_owned()][..]));
        assert_eq!(requests[1].tool_names(), ["insert_task", "finish"]);
    }
}

#[tokio::test]
async fn messages_are_observed_through_the_clients() {
    for wire in Wire::ALL {
        let server = ModelServer::start().await;
        let config = server.config(wire).with("SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS", "0");
        run_with(config, async |app| {
            let client = app.project().await;
            let session = client.new_session().await;
            client.store_text(&session, &format!("Plan the work. {MARKER}")).await;
            app.drain_jobs().await;
            let status = client.get(&format!("/api/v1/session/{session}/observing_status")).await.data();
            assert_eq!((&status["pending"], &status["observed"]), (&json!(0), &json!(1)), "{status}");
        })
        .await;
        let requests = server.take_requests();
        assert!(requests.iter().any(|request| request.markers.contains(&MARKER.to_owned())));
        server.assert_nothing_rejected();
    }
}

/// Runs `acontextd check-model`, and returns whether it succeeded, its output and its error output.
async fn check_model(settings: &[(&'static str, String)]) -> (bool, String, String) {
    let settings = settings.to_vec();
    let run = move || {
        let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        ServerProcess::run_command("check-model", &settings)
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

/// Calls the tool of the check.
fn status_call() -> Step {
    Step::call("report_status", json!({"status": "ready"}))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_model_reports_what_works() {
    for wire in Wire::ALL {
        let model = Model::start(wire).await;
        model.server.script(Lane::Other, "", [status_call().with_usage(90, 10, 5)]);
        let (succeeded, output, error) = check_model(&model.settings).await;
        assert!(succeeded && error.is_empty(), "{output}{error}");
        // With the port.
        let host = model.server.url.strip_prefix("http://").unwrap();
        for text in [host, "test-model", "test-model-1 (as reported)", "90 input tokens (10 cached)", "valid arguments"]
        {
            assert!(output.contains(text), "{text}: {output}");
        }
        let body = &model.server.take_requests()[0].body;
        let required = if wire == Wire::OpenAi { json!("required") } else { json!({"type": "any"}) };
        assert_eq!(body["tool_choice"], required);
        model.server.assert_nothing_rejected();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_model_works_without_tool_choice() {
    let model = Model::start(Wire::OpenAi).await;
    let rejected = Step::error(400, "tool_choice is not supported");
    model.server.script(Lane::Other, "", [rejected, status_call().without_usage()]);
    let (succeeded, output, error) = check_model(&model.settings).await;
    assert!(
        succeeded && output.contains("does not support tool_choice") && output.contains("not reported"),
        "{output}{error}"
    );
    assert!(model.server.take_requests()[1].body.get("tool_choice").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_model_names_what_to_correct() {
    let model = Model::start(Wire::OpenAi).await;
    for (step, text) in [
        (Step::error(401, "wrong key"), "LLM_API_KEY"),
        (Step::error(404, "no such model"), "LLM_SIMPLE_MODEL"),
        (Step::text("Hello!"), "LLM_SIMPLE_MODEL"),
        (Step::call("report_status", json!("oops")), "ACONTEXTD_LLM_MAX_TOKENS"),
        (Step::call("report_status", json!({"status": 1})), "without the text `status`"),
        (Step::call("other_tool", json!({"status": "ready"})), "another name than report_status"),
        (Step::text("Let me").with_stop_reason("length"), "increase ACONTEXTD_LLM_MAX_TOKENS"),
    ] {
        model.server.script(Lane::Other, "", [step]);
        let (succeeded, output, error) = check_model(&model.settings).await;
        assert!(!succeeded && error.starts_with("acontextd: ") && error.contains(text), "{text}: {output}{error}");
        assert!(!format!("{output}{error}").contains("0123456789"), "{output}{error}");
    }
    for (settings, text) in [
        (vec![], "set LLM_API_KEY"),
        (vec![("LLM_SDK", "mock".to_owned())], "LLM_SDK is mock"),
        (vec![("LLM_BASE_URL", "http://127.0.0.1:1".to_owned())], "LLM_SIMPLE_MODEL is not set"),
        (
            vec![("LLM_BASE_URL", "http://127.0.0.1:1".to_owned()), ("LLM_SIMPLE_MODEL", "x".to_owned())],
            "Connection refused (os error 111): check LLM_BASE_URL",
        ),
    ] {
        let (succeeded, output, error) = check_model(&settings).await;
        assert!(!succeeded && error.contains(text), "{text}: {output}{error}");
    }
}
