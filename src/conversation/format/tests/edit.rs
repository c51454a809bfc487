use super::*;

fn edited(format: Format, mut body: Value) -> Value {
    let changes = [
        BodyChange::ClearArguments { call_index: 1 },
        BodyChange::ReplaceResult { result_index: 0, text: "Done".into() },
        BodyChange::ReplaceResult { result_index: 2, text: "gone".into() },
    ];
    apply_changes(format, &mut body, &changes);
    body
}

/// Replaces names in a body with values.
fn filled(template: &Value, values: &[(&str, Value)]) -> Value {
    let mut text = template.to_string();
    for (name, value) in values {
        text = text.replace(&format!("\"{name}\""), &value.to_string());
    }
    serde_json::from_str(&text).unwrap()
}

#[test]
fn openai() {
    let call = |kind: &str, id: &str, input: &str| match kind {
        "custom" => json!({"id": id, "type": kind, kind: {"name": "f", "input": input}}),
        _ => json!({"id": id, "type": kind, kind: {"name": "f", "arguments": input}, "extra_content": {"google": "s"}}),
    };
    let message = |calls: Value| json!({"role": "assistant", "content": "I look.", "tool_calls": calls});
    let calls = |second: Value| {
        message(json!([call("function", "a", "{\"x\":1}"), {"type": "x"}, second, call("function", "c", "{}")]))
    };
    let before = calls(call("function", "b", "{\"x\":1}"));
    assert_eq!(edited(Format::OpenAi, before), calls(call("function", "b", "{}")));
    let before = calls(call("custom", "b", "words"));
    assert_eq!(edited(Format::OpenAi, before), calls(call("custom", "b", "")));

    let old = |args: &str| {
        json!({"role": "assistant", "tool_calls": [call("function", "a", "x")],
            "function_call": {"name": "f", "arguments": args}})
    };
    assert_eq!(edited(Format::OpenAi, old("{\"x\":1}")), old("{}"));

    let result = |content: Value| json!({"role": "tool", "tool_call_id": "a", "content": content, "name": "f"});
    let image = json!({"type": "image_url", "image_url": {"url": "u"}});
    for content in [json!("words"), json!([{"type": "text", "text": "words"}, image]), Value::Null] {
        assert_eq!(edited(Format::OpenAi, result(content)), result(json!("Done")));
    }
    let old = |content: &str| json!({"role": "function", "name": "f", "content": content});
    assert_eq!(edited(Format::OpenAi, old("words")), old("Done"));
    for body in [json!({"role": "user", "content": "words"}), json!("words"), Value::Null] {
        assert_eq!(edited(Format::OpenAi, body.clone()), body);
    }
}

#[test]
fn anthropic() {
    let image = json!({"type": "image", "source": {"type": "url", "url": "u"}});
    let body = json!({"role": "user", "content": [
        {"type": "text", "text": "words", "cache_control": {"type": "ephemeral"}},
        {"type": "tool_result", "tool_use_id": "a", "is_error": true, "content": "first",
            "cache_control": {"type": "ephemeral"}},
        {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}},
        {"type": "tool_result", "tool_use_id": "b", "content": [{"type": "text", "text": "kept"}, image]},
        {"type": "tool_use", "id": "b", "name": "f", "input": "second", "cache_control": {"type": "ephemeral"}},
        {"type": "tool_result", "tool_use_id": "c", "content": "third"},
    ]});
    let text_blocks = |text: &str| json!([{"type": "text", "text": text}]);
    let before = [
        ("first", json!("words")),
        ("second", json!({"x": 1})),
        ("third", json!([{"type": "text", "text": "a"}, image])),
    ];
    let after = [("first", json!("Done")), ("second", json!({})), ("third", text_blocks("gone"))];
    assert_eq!(edited(Format::Anthropic, filled(&body, &before)), filled(&body, &after));
    // Calls inside a result are counted and preserved.
    let call = |input: Value| json!({"type": "tool_use", "id": "d", "name": "f", "input": input});
    let result = |content: Value| {
        let result = json!({"type": "tool_result", "tool_use_id": "a", "content": content});
        json!({"content": [call(json!({"x": 1})), result]})
    };
    let after = json!([{"type": "text", "text": "Done"}, call(json!({}))]);
    assert_eq!(edited(Format::Anthropic, result(json!(["words", call(json!({"x": 1})), image]))), result(after));
}

#[test]
fn gemini() {
    let response = |id: &str, more: Value| {
        let Value::Object(mut response) = more else { panic!("more is an object") };
        response.extend(
            [("name", json!("f")), ("id", json!(id)), ("scheduling", json!("SILENT"))]
                .map(|(key, value)| (key.into(), value)),
        );
        json!({"functionResponse": response})
    };
    let media = json!([{"inlineData": {"mimeType": "image/png", "data": "AAAA"}}]);
    let before = json!({"role": "model", "parts": [
        {"functionCall": {"id": "a", "name": "f", "args": {"x": 1}}},
        response("a", json!({"response": {"output": "words"}, "parts": media})),
        {"functionCall": {"id": "b", "name": "f", "args": {"x": 1}, "partialArgs": []}, "thoughtSignature": "AAAA"},
        response("b", json!({"response": {"output": "kept"}, "parts": media})),
        response("", json!({"parts": media})),
    ]});
    let after = json!({"role": "model", "parts": [
        {"functionCall": {"id": "a", "name": "f", "args": {"x": 1}}},
        response("a", json!({"response": {"output": "Done"}})),
        {"functionCall": {"id": "b", "name": "f", "args": {}}, "thoughtSignature": "AAAA"},
        response("b", json!({"response": {"output": "kept"}, "parts": media})),
        response("", json!({"response": {"output": "gone"}, "parts": media})),
    ]});
    assert_eq!(edited(Format::Gemini, before), after);
}

#[test]
fn acontext() {
    let part = |kind: &str, text: &str, meta: Value| json!({"type": kind, "text": text, "meta": meta, "mine": 5});
    let of = |id: &str| json!({"tool_call_id": id, "more": [null]});
    let call = |args: Value, kind: &str| {
        let meta = json!({"id": "a", "name": "f", "arguments": args, "type": kind});
        json!({"type": "tool-call", "meta": meta})
    };
    let before = json!({"role": "user", "parts": [
        part("tool-result", "words", of("a")),
        part("image", "", of("a")),
        call(json!({"x": 1}), "function"),
        part("image", "", of("b")),
        part("tool-result", "words", of("b")),
        part("image", "", of("b")),
        call(json!("words"), "custom"),
        part("tool-result", "words", of("c")),
        part("text", "words", json!({})),
    ]});
    let after = json!({"role": "user", "parts": [
        part("tool-result", "Done", of("a")),
        call(json!({"x": 1}), "function"),
        part("image", "", of("b")),
        part("tool-result", "words", of("b")),
        part("image", "", of("b")),
        call(json!(""), "custom"),
        part("tool-result", "gone", of("c")),
        part("text", "words", json!({})),
    ]});
    assert_eq!(edited(Format::Acontext, before), after);
}
