//! Rules for the parts of a response that the next request repeats, which both clients share: providers reject a request whose
//! earlier messages have repeated ids of tool calls, invalid names of tools or invalid arguments.

use std::collections::HashSet;

use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use super::ChatMessage;
use crate::json;

/// The maximum length of the name of a tool: that of `OpenAI`, which is the shortest.
const MAX_NAME_LEN: usize = 64;

/// The maximum number of characters of the name of a model. A report of the model usage contains each name.
const MAX_MODEL_NAME_CHARS: usize = 200;

/// Returns the ids of all tool calls of a conversation.
pub(super) fn call_ids(messages: &[ChatMessage]) -> HashSet<String> {
    let calls = messages.iter().flat_map(|message| match message {
        ChatMessage::Assistant(message) => message.tool_calls.as_slice(),
        ChatMessage::User(_) | ChatMessage::ToolResults(_) => &[],
    });
    calls.map(|call| call.id.clone()).collect()
}

/// Assigns the ids of the tool calls of a response.
pub(super) struct CallIds<'a> {
    /// The ids of the conversation before the response.
    used: &'a HashSet<String>,
    assigned: HashSet<String>,
}

impl<'a> CallIds<'a> {
    pub(super) fn new(used: &'a HashSet<String>) -> Self {
        Self { used, assigned: HashSet::new() }
    }

    /// Returns the id that the provider assigned, or a new one if it is empty or not unique within the conversation.
    pub(super) fn assign(&mut self, id: &str) -> String {
        let is_free = |id: &str| !id.is_empty() && !self.used.contains(id) && !self.assigned.contains(id);
        let first_number = self.used.len() + self.assigned.len() + 1;
        let id = if is_free(id) {
            id.to_owned()
        } else {
            let mut ids = (first_number..).map(|number| format!("call_{number}"));
            ids.find(|id| is_free(id)).unwrap_or_default()
        };
        self.assigned.insert(id.clone());
        id
    }
}

/// Returns `true` if a text is a JSON object.
pub(super) fn is_json_object(text: &str) -> bool {
    json::parse(text.as_bytes()).is_ok_and(|value| value.is_object())
}

/// Returns the name of a tool as providers accept it. A model may call a tool that does not exist, with any name.
pub(super) fn tool_name(name: &str) -> String {
    let name = name.chars().take(MAX_NAME_LEN);
    let name: String = name.map(|c| if c.is_ascii_alphanumeric() || "_-".contains(c) { c } else { '_' }).collect();
    if name.is_empty() { "unknown".into() } else { name }
}

/// Returns the name of the model that a response reports, without control characters and cut to [`MAX_MODEL_NAME_CHARS`], or that
/// of the requested model if the response reports none.
pub(super) fn model_name(reported: Option<&Value>, requested: &str) -> String {
    let reported = reported.and_then(Value::as_str).unwrap_or_default();
    let name: String = reported.chars().filter(|c| !c.is_control()).take(MAX_MODEL_NAME_CHARS).collect();
    if name.trim().is_empty() { requested.to_owned() } else { name }
}

/// Returns a value as [`super::AssistantMessage::raw`].
pub(super) fn to_raw(value: &Value) -> Option<Box<RawValue>> {
    to_raw_value(value).ok()
}

/// Returns a number of tokens. Some servers report it as a fraction.
pub(super) fn token_count(value: &Value) -> Option<u32> {
    let count = value.as_u64().or_else(|| {
        let count = value.as_f64().filter(|count| *count >= 0.0)?.min(u32::MAX.into());
        format!("{count:.0}").parse().ok()
    })?;
    Some(u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ids_are_unique_within_the_conversation() {
        let used = HashSet::from(["a".to_owned(), "call_3".to_owned()]);
        let mut ids = CallIds::new(&used);
        assert_eq!(["b", "", "a", "b", "c"].map(|id| ids.assign(id)), ["b", "call_4", "call_5", "call_6", "c"]);
        assert_eq!(CallIds::new(&HashSet::new()).assign(""), "call_1");
    }

    #[test]
    fn names_are_reduced_to_what_providers_accept() {
        assert_eq!(tool_name("insert_task"), "insert_task");
        assert_eq!(tool_name("functions.insert task"), "functions_insert_task");
        assert_eq!(tool_name(""), "unknown");
        assert_eq!(tool_name(&"é".repeat(100)).len(), 64);
    }

    #[test]
    fn reported_models_can_be_stored() {
        for (reported, name) in [
            (json!("gpt\u{0}-4\n"), "gpt-4"),
            (json!("\u{0}"), "requested"),
            (json!(7), "requested"),
            (json!("é".repeat(300)), "é".repeat(200).as_str()),
        ] {
            assert_eq!(model_name(Some(&reported), "requested"), name);
        }
    }

    #[test]
    fn token_counts_are_numbers_that_are_not_negative() {
        for (value, count) in [
            (json!(7), Some(7)),
            (json!(7.0), Some(7)),
            (json!(1e20), Some(u32::MAX)),
            (json!(-1), None),
            (json!("7"), None),
        ] {
            assert_eq!(token_count(&value), count, "{value}");
        }
    }
}
