//! Writing of `OpenAI` messages.

use super::*;

const OPENAI: Format = Format::OpenAi;

#[test]
fn several_texts_of_a_result_stay_separate() {
    let texts = json!([{"type": "text", "text": "42"}, {"type": "text", "text": "17"}]);
    let blob = json!({"role": "tool", "tool_call_id": "t", "content": texts});
    let parts = json!([
        {"type": "tool-result", "text": "42", "meta": {"tool_call_id": "t"}},
        {"type": "text", "text": "17", "meta": {"tool_call_id": "t"}},
    ]);
    assert_eq!(parts_of(OPENAI, blob.clone()), parts);
    assert_eq!(parts_of(OPENAI, json!({"role": "tool", "tool_call_id": "t", "content": ["42", "17"]})), parts);
    let acontext = |parts: &Value| json!({"role": "user", "parts": parts});
    assert_eq!(convert(Format::Acontext, acontext(&parts), OPENAI), json!([blob]));

    // Other texts than those that follow a result of the same call do not belong to it.
    let parts = json!([
        {"type": "tool-result", "text": "42", "meta": {"tool_call_id": "t"}},
        {"type": "image", "meta": {"tool_call_id": "t", "url": "https://x/c.png"}},
        {"type": "text", "text": "17", "meta": {"tool_call_id": "t"}},
        {"type": "text", "text": "next"},
        {"type": "text", "text": "late", "meta": {"tool_call_id": "t"}},
    ]);
    assert_eq!(
        convert(Format::Acontext, acontext(&parts), OPENAI),
        json!([
            {"role": "tool", "tool_call_id": "t", "content": texts},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/c.png"}},
                {"type": "text", "text": "next"}, {"type": "text", "text": "late"}]},
        ])
    );
    let function = json!({"role": "function", "name": "f", "content": ["42", "17"]});
    assert_eq!(convert(OPENAI, function, OPENAI), json!([{"role": "function", "name": "f", "content": "42\n17"}]));
}

#[test]
fn a_failed_result_keeps_its_text() {
    let result = |is_error: bool| {
        json!({"type": "tool-result", "text": "no such file", "meta":
        {"tool_call_id": "t", "is_error": is_error}})
    };
    for is_error in [false, true] {
        let blob = json!({"role": "user", "parts": [result(is_error)]});
        let message = json!({"role": "tool", "tool_call_id": "t", "content": "no such file"});
        assert_eq!(convert(Format::Acontext, blob, OPENAI), json!([message]));
    }
}

#[test]
fn a_result_without_a_call_becomes_text() {
    let blob = json!({"role": "user", "parts": [
        {"type": "tool-result", "text": "orphan", "meta": {"tool_call_id": ""}},
        {"type": "image", "meta": {"tool_call_id": "", "url": "https://x/c.png"}}]});
    let content =
        json!([{"type": "text", "text": "orphan"}, {"type": "image_url", "image_url": {"url": "https://x/c.png"}}]);
    assert_eq!(convert(Format::Acontext, blob, OPENAI), json!([{"role": "user", "content": content}]));
    let blob = json!({"role": "user", "parts": [{"type": "tool-result", "meta": {"tool_call_id": ""}}]});
    assert_eq!(convert(Format::Acontext, blob, OPENAI), json!([{"role": "user", "content": "[no content]"}]));
}

#[test]
fn calls_without_text_have_null_content() {
    let blob =
        json!({"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}}]});
    let calls = json!([{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}}]);
    assert_eq!(
        convert(Format::Anthropic, blob, OPENAI),
        json!([{"role": "assistant", "content": null, "tool_calls": calls}])
    );
}

#[test]
fn empty_messages_say_that_they_have_no_content() {
    for (role, content) in [
        ("assistant", json!("")),
        ("assistant", json!([])),
        ("assistant", json!([{"type": "thinking", "thinking": "hm", "signature": "c2ln"}])),
        ("assistant", json!([{"type": "redacted_thinking", "data": "x"}])),
        ("assistant", json!([{"type": "unheard_of", "x": 5}])),
        ("user", json!("")),
        ("user", json!([])),
        ("user", json!([{"type": "text", "text": ""}])),
    ] {
        let blob = json!({"role": role, "content": content});
        let message = json!({"role": role, "content": "[no content]"});
        assert_eq!(convert(Format::Anthropic, blob, OPENAI), json!([message]), "{role} {content}");
    }
    let blob = json!({"role": "system", "content": ""});
    assert_eq!(convert(OPENAI, blob.clone(), OPENAI), json!([{"role": "system", "content": "[no content]"}]));
    assert_eq!(normalize_valid(OPENAI, blob.clone()).body, blob);
}

#[test]
fn each_tool_result_is_a_message() {
    let blob = json!({"role": "user", "parts": [
        {"type": "text", "text": "look"},
        {"type": "tool-result", "text": "one", "meta": {"tool_call_id": "a"}},
        {"type": "tool-result", "text": "two", "meta": {"tool_call_id": "b"}},
    ]});
    assert_eq!(
        convert(Format::Acontext, blob, OPENAI),
        json!([
            {"role": "tool", "tool_call_id": "a", "content": "one"},
            {"role": "tool", "tool_call_id": "b", "content": "two"},
            {"role": "user", "content": "look"},
        ])
    );
    let blob = json!({"role": "assistant", "parts": [
        {"type": "tool-call", "meta": {"id": "a", "name": "f", "arguments": {}}},
        {"type": "tool-result", "text": "one", "meta": {"tool_call_id": "a"}},
    ]});
    assert_eq!(
        convert(Format::Acontext, blob, OPENAI),
        json!([
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "a", "content": "one"},
        ])
    );
}

