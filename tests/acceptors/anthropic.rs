//! Anthropic's messages. Types are those of `anthropic.types`.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::blocks::check_block;
use super::server_tools::check_caller;
use super::{At, Check, demand, fields, identifier, list, object, string, type_of, violation};

/// What the check of a message depends on.
#[derive(Default)]
struct History<'a> {
    /// The role of the preceding message; empty before the first.
    previous_role: &'a str,
    /// The ids of the calls in the preceding message.
    awaited: HashSet<&'a str>,
    /// The ids of all calls.
    call_ids: HashSet<&'a str>,
    /// The number of blocks with `cache_control`.
    cache_breakpoints: usize,
}

/// Combines consecutive messages of one role, as the API does before it checks a request.
///
/// `message_create_params.MessageCreateParamsBase.messages`: "Consecutive `user` or `assistant` turns in your request will be
/// combined into a single turn." [`check`] does not, because the page "Handle tool calls" demands all results of a turn in one
/// message, directly after that of the calls. A history that is stored block by block is valid if its combined form is.
pub(super) fn combine_turns(history: &[Value]) -> Vec<Value> {
    let mut combined: Vec<Value> = Vec::new();
    for message in history {
        let blocks = match &message["content"] {
            Value::String(text) => vec![json!({"type": "text", "text": text})],
            content => content.as_array().cloned().unwrap_or_default(),
        };
        match combined.last_mut() {
            Some(last) if last["role"] == message["role"] && last["role"] != "system" => {
                if let Some(content) = last["content"].as_array_mut() {
                    content.extend(blocks);
                }
            }
            _ => combined.push(json!({"role": message["role"], "content": blocks})),
        }
    }
    combined
}

pub(super) fn check(messages: &[Value]) -> Check {
    let mut history = History::default();
    for (index, message) in messages.iter().enumerate() {
        check_message(message, &mut history).at_index("messages", index)?;
    }
    check_no_results_missing(&history).at_index("messages", messages.len())?;
    // API: "A maximum of 4 blocks with cache_control may be provided."
    demand(history.cache_breakpoints <= 4, "must not have more than 4 blocks with cache_control").at("messages")
}

/// API: "`tool_use` ids were found without `tool_result` blocks immediately after. Each `tool_use` block must have a
/// corresponding `tool_result` block in the next message."
fn check_no_results_missing(history: &History<'_>) -> Check {
    let mut ids: Vec<_> = history.awaited.iter().copied().collect();
    ids.sort_unstable();
    demand(ids.is_empty(), format_args!("must be the user message with the results of {}", ids.join(", ")))
}

fn check_message<'a>(message: &'a Value, history: &mut History<'a>) -> Check {
    let message = object(message)?;
    // `UserMessageParam`, `AssistantMessageParam`, `SystemMessageParam`.
    fields(message, &["role", "content"], &[])?;
    let role = string(message, "role")?;
    // API: "messages: first message must use the "user" role".
    demand(role == "user" || !history.previous_role.is_empty(), "must be user in the first message").at("role")?;
    let content = &message["content"];
    match role {
        "user" => {
            demand(history.previous_role != "system", "must be assistant after a system message").at("role")?;
            check_user(content, history).at("content")?;
        }
        "assistant" => {
            check_no_results_missing(history)?;
            check_assistant(content, history).at("content")?;
        }
        "system" => check_system(content, history)?,
        _ => return violation("must be user, assistant or system").at("role"),
    }
    history.previous_role = role;
    history.cache_breakpoints += count_breakpoints(content);
    Ok(())
}

/// Page "Mid-conversation system messages", section "Limitations": a system message follows a user message, and is the last
/// message or precedes that of the assistant. `SystemMessageParam.content`: a string or texts.
fn check_system(content: &Value, history: &History<'_>) -> Check {
    check_no_results_missing(history)?;
    demand(history.previous_role == "user", "must follow a user message").at("role")?;
    check_content(content, "system").at("content")
}

/// Checks a string or a non-empty list of blocks. API: "all messages must have non-empty content except for the optional final
/// assistant message", "text content blocks must contain non-whitespace text".
fn check_content(content: &Value, role: &str) -> Check {
    match content {
        Value::String(text) => demand(!text.trim().is_empty(), "must not be blank"),
        Value::Array(blocks) => {
            demand(!blocks.is_empty(), "must have at least one block")?;
            blocks
                .iter()
                .enumerate()
                .try_for_each(|(index, block)| check_block(block, role).at(format_args!("[{index}]")))
        }
        _ => violation("must be a string or a list"),
    }
}

