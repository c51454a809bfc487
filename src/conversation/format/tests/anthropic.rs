use super::*;

const ANTHROPIC: Format = Format::Anthropic;

#[test]
fn blocks_become_parts() {
    let hint = json!({"type": "ephemeral", "ttl": "1h"});
    for (block, part) in [
        (
            json!({"type": "text", "text": "x", "citations": null, "cache_control": hint}),
            json!({"type": "text", "text": "x", "meta": {"cache_control": hint}}),
        ),
        (
            json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}),
            json!({"type": "image", "meta": {"type": "base64", "media_type": "image/png", "data": PNG}}),
        ),
        (
            json!({"type": "image", "source": {"type": "url", "url": "https://x/c.png"}, "cache_control": hint}),
            json!({"type": "image", "meta": {"type": "url", "url": "https://x/c.png", "cache_control": hint}}),
        ),
        (
            json!({"type": "document", "source": {"type": "base64", "data": "AAAA"}, "title": "T", "context": "C"}),
            json!({"type": "file", "meta": {
                "type": "base64", "media_type": "application/pdf", "data": "AAAA", "title": "T", "context": "C"}}),
        ),
        (
            json!({"type": "tool_use", "id": "a", "name": "f", "input": {"b": "<&>", "a": [null]}}),
            json!({"type": "tool-call", "meta": {"id": "a", "name": "f", "type": "tool_use",
                "arguments": "{\"a\":[null],\"b\":\"<&>\"}"}}),
        ),
        (
            json!({"type": "tool_use", "id": "a", "name": "f"}),
            json!({"type": "tool-call", "meta": {"id": "a", "name": "f", "type": "tool_use", "arguments": "null"}}),
        ),
        (
            json!({"type": "thinking", "thinking": "hm"}),
            json!({"type": "thinking", "text": "hm", "meta": {"signature": ""}}),
        ),
        (
            json!({"type": "redacted_thinking", "data": "zz"}),
            json!({"type": "redacted_thinking", "meta": {"data": "zz"}}),
        ),
        (
            json!({"type": "server_tool_use", "id": "s", "input": {"q": null}, "caller": null}),
            json!({"type": "data", "meta": {"data_type": "anthropic",
                "block": {"type": "server_tool_use", "id": "s", "input": {"q": null}, "caller": null}}}),
        ),
        (json!(null), json!({"type": "data", "meta": {"data_type": "anthropic", "block": null}})),
    ] {
        assert_eq!(parts_of(ANTHROPIC, json!({"role": "user", "content": [block]})), json!([part]));
    }
}

#[test]
fn tool_results_become_parts() {
    for (block, text, is_error) in [
        (json!({"content": "a string"}), "a string", false),
        (json!({}), "", false),
        (json!({"content": null, "is_error": null}), "", false),
        (json!({"content": [{"type": "text", "text": "a"}]}), "a", false),
        (json!({"content": "x", "is_error": true}), "x", true),
        (json!({"content": "x", "is_error": "yes"}), "x", false),
        (json!({"content": {"b": 1, "a": 2}}), "{\"a\":2,\"b\":1}", false),
    ] {
        let mut block = block;
        block["type"] = "tool_result".into();
        block["tool_use_id"] = "t".into();
        let parts = parts_of(ANTHROPIC, json!({"role": "user", "content": [block]}));
        assert_eq!(parts.as_array().map(Vec::len), Some(1));
        assert_eq!(parts[0].get("text").and_then(Value::as_str).unwrap_or_default(), text);
        assert_eq!(parts[0]["meta"], json!({"tool_call_id": "t", "is_error": is_error}));
    }
}

#[test]
fn nothing_is_added_to_a_stored_tool_result() {
    let blob = json!({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]});
    assert_eq!(normalize_valid(ANTHROPIC, blob.clone()).body, blob);
}

