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
    ] {
        assert_eq!(parts_of(GEMINI, json!({"role": "model", "parts": [part]})), json!([expected]), "{part}");
    }
}

#[test]
fn signatures_and_empty_texts_become_parts() {
    for (part, expected) in [
        (
            json!({"functionCall": {"id": "c", "name": "f", "args": {}}, "thoughtSignature": "c2ln"}),
            json!({"type": "tool-call", "meta": {
                "id": "c", "name": "f", "arguments": "{}", "type": "function", "thought_signature": "c2ln"}}),
        ),
        (
            json!({"text": "x", "thoughtSignature": "c2ln"}),
            json!({"type": "text", "text": "x", "meta": {"thought_signature": "c2ln"}}),
        ),
        (
            json!({"thoughtSignature": "c2ln", "text": ""}),
            json!({"type": "text", "meta": {"thought_signature": "c2ln"}}),
        ),
        (json!({"thoughtSignature": "c2ln"}), json!({"type": "text", "meta": {"thought_signature": "c2ln"}})),
        (
            json!({"thoughtSignature": "c2ln", "thought": true}),
            json!({"type": "thinking", "meta": {"signature": "c2ln"}}),
        ),
        (json!({"text": ""}), json!({"type": "text"})),
        (json!({}), json!({"type": "data", "meta": {"data_type": "gemini", "block": {}}})),
        (
            json!({"text": "", "thought": true}),
            json!({"type": "data", "meta": {"data_type": "gemini", "block": {"text": "", "thought": true}}}),
        ),
        (
            json!({"functionCall": {"willContinue": true}, "thoughtSignature": "c2ln"}),
            json!({"type": "data", "meta": {"data_type": "gemini",
                "block": {"functionCall": {"willContinue": true}, "thoughtSignature": "c2ln"}}}),
        ),
        (
            json!({"inlineData": {"mimeType": "image/png", "data": PNG}, "thought": true}),
            json!({"type": "data", "meta": {"data_type": "gemini",
                "block": {"inlineData": {"mimeType": "image/png", "data": PNG}, "thought": true}}}),
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
fn invalid_part_is_rejected() {
    for (part, field) in [
        (json!(null), ""),
        (json!("text"), ""),
        (json!({"text": 5}), ".text"),
        (json!({"text": "x", "thought": "yes"}), ".thought"),
        (json!({"text": "x", "thoughtSignature": "?"}), ".thoughtSignature"),
        (json!({"inlineData": "AAAA"}), ".inlineData"),
        (json!({"inlineData": {"mimeType": "image/png"}}), ".inlineData.data"),
        (json!({"inlineData": {"mimeType": "image/png", "data": "not base64!"}}), ".inlineData.data"),
        (json!({"inlineData": {"mimeType": "image/png", "data": "A==="}}), ".inlineData.data"),
        (json!({"inlineData": {"mimeType": "image/png", "data": "AA=A"}}), ".inlineData.data"),
        (json!({"inlineData": {"mimeType": "image/png", "data": "AAAAA"}}), ".inlineData.data"),
        (json!({"inlineData": {"mimeType": 5, "data": "AAAA"}}), ".inlineData.mimeType"),
        (json!({"fileData": {"mimeType": "video/mp4"}}), ".fileData.fileUri"),
        (json!({"functionCall": {"args": {}}}), ".functionCall.name"),
        (json!({"functionCall": {"name": "f", "args": "{}"}}), ".functionCall.args"),
        (json!({"functionResponse": {"name": "f", "id": 5}}), ".functionResponse.id"),
        (json!({"functionResponse": {"name": "f", "response": [1]}}), ".functionResponse.response"),
        (
            json!({"functionResponse": {"name": "f", "parts": [{}, {"inlineData": {"data": "?"}}]}}),
            ".functionResponse.parts[1].inlineData.data",
        ),
        (
            json!({"functionResponse": {"name": "f", "parts": [{"fileData": {}}]}}),
            ".functionResponse.parts[0].fileData.fileUri",
        ),
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
    assert_eq!(normalize_valid(GEMINI, blob).body, json!({"role": "model"}));
}

#[test]
fn every_field_of_the_current_types_is_stored() {
    let resolution = json!({"level": "MEDIA_RESOLUTION_LOW", "numTokens": 64});
    let body = json!({"role": "model", "parts": [
        {"inlineData": {"mimeType": "video/mp4", "data": "+/8=", "displayName": "v"}, "mediaProcessing": "STATIC",
            "mediaResolution": resolution,
            "videoMetadata": {"startOffset": "1s", "endOffset": "2s", "fps": 1.5, "contentLayers": ["FRAMES"]}},
        {"fileData": {"mimeType": "audio/wav", "fileUri": "gs://b/a", "displayName": "a"},
            "audioMetadata": {"startOffset": "1s", "endOffset": "2s"},
            "documentMetadata": {"startPage": 1, "endPage": 2, "contentLayers": ["PAGE_IMAGE"]},
            "spreadsheetMetadata": {"visibleCells": "A1:B2", "sheetIndex": 1, "contentLayers": ["DATA"]}},
        {"functionCall": {"id": "c", "name": "f", "args": {"snake_case": null}, "willContinue": true,
            "partialArgs": [{"jsonPath": "$.a", "nullValue": null, "willContinue": false}, {"jsonPath": "$.b",
                "stringValue": "s"}]}, "thoughtSignature": "+/8="},
        {"functionResponse": {"id": "c", "name": "f", "response": {"snake_case": null}, "scheduling": "SILENT",
            "willContinue": true, "parts": [{"inlineData": {"mimeType": "image/png", "data": "+/8=", "displayName": "i"},
                "mediaResolution": resolution}]}},
        {"toolCall": {"id": "t", "toolType": "URL_CONTEXT", "args": {"snake_case": null}}},
        {"toolResponse": {"id": "t", "toolType": "URL_CONTEXT", "response": {"snake_case": null}}},
        {"executableCode": {"id": "e", "language": "PYTHON", "code": "1"}},
        {"codeExecutionResult": {"id": "e", "outcome": "OUTCOME_OK", "output": "1"}},
        {"text": "x", "thought": true, "speechMetadata": {"speaker": "s", "style": "calm"}},
        {"audioTranscription": {"text": "said", "finished": true, "languageCode": "en", "speakerLabel": "s",
            "startOffset": "1s", "endOffset": "2s", "words": [{"word": "said", "startOffset": "1s", "endOffset": "2s"}]}},
        {"text": "x", "partMetadata": {"snake_case": null, "inner": {"snake_case": null}}},
    ]});
    assert_eq!(normalize_valid(GEMINI, body.clone()).body, body);
    // Google's SDK writes snake case and URL-safe base64.
    let (text, mut snake) = (body.to_string(), String::new());
    let mut in_key = false;
    for (index, character) in text.char_indices() {
        if character == '"' {
            let end = text[index + 1..].find('"').map(|length| index + 1 + length);
            in_key = !in_key && end.is_some_and(|end| text[end + 1..].starts_with(':'));
        }
        if in_key && character.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(if in_key { character.to_ascii_lowercase() } else { character });
    }
    let snake: Value = serde_json::from_str(&snake.replace("+/8=", "-_8=")).unwrap();
    assert!(snake["parts"][0].get("inline_data").is_some());
    assert_eq!(normalize_valid(GEMINI, snake).body, body);
}

#[test]
fn base64_without_padding_is_accepted() {
    for (given, stored) in [("-_8", "+/8="), ("-w", "+w=="), ("AAAA", "AAAA"), ("", "")] {
        let blob = json!({"role": "user", "parts": [{"inlineData": {"mimeType": "image/png", "data": given}}]});
        assert_eq!(normalize_valid(GEMINI, blob).body["parts"][0]["inlineData"]["data"], stored);
    }
}

#[test]
fn content_without_a_role_is_a_users() {
    for blob in [
        json!({"parts": [{"text": "x"}]}),
        json!({"role": "function", "parts": [{"text": "x"}]}),
        json!({"role": "user", "parts": [{"text": "x"}]}),
    ] {
        let normalized = normalize_valid(GEMINI, blob.clone());
        assert_eq!((normalized.role, &normalized.body), (Role::User, &blob));
        assert_eq!(convert(GEMINI, blob, Format::OpenAi), json!([{"role": "user", "content": "x"}]));
    }
    assert_eq!(normalize_valid(GEMINI, json!({"role": null, "parts": []})).body, json!({"parts": []}));
}

#[test]
fn empty_parts_are_stored() {
    for part in [json!({}), json!({"text": ""}), json!({"thought": true}), json!({"unheard_of": {}})] {
        let blob = json!({"role": "model", "parts": [part]});
        assert_eq!(normalize_valid(GEMINI, blob.clone()).body, blob);
        let nothing = json!([{"role": "assistant", "content": [{"type": "text", "text": "[no content]"}]}]);
        assert_eq!(convert(GEMINI, blob, Format::Anthropic), nothing);
    }
}

#[test]
fn chunks_of_a_function_call_are_stored_without_an_id() {
    let chunks = json!([
        {"functionCall": {"partialArgs": [{"jsonPath": "$.a", "stringValue": "x"}], "willContinue": true}},
        {"functionCall": {}}]);
    let normalized = normalize_valid(GEMINI, json!({"role": "model", "parts": chunks}));
    assert_eq!(normalized.body["parts"], chunks);
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
