//! Content blocks of dialects and of unknown types.

use super::*;
use crate::conversation::edit::{self, Message};
use crate::conversation::tokens::count_parts;

const OPENAI: Format = Format::OpenAi;

/// Returns the parts of a block in a message of the format `openai`.
fn parts_of_block(role: &str, block: &Value) -> Value {
    parts_of(OPENAI, json!({"role": role, "content": [block]}))
}

#[test]
fn blocks_of_the_responses_api_are_read() {
    for (block, part) in [
        (json!({"type": "input_text", "text": "hi"}), json!({"type": "text", "text": "hi"})),
        (json!({"type": "output_text", "text": "hi", "annotations": []}), json!({"type": "text", "text": "hi"})),
        (json!({"type": "summary_text", "text": "hm"}), json!({"type": "thinking", "text": "hm"})),
        (
            json!({"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "hm"}],
                "encrypted_content": "x"}),
            json!({"type": "thinking", "text": "hm"}),
        ),
        (
            json!({"type": "input_image", "image_url": "https://x/c.png", "detail": "low"}),
            json!({"type": "image", "meta": {"url": "https://x/c.png", "detail": "low"}}),
        ),
        (json!({"type": "input_image", "file_id": "f-1"}), json!({"type": "image", "meta": {"file_id": "f-1"}})),
        (
            json!({"type": "input_file", "file_data": "data:application/pdf;base64,AAAA", "filename": "a.pdf"}),
            json!({"type": "file", "meta": {"file_data": "data:application/pdf;base64,AAAA", "filename": "a.pdf"}}),
        ),
        (
            json!({"type": "input_file", "file_url": "https://x/a.pdf"}),
            json!({"type": "file", "meta": {"type": "url", "url": "https://x/a.pdf"}}),
        ),
        (
            json!({"type": "refusal", "refusal": "no"}),
            json!({"type": "text", "text": "no", "meta": {"is_refusal": true}}),
        ),
    ] {
        assert_eq!(parts_of_block("assistant", &block), json!([part]), "{block}");
        let stored = json!({"role": "assistant", "content": [block]});
        assert_eq!(normalize_valid(OPENAI, stored.clone()).body, stored);
    }
}

#[test]
fn parts_of_the_ai_sdk_are_read() {
    let google = json!({"google": {"thoughtSignature": "c2ln"}});
    let anthropic = json!({"anthropic": {"signature": "c2ln"}});
    for (block, part) in [
        (
            json!({"type": "tool-call", "toolCallId": "a", "toolName": "f", "input": {"x": 1},
                "providerOptions": google}),
            json!({"type": "tool-call", "meta": {"id": "a", "name": "f", "arguments": "{\"x\":1}", "type": "function",
                "thought_signature": "c2ln"}}),
        ),
        (
            json!({"type": "tool-call", "toolCallId": "a", "toolName": "f", "args": {}}),
            json!({"type": "tool-call", "meta": {"id": "a", "name": "f", "arguments": "{}", "type": "function"}}),
        ),
        (json!({"type": "reasoning", "text": "hm"}), json!({"type": "thinking", "text": "hm"})),
        (
            json!({"type": "reasoning", "text": "hm", "providerOptions": anthropic}),
            json!({"type": "thinking", "text": "hm", "meta": {"signature": "c2ln", "provider": "anthropic"}}),
        ),
        (
            json!({"type": "redacted-reasoning", "data": "x"}),
            json!({"type": "redacted_thinking", "meta": {"data": "x", "provider": "anthropic"}}),
        ),
        (
            json!({"type": "file", "data": "AAAA", "mediaType": "application/pdf", "filename": "a.pdf"}),
            json!({"type": "file", "meta": {"type": "base64", "media_type": "application/pdf", "data": "AAAA",
                "filename": "a.pdf"}}),
        ),
        (
            json!({"type": "file", "data": "https://x/v.mp4", "mimeType": "video/mp4"}),
            json!({"type": "video", "meta": {"type": "url", "media_type": "video/mp4", "url": "https://x/v.mp4"}}),
        ),
        (
            json!({"type": "image", "image": "data:image/png;base64,AAAA"}),
            json!({"type": "image", "meta": {"type": "url", "url": "data:image/png;base64,AAAA"}}),
        ),
        (
            json!({"type": "image", "image": "AAAA", "mediaType": "image/png"}),
            json!({"type": "image", "meta": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}),
        ),
    ] {
        assert_eq!(parts_of_block("assistant", &block), json!([part]), "{block}");
    }
    let image = json!({"role": "user", "content": [{"type": "image", "image": "AAAA", "mediaType": "image/png"}]});
    assert_eq!(
        convert(OPENAI, image, Format::Anthropic)[0]["content"],
        json!([{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}])
    );
}