/// Builds a user message with one tool result.
fn tool_result(content: &Value) -> Value {
    json!({"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "t", "is_error": false, "content": content}]})
}

#[test]
fn texts_and_media_of_a_tool_result_stay_separate_and_in_order() {
    let text = |text: &str| json!({"type": "text", "text": text});
    let image = json!({"type": "image", "source": {"type": "url", "url": "https://x/c.png"}});
    let blob = tool_result(&json!([text("42"), image, text("17")]));
    let meta = json!({"tool_call_id": "t"});
    assert_eq!(
        parts_of(ANTHROPIC, blob.clone()),
        json!([
            {"type": "tool-result", "text": "42", "meta": {"tool_call_id": "t", "is_error": false}},
            {"type": "image", "meta": {"type": "url", "url": "https://x/c.png", "tool_call_id": "t"}},
            {"type": "text", "text": "17", "meta": meta},
        ])
    );
    assert_eq!(convert_via_acontext(ANTHROPIC, blob.clone(), ANTHROPIC), json!([blob]));
    let gemini = convert(ANTHROPIC, blob, Format::Gemini);
    assert_eq!(gemini[0]["parts"][0]["functionResponse"]["response"], json!({"output": "42\n17"}));
    assert_eq!(gemini[0]["parts"][1]["fileData"]["fileUri"], "https://x/c.png");
}

#[test]
fn nested_tool_results_are_part_of_the_outer_one() {
    let inner =
        json!({"type": "tool_result", "tool_use_id": "inner", "content": [{"type": "text", "text": "17"}, "4"]});
    let blob = tool_result(&json!([{"type": "text", "text": "42"}, inner, "5"]));
    assert_eq!(normalize_valid(ANTHROPIC, blob.clone()).body, blob);
    let texts: Vec<_> = ["42", "17", "4", "5"].map(|text| json!({"type": "text", "text": text})).into();
    assert_eq!(convert(ANTHROPIC, blob, ANTHROPIC), json!([tool_result(&texts.into())]));
}

#[test]
fn empty_tool_results_have_no_blank_text() {
    for content in
        [json!(""), json!([]), json!(" \n"), json!([{"type": "text", "text": ""}, {"type": "text", "text": " "}])]
    {
        let blob =
            json!({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": content}]});
        let result = json!({"type": "tool_result", "tool_use_id": "t", "is_error": false});
        assert_eq!(convert(ANTHROPIC, blob, ANTHROPIC), json!([{"role": "user", "content": [result]}]));
    }
    // The content of a failed result is required.
    let failed = json!({"type": "tool_result", "tool_use_id": "t", "is_error": true});
    let blob = json!({"role": "user", "content": [failed]});
    let content = json!([{"type": "text", "text": "[no content]"}]);
    assert_eq!(convert(ANTHROPIC, blob, ANTHROPIC)[0]["content"][0]["content"], content);
}

#[test]
fn failed_tool_result_contains_only_texts() {
    let image = json!({"type": "image", "source": {"type": "url", "url": "https://x/c.png"}});
    let text = json!({"type": "text", "text": "x"});
    let failed =
        |content: Value| json!({"type": "tool_result", "tool_use_id": "t", "is_error": true, "content": content});
    let blob = json!({"role": "user", "content": [failed(json!([text, image, text]))]});
    let content = json!([failed(json!([text, text])), image]);
    assert_eq!(convert(ANTHROPIC, blob, ANTHROPIC), json!([{"role": "user", "content": content}]));
}

#[test]
fn attachment_without_content_leaves_no_empty_list() {
    let image = json!({"type": "image", "source": {"type": "file", "file_id": "f"}, "tool_call_id": "t"});
    let parts = json!([
        {"type": "tool-result", "meta": {"tool_call_id": "t"}},
        {"type": "image", "meta": {"tool_call_id": "t", "source": image}},
    ]);
    let result = json!({"type": "tool_result", "tool_use_id": "t", "is_error": false});
    let blob = json!({"role": "user", "parts": parts});
    assert_eq!(convert(Format::Acontext, blob, ANTHROPIC), json!([{"role": "user", "content": [result]}]));
}

#[test]
fn attachments_stay_in_their_tool_result() {
    let image = json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}});
    let text = json!({"type": "text", "text": "see"});
    let result = json!({"type": "tool_result", "tool_use_id": "t", "is_error": false, "content": [text, image]});
    let blob = json!({"role": "user", "content": [result]});
    assert_eq!(parts_of(ANTHROPIC, blob.clone())[1]["meta"]["tool_call_id"], "t");
    assert_eq!(convert(ANTHROPIC, blob.clone(), ANTHROPIC), json!([blob]));
    let url = format!("data:image/png;base64,{PNG}");
    assert_eq!(
        convert(ANTHROPIC, blob, Format::OpenAi),
        json!([
            {"role": "tool", "tool_call_id": "t", "content": "see"},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]},
        ])
    );
    let result = json!({"type": "tool_result", "tool_use_id": "t", "is_error": false, "content": [image]});
    let blob = json!({"role": "user", "content": [result]});
    assert_eq!(convert(ANTHROPIC, blob.clone(), ANTHROPIC), json!([blob]));
}

