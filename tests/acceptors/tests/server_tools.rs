use serde_json::{Value, json};

use super::{REMOVE, accept, reject};

fn call(id: &str, name: &str) -> Value {
    json!({"type": "server_tool_use", "id": format!("srvtoolu_{id}"), "name": name, "input": {}})
}

fn result(id: &str, kind: &str, content: &Value) -> Value {
    json!({"type": kind, "tool_use_id": format!("srvtoolu_{id}"), "content": content})
}

/// Returns a history with a result of each type, and each type of its content.
fn history() -> Value {
    let found = json!([{
        "type": "web_search_result", "url": "https://x.org", "title": "A page", "encrypted_content": "x", "page_age": null,
    }]);
    let page = json!({"type": "text", "media_type": "text/plain", "data": "a text"});
    let fetched = json!({
        "type": "web_fetch_result", "url": "https://x.org", "retrieved_at": null,
        "content": {"type": "document", "title": "A page", "source": page},
    });
    let file = |kind: &str| json!([{"type": kind, "file_id": "file_1"}]);
    let run = json!({
        "type": "code_execution_result", "stdout": "4", "stderr": "", "return_code": 0,
        "content": file("code_execution_output"),
    });
    let encrypted = json!({
        "type": "encrypted_code_execution_result", "encrypted_stdout": "x", "stderr": "", "return_code": 0, "content": [],
    });
    let bash = json!({
        "type": "bash_code_execution_result", "stdout": "", "stderr": "no", "return_code": 1,
        "content": file("bash_code_execution_output"),
    });
    let view = json!({
        "type": "text_editor_code_execution_view_result", "content": "x", "file_type": "text", "num_lines": 1,
    });
    let created = json!({"type": "text_editor_code_execution_create_result", "is_file_update": false});
    let replaced =
        json!({"type": "text_editor_code_execution_str_replace_result", "lines": ["-a", "+b"], "new_start": 1});
    let reference = json!([{"type": "tool_reference", "tool_name": "f"}]);
    let tools = json!({"type": "tool_search_tool_search_result", "tool_references": reference});
    let results = [
        result("1", "web_search_tool_result", &found),
        result("2", "web_fetch_tool_result", &fetched),
        result("3", "code_execution_tool_result", &run),
        result("4", "code_execution_tool_result", &encrypted),
        result("5", "bash_code_execution_tool_result", &bash),
        result("6", "text_editor_code_execution_tool_result", &view),
        result("7", "text_editor_code_execution_tool_result", &created),
        result("8", "text_editor_code_execution_tool_result", &replaced),
        result("9", "tool_search_tool_result", &tools),
    ];
    let content = [call("1", "web_search")].into_iter().chain(results).collect::<Vec<_>>();
    json!([{"role": "user", "content": "search"}, {"role": "assistant", "content": content}])
}

/// Checks that a change of a block is rejected with an error at this path in the block.
fn rejects(block: usize, pointer: &str, value: &Value, expected: &str) {
    let expected = format!("messages[1].content[{block}].{expected}");
    reject("anthropic", &history(), &format!("/1/content/{block}{pointer}"), value, &expected);
}

#[test]
fn calls_of_server_tools() {
    for id in ["toolu_1", "srvtoolu_", "srvtoolu_a-b"] {
        rejects(0, "/id", &json!(id), "id: must match ^srvtoolu_");
    }
    rejects(0, "/name", &json!("run"), "name: must be one of web_search");
    rejects(0, "/input", &json!("{}"), "input: must be an object");
    rejects(0, "/caller", &json!({"type": "code_execution_20250825"}), "caller.tool_id: is required");
    rejects(0, "/caller", &json!({"type": "x", "tool_id": "y"}), "caller.type: must be one of direct");
}

#[test]
fn results_have_the_id_of_a_server_tool() {
    for block in 1..=9 {
        rejects(block, "/tool_use_id", &json!("toolu_1"), "tool_use_id: must match ^srvtoolu_");
        rejects(block, "/content", &json!(REMOVE), "content: is required");
        rejects(block, "/content", &json!("text"), "content: must be an object");
        rejects(block, "/is_error", &json!(true), "is_error: unknown field");
    }
    let direct = json!({"type": "direct"});
    let mut history = history();
    history[1]["content"][1]["caller"] = direct.clone();
    accept("anthropic", &history);
    rejects(3, "/caller", &direct, "caller: unknown field");
}

#[test]
fn contents_of_server_results() {
    rejects(1, "/content/0/encrypted_content", &json!(""), "content[0].encrypted_content: must not be empty");
    rejects(1, "/content/0/type", &json!("text"), "content[0].type: must be one of web_search_result");
    rejects(
        2,
        "/content/content",
        &json!({"type": "text", "text": "x"}),
        "content.content.type: must be one of document",
    );
    rejects(2, "/content/url", &json!(""), "content.url: must not be empty");
    for block in [3, 4, 5] {
        rejects(block, "/content/return_code", &json!("0"), "content.return_code: must be an integer");
        rejects(block, "/content/stderr", &json!(REMOVE), "content.stderr: is required");
        rejects(block, "/content/content", &json!("x"), "content.content: must be a list");
    }
    rejects(4, "/content/stdout", &json!("x"), "content.stdout: unknown field");
    rejects(
        5,
        "/content/content/0/type",
        &json!("code_execution_output"),
        "content.content[0].type: must be one of bash",
    );
    rejects(6, "/content/file_type", &json!("csv"), "content.file_type: must be one of text, image, pdf");
    rejects(7, "/content/is_file_update", &json!(0), "content.is_file_update: must be a boolean");
    rejects(8, "/content/content", &json!("x"), "content.content: unknown field");
    let text = json!({"type": "text", "text": "x"});
    rejects(9, "/content/tool_references/0", &text, "content.tool_references[0].type: must be one of tool_reference");
    for block in 2..=9 {
        rejects(block, "/content/type", &json!("web_search_result"), "content.type: is not a type of content");
    }
}

#[test]
fn errors_of_server_tools() {
    for block in 1..=9 {
        let kind = history()[1]["content"][block]["type"].as_str().unwrap().to_owned();
        let error = |code: &str| json!({"type": format!("{kind}_error"), "error_code": code});
        let mut failed = history();
        failed[1]["content"][block]["content"] = error("unavailable");
        accept("anthropic", &failed);
        rejects(block, "/content", &error("other"), "content.error_code: must be one of invalid_tool_input");
        let mut with_message = error("unavailable");
        with_message["error_message"] = "why".into();
        if block < 6 {
            rejects(block, "/content", &with_message, "content.error_message: unknown field");
        } else {
            failed[1]["content"][block]["content"] = with_message;
            accept("anthropic", &failed);
        }
    }
}

#[test]
fn a_user_has_no_results_of_server_tools() {
    let block = history()[1]["content"][1].clone();
    reject("anthropic", &history(), "/0/content", &json!([block]), "messages[0].content[0].type: must be one of text");
}
