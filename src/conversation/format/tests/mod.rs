//! Messages and what becomes of them, one by one.

use serde_json::{Value, json};

use super::*;

mod acontext;
mod anthropic;
mod edit;
mod gemini;
mod media;
mod openai;

const PNG: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mP4z8AAAAMBAQD3A0FDAAAAAElFTkSuQmCC";

fn stored(format: Format, blob: Value) -> NormalizedMessage {
    let mut last = 0;
    let mut new_call_id = || {
        last += 1;
        format!("call_{last}")
    };
    read(format, blob, &mut new_call_id).unwrap()
}

/// The parts of a message, as clients see them.
fn parts_of(format: Format, blob: Value) -> Value {
    serde_json::to_value(parts(format, stored(format, blob).body)).unwrap()
}

fn shown_among(format: Format, blob: Value, target: Format, around: &RenderContext) -> Value {
    let NormalizedMessage { role, meta, body, .. } = stored(format, blob);
    Value::Array(write(target, role, &meta, parts(format, body), around))
}

/// A message in another format.
fn shown(format: Format, blob: Value, target: Format) -> Value {
    shown_among(format, blob, target, &RenderContext::default())
}

/// The field for which a message is refused.
fn refused(format: Format, blob: Value) -> String {
    read(format, blob, &mut || unreachable!()).expect_err("a refusal").field
}

#[test]
fn what_is_no_object_is_no_message() {
    for format in [Format::OpenAi, Format::Anthropic, Format::Gemini, Format::Acontext] {
        for blob in [json!("text"), json!(["list"]), json!(5), json!(true), json!(null)] {
            assert_eq!(refused(format, blob), "blob");
        }
        assert_eq!(refused(format, json!({})), "role");
    }
}

#[test]
fn the_roles_of_a_format_are_its_own() {
    for (format, roles) in [
        (Format::OpenAi, "model User bot"),
        (Format::Anthropic, "system tool model USER"),
        (Format::Gemini, "assistant system function Model"),
        (Format::Acontext, "system tool model USER"),
    ] {
        for role in roles.split(' ').map(Value::from).chain(["".into(), Value::Null, 5.into()]) {
            assert_eq!(refused(format, json!({"role": role, "content": "x", "parts": [{"text": "x"}]})), "role");
        }
    }
}

#[test]
fn what_lands_in_the_database_as_metadata_has_no_nul() {
    assert_eq!(refused(Format::OpenAi, json!({"role": "user", "content": "x", "name": "a\0"})), "name");
    assert_eq!(refused(Format::Acontext, json!({"role": "user", "meta": {"a": [{"b\0": 1}]}})), "meta");
    let call = json!({"role": "model", "parts": [{"functionCall": {"name": "a\0"}}]});
    assert_eq!(refused(Format::Gemini, call), "parts[0].functionCall.name");
    let answer = json!({"role": "user", "parts": [{"functionResponse": {"name": "a", "id": "\0"}}]});
    assert_eq!(refused(Format::Gemini, answer), "parts[0].functionResponse.id");
    assert_eq!(parts_of(Format::OpenAi, json!({"role": "user", "content": "a\0"}))[0]["text"], "a\0");
}

#[test]
fn a_body_that_was_never_checked_becomes_data() {
    for format in [Format::OpenAi, Format::Anthropic, Format::Gemini, Format::Acontext] {
        let parts = serde_json::to_value(parts(format, json!("text"))).unwrap();
        assert_eq!(parts, json!([{"type": "data", "meta": {"data_type": format.as_str(), "block": "text"}}]));
    }
}
