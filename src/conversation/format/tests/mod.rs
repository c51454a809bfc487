//! Example messages and their conversions.

use serde_json::{Value, json};

use super::*;

mod acontext;
mod anthropic;
mod anthropic_write;
mod dialect;
mod edit;
mod fields;
mod gemini;
mod gemini_write;
mod media;
mod openai;
mod openai_write;
mod reasoning;
mod streamed_calls;

const PNG: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mP4z8AAAAMBAQD3A0FDAAAAAElFTkSuQmCC";

fn normalize_valid(format: Format, blob: Value) -> NormalizedMessage {
    let mut last = 0;
    let mut new_call_id = || {
        last += 1;
        format!("call_{last}")
    };
    normalize(format, blob, &mut new_call_id).unwrap()
}

/// Returns the parts of a message as JSON.
fn parts_of(format: Format, blob: Value) -> Value {
    serde_json::to_value(to_parts(format, normalize_valid(format, blob).body)).unwrap()
}

fn convert_with(format: Format, blob: Value, target: Format, ctx: &RenderContext) -> Value {
    let NormalizedMessage { role, meta, body, .. } = normalize_valid(format, blob);
    Value::Array(from_parts(target, role, &meta, to_parts(format, body), ctx))
}

/// Converts a message to `acontext`, stores that, and converts it to the target.
fn convert_via_acontext(format: Format, blob: Value, target: Format) -> Value {
    convert(Format::Acontext, convert(format, blob, Format::Acontext)[0].take(), target)
}

/// Converts a message to another format.
fn convert(format: Format, blob: Value, target: Format) -> Value {
    convert_with(format, blob, target, &RenderContext::default())
}

/// Returns the field for which a message is rejected.
fn invalid_field(format: Format, blob: Value) -> String {
    normalize(format, blob, &mut || unreachable!()).expect_err("the message is invalid").field
}

#[test]
fn message_must_be_an_object() {
    for format in [Format::OpenAi, Format::Anthropic, Format::Gemini, Format::Acontext] {
        for blob in [json!("text"), json!(["list"]), json!(5), json!(true), json!(null)] {
            assert_eq!(invalid_field(format, blob), "blob");
        }
        assert_eq!(invalid_field(format, json!({})), "role");
    }
}

#[test]
fn roles_of_other_formats_are_rejected() {
    for (format, roles) in [
        (Format::OpenAi, "model User bot"),
        (Format::Anthropic, "tool model developer USER"),
        (Format::Gemini, "assistant system Model"),
        (Format::Acontext, "system tool model USER"),
    ] {
        for role in roles.split(' ').map(Value::from).chain(["".into(), 5.into()]) {
            assert_eq!(invalid_field(format, json!({"role": role, "content": "x", "parts": [{"text": "x"}]})), "role");
        }
        assert_eq!(invalid_field(format, json!({"role": null, "content": "x"})), "role");
    }
}

#[test]
fn nul_is_rejected_in_database_columns() {
    assert_eq!(invalid_field(Format::OpenAi, json!({"role": "user", "content": "x", "name": "a\0"})), "name");
    assert_eq!(invalid_field(Format::Acontext, json!({"role": "user", "meta": {"a": [{"b\0": 1}]}})), "meta");
    let call = json!({"role": "model", "parts": [{"functionCall": {"name": "a\0"}}]});
    assert_eq!(invalid_field(Format::Gemini, call), "parts[0].functionCall.name");
    let response = json!({"role": "user", "parts": [{"functionResponse": {"name": "a", "id": "\0"}}]});
    assert_eq!(invalid_field(Format::Gemini, response), "parts[0].functionResponse.id");
    assert_eq!(parts_of(Format::OpenAi, json!({"role": "user", "content": "a\0"}))[0]["text"], "a\0");
}

#[test]
fn body_that_is_not_an_object_becomes_data() {
    for format in [Format::OpenAi, Format::Anthropic, Format::Gemini, Format::Acontext] {
        let parts = serde_json::to_value(to_parts(format, json!("text"))).unwrap();
        assert_eq!(parts, json!([{"type": "data", "meta": {"data_type": format.as_str(), "block": "text"}}]));
    }
}
