use super::*;

const GEMINI: Format = Format::Gemini;

#[test]
fn parts_become_gemini_parts() {
    for (part, expected) in [
        (json!({"type": "text", "text": "x"}), json!({"text": "x"})),
        (json!({"type": "thinking", "text": "hm"}), json!({"text": "hm", "thought": true})),
        (
            json!({"type": "tool-call", "meta": {"id": "a", "name": "f", "arguments": "{\"x\":1}"}}),
            json!({"functionCall": {"id": "a", "name": "f", "args": {"x": 1}}}),
        ),
        (json!({"type": "tool-call", "meta": {"name": "f", "arguments": {}}}), json!({"functionCall": {"name": "f"}})),
        (
            json!({"type": "tool-call", "meta": {"name": "f", "arguments": "[1]"}}),
            json!({"functionCall": {"name": "f", "args": {"input": [1]}}}),
        ),
        (
            json!({"type": "tool-call", "meta": {"name": "f", "arguments": {}, "thought_signature": "c2ln"}}),
            json!({"functionCall": {"name": "f"}, "thoughtSignature": "c2ln"}),
        ),
        (
            json!({"type": "tool-call", "meta": {"name": "f", "arguments": {}, "thought_signature": "s!g"}}),
            json!({"functionCall": {"name": "f"}}),
        ),
        (
            json!({"type": "text", "text": "x", "meta": {"thought_signature": "c2ln"}}),
            json!({"text": "x", "thoughtSignature": "c2ln"}),
        ),
        (
            json!({"type": "text", "meta": {"thought_signature": "c2ln"}}),
            json!({"text": "", "thoughtSignature": "c2ln"}),
        ),
        (json!({"type": "redacted_thinking", "meta": {"data": "x"}}), json!({"text": "[no content]"})),
        (json!({"type": "data", "meta": {"data_type": "gemini", "block": {}}}), json!({})),
        (json!({"type": "data", "meta": {"data_type": "gemini", "block": 5}}), json!({"text": "[no content]"})),
    ] {
        let blob = json!({"role": "assistant", "parts": [part]});
        assert_eq!(convert(Format::Acontext, blob, GEMINI), json!([{"role": "model", "parts": [expected]}]), "{part}");
    }
}

#[test]
fn thoughts_have_only_signatures_of_gemini() {
    let thought = |source: &str, meta: Value| {
        let part = json!({"type": "thinking", "text": "hm", "meta": meta});
        let blob = json!({"role": "assistant", "parts": [part], "meta": {"source_format": source}});
        convert(Format::Acontext, blob, GEMINI)[0]["parts"][0].clone()
    };
    let signed = json!({"text": "hm", "thought": true, "thoughtSignature": "c2ln"});
    let unsigned = json!({"text": "hm", "thought": true});
    assert_eq!(thought("gemini", json!({"signature": "c2ln"})), signed);
    assert_eq!(thought("openai", json!({"signature": "c2ln", "provider": "gemini"})), signed);
    assert_eq!(thought("gemini", json!({"signature": "s!g"})), unsigned);
    assert_eq!(thought("gemini", json!({"signature": ""})), unsigned);
    for source in ["anthropic", "acontext", "openai"] {
        assert_eq!(thought(source, json!({"signature": "c2ln"})), unsigned);
    }
}

#[test]
fn signatures_survive_conversion_to_acontext_and_back() {
    let blob = json!({"role": "model", "parts": [
        {"text": "hm", "thought": true, "thoughtSignature": "aGk="},
        {"text": "", "thought": true, "thoughtSignature": "aGk="},
        {"text": "so", "thoughtSignature": "+/8="},
        {"functionCall": {"id": "c", "name": "f"}, "thoughtSignature": "c2ln"},
        {"inlineData": {"mimeType": "image/png", "data": PNG}, "thoughtSignature": "c2ln"},
        {"text": "", "thoughtSignature": "c2ln"},
    ]});
    assert_eq!(convert_via_acontext(GEMINI, blob.clone(), GEMINI), json!([blob]));
}

/// Converts a tool result to Gemini and returns its function response.
fn function_response(text: &str, meta: &Value, ctx: &RenderContext) -> Value {
    let blob = json!({"role": "user", "parts": [{"type": "tool-result", "text": text, "meta": meta}]});
    let mut converted = convert_with(Format::Acontext, blob, GEMINI, ctx);
    assert_eq!(converted[0]["parts"].as_array().map(Vec::len), Some(1));
    converted[0]["parts"][0]["functionResponse"].take()
}

#[test]
fn function_response_has_the_function_name() {
    let ctx = RenderContext::default();
    for (text, meta, expected) in [
        (
            "rain",
            json!({"tool_call_id": "known", "name": "f"}),
            json!({"id": "known", "name": "f", "response": {"output": "rain"}}),
        ),
        ("{\"a\":1}", json!({"tool_call_id": "lost"}), json!({"id": "lost", "name": "lost", "response": {"a": 1}})),
        (
            "null",
            json!({"tool_call_id": "known", "name": "own"}),
            json!({"id": "known", "name": "own", "response": {"output": "null"}}),
        ),
        (
            "",
            json!({"tool_call_id": "known", "name": "f"}),
            json!({"id": "known", "name": "f", "response": {"output": ""}}),
        ),
    ] {
        assert_eq!(function_response(text, &meta, &ctx), expected);
    }
}

