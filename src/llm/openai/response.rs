//! Reads the responses of servers with the API of `OpenAI`.
//!
//! Only `OpenAI` itself returns what its reference describes. Others omit the usage, the ids of tool calls or the content,
//! return arguments as an object or an error with status 200, and add fields and finish reasons. All of this is accepted if its
//! meaning is clear.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use crate::llm::api_error::ReportedError;
use crate::llm::echo::{self, CallIds};
use crate::llm::http::InvalidResponse;
use crate::llm::{AssistantMessage, ChatResponse, StopReason, TokenUsage, ToolCall};

/// The fields of a message that some servers require in the next request, with the reasoning that belongs to the tool calls:
/// `reasoning_content` (`DeepSeek`, vLLM), `reasoning` and `reasoning_details` (`OpenRouter`).
const REASONING_FIELDS: &[&str] = &["reasoning_content", "reasoning", "reasoning_details"];

/// The field of a message or tool call with the signature of Gemini (Google's API in the format of `OpenAI`).
const EXTRA_CONTENT: &str = "extra_content";

/// Reads the body of a response. `model` is the requested model, which some servers do not report. `used_ids` are the ids of the
/// tool calls in the conversation so far.
pub(super) fn read(body: &Value, model: &str, used_ids: &HashSet<String>) -> Result<ChatResponse, InvalidResponse> {
    let choice = body.pointer("/choices/0").unwrap_or(&Value::Null);
    let has_error = |object: &Value| match object.get("error") {
        Some(Value::String(text)) => !text.is_empty(),
        error => error.is_some_and(Value::is_object),
    };
    let message = choice.get("message").filter(|message| message.is_object() && !has_error(choice));
    let Some(message) = message else {
        return Err(match [choice, body].into_iter().find(|object| has_error(object)) {
            Some(object) => InvalidResponse::Error(ReportedError::from_body(object)),
            None => InvalidResponse::Incomplete("has no message in choices[0]"),
        });
    };
    let (tool_calls, received_calls) = read_calls(message, used_ids);
    let refusal = message.get("refusal").and_then(Value::as_str).filter(|text| !text.is_empty());
    let text = read_text(message.get("content"));
    let finish_reason = choice.get("finish_reason").and_then(Value::as_str).unwrap_or_default();
    let stop_reason = match finish_reason {
        _ if refusal.is_some() && tool_calls.is_empty() => StopReason::ContentFilter,
        "length" => StopReason::MaxTokens,
        "content_filter" => StopReason::ContentFilter,
        // Some servers report `stop` although there are calls.
        _ if !tool_calls.is_empty() => StopReason::ToolCalls,
        "" | "stop" => StopReason::EndTurn,
        other => StopReason::Other(other.to_owned()),
    };
    let text = refusal.filter(|_| text.is_empty()).map_or(text, str::to_owned);
    let mut result = AssistantMessage { text, tool_calls, raw: None };
    result.raw = echo::to_raw(&write_echo(&result, message, &received_calls));
    Ok(ChatResponse {
        message: result,
        stop_reason,
        usage: read_usage(body.get("usage").unwrap_or(&Value::Null)),
        model: echo::model_name(body.get("model"), model),
    })
}

/// Returns a content as text: a string, or a list of parts, whose texts are joined.
fn read_text(content: Option<&Value>) -> String {
    match content {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let texts = parts.iter().filter_map(|part| part.as_str().or_else(|| part.get("text")?.as_str()));
            texts.collect()
        }
        _ => String::new(),
    }
}

/// Returns the tool calls of a message, and the calls as received, in the same order. A call without an id, or with one that the
/// conversation contains already, gets a new one.
fn read_calls<'a>(message: &'a Value, used_ids: &HashSet<String>) -> (Vec<ToolCall>, Vec<&'a Value>) {
    let mut ids = CallIds::new(used_ids);
    let calls = message.get("tool_calls").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    // The deprecated form of a single call.
    let deprecated = message.get("function_call").filter(|call| calls.is_empty() && call.is_object());
    let functions = calls.iter().map(|call| (call, call.get("function").unwrap_or(&Value::Null)));
    let functions = functions.chain(deprecated.map(|function| (&Value::Null, function)));
    let read_call = |(call, function): (&'a Value, &Value)| {
        let tool_call = ToolCall {
            id: ids.assign(call.get("id").and_then(Value::as_str).unwrap_or_default()),
            name: function.get("name").and_then(Value::as_str).unwrap_or_default().to_owned(),
            arguments: read_arguments(function.get("arguments")),
        };
        (tool_call, call)
    };
    functions.map(read_call).unzip()
}

/// Returns arguments as a text. No arguments are an empty object. Some servers return an object instead of its text.
fn read_arguments(arguments: Option<&Value>) -> String {
    match arguments {
        None | Some(Value::Null) => "{}".into(),
        Some(Value::String(text)) if text.trim().is_empty() => "{}".into(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// Returns the message of the model for the next request, with no null and only with the fields that providers require or accept.
/// `received` is the message as the server sent it, and `received_calls` are its calls, in the order of `message.tool_calls`.
pub(super) fn write_echo(message: &AssistantMessage, received: &Value, received_calls: &[&Value]) -> Value {
    let copy = |from: &Value, names: &[&str], to: &mut Map<String, Value>| {
        for name in names {
            let value = from.get(*name).filter(|value| !value.is_null());
            to.extend(value.map(|value| ((*name).to_owned(), value.clone())));
        }
    };
    let mut echo = Map::from_iter([("role".to_owned(), json!("assistant"))]);
    if !message.text.is_empty() {
        echo.insert("content".into(), json!(message.text));
    }
    copy(received, REASONING_FIELDS, &mut echo);
    copy(received, &[EXTRA_CONTENT], &mut echo);
    let calls = message.tool_calls.iter().enumerate().map(|(index, call)| {
        let arguments = if echo::is_json_object(&call.arguments) { &call.arguments } else { "{}" };
        let function = json!({"name": echo::tool_name(&call.name), "arguments": arguments});
        let mut echo = Map::from_iter([("id".to_owned(), json!(call.id)), ("type".to_owned(), json!("function"))]);
        echo.insert("function".into(), function);
        copy(received_calls.get(index).copied().unwrap_or(&Value::Null), &[EXTRA_CONTENT], &mut echo);
        Value::Object(echo)
    });
    let calls: Vec<Value> = calls.collect();
    if !calls.is_empty() {
        echo.insert("tool_calls".into(), Value::Array(calls));
    }
    Value::Object(echo)
}

/// Reads the token counts. `prompt_cache_hit_tokens` is the count of `DeepSeek`.
fn read_usage(usage: &Value) -> TokenUsage {
    let count = |path: &str| usage.pointer(path).and_then(echo::token_count);
    let input_tokens = count("/prompt_tokens").unwrap_or_default();
    let cached = count("/prompt_tokens_details/cached_tokens").or_else(|| count("/prompt_cache_hit_tokens"));
    TokenUsage {
        input_tokens,
        cached_tokens: cached.unwrap_or_default().min(input_tokens),
        output_tokens: count("/completion_tokens").unwrap_or_default(),
    }
}
