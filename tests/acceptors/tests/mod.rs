//! Each rule rejects a history that violates only this rule: a valid history with one change.

use serde_json::{Value, json};

use super::check;

mod anthropic;
mod gemini;
mod openai;
mod server_tools;

/// Removes the value at the path of a change.
const REMOVE: &str = "<remove>";

/// Sets the value at a JSON pointer; see [`REMOVE`]. An index may be that after the last entry of a list.
fn change(history: &Value, pointer: &str, value: Value) -> Value {
    let mut history = history.clone();
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
    match history.pointer_mut(parent).expect("the parent exists") {
        Value::Object(object) if value == REMOVE => drop(object.remove(key)),
        Value::Object(object) => drop(object.insert(key.to_owned(), value)),
        Value::Array(list) => {
            let index: usize = key.parse().expect("an index");
            if value == REMOVE {
                list.remove(index);
            } else if index == list.len() {
                list.push(value);
            } else {
                list[index] = value;
            }
        }
        other => panic!("not a container: {other}"),
    }
    history
}

fn accept(format: &str, history: &Value) {
    assert_eq!(check(format, history.as_array().expect("a list")), Ok(()), "{history}");
}

/// Checks that a history with one change is rejected with an error that begins with `expected`.
fn reject(format: &str, history: &Value, pointer: &str, value: &Value, expected: &str) {
    accept(format, history);
    let changed = change(history, pointer, value.clone());
    let error = check(format, changed.as_array().expect("a list")).expect_err(&format!("{pointer} = {value}"));
    assert!(error.starts_with(expected), "{pointer} = {value}: {error}, not {expected}");
}

#[test]
fn empty_history_is_rejected() {
    for format in ["openai", "anthropic", "gemini", "gemini-3"] {
        assert_eq!(check(format, &[]), Err("messages: must contain at least one message".into()));
    }
    assert!(check("acontext", &[json!({})]).is_err());
}
