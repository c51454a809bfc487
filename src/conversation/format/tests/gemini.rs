use super::*;

const GEMINI: Format = Format::Gemini;

#[test]
fn gemini_parts_become_parts() {
    for (part, expected) in [
        (json!({"text": "x"}), json!({"type": "text", "text": "x"})),
        (
            json!({"text": "hm", "thought": true, "thoughtSignature": "c2ln"}),
            json!({"type": "thinking", "text": "hm", "meta": {"signature": "c2ln"}}),
        ),
        (json!({"text": "hm", "thought": true}), json!({"type": "thinking", "text": "hm"})),
        (
            json!({"inlineData": {"mimeType": "image/png", "data": PNG}}),
            json!({"type": "image", "meta": {"type": "base64", "media_type": "image/png", "data": PNG}}),
        ),
        (
            json!({"inlineData": {"mimeType": "audio/wav", "data": "AAAA"}}),
            json!({"type": "audio", "meta": {"type": "base64", "media_type": "audio/wav", "data": "AAAA"}}),
        ),
        (
            json!({"inlineData": {"mimeType": "application/pdf", "data": "AAAA"}}),
            json!({"type": "file", "meta": {"type": "base64", "media_type": "application/pdf", "data": "AAAA"}}),
        ),
        (
            json!({"fileData": {"mimeType": "video/mp4", "fileUri": "gs://b/clip.mp4"}}),
            json!({"type": "video", "meta": {"type": "url", "url": "gs://b/clip.mp4", "media_type": "video/mp4"}}),
        ),
        (
            json!({"fileData": {"fileUri": "https://x/y"}}),
            json!({"type": "file", "meta": {"type": "url", "url": "https://x/y"}}),
        ),
        (
            json!({"functionCall": {"id": "c", "name": "f", "args": {"b": 1, "a": "<"}}}),
            json!({"type": "tool-call",
                "meta": {"id": "c", "name": "f", "arguments": "{\"a\":\"<\",\"b\":1}", "type": "function"}}),
        ),
        (
            json!({"functionCall": {"name": "f"}}),
            json!({"type": "tool-call",
                "meta": {"id": "call_1", "name": "f", "arguments": "null", "type": "function"}}),
        ),
        (
            json!({"functionResponse": {"id": "c", "name": "f", "response": {"b": 1, "a": 2}}}),
            json!({"type": "tool-result", "text": "{\"a\":2,\"b\":1}", "meta": {"name": "f", "tool_call_id": "c"}}),
        ),
        (
            json!({"functionResponse": {"name": "f"}}),
            json!({"type": "tool-result", "text": "null", "meta": {"name": "f"}}),
        ),
        (
            json!({"executableCode": {"language": "PYTHON", "code": "1"}}),
            json!({"type": "data", "meta": {"data_type": "gemini",
                "block": {"executableCode": {"language": "PYTHON", "code": "1"}}}}),
        ),
        (
            json!({"thoughtSignature": "c2ln", "text": ""}),
            json!({"type": "data", "meta": {"data_type": "gemini", "block": {"thoughtSignature": "c2ln", "text": ""}}}),
        ),
    ] {
        assert_eq!(parts_of(GEMINI, json!({"role": "model", "parts": [part]})), json!([expected]), "{part}");
    }
}

#[test]
fn media_follow_their_function_response() {
    let response = json!({"id": "c", "name": "f", "response": {},
        "parts": [{"inline_data": {"mime_type": "image/png", "data": PNG, "display_name": null}}]});
    let parts = parts_of(GEMINI, json!({"role": "user", "parts": [{"function_response": response}]}));
    let meta = json!({"type": "base64", "media_type": "image/png", "data": PNG, "tool_call_id": "c"});
    assert_eq!(parts[1], json!({"type": "image", "meta": meta}));
}

#[test]
fn empty_or_invalid_part_is_rejected() {
    for (part, field) in [
        (json!({}), ""),
        (json!(null), ""),
        (json!("text"), ""),
        (json!({"text": ""}), ""),
        (json!({"text": null, "thought": true}), ""),
        (json!({"unheard_of": {}}), ""),
        (json!({"text": 5}), ".text"),
        (json!({"text": "x", "thought": "yes"}), ".thought"),
        (json!({"text": "x", "thoughtSignature": "?"}), ".thoughtSignature"),
        (json!({"inlineData": "AAAA"}), ".inlineData"),
        (json!({"inlineData": {"mimeType": "image/png"}}), ".inlineData.data"),
        (json!({"inlineData": {"mimeType": "image/png", "data": "not base64!"}}), ".inlineData.data"),
        (json!({"inlineData": {"mimeType": "image/png", "data": "A==="}}), ".inlineData.data"),
        (json!({"inlineData": {"mimeType": "image/png", "data": "AA=A"}}), ".inlineData.data"),
        (json!({"inlineData": {"mimeType": "image/png", "data": "AAA"}}), ".inlineData.data"),
        (json!({"inlineData": {"mimeType": 5, "data": "AAAA"}}), ".inlineData.mimeType"),
        (json!({"fileData": {"mimeType": "video/mp4"}}), ".fileData.fileUri"),
        (json!({"functionCall": {"args": {}}}), ".functionCall.name"),
        (json!({"functionCall": {"name": "f", "args": "{}"}}), ".functionCall.args"),
        (json!({"functionResponse": {"name": "f", "id": 5}}), ".functionResponse.id"),
        (json!({"functionResponse": {"name": "f", "response": [1]}}), ".functionResponse.response"),
    ] {
        let blob = json!({"role": "user", "parts": [{"text": "fine"}, part]});
        assert_eq!(invalid_field(GEMINI, blob), format!("parts[1]{field}"));
    }
    assert_eq!(invalid_field(GEMINI, json!({"role": "user", "parts": {}})), "parts");
}

