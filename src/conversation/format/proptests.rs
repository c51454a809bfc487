//! What holds for every message, tried with many: what is read is what is stored, and nothing gets lost on the way to
//! another format.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::conversation::parts::Kind;

mod edits;
mod facts;
mod samples;

use facts::{Fact, says};
use samples::{Sample, mutated, sample, with_nulls};

const ALL: [Format; 4] = [Format::OpenAi, Format::Anthropic, Format::Gemini, Format::Acontext];

fn any_format() -> impl Strategy<Value = Format> {
    prop::sample::select(ALL.to_vec())
}

fn any_sample() -> impl Strategy<Value = (Format, Sample)> {
    any_format().prop_flat_map(|format| (Just(format), sample(format)))
}

/// Gives the ids `call_1`, `call_2`, ...
fn ids() -> impl FnMut() -> String {
    let mut last = 0;
    move || {
        last += 1;
        format!("call_{last}")
    }
}

fn accepted(format: Format, blob: Value) -> NormalizedMessage {
    read(format, blob, &mut ids()).expect("a message that is fine")
}

/// A stored message in a format: its body in its own one, written from its parts in any other.
fn shown(incoming: &NormalizedMessage, target: Format) -> Vec<Value> {
    let parts = parts(incoming.format, incoming.body.clone());
    write(target, incoming.role, &incoming.meta, parts, &RenderContext::default())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn a_message_is_stored_as_it_came((format, sample) in any_sample()) {
        prop_assert_eq!(accepted(format, sample.blob.clone()).body, sample.blob);
    }

    #[test]
    fn null_means_absent((format, sample) in any_sample()) {
        prop_assert_eq!(accepted(format, with_nulls(format, sample.blob.clone())).body, sample.blob);
    }

    #[test]
    fn gemini_may_be_spelled_in_snake_case(sample in sample(Format::Gemini)) {
        prop_assert_eq!(accepted(Format::Gemini, samples::in_snake_case(sample.blob.clone())).body, sample.blob);
    }

    #[test]
    fn every_target_says_what_it_can((format, sample) in any_sample(), target in any_format()) {
        let incoming = accepted(format, sample.blob);
        let written = shown(&incoming, target);
        for fact in &sample.facts {
            prop_assert!(says(target, &written, fact), "{fact:?} is lost in {written:?}");
        }
    }

    #[test]
    fn everything_survives_as_parts((format, sample) in any_sample()) {
        let incoming = accepted(format, sample.blob);
        let through = shown(&incoming, Format::Acontext).remove(0);
        let direct = parts(format, incoming.body);
        prop_assert_eq!(parts(Format::Acontext, through), direct);
    }

    #[test]
    fn an_unknown_block_survives_in_its_own_format_and_as_parts(
        format in prop::sample::select(vec![Format::OpenAi, Format::Anthropic, Format::Gemini]),
        tail in "[a-z]{1,9}",
        inside in samples::free_json(),
    ) {
        let block = json!({"type": format!("x_{tail}"), "holo_gram": [inside]});
        let list = if format == Format::Gemini { "parts" } else { "content" };
        let incoming = accepted(format, json!({"role": "user", list: [block.clone()]}));
        prop_assert_eq!(&incoming.body[list][0], &block);
        let part = &parts(format, incoming.body.clone())[0];
        prop_assert_eq!(part.kind, Kind::Data);
        prop_assert_eq!(&part.meta["block"], &block);
        let through = accepted(Format::Acontext, shown(&incoming, Format::Acontext).remove(0));
        prop_assert_eq!(&shown(&through, format)[0][list][0], &block);
    }

    #[test]
    fn numbers_keep_their_digits(
        format in any_format(),
        target in any_format(),
        number in "-?[1-9][0-9]{0,30}(\\.[0-9]{1,30})?|0\\.[0-9]{1,9}|[1-9]e\\+[1-9][0-9]{0,4}",
    ) {
        let args: Value = serde_json::from_str(&format!("{{\"n\":{number}}}")).unwrap();
        let incoming = accepted(format, samples::tool_call(format, "c", "f", &args));
        let fact = Fact::FunctionCall { id: "c".into(), name: "f".into(), arguments: args };
        prop_assert!(incoming.body.to_string().contains(&number), "{}", incoming.body);
        let written = shown(&incoming, target);
        prop_assert!(says(target, &written, &fact), "{written:?}");
        prop_assert!(Value::from(written).to_string().contains(&number));
    }
}

/// Whatever is accepted is read again as it was stored, and can be shown in every format.
fn check_anything(format: Format, blob: Value) -> Result<(), TestCaseError> {
    // A body that was never checked must not hurt either.
    check_targets(format, Role::User, &Map::new(), &blob)?;
    let Ok(incoming) = read(format, blob, &mut ids()) else { return Ok(()) };
    let again = read(format, incoming.body.clone(), &mut || unreachable!("each call has an id")).unwrap();
    prop_assert_eq!(&again.body, &incoming.body);
    prop_assert_eq!((again.role, &again.meta), (incoming.role, &incoming.meta));
    prop_assert_eq!(incoming.meta.get("source_format").is_some_and(Value::is_string), true);
    check_targets(format, incoming.role, &incoming.meta, &incoming.body)
}

fn check_targets(format: Format, role: Role, meta: &Map<String, Value>, body: &Value) -> Result<(), TestCaseError> {
    for target in ALL {
        let written = write(target, role, meta, parts(format, body.clone()), &RenderContext::default());
        prop_assert!(!written.is_empty());
        prop_assert!(target == Format::OpenAi || written.len() == 1);
        prop_assert!(written.iter().all(|message| message["role"].is_string()));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn no_message_of_openai_hurts(blob in mutated(Format::OpenAi)) {
        check_anything(Format::OpenAi, blob)?;
    }

    #[test]
    fn no_message_of_anthropic_hurts(blob in mutated(Format::Anthropic)) {
        check_anything(Format::Anthropic, blob)?;
    }

    #[test]
    fn no_message_of_gemini_hurts(blob in mutated(Format::Gemini)) {
        check_anything(Format::Gemini, blob)?;
    }

    #[test]
    fn no_message_of_acontext_hurts(blob in mutated(Format::Acontext)) {
        check_anything(Format::Acontext, blob)?;
    }
}
