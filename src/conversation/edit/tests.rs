//! Tests of each strategy with example conversations.

use serde_json::{Value, json};

use super::*;
use crate::conversation::format::{self, Format};
use crate::conversation::parts::Role;
use crate::conversation::tokens;

fn messages(bodies: &[Value]) -> Vec<Message> {
    let message = |body: &Value| {
        let format = if body.get("parts").is_some() { Format::Acontext } else { Format::OpenAi };
        let parts = format::to_parts(format, body.clone());
        let role = body["role"].as_str().unwrap_or_default();
        Message {
            role: if role == "assistant" { Role::Assistant } else { Role::User },
            is_system: matches!(role, "system" | "developer"),
            tokens: tokens::count_parts(&parts),
            parts,
        }
    };
    bodies.iter().map(message).collect()
}

fn call(id: &str, name: &str) -> Value {
    let function = json!({"name": name, "arguments": "{\"query\":\"a harbor with a lighthouse\"}"});
    json!({"role": "assistant", "tool_calls": [{"id": id, "type": "function", "function": function}]})
}

fn result(id: &str, text: &str) -> Value {
    json!({"role": "tool", "tool_call_id": id, "content": text})
}

fn user_message(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

/// Returns ten messages: a question, four calls with their results, and an answer.
fn sample_conversation() -> Vec<Message> {
    messages(&[
        user_message("Where does the boat go from?"),
        call("a", "map"),
        result("a", "the old harbor, near the fish market"),
        call("b", "search"),
        result("b", "ok"),
        call("c", "map"),
        result("c", "pier four, the long one with the blue shed at its end"),
        call("d", "search"),
        result("d", "it leaves at nine"),
        user_message("From pier four, at nine."),
    ])
}

fn edit(strategies: &Value, messages: Vec<Message>) -> Vec<EditedMessage> {
    apply(&parse(&strategies.to_string()).unwrap(), messages, None)
}

fn edit_with(name: &str, params: &Value, messages: Vec<Message>) -> Vec<EditedMessage> {
    edit(&json!([{"type": name, "params": params}]), messages)
}

/// Returns the texts of all remaining results.
fn results(messages: &[EditedMessage]) -> Vec<&str> {
    let parts = messages.iter().flat_map(|message| &message.parts);
    parts
        .filter(|part| part.kind == crate::conversation::parts::PartKind::ToolResult)
        .map(|part| part.text.as_str())
        .collect()
}

/// Returns the arguments of all remaining calls.
fn arguments(messages: &[EditedMessage]) -> Vec<&Value> {
    messages.iter().flat_map(|message| &message.parts).filter_map(|part| part.meta.get("arguments")).collect()
}

fn indices(messages: &[EditedMessage]) -> Vec<usize> {
    messages.iter().map(|message| message.index).collect()
}

fn results_after(params: &Value) -> Vec<String> {
    results(&edit_with("remove_tool_result", params, sample_conversation())).into_iter().map(str::to_owned).collect()
}

const RESULTS: [&str; 4] = [
    "the old harbor, near the fish market",
    "ok",
    "pier four, the long one with the blue shed at its end",
    "it leaves at nine",
];

#[test]
fn results_except_recent_ones_are_replaced() {
    let [a, b, c, d] = RESULTS;
    for (params, expected) in [
        (json!({}), ["Done", b, c, d]),
        (json!({"keep_recent_n_tool_results": 0}), ["Done"; 4]),
        (json!({"keep_recent_n_tool_results": 4}), RESULTS),
        (json!({"keep_recent_n_tool_results": 2.9}), ["Done", "Done", c, d]),
        (json!({"keep_recent_n_tool_results": -0.9, "tool_result_placeholder": " \n"}), ["Done"; 4]),
        (json!({"keep_recent_n_tool_results": 1, "tool_result_placeholder": " gone "}), ["gone", "gone", "gone", d]),
        // Excluded results do not count as recent ones.
        (json!({"keep_recent_n_tool_results": 1, "keep_tools": ["search"]}), ["Done", b, c, d]),
        (json!({"keep_recent_n_tool_results": 0, "keep_tools": ["map", "x"]}), [a, "Done", c, "Done"]),
        // Short results do.
        (json!({"keep_recent_n_tool_results": 2, "gt_token": 3}), ["Done", b, c, d]),
        (json!({"keep_recent_n_tool_results": 0, "gt_token": 1.5}), ["Done", b, "Done", "Done"]),
        (json!({"keep_recent_n_tool_results": 0, "gt_token": 1000, "unheard_of": null}), RESULTS),
    ] {
        assert_eq!(results_after(&params), expected, "{params}");
    }
}

#[test]
fn the_tool_of_a_result_is_that_of_its_call() {
    let keep = json!({"keep_recent_n_tool_results": 0, "keep_tools": ["map"]});
    let named = json!({"parts": [{"type": "tool-result", "text": "x", "meta": {"tool_call_id": "z", "name": "map"}}]});
    assert_eq!(results(&edit_with("remove_tool_result", &keep, messages(&[named]))), ["Done"]);
    let number = json!({"parts": [{"type": "tool-result", "text": "x", "meta": {"tool_call_id": 5}}]});
    assert_eq!(results(&edit_with("remove_tool_result", &keep, messages(&[call("5", "map"), number]))), ["Done"]);
    // Deprecated function calls have only their name.
    let old = json!({"role": "function", "name": "map", "content": "x"});
    assert_eq!(results(&edit_with("remove_tool_result", &keep, messages(&[old]))), ["x"]);
}

#[test]
fn attachments_are_removed_with_their_result() {
    let part = |kind: &str, id: &str| json!({"type": kind, "text": kind, "meta": {"tool_call_id": id}});
    let parts = ["tool-result", "image", "tool-call", "data"].map(|kind| part(kind, "a"));
    let others = [part("image", "b"), part("image", "a"), part("tool-result", "b"), part("file", "b")];
    let parts: Vec<_> = parts.into_iter().chain(others).collect();
    let edited = edit_with(
        "remove_tool_result",
        &json!({"keep_recent_n_tool_results": 1}),
        messages(&[json!({"parts": parts})]),
    );
    let remaining: Vec<_> = edited[0].parts.iter().map(|part| part.text.as_str()).collect();
    assert_eq!(remaining, ["Done", "tool-call", "image", "image", "tool-result", "file"]);
    assert_eq!(edited[0].changes, [BodyChange::ReplaceResult { result_index: 0, text: "Done".into() }]);
}

#[test]
fn arguments_except_recent_ones_are_cleared() {
    let full = "{\"query\":\"a harbor with a lighthouse\"}";
    for (params, expected) in [
        (json!({}), ["{}", full, full, full]),
        (json!({"keep_recent_n_tool_calls": 0}), ["{}"; 4]),
        (json!({"keep_recent_n_tool_calls": 9}), [full; 4]),
        (json!({"keep_recent_n_tool_calls": 1, "keep_tools": ["search"]}), ["{}", full, full, full]),
        (json!({"keep_recent_n_tool_calls": 0, "gt_token": 500}), [full; 4]),
        (json!({"keep_recent_n_tool_calls": 0, "gt_token": 2}), ["{}"; 4]),
    ] {
        assert_eq!(
            arguments(&edit_with("remove_tool_call_params", &params, sample_conversation())),
            expected,
            "{params}"
        );
    }
}

#[test]
fn arguments_of_unusual_calls_are_cleared() {
    let part = |meta: Value| json!({"type": "tool-call", "meta": meta});
    let parts = [
        json!({}),
        json!({"name": "f"}),
        json!({"name": "f", "arguments": {"deep": [1, 2, 3]}}),
        json!({"name": "f", "arguments": "{}"}),
        json!({"name": "f", "arguments": "words", "type": "custom"}),
    ];
    let message = messages(&[json!({"parts": parts.map(part)})]);
    let edit_message = |params: Value| edit_with("remove_tool_call_params", &params, message.clone()).remove(0);
    let arguments = |message: &EditedMessage| -> Vec<Value> {
        message.parts.iter().map(|part| part.meta.get("arguments").cloned().into_iter().collect()).collect()
    };

    let all = edit_message(json!({"keep_recent_n_tool_calls": 0}));
    assert_eq!(arguments(&all), [json!([]), json!(["{}"]), json!(["{}"]), json!(["{}"]), json!([""])]);
    assert_eq!(all.changes, [1, 2, 4].map(|call_index| BodyChange::ClearArguments { call_index }));
    assert_eq!(all.tokens, tokens::count_parts(&all.parts));
    let long = edit_message(json!({"keep_recent_n_tool_calls": 0, "gt_token": 5}));
    assert_eq!(long.changes, [BodyChange::ClearArguments { call_index: 2 }]);
}

#[test]
fn oldest_messages_are_removed_until_the_limit_is_met() {
    let all: usize = sample_conversation().iter().map(|message| message.tokens).sum();
    let first = sample_conversation()[0].tokens;
    let last = sample_conversation()[9].tokens;
    for (limit, expected) in [
        (all, (0..10).collect::<Vec<_>>()),
        (all - 1, (1..10).collect()),
        (all - first, (1..10).collect()),
        // A call and its result are removed together.
        (all - first - 1, (3..10).collect()),
        (last, vec![9]),
        (last - 1, vec![]),
    ] {
        assert_eq!(
            indices(&edit_with("token_limit", &json!({"limit_tokens": limit}), sample_conversation())),
            expected,
            "{limit}"
        );
    }
}

#[test]
fn token_limit_removes_results_with_their_calls() {
    let long = "a long story that has to go, since there is no room for it".repeat(9);
    let limit = |bodies: &[Value]| indices(&edit_with("token_limit", &json!({"limit_tokens": 60}), messages(bodies)));
    // One message contains the results of two calls.
    let both = ["a", "b"].map(|id| json!({"type": "tool-result", "text": "x", "meta": {"tool_call_id": id}}));
    let both = json!({"parts": both});
    let story =
        json!({"parts": [{"type": "text", "text": long}, {"type": "tool-call", "meta": {"id": "a", "name": "f"}}]});
    assert_eq!(limit(&[story.clone(), call("b", "f"), both, user_message("end")]), [3]);
    // A call has results in two messages; a result precedes its call.
    assert_eq!(limit(&[story.clone(), result("a", "x"), result("a", "y"), user_message("end")]), [3]);
    assert_eq!(limit(&[result("a", &long), story.clone(), user_message("end")]), [2]);
    // An id is used again for another call.
    assert_eq!(limit(&[story, result("a", "x"), call("a", "f"), result("a", "y")]), [2, 3]);
    // Deprecated function calls are matched by name.
    let old = json!({"role": "assistant", "content": long, "function_call": {"name": "f", "arguments": "{}"}});
    let response = json!({"role": "function", "name": "f", "content": "x"});
    assert_eq!(limit(&[old, response, user_message("end")]), [2]);
}

#[test]
fn middle_messages_are_removed_first() {
    let all: usize = sample_conversation().iter().map(|message| message.tokens).sum();
    let reduce = |to: usize| indices(&edit_with("middle_out", &json!({"token_reduce_to": to}), sample_conversation()));
    assert_eq!(reduce(all), (0..10).collect::<Vec<_>>());
    // First the sixth of ten, which is a call, and its result; then the fifth of eight and its result.
    assert_eq!(reduce(all - 1), [0, 1, 2, 3, 4, 7, 8, 9]);
    let remaining: usize = [0, 1, 2, 3, 4, 7, 8, 9].iter().map(|index| sample_conversation()[*index].tokens).sum();
    assert_eq!(reduce(remaining - 1), [0, 1, 2, 7, 8, 9]);
    // Of the last two, the newer one remains.
    assert_eq!(reduce(sample_conversation()[9].tokens), [9]);
    assert_eq!(reduce(1), [0; 0]);
    // Messages that share an id are removed together, transitively.
    let chain = [user_message("one"), call("a", "f"), result("a", "x"), call("a", "g"), user_message("two")];
    assert_eq!(indices(&edit_with("middle_out", &json!({"token_reduce_to": 10}), messages(&chain))), [0, 4]);
}

#[test]
fn strategies_are_applied_in_a_fixed_order() {
    let result = |text: &str| {
        let params = json!({"keep_recent_n_tool_results": 0, "tool_result_placeholder": text});
        json!({"type": "remove_tool_result", "params": params})
    };
    let params = json!({"type": "remove_tool_call_params"});
    let middle = json!({"type": "middle_out", "params": {"token_reduce_to": 90.0}});
    let limit = json!({"type": "token_limit", "params": {"limit_tokens": 60}});
    let expected = edit(&json!([result("A"), result("B"), params, middle, limit]), sample_conversation());
    assert_eq!(edit(&json!([limit, middle, result("A"), params, result("B")]), sample_conversation()), expected);
    assert!(!results(&expected).is_empty() && results(&expected).iter().all(|text| *text == "B"));
    // The original results exceed the limit, the shortened ones do not.
    let fits = json!([{"type": "token_limit", "params": {"limit_tokens": 140}}, result("Done")]);
    assert_eq!(edit(&fits, sample_conversation()).len(), 10);
}

#[test]
fn messages_after_the_pin_are_ignored() {
    let strategies = parse(r#"[{"type":"remove_tool_result","params":{"keep_recent_n_tool_results":1}}]"#).unwrap();
    let [_, _, c, d] = RESULTS;
    assert_eq!(results(&apply(&strategies, sample_conversation(), Some(4))), ["Done", "ok", c, d]);
    assert_eq!(results(&apply(&strategies, sample_conversation(), Some(6))), ["Done", "Done", c, d]);
    assert_eq!(apply(&strategies, sample_conversation(), Some(9)), apply(&strategies, sample_conversation(), None));
    assert_eq!(apply(&strategies, sample_conversation(), Some(10)), apply(&strategies, sample_conversation(), None));
    // The pinned message may be removed.
    let limit = parse(r#"[{"type":"token_limit","params":{"limit_tokens":1}}]"#).unwrap();
    assert_eq!(indices(&apply(&limit, sample_conversation(), Some(2))), (3..10).collect::<Vec<_>>());
    assert_eq!(indices(&apply(&[], sample_conversation(), Some(2))), (0..10).collect::<Vec<_>>());
}

#[test]
fn pin_index_is_the_last_edited_message() {
    let some = parse(r#"[{"type":"remove_tool_result"}]"#).unwrap();
    assert_eq!(pin_index(&some, 10, Some(4)), Some(4));
    assert_eq!(pin_index(&some, 10, None), Some(9));
    assert_eq!(pin_index(&some, 10, Some(10)), Some(9));
    assert_eq!(pin_index(&[], 10, Some(4)), Some(9));
    assert_eq!(pin_index(&some, 0, None), None);
}

#[test]
fn other_values_than_lists_of_objects_are_malformed() {
    for (text, path) in [
        ("{broken", "edit_strategies"),
        (" ", "edit_strategies"),
        ("{\"type\":\"token_limit\"}", "edit_strategies"),
        ("[] []", "edit_strategies"),
        ("\"token_limit\"", "edit_strategies"),
        ("[\"token_limit\"]", "edit_strategies[0]"),
        ("[{\"type\":\"unheard_of\"},5]", "edit_strategies[1]"),
        ("[{\"type\":5}]", "edit_strategies[0].type"),
        ("[{\"type\":\"middle_out\",\"params\":[]}]", "edit_strategies[0].params"),
    ] {
        match parse(text) {
            Err(ParseError::Malformed { field, reason }) => {
                assert!(field == path && !reason.is_empty(), "{text}: {field}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
    for text in ["", "null", "[]", " [ ] "] {
        assert_eq!(parse(text), Ok(Vec::new()), "{text}");
    }
}

#[test]
fn invalid_strategies_are_rejected() {
    let params = |name: &str, key: &str, values: Value| {
        let values = values.as_array().unwrap().clone().into_iter();
        values
            .map(|value| (json!([{"type": name, "params": {key: value}}]), format!("[0].params.{key}")))
            .collect::<Vec<_>>()
    };
    let invalid_numbers: Value =
        serde_json::from_str(r#"[null,true,"3",[1],-1,1e30,1e400,9223372036854775808]"#).unwrap();
    let invalid_lists = json!([null, "map", 5, {}, [1], ["map", null]]);
    let mut cases = vec![
        (json!([{"type": "unheard_of"}]), "[0].type".to_owned()),
        (json!([{"type": "remove_tool_result"}, {"params": {}}]), "[1].type".into()),
        (json!([null]), "[0].type".into()),
        (json!([{"type": "token_limit"}]), "[0].params.limit_tokens".into()),
        (json!([{"type": "middle_out", "params": null}]), "[0].params.token_reduce_to".into()),
        (Value::Array(vec![json!({"type": "remove_tool_result"}); 17]), String::new()),
    ];
    for (name, recent) in
        [("remove_tool_result", "keep_recent_n_tool_results"), ("remove_tool_call_params", "keep_recent_n_tool_calls")]
    {
        cases.extend(params(name, recent, invalid_numbers.clone()));
        cases.extend(params(name, "gt_token", invalid_numbers.clone()));
        cases.extend(params(name, "gt_token", json!([0, 0.9])));
        cases.extend(params(name, "keep_tools", invalid_lists.clone()));
    }
    cases.extend(params("remove_tool_result", "tool_result_placeholder", json!([null, 5, ["Done"], "x".repeat(1025)])));
    cases.extend(params("token_limit", "limit_tokens", invalid_numbers.clone()));
    cases.extend(params("token_limit", "limit_tokens", json!([0, 0.5])));
    for flag in ["pin_system", "start_on_user"] {
        let invalid = [json!(null), json!("true"), json!(1)];
        cases.extend(invalid.map(|value| {
            let params = json!({"limit_tokens": 5, flag: value});
            (json!([{"type": "token_limit", "params": params}]), format!("[0].params.{flag}"))
        }));
    }
    cases.extend(params("middle_out", "token_reduce_to", invalid_numbers));
    cases.extend(params("middle_out", "token_reduce_to", json!([0, 10.5])));
    for (strategies, path) in cases {
        match parse(&strategies.to_string()) {
            Err(ParseError::Invalid { field, reason }) => {
                assert!(field == format!("edit_strategies{path}") && !reason.is_empty(), "{strategies}: {field}");
            }
            other => panic!("{strategies}: {other:?}"),
        }
    }
}

#[test]
fn equal_numbers_may_be_written_differently() {
    let same = |name: &str, key: &str, texts: &[&str]| {
        let parse_text =
            |text: &&str| parse(&format!("[{{\"type\":\"{name}\",\"params\":{{\"{key}\":{text}}}}}]")).unwrap();
        let all: Vec<_> = texts.iter().map(parse_text).collect();
        assert!(all.iter().all(|strategies| *strategies == all[0]), "{texts:?}");
    };
    same("token_limit", "limit_tokens", &["100", "1e2", "100.9", "0.1005e3"]);
    same("middle_out", "token_reduce_to", &["100", "1E2", "100.0"]);
    same("remove_tool_result", "keep_recent_n_tool_results", &["0", "-0", "-0.9", "0.9", "1e-400"]);
    same("token_limit", "limit_tokens", &["9223372036854775807"]);
    assert!(parse(&Value::Array(vec![json!({"type": "remove_tool_result"}); MAX_STRATEGIES]).to_string()).is_ok());
}
