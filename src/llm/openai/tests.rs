use std::collections::HashSet;

use super::*;
use crate::llm::http::InvalidResponse;
use crate::llm::tests::{request, settings, tool};
use crate::llm::{StopReason, TokenUsage, ToolCall};

const OPENAI: &[(&str, &str)] = &[("LLM_API_KEY", "a-key")];
const OTHER: &[(&str, &str)] = &[("LLM_BASE_URL", "http://localhost:1/v1"), ("LLM_SIMPLE_MODEL", "qwen3")];

fn client(variables: &[(&str, &str)]) -> OpenAi {
    let settings = settings(variables);
    OpenAi::new(&settings, Client::new(), &settings.base_url().unwrap())
}

fn body(variables: &[(&str, &str)], request: &ChatRequest<'_>) -> Value {
    client(variables).request_body(request)
}

/// Reads a response with one choice.
fn read_choice(choice: &Value) -> ChatResponse {
    let body = json!({"choices": [choice], "model": "qwen3:8b"});
    response::read(&body, "qwen3", &HashSet::new()).unwrap_or_else(|_| panic!("{choice} is invalid"))
}

fn read_message(message: &Value) -> ChatResponse {
    read_choice(&json!({"message": message, "finish_reason": "stop"}))
}

/// Returns the message as the next request repeats it.
fn echo_of(response: &ChatResponse) -> Value {
    write_assistant(&response.message).unwrap()
}

#[test]
fn the_token_limit_has_the_name_that_the_server_knows() {
    let request = request(&[]);
    let own = body(OPENAI, &request);
    assert_eq!((&own["max_completion_tokens"], own.get("max_tokens")), (&json!(100), None));
    let other = body(OTHER, &request);
    assert_eq!((&other["max_tokens"], other.get("max_completion_tokens")), (&json!(100), None));
}

#[test]
fn kwargs_are_added_and_may_set_the_token_limit() {
    for limit in ["max_tokens", "max_completion_tokens"] {
        let kwargs = json!({limit: 7, "reasoning_effort": "low"}).to_string();
        let body = body(&[OTHER, &[("LLM_OPENAI_COMPLETION_KWARGS", &kwargs)]].concat(), &request(&[]));
        let limits = ["max_tokens", "max_completion_tokens"].map(|name| body.get(name).cloned());
        assert_eq!(limits.iter().flatten().collect::<Vec<_>>(), [&json!(7)], "{body}");
        assert_eq!((&body[limit], &body["reasoning_effort"]), (&json!(7), &json!("low")));
        assert_eq!(body["model"], "qwen3");
    }
}

#[test]
fn tools_and_the_tool_choice_are_written_as_openai_requires() {
    let tools = [tool()];
    for (tool_choice, value) in [
        (ToolChoice::Auto, None),
        (ToolChoice::Required, Some(json!("required"))),
        (ToolChoice::None, Some(json!("none"))),
        (ToolChoice::Tool("report"), Some(json!({"type": "function", "function": {"name": "report"}}))),
    ] {
        let with_tools = body(OPENAI, &ChatRequest { tools: &tools, tool_choice, ..request(&[]) });
        assert_eq!(with_tools.get("tool_choice"), value.as_ref());
        assert_eq!(with_tools["tools"][0]["function"]["parameters"], tools[0].parameters);
        let without_tools = body(OPENAI, &ChatRequest { tool_choice, ..request(&[]) });
        assert!(without_tools.get("tool_choice").is_none() && without_tools.get("tools").is_none());
    }
}