#[test]
fn other_spellings_of_keys_are_normalized() {
    let blob = json!({"Role": "user", "parts": [
        {"inline_data": {"mime_type": "image/png", "data": "-_-_", "display_name": null}, "file_data": null},
        {"FunctionResponse": {"NAME": "f", "will_continue": false, "response": {"snake_case": null}}},
        {"text": "x", "thought_signature": "c2\nln", "video_metadata": {"start_offset": "1s"}},
    ]});
    let body = json!({"role": "user", "parts": [
        {"inlineData": {"mimeType": "image/png", "data": "+/+/"}},
        {"functionResponse": {"name": "f", "willContinue": false, "response": {"snake_case": null}}},
        {"text": "x", "thoughtSignature": "c2ln", "videoMetadata": {"startOffset": "1s"}},
    ]});
    assert_eq!(normalize_valid(GEMINI, blob).body, body);
    let blob = json!({"role": "model", "parts": null});
    assert_eq!(normalize_valid(GEMINI, blob).body, json!({"role": "model", "parts": []}));
}

#[test]
fn calls_and_responses_have_ids() {
    let normalized = normalize_valid(
        GEMINI,
        json!({"role": "model", "parts": [
            {"functionCall": {"name": "f"}}, {"text": "x"}, {"functionCall": {"name": "g", "id": "mine"}},
            {"functionCall": {"name": "h", "id": ""}}]}),
    );
    let ids = [0, 2, 3].map(|index| &normalized.body["parts"][index]["functionCall"]["id"]);
    assert_eq!(ids, ["call_1", "mine", "call_2"]);

    let mut normalized = normalize_valid(
        GEMINI,
        json!({"role": "user", "parts": [
            {"text": "x"}, {"functionResponse": {"name": "f", "id": null}},
            {"functionResponse": {"name": "g", "id": "mine"}}]}),
    );
    let response = |part_index, name: &str, id: Option<&str>| FunctionResponse {
        part_index,
        name: name.into(),
        id: id.map(str::to_owned),
        will_continue: false,
    };
    assert_eq!(normalized.function_responses(), [response(1, "f", None), response(2, "g", Some("mine"))]);
    normalized.set_response_id(1, "call_1");
    normalized.set_response_id(0, "no such response");
    normalized.set_response_id(9, "no such response");
    assert_eq!(normalized.function_responses()[0], response(1, "f", Some("call_1")));
    assert_eq!(normalized.body["parts"][0], json!({"text": "x"}));
    assert!(normalized.file_fields().is_empty());
}

#[test]
fn parts_become_gemini_parts() {
    for (part, expected) in [
        (json!({"type": "text", "text": "x"}), json!({"text": "x"})),
        (
            json!({"type": "thinking", "text": "hm", "meta": {"signature": "c2ln"}}),
            json!({"text": "hm", "thought": true, "thoughtSignature": "c2ln"}),
        ),
        (
            json!({"type": "thinking", "text": "hm", "meta": {"signature": "s!g"}}),
            json!({"text": "hm", "thought": true, "thoughtSignature": "cyFn"}),
        ),
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
    ] {
        let blob = json!({"role": "assistant", "parts": [part]});
        assert_eq!(convert(Format::Acontext, blob, GEMINI), json!([{"role": "model", "parts": [expected]}]));
    }
    let blob = json!({"role": "user", "parts": [{"type": "redacted_thinking", "meta": {"data": "x"}}]});
    assert_eq!(convert(Format::Acontext, blob, GEMINI), json!([{"role": "user", "parts": []}]));
}

#[test]
fn function_response_has_the_function_name() {
    let names = [("known".to_owned(), "f".to_owned())].into();
    let ctx = RenderContext { call_names: names, ..RenderContext::default() };
    for (text, meta, expected) in [
        ("rain", json!({"tool_call_id": "known"}), json!({"id": "known", "name": "f", "response": {"output": "rain"}})),
        ("{\"a\":1}", json!({"tool_call_id": "lost"}), json!({"id": "lost", "name": "lost", "response": {"a": 1}})),
        ("[1]", json!({"tool_call_id": ""}), json!({"name": "unknown", "response": {"output": "[1]"}})),
        ("null", json!({"tool_call_id": "known", "name": "own"}), json!({"id": "known", "name": "own"})),
        ("", json!({"tool_call_id": "known"}), json!({"id": "known", "name": "f"})),
    ] {
        let blob = json!({"role": "user", "parts": [{"type": "tool-result", "text": text, "meta": meta}]});
        let converted = convert_with(Format::Acontext, blob, GEMINI, &ctx);
        assert_eq!(converted, json!([{"role": "user", "parts": [{"functionResponse": expected}]}]));
    }
    let function = json!({"role": "function", "name": "old", "content": "x"});
    assert_eq!(convert(Format::OpenAi, function, GEMINI)[0]["parts"][0]["functionResponse"]["name"], "old");
}
