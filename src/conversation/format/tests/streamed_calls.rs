//! Streamed function calls of Gemini.

use super::*;

const GEMINI: Format = Format::Gemini;

fn chunk(path: &str, text: &str, will_continue: bool) -> Value {
    json!({"jsonPath": path, "stringValue": text, "willContinue": will_continue})
}

/// Builds a message with a call that has no arguments and the given values.
fn call(values: &Value) -> Value {
    json!({"role": "model", "parts": [{"functionCall": {"id": "c", "name": "f", "partialArgs": values}}]})
}

/// Returns the arguments that Anthropic gets.
fn input(blob: Value) -> Value {
    convert(GEMINI, blob, Format::Anthropic)[0]["content"][0]["input"].take()
}

#[test]
fn values_at_paths_become_arguments() {
    let values = json!([
        {"jsonPath": "$.city", "stringValue": "Rome"},
        {"jsonPath": "$.when.days[0]", "numberValue": 1},
        {"jsonPath": "$.when.days[1]", "numberValue": 2.5},
        {"jsonPath": "$['exact']", "boolValue": false},
        {"jsonPath": "$.unit", "nullValue": "NULL_VALUE"},
        {"jsonPath": "$.note", "nullValue": null},
    ]);
    let expected = json!({"city": "Rome", "when": {"days": [1, 2.5]}, "exact": false, "unit": null, "note": null});
    assert_eq!(input(call(&values)), expected);
    let arguments = parts_of(GEMINI, call(&values))[0]["meta"]["arguments"].clone();
    assert_eq!(serde_json::from_str::<Value>(arguments.as_str().unwrap()).unwrap(), expected);
    let back = json!({"id": "c", "name": "f", "args": expected});
    assert_eq!(convert_via_acontext(GEMINI, call(&values), GEMINI)[0]["parts"], json!([{"functionCall": back}]));
}

#[test]
fn a_text_in_several_chunks_is_joined() {
    let values = json!([chunk("$.a", "Ro", true), chunk("$.b", "x", false), chunk("$.a", "me", false)]);
    assert_eq!(input(call(&values)), json!({"a": "Rome", "b": "x"}));
    let replaced = json!([chunk("$.a", "x", false), chunk("$.a", "y", false)]);
    assert_eq!(input(call(&replaced)), json!({"a": "y"}));
}

#[test]
fn values_at_unsupported_paths_stay_a_list() {
    let long = format!("$.a{}", ".a".repeat(64));
    for path in ["", "$", "a", "$..a", "$.*", "$[?@.a]", "$[0]", "$.a[1]", "$.a[-1]", "$.ok.b", "$['a", long.as_str()] {
        let values = json!([chunk("$.ok", "x", false), chunk(path, "y", false)]);
        assert_eq!(input(call(&values)), json!({"partialArgs": values}), "{path}");
    }
    let values = json!(["not an object"]);
    let mut blob = call(&values);
    blob["parts"][0]["functionCall"]["args"] = json!({"a": 1});
    assert_eq!(input(blob), json!({"a": 1, "partialArgs": values}));
}

/// Builds a message with a call in three chunks, an orphan and another call.
fn streamed() -> Value {
    json!({"role": "model", "parts": [
        {"functionCall": {"id": "c", "name": "f", "willContinue": true}, "thoughtSignature": "c2ln"},
        {"functionCall": {"partialArgs": [chunk("$.a", "Ro", true)], "willContinue": true}},
        {"functionCall": {"partialArgs": [chunk("$.a", "me", false)]}},
        {"functionCall": {"partialArgs": [chunk("$.a", "lost", false)]}},
        {"functionCall": {"id": "d", "name": "g", "args": {"x": 1}}},
    ]})
}

#[test]
fn chunks_in_further_parts_belong_to_their_call() {
    let blob = streamed();
    assert_eq!(normalize_valid(GEMINI, blob.clone()).body, blob);
    let content = convert(GEMINI, blob, Format::Anthropic)[0]["content"].take();
    assert_eq!(content[0]["input"], json!({"a": "Rome"}));
    assert!(content[1]["text"].as_str().is_some_and(|text| text.contains("lost")), "{content}");
    assert_eq!((content[2]["name"].clone(), content.as_array().map(Vec::len)), (json!("g"), Some(3)));
}

#[test]
fn cleared_arguments_of_a_streamed_call_are_gone() {
    let mut body = streamed();
    apply_changes(GEMINI, &mut body, &[BodyChange::ClearArguments { call_index: 0 }]);
    let parts = serde_json::to_value(to_parts(GEMINI, body.clone())).unwrap();
    assert_eq!(parts[0]["meta"]["arguments"], "{}");
    assert!(body.to_string().contains("lost"), "a chunk without a call is no argument of one");
    assert_eq!(parts[2]["meta"]["arguments"], "{\"x\":1}");
}
