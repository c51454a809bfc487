//! Reading of `OpenAI` messages.

use super::*;

const OPENAI: Format = Format::OpenAi;

#[test]
fn texts_become_text_parts() {
    for (blob, parts) in [
        (json!({"role": "user", "content": "hi"}), json!([{"type": "text", "text": "hi"}])),
        (json!({"role": "user", "content": ""}), json!([{"type": "text"}])),
        (
            json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}),
            json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
        ),
        (json!({"role": "system", "content": [{"type": "text", "text": "s"}]}), json!([{"type": "text", "text": "s"}])),
        (json!({"role": "assistant", "content": "hi"}), json!([{"type": "text", "text": "hi"}])),
        (json!({"role": "assistant", "content": ""}), json!([])),
        (json!({"role": "assistant", "content": null}), json!([])),
        (json!({"role": "assistant"}), json!([])),
        (json!({"role": "assistant", "content": []}), json!([])),
        (json!({"role": "user", "content": [{"type": "text", "text": 5}]}), json!([{"type": "text", "text": "5"}])),
        (json!({"role": "user", "content": []}), json!([])),
        (
            json!({"role": "user", "content": ["a", "b"]}),
            json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
        ),
        (json!({"role": "assistant", "content": ["a", ""]}), json!([{"type": "text", "text": "a"}])),
    ] {
        assert_eq!(parts_of(OPENAI, blob.clone()), parts, "{blob}");
    }
}

#[test]
fn content_of_a_user_is_required() {
    for role in ["user", "system", "developer"] {
        for content in [json!(null), json!(5), json!({"type": "text"})] {
            assert_eq!(invalid_field(OPENAI, json!({"role": role, "content": content})), "content");
        }
        assert_eq!(invalid_field(OPENAI, json!({"role": role})), "content");
        let content = json!([{"type": "text", "text": "a"}, null]);
        assert_eq!(invalid_field(OPENAI, json!({"role": role, "content": content})), "content[1]");
    }
}

#[test]
fn tool_call_without_its_object_is_rejected() {
    let calls = json!([{"id": "a", "type": "function", "function": {}}, {"id": "b", "type": "function"}]);
    assert_eq!(invalid_field(OPENAI, json!({"role": "assistant", "tool_calls": calls})), "tool_calls[1].function");
    let calls = json!([{"id": "a", "type": "custom", "custom": "x"}]);
    assert_eq!(invalid_field(OPENAI, json!({"role": "assistant", "tool_calls": calls})), "tool_calls[0].custom");
    assert_eq!(invalid_field(OPENAI, json!({"role": "assistant", "tool_calls": {}})), "tool_calls");
}

#[test]
fn meta_has_original_role_and_name() {
    for (blob, meta) in [
        (json!({"role": "user", "content": "x", "name": "ada"}), json!({"name": "ada", "source_format": "openai"})),
        (json!({"role": "user", "content": "x", "name": null}), json!({"source_format": "openai"})),
        (
            json!({"role": "system", "content": "x", "name": "policy"}),
            json!({"name": "policy", "original_role": "system", "source_format": "openai"}),
        ),
        (
            json!({"role": "developer", "content": "x"}),
            json!({"original_role": "developer", "source_format": "openai"}),
        ),
        (json!({"role": "tool", "name": "f", "content": "x"}), json!({"source_format": "openai"})),
    ] {
        let normalized = normalize_valid(OPENAI, blob);
        assert_eq!((normalized.role, Value::Object(normalized.meta)), (Role::User, meta));
    }
}

