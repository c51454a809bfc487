//! What holds for every conversation and every list of strategies.

use std::collections::{BTreeMap, HashMap, HashSet};

use proptest::prelude::{Just, ProptestConfig, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::strategy::Strategy as Generator;
use serde_json::{Map, Value, json};

use super::*;
use crate::conversation::parts::Kind as PartKind;
use crate::conversation::tokens;

fn part(kind: PartKind, text: &str, meta: Value) -> Part {
    let Value::Object(meta) = meta else { panic!("meta is an object") };
    Part { kind, text: text.into(), asset: None, filename: String::new(), meta, extra: Map::new() }
}

fn words() -> impl Generator<Value = String> {
    prop_oneof!["[a-z]{0,9}", "([a-z]{1,9} ){0,40}", "\\s?\\PC{0,9}", Just("Done".to_owned()), Just("/a\n".to_owned())]
}

/// Few ids, so that they meet; some are none.
fn id() -> impl Generator<Value = Value> {
    prop_oneof![
        9 => (0_u8..9).prop_map(|id| json!(format!("call_{id}"))),
        1 => prop::sample::select(vec![json!(""), json!(5), Value::Null]),
    ]
}

fn tool() -> impl Generator<Value = &'static str> {
    prop::sample::select(vec!["map", "search", ""])
}

fn any_part() -> impl Generator<Value = Part> {
    let arguments = prop_oneof![
        words().prop_map(|words| json!(json!({"q": words}).to_string())),
        Just(json!("{}")),
        Just(json!({"q": [1]})),
    ];
    prop_oneof![
        words().prop_map(|text| part(PartKind::Text, &text, json!({}))),
        (id(), tool(), arguments).prop_map(|(id, name, arguments)| {
            part(PartKind::ToolCall, "", json!({"id": id, "name": name, "arguments": arguments}))
        }),
        (id(), words()).prop_map(|(id, text)| part(PartKind::ToolResult, &text, json!({"tool_call_id": id}))),
        (id(), words()).prop_map(|(id, text)| part(PartKind::Image, &text, json!({"tool_call_id": id}))),
        Just(part(PartKind::ToolCall, "", json!({}))),
        tool().prop_map(|name| part(PartKind::ToolCall, "", json!({"name": name, "type": "custom"}))),
        (tool(), words()).prop_map(|(name, text)| part(PartKind::ToolResult, &text, json!({"function_name": name}))),
    ]
}

fn message(parts: Vec<Part>) -> Message {
    Message { tokens: tokens::of_parts(&parts), parts }
}

fn conversation() -> impl Generator<Value = Vec<Message>> {
    prop::collection::vec(prop::collection::vec(any_part(), 0..4).prop_map(message), 0..14)
}

/// One call or one result a message, each result after its call, each id once.
fn orderly() -> impl Generator<Value = Vec<Message>> {
    let exchange = (words(), any::<prop::sample::Index>(), any::<prop::sample::Index>());
    prop::collection::vec(exchange, 0..9).prop_map(|exchanges| {
        let mut messages = Vec::new();
        for (nth, (text, call, result)) in exchanges.into_iter().enumerate() {
            let id = format!("call_{nth}");
            let call_at = call.index(messages.len() + 1);
            messages.insert(call_at, message(vec![part(PartKind::ToolCall, "", json!({"id": id, "name": "f"}))]));
            let result_at = call_at + 1 + result.index(messages.len() - call_at);
            messages.insert(result_at, message(vec![part(PartKind::ToolResult, &text, json!({"tool_call_id": id}))]));
            messages.push(message(vec![part(PartKind::Text, &text, json!({}))]));
        }
        messages
    })
}

fn any_removal() -> impl Generator<Value = Value> {
    let older = |name: &'static str, recent: &'static str| {
        let keep = prop::option::of(prop::collection::vec(tool(), 0..2));
        (0_u8..5, keep, prop::option::of(1_u8..30)).prop_map(move |(n, keep, longer)| {
            let mut params = json!({recent: n});
            for (key, value) in [("keep_tools", keep.map(|keep| json!(keep))), ("gt_token", longer.map(|n| json!(n)))] {
                if let Some(value) = value {
                    params[key] = value;
                }
            }
            json!({"type": name, "params": params})
        })
    };
    prop_oneof![
        older("remove_tool_result", "keep_recent_n_tool_results"),
        older("remove_tool_call_params", "keep_recent_n_tool_calls"),
    ]
}

fn any_strategy() -> impl Generator<Value = Value> {
    prop_oneof![
        2 => any_removal(),
        1 => (1_u16..200).prop_map(|n| json!({"type": "middle_out", "params": {"token_reduce_to": n}})),
        1 => (1_u16..200).prop_map(|n| json!({"type": "token_limit", "params": {"limit_tokens": n}})),
    ]
}

fn any_strategies() -> impl Generator<Value = Vec<Strategy>> {
    let list = prop::collection::vec(any_strategy(), 0..5);
    list.prop_map(|list| parse(&Value::from(list).to_string()).expect("strategies that are fine"))
}

