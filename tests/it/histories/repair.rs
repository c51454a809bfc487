//! Laws for interrupted histories, which are read with `repair`.

use acontextd::conversation::format::Format;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestCaseError;
use serde_json::{Value, json};

use super::model::{PROVIDERS, Turn, any_format, one_format, turns};
use super::{History, Options, check, hold, hold_in_each_format, hold_in_mixed_formats, messages, render, write};
use crate::acceptors;

/// A change of a history that its provider may reject.
#[derive(Clone, Debug)]
pub enum Interruption {
    /// Removes a message.
    Remove(Index),
    /// Removes the first messages.
    RemoveFirst(Index),
    /// Removes the last messages.
    Cut(Index),
    /// Removes a call, a result or another block of a message.
    RemoveBlock(Index, Index),
    /// Replaces a message with one without content.
    Clear(Index, u8),
    /// Inserts a text without content into a message.
    InsertBlank(Index, Index),
    /// Stores a message later, such as a result that arrives after the next message of the user.
    Delay(Index, Index),
    /// Stores a message of the user twice, such as a result.
    Repeat(Index),
}

fn interruption() -> impl Strategy<Value = Interruption> {
    let index = any::<Index>;
    prop_oneof![
        4 => index().prop_map(Interruption::Remove),
        1 => index().prop_map(Interruption::RemoveFirst),
        2 => index().prop_map(Interruption::Cut),
        3 => (index(), index()).prop_map(|(message, block)| Interruption::RemoveBlock(message, block)),
        2 => (index(), any::<u8>()).prop_map(|(message, choice)| Interruption::Clear(message, choice)),
        1 => (index(), index()).prop_map(|(message, block)| Interruption::InsertBlank(message, block)),
        2 => (index(), index()).prop_map(|(from, to)| Interruption::Delay(from, to)),
        1 => index().prop_map(Interruption::Repeat),
    ]
}

/// Generates the turns of a history, and what happens to its messages.
pub fn interrupted_turns(format: &BoxedStrategy<Format>) -> BoxedStrategy<(Vec<Turn>, Vec<Interruption>)> {
    (turns(format, true), prop::collection::vec(interruption(), 1..4)).boxed()
}

/// Writes an interrupted history.
pub fn write_interrupted(turns: &[Turn], interruptions: &[Interruption]) -> History {
    let mut history = write(turns).history;
    for interruption in interruptions {
        if !history.is_empty() {
            interrupt(&mut history, interruption);
        }
    }
    history
}

fn interrupt(history: &mut History, interruption: &Interruption) {
    let len = history.len();
    match interruption {
        Interruption::Remove(index) => drop(history.remove(index.index(len))),
        Interruption::RemoveFirst(index) => drop(history.drain(..=index.index(len))),
        Interruption::Cut(index) => history.truncate(index.index(len)),
        Interruption::RemoveBlock(message, block) => remove_block(&mut history[message.index(len)].1, *block),
        Interruption::Clear(message, choice) => {
            let (format, message) = &mut history[message.index(len)];
            clear(*format, message, *choice);
        }
        Interruption::InsertBlank(message, block) => insert_blank(&mut history[message.index(len)].1, *block),
        Interruption::Delay(from, to) => {
            let from = from.index(len);
            let message = history.remove(from);
            history.insert(from + to.index(len - from), message);
        }
        Interruption::Repeat(index) => {
            let index = index.index(len);
            let message = history[index].clone();
            // Messages with equal ids of calls are no interruption.
            if !matches!(message.1["role"].as_str(), Some("assistant" | "model")) {
                history.insert(index, message);
            }
        }
    }
}

/// Returns the lists of a message with its blocks and calls.
fn lists(message: &mut Value) -> impl Iterator<Item = &mut Vec<Value>> {
    let fields = message.as_object_mut().into_iter().flatten();
    let is_list = |key: &str| matches!(key, "content" | "parts" | "tool_calls");
    fields.filter_map(move |(key, value)| if is_list(key) { value.as_array_mut() } else { None })
}