#[test]
fn media_become_parts() {
    for (item, part) in [
        (
            json!({"type": "image_url", "image_url": {"url": "https://x/c.png", "detail": "high"}}),
            json!({"type": "image", "meta": {"url": "https://x/c.png", "detail": "high"}}),
        ),
        (
            json!({"type": "image_url", "image_url": {"url": "https://x/c.png"}}),
            json!({"type": "image", "meta": {"url": "https://x/c.png", "detail": ""}}),
        ),
        (
            json!({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}),
            json!({"type": "audio", "meta": {"data": "AAAA", "format": "wav"}}),
        ),
        (
            json!({"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"}}),
            json!({"type": "file", "meta": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"}}),
        ),
        (json!({"type": "file", "file": {"file_id": "f"}}), json!({"type": "file", "meta": {"file_id": "f"}})),
        (
            json!({"type": "video_url", "video_url": {"url": "https://x/v.mp4"}}),
            json!({"type": "data", "meta": {"data_type": "openai",
                "block": {"type": "video_url", "video_url": {"url": "https://x/v.mp4"}}}}),
        ),
    ] {
        assert_eq!(parts_of(OPENAI, json!({"role": "user", "content": [item]})), json!([part]));
    }
}

#[test]
fn tool_calls_become_parts() {
    let calls = json!([
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": {"b": 2.50, "a": ["<&>"]}}},
        {"id": "c", "type": "custom", "custom": {"name": "shell", "input": "ls -l"}},
        {"id": "d", "type": "unheard_of"},
        {"id": "e", "function": {"name": "h", "arguments": ""}},
    ]);
    assert_eq!(
        parts_of(OPENAI, json!({"role": "assistant", "content": "run", "tool_calls": calls})),
        json!([
            {"type": "text", "text": "run"},
            {"type": "tool-call", "meta": {"id": "a", "name": "f", "arguments": "{\"x\": 1}", "type": "function"}},
            {"type": "tool-call",
                "meta": {"id": "b", "name": "g", "arguments": "{\"a\":[\"<&>\"],\"b\":2.5}", "type": "function"}},
            {"type": "tool-call", "meta": {"id": "c", "name": "shell", "arguments": "ls -l", "type": "custom"}},
            {"type": "data",
                "meta": {"data_type": "openai", "block": {"id": "d", "type": "unheard_of"}, "place": "tool_calls"}},
            {"type": "tool-call", "meta": {"id": "e", "name": "h", "arguments": "", "type": "function"}},
        ])
    );
    assert_eq!(
        parts_of(OPENAI, json!({"role": "assistant", "function_call": {"name": "old", "arguments": "{}"}})),
        json!([{"type": "tool-call", "meta": {"name": "old", "arguments": "{}", "type": "function"}}])
    );
}

#[test]
fn arguments_are_stringified() {
    let call = |arguments: Value| {
        let function = json!({"name": "f", "arguments": arguments});
        json!({"role": "assistant", "function_call": function,
            "tool_calls": [{"id": "a", "type": "function", "function": function}, {"id": "b", "function": function}]})
    };
    let text = "{\"a\":[\"<&>\",null],\"b\":2.50}";
    let value: Value = serde_json::from_str("{\"b\": 2.50, \"a\": [\"<&>\", null]}").unwrap();
    assert_eq!(normalize_valid(OPENAI, call(value)).body, call(text.into()));
    assert_eq!(normalize_valid(OPENAI, call("{ \"x\" : 1 }".into())).body, call("{ \"x\" : 1 }".into()));
}

#[test]
fn tool_results_become_parts() {
    for (blob, text, meta) in [
        (json!({"role": "tool", "tool_call_id": "t", "content": "rain"}), "rain", json!({"tool_call_id": "t"})),
        (json!({"role": "tool", "content": "orphan"}), "orphan", json!({"tool_call_id": ""})),
        (
            json!({"role": "tool", "tool_call_id": "t", "content": {"b": 1, "a": 2}}),
            "{\"a\":2,\"b\":1}",
            json!({"tool_call_id": "t"}),
        ),
        (json!({"role": "function", "name": "old", "content": "done"}), "done", json!({"function_name": "old"})),
    ] {
        assert_eq!(parts_of(OPENAI, blob), json!([{"type": "tool-result", "text": text, "meta": meta}]));
    }
    let odd = json!({"role": "tool", "tool_call_id": "t", "content": [
        {"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "https://x/c.png"}}]});
    let kinds = parts_of(OPENAI, odd);
    assert_eq!((&kinds[0]["text"], &kinds[1]["meta"]["tool_call_id"]), (&json!("see"), &json!("t")));
}

#[test]
fn refusal_reasoning_and_transcript_become_parts() {
    let refusal = json!({"type": "text", "text": "no", "meta": {"is_refusal": true}});
    let content = json!([{"type": "refusal", "refusal": "no"}]);
    assert_eq!(parts_of(OPENAI, json!({"role": "assistant", "content": content})), json!([refusal]));
    assert_eq!(parts_of(OPENAI, json!({"role": "assistant", "content": null, "refusal": "no"})), json!([refusal]));
    assert_eq!(
        parts_of(OPENAI, json!({"role": "assistant", "reasoning_content": "hm", "content": "so"})),
        json!([{"type": "thinking", "text": "hm"}, {"type": "text", "text": "so"}])
    );
    assert_eq!(
        parts_of(OPENAI, json!({"role": "assistant", "audio": {"id": "a", "data": "AAAA", "transcript": "said"}})),
        json!([{"type": "text", "text": "said"}])
    );
}

#[test]
fn nulls_are_removed_from_the_body() {
    for (blob, body) in [
        (
            json!({"role": "assistant", "content": "x", "refusal": null, "tool_calls": null, "audio": null,
                "annotations": [], "weight": 0}),
            json!({"role": "assistant", "content": "x", "annotations": [], "weight": 0}),
        ),
        (
            json!({"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": "u", "detail": null}, "x": null},
                {"type": "unheard_of", "x": null}]}),
            json!({"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": "u"}}, {"type": "unheard_of", "x": null}]}),
        ),
        (
            json!({"role": "assistant", "content": null, "tool_calls": [
                {"id": "a", "type": "function", "index": null, "function": {"name": "f", "arguments": "null"}}]}),
            json!({"role": "assistant", "content": null, "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": "null"}}]}),
        ),
        (
            json!({"role": "tool", "tool_call_id": "t", "content": [
                {"type": "text", "text": "12:", "x": null}, {"type": "text", "text": "30"}]}),
            json!({"role": "tool", "tool_call_id": "t", "content": [
                {"type": "text", "text": "12:"}, {"type": "text", "text": "30"}]}),
        ),
    ] {
        assert_eq!(normalize_valid(OPENAI, blob).body, body);
    }
}

