//! Properties of all conversations and lists of strategies.

use std::collections::{BTreeMap, HashMap, HashSet};

use proptest::prelude::{Just, ProptestConfig, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::strategy::Strategy as Generator;
use serde_json::{Map, Value, json};

use super::*;
use crate::conversation::parts::{PartKind, Role};
use crate::conversation::tokens;

fn part(kind: PartKind, text: &str, meta: Value) -> Part {
    let Value::Object(meta) = meta else { panic!("meta is an object") };
    Part { kind, text: text.into(), asset: None, filename: String::new(), meta, extra: Map::new() }
}

fn words() -> impl Generator<Value = String> {
    prop_oneof!["[a-z]{0,9}", "([a-z]{1,9} ){0,40}", "\\s?\\PC{0,9}", Just("Done".to_owned()), Just("/a\n".to_owned())]
}

/// Generates one of few ids, so that results match calls. Some values are not ids.
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
    Message { role: Role::User, is_system: false, tokens: tokens::count_parts(&parts), parts }
}

fn conversation() -> impl Generator<Value = Vec<Message>> {
    prop::collection::vec(prop::collection::vec(any_part(), 0..4).prop_map(message), 0..14)
}

/// Generates messages with at most one call or result each, in which each result follows its call and no id is used again.
fn orderly_conversation() -> impl Generator<Value = Vec<Message>> {
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
    let strategy = |name: &'static str, recent: &'static str| {
        let keep = prop::option::of(prop::collection::vec(tool(), 0..2));
        (0_u8..5, keep, prop::option::of(1_u8..30)).prop_map(move |(n, keep, threshold)| {
            let mut params = json!({recent: n});
            for (key, value) in
                [("keep_tools", keep.map(|keep| json!(keep))), ("gt_token", threshold.map(|n| json!(n)))]
            {
                if let Some(value) = value {
                    params[key] = value;
                }
            }
            json!({"type": name, "params": params})
        })
    };
    prop_oneof![
        strategy("remove_tool_result", "keep_recent_n_tool_results"),
        strategy("remove_tool_call_params", "keep_recent_n_tool_calls"),
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
    list.prop_map(|list| parse(&Value::from(list).to_string()).expect("the strategies are valid"))
}

fn token_limit(limit: usize) -> Vec<Strategy> {
    parse(&json!([{"type": "token_limit", "params": {"limit_tokens": limit}}]).to_string()).unwrap()
}

fn middle_out(target: usize) -> Vec<Strategy> {
    parse(&json!([{"type": "middle_out", "params": {"token_reduce_to": target}}]).to_string()).unwrap()
}

fn indices(messages: &[EditedMessage]) -> Vec<usize> {
    messages.iter().map(|message| message.index).collect()
}

fn text<'a>(part: &'a Part, key: &str) -> Option<&'a str> {
    part.meta.get(key)?.as_str().filter(|text| !text.is_empty())
}

/// Returns the ids of a message's calls and results.
fn ids(message: &Message) -> HashSet<&str> {
    let id = |part| text(part, if part.kind == PartKind::ToolCall { "id" } else { "tool_call_id" });
    let tools = message.parts.iter().filter(|part| matches!(part.kind, PartKind::ToolCall | PartKind::ToolResult));
    tools.filter_map(id).collect()
}