#[test]
fn a_conversation_is_written_without_null_and_empty_messages() {
    let response = read_message(&json!({
        "role": "assistant", "content": null, "refusal": null, "audio": null, "function_call": null, "annotations": [],
        "reasoning_content": "Think.", "reasoning": null,
        "tool_calls": [{
            "id": "a", "index": 0, "type": "function", "function": {"name": "report", "arguments": "{\"text\":\"x\"}"},
            "extra_content": {"google": {"thought_signature": "c2ln"}},
        }],
    }));
    let result = ToolResult { call_id: "a".into(), text: "done".into(), is_error: false };
    let messages = [
        ChatMessage::User("Hello".into()),
        ChatMessage::Assistant(response.message),
        ChatMessage::ToolResults(vec![result]),
        ChatMessage::Assistant(AssistantMessage::default()),
    ];
    let written = write_messages(&ChatRequest { system: "Be kind.", ..request(&messages) });
    let call = json!({
        "id": "a", "type": "function", "function": {"name": "report", "arguments": "{\"text\":\"x\"}"},
        "extra_content": {"google": {"thought_signature": "c2ln"}},
    });
    let expected = json!([
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "reasoning_content": "Think.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "done"},
    ]);
    assert_eq!(written, expected);
}

#[test]
fn a_user_message_may_follow_results_and_texts() {
    let call = ToolCall { id: "a".into(), name: "report".into(), arguments: "{}".into() };
    let called = AssistantMessage { tool_calls: vec![call], ..AssistantMessage::default() };
    let result = ToolResult { call_id: "a".into(), text: "done".into(), is_error: false };
    let text = AssistantMessage { text: "I am done.".into(), ..AssistantMessage::default() };
    let messages = [
        ChatMessage::User("Hello".into()),
        ChatMessage::Assistant(called),
        ChatMessage::ToolResults(vec![result]),
        ChatMessage::User("Continue".into()),
        ChatMessage::Assistant(text),
        ChatMessage::User("More".into()),
    ];
    let written = write_messages(&ChatRequest { system: "", ..request(&messages) });
    let expected = json!([
        {"role": "tool", "tool_call_id": "a", "content": "done"},
        {"role": "assistant", "content": MESSAGE_AFTER_RESULTS},
        {"role": "user", "content": "Continue"},
        {"role": "assistant", "content": "I am done."},
        {"role": "user", "content": "More"},
    ]);
    assert_eq!(written.as_array().unwrap()[2..], *expected.as_array().unwrap());
}

