use serde_json::{Value, json};

use super::{REMOVE, accept, reject};

/// The example of the guide "Function calling", with all kinds of content.
fn history() -> Value {
    json!([
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "name": "anna", "content": [
            {"type": "text", "text": "What is the weather in these places?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw==", "detail": "low"}},
            {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
            {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERg==", "filename": "a.pdf"}}
        ]},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{\"city\":\"Paris\"}"}},
            {"id": "call_2", "type": "custom", "custom": {"name": "run", "input": "not JSON"}}
        ]},
        {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "14"}, {"type": "text", "text": "17"}]},
        {"role": "tool", "tool_call_id": "call_1", "content": ""},
        {"role": "assistant", "content": [{"type": "text", "text": "14 degrees"}, {"type": "refusal", "refusal": "No."}]},
        {"role": "assistant", "content": "And rain.", "refusal": null}
    ])
}

fn rejects(pointer: &str, value: &Value, expected: &str) {
    reject("openai", &history(), pointer, value, expected);
}

#[test]
fn order_and_pairing() {
    accept("openai", &history());
    let user = json!({"role": "user", "content": "x"});
    rejects("/4", &user, "messages[4]: must be the tool message with the result of call_1");
    rejects("/4", &json!(REMOVE), "messages[4]: must be the tool message with the result of call_1");
    rejects("/4/tool_call_id", &json!("call_2"), "messages[4].tool_call_id: must be the id of a call");
    rejects("/2", &user, "messages[3].tool_call_id: must be the id of a call");
    rejects("/7", &json!({"role": "tool", "tool_call_id": "call_1", "content": "x"}), "messages[7].tool_call_id");
    let call = json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let last = json!({"role": "assistant", "tool_calls": [call]});
    rejects("/7", &last, "messages[8]: must be the tool message with the result of c");
}

#[test]
fn deprecated_function_calls() {
    let history = json!([
        {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}, "content": null},
        {"role": "function", "name": "f", "content": null}
    ]);
    accept("openai", &history);
    reject("openai", &history, "/1/name", &json!("g"), "messages[1].name: must be the name");
    reject("openai", &history, "/1", &json!(REMOVE), "messages[1]: must be the function message with the result of f");
    reject("openai", &history, "/1/content", &json!(REMOVE), "messages[1].content: is required");
    reject("openai", &history, "/0/function_call/arguments", &json!("{"), "messages[0].function_call.arguments");
    let call = json!([{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]);
    reject("openai", &history, "/0/tool_calls", &call, "messages[0].function_call: must not be set with tool_calls");
}

#[test]
fn ids_and_names() {
    for id in ["", &"x".repeat(41)] {
        rejects("/2/tool_calls/0/id", &json!(id), "messages[2].tool_calls[0].id: must not be");
    }
    rejects("/2/tool_calls/0/id", &json!("call_2"), "messages[2].tool_calls[1].id: must be unique");
    for name in ["", "a.b", &"x".repeat(65)] {
        rejects("/2/tool_calls/0/function/name", &json!(name), "messages[2].tool_calls[0].function.name");
        rejects("/2/tool_calls/1/custom/name", &json!(name), "messages[2].tool_calls[1].custom.name");
    }
    for name in ["", "anna b", "a<b", &"x".repeat(65)] {
        rejects("/1/name", &json!(name), "messages[1].name: must");
    }
}

#[test]
fn roles_and_fields() {
    rejects("/1/role", &json!("model"), "messages[1].role: must be system");
    rejects("/0", &json!("text"), "messages[0]: must be an object");
    rejects("/6/reasoning_content", &json!("hm"), "messages[6].reasoning_content: unknown field");
    rejects("/1/annotations", &json!([]), "messages[1].annotations: unknown field");
    rejects("/1/content/0/cache_control", &json!({}), "messages[1].content[0].cache_control: unknown field");
    rejects("/3/name", &json!("f"), "messages[3].name: unknown field");
    rejects("/2/tool_calls/0/index", &json!(0), "messages[2].tool_calls[0].index: unknown field");
    rejects("/6/tool_calls", &json!(null), "messages[6].tool_calls: must not be null");
    rejects("/1/name", &json!(null), "messages[1].name: must not be null");
    rejects("/3/tool_call_id", &json!(REMOVE), "messages[3].tool_call_id: is required");
    rejects("/3/content", &json!(REMOVE), "messages[3].content: is required");
}