/// Applies changes to parts in the simplest way.
fn apply_changes(parts: &[Part], changes: &[BodyChange]) -> Vec<Part> {
    let results: BTreeMap<_, _> = changes
        .iter()
        .filter_map(|change| match change {
            BodyChange::ReplaceResult { result_index, text } => Some((*result_index, text)),
            BodyChange::ClearArguments { .. } => None,
        })
        .collect();
    let (mut calls_seen, mut results_seen) = (0, 0);
    let mut replaced: Option<Part> = None;
    let mut remaining = Vec::new();
    for part in parts {
        let mut part = part.clone();
        match part.kind {
            PartKind::ToolResult => {
                replaced = results.contains_key(&results_seen).then(|| part.clone());
                results.get(&results_seen).into_iter().for_each(|text| part.text = (*text).clone());
                results_seen += 1;
            }
            PartKind::ToolCall => {
                if changes.contains(&BodyChange::ClearArguments { call_index: calls_seen }) {
                    let custom = part.meta.get("type") == Some(&json!("custom"));
                    part.meta.insert("arguments".into(), if custom { "" } else { "{}" }.into());
                }
                calls_seen += 1;
            }
            _ => {}
        }
        let id = |part: &Part| part.meta.get("tool_call_id").filter(|id| id.is_string()).cloned();
        if part.kind != PartKind::ToolResult {
            replaced = replaced.filter(|result| id(result).is_some() && id(result) == id(&part));
            if replaced.is_some() && part.kind != PartKind::ToolCall {
                continue;
            }
        }
        remaining.push(part);
    }
    remaining
}

/// Removes messages from the middle in the simplest way. Returns the indices of the remaining ones.
fn middle_out_naively(messages: &[Message], target: usize) -> Vec<usize> {
    let mut remaining: Vec<usize> = (0..messages.len()).collect();
    let total = |remaining: &[usize]| remaining.iter().map(|index| messages[*index].tokens).sum::<usize>();
    while total(&remaining) > target && !remaining.is_empty() {
        let mut removed = vec![remaining[if remaining.len() <= 2 { 0 } else { remaining.len() / 2 }]];
        let mut seen = 0;
        while seen < removed.len() {
            let ids_of_removed = ids(&messages[removed[seen]]);
            let related = remaining.iter().filter(|index| !ids_of_removed.is_disjoint(&ids(&messages[**index])));
            let related: Vec<_> = related.filter(|index| !removed.contains(index)).copied().collect();
            removed.extend(related);
            seen += 1;
        }
        remaining.retain(|index| !removed.contains(index));
    }
    remaining
}

/// Removes the oldest messages, each with the last results of its calls. Returns the indices of the remaining ones.
fn token_limit_naively(messages: &[Message], limit: usize) -> Vec<usize> {
    let mut results = HashMap::new();
    for (index, message) in messages.iter().enumerate() {
        for part in message.parts.iter().filter(|part| part.kind == PartKind::ToolResult) {
            results.extend(text(part, "tool_call_id").map(|id| (id, index)));
        }
    }
    let mut remaining: Vec<usize> = (0..messages.len()).collect();
    for (index, message) in messages.iter().enumerate() {
        if remaining.iter().map(|index| messages[*index].tokens).sum::<usize>() > limit {
            let calls = message.parts.iter().filter(|part| part.kind == PartKind::ToolCall);
            let call_results: Vec<_> = calls.filter_map(|call| results.get(text(call, "id")?)).collect();
            remaining.retain(|other| *other != index && !call_results.contains(&other));
        }
    }
    remaining
}