fn token_limit(limit: usize) -> Vec<Strategy> {
    parse(&json!([{"type": "token_limit", "params": {"limit_tokens": limit}}]).to_string()).unwrap()
}

fn middle_out(target: usize) -> Vec<Strategy> {
    parse(&json!([{"type": "middle_out", "params": {"token_reduce_to": target}}]).to_string()).unwrap()
}

fn indices(of: &[Edited]) -> Vec<usize> {
    of.iter().map(|message| message.index).collect()
}

fn text<'a>(part: &'a Part, key: &str) -> Option<&'a str> {
    part.meta.get(key)?.as_str().filter(|text| !text.is_empty())
}

/// The ids that a message names as a call's or a result's.
fn ids(of: &Message) -> HashSet<&str> {
    let named = |part| text(part, if part.kind == PartKind::ToolCall { "id" } else { "tool_call_id" });
    let tools = of.parts.iter().filter(|part| matches!(part.kind, PartKind::ToolCall | PartKind::ToolResult));
    tools.filter_map(named).collect()
}

/// What the changes make of the parts, said in the plainest way.
fn changed(parts: &[Part], changes: &[Change]) -> Vec<Part> {
    let results: BTreeMap<_, _> = changes
        .iter()
        .filter_map(|change| match change {
            Change::Result { nth, text } => Some((*nth, text)),
            Change::Arguments { .. } => None,
        })
        .collect();
    let (mut calls_seen, mut results_seen) = (0, 0);
    let mut gone: Option<Part> = None;
    let mut left = Vec::new();
    for part in parts {
        let mut part = part.clone();
        match part.kind {
            PartKind::ToolResult => {
                gone = results.contains_key(&results_seen).then(|| part.clone());
                results.get(&results_seen).into_iter().for_each(|text| part.text = (*text).clone());
                results_seen += 1;
            }
            PartKind::ToolCall => {
                if changes.contains(&Change::Arguments { nth: calls_seen }) {
                    let custom = part.meta.get("type") == Some(&json!("custom"));
                    part.meta.insert("arguments".into(), if custom { "" } else { "{}" }.into());
                }
                calls_seen += 1;
            }
            _ => {}
        }
        let named = |part: &Part| part.meta.get("tool_call_id").filter(|id| id.is_string()).cloned();
        if part.kind != PartKind::ToolResult {
            gone = gone.filter(|result| named(result).is_some() && named(result) == named(&part));
            if gone.is_some() && part.kind != PartKind::ToolCall {
                continue;
            }
        }
        left.push(part);
    }
    left
}

/// Messages taken from the middle, as slowly as it can be said.
fn slowly_from_the_middle(messages: &[Message], target: usize) -> Vec<usize> {
    let mut left: Vec<usize> = (0..messages.len()).collect();
    let total = |left: &[usize]| left.iter().map(|at| messages[*at].tokens).sum::<usize>();
    while total(&left) > target && !left.is_empty() {
        let mut gone = vec![left[if left.len() <= 2 { 0 } else { left.len() / 2 }]];
        let mut seen = 0;
        while seen < gone.len() {
            let named = ids(&messages[gone[seen]]);
            let met = left.iter().filter(|at| !named.is_disjoint(&ids(&messages[**at])));
            let met: Vec<_> = met.filter(|at| !gone.contains(at)).copied().collect();
            gone.extend(met);
            seen += 1;
        }
        left.retain(|at| !gone.contains(at));
    }
    left
}

/// The oldest messages taken, each with the last results of its calls.
fn with_the_last_results(messages: &[Message], limit: usize) -> Vec<usize> {
    let mut results = HashMap::new();
    for (at, message) in messages.iter().enumerate() {
        for part in message.parts.iter().filter(|part| part.kind == PartKind::ToolResult) {
            results.extend(text(part, "tool_call_id").map(|id| (id, at)));
        }
    }
    let mut left: Vec<usize> = (0..messages.len()).collect();
    for (at, message) in messages.iter().enumerate() {
        if left.iter().map(|at| messages[*at].tokens).sum::<usize>() > limit {
            let calls = message.parts.iter().filter(|part| part.kind == PartKind::ToolCall);
            let answers: Vec<_> = calls.filter_map(|call| results.get(text(call, "id")?)).collect();
            left.retain(|other| *other != at && !answers.contains(&other));
        }
    }
    left
}

