//! Strategies and what becomes of a conversation, one by one.

use serde_json::{Value, json};

use super::*;
use crate::conversation::format::{self, Format};
use crate::conversation::tokens;

fn messages(bodies: &[Value]) -> Vec<Message> {
    let message = |body: &Value| {
        let format = if body.get("parts").is_some() { Format::Acontext } else { Format::OpenAi };
        let parts = format::parts(format, body.clone());
        Message { tokens: tokens::of_parts(&parts), parts }
    };
    bodies.iter().map(message).collect()
}

fn call(id: &str, name: &str) -> Value {
    let function = json!({"name": name, "arguments": "{\"query\":\"a harbour with a lighthouse\"}"});
    json!({"role": "assistant", "tool_calls": [{"id": id, "type": "function", "function": function}]})
}

fn result(id: &str, text: &str) -> Value {
    json!({"role": "tool", "tool_call_id": id, "content": text})
}

fn said(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

/// Four calls with their results, a question before and an answer after them: ten messages.
fn harbour() -> Vec<Message> {
    messages(&[
        said("Where does the boat go from?"),
        call("a", "map"),
        result("a", "the old harbour, beside the fish market"),
        call("b", "search"),
        result("b", "ok"),
        call("c", "map"),
        result("c", "pier four, the long one with the blue shed at its end"),
        call("d", "search"),
        result("d", "it leaves at nine"),
        said("From pier four, at nine."),
    ])
}

fn edited(strategies: &Value, messages: Vec<Message>) -> Vec<Edited> {
    apply(&parse(&strategies.to_string()).unwrap(), messages, None)
}

fn one(name: &str, params: &Value, messages: Vec<Message>) -> Vec<Edited> {
    edited(&json!([{"type": name, "params": params}]), messages)
}

/// The texts of all results that are left.
fn results(of: &[Edited]) -> Vec<&str> {
    let parts = of.iter().flat_map(|message| &message.parts);
    parts
        .filter(|part| part.kind == crate::conversation::parts::Kind::ToolResult)
        .map(|part| part.text.as_str())
        .collect()
}

/// The arguments of all calls that are left.
fn arguments(of: &[Edited]) -> Vec<&Value> {
    of.iter().flat_map(|message| &message.parts).filter_map(|part| part.meta.get("arguments")).collect()
}

fn indices(of: &[Edited]) -> Vec<usize> {
    of.iter().map(|message| message.index).collect()
}

fn with_result(params: &Value) -> Vec<String> {
    results(&one("remove_tool_result", params, harbour())).into_iter().map(str::to_owned).collect()
}

const RESULTS: [&str; 4] = [
    "the old harbour, beside the fish market",
    "ok",
    "pier four, the long one with the blue shed at its end",
    "it leaves at nine",
];

#[test]
fn results_give_way_to_a_word_but_for_the_last() {
    let [a, b, c, d] = RESULTS;
    for (params, expected) in [
        (json!({}), ["Done", b, c, d]),
        (json!({"keep_recent_n_tool_results": 0}), ["Done"; 4]),
        (json!({"keep_recent_n_tool_results": 4}), RESULTS),
        (json!({"keep_recent_n_tool_results": 2.9}), ["Done", "Done", c, d]),
        (json!({"keep_recent_n_tool_results": -0.9, "tool_result_placeholder": " \n"}), ["Done"; 4]),
        (json!({"keep_recent_n_tool_results": 1, "tool_result_placeholder": " gone "}), ["gone", "gone", "gone", d]),
        // What is kept does not use up the number.
        (json!({"keep_recent_n_tool_results": 1, "keep_tools": ["search"]}), ["Done", b, c, d]),
        (json!({"keep_recent_n_tool_results": 0, "keep_tools": ["map", "x"]}), [a, "Done", c, "Done"]),
        // What is short does.
        (json!({"keep_recent_n_tool_results": 2, "gt_token": 3}), ["Done", b, c, d]),
        (json!({"keep_recent_n_tool_results": 0, "gt_token": 1.5}), ["Done", b, "Done", "Done"]),
        (json!({"keep_recent_n_tool_results": 0, "gt_token": 1000, "unheard_of": null}), RESULTS),
    ] {
        assert_eq!(with_result(&params), expected, "{params}");
    }
}

#[test]
fn a_tool_is_known_by_its_call_alone() {
    let keep = json!({"keep_recent_n_tool_results": 0, "keep_tools": ["map"]});
    let named = json!({"parts": [{"type": "tool-result", "text": "x", "meta": {"tool_call_id": "z", "name": "map"}}]});
    assert_eq!(results(&one("remove_tool_result", &keep, messages(&[named]))), ["Done"]);
    let number = json!({"parts": [{"type": "tool-result", "text": "x", "meta": {"tool_call_id": 5}}]});
    assert_eq!(results(&one("remove_tool_result", &keep, messages(&[call("5", "map"), number]))), ["Done"]);
    // Old functions have nothing but their name.
    let old = json!({"role": "function", "name": "map", "content": "x"});
    assert_eq!(results(&one("remove_tool_result", &keep, messages(&[old]))), ["x"]);
}

#[test]
fn what_came_with_a_result_goes_with_it() {
    let part = |kind: &str, id: &str| json!({"type": kind, "text": kind, "meta": {"tool_call_id": id}});
    let parts = ["tool-result", "image", "tool-call", "data"].map(|kind| part(kind, "a"));
    let others = [part("image", "b"), part("image", "a"), part("tool-result", "b"), part("file", "b")];
    let parts: Vec<_> = parts.into_iter().chain(others).collect();
    let edited =
        one("remove_tool_result", &json!({"keep_recent_n_tool_results": 1}), messages(&[json!({"parts": parts})]));
    let left: Vec<_> = edited[0].parts.iter().map(|part| part.text.as_str()).collect();
    assert_eq!(left, ["Done", "tool-call", "image", "image", "tool-result", "file"]);
    assert_eq!(edited[0].changes, [Change::Result { nth: 0, text: "Done".into() }]);
}

#[test]
fn arguments_give_way_to_none_but_for_the_last() {
    let full = "{\"query\":\"a harbour with a lighthouse\"}";
    for (params, expected) in [
        (json!({}), ["{}", full, full, full]),
        (json!({"keep_recent_n_tool_calls": 0}), ["{}"; 4]),
        (json!({"keep_recent_n_tool_calls": 9}), [full; 4]),
        (json!({"keep_recent_n_tool_calls": 1, "keep_tools": ["search"]}), ["{}", full, full, full]),
        (json!({"keep_recent_n_tool_calls": 0, "gt_token": 500}), [full; 4]),
        (json!({"keep_recent_n_tool_calls": 0, "gt_token": 2}), ["{}"; 4]),
    ] {
        assert_eq!(arguments(&one("remove_tool_call_params", &params, harbour())), expected, "{params}");
    }
}

#[test]
fn odd_calls_lose_what_they_have() {
    let part = |meta: Value| json!({"type": "tool-call", "meta": meta});
    let parts = [
        json!({}),
        json!({"name": "f"}),
        json!({"name": "f", "arguments": {"deep": [1, 2, 3]}}),
        json!({"name": "f", "arguments": "{}"}),
        json!({"name": "f", "arguments": "words", "type": "custom"}),
    ];
    let message = messages(&[json!({"parts": parts.map(part)})]);
    let edit = |params: Value| one("remove_tool_call_params", &params, message.clone()).remove(0);
    let changed = |of: &Edited| -> Vec<Value> {
        of.parts.iter().map(|part| part.meta.get("arguments").cloned().into_iter().collect()).collect()
    };

    let all = edit(json!({"keep_recent_n_tool_calls": 0}));
    assert_eq!(changed(&all), [json!([]), json!(["{}"]), json!(["{}"]), json!(["{}"]), json!([""])]);
    assert_eq!(all.changes, [1, 2, 4].map(|nth| Change::Arguments { nth }));
    assert_eq!(all.tokens, tokens::of_parts(&all.parts));
    let long = edit(json!({"keep_recent_n_tool_calls": 0, "gt_token": 5}));
    assert_eq!(long.changes, [Change::Arguments { nth: 2 }]);
}

#[test]
fn the_oldest_go_until_the_limit_is_kept() {
    let all: usize = harbour().iter().map(|message| message.tokens).sum();
    let first = harbour()[0].tokens;
    let last = harbour()[9].tokens;
    for (limit, expected) in [
        (all, (0..10).collect::<Vec<_>>()),
        (all - 1, (1..10).collect()),
        (all - first, (1..10).collect()),
        // The call and its result.
        (all - first - 1, (3..10).collect()),
        (last, vec![9]),
        (last - 1, vec![]),
    ] {
        assert_eq!(indices(&one("token_limit", &json!({"limit_tokens": limit}), harbour())), expected, "{limit}");
    }
}

#[test]
fn under_a_limit_each_result_keeps_its_call() {
    let long = "a long story that has to go, since there is no room for it".repeat(9);
    let limit = |bodies: &[Value]| indices(&one("token_limit", &json!({"limit_tokens": 60}), messages(bodies)));
    // One message answers two calls.
    let both = ["a", "b"].map(|id| json!({"type": "tool-result", "text": "x", "meta": {"tool_call_id": id}}));
    let both = json!({"parts": both});
    let story =
        json!({"parts": [{"type": "text", "text": long}, {"type": "tool-call", "meta": {"id": "a", "name": "f"}}]});
    assert_eq!(limit(&[story.clone(), call("b", "f"), both, said("end")]), [3]);
    // A result in two messages, and one before its call.
    assert_eq!(limit(&[story.clone(), result("a", "x"), result("a", "y"), said("end")]), [3]);
    assert_eq!(limit(&[result("a", &long), story.clone(), said("end")]), [2]);
    // The same id again is another call.
    assert_eq!(limit(&[story, result("a", "x"), call("a", "f"), result("a", "y")]), [2, 3]);
    // Old functions go by their name.
    let old = json!({"role": "assistant", "content": long, "function_call": {"name": "f", "arguments": "{}"}});
    let answer = json!({"role": "function", "name": "f", "content": "x"});
    assert_eq!(limit(&[old, answer, said("end")]), [2]);
}

#[test]
fn the_middle_goes_first() {
    let all: usize = harbour().iter().map(|message| message.tokens).sum();
    let reduce = |to: usize| indices(&one("middle_out", &json!({"token_reduce_to": to}), harbour()));
    assert_eq!(reduce(all), (0..10).collect::<Vec<_>>());
    // The sixth of ten, a call, and its result; then the fifth of eight and its own.
    assert_eq!(reduce(all - 1), [0, 1, 2, 3, 4, 7, 8, 9]);
    let left: usize = [0, 1, 2, 3, 4, 7, 8, 9].iter().map(|at| harbour()[*at].tokens).sum();
    assert_eq!(reduce(left - 1), [0, 1, 2, 7, 8, 9]);
    // Of the last two the newer one stays.
    assert_eq!(reduce(harbour()[9].tokens), [9]);
    assert_eq!(reduce(1), [0; 0]);
    // Whatever shares an id goes along, over and over.
    let chain = [said("one"), call("a", "f"), result("a", "x"), call("a", "g"), said("two")];
    assert_eq!(indices(&one("middle_out", &json!({"token_reduce_to": 10}), messages(&chain))), [0, 4]);
}

#[test]
fn strategies_work_in_a_fixed_order() {
    let result = |text: &str| {
        let params = json!({"keep_recent_n_tool_results": 0, "tool_result_placeholder": text});
        json!({"type": "remove_tool_result", "params": params})
    };
    let params = json!({"type": "remove_tool_call_params"});
    let middle = json!({"type": "middle_out", "params": {"token_reduce_to": 90.0}});
    let limit = json!({"type": "token_limit", "params": {"limit_tokens": 60}});
    let right = edited(&json!([result("A"), result("B"), params, middle, limit]), harbour());
    assert_eq!(edited(&json!([limit, middle, result("A"), params, result("B")]), harbour()), right);
    assert!(!results(&right).is_empty() && results(&right).iter().all(|text| *text == "B"));
    // Shorter results fit under a limit that they would not have fitted under.
    let fits = json!([{"type": "token_limit", "params": {"limit_tokens": 140}}, result("Done")]);
    assert_eq!(edited(&fits, harbour()).len(), 10);
}

#[test]
fn nothing_after_the_pin_changes_or_counts() {
    let strategies = parse(r#"[{"type":"remove_tool_result","params":{"keep_recent_n_tool_results":1}}]"#).unwrap();
    let [_, _, c, d] = RESULTS;
    assert_eq!(results(&apply(&strategies, harbour(), Some(4))), ["Done", "ok", c, d]);
    assert_eq!(results(&apply(&strategies, harbour(), Some(6))), ["Done", "Done", c, d]);
    assert_eq!(apply(&strategies, harbour(), Some(9)), apply(&strategies, harbour(), None));
    assert_eq!(apply(&strategies, harbour(), Some(10)), apply(&strategies, harbour(), None));
    // The pinned message may go.
    let limit = parse(r#"[{"type":"token_limit","params":{"limit_tokens":1}}]"#).unwrap();
    assert_eq!(indices(&apply(&limit, harbour(), Some(2))), (3..10).collect::<Vec<_>>());
    assert_eq!(indices(&apply(&[], harbour(), Some(2))), (0..10).collect::<Vec<_>>());
}

#[test]
fn where_a_page_was_edited() {
    let some = parse(r#"[{"type":"remove_tool_result"}]"#).unwrap();
    assert_eq!(edited_at(&some, 10, Some(4)), Some(4));
    assert_eq!(edited_at(&some, 10, None), Some(9));
    assert_eq!(edited_at(&some, 10, Some(10)), Some(9));
    assert_eq!(edited_at(&[], 10, Some(4)), Some(9));
    assert_eq!(edited_at(&some, 0, None), None);
}

#[test]
fn what_is_no_list_of_objects_is_malformed() {
    for (text, place) in [
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
            Err(ParseError::Malformed { field, why }) => assert!(field == place && !why.is_empty(), "{text}: {field}"),
            other => panic!("{text}: {other:?}"),
        }
    }
    for text in ["", "null", "[]", " [ ] "] {
        assert_eq!(parse(text), Ok(Vec::new()), "{text}");
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let params = |name: &str, key: &str, values: Value| {
        let values = values.as_array().unwrap().clone().into_iter();
        values
            .map(|value| (json!([{"type": name, "params": {key: value}}]), format!("[0].params.{key}")))
            .collect::<Vec<_>>()
    };
    let no_number: Value = serde_json::from_str(r#"[null,true,"3",[1],-1,1e30,1e400,9223372036854775808]"#).unwrap();
    let no_list = json!([null, "map", 5, {}, [1], ["map", null]]);
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
        cases.extend(params(name, recent, no_number.clone()));
        cases.extend(params(name, "gt_token", no_number.clone()));
        cases.extend(params(name, "gt_token", json!([0, 0.9])));
        cases.extend(params(name, "keep_tools", no_list.clone()));
    }
    cases.extend(params("remove_tool_result", "tool_result_placeholder", json!([null, 5, ["Done"], "x".repeat(1025)])));
    cases.extend(params("token_limit", "limit_tokens", no_number.clone()));
    cases.extend(params("token_limit", "limit_tokens", json!([0, 0.5])));
    cases.extend(params("middle_out", "token_reduce_to", no_number));
    cases.extend(params("middle_out", "token_reduce_to", json!([0, 10.5])));
    for (strategies, place) in cases {
        match parse(&strategies.to_string()) {
            Err(ParseError::Invalid { field, why }) => {
                assert!(field == format!("edit_strategies{place}") && !why.is_empty(), "{strategies}: {field}");
            }
            other => panic!("{strategies}: {other:?}"),
        }
    }
}

#[test]
fn numbers_may_be_written_in_any_way() {
    let same = |name: &str, key: &str, texts: &[&str]| {
        let read = |text: &&str| parse(&format!("[{{\"type\":\"{name}\",\"params\":{{\"{key}\":{text}}}}}]")).unwrap();
        let all: Vec<_> = texts.iter().map(read).collect();
        assert!(all.iter().all(|one| *one == all[0]), "{texts:?}");
    };
    same("token_limit", "limit_tokens", &["100", "1e2", "100.9", "0.1005e3"]);
    same("middle_out", "token_reduce_to", &["100", "1E2", "100.0"]);
    same("remove_tool_result", "keep_recent_n_tool_results", &["0", "-0", "-0.9", "0.9", "1e-400"]);
    same("token_limit", "limit_tokens", &["9223372036854775807"]);
    assert!(parse(&Value::Array(vec![json!({"type": "remove_tool_result"}); MAX_STRATEGIES]).to_string()).is_ok());
}
