//! Files of messages: their parts, deduplication, links and inline images.

use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::client::{Client, Form};
use crate::support::{TestConfig, run, run_with};

const PIXEL: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mP4z8AAAAMBAQD3A0FDAAAAAElFTkSuQmCC";

fn pixel() -> Vec<u8> {
    STANDARD.decode(PIXEL).unwrap()
}

/// Returns a form with a message that has a part for each (type, field).
fn form(parts: &[(&str, &str)]) -> Form {
    let parts: Vec<Value> = parts.iter().map(|(kind, field)| json!({"type": kind, "file_field": field})).collect();
    Form::new().text("payload", &json!({"format": "acontext", "blob": {"role": "user", "parts": parts}}).to_string())
}

/// Stores a message and returns it.
async fn store_form(client: &Client, session: &str, form: Form) -> Value {
    let response = client.store_form_message(session, form).await;
    assert_eq!(response.status, StatusCode::CREATED, "{}", response.text());
    response.data()
}

#[tokio::test]
async fn a_file_is_named_in_its_part_and_served_by_link_and_key() {
    run(async |app| {
        let (client, stranger) = (app.project().await, app.project().await);
        let session = client.new_session().await;
        let form = form(&[("image", "pic"), ("file", "doc"), ("file", "doc")])
            .file("ignored", "x", "an unused file")
            .file("doc", "C:\\dir/notes.MD", "# Title\n")
            .file("pic", "red.png", pixel())
            .file("doc", "second.txt", "the first one counts");
        let message = store_form(&client, &session, form).await;
        let (image, doc) = (&message["parts"][0], &message["parts"][1]);
        assert_eq!((&image["filename"], &image["asset"]["mime"]), (&json!("red.png"), &json!("image/png")));
        assert_eq!((&doc["filename"], &doc["asset"]["size_b"]), (&json!("notes.MD"), &json!(8)));
        assert_eq!(message["parts"][2], *doc);
        assert!(image.get("file_field").is_none(), "{image}");
        let key = doc["asset"]["s3_key"].as_str().unwrap();
        let prefix = format!("assets/{}/", client.project());
        assert!(key.starts_with(&prefix) && key.rsplit('.').next() == Some("md"), "{key}");
        let page = client.messages(&session, "format=acontext").await;
        assert_eq!(page["items"][0]["parts"], message["parts"]);
        let urls = page["public_urls"].as_object().unwrap();
        assert_eq!(urls.len(), 2);
        let link = urls[image["asset"]["sha256"].as_str().unwrap()]["url"].as_str().unwrap();
        let response = app.client().get(link.strip_prefix("http://localhost:8029").unwrap()).await;
        assert_eq!((response.header("content-type"), &response.bytes), ("image/png", &pixel()));
        let page = client.messages(&session, "format=acontext&with_asset_public_url=false").await;
        assert!(page.get("public_urls").is_none());
        let download = format!("/api/v1/session/{session}/asset/download?s3_key=");
        let response = client.get(&format!("{download}{key}")).await;
        assert_eq!(
            (response.header("content-type"), response.text().as_str()),
            ("application/octet-stream", "# Title\n")
        );
        let part = client.get_with(&format!("{download}{key}"), "range", "bytes=2-3").await;
        assert_eq!((part.status.as_u16(), part.text().as_str()), (206, "Ti"));
        client.get(&download).await.assert_error(400, "s3_key");
        client.get(&format!("{download}assets/{}/x", Uuid::new_v4())).await.assert_error(403, "asset does not belong");
        client.get(&format!("{download}{prefix}none")).await.assert_error(404, "asset not found");
        client.get(&format!("{download}{prefix}%00")).await.assert_error(404, "asset not found");
        stranger.get(&format!("{download}{key}")).await.assert_error(403, "session does not belong");
        let other = client.new_session().await;
        let elsewhere = format!("/api/v1/session/{other}/asset/download?s3_key={key}");
        client.get(&elsewhere).await.assert_error(404, "asset not found");
    })
    .await;
}