#[test]
fn content_of_any_type_is_accepted() {
    for (content, body, count) in [
        (json!("one line"), json!("one line"), 1),
        (json!(null), json!([]), 0),
        (json!([]), json!([]), 0),
        (json!([{"type": "text", "text": "x"}, "loose", {"no": "type"}]), Value::Null, 3),
        (json!(5), json!(5), 1),
    ] {
        let normalized = normalize_valid(ANTHROPIC, json!({"role": "assistant", "content": content}));
        assert_eq!(normalized.body["content"], if body.is_null() { content } else { body });
        assert_eq!(normalized.role, Role::Assistant);
        assert_eq!(to_parts(ANTHROPIC, normalized.body).len(), count);
    }
    assert_eq!(normalize_valid(ANTHROPIC, json!({"role": "user"})).body, json!({"role": "user", "content": []}));
}

#[test]
fn response_fields_are_moved_to_the_meta() {
    let message = json!({"role": "assistant", "content": [{"type": "text", "text": "dumped"}]});
    let mut blob = message.clone();
    let rest = json!({"id": "msg_1", "type": "message", "model": "m", "usage": {"input_tokens": 1, "cache": null}});
    blob.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    blob["stop_sequence"] = Value::Null;
    let normalized = normalize_valid(ANTHROPIC, blob);
    assert_eq!((&normalized.body, &normalized.meta["response"]), (&message, &rest));
    let other = json!({"role": "user", "content": [], "unheard_of": 1});
    assert_eq!(normalize_valid(ANTHROPIC, other.clone()).body, other);
}

#[test]
fn dialect_blocks_are_read_as_what_they_are() {
    let call = json!({"type": "tool-call", "toolCallId": "a", "toolName": "f", "input": {"x": 1}});
    let blob = json!({"role": "assistant", "content": [{"type": "output_text", "text": "so"}, call]});
    assert_eq!(normalize_valid(ANTHROPIC, blob.clone()).body, blob);
    let function_call = json!({"functionCall": {"id": "a", "name": "f", "args": {"x": 1}}});
    let expected = json!([{"role": "model", "parts": [{"text": "so"}, function_call]}]);
    assert_eq!(convert(ANTHROPIC, blob.clone(), Format::Gemini), expected);
    let mut edited = blob;
    apply_changes(ANTHROPIC, &mut edited, &[BodyChange::ClearArguments { call_index: 0 }]);
    assert_eq!(edited["content"][1]["input"], json!({}));
}

#[test]
fn unknown_blocks_say_their_text_in_other_formats() {
    let texts = json!([{"type": "text", "text": "It rains."}]);
    let search = json!({"type": "search_result", "source": "https://x", "title": "Weather", "content": texts});
    let blob = json!({"role": "user", "content": [search]});
    let parts = convert(ANTHROPIC, blob.clone(), Format::Gemini)[0]["parts"].clone();
    assert_eq!(parts.as_array().map(Vec::len), Some(1));
    assert!(parts[0]["text"].as_str().is_some_and(|text| text.contains("It rains.")), "{parts}");
    assert_eq!(convert_via_acontext(ANTHROPIC, blob.clone(), ANTHROPIC), json!([blob]));

    let reference = json!({"type": "tool_reference", "tool_name": "weather"});
    let blob = tool_result(&json!(["found", reference]));
    let response = convert(ANTHROPIC, blob, Format::Gemini)[0]["parts"][0]["functionResponse"]["response"].clone();
    assert_eq!(response, json!({"output": "found\n[tool weather]"}));
}

#[test]
fn calls_inside_a_tool_result_are_not_read_from_dialects() {
    let call = json!({"type": "tool-call", "toolCallId": "a", "toolName": "f", "input": {}});
    let parts = parts_of(ANTHROPIC, tool_result(&json!(["x", call])));
    let block = json!({"data_type": "anthropic", "block": call, "tool_call_id": "t"});
    assert_eq!(parts[1], json!({"type": "data", "meta": block}));
}
