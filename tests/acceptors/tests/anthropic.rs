use serde_json::{Value, json};

use super::super::anthropic::combine_turns;
use super::{REMOVE, accept, check, reject};

/// The examples of the pages "Handle tool calls" and "Extended thinking", with all kinds of content.
fn history() -> Value {
    json!([
        {"role": "user", "content": [
            {"type": "text", "text": "What is the weather?", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw=="}},
            {"type": "document", "title": "a.pdf", "source": {"type": "url", "url": "https://x.org/a.pdf"}},
            {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "x"}]}}
        ]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "", "signature": "c2ln"},
            {"type": "redacted_thinking", "data": "ZGF0YQ=="},
            {"type": "text", "text": "I will ask."},
            {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris"}},
            {"type": "tool_use", "id": "toolu_2", "name": "get_weather", "input": {}}
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu_2", "is_error": true, "content": "timeout"},
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": [
                {"type": "text", "text": "14"},
                {"type": "image", "source": {"type": "url", "url": "https://x.org/a.png"}}
            ]},
            {"type": "text", "text": "Continue."}
        ]},
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": "14 degrees."}
    ])
}

fn rejects(pointer: &str, value: &Value, expected: &str) {
    reject("anthropic", &history(), pointer, value, expected);
}

#[test]
fn order_and_pairing() {
    accept("anthropic", &history());
    let user = json!({"role": "user", "content": "x"});
    rejects("/2", &user, "messages[2].content: must be the user message with the results of toolu_1, toolu_2");
    rejects("/2", &json!(REMOVE), "messages[2]: must be the user message with the results of toolu_1, toolu_2");
    rejects(
        "/2/content/0",
        &json!(REMOVE),
        "messages[2].content: must be the user message with the results of toolu_2",
    );
    rejects("/2/content/1/tool_use_id", &json!("toolu_2"), "messages[2].content[1].tool_use_id: must be the id");
    rejects("/1/content", &json!("x"), "messages[2].content[0].tool_use_id: must be the id");
    rejects("/0", &json!(REMOVE), "messages[0].role: must be user");
    let call = json!({"type": "tool_use", "id": "a", "name": "f", "input": {}});
    rejects("/4/content", &json!([call]), "messages[5]: must be the user message with the results of a");
}

#[test]
fn results_precede_other_blocks() {
    let text = json!({"type": "text", "text": "x"});
    let results = history()[2]["content"].clone();
    let content = json!([text, results[0], results[1]]);
    rejects("/2/content", &content, "messages[2].content[1]: must precede all other blocks");
}

#[test]
fn results_of_a_turn_are_in_one_message() {
    let mut history = history();
    let result = history[2]["content"].as_array_mut().unwrap().remove(0);
    history.as_array_mut().unwrap().insert(2, json!({"role": "user", "content": [result]}));
    let messages = history.as_array().unwrap();
    assert!(check("anthropic", messages).unwrap_err().starts_with("messages[2].content: must be the user message"));
    assert_eq!(check("anthropic-combined", messages), Ok(()));
}

#[test]
fn combined_turns_are_those_of_the_api() {
    let combined = combine_turns(&[
        json!({"role": "user", "content": "a"}),
        json!({"role": "user", "content": [{"type": "text", "text": "b"}]}),
        json!({"role": "assistant", "content": "c"}),
    ]);
    let text = |text: &str| json!({"type": "text", "text": text});
    let expected = [
        json!({"role": "user", "content": [text("a"), text("b")]}),
        json!({"role": "assistant", "content": [text("c")]}),
    ];
    assert_eq!(combined, expected);
}

#[test]
fn ids_and_names() {
    for id in ["", "a.b", "a b"] {
        rejects("/1/content/3/id", &json!(id), "messages[1].content[3].id: must match");
    }
    rejects("/1/content/3/id", &json!("toolu_2"), "messages[1].content[4].id: must be unique");
    for name in ["", "a.b", &"x".repeat(129)] {
        rejects("/1/content/3/name", &json!(name), "messages[1].content[3].name: must");
    }
    let mut again = history();
    let messages = again.as_array_mut().unwrap();
    messages.extend([messages[1].clone(), messages[2].clone()]);
    let error = check("anthropic", messages).unwrap_err();
    assert_eq!(error, "messages[5].content[3].id: must be unique");
}

