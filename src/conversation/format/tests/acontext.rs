use super::*;

const ACONTEXT: Format = Format::Acontext;

fn asset() -> Asset {
    Asset {
        bucket: "b".into(),
        s3_key: "k".into(),
        etag: String::new(),
        sha256: "5ha".into(),
        mime: "image/png".into(),
        size_b: 69,
    }
}

#[test]
fn parts_are_returned_unchanged() {
    let given = json!([
        {"type": "text", "text": "words", "meta": {"lang": "en"}},
        {"type": "image", "meta": {"url": "https://x/c.png"}},
        {"type": "audio", "meta": {"data": "AAAA", "format": "wav"}},
        {"type": "video"},
        {"type": "file", "meta": {"name": "x"}, "unheard_of": [null, {"x": 1.50}]},
        {"type": "data", "meta": {"data_type": "chart", "values": [1, null]}},
        {"type": "thinking", "text": "hm"},
        {"type": "redacted_thinking", "meta": {"data": "zz"}},
        {"type": "tool-call", "meta": {"name": "n", "arguments": null}},
        {"type": "tool-result", "text": "r", "meta": {"tool_call_id": null, "extra": [null, {"x": 1.5}]}},
    ]);
    let blob = json!({"role": "user", "parts": given});
    assert_eq!(parts_of(ACONTEXT, blob.clone()), given);
    let mut converted = convert(ACONTEXT, blob, ACONTEXT);
    assert_eq!(converted[0]["parts"].take(), given);
    assert_eq!(converted, json!([{"role": "user", "parts": null, "meta": {"source_format": "acontext"}}]));
}

#[test]
fn null_means_absent() {
    let blob = json!({"role": "user", "meta": null, "parts": [
        {"type": "text", "text": "x", "meta": null, "file_field": null},
        {"type": "image", "text": null, "file_field": "", "meta": {}}]});
    let normalized = normalize_valid(ACONTEXT, blob);
    assert_eq!(
        normalized.body,
        json!({"role": "user", "parts": [{"type": "text", "text": "x"}, {"type": "image", "meta": {}}]})
    );
    assert!(normalized.file_fields().is_empty());
    for parts in [json!(null), json!([])] {
        let normalized = normalize_valid(ACONTEXT, json!({"role": "assistant", "parts": parts}));
        assert_eq!(normalized.body, json!({"role": "assistant", "parts": []}));
    }
}

#[test]
fn meta_of_the_message_is_preserved() {
    for (meta, expected) in [
        (json!(null), json!({"source_format": "acontext"})),
        (json!({"a": {"b": null}}), json!({"a": {"b": null}, "source_format": "acontext"})),
        (json!({"source_format": "elsewhere", "name": "eve"}), json!({"source_format": "elsewhere", "name": "eve"})),
        (json!({"source_format": 5}), json!({"source_format": "acontext"})),
    ] {
        assert_eq!(Value::Object(normalize_valid(ACONTEXT, json!({"role": "user", "meta": meta})).meta), expected);
    }
    let blob = json!({"role": "user", "parts": [{"type": "text", "text": "ho"}], "meta": {"name": "eve"}});
    let message = json!({"role": "user", "content": "ho", "name": "eve"});
    assert_eq!(convert(ACONTEXT, blob, Format::OpenAi), json!([message]));
}

