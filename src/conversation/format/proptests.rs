//! Property tests: messages are stored as they were sent, and nothing is lost in the conversion to another format.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::conversation::parts::PartKind;

mod claims;
mod edits;
mod samples;

use claims::{Claim, contains_claim};
use samples::{Sample, mutated, sample, with_nulls};

const ALL: [Format; 4] = [Format::OpenAi, Format::Anthropic, Format::Gemini, Format::Acontext];

fn any_format() -> impl Strategy<Value = Format> {
    prop::sample::select(ALL.to_vec())
}

fn any_sample() -> impl Strategy<Value = (Format, Sample)> {
    any_format().prop_flat_map(|format| (Just(format), sample(format)))
}

/// Returns a generator of the ids `call_1`, `call_2`, ...
fn call_ids() -> impl FnMut() -> String {
    let mut last = 0;
    move || {
        last += 1;
        format!("call_{last}")
    }
}

fn normalize_valid(format: Format, blob: Value) -> NormalizedMessage {
    normalize(format, blob, &mut call_ids()).expect("the message is valid")
}

/// Converts a message, with its thoughts, through its parts.
fn convert(message: &NormalizedMessage, target: Format) -> Vec<Value> {
    let parts = to_parts(message.format, message.body.clone());
    let options = RenderOptions { with_reasoning_content: true, ..RenderOptions::default() };
    from_parts(target, message.role, &message.meta, parts, &RenderContext { options, ..RenderContext::default() })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn messages_are_stored_unchanged((format, sample) in any_sample()) {
        prop_assert_eq!(normalize_valid(format, sample.blob.clone()).body, sample.blob);
    }

    #[test]
    fn null_means_absent((format, sample) in any_sample()) {
        prop_assert_eq!(normalize_valid(format, with_nulls(format, sample.blob.clone())).body, sample.blob);
    }

    #[test]
    fn gemini_keys_may_be_snake_case(sample in sample(Format::Gemini)) {
        prop_assert_eq!(normalize_valid(Format::Gemini, samples::to_snake_case(sample.blob.clone())).body, sample.blob);
    }

    #[test]
    fn every_target_contains_the_claims((format, sample) in any_sample(), target in any_format()) {
        let normalized = normalize_valid(format, sample.blob);
        let converted = convert(&normalized, target);
        for claim in &sample.claims {
            prop_assert!(contains_claim(format, target, &converted, claim), "{claim:?} is lost in {converted:?}");
        }
    }

    #[test]
    fn converted_messages_are_accepted_by_their_target(
        (format, sample) in any_sample(),
        target in any_format(),
    ) {
        for message in convert(&normalize_valid(format, sample.blob), target) {
            let normalized = normalize(target, message.clone(), &mut call_ids());
            prop_assert!(normalized.is_ok(), "{:?}: {message}", normalized.err());
        }
    }

    #[test]
    fn parts_of_any_valid_message_are_accepted_as_acontext(
        (format, blob) in any_format().prop_flat_map(|format| (Just(format), mutated(format))),
    ) {
        if let Ok(message) = normalize(format, blob, &mut call_ids()) {
            let parts = convert(&message, Format::Acontext)[0]["parts"].take();
            let normalized = normalize(Format::Acontext, json!({"role": "user", "parts": parts}), &mut call_ids());
            prop_assert!(normalized.is_ok(), "{:?}: {parts}", normalized.err());
        }
    }

    #[test]
    fn conversion_to_acontext_preserves_parts((format, sample) in any_sample()) {
        let normalized = normalize_valid(format, sample.blob);
        let acontext = convert(&normalized, Format::Acontext).remove(0);
        prop_assert_eq!(to_parts(Format::Acontext, acontext), to_parts(format, normalized.body));
    }

    #[test]
    fn unknown_block_survives_conversion_to_acontext_and_back(
        format in prop::sample::select(vec![Format::OpenAi, Format::Anthropic, Format::Gemini]),
        tail in "[a-z]{1,9}",
        inside in samples::free_json(),
    ) {
        let block = json!({"type": format!("x_{tail}"), "holo_gram": [inside]});
        let list = if format == Format::Gemini { "parts" } else { "content" };
        let normalized = normalize_valid(format, json!({"role": "user", list: [block.clone()]}));
        prop_assert_eq!(&normalized.body[list][0], &block);
        let part = &to_parts(format, normalized.body.clone())[0];
        prop_assert_eq!(part.kind, PartKind::Data);
        prop_assert_eq!(&part.meta["block"], &block);
        let acontext = normalize_valid(Format::Acontext, convert(&normalized, Format::Acontext).remove(0));
        prop_assert_eq!(&convert(&acontext, format)[0][list][0], &block);
    }

    #[test]
    fn no_openai_message_contains_thoughts_or_is_empty((format, sample) in any_sample()) {
        let message = normalize_valid(format, sample.blob);
        let parts = to_parts(format, message.body);
        let has_only_thoughts = parts.iter().all(|part| part.kind == PartKind::Thinking);
        for item in from_parts(Format::OpenAi, message.role, &message.meta, parts, &RenderContext::default()) {
            prop_assert_eq!(item.get("reasoning_content"), None);
            let content = &item["content"];
            let has_calls = item.get("tool_calls").is_some();
            prop_assert!(content.is_string() || content.is_array() || has_calls && content.is_null(), "{item}");
            prop_assert!(item["role"] == "tool" || *content != "" && *content != json!([]), "{item}");
            prop_assert!(!has_only_thoughts || *content == "[no content]", "{item}");
        }
    }

    #[test]
    fn numbers_preserve_their_digits(
        format in any_format(),
        target in any_format(),
        number in "-?[1-9][0-9]{0,30}(\\.[0-9]{1,30})?|0\\.[0-9]{1,9}|[1-9]e\\+[1-9][0-9]{0,4}",
    ) {
        let args: Value = serde_json::from_str(&format!("{{\"n\":{number}}}")).unwrap();
        let normalized = normalize_valid(format, samples::tool_call(format, "c", "f", &args));
        let claim = Claim::FunctionCall { id: "c".into(), name: "f".into(), arguments: args };
        prop_assert!(normalized.body.to_string().contains(&number), "{}", normalized.body);
        let converted = convert(&normalized, target);
        prop_assert!(contains_claim(format, target, &converted, &claim), "{converted:?}");
        prop_assert!(Value::from(converted).to_string().contains(&number));
    }
}

