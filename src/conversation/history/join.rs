//! Joins the items of a tool turn into the items that the target requires.

use serde_json::{Map, Value};

use crate::conversation::format::{Format, is_placeholder};

/// An item in the target format, and the index of the message from which it comes. An item of several messages has the index of
/// the last one.
#[derive(Debug, PartialEq)]
pub struct Item {
    pub message: usize,
    pub value: Value,
}

/// Joins the items of the assistant's messages of a tool turn, so that all calls are in one item.
pub(super) fn join_assistant(target: Format, items: Vec<Item>) -> Vec<Item> {
    // In the OpenAI format, a message of an assistant may also have become results, which stay separate.
    let (items, others): (Vec<_>, Vec<_>) = items.into_iter().partition(|item| !is_openai_result(&item.value));
    join_items(target, items).into_iter().chain(others).collect()
}

/// Joins the items of the user's messages of a tool turn. In the `OpenAI` format, results are separate items, and precede all
/// other items. In the other formats, the result is one item, in which the results precede everything else.
pub(super) fn join_user(target: Format, items: Vec<Item>) -> Vec<Item> {
    if target == Format::OpenAi {
        let (results, others): (Vec<_>, Vec<_>) = items.into_iter().partition(|item| is_openai_result(&item.value));
        return merge_openai_results(results).into_iter().chain(others).collect();
    }
    let mut joined = join_items(target, items);
    if let Some(joined) = &mut joined {
        move_results_first(target, &mut joined.value);
        if target == Format::Anthropic {
            merge_anthropic_results(&mut joined.value);
        }
    }
    joined.into_iter().collect()
}

/// Merges the results of the same call, because `OpenAI` accepts only one. Gemini sends several if a tool continues.
fn merge_openai_results(results: Vec<Item>) -> Vec<Item> {
    let mut merged: Vec<Item> = Vec::with_capacity(results.len());
    for item in results {
        let same_call = |other: &&mut Item| {
            let id = item.value.get("tool_call_id");
            id.is_some() && other.value.get("tool_call_id") == id
        };
        match merged.iter_mut().find(same_call) {
            Some(first) => {
                first.message = item.message;
                append(Format::OpenAi, &mut first.value, item.value);
            }
            None => merged.push(item),
        }
    }
    merged
}

/// Merges the results of the same call, because Anthropic accepts only one.
fn merge_anthropic_results(item: &mut Value) {
    let Some(Value::Array(blocks)) = item.get_mut("content") else { return };
    let mut merged: Vec<Value> = Vec::with_capacity(blocks.len());
    for block in blocks.drain(..) {
        let same_call = |other: &&mut Value| {
            let id = block.get("tool_use_id");
            id.is_some() && other.get("tool_use_id") == id
        };
        match merged.iter_mut().find(same_call) {
            Some(first) => append(Format::Anthropic, first, block),
            None => merged.push(block),
        }
    }
    *blocks = merged;
}

/// Joins items of one role. A placeholder for a message without content is left out, unless all items are placeholders.
fn join_items(target: Format, mut items: Vec<Item>) -> Option<Item> {
    let message = items.last()?.message;
    if !items.iter().all(|item| is_placeholder(target, &item.value)) {
        items.retain(|item| !is_placeholder(target, &item.value));
    }
    let mut items = items.into_iter();
    let mut joined = items.next()?;
    joined.message = message;
    for item in items {
        append(target, &mut joined.value, item.value);
    }
    Some(joined)
}

fn is_openai_result(item: &Value) -> bool {
    matches!(item.get("role").and_then(Value::as_str), Some("tool" | "function"))
}

/// Moves the results in an item before everything else.
fn move_results_first(target: Format, item: &mut Value) {
    let (key, is_result): (_, fn(&Value) -> bool) = match target {
        Format::Anthropic => ("content", |block| block.get("type").is_some_and(|kind| kind == "tool_result")),
        Format::Gemini => ("parts", |part| part.get("functionResponse").is_some()),
        Format::OpenAi | Format::Acontext => return,
    };
    if let Some(Value::Array(list)) = item.get_mut(key) {
        list.sort_by_key(|entry| !is_result(entry));
    }
}

/// Appends an item to another one of the same role.
fn append(target: Format, joined: &mut Value, item: Value) {
    let (Value::Object(joined), Value::Object(item)) = (joined, item) else { return };
    match target {
        Format::Gemini => append_list(joined, "parts", item),
        Format::Anthropic | Format::Acontext => append_list(joined, "content", item),
        Format::OpenAi => append_openai(joined, item),
    }
}

/// Appends the list at `key`. Other fields of the item are added if they are missing.
fn append_list(joined: &mut Map<String, Value>, key: &str, mut item: Map<String, Value>) {
    let mut list = to_list(joined.remove(key));
    list.append(&mut to_list(item.remove(key)));
    joined.insert(key.into(), Value::Array(list));
    for (key, value) in item {
        joined.entry(key).or_insert(value);
    }
}

