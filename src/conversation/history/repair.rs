//! Repairs a history that its provider would reject: interrupted tool calls get a result, orphaned results become text, items
//! without content are removed, and the first turn is a user's.

use std::collections::VecDeque;

use serde_json::{Map, Value, json};

use super::join::Item;
use crate::conversation::format::Format;

/// The result of a call that was interrupted.
const INTERRUPTED: &str = "[no result: the tool call was interrupted]";
/// The first turn of a user, if the conversation begins with the assistant.
const CONVERSATION_START: &str = "[the conversation begins with the assistant]";

/// Repairs the items of a history in the target format, which must not be `acontext`. Items that the provider accepts are
/// unchanged.
pub(super) fn repair(target: Format, items: Vec<Item>) -> Vec<Item> {
    let items = items.into_iter().filter(|item| has_content(target, &item.value));
    let mut repaired = match target {
        Format::OpenAi => repair_openai(items.collect()),
        Format::Anthropic | Format::Gemini => repair_turns(target, items.collect()),
        Format::Acontext => items.collect(),
    };
    let is_system = |item: &&Item| matches!(role(&item.value), "system" | "developer");
    let first = repaired.iter().take_while(is_system).count();
    if let Some(item) = repaired.get(first)
        && role(&item.value) != "user"
    {
        repaired.insert(first, Item { message: item.message, value: user_text(target, CONVERSATION_START) });
    }
    repaired
}

fn role(item: &Value) -> &str {
    item.get("role").and_then(Value::as_str).unwrap_or_default()
}

fn string_at<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn list_key(target: Format) -> &'static str {
    if target == Format::Gemini { "parts" } else { "content" }
}

/// Returns `true` if an item has content other than blank texts. The results of an `OpenAI` message may be empty.
fn has_content(target: Format, item: &Value) -> bool {
    let is_blank = |text: &Value| text.as_str().is_some_and(|text| text.trim().is_empty());
    let is_blank_entry = |entry: &Value| match entry.as_object() {
        Some(entry) if entry.contains_key("thoughtSignature") => false,
        Some(entry) => entry.is_empty() || entry.get("text").is_some_and(is_blank),
        None => is_blank(entry),
    };
    let list = match item.get(list_key(target)) {
        Some(Value::Array(entries)) => !entries.iter().all(is_blank_entry),
        Some(Value::Null) | None => false,
        Some(text) => !is_blank(text),
    };
    let fields = ["tool_calls", "function_call", "refusal", "audio", "reasoning_content"];
    let is_result = matches!(role(item), "tool" | "function");
    list || is_result || fields.iter().any(|field| item.get(field).is_some_and(|value| !value.is_null()))
}

fn user_text(target: Format, text: &str) -> Value {
    match target {
        Format::Gemini => json!({"role": "user", "parts": [{"text": text}]}),
        _ => json!({"role": "user", "content": text}),
    }
}

/// Returns the text that replaces an orphaned result.
fn orphan_text(result: &str) -> String {
    format!("[result of a tool call that is not in this conversation] {result}")
}

/// Repairs `OpenAI` messages, whose results are separate items directly after the calls.
fn repair_openai(items: Vec<Item>) -> Vec<Item> {
    let mut repaired = Vec::with_capacity(items.len());
    let mut turn = OpenAiTurn::default();
    for mut item in items {
        let call = match role(&item.value) {
            "tool" => OpenAiCall::Id(string_at(&item.value, "tool_call_id").to_owned()),
            "function" => OpenAiCall::Function(string_at(&item.value, "name").to_owned()),
            _ => {
                turn.end(&mut repaired);
                turn.begin(&item.value);
                turn.last_message = item.message;
                repaired.push(item);
                continue;
            }
        };
        turn.last_message = item.message;
        if let Some(index) = turn.open_calls.iter().position(|open| *open == call) {
            turn.open_calls.remove(index);
            repaired.push(item);
        } else {
            let text = orphan_text(&text_of(item.value.get("content").unwrap_or(&Value::Null)));
            item.value = user_text(Format::OpenAi, &text);
            turn.orphans.push(item);
        }
    }
    turn.end(&mut repaired);
    repaired
}

/// The call that an `OpenAI` result names: by its id, or by its function if the call is a deprecated function call.
#[derive(PartialEq)]
enum OpenAiCall {
    Id(String),
    Function(String),
}

/// A message with calls and the results after it.
#[derive(Default)]
struct OpenAiTurn {
    /// The calls that have no result yet.
    open_calls: Vec<OpenAiCall>,
    /// The texts of orphaned results. They follow the results of the turn.
    orphans: Vec<Item>,
    last_message: usize,
}