#[test]
fn results_of_the_ai_sdk_are_read() {
    let result = |fields: Value| {
        let mut block = json!({"type": "tool-result", "toolCallId": "a", "toolName": "f"});
        block.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        parts_of(OPENAI, json!({"role": "tool", "content": [block]}))
    };
    for (fields, text, is_error) in [
        (json!({"output": {"type": "text", "value": "ok"}}), "ok", false),
        (json!({"output": {"type": "json", "value": {"b": 1, "a": 2}}}), "{\"a\":2,\"b\":1}", false),
        (json!({"output": {"type": "error-text", "value": "failed"}}), "failed", true),
        (json!({"output": {"type": "execution-denied", "reason": "not allowed"}}), "not allowed", true),
        (json!({"output": {"celsius": 21}}), "{\"celsius\":21}", false),
        (json!({"result": {"celsius": 21}}), "{\"celsius\":21}", false),
        (json!({"result": "failed", "isError": true}), "failed", true),
    ] {
        let mut meta = json!({"tool_call_id": "a", "name": "f"});
        if is_error {
            meta["is_error"] = true.into();
        }
        assert_eq!(result(fields.clone()), json!([{"type": "tool-result", "text": text, "meta": meta}]), "{fields}");
    }
    let items = json!([{"type": "text", "text": "42"}, {"type": "media", "data": "AAAA", "mediaType": "image/png"},
        {"type": "text", "text": "17"}]);
    assert_eq!(
        result(json!({"output": {"type": "content", "value": items}})),
        json!([
            {"type": "tool-result", "text": "42", "meta": {"tool_call_id": "a", "name": "f"}},
            {"type": "image", "meta": {"tool_call_id": "a", "type": "base64", "media_type": "image/png",
                "data": "AAAA"}},
            {"type": "text", "text": "17", "meta": {"tool_call_id": "a"}},
        ])
    );
}