#[test]
fn roles_and_fields() {
    rejects("/4/role", &json!("model"), "messages[4].role: must be user, assistant or system");
    rejects("/4/id", &json!("msg_1"), "messages[4].id: unknown field");
    rejects("/4/content", &json!(REMOVE), "messages[4].content: is required");
    rejects("/0/content/0/meta", &json!({}), "messages[0].content[0].meta: unknown field");
    rejects("/1/content/3/cache", &json!({}), "messages[1].content[3].cache: unknown field");
    rejects("/1/content/0/signature", &json!(null), "messages[1].content[0].signature: must not be null");
    rejects("/2/content/0/is_error", &json!(null), "messages[2].content[0].is_error: must not be null");
    rejects("/1/content/3/input", &json!("{}"), "messages[1].content[3].input: must be an object");
    rejects("/0/content/0/cache_control/ttl", &json!("2h"), "messages[0].content[0].cache_control.ttl");
}

#[test]
fn system_messages() {
    let system = json!({"role": "system", "content": "x"});
    rejects("/0", &system, "messages[0].role: must be user in the first message");
    rejects("/5", &system, "messages[5].role: must follow a user message");
    rejects(
        "/4",
        &json!({"role": "user", "content": "x"}),
        "messages[4].role: must be assistant after a system message",
    );
    rejects("/4", &system, "messages[4].role: must follow a user message");
    let image = history()[0]["content"][1].clone();
    rejects("/3/content", &json!([image]), "messages[3].content[0].type: must be one of text");
}

#[test]
fn empty_and_blank_content() {
    for content in [json!(""), json!(" \n"), json!([]), json!(null)] {
        rejects("/4/content", &content, "messages[4].content: must");
    }
    for text in ["", " \n\t"] {
        rejects("/0/content/0/text", &json!(text), "messages[0].content[0].text: must not be blank");
        rejects(
            "/2/content/1/content/0/text",
            &json!(text),
            "messages[2].content[1].content[0].text: must not be blank",
        );
    }
    rejects("/2/content/1/content", &json!(" "), "messages[2].content[1].content: must not be blank");
    for content in [json!(""), json!([]), json!(REMOVE)] {
        rejects("/2/content/0/content", &content, "messages[2].content[0].content: must not be empty if is_error");
    }
}

#[test]
fn failed_results_contain_only_texts() {
    let image = history()[0]["content"][1].clone();
    rejects(
        "/2/content/0/content",
        &json!([image]),
        "messages[2].content[0].content[0].type: must be text if is_error",
    );
}

#[test]
fn blocks_of_roles() {
    let history = history();
    let (image, thought, call) = (&history[0]["content"][1], &history[1]["content"][0], &history[1]["content"][3]);
    rejects("/4/content", &json!([image]), "messages[4].content[0].type: must be one of");
    rejects("/0/content", &json!([thought]), "messages[0].content[0].type: must be one of");
    rejects("/0/content", &json!([call]), "messages[0].content[0].type: must be one of");
    rejects("/2/content/1/content", &json!([call]), "messages[2].content[1].content[0].type: must be one of");
    rejects("/0/content/0/type", &json!("input_text"), "messages[0].content[0].type: must be one of");
}

#[test]
fn signatures() {
    rejects("/1/content/0/signature", &json!(""), "messages[1].content[0].signature: must not be empty");
    rejects("/1/content/0/signature", &json!(REMOVE), "messages[1].content[0].signature: is required");
    rejects("/1/content/0/thinking", &json!(REMOVE), "messages[1].content[0].thinking: is required");
    rejects("/1/content/1/data", &json!(""), "messages[1].content[1].data: must not be empty");
}

#[test]
fn media() {
    let source = "messages[0].content[1].source";
    for mime in ["image/heic", "application/pdf", ""] {
        rejects("/0/content/1/source/media_type", &json!(mime), &format!("{source}.media_type: must be one of"));
    }
    for data in ["", "x", "iVBORw", "iVBORw===", "-_-_"] {
        rejects("/0/content/1/source/data", &json!(data), &format!("{source}.data: must be non-empty base64"));
    }
    let text = json!({"type": "text", "media_type": "text/plain", "data": "x"});
    rejects("/0/content/1/source", &text, &format!("{source}.type: is not a type of source"));
    rejects("/0/content/2/source/url", &json!("gs://a/b"), "messages[0].content[2].source.url: must be an http");
    rejects("/0/content/2/title", &json!(""), "messages[0].content[2].title: must have 1 to 500 characters");
    rejects("/0/content/3/source/content", &json!([]), "messages[0].content[3].source.content: must have at least one");
    let binary = json!({"type": "base64", "media_type": "text/plain", "data": "eA=="});
    rejects("/0/content/2/source", &binary, "messages[0].content[2].source.media_type: must be one of application/pdf");
}

#[test]
fn cache_breakpoints() {
    let text = json!({"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}});
    rejects("/4/content", &json!([text, text, text, text]), "messages: must not have more than 4");
}