impl OpenAiTurn {
    fn begin(&mut self, item: &Value) {
        let calls = item.get("tool_calls").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        self.open_calls = calls.iter().map(|call| OpenAiCall::Id(string_at(call, "id").to_owned())).collect();
        let function_call =
            item.get("function_call").map(|call| OpenAiCall::Function(string_at(call, "name").to_owned()));
        self.open_calls.extend(function_call);
    }

    /// Adds a result for each open call, and the orphans.
    fn end(&mut self, repaired: &mut Vec<Item>) {
        for call in self.open_calls.drain(..) {
            let value = match call {
                OpenAiCall::Id(id) => json!({"role": "tool", "tool_call_id": id, "content": INTERRUPTED}),
                OpenAiCall::Function(name) => json!({"role": "function", "name": name, "content": INTERRUPTED}),
            };
            repaired.push(Item { message: self.last_message, value });
        }
        repaired.append(&mut self.orphans);
    }
}

/// Repairs Anthropic or Gemini messages, whose results are together in the message after the calls.
fn repair_turns(target: Format, items: Vec<Item>) -> Vec<Item> {
    let mut repaired: Vec<Item> = Vec::with_capacity(items.len());
    let mut items: VecDeque<_> = items.into();
    while let Some(mut item) = items.pop_front() {
        if role(&item.value) == "user" {
            // The results that belong to a call are repaired together with it.
            replace_orphans(target, &mut item.value, &mut Vec::new());
            repaired.push(item);
            continue;
        }
        let mut open = calls_of(target, &item.value);
        let message = item.message;
        repaired.push(item);
        if open.is_empty() {
            continue;
        }
        let next = items.pop_front_if(|next| role(&next.value) == "user");
        let mut next = next.unwrap_or_else(|| Item { message, value: json!({"role": "user", list_key(target): []}) });
        replace_orphans(target, &mut next.value, &mut open);
        add_interrupted_results(target, &mut next.value, open);
        repaired.push(next);
    }
    repaired
}

/// A call without a result: its id, which may be missing in the Gemini format, and its name.
#[derive(PartialEq)]
struct OpenCall {
    id: String,
    name: String,
}