#[test]
fn invalid_part_is_rejected() {
    for (part, field) in [
        (json!("text"), ""),
        (json!({"type": "hologram"}), ".type"),
        (json!({"type": ""}), ".type"),
        (json!({"type": 5}), ".type"),
        (json!({"text": "no type"}), ".type"),
        (json!({"type": "text", "text": 5}), ".text"),
        (json!({"type": "image", "text": 5}), ".text"),
        (json!({"type": "thinking", "text": null}), ".text"),
        (json!({"type": "thinking", "text": "", "meta": {}}), ".text"),
        (json!({"type": "file", "file_field": 5}), ".file_field"),
        (json!({"type": "file", "meta": []}), ".meta"),
        (json!({"type": "data"}), ".meta.data_type"),
        (json!({"type": "data", "meta": {"type": "x"}}), ".meta.data_type"),
        (json!({"type": "tool-call"}), ".meta.name"),
        (json!({"type": "tool-call", "meta": {"name": "n"}}), ".meta.arguments"),
        (json!({"type": "tool-call", "meta": {"arguments": {}}}), ".meta.name"),
        (json!({"type": "tool-result", "meta": {}}), ".meta.tool_call_id"),
    ] {
        let blob = json!({"role": "user", "parts": [{"type": "image"}, part]});
        assert_eq!(invalid_field(ACONTEXT, blob), format!("parts[1]{field}"));
    }
    assert_eq!(invalid_field(ACONTEXT, json!({"role": "user", "parts": {}})), "parts");
    assert_eq!(invalid_field(ACONTEXT, json!({"role": "user", "meta": [1]})), "meta");
}

#[test]
fn parts_of_every_format_are_accepted() {
    for (format, blob) in [
        (Format::OpenAi, json!({"role": "user", "content": ""})),
        (Format::OpenAi, json!({"role": "function", "name": "old", "content": "x"})),
        (Format::OpenAi, json!({"role": "assistant", "function_call": {"name": "old", "arguments": ""}})),
        (Format::Anthropic, json!({"role": "user", "content": [{"type": "text", "text": ""}]})),
        (Format::Anthropic, json!({"role": "assistant", "content": [{"type": "thinking", "thinking": ""}]})),
        (
            Format::Anthropic,
            json!({"role": "assistant", "content": [{"type": "thinking", "thinking": "", "signature": "c2ln"}]}),
        ),
        (Format::Gemini, json!({"role": "model", "parts": [{"text": ""}, {}]})),
        (Format::Gemini, json!({"role": "model", "parts": [{"thought": true, "thoughtSignature": "c2ln"}]})),
        (Format::Gemini, json!({"role": "user", "parts": [{"functionResponse": {"name": "f"}}]})),
    ] {
        let converted = convert(format, blob.clone(), ACONTEXT);
        let normalized = normalize_valid(ACONTEXT, converted[0].clone());
        assert_eq!(normalized.body["parts"], parts_of(format, blob));
    }
}

#[test]
fn stored_file_replaces_its_form_field() {
    let blob = json!({"role": "user", "parts": [
        {"type": "text", "text": "see"},
        {"type": "image", "file_field": "pic", "asset": {"sha256": "forged"}, "filename": "forged"},
        {"type": "file", "file_field": "pic"}]});
    let mut normalized = normalize_valid(ACONTEXT, blob);
    assert_eq!(normalized.file_fields(), [(1, "pic".to_owned()), (2, "pic".to_owned())]);
    assert_eq!(normalized.body["parts"][1], json!({"type": "image", "file_field": "pic"}));
    normalized.set_file(1, &asset(), "red.png");
    normalized.set_file(9, &asset(), "no such part");
    assert_eq!(normalized.file_fields(), [(2, "pic".to_owned())]);
    let stored = json!({"bucket": "b", "s3_key": "k", "etag": "", "sha256": "5ha", "mime": "image/png", "size_b": 69});
    let expected = json!({"type": "image", "asset": stored, "filename": "red.png"});
    assert_eq!(normalized.body["parts"][1], expected);
    let parts = to_parts(ACONTEXT, normalized.body);
    assert_eq!(parts[1].asset, Some(asset()));
    assert_eq!(serde_json::to_value(&parts[1]).unwrap(), expected);
    let converted = from_parts(ACONTEXT, Role::User, &Map::new(), parts, &RenderContext::default());
    assert_eq!(converted[0]["parts"][1], expected);
}

#[test]
fn only_acontext_has_file_fields() {
    let blob = json!({"role": "user", "content": "x", "parts": [{"text": "x", "file_field": "f"}]});
    for format in [Format::OpenAi, Format::Anthropic, Format::Gemini] {
        assert!(normalize_valid(format, blob.clone()).file_fields().is_empty());
    }
}