#[tokio::test]
async fn images_are_inlined_where_a_format_requires_bytes() {
    let config = TestConfig::default().with("ACONTEXTD_INLINE_LIMIT", "100");
    run_with(config, async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        store_form(&client, &session, form(&[("image", "f")]).file("f", "red.png", pixel())).await;
        let anthropic = client.messages(&session, "format=anthropic").await["items"][0]["content"][0].clone();
        assert_eq!(anthropic["source"], json!({"type": "base64", "media_type": "image/png", "data": PIXEL}));
        let gemini = client.messages(&session, "format=gemini").await["items"][0]["parts"][0].clone();
        assert_eq!(gemini, json!({"inlineData": {"mimeType": "image/png", "data": PIXEL}}));
        let openai = client.messages(&session, "format=openai").await["items"][0]["content"][0].clone();
        assert!(openai["image_url"]["url"].as_str().unwrap().starts_with("http://localhost:8029/api/v1/material/"));
        let unlinked = client.messages(&session, "format=openai&with_asset_public_url=false").await;
        let url = unlinked["items"][0]["content"][0]["image_url"]["url"].clone();
        assert_eq!(url, format!("data:image/png;base64,{PIXEL}"));
        // An image beyond the limit of a list is returned as a link.
        let larger = [pixel(), vec![0; 100]].concat();
        store_form(&client, &session, form(&[("image", "f")]).file("f", "large.png", larger)).await;
        let linked = client.messages(&session, "format=anthropic").await["items"][1]["content"][0].clone();
        assert_eq!(linked["source"]["type"], "url", "{linked}");
        let linked = client.messages(&session, "format=gemini").await["items"][1]["parts"][0].clone();
        assert!(linked["fileData"]["fileUri"].as_str().unwrap().contains("/api/v1/material/"), "{linked}");
    })
    .await;
}

#[tokio::test]
async fn equal_content_is_stored_until_its_last_message_is_deleted() {
    let config = TestConfig::default().with("ACONTEXTD_BLOB_GRACE", "0s");
    run_with(config, async |app| {
        let client = app.project().await;
        let (one, other) = (client.new_session().await, client.new_session().await);
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a.txt", "the same content").await;
        let file = || form(&[("file", "f")]).file("f", "b.txt", "the same content");
        store_form(&client, &one, file()).await;
        let key = store_form(&client, &other, file()).await["parts"][0]["asset"]["s3_key"].clone();
        let many =
            (0..8).map(|_| client.store_form_message(&one, form(&[("file", "f")]).file("f", "c", "another content")));
        for response in futures_util::future::join_all(many).await {
            assert_eq!(response.status, StatusCode::CREATED, "{}", response.text());
        }
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from blobs where state = 'live'").await, 2);
        for path in [format!("/api/v1/disk/{disk}"), format!("/api/v1/session/{one}")] {
            assert_eq!(client.delete(&path).await.status, StatusCode::OK);
        }
        app.app.blobs.sweep().await.unwrap();
        assert_eq!(
            app.fetch_scalar::<i64>("select count(*) from blobs where state = 'live'").await,
            1,
            "one content still has a reference"
        );
        let path = format!("/api/v1/session/{other}/asset/download?s3_key={}", key.as_str().unwrap());
        assert_eq!(client.get(&path).await.text(), "the same content");
    })
    .await;
}

#[tokio::test]
async fn concurrent_messages_with_the_same_files_are_all_stored() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        for round in 0..8 {
            let one = |n: usize| {
                let (a, b) = (format!("a {round}"), format!("b {round}"));
                let parts =
                    if n.is_multiple_of(2) { [("file", "a"), ("file", "b")] } else { [("file", "b"), ("file", "a")] };
                client.store_form_message(&session, form(&parts).file("a", "a.txt", a).file("b", "b.txt", b))
            };
            for response in futures_util::future::join_all((0..6).map(one)).await {
                assert_eq!(response.status, StatusCode::CREATED, "{}", response.text());
            }
        }
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from blobs where state = 'live'").await, 16);
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from message_files").await, 96);
    })
    .await;
}

