//! The memory of responses that clients do not read.

use acontextd::features;
use axum::body::Body;
use axum::http::{Request, header};
use axum::response::Response;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::client::Client;
use crate::support::{TestApp, TestConfig, run, run_with};

const MIB: usize = 1 << 20;

/// Sends a request and returns the response without reading its body.
async fn get_unread(app: &TestApp, client: &Client, path: &str) -> Response {
    let request = Request::builder().uri(path).header(header::AUTHORIZATION, format!("Bearer {}", client.key()));
    let request = request.header(header::HOST, "localhost").body(Body::empty()).unwrap();
    features::router(&app.app).unwrap().oneshot(request).await.unwrap()
}

async fn read(response: Response) -> Value {
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

fn len_of_items(response: &Value) -> usize {
    response["data"]["items"].as_array().unwrap().len()
}

#[tokio::test]
async fn unread_messages_use_a_limited_amount_of_memory() {
    let config = TestConfig::default().with("ACONTEXTD_RESPONSE_MEMORY", "110MiB");
    run_with(config, async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        for _ in 0..3 {
            client.store_text(&session, &"x".repeat(20 * MIB)).await;
        }
        let path = format!("/api/v1/session/{session}/messages");
        let first = get_unread(&app, &client, &path).await;
        // There is not enough memory for 60 MiB, so the page ends early.
        let second = get_unread(&app, &client, &path).await;
        let third = get_unread(&app, &client, &path).await;
        assert_eq!(third.status().as_u16(), 503);
        assert_eq!(third.headers()[header::RETRY_AFTER], "2");
        let second = read(second).await;
        assert_eq!((len_of_items(&second), &second["data"]["has_more"]), (2, &Value::Bool(true)));
        let cursor = second["data"]["next_cursor"].as_str().unwrap();
        let rest = read(get_unread(&app, &client, &format!("{path}?limit=10&cursor={cursor}")).await).await;
        assert_eq!((len_of_items(&rest), &rest["data"]["has_more"]), (1, &Value::Bool(false)));
        assert_eq!(len_of_items(&read(first).await), 3);
        // The memory of the responses that were read is available again.
        assert_eq!(len_of_items(&read(get_unread(&app, &client, &path).await).await), 3);
    })
    .await;
}

#[tokio::test]
async fn unread_lists_use_a_limited_amount_of_memory() {
    let config = TestConfig::default().with("ACONTEXTD_RESPONSE_MEMORY", "150KiB");
    run_with(config, async |app| {
        let client = app.project().await;
        let configs = json!({"configs": {"text": "x".repeat(100_000)}});
        client.post("/api/v1/session", configs.clone()).await.assert_status(201);
        let first = get_unread(&app, &client, "/api/v1/session").await;
        assert_eq!(get_unread(&app, &client, "/api/v1/session").await.status().as_u16(), 503);
        // A small response needs no reservation.
        client.get("/api/v1/ping").await.assert_status(200);
        assert_eq!(len_of_items(&read(first).await), 1);
        client.get("/api/v1/session").await.assert_status(200);
    })
    .await;
}

#[tokio::test]
async fn a_page_of_a_list_ends_early_if_its_entries_are_large() {
    run(async |app| {
        let client = app.project().await;
        for n in 0..36 {
            let configs = json!({"configs": {"n": n, "text": "x".repeat(1_000_000)}});
            client.post("/api/v1/session", configs).await.assert_status(201);
        }
        let mut numbers: Vec<i64> = Vec::new();
        let (mut path, mut pages) = ("/api/v1/session?limit=200".to_owned(), 0);
        loop {
            let page = client.get(&path).await.data();
            pages += 1;
            let items = page["items"].as_array().unwrap();
            numbers.extend(items.iter().map(|item| item["configs"]["n"].as_i64().unwrap()));
            assert_eq!(page["has_more"], page.get("next_cursor").is_some());
            match page["next_cursor"].as_str() {
                Some(cursor) => path = format!("/api/v1/session?limit=200&cursor={cursor}"),
                None => break,
            }
        }
        assert_eq!((pages, numbers), (2, (0..36).collect()));
    })
    .await;
}
