//! The blocks of Anthropic's server tools: tools that the API itself runs. Types are those of `anthropic.types`.

use serde_json::{Map, Value};

use super::blocks::check_block;
use super::{At, Check, demand, fields, list, nonempty, object, one_of, string, violation};

/// The types of the results.
pub(super) const RESULT_TYPES: [&str; 6] = [
    "web_search_tool_result",
    "web_fetch_tool_result",
    "code_execution_tool_result",
    "bash_code_execution_tool_result",
    "text_editor_code_execution_tool_result",
    "tool_search_tool_result",
];

/// `ServerToolUseBlockParam`.
pub(super) fn check_server_call(block: &Map<String, Value>) -> Check {
    fields(block, &["type", "id", "name", "input"], &["cache_control?", "caller"])?;
    check_server_id(block, "id")?;
    let names = [
        "web_search",
        "web_fetch",
        "code_execution",
        "bash_code_execution",
        "text_editor_code_execution",
        "tool_search_tool_regex",
        "tool_search_tool_bm25",
    ];
    one_of(string(block, "name")?, &names).at("name")?;
    object(&block["input"]).at("input")?;
    check_caller(block)
}

/// API: the id of a server tool matches `^srvtoolu_[a-zA-Z0-9_]+$`.
fn check_server_id(block: &Map<String, Value>, key: &str) -> Check {
    let rest = string(block, key)?.strip_prefix("srvtoolu_");
    let is_valid = |rest: &str| {
        !rest.is_empty() && rest.chars().all(|character| character.is_ascii_alphanumeric() || character == '_')
    };
    demand(rest.is_some_and(is_valid), "must match ^srvtoolu_[a-zA-Z0-9_]+$").at(key)
}

/// `DirectCallerParam`, `ServerToolCallerParam`, `ServerToolCaller20260120Param`.
pub(super) fn check_caller(block: &Map<String, Value>) -> Check {
    let Some(caller) = block.get("caller") else { return Ok(()) };
    let check = |caller: &Map<String, Value>| match string(caller, "type")? {
        "direct" => fields(caller, &["type"], &[]),
        kind => {
            one_of(kind, &["direct", "code_execution_20250825", "code_execution_20260120"]).at("type")?;
            fields(caller, &["type", "tool_id"], &[])?;
            nonempty(caller, "tool_id").map(drop)
        }
    };
    object(caller).and_then(check).at("caller")
}

/// Checks the result of a server tool.
pub(super) fn check_server_result(kind: &str, block: &Map<String, Value>) -> Check {
    // Only `WebSearchToolResultBlockParam` and `WebFetchToolResultBlockParam` have a caller.
    let has_caller = matches!(kind, "web_search_tool_result" | "web_fetch_tool_result");
    let optional = ["cache_control?", "caller"];
    fields(block, &["type", "tool_use_id", "content"], if has_caller { &optional } else { &optional[..1] })?;
    check_server_id(block, "tool_use_id")?;
    check_caller(block)?;
    match &block["content"] {
        // `WebSearchToolResultBlockParamContentParam`.
        Value::Array(results) if kind == "web_search_tool_result" => {
            check_each(results, check_search_result).at("content")
        }
        content => object(content).and_then(|content| check_content(kind, content)).at("content"),
    }
}

/// Checks the content of a result that is an object: an error, or what the tool has returned.
fn check_content(kind: &str, content: &Map<String, Value>) -> Check {
    let content_type = string(content, "type")?;
    if content_type.strip_suffix("_error") == Some(kind) {
        return check_error(kind, content);
    }
    match (kind, content_type) {
        // `WebFetchBlockParam`.
        ("web_fetch_tool_result", "web_fetch_result") => {
            fields(content, &["type", "url", "content"], &["retrieved_at?"])?;
            nonempty(content, "url")?;
            check_block(&content["content"], "web_fetch_result").at("content")
        }
        // `CodeExecutionToolResultBlockParamContentParam`: `CodeExecutionResultBlockParam`,
        // `EncryptedCodeExecutionResultBlockParam`.
        ("code_execution_tool_result", "code_execution_result") => {
            check_execution(content, "code_execution_output", "stdout")
        }
        ("code_execution_tool_result", "encrypted_code_execution_result") => {
            check_execution(content, "code_execution_output", "encrypted_stdout")
        }
        // `BashCodeExecutionResultBlockParam`.
        ("bash_code_execution_tool_result", "bash_code_execution_result") => {
            check_execution(content, "bash_code_execution_output", "stdout")
        }
        ("text_editor_code_execution_tool_result", _) => check_editor_result(content_type, content),
        // `ToolSearchToolSearchResultBlockParam`.
        ("tool_search_tool_result", "tool_search_tool_search_result") => {
            fields(content, &["type", "tool_references"], &[])?;
            let references = list(&content["tool_references"]).at("tool_references")?;
            let check = |(index, block)| check_block(block, "tool_search_result").at_index("tool_references", index);
            references.iter().enumerate().try_for_each(check)
        }
        _ => violation("is not a type of content for this block").at("type"),
    }
}