#[test]
fn absent_fields_and_null_content_are_preserved() {
    for blob in [
        json!({"role": "assistant", "content": null, "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}),
        json!({"role": "assistant", "content": null}),
        json!({"role": "assistant"}),
        json!({"role": "function", "name": "f", "content": null}),
        json!({"role": "tool", "content": "orphan"}),
        json!({"role": "tool", "tool_call_id": "t"}),
        json!({"role": "tool", "tool_call_id": "t", "content": null}),
        json!({"role": "tool", "tool_call_id": "t", "content": []}),
        json!({"role": "tool", "tool_call_id": "t", "content": ["42", "17"]}),
        json!({"role": "user", "content": []}),
        json!({"role": "user", "content": ["a", "b"]}),
        json!({"role": "system", "content": []}),
    ] {
        assert_eq!(normalize_valid(OPENAI, blob.clone()).body, blob);
    }
}

#[test]
fn every_message_of_the_openai_package_is_preserved() {
    let breakpoint = json!({"mode": "explicit", "ttl": "30m"});
    let text = json!({"type": "text", "text": "hi", "prompt_cache_breakpoint": breakpoint});
    let image = json!({"type": "image_url", "image_url": {"url": "https://x/c.png", "detail": "original"},
        "prompt_cache_breakpoint": breakpoint});
    let audio = json!({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}});
    let file = json!({"type": "file", "file": {"file_data": "AAAA", "file_id": "f", "filename": "a.pdf"}});
    for blob in [
        json!({"role": "developer", "content": [text], "name": "n"}),
        json!({"role": "system", "content": [text], "name": "n"}),
        json!({"role": "user", "content": [text, image, audio, file], "name": "n"}),
        json!({"role": "assistant", "audio": {"id": "audio_1"}, "name": "n", "refusal": "no", "content": [
            text, {"type": "refusal", "refusal": "no"}]}),
        json!({"role": "assistant", "function_call": {"name": "f", "arguments": "{"}, "content": null}),
        json!({"role": "assistant", "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            {"id": "b", "type": "custom", "custom": {"name": "g", "input": "ls"}}]}),
        json!({"role": "assistant", "tool_calls": []}),
        json!({"role": "tool", "tool_call_id": "a", "content": [text]}),
        json!({"role": "function", "name": "f", "content": null}),
    ] {
        assert_eq!(normalize_valid(OPENAI, blob.clone()).body, blob);
        for target in [Format::Anthropic, Format::Gemini, Format::Acontext] {
            assert_eq!(convert(OPENAI, blob.clone(), target).as_array().map(Vec::len), Some(1));
        }
    }
}
