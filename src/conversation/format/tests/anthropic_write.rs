use super::*;

const ANTHROPIC: Format = Format::Anthropic;

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
        (
            json!({"type": "tool-result", "meta": {"tool_call_id": "t"}}),
            json!({"type": "tool_result", "tool_use_id": "t", "is_error": false}),
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
}

#[test]
fn thoughts_of_other_providers_are_left_out() {
    let said = json!({"type": "text", "text": "so"});
    let content = |thought: Value| {
        let parts = json!([thought, {"type": "text", "text": "so"}]);
        convert(Format::Acontext, json!({"role": "assistant", "parts": parts}), ANTHROPIC)[0]["content"].clone()
    };
    assert_eq!(content(json!({"type": "thinking", "text": "hm"})), json!([said]));
    assert_eq!(content(json!({"type": "thinking", "text": "hm", "meta": {"signature": ""}})), json!([said]));
    assert_eq!(
        content(json!({"type": "thinking", "text": "hm", "meta": {"signature": "c2ln"}})),
        json!([{"type": "thinking", "thinking": "hm", "signature": "c2ln"}, said])
    );
    let encrypted = json!({"type": "redacted_thinking", "data": "zz"});
    assert_eq!(content(json!({"type": "redacted_thinking", "meta": {"data": "zz"}})), json!([encrypted, said]));
    let gemini = json!({"role": "model", "parts": [
        {"text": "hm", "thought": true, "thoughtSignature": "c2ln"}, {"text": "so"}]});
    assert_eq!(convert(Format::Gemini, gemini, ANTHROPIC)[0]["content"], json!([said]));
}

#[test]
fn omitted_thinking_survives_conversion_to_acontext_and_back() {
    let thinking = json!({"type": "thinking", "thinking": "", "signature": "c2ln"});
    let blob = json!({"role": "assistant", "content": [thinking, {"type": "text", "text": "so"}]});
    assert_eq!(convert_via_acontext(ANTHROPIC, blob.clone(), ANTHROPIC), json!([blob]));
    let expected = json!([{"role": "model", "parts": [{"text": "so"}]}]);
    assert_eq!(convert(ANTHROPIC, blob, Format::Gemini), expected);
}

#[test]
fn document_fields_survive_conversion_to_acontext_and_back() {
    let source = json!({"type": "base64", "media_type": "application/pdf", "data": "AAAA"});
    let document = json!({"type": "document", "source": source, "title": "T", "context": "C",
        "citations": {"enabled": true}, "cache_control": {"type": "ephemeral"}});
    let blob = json!({"role": "user", "content": [document]});
    assert_eq!(convert_via_acontext(ANTHROPIC, blob.clone(), ANTHROPIC), json!([blob]));
}

#[test]
fn message_without_content_says_so() {
    let nothing = json!([{"role": "user", "content": [{"type": "text", "text": "[no content]"}]}]);
    for (format, blob) in [
        (Format::OpenAi, json!({"role": "user", "content": ""})),
        (Format::OpenAi, json!({"role": "user", "content": " \n"})),
        (ANTHROPIC, json!({"role": "user", "content": [{"type": "text", "text": " "}]})),
        (Format::Gemini, json!({"role": "user", "parts": []})),
        (Format::Acontext, json!({"role": "user", "parts": [{"type": "redacted_thinking"}]})),
        (Format::Acontext, json!({"role": "user", "parts": [{"type": "data", "meta": {"data_type": "openai"}}]})),
    ] {
        assert_eq!(convert(format, blob, ANTHROPIC), nothing);
    }
    let blob = json!({"role": "user", "parts": [{"text": " "}, {"text": "x"}]});
    let content = json!([{"type": "text", "text": "x"}]);
    assert_eq!(convert(Format::Gemini, blob, ANTHROPIC)[0]["content"], content);
}

#[test]
fn system_messages_have_the_original_role() {
    let blob = json!({"role": "system", "content": "Be brief."});
    let normalized = normalize_valid(ANTHROPIC, blob.clone());
    assert_eq!((normalized.role, &normalized.body), (Role::User, &blob));
    assert_eq!(normalized.meta["original_role"], "system");
    assert_eq!(convert(ANTHROPIC, blob.clone(), Format::OpenAi), json!([blob]));

    let native = RenderOptions { with_native_system: true, ..RenderOptions::default() };
    let native = RenderContext { options: native, ..RenderContext::default() };
    for (role, with_native) in [("system", "system"), ("developer", "system"), ("user", "user")] {
        let blob = json!({"role": role, "content": "Be brief."});
        let content = json!([{"type": "text", "text": "Be brief."}]);
        let message = |role: &str| json!([{"role": role, "content": content}]);
        assert_eq!(convert(Format::OpenAi, blob.clone(), ANTHROPIC), message("user"));
        assert_eq!(convert_with(Format::OpenAi, blob, ANTHROPIC, &native), message(with_native));
    }
    let blob = json!({"role": "user", "parts": [{"type": "image", "meta": {"url": "https://x/c.png"}}],
        "meta": {"original_role": "system"}});
    let content = json!([{"type": "text", "text": "[image: https://x/c.png]"}]);
    assert_eq!(convert_with(Format::Acontext, blob, ANTHROPIC, &native)[0]["content"], content);
}