#[tokio::test]
async fn each_occurrence_of_a_file_counts_toward_the_inline_limit() {
    let config = TestConfig::default().with("ACONTEXTD_INLINE_LIMIT", "200");
    run_with(config, async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        store_form(&client, &session, form(&[("image", "f"); 2]).file("f", "red.png", pixel())).await;
        let parts = client.messages(&session, "format=gemini").await["items"][0]["parts"].clone();
        assert!(parts[0].get("inlineData").is_some() && parts[1].get("inlineData").is_some(), "{parts}");
        store_form(&client, &session, form(&[("image", "f"); 2]).file("f", "red.png", pixel())).await;
        let parts = client.messages(&session, "format=gemini").await["items"][0]["parts"].clone();
        assert!(parts[0].get("fileData").is_some(), "four occurrences exceed the limit: {parts}");
    })
    .await;
}

#[tokio::test]
async fn a_rejected_message_leaves_no_rows() {
    let config =
        TestConfig::default().with("ACONTEXTD_MESSAGE_FILES", "2").with("ARTIFACT_MAX_UPLOAD_SIZE_BYTES", "1000");
    run_with(config, async |app| {
        let (client, stranger) = (app.project().await, app.project().await);
        let session = client.new_session().await;
        let missing = form(&[("file", "present"), ("file", "absent")]).file("present", "a", "a");
        client.store_form_message(&session, missing).await.assert_error(400, "missing file absent");
        let text = form(&[("file", "f")]).text("f", "a text is no file");
        client.store_form_message(&session, text).await.assert_error(400, "missing file f");
        let many = form(&[("file", "a")]).file("a", "a", "1").file("b", "b", "2").file("c", "c", "3");
        client.store_form_message(&session, many).await.assert_error(400, "c: exceeds the maximum of 2 files");
        let large = form(&[("file", "f")]).file("f", "f", vec![b'x'; 1001]);
        client.store_form_message(&session, large).await.assert_error(413, "file size exceeds");
        let name = form(&[("file", "f")]).file("f", &"n".repeat(1025), "x");
        client.store_form_message(&session, name).await.assert_error(400, "f: file name");
        let valid = || form(&[("file", "f")]).file("f", "f", "content");
        client.store_form_message(&Uuid::new_v4().to_string(), valid()).await.assert_error(404, "session not found");
        stranger.store_form_message(&session, valid()).await.assert_error(404, "session not found");
        app.blobs.set_down(true);
        assert_eq!(client.store_form_message(&session, valid()).await.status, StatusCode::SERVICE_UNAVAILABLE);
        app.blobs.set_down(false);
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from messages").await, 0);
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from message_files").await, 0);
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from blobs where state = 'live'").await, 0);
        assert_eq!(client.store_form_message(&session, valid()).await.status, StatusCode::CREATED);
        assert_eq!(app.spooled_files(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_client_cannot_refer_to_the_file_of_another_message() {
    run(async |app| {
        let (client, stranger) = (app.project().await, app.project().await);
        let (session, other) = (client.new_session().await, stranger.new_session().await);
        let message = store_form(&client, &session, form(&[("file", "f")]).file("f", "secret.txt", "secret")).await;
        // Another project sends the part as the response contained it.
        let blob = json!({"role": "user", "parts": [message["parts"][0]]});
        assert_eq!(stranger.store_message(&other, "acontext", blob).await.status, StatusCode::CREATED);
        let page = stranger.messages(&other, "format=acontext").await;
        assert!(page.get("public_urls").is_none(), "{page}");
        assert!(page["items"][0]["parts"][0].get("asset").is_none(), "{page}");
    })
    .await;
}

#[tokio::test]
async fn an_encrypted_project_stores_no_plaintext_message() {
    run(async |app| {
        let client = app.legacy_key_project().await;
        let session = client.new_session().await;
        app.execute("update projects set encryption_enabled = true").await;
        // The key cache contains the former setting in the first round, and is empty in the second.
        for _ in 0..2 {
            let response = client.store_message(&session, "openai", json!({"role": "user", "content": "secret"})).await;
            response.assert_error(403, "encryption enabled, API key required");
            assert_eq!(response.json()["error"], "ENCRYPTION_KEY_REQUIRED");
            app.clear_key_cache();
        }
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from messages where content like '%secret%'").await, 0);
    })
    .await;
}