#[test]
fn calls_and_results_of_the_ai_sdk_become_those_of_other_formats() {
    let call = json!({"role": "assistant", "content": [{"type": "text", "text": "wait"},
        {"type": "tool-call", "toolCallId": "a", "toolName": "f", "input": {"x": 1}}]});
    let results = json!({"role": "tool", "content": [
        {"type": "tool-result", "toolCallId": "a", "toolName": "f", "output": {"type": "text", "value": "42"}},
        {"type": "tool-result", "toolCallId": "b", "toolName": "g", "output": {"type": "text", "value": "17"}}]});
    assert_eq!(
        convert(OPENAI, call.clone(), Format::Anthropic)[0]["content"][1],
        json!({"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}})
    );
    let anthropic = convert(OPENAI, results.clone(), Format::Anthropic);
    assert_eq!(
        (&anthropic[0]["content"][0]["tool_use_id"], &anthropic[0]["content"][1]["tool_use_id"]),
        (&json!("a"), &json!("b"))
    );
    for blob in [call, results] {
        assert_eq!(normalize_valid(OPENAI, blob.clone()).body, blob);
        assert!(count_parts(&to_parts(OPENAI, blob)) > 0);
    }
}

#[test]
fn strategies_edit_calls_and_results_of_the_ai_sdk() {
    let strategies = edit::parse(
        r#"[{"type": "remove_tool_result", "params": {"keep_recent_n_tool_results": 0}},
            {"type": "remove_tool_call_params", "params": {"keep_recent_n_tool_calls": 0}}]"#,
    )
    .unwrap();
    let edited = |mut body: Value| {
        let parts = to_parts(OPENAI, body.clone());
        let message = Message { role: Role::User, is_system: false, tokens: count_parts(&parts), parts };
        let edited = edit::apply(&strategies, vec![message], None).remove(0);
        apply_changes(OPENAI, &mut body, &edited.changes);
        body["content"].take()
    };
    assert_eq!(
        edited(json!({"role": "assistant", "content": [
            {"type": "tool-call", "toolCallId": "a", "toolName": "f", "input": {"x": 1}},
            {"type": "tool-call", "toolCallId": "b", "toolName": "g", "args": {"x": 1}}]})),
        json!([
            {"type": "tool-call", "toolCallId": "a", "toolName": "f", "input": {}},
            {"type": "tool-call", "toolCallId": "b", "toolName": "g", "args": {}}])
    );
    assert_eq!(
        edited(json!({"role": "tool", "content": [
            {"type": "tool-result", "toolCallId": "a", "toolName": "f", "output": {"type": "error-json",
                "value": {"x": 1}}},
            {"type": "tool-result", "toolCallId": "b", "toolName": "g", "result": [1, 2]}]})),
        json!([
            {"type": "tool-result", "toolCallId": "a", "toolName": "f", "output": {"type": "error-text",
                "value": "Done"}},
            {"type": "tool-result", "toolCallId": "b", "toolName": "g", "result": "Done"}])
    );
}

#[test]
fn the_text_of_an_unknown_block_is_written_to_other_formats() {
    for (block, text) in [
        (
            json!({"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "x"}}),
            "[tool call web_search: {\"query\":\"x\"}]",
        ),
        (
            json!({"type": "web_search_tool_result", "tool_use_id": "s", "content": [
            {"type": "web_search_result", "title": "T", "url": "https://x", "encrypted_content": "e"}]}),
            "T\nhttps://x",
        ),
        (
            json!({"type": "code_execution_tool_result", "tool_use_id": "s", "content":
            {"type": "code_execution_result", "stdout": "42", "stderr": "", "return_code": 0, "content": []}}),
            "42",
        ),
        (
            json!({"type": "web_fetch_tool_result", "content": {"type": "web_fetch_tool_error",
                "error_code": "unavailable"}}),
            "unavailable",
        ),
        (json!({"type": "tool_reference", "tool_name": "f"}), "[tool f]"),
        (
            json!({"type": "search_result", "source": "https://x", "title": "T", "content": [{"type": "text",
                "text": "found"}]}),
            "T\nfound\nhttps://x",
        ),
        (json!({"type": "unheard_of", "text": "words"}), "words"),
        (json!({"type": "unheard_of", "output": ["a", {"text": "b"}]}), "a\nb"),
    ] {
        let blob = json!({"role": "assistant", "content": [block]});
        let message = json!({"role": "assistant", "content": text});
        assert_eq!(convert(Format::Anthropic, blob.clone(), OPENAI), json!([message]), "{block}");
        // The own format and `acontext` contain the block.
        assert_eq!(convert(Format::Anthropic, blob.clone(), Format::Anthropic), json!([blob]));
        assert_eq!(convert(Format::Anthropic, blob, Format::Acontext)[0]["parts"][0]["meta"]["block"], block);
    }
    let code = json!({"role": "model", "parts": [{"executableCode": {"language": "PYTHON", "code": "print(42)"}}]});
    assert_eq!(convert(Format::Gemini, code, OPENAI), json!([{"role": "assistant", "content": "print(42)"}]));
    let thought = json!({"type": "unheard_of_thinking", "text": "hm"});
    let blob = json!({"role": "assistant", "content": [thought]});
    assert_eq!(convert(Format::Anthropic, blob, OPENAI)[0]["content"], "[no content]");
}

#[test]
fn an_unknown_block_of_a_result_stays_in_it() {
    let content = json!([{"type": "tool_reference", "tool_name": "f"}, {"type": "tool_reference", "tool_name": "g"}]);
    let blob = json!({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": content}]});
    let texts = json!([{"type": "text", "text": "[tool f]"}, {"type": "text", "text": "[tool g]"}]);
    assert_eq!(
        convert(Format::Anthropic, blob, OPENAI),
        json!([{"role": "tool", "tool_call_id": "t", "content": texts}])
    );
}

#[test]
fn invalid_blocks_of_dialects_are_unknown_blocks() {
    for block in [
        json!({"type": "input_text", "text": 5}),
        json!({"type": "tool-call", "toolName": "f", "input": {}}),
        json!({"type": "tool-result", "toolCallId": 5}),
        json!({"type": "reasoning", "summary": [], "encrypted_content": "x"}),
        json!({"type": "file", "data": {"0": 1}}),
        json!({"type": "image", "image": ""}),
        json!({"type": "image", "source": {"type": "file", "file_id": "f"}}),
        json!({"type": "image_urls", "image_url": {}}),
    ] {
        let data = json!({"type": "data", "meta": {"data_type": "openai", "block": block}});
        assert_eq!(parts_of_block("user", &block), json!([data]));
    }
}