fn remove_block(message: &mut Value, block: Index) {
    let count = lists(message).map(|list| list.len()).sum::<usize>();
    if count == 0 {
        return;
    }
    let mut index = block.index(count);
    for list in lists(message) {
        if index < list.len() {
            list.remove(index);
            return;
        }
        index -= list.len();
    }
}

fn clear(format: Format, message: &mut Value, choice: u8) {
    let role = message["role"].clone();
    if format == Format::Gemini {
        let parts = [json!([]), json!([{}]), json!([{"text": ""}]), json!([{"text": " "}])];
        *message = json!({"role": role, "parts": parts[usize::from(choice % 4)]});
        return;
    }
    let text = if (choice / 4).is_multiple_of(2) { "" } else { " " };
    let blank = json!([{"type": "text", "text": text}]);
    let content = [json!(""), json!(" \n"), json!([]), blank][usize::from(choice % 4)].clone();
    let id = message.get("tool_call_id").cloned();
    *message = json!({"role": role, "content": content});
    if let Some(id) = id {
        message["tool_call_id"] = id;
    }
}

fn insert_blank(message: &mut Value, block: Index) {
    let is_gemini = message.get("parts").is_some();
    let list = message.get_mut(if is_gemini { "parts" } else { "content" }).and_then(Value::as_array_mut);
    if let Some(list) = list {
        let blank = if is_gemini { json!({"text": ""}) } else { json!({"type": "text", "text": ""}) };
        list.insert(block.index(list.len() + 1), blank);
    }
}

/// Checks that an interrupted history is accepted in every format after its repair.
fn check_repaired(history: &History) -> Result<(), TestCaseError> {
    for target in PROVIDERS {
        let items = render(history, target, &repair());
        // Nothing may be left.
        if !items.is_empty() {
            check(target, &items).map_err(|error| {
                let stored: Vec<_> = messages(history).iter().map(Value::to_string).collect();
                TestCaseError::fail(format!("{error}\nstored:\n{}", stored.join("\n")))
            })?;
        }
    }
    Ok(())
}

fn repair() -> Options {
    Options { with_repair: true, ..Options::default() }
}

/// Checks that a repair does not change items that the provider accepts.
fn check_unchanged(history: &History) -> Result<(), TestCaseError> {
    for target in PROVIDERS {
        let items = render(history, target, &Options::default());
        if is_unchanged_by_repair(target, &items) {
            prop_assert_eq!(&render(history, target, &repair()), &items, "{}", target.as_str());
        }
    }
    Ok(())
}

/// Returns `true` if the provider accepts the items, and the conversation begins with a user. `OpenAI` also accepts others.
fn is_unchanged_by_repair(target: Format, items: &[Value]) -> bool {
    let role = |item: &Value| item["role"].as_str().unwrap_or("user").to_owned();
    let first = items.iter().map(role).find(|role| !matches!(role.as_str(), "system" | "developer"));
    first.is_none_or(|role| role == "user") && acceptors::check(target.as_str(), items).is_ok()
}

#[test]
fn a_repaired_history_is_accepted_in_every_format() {
    for format in PROVIDERS {
        let inputs = interrupted_turns(&one_format(format));
        hold(&inputs, |(turns, interruptions)| check_repaired(&write_interrupted(turns, interruptions)));
    }
}

#[test]
fn a_repaired_history_in_mixed_formats_is_accepted_in_every_format() {
    let inputs = interrupted_turns(&any_format());
    hold(&inputs, |(turns, interruptions)| check_repaired(&write_interrupted(turns, interruptions)));
}

#[test]
fn a_repair_does_not_change_an_accepted_history() {
    hold_in_each_format(|_, written| check_unchanged(&written.history));
    hold_in_mixed_formats(|written| check_unchanged(&written.history));
}

#[test]
fn a_repair_does_not_change_an_interrupted_history_that_is_accepted() {
    let inputs = interrupted_turns(&any_format());
    hold(&inputs, |(turns, interruptions)| check_unchanged(&write_interrupted(turns, interruptions)));
}