/// Returns the message indices of each result and its call, which is the last one before it, or else the first one after it.
fn exchanges(messages: &[Message]) -> Vec<(usize, usize)> {
    let parts =
        messages.iter().enumerate().flat_map(|(index, message)| message.parts.iter().map(move |part| (index, part)));
    let parts: Vec<_> = parts.collect();
    let mut exchanges = Vec::new();
    for (position, (index, result)) in
        parts.iter().enumerate().filter(|(_, (_, part))| part.kind == PartKind::ToolResult)
    {
        let Some(id) = text(result, "tool_call_id") else { continue };
        let is_call = |(_, part): &&(usize, &Part)| part.kind == PartKind::ToolCall && text(part, "id") == Some(id);
        let call = parts[..position].iter().rfind(is_call).or_else(|| parts[position..].iter().find(is_call));
        exchanges.extend(call.map(|(call, _)| (*index, *call)));
    }
    exchanges
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn remaining_messages_are_in_order_and_match_their_changes(
        messages in conversation(),
        strategies in any_strategies(),
        pin in prop::option::of(0_usize..15),
    ) {
        let edited = apply(&strategies, messages.clone(), pin);
        prop_assert!(indices(&edited).is_sorted_by(|one, next| one < next));
        for after in &edited {
            let before = &messages[after.index];
            prop_assert_eq!(&after.parts, &apply_changes(&before.parts, &after.changes));
            prop_assert_eq!(after.changes.is_empty(), after.parts == before.parts);
            prop_assert_eq!(after.tokens, tokens::count_parts(&after.parts));
        }
    }

    #[test]
    fn messages_after_the_pin_have_no_effect(
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
        let untouched = one.into_iter().enumerate().map(|(offset, Message { parts, tokens, .. })| {
            EditedMessage { index: pin + 1 + offset, parts, tokens, changes: Vec::new() }
        });
        prop_assert_eq!(rest, untouched.collect::<Vec<_>>());
    }

    #[test]
    fn removing_results_and_arguments_removes_no_message(messages in conversation(), strategy in any_removal()) {
        let edited = apply(&parse(&json!([strategy]).to_string()).unwrap(), messages.clone(), None);
        prop_assert_eq!(edited.len(), messages.len());
        let tools = |parts: &[Part]| {
            let tools = parts.iter().filter(|part| matches!(part.kind, PartKind::ToolCall | PartKind::ToolResult));
            tools.map(|part| (part.kind, text(part, "id").map(str::to_owned))).collect::<Vec<_>>()
        };
        for (before, after) in messages.iter().zip(&edited) {
            prop_assert_eq!(tools(&before.parts), tools(&after.parts));
        }
        // Applying the strategy again changes nothing.
        let again = edited.iter().map(|after| message(after.parts.clone())).collect();
        let again = apply(&parse(&json!([strategy]).to_string()).unwrap(), again, None);
        prop_assert!(again.iter().all(|after| after.changes.is_empty()));
    }

    #[test]
    fn the_limit_is_met_and_results_are_removed_with_their_calls(messages in conversation(), limit in 1_usize..300) {
        let edited = apply(&token_limit(limit), messages.clone(), None);
        let remaining: HashSet<_> = indices(&edited).into_iter().collect();
        prop_assert!(edited.iter().map(|message| message.tokens).sum::<usize>() <= limit);
        for (result, call) in exchanges(&messages) {
            prop_assert_eq!(remaining.contains(&result), remaining.contains(&call));
        }
        // Nothing is removed unless it is necessary.
        let all: usize = messages.iter().map(|message| message.tokens).sum();
        prop_assert!(remaining.len() == messages.len() || all > limit);
    }

    #[test]
    fn orderly_calls_are_removed_with_their_last_result(messages in orderly_conversation(), limit in 1_usize..300) {
        let remaining = indices(&apply(&token_limit(limit), messages.clone(), None));
        prop_assert_eq!(remaining, token_limit_naively(&messages, limit));
    }

    #[test]
    fn middle_messages_are_removed_with_all_that_share_their_ids(messages in conversation(), target in 1_usize..300) {
        // Excludes deprecated function calls without ids, to which other rules apply.
        let messages: Vec<_> = messages.into_iter().map(|mut one| {
            one.parts.retain(|part| !part.meta.contains_key("function_name"));
            message(one.parts)
        }).collect();
        let edited = apply(&middle_out(target), messages.clone(), None);
        prop_assert_eq!(indices(&edited), middle_out_naively(&messages, target));
        let remaining: HashSet<_> = indices(&edited).into_iter().collect();
        for (result, call) in exchanges(&messages) {
            prop_assert_eq!(remaining.contains(&result), remaining.contains(&call));
        }
    }

    #[test]
    fn any_text_is_accepted_or_rejected(
        text in "[\\[\\]{}\",:0-9a-z_ ]{0,60}",
        list in prop::collection::vec(any_strategy(), 0..20),
    ) {
        let _ = parse(&text);
        prop_assert_eq!(parse(&Value::from(list.clone()).to_string()).is_ok(), list.len() <= MAX_STRATEGIES);
    }
}