/// Where each result is, and where its call: the last one before it, or else the first after it.
fn exchanges(messages: &[Message]) -> Vec<(usize, usize)> {
    let parts = messages.iter().enumerate().flat_map(|(at, message)| message.parts.iter().map(move |part| (at, part)));
    let parts: Vec<_> = parts.collect();
    let mut found = Vec::new();
    for (place, (at, result)) in parts.iter().enumerate().filter(|(_, (_, part))| part.kind == PartKind::ToolResult) {
        let Some(id) = text(result, "tool_call_id") else { continue };
        let is_call = |(_, part): &&(usize, &Part)| part.kind == PartKind::ToolCall && text(part, "id") == Some(id);
        let call = parts[..place].iter().rfind(is_call).or_else(|| parts[place..].iter().find(is_call));
        found.extend(call.map(|(call, _)| (*at, *call)));
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn what_is_left_is_in_order_and_says_how_it_changed(
        messages in conversation(),
        strategies in any_strategies(),
        pin in prop::option::of(0_usize..15),
    ) {
        let edited = apply(&strategies, messages.clone(), pin);
        prop_assert!(indices(&edited).is_sorted_by(|one, next| one < next));
        for after in &edited {
            let before = &messages[after.index];
            prop_assert_eq!(&after.parts, &changed(&before.parts, &after.changes));
            prop_assert_eq!(after.changes.is_empty(), after.parts == before.parts);
            prop_assert_eq!(after.tokens, tokens::of_parts(&after.parts));
        }
    }

    #[test]
    fn what_was_stored_after_the_pin_changes_nothing(
        messages in conversation(),
        one in conversation(),
        other in conversation(),
        strategies in any_strategies(),
    ) {
        let Some(pin) = messages.len().checked_sub(1) else { return Ok(()) };
        let with = |tail: &[Message]| {
            let mut edited = apply(&strategies, [&messages[..], tail].concat(), Some(pin));
            let rest = edited.split_off(edited.iter().position(|message| message.index > pin).unwrap_or(edited.len()));
            (edited, rest)
        };
        let (edited, rest) = with(&one);
        prop_assert_eq!(&edited, &with(&other).0);
        prop_assert_eq!(&edited, &apply(&strategies, messages.clone(), None));
        let untouched = one.into_iter().enumerate().map(|(at, Message { parts, tokens })| {
            Edited { index: pin + 1 + at, parts, tokens, changes: Vec::new() }
        });
        prop_assert_eq!(rest, untouched.collect::<Vec<_>>());
    }

    #[test]
    fn results_and_arguments_go_but_never_their_message(messages in conversation(), one in any_removal()) {
        let edited = apply(&parse(&json!([one]).to_string()).unwrap(), messages.clone(), None);
        prop_assert_eq!(edited.len(), messages.len());
        let tools = |parts: &[Part]| {
            let tools = parts.iter().filter(|part| matches!(part.kind, PartKind::ToolCall | PartKind::ToolResult));
            tools.map(|part| (part.kind, text(part, "id").map(str::to_owned))).collect::<Vec<_>>()
        };
        for (before, after) in messages.iter().zip(&edited) {
            prop_assert_eq!(tools(&before.parts), tools(&after.parts));
        }
        // Done twice, it is the same.
        let again = edited.iter().map(|after| Message { parts: after.parts.clone(), tokens: after.tokens }).collect();
        let again = apply(&parse(&json!([one]).to_string()).unwrap(), again, None);
        prop_assert!(again.iter().all(|after| after.changes.is_empty()));
    }

    #[test]
    fn the_limit_is_kept_and_each_result_keeps_its_call(messages in conversation(), limit in 1_usize..300) {
        let edited = apply(&token_limit(limit), messages.clone(), None);
        let left: HashSet<_> = indices(&edited).into_iter().collect();
        prop_assert!(edited.iter().map(|message| message.tokens).sum::<usize>() <= limit);
        for (result, call) in exchanges(&messages) {
            prop_assert_eq!(left.contains(&result), left.contains(&call));
        }
        // Nothing goes without need.
        let all: usize = messages.iter().map(|message| message.tokens).sum();
        prop_assert!(left.len() == messages.len() || all > limit);
    }

    #[test]
    fn orderly_calls_go_with_their_last_result(messages in orderly(), limit in 1_usize..300) {
        let left = indices(&apply(&token_limit(limit), messages.clone(), None));
        prop_assert_eq!(left, with_the_last_results(&messages, limit));
    }

    #[test]
    fn the_middle_goes_with_all_that_shares_its_ids(messages in conversation(), target in 1_usize..300) {
        // Old functions without ids have rules of their own.
        let messages: Vec<_> = messages.into_iter().map(|mut one| {
            one.parts.retain(|part| !part.meta.contains_key("function_name"));
            message(one.parts)
        }).collect();
        let edited = apply(&middle_out(target), messages.clone(), None);
        prop_assert_eq!(indices(&edited), slowly_from_the_middle(&messages, target));
        let left: HashSet<_> = indices(&edited).into_iter().collect();
        for (result, call) in exchanges(&messages) {
            prop_assert_eq!(left.contains(&result), left.contains(&call));
        }
    }

    #[test]
    fn any_text_is_read_or_refused(
        text in "[\\[\\]{}\",:0-9a-z_ ]{0,60}",
        list in prop::collection::vec(any_strategy(), 0..20),
    ) {
        let _ = parse(&text);
        prop_assert_eq!(parse(&Value::from(list.clone()).to_string()).is_ok(), list.len() <= MAX_STRATEGIES);
    }
}