/// Checks that a valid message is normalized to itself again and can be converted to every format.
fn check_any_value(format: Format, blob: Value) -> Result<(), TestCaseError> {
    // Conversion must not panic on an invalid body either.
    check_targets(format, Role::User, &Map::new(), &blob)?;
    let Ok(normalized) = normalize(format, blob, &mut call_ids()) else { return Ok(()) };
    let again = normalize(format, normalized.body.clone(), &mut || unreachable!("each call has an id")).unwrap();
    prop_assert_eq!(&again.body, &normalized.body);
    prop_assert_eq!((again.role, &again.meta), (normalized.role, &normalized.meta));
    prop_assert_eq!(normalized.meta.get("source_format").is_some_and(Value::is_string), true);
    check_targets(format, normalized.role, &normalized.meta, &normalized.body)
}

fn check_targets(format: Format, role: Role, meta: &Map<String, Value>, body: &Value) -> Result<(), TestCaseError> {
    for target in ALL {
        let converted = from_parts(target, role, meta, to_parts(format, body.clone()), &RenderContext::default());
        prop_assert!(!converted.is_empty());
        prop_assert!(target == Format::OpenAi || converted.len() == 1);
        prop_assert!(converted.iter().all(|message| message["role"].is_string()));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn any_value_as_openai_is_handled(blob in mutated(Format::OpenAi)) {
        check_any_value(Format::OpenAi, blob)?;
    }

    #[test]
    fn any_value_as_anthropic_is_handled(blob in mutated(Format::Anthropic)) {
        check_any_value(Format::Anthropic, blob)?;
    }

    #[test]
    fn any_value_as_gemini_is_handled(blob in mutated(Format::Gemini)) {
        check_any_value(Format::Gemini, blob)?;
    }

    #[test]
    fn any_value_as_acontext_is_handled(blob in mutated(Format::Acontext)) {
        check_any_value(Format::Acontext, blob)?;
    }
}
