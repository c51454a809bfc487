//! Pairs tool results with their calls, and converts the ids of both to ids that the target accepts.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde_json::{Map, Value};
use uuid::Uuid;

use super::call_ids::{all_ids, convert_call_id, generate_call_id};
use super::earlier_calls::EarlierCalls;
use crate::conversation::format::Format;
use crate::conversation::parts::{Part, PartKind, Role};

/// A call that precedes the current message.
#[derive(Clone, Debug)]
struct KnownCall {
    /// The id of the call in the target format.
    id: String,
    name: String,
    /// The index of the call's message in the history; `None` if it precedes the first message.
    message: Option<usize>,
}

/// The calls of the messages so far. Messages must be added in their order.
pub(super) struct CallPairing {
    target: Format,
    earlier_calls: Arc<EarlierCalls>,
    /// The number of messages so far.
    message_count: usize,
    /// The calls by their ids. A client that has read a call in another format may name it by its id in that format, so each call
    /// has several ids. If several calls have the same id, this is the last one.
    calls: HashMap<String, KnownCall>,
    /// The calls that were stored without an id and have no result yet.
    calls_without_id: VecDeque<KnownCall>,
}

impl CallPairing {
    /// Begins with the calls that precede the first message.
    pub(super) fn new(target: Format, earlier_calls: Arc<EarlierCalls>) -> Self {
        Self { target, earlier_calls, message_count: 0, calls: HashMap::new(), calls_without_id: VecDeque::new() }
    }

    /// Returns the last call with the given id.
    fn find_call(&self, id: &str) -> Option<KnownCall> {
        self.calls.get(id).cloned().or_else(|| {
            let call = self.earlier_calls.find(id)?;
            let id = convert_call_id(self.target, &call.id).into_owned();
            Some(KnownCall { id, name: call.name.clone(), message: None })
        })
    }

    /// Adds the calls of a message, and pairs its results. Sets the ids of both, and the function name of each result whose call
    /// is known. The id of an orphaned result without an id stays empty.
    ///
    /// `is_own` means that the message is stored in the target format and that the ids of its calls stay as they are. Returns the
    /// index of the last message that has a call with a result in this message.
    pub(super) fn add(&mut self, message: Uuid, role: Role, is_own: bool, parts: &mut [Part]) -> Option<usize> {
        let mut call_count = 0;
        let mut result: Option<PairedResult> = None;
        let mut last_call_message = None;
        for part in parts {
            match part.kind {
                PartKind::ToolCall if role == Role::Assistant => {
                    result = None;
                    self.add_call(message, call_count, is_own, part);
                    call_count += 1;
                }
                PartKind::ToolResult => {
                    let (paired, call_message) = self.pair_result(part);
                    last_call_message = last_call_message.max(call_message);
                    result = Some(paired);
                }
                _ => {
                    if let Some(result) = &result {
                        result.set_attachment_id(part);
                    }
                }
            }
        }
        self.message_count += 1;
        last_call_message
    }

    fn add_call(&mut self, message: Uuid, index: usize, is_own: bool, part: &mut Part) {
        let stored_id = string_at(&part.meta, "id").to_owned();
        let name = string_at(&part.meta, "name").to_owned();
        // Some servers number the calls of each response, but providers require different ids.
        let is_repeated = self.calls.contains_key(&stored_id) || self.earlier_calls.find(&stored_id).is_some();
        let new_id = (stored_id.is_empty() || is_repeated).then(|| generate_call_id(message, index));
        let original_id = new_id.as_ref().unwrap_or(&stored_id);
        let id = if is_own { stored_id.clone() } else { convert_call_id(self.target, original_id).into_owned() };
        let call = KnownCall { id: id.clone(), name, message: Some(self.message_count) };
        self.calls.extend(all_ids(original_id).map(|id| (id.into_owned(), call.clone())));
        if stored_id.is_empty() {
            self.calls_without_id.push_back(call);
        } else if is_repeated {
            self.calls.insert(stored_id, call);
        }
        part.meta.insert("id".into(), id.into());
    }

    /// Returns the paired result, and the index of its call's message if it is known.
    fn pair_result(&mut self, part: &mut Part) -> (PairedResult, Option<usize>) {
        let original_id = string_at(&part.meta, "tool_call_id").to_owned();
        let function = ["function_name", "name"].map(|key| string_at(&part.meta, key));
        let function = function.into_iter().find(|name| !name.is_empty()).unwrap_or_default().to_owned();
        let call = if original_id.is_empty() {
            self.take_call_without_id(&function)
        } else {
            let call = self.find_call(&original_id);
            call.or_else(|| {
                let id = convert_call_id(self.target, &original_id).into_owned();
                Some(KnownCall { id, name: String::new(), message: None })
            })
        };
        let (id, name, message) = call.map(|call| (call.id, call.name, call.message)).unwrap_or_default();
        if !id.is_empty() {
            part.meta.insert("tool_call_id".into(), id.as_str().into());
        }
        if function.is_empty() && !name.is_empty() {
            part.meta.insert("name".into(), name.into());
        }
        (PairedResult { original_id, function, id }, message)
    }

    /// Removes and returns the oldest call without an id: of this function, or of any function if the name is empty.
    fn take_call_without_id(&mut self, function: &str) -> Option<KnownCall> {
        let matches = |call: &KnownCall| function.is_empty() || call.name == function;
        let index = self.calls_without_id.iter().position(matches)?;
        self.calls_without_id.remove(index)
    }
}

