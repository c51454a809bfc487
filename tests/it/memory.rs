//! Memory use of JSON: body limits by route, the maximum number of values, and reservations that end with their
//! request.

use std::time::Duration;

use acontextd::http::memory::{BodyMemory, Reservations};
use axum::body::Body;
use axum::http::{Method, header};
use bytes::Bytes;
use futures_util::{FutureExt, stream};
use serde_json::{Value, json};

use crate::support::client::{Client, Form, TestResponse};
use crate::support::{TestConfig, run, run_with};

/// Returns a JSON list of `count` objects with one key each.
fn objects(count: usize) -> String {
    format!("[{}]", vec![r#"{"a":1}"#; count].join(","))
}

/// Sends a body without announcing its length.
async fn send_chunked(client: &Client, method: Method, path: &str, body: &str) -> TestResponse {
    let chunks: Vec<Result<Bytes, std::io::Error>> =
        body.as_bytes().chunks(10_000).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
    let request = client.request(method, path).header(header::CONTENT_TYPE, "application/json");
    client.send(request.body(Body::from_stream(stream::iter(chunks))).unwrap()).await
}

/// A body without free-form objects may have 64 KiB, and any other body four times the limit of its objects.
#[tokio::test]
async fn body_limits_depend_on_the_route() {
    run_with(TestConfig::default().with("ACONTEXTD_META_LIMIT", "32KiB"), async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let padded = |length: usize| format!("{{\"type\":\"a\",\"data\":{{}}{}}}", " ".repeat(length - 22));
        for (method, path, limit) in [
            (Method::POST, "/api/v1/disk".to_owned(), 64 << 10),
            (Method::POST, format!("/api/v1/session/{session}/events"), 128 << 10),
            (Method::PUT, format!("/api/v1/session/{session}/configs"), 128 << 10),
            (Method::POST, "/api/v1/learning_spaces".to_owned(), 128 << 10),
        ] {
            for is_announced in [true, false] {
                let send = async |body: String| {
                    if is_announced {
                        client.json(method.clone(), &path, &body).await
                    } else {
                        send_chunked(&client, method.clone(), &path, &body).await
                    }
                };
                let within = send(padded(limit)).await;
                assert_ne!(within.status.as_u16(), 413, "{path}: {}", within.text());
                send(padded(limit + 1)).await.assert_error(413, &limit.to_string());
            }
        }
        // A message may be longer.
        let text = "x".repeat(200 << 10);
        client.store_message(&session, "openai", json!({"role": "user", "content": text})).await.assert_status(201);
    })
    .await;
}

#[tokio::test]
async fn json_with_too_many_values_is_rejected_everywhere() {
    run_with(TestConfig::default().with("ACONTEXTD_JSON_VALUES", "5000"), async |app| {
        let client = app.project().await;
        let (session, disk) = (client.new_session().await, client.new_disk().await);
        let (few, many) = (objects(2_400), objects(2_600));
        let message = |list: &str| {
            format!(r#"{{"format":"anthropic","blob":{{"role":"user","content":[{{"type":"other","data":{list}}}]}}}}"#)
        };
        let messages = format!("/api/v1/session/{session}/messages");
        client.json(Method::POST, &messages, &message(&few)).await.assert_status(201);
        client
            .json(Method::POST, &messages, &message(&many))
            .await
            .assert_error(400, "body: must not have more than 5000");
        let form = Form::new().text("payload", &message(&many));
        client.store_form_message(&session, form).await.assert_error(400, "payload: must not have more than 5000");
        for (method, path, field) in [
            (Method::POST, "/api/v1/session".to_owned(), "configs"),
            (Method::PUT, format!("/api/v1/session/{session}/configs"), "configs"),
            (Method::POST, "/api/v1/learning_spaces".to_owned(), "meta"),
        ] {
            let body = |list: &str| format!(r#"{{"{field}":{{"a":{list}}}}}"#);
            assert!(client.json(method.clone(), &path, &body(&few)).await.status.is_success(), "{path}");
            client.json(method, &path, &body(&many)).await.assert_error(400, "body: must not have more than 5000");
        }
        let meta = |list: &str| format!(r#"{{"a":{list}}}"#);
        let form = |list: &str| Form::new().file("file", "a.txt", "a").text("meta", &meta(list));
        client.upload_form(&disk, form(&few)).await.assert_status(201);
        client.upload_form(&disk, form(&many)).await.assert_error(400, "meta: must not have more than 5000");
        let change = json!({"file_path": "/a.txt", "meta": meta(&many)});
        let changed = client.put(&format!("/api/v1/disk/{disk}/artifact"), change).await;
        changed.assert_error(400, "meta: must not have more than 5000");
        let parameters = vec!["a=1"; 1_001].join("&");
        let request = client.request(Method::POST, "/api/v1/disk").body(Body::from(parameters)).unwrap();
        client.send(request).await.assert_error(400, "parameters");
    })
    .await;
}

/// Arguments and results are a text in one format and an object in another. A text that would become very many values
/// stays a text.
#[tokio::test]
async fn texts_of_very_many_values_stay_texts_in_other_formats() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let call = |list: &str| {
            json!({"role": "assistant", "content": null, "tool_calls": [{"id": "call_1", "type": "function",
                   "function": {"name": "f", "arguments": format!("{{\"list\":{list}}}")}}]})
        };
        let (few, many) = (objects(1_000), objects(130_000));
        for list in [&few, &many] {
            client.store_message(&session, "openai", call(list)).await.assert_status(201);
            // Calls that follow each other directly would become one message.
            client
                .store_message(&session, "openai", json!({"role": "user", "content": "next"}))
                .await
                .assert_status(201);
        }
        for (format, path) in [("anthropic", "/content/0/input"), ("gemini", "/parts/0/functionCall/args")] {
            let page = client.messages(&session, &format!("format={format}")).await;
            let arguments = |index: usize| page["items"][index].pointer(path).unwrap();
            assert_eq!(arguments(0)["list"].as_array().unwrap().len(), 1_000, "{format}");
            let text = arguments(2)["input"].as_str().unwrap();
            assert_eq!(
                serde_json::from_str::<Value>(text).unwrap()["list"].as_array().unwrap().len(),
                130_000,
                "{format}"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn reservations_wait_for_each_other_and_end_with_their_request() {
    let memory = BodyMemory::default();
    let (first, second) = (Reservations::default(), Reservations::default());
    // A reservation of more than the total memory gets all of it.
    memory.reserve_body(&first, u64::MAX).await.unwrap();
    memory.reserve_values(&first, usize::MAX).await.unwrap();
    assert!(memory.reserve_body(&second, 1).now_or_never().is_none(), "a full memory has room for bodies");
    assert!(memory.reserve_values(&second, 1).now_or_never().is_none(), "a full memory has room for values");
    let waiting = memory.reserve_body(&second, 1);
    drop(first);
    tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap().unwrap();
    memory.reserve_values(&second, 1).now_or_never().unwrap().unwrap();
}

#[tokio::test]
async fn a_finished_request_has_no_reservation_left() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        for _ in 0..20 {
            // Without an announced length, each reserves as much as a message may have.
            let body =
                json!({"format": "openai", "blob": {"role": "user", "content": "x".repeat(20 << 10)}}).to_string();
            let path = format!("/api/v1/session/{session}/messages");
            let sent = send_chunked(&client, Method::POST, &path, &body);
            tokio::time::timeout(Duration::from_mins(1), sent).await.unwrap().assert_status(201);
        }
    })
    .await;
}

/// A request that parses its body and then a text in it must not hold the memory for the first while it waits for the second.
#[tokio::test]
async fn a_request_that_parses_two_texts_does_not_block_itself() {
    run(async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a.txt", "content").await;
        let meta = format!("{{\"list\":[{}0]}}", "0,".repeat(20_000));
        let body = json!({"file_path": "/a.txt", "meta": meta}).to_string();
        let estimate = |text: &str| acontextd::json::estimate(text.as_bytes()).bytes;
        // There is room for the larger of the two estimates, but not for both.
        let free = estimate(&meta).max(estimate(&body)) + (10 << 10);
        assert!(estimate(&meta).min(estimate(&body)) > 20 << 10);
        let others = Reservations::default();
        let all = 384 << 20;
        app.app.request_context.body_memory.reserve_values(&others, all - free).await.unwrap();
        let path = format!("/api/v1/disk/{disk}/artifact");
        let update = client.json(Method::PUT, &path, &body);
        tokio::time::timeout(Duration::from_secs(30), update).await.expect("a response").assert_status(200);
    })
    .await;
}