#[test]
fn result_without_a_call_id_becomes_text() {
    let function = json!({"role": "function", "name": "old", "content": "x"});
    assert_eq!(convert(Format::OpenAi, function, GEMINI), json!([{"role": "user", "parts": [{"text": "x"}]}]));
    let blob = json!({"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"output": "x"}}}]});
    let content = json!([{"type": "text", "text": "x"}]);
    assert_eq!(convert(GEMINI, blob, Format::Anthropic), json!([{"role": "user", "content": content}]));
}

#[test]
fn output_and_error_are_unwrapped_and_wrapped_again() {
    for (response, text, is_error) in [
        (json!({"output": "rain"}), "rain", false),
        (json!({"error": "no network"}), "no network", true),
        (json!({"error": "{\"code\":5}"}), "{\"code\":5}", true),
        (json!({"output": ""}), "", false),
        (json!({"error": ""}), "", true),
        (json!({"output": "{\"output\":\"x\"}"}), "{\"output\":\"x\"}", false),
        (json!({"output": "{\"error\":5}"}), "{\"error\":5}", false),
        (json!({"a": 1, "output": "x"}), "{\"a\":1,\"output\":\"x\"}", false),
        (json!({"error": "x", "output": "y"}), "{\"error\":\"x\",\"output\":\"y\"}", false),
        (json!({}), "{}", false),
    ] {
        let blob = json!({"role": "user", "parts": [
            {"functionResponse": {"id": "c", "name": "f", "response": response}}]});
        let part = parts_of(GEMINI, blob.clone())[0].clone();
        assert_eq!(part.get("text").and_then(Value::as_str).unwrap_or_default(), text, "{response}");
        assert_eq!(part["meta"].get("is_error"), is_error.then_some(&json!(true)), "{response}");
        assert_eq!(convert_via_acontext(GEMINI, blob.clone(), GEMINI), json!([blob]));
        let anthropic = convert(GEMINI, blob, Format::Anthropic)[0]["content"][0].clone();
        assert_eq!((&anthropic["type"], &anthropic["is_error"]), (&json!("tool_result"), &json!(is_error)));
    }
    // The text stays the same, but not its JSON type.
    for (output, text) in [(json!(5), "5"), (json!([1, null]), "[1,null]"), (json!({"a": 1}), "{\"a\":1}")] {
        let blob = json!({"role": "user", "parts": [
            {"functionResponse": {"id": "c", "name": "f", "response": {"output": output}}}]});
        assert_eq!(parts_of(GEMINI, blob.clone())[0]["text"], text);
        let again = convert_via_acontext(GEMINI, blob, GEMINI)[0].take();
        assert_eq!(parts_of(GEMINI, again)[0]["text"], text);
    }
}

#[test]
fn failed_tool_of_another_format_is_an_error_in_gemini() {
    let result = json!({"type": "tool_result", "tool_use_id": "t", "is_error": true, "content": "no network"});
    let blob = json!({"role": "user", "content": [result]});
    let response = json!({"id": "t", "name": "t", "response": {"error": "no network"}});
    let converted = convert(Format::Anthropic, blob.clone(), GEMINI);
    assert_eq!(converted, json!([{"role": "user", "parts": [{"functionResponse": response}]}]));
    let again = convert(GEMINI, converted[0].clone(), Format::Anthropic);
    assert_eq!(again[0]["content"][0]["is_error"], true);
    assert_eq!(again[0]["content"][0]["content"], json!([{"type": "text", "text": "no network"}]));
}

#[test]
fn media_stay_in_a_function_response_of_gemini() {
    let media = json!({"inlineData": {"mimeType": "image/png", "data": PNG}});
    let response = json!({"id": "c", "name": "f", "response": {"output": "see"}, "parts": [media]});
    let blob = json!({"role": "user", "parts": [{"functionResponse": response}]});
    assert_eq!(convert_via_acontext(GEMINI, blob.clone(), GEMINI), json!([blob]));
}

#[test]
fn calls_and_results_in_the_wrong_role_become_texts_in_gemini() {
    let parts = json!([
        {"type": "text", "text": "look"},
        {"type": "tool-call", "meta": {"id": "a", "name": "f", "arguments": ""}},
        {"type": "tool-result", "text": "42", "meta": {"tool_call_id": "a", "name": "f"}},
    ]);
    let written =
        |role: &str| convert(Format::Acontext, json!({"role": role, "parts": parts}), GEMINI)[0]["parts"].clone();
    let call = json!({"functionCall": {"id": "a", "name": "f"}});
    assert_eq!(written("assistant"), json!([{"text": "look"}, call, {"text": "42"}]));
    let response = json!({"functionResponse": {"id": "a", "name": "f", "response": {"output": "42"}}});
    assert_eq!(written("user"), json!([response, {"text": "look"}, {"text": "[tool call f: {}]"}]));
}

#[test]
fn unknown_parts_say_their_text_in_other_formats() {
    let blob = json!({"role": "model", "parts": [
        {"executableCode": {"language": "PYTHON", "code": "print(1)"}},
        {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "1"}}]});
    let text = |text: &str| json!({"type": "text", "text": text});
    let content = json!([text("print(1)"), text("1")]);
    assert_eq!(convert(GEMINI, blob.clone(), Format::Anthropic), json!([{"role": "assistant", "content": content}]));
    assert_eq!(convert_via_acontext(GEMINI, blob.clone(), GEMINI), json!([blob]));
}