#[test]
fn results_of_earlier_calls_come_first() {
    let blob = json!({"role": "assistant", "parts": [
        {"type": "text", "text": "so"},
        {"type": "tool-call", "meta": {"id": "b", "name": "f", "arguments": {}}},
        {"type": "tool-result", "text": "two", "meta": {"tool_call_id": "b"}},
        {"type": "tool-result", "text": "one", "meta": {"tool_call_id": "a"}},
    ]});
    assert_eq!(
        convert(Format::Acontext, blob, OPENAI),
        json!([
            {"role": "tool", "tool_call_id": "a", "content": "one"},
            {"role": "assistant", "content": "so", "tool_calls": [
                {"id": "b", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "b", "content": "two"},
        ])
    );
}

#[test]
fn parts_become_messages() {
    for (role, parts, message) in [
        ("user", json!([]), json!({"role": "user", "content": "[no content]"})),
        ("assistant", json!([]), json!({"role": "assistant", "content": "[no content]"})),
        (
            "user",
            json!([{"type": "data", "meta": {"data_type": "x"}}]),
            json!({"role": "user", "content": "[no content]"}),
        ),
        (
            "assistant",
            json!([{"type": "thinking", "text": "hm"}, {"type": "redacted_thinking", "meta": {"data": "x"}},
                {"type": "text", "text": "so"}]),
            json!({"role": "assistant", "content": "so"}),
        ),
        (
            "assistant",
            json!([
                {"type": "tool-call", "meta": {"id": "a", "name": "f", "arguments": "null"}},
                {"type": "tool-call", "meta": {"id": "b", "name": "g", "arguments": ""}},
                {"type": "tool-call", "meta": {"id": "c", "name": "h", "arguments": "ls", "type": "custom"}},
                {"type": "tool-call", "meta": {"name": "without an id", "arguments": "{}"}},
            ]),
            json!({"role": "assistant", "content": null, "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
                {"id": "c", "type": "custom", "custom": {"name": "h", "input": "ls"}},
            ]}),
        ),
        (
            "assistant",
            json!([{"type": "text", "text": "no", "meta": {"is_refusal": true}}]),
            json!({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}),
        ),
        (
            "user",
            json!([{"type": "tool-call", "meta": {"id": "a", "name": "f", "arguments": {}}}]),
            json!({"role": "user", "content": "[tool call f: {}]"}),
        ),
    ] {
        let blob = json!({"role": role, "parts": parts});
        assert_eq!(convert(Format::Acontext, blob, OPENAI), json!([message]));
    }
}

#[test]
fn a_system_message_is_one_text() {
    let blob = json!({"role": "system", "name": "policy", "content": [
        {"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]});
    let message = json!({"role": "system", "name": "policy", "content": "Be brief."});
    assert_eq!(convert(OPENAI, blob, OPENAI), json!([message]));
}

#[test]
fn calls_without_ids_survive_in_openai() {
    for blob in [
        json!({"role": "assistant", "content": null, "function_call": {"name": "old", "arguments": "{}"}}),
        json!({"role": "function", "name": "old", "content": "done"}),
    ] {
        assert_eq!(convert(OPENAI, blob.clone(), OPENAI), json!([blob]));
    }
    let unknown = json!({"role": "assistant", "content": null, "tool_calls": [{"id": "d", "type": "unheard_of"}]});
    assert_eq!(convert(OPENAI, unknown.clone(), OPENAI), json!([unknown]));
}