fn entries_of(target: Format, item: &Value) -> &[Value] {
    item.get(list_key(target)).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn calls_of(target: Format, item: &Value) -> Vec<OpenCall> {
    let call = |entry: &Value| {
        let call = match target {
            Format::Gemini => entry.get("functionCall")?,
            _ => Some(entry).filter(|entry| string_at(entry, "type") == "tool_use")?,
        };
        Some(OpenCall { id: string_at(call, "id").to_owned(), name: string_at(call, "name").to_owned() })
    };
    entries_of(target, item).iter().filter_map(call).collect()
}

/// Removes the open calls that have a result in the item. Replaces all other results with text.
fn replace_orphans(target: Format, item: &mut Value, open: &mut Vec<OpenCall>) {
    let Some(Value::Array(entries)) = item.get_mut(list_key(target)) else { return };
    let mut texts = Vec::new();
    entries.retain(|entry| {
        let (index, text) = match (target, entry.get("functionResponse")) {
            (Format::Gemini, Some(response)) => {
                let (id, name) = (string_at(response, "id"), string_at(response, "name"));
                let matches = |call: &OpenCall| if id.is_empty() { call.name == name } else { call.id == id };
                (open.iter().position(matches), response.get("response").map(Value::to_string).unwrap_or_default())
            }
            (Format::Anthropic, _) if string_at(entry, "type") == "tool_result" => {
                let id = string_at(entry, "tool_use_id");
                (open.iter().position(|call| call.id == id), text_of(entry.get("content").unwrap_or(&Value::Null)))
            }
            _ => return true,
        };
        match index {
            Some(index) => {
                open.remove(index);
            }
            None => texts.push(text_entry(target, &orphan_text(&text))),
        }
        index.is_some()
    });
    entries.append(&mut texts);
}

fn text_entry(target: Format, text: &str) -> Value {
    if target == Format::Gemini { json!({"text": text}) } else { json!({"type": "text", "text": text}) }
}

/// Adds a result for each open call, after the other results.
fn add_interrupted_results(target: Format, item: &mut Value, open: Vec<OpenCall>) {
    if open.is_empty() {
        return;
    }
    let results = open.into_iter().map(|OpenCall { id, name }| match target {
        Format::Gemini => {
            let mut response = Map::from_iter([("name".to_owned(), name.into())]);
            if !id.is_empty() {
                response.insert("id".into(), id.into());
            }
            response.insert("response".into(), json!({"error": INTERRUPTED}));
            json!({"functionResponse": response})
        }
        _ => json!({"type": "tool_result", "tool_use_id": id, "is_error": true, "content": INTERRUPTED}),
    });
    let is_result =
        |entry: &Value| entry.get("functionResponse").is_some() || string_at(entry, "type") == "tool_result";
    // The content of a user's message may be a string.
    let content = item.get_mut(list_key(target)).map(Value::take).unwrap_or_default();
    let mut entries = match content {
        Value::Array(entries) => entries,
        Value::String(text) => vec![text_entry(target, &text)],
        _ => Vec::new(),
    };
    let position = entries.iter().take_while(|entry| is_result(entry)).count();
    entries.splice(position..position, results);
    item[list_key(target)] = Value::Array(entries);
}

/// Returns the texts of a result's content, which is a string or a list of blocks.
fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => {
            let texts: Vec<_> =
                blocks.iter().map(|block| string_at(block, "text")).filter(|text| !text.is_empty()).collect();
            texts.join("\n")
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repaired(target: Format, values: Value) -> Vec<Value> {
        let Value::Array(values) = values else { panic!("not a list") };
        let items = values.into_iter().enumerate().map(|(message, value)| Item { message, value });
        repair(target, items.collect()).into_iter().map(|item| item.value).collect()
    }

    #[test]
    fn interrupted_openai_calls_get_results() {
        let call = |id: &str| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}});
        let user = json!({"role": "user", "content": "x"});
        let calls = json!({"role": "assistant", "tool_calls": [call("a"), call("b")]});
        let result = |id: &str, text: &str| json!({"role": "tool", "tool_call_id": id, "content": text});
        let messages = repaired(Format::OpenAi, json!([user, calls, result("b", "y"), user, result("a", "late")]));
        let late = json!({"role": "user", "content": orphan_text("late")});
        assert_eq!(messages, [user.clone(), calls, result("b", "y"), result("a", INTERRUPTED), user, late]);
    }

    #[test]
    fn interrupted_anthropic_calls_get_results() {
        let user = json!({"role": "user", "content": "x"});
        let call = json!({"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]});
        let messages = repaired(Format::Anthropic, json!([user, call, user, {"role": "assistant", "content": "z"}]));
        assert_eq!(messages[2]["content"][0]["tool_use_id"], "a");
        assert_eq!(messages[2]["content"][1]["text"], "x");
        let messages = repaired(Format::Anthropic, json!([user, call, call]));
        assert_eq!(messages.iter().map(role).collect::<Vec<_>>(), ["user", "assistant", "user", "assistant", "user"]);
    }

    #[test]
    fn interrupted_gemini_calls_get_results() {
        let user = json!({"role": "user", "parts": [{"text": "x"}]});
        let call =
            json!({"role": "model", "parts": [{"functionCall": {"name": "f"}}, {"functionCall": {"name": "g"}}]});
        let response = json!({"functionResponse": {"name": "g", "response": {}}});
        let messages = repaired(Format::Gemini, json!([user, call, {"role": "user", "parts": [response]}]));
        let interrupted = json!({"functionResponse": {"name": "f", "response": {"error": INTERRUPTED}}});
        assert_eq!(messages[2]["parts"], json!([response, interrupted]));
    }

    #[test]
    fn orphaned_results_become_text() {
        let result = json!({"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "y"}]});
        let messages = repaired(Format::Anthropic, json!([{"role": "user", "content": [result]}]));
        assert_eq!(messages[0]["content"], json!([{"type": "text", "text": orphan_text("y")}]));
    }

    #[test]
    fn empty_items_are_removed_and_the_first_turn_is_a_users() {
        let empty = json!({"role": "assistant", "content": []});
        let text = json!({"role": "assistant", "content": "x"});
        let start = json!({"role": "user", "content": CONVERSATION_START});
        assert_eq!(repaired(Format::Anthropic, json!([empty, text])), [start.clone(), text.clone()]);
        let system = json!({"role": "system", "content": "s"});
        assert_eq!(repaired(Format::OpenAi, json!([system, text])), [system.clone(), start, text]);
    }

    #[test]
    fn accepted_items_are_unchanged() {
        let history = json!([
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "y"}]},
            {"role": "assistant", "content": "z"},
        ]);
        assert_eq!(Value::Array(repaired(Format::Anthropic, history.clone())), history);
    }
}
