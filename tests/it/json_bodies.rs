//! JSON that clients send: half surrogate pairs and deep nesting.

use acontextd::json::MAX_DEPTH;
use axum::http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::Value;

use crate::support::client::{Client, Form, TestResponse};
use crate::support::run;

async fn store(client: &Client, session: &str, body: &str) -> TestResponse {
    client.json(Method::POST, &format!("/api/v1/session/{session}/messages"), body).await
}

/// Stores a text of the user. Without it, messages with calls would become one message in another format.
async fn store_separator(client: &Client, session: &str) {
    let body = r#"{"blob":{"role":"user","content":"next"}}"#;
    assert_eq!(store(client, session, body).await.status, StatusCode::CREATED);
}

/// Reads the messages of a session. The envelope is around them, so the response may be deeper than a request.
async fn items(client: &Client, session: &str, query: &str) -> Vec<Value> {
    let response = client.get(&format!("/api/v1/session/{session}/messages?{query}")).await;
    assert_eq!(response.status, StatusCode::OK, "{}", response.text());
    let text = response.text();
    let mut parser = serde_json::Deserializer::from_str(&text);
    parser.disable_recursion_limit();
    let body = Value::deserialize(&mut parser).unwrap();
    body["data"]["items"].as_array().unwrap().clone()
}

#[tokio::test]
async fn half_an_emoji_becomes_the_replacement_character() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let body = r#"{"format":"anthropic","meta":{"k\ude00":"\ud83d"},"blob":{"role":"assistant","content":[
            {"type":"text","text":"half \ud83d, whole \ud83d\ude00, no escape \\ud83d"},
            {"type":"tool_use","id":"t","name":"f","input":{"q":"\uD83D."}}]}}"#;
        assert_eq!(store(&client, &session, body).await.status, StatusCode::CREATED);
        store_separator(&client, &session).await;
        let arguments = r#"{"blob":{"role":"assistant","tool_calls":[
            {"id":"c","type":"function","function":{"name":"f","arguments":"{\"q\":\"\\ud83d.\"}"}}]}}"#;
        assert_eq!(store(&client, &session, arguments).await.status, StatusCode::CREATED);
        let form = Form::new().text("payload", r#"{"blob":{"role":"tool","tool_call_id":"c","content":"\ude00"}}"#);
        assert_eq!(client.store_form_message(&session, form).await.status, StatusCode::CREATED);

        let read = items(&client, &session, "format=anthropic").await;
        assert_eq!(read[0]["content"][0]["text"], "half \u{fffd}, whole 😀, no escape \\ud83d");
        assert_eq!(read[0]["content"][1]["input"]["q"], "\u{fffd}.");
        assert_eq!(read[2]["content"][0]["input"]["q"], "\u{fffd}.");
        let page = client.messages(&session, "format=openai").await;
        assert_eq!(page["metas"][0]["k\u{fffd}"], "\u{fffd}");
        assert_eq!(page["items"][3]["content"], "\u{fffd}");

        // JSON in a query parameter.
        let strategies = r#"[{"type":"remove_tool_result","params":{"keep_recent_n_tool_results":0,"tool_result_placeholder":"\ud83d"}}]"#;
        let encoded: Vec<_> = strategies.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let query = format!("format=openai&edit_strategies={}", encoded.concat());
        let read = items(&client, &session, &query).await;
        assert_eq!(read[3]["content"], "\u{fffd}");
    })
    .await;
}

/// Returns JSON with this nesting depth.
fn nested(depth: usize) -> String {
    format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth))
}

#[tokio::test]
async fn json_nested_256_deep_is_stored_and_converted() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        // The input of a call is the fifth level of the body.
        for depth in [120, 200, MAX_DEPTH - 4] {
            let input = nested(depth);
            let call = format!("{{\"type\":\"tool_use\",\"id\":\"t{depth}\",\"name\":\"f\",\"input\":{input}}}");
            let body = format!("{{\"format\":\"anthropic\",\"blob\":{{\"role\":\"assistant\",\"content\":[{call}]}}}}");
            let stored = store(&client, &session, &body).await;
            assert_eq!(stored.status, StatusCode::CREATED, "{}", stored.text());
            store_separator(&client, &session).await;
            // In OpenAI, arguments are a text, which may be deeper than the body.
            let text = Value::from(nested(depth + 4)).to_string();
            let call = format!(
                "{{\"id\":\"o{depth}\",\"type\":\"function\",\"function\":{{\"name\":\"f\",\"arguments\":{text}}}}}"
            );
            let body = format!("{{\"blob\":{{\"role\":\"assistant\",\"tool_calls\":[{call}]}}}}");
            assert_eq!(store(&client, &session, &body).await.status, StatusCode::CREATED);
            store_separator(&client, &session).await;
        }
        for format in ["openai", "anthropic", "gemini", "acontext"] {
            let read = items(&client, &session, &format!("format={format}")).await;
            assert_eq!(read.len(), 12);
            // What is read can be stored again.
            for item in read {
                let body = format!("{{\"format\":\"{format}\",\"blob\":{item}}}");
                let other = client.new_session().await;
                let stored = store(&client, &other, &body).await;
                assert_eq!(stored.status, StatusCode::CREATED, "{format}: {}", stored.text());
                for again in ["openai", "anthropic", "gemini", "acontext"] {
                    assert_eq!(items(&client, &other, &format!("format={again}")).await.len(), 1);
                }
            }
        }
        let read = items(&client, &session, "format=anthropic").await;
        assert_eq!(read[8]["content"][0]["input"].to_string(), nested(MAX_DEPTH - 4));
        assert_eq!(read[6]["content"][0]["input"].to_string(), nested(204));
    })
    .await;
}

#[tokio::test]
async fn deeper_json_is_rejected() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        for depth in [MAX_DEPTH, 100_000] {
            let body = format!("{{\"blob\":{{\"role\":\"user\",\"content\":\"x\",\"more\":{}}}}}", nested(depth));
            let response = store(&client, &session, &body).await;
            assert_eq!(response.status, StatusCode::BAD_REQUEST);
            assert!(response.text().contains("256 levels"), "{}", response.text());
        }
        // Metadata is stored in a column.
        for (depth, status) in [(120, StatusCode::CREATED), (121, StatusCode::BAD_REQUEST)] {
            let body = format!("{{\"blob\":{{\"role\":\"user\",\"content\":\"x\"}},\"meta\":{}}}", nested(depth));
            assert_eq!(store(&client, &session, &body).await.status, status, "{depth}");
        }
        assert_eq!(items(&client, &session, "format=acontext").await.len(), 1);
    })
    .await;
}
