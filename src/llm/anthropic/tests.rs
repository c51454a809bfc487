use super::*;
use crate::llm::Tool;
use crate::llm::tests::{request, settings, tool};

fn body(request: &ChatRequest<'_>) -> Value {
    let settings = settings(&[("LLM_SDK", "anthropic"), ("LLM_API_KEY", "a-key"), ("LLM_SIMPLE_MODEL", "claude")]);
    Anthropic::new(&settings, Client::new(), &settings.base_url().unwrap()).request_body(request)
}

fn read(body: Value) -> ChatResponse {
    read_response(body, "claude", &HashSet::new()).unwrap_or_else(|_| panic!("invalid"))
}

fn user(text: &str) -> ChatMessage {
    ChatMessage::User(text.into())
}

#[test]
fn instructions_tools_and_the_conversation_end_with_cache_breakpoints() {
    let tools = [Tool { name: "first", ..tool() }, tool()];
    let messages = [user("Hello")];
    let body = body(&ChatRequest { system: "Be kind.", tools: &tools, ..request(&messages) });
    let breakpoint = json!({"type": "ephemeral"});
    assert_eq!(body["system"], json!([{"type": "text", "text": "Be kind.", "cache_control": breakpoint}]));
    assert_eq!(body["tools"][0].get("cache_control"), None);
    assert_eq!(body["tools"][1]["cache_control"], breakpoint);
    assert_eq!(body["tools"][1]["input_schema"], tools[1].parameters);
    let content = json!([{"type": "text", "text": "Hello", "cache_control": breakpoint}]);
    assert_eq!(body["messages"], json!([{"role": "user", "content": content}]));
    assert_eq!((&body["max_tokens"], &body["model"]), (&json!(100), &json!("claude")));
}

#[test]
fn the_tool_choice_is_written_as_anthropic_requires() {
    let tools = [tool()];
    for (tool_choice, value) in [
        (ToolChoice::Auto, None),
        (ToolChoice::Required, Some(json!({"type": "any"}))),
        (ToolChoice::None, Some(json!({"type": "none"}))),
        (ToolChoice::Tool("report"), Some(json!({"type": "tool", "name": "report"}))),
    ] {
        let with_tools = body(&ChatRequest { tools: &tools, tool_choice, ..request(&[]) });
        assert_eq!(with_tools.get("tool_choice"), value.as_ref());
        let without_tools = body(&ChatRequest { tool_choice, ..request(&[]) });
        assert!(without_tools.get("tool_choice").is_none() && without_tools.get("tools").is_none());
    }
}