/// Converts content to a list: a string becomes a text block.
fn to_list(content: Option<Value>) -> Vec<Value> {
    match content {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(list)) => list,
        Some(Value::String(text)) => {
            let fields = [("type", Value::from("text")), ("text", text.into())];
            vec![Value::Object(fields.map(|(key, value)| (key.to_owned(), value)).into_iter().collect())]
        }
        Some(other) => vec![other],
    }
}

/// Appends the content and the tool calls of a message. Other fields, such as `refusal`, are added if they are missing.
fn append_openai(joined: &mut Map<String, Value>, mut item: Map<String, Value>) {
    let contents = [joined.remove("content"), item.remove("content")];
    let content = match contents {
        [Some(first), Some(second)] if !first.is_null() && !second.is_null() => {
            let mut list = to_list(Some(first));
            list.append(&mut to_list(Some(second)));
            Some(Value::Array(list))
        }
        [first, second] => first.filter(|content| !content.is_null()).or(second),
    };
    joined.extend(content.map(|content| ("content".to_owned(), content)));
    if let Some(Value::Array(mut calls)) = item.remove("tool_calls") {
        match joined.get_mut("tool_calls") {
            Some(Value::Array(joined_calls)) => joined_calls.append(&mut calls),
            _ => {
                joined.insert("tool_calls".into(), Value::Array(calls));
            }
        }
    }
    // Each message of a turn that is stored block by block has thoughts of its own.
    if let Some(Value::String(thought)) = item.remove("reasoning_content") {
        let joined_thought = match joined.remove("reasoning_content") {
            Some(Value::String(before)) => format!("{before}\n{thought}"),
            _ => thought,
        };
        joined.insert("reasoning_content".into(), joined_thought.into());
    }
    for (key, value) in item {
        joined.entry(key).or_insert(value);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn items(values: &[Value]) -> Vec<Item> {
        values.iter().enumerate().map(|(message, value)| Item { message, value: value.clone() }).collect()
    }

    #[test]
    fn openai_calls_are_joined_with_the_texts_between_them() {
        let call = |id: &str| json!({"role": "assistant", "content": null, "tool_calls": [{"id": id}]});
        let text = json!({"role": "assistant", "content": "and"});
        let joined = join_assistant(Format::OpenAi, items(&[call("a"), text.clone(), call("b")]));
        let expected = json!({"role": "assistant", "content": "and", "tool_calls": [{"id": "a"}, {"id": "b"}]});
        assert_eq!(joined, [Item { message: 2, value: expected }]);
        let joined = join_assistant(Format::OpenAi, items(&[text.clone(), text]));
        let block = json!({"type": "text", "text": "and"});
        assert_eq!(joined[0].value["content"], json!([block, block]));
    }

    #[test]
    fn placeholders_of_messages_without_content_are_left_out() {
        let empty = json!({"role": "assistant", "content": "[no content]"});
        let call = json!({"role": "assistant", "content": null, "tool_calls": [{"id": "a"}]});
        let joined = join_assistant(Format::OpenAi, items(&[empty.clone(), call.clone(), empty.clone()]));
        assert_eq!(joined, [Item { message: 2, value: call }]);
        let joined = join_assistant(Format::OpenAi, items(&[empty.clone(), empty]));
        assert_eq!(joined.len(), 1);
    }

    #[test]
    fn openai_results_precede_other_messages_and_stay_separate() {
        let result = |id: &str| json!({"role": "tool", "tool_call_id": id, "content": ""});
        let text = json!({"role": "user", "content": "wait"});
        let joined = join_user(Format::OpenAi, items(&[result("a"), text, result("b")]));
        assert_eq!(joined.iter().map(|item| item.message).collect::<Vec<_>>(), [0, 2, 1]);
    }

    #[test]
    fn results_of_the_same_call_are_merged() {
        let result = |text: &str| json!({"role": "tool", "tool_call_id": "a", "content": text});
        let joined = join_user(Format::OpenAi, items(&[result("1"), result("2")]));
        let texts = json!([{"type": "text", "text": "1"}, {"type": "text", "text": "2"}]);
        let merged = json!({"role": "tool", "tool_call_id": "a", "content": texts});
        assert_eq!(joined, [Item { message: 1, value: merged }]);
        let result = |text: &str| json!({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": text}]});
        let joined = join_user(Format::Anthropic, items(&[result("1"), result("2")]));
        assert_eq!(joined[0].value["content"], json!([{"type": "tool_result", "tool_use_id": "a", "content": texts}]));
    }

    #[test]
    fn results_precede_texts_in_the_other_formats() {
        let result = json!({"type": "tool_result", "tool_use_id": "a"});
        let text = json!({"role": "user", "content": "wait"});
        let joined = join_user(Format::Anthropic, items(&[text, json!({"role": "user", "content": [result]})]));
        let text = json!({"type": "text", "text": "wait"});
        assert_eq!(joined, [Item { message: 1, value: json!({"role": "user", "content": [result, text]}) }]);
        let response = json!({"functionResponse": {"name": "f"}});
        let parts = json!({"role": "user", "parts": [{"text": "wait"}, response]});
        let joined = join_user(Format::Gemini, items(&[parts]));
        assert_eq!(joined[0].value["parts"], json!([response, {"text": "wait"}]));
    }
}