#[test]
fn annotations_of_a_response() {
    let mut history = history();
    history[6]["annotations"] = json!([]);
    accept("openai", &history);
    let citation = json!({"start_index": 0, "end_index": 3, "title": "A page", "url": "https://x.org"});
    history[6]["annotations"] = json!([{"type": "url_citation", "url_citation": citation}]);
    accept("openai", &history);
    rejects("/6/annotations", &json!(null), "messages[6].annotations: must not be null");
    rejects("/6/annotations", &json!({}), "messages[6].annotations: must be a list");
    rejects("/6/annotations", &json!([{"type": "x"}]), "messages[6].annotations[0].type: must be one of url_citation");
    let path = "messages[6].annotations[0].url_citation.start_index: is required";
    rejects("/6/annotations", &json!([{"type": "url_citation", "url_citation": {}}]), path);
}

#[test]
fn empty_content() {
    for content in [json!(""), json!([]), json!(null), json!(REMOVE)] {
        rejects("/6/content", &content, "messages[6].content");
    }
    for content in [json!(""), json!([]), json!(null), json!(REMOVE)] {
        rejects("/0/content", &content, "messages[0].content");
        rejects("/1/content", &content, "messages[1].content");
    }
    rejects("/3/content", &json!([]), "messages[3].content: must have at least one part");
    rejects("/2/tool_calls", &json!([]), "messages[2].tool_calls: must have 1 to 128 calls");
}

#[test]
fn content_parts_of_roles() {
    let image = json!({"type": "image_url", "image_url": {"url": "https://x.org/a.png"}});
    for (pointer, path) in [("/0/content", 0), ("/3/content", 3), ("/6/content", 6)] {
        rejects(pointer, &json!([image]), &format!("messages[{path}].content[0].type: must be one of text"));
    }
    rejects("/1/content/0/type", &json!("input_text"), "messages[1].content[0].type: must be one of");
    rejects("/1/content/0", &json!("text"), "messages[1].content[0]: must be an object");
    rejects("/1/content/0/text", &json!(5), "messages[1].content[0].text: must be a string");
}

#[test]
fn arguments() {
    for arguments in [json!("{"), json!(""), json!("5"), json!({})] {
        let path = "messages[2].tool_calls[0].function.arguments: must be";
        rejects("/2/tool_calls/0/function/arguments", &arguments, path);
    }
}

#[test]
fn media() {
    for url in ["data:image/svg+xml;base64,iVBORw==", "data:image/png;base64,!", "gs://a/b", "", "data:image/png,x"] {
        rejects("/1/content/1/image_url/url", &json!(url), "messages[1].content[1].image_url.url: must");
    }
    rejects("/1/content/1/image_url/detail", &json!("some"), "messages[1].content[1].image_url.detail");
    rejects("/1/content/2/input_audio/format", &json!("ogg"), "messages[1].content[2].input_audio.format");
    rejects(
        "/1/content/2/input_audio/data",
        &json!("x"),
        "messages[1].content[2].input_audio.data: must be non-empty base64",
    );
    rejects("/1/content/3/file/file_data", &json!("data:;base64,JVBERg=="), "messages[1].content[3].file.file_data");
    rejects("/1/content/3/file/file_data", &json!(REMOVE), "messages[1].content[3].file.file_data: is required");
    rejects("/1/content/3/file/file_id", &json!("file-1"), "messages[1].content[3].file.file_data: must not be set");
    rejects("/1/content/3/file/filename", &json!(""), "messages[1].content[3].file.filename: must not be empty");
}
