//! Thoughts and signatures of `OpenAI` messages.

use super::*;

const OPENAI: Format = Format::OpenAi;

fn with_reasoning_content() -> RenderContext {
    let options = RenderOptions { with_reasoning_content: true, ..RenderOptions::default() };
    RenderContext { options, ..RenderContext::default() }
}

fn thoughts_of(fields: Value) -> Value {
    let mut blob = fields;
    blob["role"] = "assistant".into();
    parts_of(OPENAI, blob)
}

#[test]
fn thoughts_are_left_out_unless_requested() {
    let blob = json!({"role": "assistant", "content": [
        {"type": "thinking", "thinking": "first", "signature": "c2ln"},
        {"type": "thinking", "thinking": "second", "signature": "c2ln"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": "so"}]});
    assert_eq!(convert(Format::Anthropic, blob.clone(), OPENAI), json!([{"role": "assistant", "content": "so"}]));
    assert_eq!(
        convert_with(Format::Anthropic, blob, OPENAI, &with_reasoning_content()),
        json!([{"role": "assistant", "content": "so", "reasoning_content": "first\nsecond"}])
    );
    let only_thought = json!({"role": "assistant", "parts": [{"type": "thinking", "text": "hm"}]});
    assert_eq!(
        convert_with(Format::Acontext, only_thought, OPENAI, &with_reasoning_content()),
        json!([{"role": "assistant", "content": "[no content]", "reasoning_content": "hm"}])
    );
}

#[test]
fn thoughts_of_every_field_are_read() {
    let signed = |provider: &str| {
        json!({"type": "thinking", "text": "hm", "meta": {"signature": "c2ln",
            "provider": provider}})
    };
    let redacted =
        |provider: &str| json!({"type": "redacted_thinking", "meta": {"data": "eA==", "provider": provider}});
    for (fields, parts) in [
        (json!({"reasoning_content": "hm"}), json!([{"type": "thinking", "text": "hm"}])),
        (json!({"reasoning": "hm"}), json!([{"type": "thinking", "text": "hm"}])),
        (json!({"reasoning": {"effort": "high"}}), json!([])),
        (
            json!({"thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "c2ln"},
                {"type": "redacted_thinking", "data": "eA=="}]}),
            json!([signed("anthropic"), redacted("anthropic")]),
        ),
        (
            json!({"reasoning_details": [
                {"type": "reasoning.text", "text": "hm", "signature": "c2ln", "format": "anthropic-claude-v1"},
                {"type": "reasoning.encrypted", "data": "eA==", "format": "anthropic-claude-v1"}]}),
            json!([signed("anthropic"), redacted("anthropic")]),
        ),
        (
            json!({"reasoning_details": [
                {"type": "reasoning.text", "text": "hm", "signature": "c2ln", "format": "google-gemini-v1"}]}),
            json!([signed("gemini")]),
        ),
        (
            json!({"reasoning_details": [{"type": "reasoning.summary", "summary": "in short"},
                {"type": "reasoning.encrypted", "data": "eA==", "format": "openai-responses-v1"}]}),
            json!([{"type": "thinking", "text": "in short"}, redacted("openai")]),
        ),
        (
            json!({"thinking_blocks": [{"type": "thinking", "thinking": "", "signature": "c2ln"}]}),
            json!([{"type": "thinking", "meta": {"signature": "c2ln", "provider": "anthropic"}}]),
        ),
    ] {
        assert_eq!(thoughts_of(fields.clone()), parts, "{fields}");
    }
}

#[test]
fn a_thought_in_several_fields_is_read_once() {
    let parts = thoughts_of(json!({
        "thinking_blocks": [{"type": "thinking", "thinking": "first", "signature": "c2ln"},
            {"type": "redacted_thinking", "data": "eA=="}, {"type": "thinking", "thinking": "second",
                "signature": "c2ln"}],
        "reasoning_details": [{"type": "reasoning.text", "text": "first", "signature": "c2ln"},
            {"type": "reasoning.encrypted", "data": "eA=="}],
        "reasoning_content": "first\n\nsecond",
        "reasoning": "firstsecond",
        "content": "so",
    }));
    let kinds: Vec<_> = parts.as_array().unwrap().iter().map(|part| part["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["thinking", "redacted_thinking", "thinking", "text"]);
}

#[test]
fn streamed_chunks_of_a_thought_are_joined() {
    let chunk = |text: &str, index: u32| json!({"type": "reasoning.text", "text": text, "index": index});
    let parts = thoughts_of(json!({"reasoning": "one two", "reasoning_details": [
        chunk("o", 0), chunk("ne", 0), {"type": "reasoning.text", "signature": "c2ln", "index": 0}, chunk("two", 1)]}));
    assert_eq!(
        parts,
        json!([{"type": "thinking", "text": "one", "meta": {"signature": "c2ln", "provider": "anthropic"}},
            {"type": "thinking", "text": "two"}])
    );
}

#[test]
fn signatures_of_google_are_kept_in_both_directions() {
    let extra = |signature: &str| json!({"google": {"thought_signature": signature}});
    let call = json!({"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"},
        "extra_content": extra("Y2FsbA==")});
    let blob = json!({"role": "assistant", "content": "so", "tool_calls": [call],
        "extra_content": extra("dGV4dA==")});
    let parts = json!([
        {"type": "text", "text": "so", "meta": {"thought_signature": "dGV4dA=="}},
        {"type": "tool-call", "meta": {"id": "a", "name": "f", "arguments": "{}", "type": "function",
            "thought_signature": "Y2FsbA=="}},
    ]);
    assert_eq!(parts_of(OPENAI, blob.clone()), parts);
    assert_eq!(convert(Format::Acontext, json!({"role": "assistant", "parts": parts}), OPENAI), json!([blob]));

    let blob = json!({"role": "assistant", "content": "", "extra_content": extra("dGV4dA==")});
    assert_eq!(parts_of(OPENAI, blob), json!([{"type": "text", "meta": {"thought_signature": "dGV4dA=="}}]));
}

#[test]
fn signatures_of_calls_are_read_from_reasoning_details() {
    let parts = thoughts_of(json!({
        "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        "reasoning_details": [{"type": "reasoning.encrypted", "id": "a", "data": "Y2FsbA==",
            "format": "google-gemini-v1"}],
    }));
    assert_eq!(parts.as_array().map(Vec::len), Some(1));
    assert_eq!(parts[0]["meta"]["thought_signature"], "Y2FsbA==");
}