/// Checks an error. The codes are those of `WebSearchToolResultErrorCode`, `WebFetchToolResultErrorCode`,
/// `CodeExecutionToolResultErrorCode`, `BashCodeExecutionToolResultErrorCode`, `TextEditorCodeExecutionToolResultErrorCode` and
/// `ToolSearchToolResultErrorCode`.
fn check_error(kind: &str, error: &Map<String, Value>) -> Check {
    // `TextEditorCodeExecutionToolResultErrorParam`, `ToolSearchToolResultErrorParam`.
    let has_message = matches!(kind, "text_editor_code_execution_tool_result" | "tool_search_tool_result");
    fields(error, &["type", "error_code"], if has_message { &["error_message?"] } else { &[] })?;
    let other_codes: &[_] = match kind {
        "web_search_tool_result" => &["max_uses_exceeded", "query_too_long", "request_too_large"],
        "web_fetch_tool_result" => &[
            "url_too_long",
            "url_not_allowed",
            "url_not_in_prior_context",
            "url_not_accessible",
            "unsupported_content_type",
            "max_uses_exceeded",
            "content_too_large",
        ],
        "bash_code_execution_tool_result" => &["execution_time_exceeded", "output_file_too_large"],
        "text_editor_code_execution_tool_result" => &["execution_time_exceeded", "file_not_found"],
        _ => &["execution_time_exceeded"],
    };
    let codes = [&["invalid_tool_input", "unavailable", "too_many_requests"], other_codes].concat();
    one_of(string(error, "error_code")?, &codes).at("error_code")
}

/// `WebSearchResultBlockParam`.
fn check_search_result(result: &Map<String, Value>) -> Check {
    one_of(string(result, "type")?, &["web_search_result"]).at("type")?;
    fields(result, &["type", "encrypted_content", "title", "url"], &["page_age?"])?;
    nonempty(result, "encrypted_content")?;
    string(result, "title")?;
    nonempty(result, "url").map(drop)
}

/// Checks the result of a program. `CodeExecutionOutputBlockParam`, `BashCodeExecutionOutputBlockParam`: its files.
fn check_execution(content: &Map<String, Value>, output_type: &str, stdout: &str) -> Check {
    fields(content, &["type", "content", "return_code", "stderr", stdout], &[])?;
    demand(content["return_code"].is_i64(), "must be an integer").at("return_code")?;
    string(content, "stderr").and(string(content, stdout))?;
    let check_output = |output: &Map<String, Value>| {
        one_of(string(output, "type")?, &[output_type]).at("type")?;
        fields(output, &["type", "file_id"], &[])?;
        nonempty(output, "file_id").map(drop)
    };
    list(&content["content"]).and_then(|outputs| check_each(outputs, check_output)).at("content")
}

/// `TextEditorCodeExecutionViewResultBlockParam`, `TextEditorCodeExecutionCreateResultBlockParam`,
/// `TextEditorCodeExecutionStrReplaceResultBlockParam`.
fn check_editor_result(content_type: &str, content: &Map<String, Value>) -> Check {
    match content_type {
        "text_editor_code_execution_view_result" => {
            let counts = ["num_lines?", "start_line?", "total_lines?"];
            fields(content, &["type", "content", "file_type"], &counts)?;
            string(content, "content")?;
            one_of(string(content, "file_type")?, &["text", "image", "pdf"]).at("file_type")
        }
        "text_editor_code_execution_create_result" => {
            fields(content, &["type", "is_file_update"], &[])?;
            demand(content["is_file_update"].is_boolean(), "must be a boolean").at("is_file_update")
        }
        "text_editor_code_execution_str_replace_result" => {
            fields(content, &["type"], &["lines?", "new_lines?", "new_start?", "old_lines?", "old_start?"])
        }
        _ => violation("is not a type of content for this block").at("type"),
    }
}

fn check_each(entries: &[Value], check: impl Fn(&Map<String, Value>) -> Check) -> Check {
    let check = |(index, entry)| object(entry).and_then(&check).at(format_args!("[{index}]"));
    entries.iter().enumerate().try_for_each(check)
}