/// Checks a user message: the results of the preceding calls come before all other blocks.
fn check_user<'a>(content: &'a Value, history: &mut History<'a>) -> Check {
    let blocks = content.as_array().map(Vec::as_slice).unwrap_or_default();
    let result_count = blocks.iter().take_while(|block| type_of(block) == "tool_result").count();
    for (index, block) in blocks.iter().enumerate() {
        if type_of(block) != "tool_result" {
            continue;
        }
        let id = block["tool_use_id"].as_str().unwrap_or_default();
        let check = if index >= result_count {
            // Page "Handle tool calls": "tool_result blocks must come first in the content array."
            violation("must precede all other blocks")
        } else {
            // API: "unexpected `tool_use_id` found in `tool_result` blocks", "each tool_use must have a single result".
            demand(history.awaited.remove(id), "must be the id of a call of the preceding message, once")
                .at("tool_use_id")
        };
        check.at(format_args!("[{index}]"))?;
    }
    check_no_results_missing(history)?;
    check_content(content, "user")
}

fn check_assistant<'a>(content: &'a Value, history: &mut History<'a>) -> Check {
    check_content(content, "assistant")?;
    for (index, call) in content.as_array().map(Vec::as_slice).unwrap_or_default().iter().enumerate() {
        if type_of(call) == "tool_use" {
            let id = call["id"].as_str().unwrap_or_default();
            // API: "`tool_use` ids must be unique", in the whole request.
            demand(history.call_ids.insert(id), "must be unique").at("id").at(format_args!("[{index}]"))?;
            history.awaited.insert(id);
        }
    }
    Ok(())
}

fn count_breakpoints(content: &Value) -> usize {
    let blocks = content.as_array().map(Vec::as_slice).unwrap_or_default();
    let own = |block: &Value| usize::from(block["cache_control"].is_object());
    blocks.iter().map(|block| own(block) + count_breakpoints(&block["content"])).sum()
}

/// Checks a `tool_use` block: `ToolUseBlockParam`. API: "`messages.1.content.0.tool_use.id`: String should match pattern
/// '^[a-zA-Z0-9_-]+$'"; page "Define tools": a name matches `^[a-zA-Z0-9_-]{1,128}$`.
pub(super) fn check_call(block: &Map<String, Value>) -> Check {
    fields(block, &["type", "id", "name", "input"], &["cache_control?", "caller", "toolset_name?"])?;
    identifier(string(block, "id")?, "_-", usize::MAX).at("id")?;
    identifier(string(block, "name")?, "_-", 128).at("name")?;
    object(&block["input"]).at("input")?;
    check_caller(block)
}

/// Checks a `tool_result` block: `ToolResultBlockParam`.
pub(super) fn check_result(block: &Map<String, Value>) -> Check {
    fields(block, &["type", "tool_use_id"], &["cache_control?", "content", "is_error", "toolset_name?"])?;
    identifier(string(block, "tool_use_id")?, "_-", usize::MAX).at("tool_use_id")?;
    let is_error = block.get("is_error").unwrap_or(&Value::Bool(false));
    demand(is_error.is_boolean(), "must be a boolean").at("is_error")?;
    let is_empty = match block.get("content") {
        None => true,
        // A string is one text block, which must not be blank; an empty string is no block.
        Some(Value::String(text)) => {
            demand(text.is_empty() || !text.trim().is_empty(), "must not be blank").at("content")?;
            text.is_empty()
        }
        Some(content) => {
            let blocks = list(content).at("content")?;
            for (index, inner) in blocks.iter().enumerate() {
                check_block(inner, "tool_result").at_index("content", index)?;
                // API: "all content must be type `text` if `is_error` is true".
                let is_allowed = is_error == false || type_of(inner) == "text";
                demand(is_allowed, "must be text if is_error is true").at("type").at_index("content", index)?;
            }
            blocks.is_empty()
        }
    };
    // API: "tool_result: content cannot be empty if `is_error` is true".
    demand(!is_empty || is_error == false, "must not be empty if is_error is true").at("content")
}