/// A result whose attachments follow in the same message.
struct PairedResult {
    original_id: String,
    function: String,
    id: String,
}

impl PairedResult {
    /// Changes the reference of a part to the call if the part is an attachment of the result.
    fn set_attachment_id(&self, part: &mut Part) {
        let meta = &mut part.meta;
        let is_attachment = match meta.get("tool_call_id").and_then(Value::as_str) {
            Some(id) => id == self.original_id,
            None => meta.get("function_name").is_some_and(|name| *name == *self.function),
        };
        if is_attachment && !self.id.is_empty() {
            meta.insert("tool_call_id".into(), self.id.as_str().into());
        }
    }
}

fn string_at<'a>(meta: &'a Map<String, Value>, key: &str) -> &'a str {
    meta.get(key).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::conversation::format::to_parts;

    fn pair(target: Format, messages: &[(Format, Value)]) -> Vec<Vec<Part>> {
        let mut pairing = CallPairing::new(target, Arc::default());
        let add = |(index, (format, body)): (usize, &(Format, Value))| {
            let role = match body["role"].as_str() {
                Some("assistant" | "model") => Role::Assistant,
                _ => Role::User,
            };
            let mut parts = to_parts(*format, body.clone());
            pairing.add(Uuid::from_u128(index as u128), role, *format == target, &mut parts);
            parts
        };
        messages.iter().enumerate().map(add).collect()
    }

    fn call_id(part: &Part) -> &str {
        string_at(&part.meta, if part.kind == PartKind::ToolCall { "id" } else { "tool_call_id" })
    }

    fn openai_call(id: &Value, name: &str) -> Value {
        json!({"id": id, "type": "function", "function": {"name": name, "arguments": "{}"}})
    }

    #[test]
    fn a_result_has_the_converted_id_of_its_call() {
        let call = json!({"role": "assistant", "tool_calls": [openai_call(&json!("look:0"), "look")]});
        let result = json!({"role": "tool", "tool_call_id": "look:0", "content": "x"});
        let parts = pair(Format::Anthropic, &[(Format::OpenAi, call), (Format::OpenAi, result)]);
        let id = call_id(&parts[0][0]);
        assert!(id != "look:0" && id.starts_with("look_0_x"), "{id}");
        assert_eq!(call_id(&parts[1][0]), id);
        assert_eq!(parts[1][0].meta["name"], "look");
    }

    #[test]
    fn calls_without_an_id_get_one_and_are_paired_in_order() {
        let calls =
            json!({"role": "assistant", "tool_calls": [openai_call(&json!(""), "f"), openai_call(&json!(null), "f")]});
        let result = |text| json!({"role": "tool", "tool_call_id": "", "content": text});
        let parts = pair(
            Format::Anthropic,
            &[(Format::OpenAi, calls), (Format::OpenAi, result("1")), (Format::OpenAi, result("2"))],
        );
        let [first, second] = [0, 1].map(|index| call_id(&parts[0][index]));
        assert!(first.starts_with("call_") && first != second, "{first} {second}");
        assert_eq!([call_id(&parts[1][0]), call_id(&parts[2][0])], [first, second]);
    }

    #[test]
    fn a_deprecated_function_call_is_paired_by_name() {
        let call = json!({"role": "assistant", "function_call": {"name": "look", "arguments": "{}"}});
        let result = json!({"role": "function", "name": "look", "content": "x"});
        let parts = pair(Format::Gemini, &[(Format::OpenAi, call), (Format::OpenAi, result)]);
        assert!(!call_id(&parts[0][0]).is_empty());
        assert_eq!(call_id(&parts[1][0]), call_id(&parts[0][0]));
    }

    #[test]
    fn a_result_may_name_its_call_by_the_id_of_another_format() {
        let call = json!({"role": "assistant", "tool_calls": [openai_call(&json!("look:0"), "look")]});
        let id = convert_call_id(Format::Anthropic, "look:0").into_owned();
        let result = json!({"role": "user", "content": [{"type": "tool_result", "tool_use_id": id, "content": "x"}]});
        let parts = pair(Format::OpenAi, &[(Format::OpenAi, call), (Format::Anthropic, result)]);
        assert_eq!([call_id(&parts[0][0]), call_id(&parts[1][0])], ["look:0", "look:0"]);
    }

    #[test]
    fn an_orphaned_result_without_an_id_stays_without_one() {
        let result = json!({"role": "tool", "tool_call_id": "", "content": "x"});
        let parts = pair(Format::Anthropic, &[(Format::OpenAi, result)]);
        assert_eq!(call_id(&parts[0][0]), "");
    }

    #[test]
    fn attachments_keep_referring_to_their_result() {
        let call = json!({"role": "assistant", "tool_calls": [openai_call(&json!("look:0"), "look")]});
        let image = json!({"type": "image_url", "image_url": {"url": "https://example.com/x.png"}});
        let result =
            json!({"role": "tool", "tool_call_id": "look:0", "content": [{"type": "text", "text": "x"}, image]});
        let parts = pair(Format::Anthropic, &[(Format::OpenAi, call), (Format::OpenAi, result)]);
        assert_eq!(parts[1][1].meta["tool_call_id"], call_id(&parts[1][0]));
    }
}
