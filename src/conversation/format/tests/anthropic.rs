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
            json!({"type": "file", "meta": {"type": "base64", "media_type": "application/pdf", "data": "AAAA"}}),
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
        (json!({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}), "ab", false),
        (json!({"content": "x", "is_error": true}), "x", true),
        (json!({"content": "x", "is_error": "yes"}), "x", false),
        (json!({"content": {"b": 1, "a": 2}}), "{\"a\":2,\"b\":1}", false),
    ] {
        let mut block = block;
        block["type"] = "tool_result".into();
        block["tool_use_id"] = "t".into();
        let blob = json!({"role": "user", "content": [block]});
        let part = &parts_of(ANTHROPIC, blob.clone())[0];
        assert_eq!(part.get("text").and_then(Value::as_str).unwrap_or_default(), text);
        assert_eq!(part["meta"], json!({"tool_call_id": "t", "is_error": is_error}));
        assert_eq!(normalize_valid(ANTHROPIC, blob).body["content"][0]["is_error"], is_error);
    }
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
fn parts_become_blocks() {
    for (part, block) in [
        (json!({"type": "text", "text": "x"}), json!({"type": "text", "text": "x"})),
        (
            json!({"type": "text", "text": "x", "meta": {"cache_control": {"type": "ephemeral", "ttl": "1h"}}}),
            json!({"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": "1h"}}),
        ),
        (
            json!({"type": "text", "text": "x", "meta": {"cache_control": {"type": "eternal"}}}),
            json!({"type": "text", "text": "x"}),
        ),
        (json!({"type": "thinking", "text": "hm"}), json!({"type": "thinking", "thinking": "hm", "signature": ""})),
        (
            json!({"type": "redacted_thinking", "meta": {"data": "zz"}}),
            json!({"type": "redacted_thinking", "data": "zz"}),
        ),
        (
            json!({"type": "tool-result", "meta": {"tool_call_id": "t"}}),
            json!({"type": "tool_result", "tool_use_id": "t", "is_error": false,
                "content": [{"type": "text", "text": ""}]}),
        ),
        (
            json!({"type": "tool-result", "text": "x", "meta": {"tool_call_id": ""}}),
            json!({"type": "text", "text": "x"}),
        ),
        (
            json!({"type": "data", "meta": {"data_type": "anthropic", "block": {"type": "new", "x": [null]}}}),
            json!({"type": "new", "x": [null]}),
        ),
        (
            json!({"type": "data", "text": "so this", "meta": {"data_type": "x"}}),
            json!({"type": "text", "text": "so this"}),
        ),
    ] {
        let blob = json!({"role": "user", "parts": [part]});
        assert_eq!(convert(Format::Acontext, blob, ANTHROPIC), json!([{"role": "user", "content": [block]}]));
    }
    for nothing in [json!({"type": "redacted_thinking"}), json!({"type": "data", "meta": {"data_type": "openai"}})] {
        let blob = json!({"role": "assistant", "parts": [nothing]});
        assert_eq!(convert(Format::Acontext, blob, ANTHROPIC), json!([{"role": "assistant", "content": []}]));
    }
    let empty = json!({"role": "user", "content": ""});
    assert_eq!(convert(Format::OpenAi, empty, ANTHROPIC), json!([{"role": "user", "content": []}]));
}

#[test]
fn tool_call_input_is_always_an_object() {
    for (arguments, input) in [
        (json!("{\"a\": 1}"), json!({"a": 1})),
        (json!({"a": null}), json!({"a": null})),
        (json!(""), json!({})),
        (json!("null"), json!({})),
        (json!(null), json!({})),
        (json!("[1]"), json!({"input": [1]})),
        (json!("{torn"), json!({"input": "{torn"})),
    ] {
        let part = json!({"type": "tool-call", "meta": {"id": "a", "name": "f", "arguments": arguments}});
        let blob = json!({"role": "assistant", "parts": [part]});
        let block = json!({"type": "tool_use", "id": "a", "name": "f", "input": input});
        assert_eq!(convert(Format::Acontext, blob, ANTHROPIC), json!([{"role": "assistant", "content": [block]}]));
    }
    let custom = json!({"id": "k", "type": "custom", "custom": {"name": "calc", "input": "{}"}});
    let blob = json!({"role": "assistant", "tool_calls": [custom]});
    assert_eq!(convert(Format::OpenAi, blob, ANTHROPIC)[0]["content"][0]["input"], json!({"input": "{}"}));
}
