//! The formats of requests and responses of both APIs.

use axum::http::StatusCode;
use serde_json::{Value, json};

/// The API of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    OpenAi,
    Anthropic,
}

/// An answer of the model, independent of the API.
pub(super) struct Answer {
    pub text: String,
    /// The names and arguments of the tool calls. With the API of `OpenAI`, an object is sent as its text, and a string as it is.
    pub calls: Vec<(String, Value)>,
    /// The same id for all calls. Otherwise, each call has an id of its own.
    pub call_id: Option<String>,
    /// The token counts: of the request, how many of these are cached, and of the response.
    pub usage: Option<(u32, u32, u32)>,
    pub stop_reason: Option<String>,
    pub is_refusal: bool,
}

impl Default for Answer {
    fn default() -> Self {
        Self {
            text: String::new(),
            calls: Vec::new(),
            call_id: None,
            usage: Some((100, 0, 10)),
            stop_reason: None,
            is_refusal: false,
        }
    }
}

impl Wire {
    /// Both APIs, for scenarios that run with each of them.
    pub const ALL: [Self; 2] = [Self::OpenAi, Self::Anthropic];

    /// Returns the body of an answer to a request.
    pub(super) fn answer_body(self, answer: &Answer, request: &Value) -> Value {
        let round = request["messages"].as_array().map_or(0, Vec::len);
        let id = |index: usize| answer.call_id.clone().unwrap_or_else(|| format!("call_{round}_{index}_id"));
        match self {
            Self::OpenAi => openai_body(answer, id),
            Self::Anthropic => anthropic_body(answer, id),
        }
    }

    /// Returns the arguments and the stop reason of an answer that is cut off in the arguments of a call.
    pub(super) fn truncated(self, arguments: &str) -> (Value, &'static str) {
        match self {
            Self::OpenAi => (json!(arguments), "length"),
            Self::Anthropic => (json!({}), "max_tokens"),
        }
    }

    pub(super) fn error_response(self, status: u16, message: &str) -> (StatusCode, String) {
        let body = match self {
            Self::OpenAi => json!({"error": {"message": message, "type": "error", "param": null, "code": null}}),
            Self::Anthropic => json!({"type": "error", "error": {"type": "error", "message": message}}),
        };
        (StatusCode::from_u16(status).unwrap(), body.to_string())
    }

    pub(super) fn tool_names(self, body: &Value) -> Vec<&str> {
        let path = match self {
            Self::OpenAi => "/function/name",
            Self::Anthropic => "/name",
        };
        list(&body["tools"]).iter().filter_map(|tool| tool.pointer(path)?.as_str()).collect()
    }

    pub(super) fn system(self, body: &Value) -> String {
        match self {
            Self::OpenAi => {
                let messages = list(&body["messages"]).iter().filter(|message| message["role"] == "system");
                messages.map(|message| text(&message["content"])).collect()
            }
            Self::Anthropic => text(&body["system"]),
        }
    }

    pub(super) fn user_texts(body: &Value) -> Vec<String> {
        let messages = list(&body["messages"]).iter().filter(|message| message["role"] == "user");
        messages.map(|message| text(&message["content"])).filter(|text| !text.is_empty()).collect()
    }

    pub(super) fn tool_results(self, body: &Value) -> Vec<(String, String)> {
        let result = |result: &Value, id: &str| (text(&result[id]), text(&result["content"]));
        let messages = list(&body["messages"]).iter();
        match self {
            Self::OpenAi => messages
                .filter(|message| message["role"] == "tool")
                .map(|message| result(message, "tool_call_id"))
                .collect(),
            Self::Anthropic => {
                let blocks = messages.flat_map(|message| list(&message["content"]));
                blocks
                    .filter(|block| block["type"] == "tool_result")
                    .map(|block| result(block, "tool_use_id"))
                    .collect()
            }
        }
    }

    /// Returns the number of results at the end of the conversation.
    pub(super) fn last_result_count(self, body: &Value) -> usize {
        let messages = list(&body["messages"]);
        match self {
            Self::OpenAi => messages.iter().rev().take_while(|message| message["role"] == "tool").count(),
            Self::Anthropic => messages.last().map_or(0, |message| {
                list(&message["content"]).iter().filter(|block| block["type"] == "tool_result").count()
            }),
        }
    }
}

fn openai_body(answer: &Answer, id: impl Fn(usize) -> String) -> Value {
    let calls = answer.calls.iter().enumerate().map(|(index, (name, arguments))| {
        let arguments = if arguments.is_object() { json!(arguments.to_string()) } else { arguments.clone() };
        json!({"id": id(index), "type": "function", "function": {"name": name, "arguments": arguments}})
    });
    let calls: Vec<Value> = calls.collect();
    let finish_reason = if calls.is_empty() { "stop" } else { "tool_calls" };
    // The real API sends these null fields too, and rejects some of them in the next request.
    let mut message = json!({
        "role": "assistant", "content": null, "refusal": null, "audio": null, "function_call": null, "annotations": [],
    });
    let text_field = if answer.is_refusal { "refusal" } else { "content" };
    if !answer.text.is_empty() {
        message[text_field] = json!(answer.text);
    }
    if !calls.is_empty() {
        message["tool_calls"] = Value::Array(calls);
    }
    let finish_reason = answer.stop_reason.as_deref().unwrap_or(finish_reason);
    let choice = json!({"index": 0, "message": message, "logprobs": null, "finish_reason": finish_reason});
    let mut body = json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "test-model-1", "choices": [choice],
    });
    if let Some((input, cached, output)) = answer.usage {
        body["usage"] = json!({
            "prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output,
            "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        });
    }
    body
}

fn anthropic_body(answer: &Answer, id: impl Fn(usize) -> String) -> Value {
    let text = (!answer.text.is_empty()).then(|| json!({"type": "text", "text": answer.text}));
    let calls = answer.calls.iter().enumerate().map(|(index, (name, arguments))| {
        let input = if arguments.is_object() { arguments.clone() } else { Value::Null };
        json!({"type": "tool_use", "id": id(index), "name": name, "input": input})
    });
    let content: Vec<Value> = text.into_iter().chain(calls).collect();
    let stop_reason = if answer.calls.is_empty() { "end_turn" } else { "tool_use" };
    let stop_reason = if answer.is_refusal { "refusal" } else { stop_reason };
    let mut body = json!({
        "id": "msg_1", "type": "message", "role": "assistant", "model": "test-model-1", "content": content,
        "stop_reason": answer.stop_reason.as_deref().unwrap_or(stop_reason), "stop_sequence": null,
    });
    if let Some((input, cached, output)) = answer.usage {
        body["usage"] = json!({
            "input_tokens": input - cached, "output_tokens": output,
            "cache_read_input_tokens": cached, "cache_creation_input_tokens": 0,
        });
    }
    body
}

/// Returns the text of a content: a string, or the text blocks of a list.
fn text(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        content => list(content).iter().filter_map(|block| block["text"].as_str()).collect::<Vec<_>>().join("\n"),
    }
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}