#[test]
fn arguments_may_be_missing_or_an_object() {
    for (arguments, expected) in [
        (json!("{\"text\": \"x\"}"), "{\"text\": \"x\"}"),
        (json!(""), "{}"),
        (json!(" \n"), "{}"),
        (json!(null), "{}"),
        (json!({"text": "x"}), r#"{"text":"x"}"#),
    ] {
        let call = json!({"id": "a", "function": {"name": "report", "arguments": arguments}});
        let response = read_message(&json!({"tool_calls": [call]}));
        assert_eq!(response.message.tool_calls[0].arguments, expected, "{arguments}");
        assert_eq!(echo_of(&response)["tool_calls"][0]["function"]["arguments"], expected, "{arguments}");
        assert_eq!(response.stop_reason, StopReason::ToolCalls, "the finish reason is stop");
    }
}

#[test]
fn invalid_arguments_are_returned_but_not_repeated() {
    for arguments in ["{\"text\": \"x", "[1]", "null", "oops"] {
        let call = json!({"id": "a", "function": {"name": "report", "arguments": arguments}});
        let response = read_choice(&json!({"message": {"tool_calls": [call]}, "finish_reason": "length"}));
        assert_eq!(response.message.tool_calls[0].arguments, arguments);
        assert_eq!(response.stop_reason, StopReason::MaxTokens);
        assert_eq!(echo_of(&response)["tool_calls"][0]["function"]["arguments"], "{}");
    }
}

#[test]
fn calls_without_an_id_or_with_a_repeated_one_get_a_new_one() {
    let call = |id: &Value, name: &str| json!({"id": id, "function": {"name": name, "arguments": "{}"}});
    let used = HashSet::from(["used".to_owned()]);
    let calls = [call(&json!(null), "a"), call(&json!("x"), "b"), call(&json!("x"), "c"), call(&json!("used"), "d")];
    let body = json!({"choices": [{"message": {"tool_calls": calls}}]});
    let response = response::read(&body, "qwen3", &used).unwrap_or_else(|_| panic!("invalid"));
    let ids: Vec<_> = response.message.tool_calls.iter().map(|call| call.id.as_str()).collect();
    assert_eq!(ids, ["call_2", "x", "call_4", "call_5"]);
    let echo = echo_of(&response);
    let echoed: Vec<_> = echo["tool_calls"].as_array().unwrap().iter().map(|call| &call["id"]).collect();
    assert_eq!(echoed, ids);
}

#[test]
fn a_deprecated_function_call_is_a_tool_call() {
    let response = read_message(&json!({"content": "", "function_call": {"name": "report", "arguments": "{}"}}));
    assert_eq!(response.message.tool_calls[0].name, "report");
    assert_eq!(echo_of(&response)["tool_calls"][0]["id"], "call_1");
}

#[test]
fn names_that_openai_rejects_are_changed_in_the_next_request() {
    let response = read_message(&json!({"tool_calls": [{"id": "a", "function": {"name": "functions.report"}}]}));
    assert_eq!(response.message.tool_calls[0].name, "functions.report");
    assert_eq!(echo_of(&response)["tool_calls"][0]["function"]["name"], "functions_report");
}

#[test]
fn content_may_be_a_text_or_a_list() {
    for (content, text) in [
        (json!("Hello"), "Hello"),
        (json!(null), ""),
        (
            json!([{"type": "text", "text": "Hello"}, {"type": "thinking", "thinking": []}, {"text": " you"}, "!"]),
            "Hello you!",
        ),
    ] {
        assert_eq!(read_message(&json!({"content": content})).message.text, text);
    }
}

#[test]
fn finish_reasons_determine_the_stop_reason() {
    for (finish_reason, stop_reason) in [
        (json!("stop"), StopReason::EndTurn),
        (json!(null), StopReason::EndTurn),
        (json!("length"), StopReason::MaxTokens),
        (json!("content_filter"), StopReason::ContentFilter),
        (json!("eos_token"), StopReason::Other("eos_token".into())),
    ] {
        let response = read_choice(&json!({"message": {"content": "x"}, "finish_reason": finish_reason}));
        assert_eq!(response.stop_reason, stop_reason);
    }
    let refusal = read_message(&json!({"content": null, "refusal": "I cannot help."}));
    assert_eq!((refusal.message.text.as_str(), refusal.stop_reason), ("I cannot help.", StopReason::ContentFilter));
}

#[test]
fn usage_is_optional_and_contains_cached_tokens() {
    for (usage, expected) in [
        (json!(null), (0, 0, 0)),
        (
            json!({"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 8}}),
            (10, 8, 2),
        ),
        (json!({"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": null}), (10, 0, 2)),
        (json!({"prompt_tokens": 10, "completion_tokens": null, "prompt_cache_hit_tokens": 4}), (10, 4, 0)),
    ] {
        let body = json!({"choices": [{"message": {"content": "x"}}], "usage": usage});
        let response = response::read(&body, "qwen3", &HashSet::new()).unwrap_or_else(|_| panic!("{usage}"));
        let TokenUsage { input_tokens, cached_tokens, output_tokens } = response.usage;
        assert_eq!((input_tokens, cached_tokens, output_tokens), expected, "{usage}");
        assert_eq!(response.model, "qwen3", "the server reports no model");
    }
}

#[test]
fn errors_with_status_200_and_empty_choices_are_failures() {
    let read = |body: Value| match response::read(&body, "qwen3", &HashSet::new()) {
        Ok(_) => panic!("{body} is accepted"),
        Err(invalid) => invalid,
    };
    let error = json!({"code": 429, "message": "slow down"});
    for body in [json!({"error": error}), json!({"choices": [{"error": error, "message": {"content": ""}}]})] {
        assert!(matches!(read(body), InvalidResponse::Error(reported) if reported.status == Some(429)));
    }
    for body in [json!({"choices": []}), json!({"choices": null}), json!({}), json!([]), json!({"choices": [{}]})] {
        assert!(matches!(read(body), InvalidResponse::Incomplete(_)));
    }
}