#[test]
fn calls_and_results_in_the_wrong_role_become_texts() {
    let parts = json!([
        {"type": "tool-call", "meta": {"id": "a", "name": "f", "arguments": {"x": 1}}},
        {"type": "tool-result", "text": "42", "meta": {"tool_call_id": "a"}},
        {"type": "text", "text": "17", "meta": {"tool_call_id": "a"}},
    ]);
    let content =
        |role: &str| convert(Format::Acontext, json!({"role": role, "parts": parts}), ANTHROPIC)[0]["content"].clone();
    let text = |text: &str| json!({"type": "text", "text": text});
    let call = json!({"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}});
    assert_eq!(content("assistant"), json!([call, text("42"), text("17")]));
    let result =
        json!({"type": "tool_result", "tool_use_id": "a", "is_error": false, "content": [text("42"), text("17")]});
    assert_eq!(content("user"), json!([result, text("[tool call f: {\"x\":1}]")]));
}

#[test]
fn tool_results_precede_texts() {
    let blob = json!({"role": "user", "parts": [
        {"type": "text", "text": "look"}, {"type": "tool-result", "text": "42", "meta": {"tool_call_id": "a"}}]});
    let content = convert(Format::Acontext, blob, ANTHROPIC)[0]["content"].clone();
    assert_eq!((&content[0]["type"], &content[1]["text"]), (&json!("tool_result"), &json!("look")));
}

#[test]
fn all_blocks_of_the_current_types_are_stored_unchanged() {
    let hint = json!({"type": "ephemeral", "ttl": "1h"});
    let texts = json!([{"type": "text", "text": "x", "citations": [{"type": "char_location", "cited_text": "c",
        "document_index": 0, "document_title": null, "start_char_index": 0, "end_char_index": 1}]}]);
    let blocks = json!([
        {"type": "image", "source": {"type": "file", "file_id": "f"}, "cache_control": hint,
            "transformations": {"oversized_image": "error"}},
        {"type": "document", "source": {"type": "content", "content": texts}, "citations": {"enabled": true}},
        {"type": "search_result", "content": texts, "source": "s", "title": "t", "citations": {"enabled": true}},
        {"type": "tool_use", "id": "a", "name": "f", "input": {}, "caller": {"type": "direct"}, "toolset_name": "t"},
        {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "tool_reference", "tool_name": "f"},
            {"type": "browser_state", "tabs": []}, {"type": "search_result", "content": texts, "source": "s"}]},
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"q": null}, "cache_control": hint},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": [
            {"type": "web_search_result", "url": "u", "title": "t", "encrypted_content": "e", "page_age": null}]},
        {"type": "web_fetch_tool_result", "tool_use_id": "s", "content": {"type": "web_fetch_result", "url": "u",
            "content": {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "d"}}}},
        {"type": "code_execution_tool_result", "tool_use_id": "s", "content": {"type": "code_execution_result",
            "stdout": "o", "stderr": "", "return_code": 0, "content": []}},
        {"type": "mcp_tool_use", "id": "m", "name": "f", "server_name": "n", "input": {}},
        {"type": "mcp_tool_result", "tool_use_id": "m", "is_error": false, "content": texts},
        {"type": "container_upload", "file_id": "f"},
        {"type": "compaction", "content": null, "encrypted_content": null},
        {"type": "fallback", "from": {"model": "a"}, "to": {"model": "b"}, "trigger": null},
        {"type": "tool_addition", "tool": {"type": "tool_reference", "name": "f"}},
    ]);
    for role in ["user", "assistant", "system"] {
        let mut blob = json!({"role": role, "content": blocks});
        blob["content"][2].as_object_mut().unwrap().insert("cache_control".into(), hint.clone());
        assert_eq!(normalize_valid(ANTHROPIC, blob.clone()).body, blob);
        for target in [Format::OpenAi, ANTHROPIC, Format::Gemini, Format::Acontext] {
            convert(ANTHROPIC, blob.clone(), target);
        }
    }
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
