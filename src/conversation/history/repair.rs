//! Repairs a history that its provider would reject: interrupted tool calls get a result, orphaned results become text, items
//! and texts without content are removed, and the first turn is a user's.

use std::collections::VecDeque;

use serde_json::{Map, Value, json};

use super::join::{Item, join_assistant};
use crate::conversation::format::Format;

/// The result of a call that was interrupted.
const INTERRUPTED: &str = "[no result: the tool call was interrupted]";
/// The first turn of a user, if the conversation begins with the assistant.
const CONVERSATION_START: &str = "[the conversation begins with the assistant]";

/// Repairs the items of a history in the target format, which must not be `acontext`. Items that the provider accepts are
/// unchanged.
pub(super) fn repair(target: Format, mut items: Vec<Item>) -> Vec<Item> {
    items.retain_mut(|item| clean(target, &mut item.value));
    let mut repaired = match target {
        Format::OpenAi => repair_openai(items),
        Format::Anthropic => {
            place_system_messages(&mut items);
            repair_turns(target, items)
        }
        Format::Gemini => repair_turns(target, items),
        Format::Acontext => items,
    };
    let is_system = |item: &&Item| matches!(role(&item.value), "system" | "developer");
    let first = repaired.iter().take_while(is_system).count();
    if let Some(item) = repaired.get(first)
        && !is_user(target, &item.value)
    {
        repaired.insert(first, Item { message: item.message, value: user_text(target, CONVERSATION_START) });
    }
    repaired
}

/// Makes system messages a user's where Anthropic rejects them: it accepts one only after a message of the user, and only as the
/// last message or before one of the assistant (page "Mid-conversation system messages").
fn place_system_messages(items: &mut [Item]) {
    for index in 0..items.len() {
        let follows_user = index > 0 && role(&items[index - 1].value) == "user";
        let is_followed = items.get(index + 1).is_none_or(|next| role(&next.value) == "assistant");
        if role(&items[index].value) == "system" && !(follows_user && is_followed) {
            items[index].value["role"] = "user".into();
        }
    }
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

/// Returns `true` for an item of a user. In the Gemini format, the role may be missing.
fn is_user(target: Format, item: &Value) -> bool {
    role(item) == "user" || (target == Format::Gemini && item.get("role").is_none())
}

/// Removes what the provider rejects because it is empty. Returns `false` if the item has no content.
fn clean(target: Format, item: &mut Value) -> bool {
    let Value::Object(item) = item else { return true };
    let key = list_key(target);
    let is_empty = match item.get_mut(key) {
        Some(Value::Array(entries)) => {
            entries.retain(|entry| !is_empty_entry(target, entry));
            entries.is_empty()
        }
        Some(Value::String(text)) => is_empty_text(target, text),
        content => content.is_none_or(|content| content.is_null()),
    };
    match target {
        Format::OpenAi => clean_openai(item, is_empty),
        // Gemini's API documents only the roles of users and models.
        Format::Gemini if item.get("role").is_some_and(|role| role == "function") => {
            item.insert("role".into(), "user".into());
            !is_empty
        }
        _ => !is_empty,
    }
}

/// Anthropic rejects texts without visible characters, the other providers only empty ones.
fn is_empty_text(target: Format, text: &str) -> bool {
    if target == Format::Anthropic { text.trim().is_empty() } else { text.is_empty() }
}

/// Returns `true` for an entry of a message's content that the provider rejects.
fn is_empty_entry(target: Format, entry: &Value) -> bool {
    let is_empty_text = || entry.get("text").and_then(Value::as_str).is_some_and(|text| is_empty_text(target, text));
    match target {
        Format::Anthropic => string_at(entry, "type") == "text" && is_empty_text(),
        // At the end of a stream, a text without content has a signature.
        Format::Gemini if entry.get("thoughtSignature").is_some() => false,
        Format::Gemini => entry.as_object().is_some_and(Map::is_empty) || is_empty_text(),
        Format::OpenAi | Format::Acontext => false,
    }
}

/// Removes an empty list of calls, and replaces the empty content of a message that must have the key.
fn clean_openai(item: &mut Map<String, Value>, is_empty: bool) -> bool {
    if item.get("tool_calls").and_then(Value::as_array).is_some_and(Vec::is_empty) {
        item.remove("tool_calls");
    }
    let fields = ["tool_calls", "function_call", "refusal", "audio", "reasoning_content"];
    let has_fields = fields.iter().any(|field| item.get(*field).is_some_and(|value| !value.is_null()));
    let is_invalid = item.get("content").is_none_or(|content| content.is_array() || content.is_null());
    match item.get("role").and_then(Value::as_str) {
        // A tool may return nothing.
        Some("tool") if is_empty && is_invalid => {
            item.insert("content".into(), "".into());
        }
        Some("tool" | "function") => {}
        _ if is_empty && !has_fields => return false,
        _ if is_empty && item.get("content").is_some_and(Value::is_array) => {
            item.insert("content".into(), Value::Null);
        }
        _ => {}
    }
    true
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
        if is_user(target, &item.value) {
            // The results that belong to a call are repaired together with it.
            replace_orphans(target, &mut item.value, &mut Vec::new());
            repaired.push(item);
            continue;
        }
        let mut open = calls_of(target, &item.value);
        let message = item.message;
        if target == Format::Gemini && !open.is_empty() {
            // Gemini's API rejects calls that directly follow another content of the model.
            let user = repaired.iter().rposition(|previous| is_user(target, &previous.value));
            let mut contents = repaired.split_off(user.map_or(0, |user| user + 1));
            contents.push(item);
            repaired.append(&mut join_assistant(target, contents));
        } else {
            repaired.push(item);
        }
        if open.is_empty() {
            continue;
        }
        let next = items.pop_front_if(|next| is_user(target, &next.value));
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
                let matches = |call: &OpenCall| call.id == id && call.name == name;
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
mod tests;