#[test]
fn blocks_are_repeated_as_received() {
    let thinking = json!({"type": "thinking", "thinking": "Think.", "signature": "c2ln"});
    let redacted = json!({"type": "redacted_thinking", "data": "eA=="});
    let call = json!({"type": "tool_use", "id": "toolu_1", "name": "report", "input": {"text": "x"}, "caller": {"type": "direct"}});
    let text = json!({"type": "text", "text": "I report.", "citations": null});
    let blocks = json!([thinking, {"type": "text", "text": ""}, redacted, text, {"type": "text", "text": " \n"}, call]);
    let response = read(json!({"content": blocks, "stop_reason": "tool_use", "model": "claude-1"}));
    assert_eq!(response.message.text, "I report. \n");
    assert_eq!(response.message.tool_calls[0].arguments, r#"{"text":"x"}"#);
    assert_eq!((response.stop_reason, response.model.as_str()), (StopReason::ToolCalls, "claude-1"));
    let messages = [user("Hello"), ChatMessage::Assistant(response.message), user("Continue")];
    assert_eq!(write_messages(&messages)[1], json!({"role": "assistant", "content": [thinking, redacted, text, call]}));
}

#[test]
fn invalid_calls_are_corrected_in_the_next_request() {
    let call = |id: &str, name: &str, input: Value| json!({"type": "tool_use", "id": id, "name": name, "input": input});
    let blocks = [
        call("a", "report", json!(null)),
        call("a", "my report", json!("{\"text\": \"x\"}")),
        call("b", "report", json!([1])),
    ];
    let message = read(json!({"content": blocks})).message;
    let calls: Vec<_> = message.tool_calls.iter().map(|call| (call.id.as_str(), call.arguments.as_str())).collect();
    assert_eq!(calls, [("a", "{}"), ("call_2", "{\"text\": \"x\"}"), ("b", "[1]")]);
    assert_eq!(message.tool_calls[1].name, "my report");
    let echo = [
        call("a", "report", json!({})),
        call("call_2", "my_report", json!({"text": "x"})),
        call("b", "report", json!({})),
    ];
    assert_eq!(write_assistant(&message), echo);
}

#[test]
fn results_of_a_round_are_one_message_without_blank_contents() {
    let result = |id: &str, text: &str, is_error| ToolResult { call_id: id.into(), text: text.into(), is_error };
    let results =
        vec![result("a", "done", false), result("b", " ", false), result("c", "", true), result("d", "no", true)];
    let call = ToolCall { id: "a".into(), name: "report".into(), arguments: "{}".into() };
    let assistant =
        || ChatMessage::Assistant(AssistantMessage { tool_calls: vec![call.clone()], ..AssistantMessage::default() });
    let messages = write_messages(&[user("Hello"), assistant(), ChatMessage::ToolResults(results), assistant()]);
    let expected = json!([
        {"type": "tool_result", "tool_use_id": "a", "content": "done"},
        {"type": "tool_result", "tool_use_id": "b"},
        {"type": "tool_result", "tool_use_id": "c", "content": "The tool call failed.", "is_error": true},
        {"type": "tool_result", "tool_use_id": "d", "content": "no", "is_error": true},
    ]);
    assert_eq!(messages[2], json!({"role": "user", "content": expected}));
}

#[test]
fn a_user_message_after_results_is_in_the_same_message() {
    let call = ToolCall { id: "a".into(), name: "report".into(), arguments: "{}".into() };
    let called = AssistantMessage { tool_calls: vec![call], ..AssistantMessage::default() };
    let result = ToolResult { call_id: "a".into(), text: "done".into(), is_error: false };
    let text = AssistantMessage { text: "I am done.".into(), ..AssistantMessage::default() };
    let messages = [
        user("Hello"),
        ChatMessage::Assistant(called),
        ChatMessage::ToolResults(vec![result]),
        user("Continue"),
        ChatMessage::Assistant(text),
        user("More"),
    ];
    let block = |text: &str| json!({"type": "text", "text": text});
    let written = write_messages(&messages);
    assert_eq!(written.as_array().unwrap().len(), 5);
    let result = json!({"type": "tool_result", "tool_use_id": "a", "content": "done"});
    assert_eq!(written[2], json!({"role": "user", "content": [result, block("Continue")]}));
    assert_eq!(written[3], json!({"role": "assistant", "content": [block("I am done.")]}));
    assert_eq!(written[4], json!({"role": "user", "content": [cached(block("More"))]}));
    let written = write_messages(&messages[..4]);
    assert_eq!(written[2], json!({"role": "user", "content": [result, cached(block("Continue"))]}));
}

#[test]
fn empty_messages_are_left_out() {
    let messages = [user("Hello"), ChatMessage::Assistant(AssistantMessage::default()), user("Continue")];
    let content = json!([{"type": "text", "text": "Hello"}, cached(json!({"type": "text", "text": "Continue"}))]);
    assert_eq!(write_messages(&messages), json!([{"role": "user", "content": content}]));
    let empty = read(json!({"content": [{"type": "text", "text": ""}], "stop_reason": "end_turn"})).message;
    assert!(write_assistant(&empty).is_empty());
}

#[test]
fn a_message_without_blocks_is_written_from_its_fields() {
    let call = ToolCall { id: "a".into(), name: "report".into(), arguments: "oops".into() };
    let message = AssistantMessage { text: "I report.".into(), tool_calls: vec![call], raw: None };
    let text = json!({"type": "text", "text": "I report."});
    let call = json!({"type": "tool_use", "id": "a", "name": "report", "input": {}});
    assert_eq!(write_assistant(&message), [text, call]);
}

#[test]
fn stop_reasons_are_converted() {
    for (reported, stop_reason) in [
        (json!("end_turn"), StopReason::EndTurn),
        (json!("stop_sequence"), StopReason::EndTurn),
        (json!(null), StopReason::EndTurn),
        (json!("max_tokens"), StopReason::MaxTokens),
        (json!("model_context_window_exceeded"), StopReason::MaxTokens),
        (json!("refusal"), StopReason::ContentFilter),
        (json!("pause_turn"), StopReason::Other("pause_turn".into())),
        (json!("new_reason"), StopReason::Other("new_reason".into())),
    ] {
        let response = read(json!({"content": [{"type": "text", "text": "x"}], "stop_reason": reported}));
        assert_eq!(response.stop_reason, stop_reason);
    }
}

#[test]
fn usage_includes_the_tokens_of_the_cache() {
    let usage = json!({
        "input_tokens": 5, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 20, "output_tokens": 7
    });
    let usage = read(json!({"content": [], "usage": usage})).usage;
    assert_eq!(usage, TokenUsage { input_tokens: 125, cached_tokens: 100, output_tokens: 7 });
    assert_eq!(read(json!({"content": [], "usage": {"cache_read_input_tokens": null}})).usage, TokenUsage::default());
    assert_eq!(read(json!({"content": []})).usage, TokenUsage::default());
}

#[test]
fn errors_with_status_200_and_missing_contents_are_failures() {
    let read = |body: Value| match read_response(body, "claude", &HashSet::new()) {
        Ok(response) => panic!("{response:?}"),
        Err(invalid) => invalid,
    };
    for (kind, status) in [("overloaded_error", 529), ("authentication_error", 401), ("new_error", 500)] {
        let body = json!({"type": "error", "error": {"type": kind, "message": "no"}});
        assert!(matches!(read(body), InvalidResponse::Error(reported) if reported.status == Some(status)), "{kind}");
    }
    for body in [json!([]), json!({}), json!({"content": "text"})] {
        assert!(matches!(read(body), InvalidResponse::Incomplete(_)));
    }
}
