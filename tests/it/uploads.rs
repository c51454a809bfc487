//! Uploads: valid and invalid forms, and failures during an upload.

use axum::body::Body;
use axum::http::{Method, StatusCode, header};
use bytes::Bytes;
use futures_util::StreamExt;

use crate::support::client::{Client, Form, TestResponse};
use crate::support::{TestConfig, run, run_with};

async fn send(client: &Client, disk: &str, kind: &str, body: impl Into<Body>) -> TestResponse {
    let request = client.request(Method::POST, &format!("/api/v1/disk/{disk}/artifact"));
    client.send(request.header(header::CONTENT_TYPE, kind).body(body.into()).unwrap()).await
}

#[tokio::test]
async fn fields_may_come_in_any_order_and_a_name_is_its_last_segment() {
    run(async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        let form = Form::new().file("file", "dir/in/räk 寿司.txt", "x").text("file_path", " docs/ignored.md ");
        let stored = client.upload_form(&disk, form).await.data();
        assert_eq!((stored["path"].as_str(), stored["filename"].as_str()), (Some("/docs/"), Some("räk 寿司.txt")));
        let extended = Form::new().part("form-data; name=\"file\"; filename*=UTF-8''gr%C3%B6%C3%9Fe.txt", b"x");
        assert_eq!(client.upload_form(&disk, extended).await.data()["filename"], "größe.txt");
        let unknown = Form::new().text("other", "ignored").file("picture", "p.png", "ignored").file("file", "a", "x");
        assert_eq!(client.upload_form(&disk, unknown).await.status, StatusCode::CREATED);
        assert_eq!(client.upload(&disk, "/", "empty", "").await["meta"]["__artifact_info__"]["size"], 0);
        assert_eq!(client.download(&disk, "empty").await.unwrap(), b"");
    })
    .await;
}

#[tokio::test]
async fn forms_without_a_valid_file_are_rejected() {
    run(async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        let file = || Form::new().file("file", "a.txt", "x");
        let raw =
            |name: &[u8]| Form::new().raw_part(&[b"form-data; name=\"file\"; filename=\"", name, b"\""].concat(), b"x");
        for (form, text) in [
            (Form::new().text("file_path", "/docs/"), "file is required"),
            (Form::new().text("file", "hello"), "file is required"),
            (Form::new().file("file", "", "x"), "file is required"),
            (Form::new().file("other", "a.txt", "x"), "file is required"),
            (file().text("file_path", "/../up/"), "invalid path"),
            (file().text("file_path", "C:\\docs\\"), "invalid path"),
            (file().text("file_path", &format!("/{}/", "d".repeat(1024))), "invalid path"),
            (file().text("file_path", "/a\0b/"), "NUL"),
            (file().text("meta", "{broken"), "invalid meta JSON format"),
            (file().text("meta", "[1]"), "invalid meta JSON format"),
            (file().text("meta", r#"{"__artifact_info__": {}}"#), "reserved key"),
            (file().text("meta", r#"{"a": "\u0000"}"#), "NUL"),
            (file().text("meta", &"[".repeat(10_000)), "invalid meta JSON format"),
            (file().file("file", "b.txt", "y"), "file: must not appear more than once in the form"),
            (file().text("meta", "{}").text("meta", "{}"), "meta: must not appear more than once in the form"),
            (Form::new().file("file", "..", "x"), "file"),
            (Form::new().file("file", "C:\\x\\a.txt", "x"), "file"),
            (Form::new().file("file", &"n".repeat(1025), "x"), "file"),
            (raw(b"\xff\xfe.txt"), "file"),
            (Form::new().part("form-data; name=\"file\"; filename*=UTF-8''%ff", b"x"), "file"),
            (Form::new().raw_part(b"form-data; name=\"meta\"", b"\xff").file("file", "a", "x"), "meta"),
        ] {
            client.upload_form(&disk, form).await.assert_error(400, text);
        }
        let (kind, body) = file().finish();
        send(&client, &disk, "application/json", "{}").await.assert_error(400, "file is required");
        send(&client, &disk, "multipart/form-data", body.clone()).await.assert_error(400, "file is required");
        send(&client, &disk, &kind, body[..body.len() - 20].to_vec()).await.assert_error(400, "form");
        send(&client, &disk, &kind, "no form at all").await.assert_error(400, "form");
        send(&client, "none", &kind, body.clone()).await.assert_error(400, "disk_id");
        send(&client, "00000000-0000-4000-8000-000000000000", &kind, body).await.assert_error(404, "disk not found");
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from artifacts").await, 0);
        assert_eq!(app.blobs.keys().len(), 0, "nothing was stored");
    })
    .await;
}

#[tokio::test]
async fn only_files_over_the_limit_are_rejected_and_before_their_end() {
    run_with(TestConfig::default().with("ARTIFACT_MAX_UPLOAD_SIZE_BYTES", "1MiB"), async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "just.bin", vec![1; 1 << 20]).await;
        let over = client.upload_form(&disk, Form::new().file("file", "over.bin", vec![1; (1 << 20) + 1])).await;
        over.assert_error(413, "file size exceeds maximum allowed size of 1.00MB");

        // With `Content-Length`, the upload is rejected before it is read. Without it, the upload is rejected when it
        // exceeds the limit, although the body never ends.
        let (kind, _) = Form::new().finish();
        let endless = || Body::from_stream(futures_util::stream::pending::<std::io::Result<Bytes>>());
        let request = client.request(Method::POST, &format!("/api/v1/disk/{disk}/artifact"));
        let request = request.header(header::CONTENT_TYPE, &kind).header(header::CONTENT_LENGTH, 1_u64 << 40);
        client.send(request.body(endless()).unwrap()).await.assert_error(413, "1.00MB");
        let head = "--a-boundary-of-tests\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n";
        let chunks = std::iter::once(Bytes::from(head)).chain(std::iter::repeat_n(Bytes::from(vec![1; 64 << 10]), 40));
        let flood =
            futures_util::stream::iter(chunks.map(Ok::<_, std::io::Error>)).chain(futures_util::stream::pending());
        send(&client, &disk, &kind, Body::from_stream(flood)).await.assert_error(413, "1.00MB");
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from artifacts").await, 1);
    })
    .await;
}

#[tokio::test]
async fn a_client_that_disconnects_leaves_nothing() {
    run(async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        let (kind, _) = Form::new().finish();
        let head = "--a-boundary-of-tests\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n";
        let chunks = std::iter::once(Bytes::from(head)).chain(std::iter::repeat_n(Bytes::from(vec![1; 64 << 10]), 20));
        let broken = futures_util::stream::iter(chunks.map(Ok))
            .chain(futures_util::stream::once(async { Err(std::io::Error::other("disconnected")) }));
        send(&client, &disk, &kind, Body::from_stream(broken)).await.assert_error(400, "form");
        for table in ["artifacts", "blobs"] {
            let count = format!("select count(*) from {table}");
            assert_eq!(sqlx::query_scalar::<_, i64>(&count).fetch_one(&*app.app.db).await.unwrap(), 0, "{table}");
        }
        assert_eq!(app.spooled_files(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_stalled_body_is_rejected() {
    run_with(TestConfig::default().with("ACONTEXTD_IDLE_TIMEOUT", "50ms"), async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        let (kind, _) = Form::new().finish();
        let endless = Body::from_stream(futures_util::stream::pending::<std::io::Result<Bytes>>());
        send(&client, &disk, &kind, endless).await.assert_error(400, "form");
    })
    .await;
}

#[tokio::test]
async fn an_unavailable_object_store_is_a_503_and_keeps_the_old_file() {
    run(async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a.txt", "old").await;
        app.blobs.set_down(true);
        let response = client.upload_form(&disk, Form::new().file("file", "a.txt", "new")).await;
        response.assert_error(503, "object store");
        assert_eq!(response.header("retry-after"), "2");
        client.get(&format!("/api/v1/disk/{disk}/artifact?file_path=a.txt")).await.assert_error(503, "object store");
        assert_eq!(client.get(&format!("/api/v1/disk/{disk}/artifact/ls")).await.status, StatusCode::OK);
        app.blobs.set_down(false);
        assert_eq!(client.download(&disk, "a.txt").await.unwrap(), b"old");
        client.upload(&disk, "/", "a.txt", "new").await;
        assert_eq!(client.download(&disk, "a.txt").await.unwrap(), b"new");
    })
    .await;
}

#[tokio::test]
async fn equal_content_of_a_project_is_stored_once() {
    run(async |app| {
        let (client, other) = (app.project().await, app.project().await);
        let (disk, other_disk) = (client.new_disk().await, other.new_disk().await);
        let uploads = (0..16).map(|n| client.upload(&disk, "/", ["a.txt", "b.md"][n % 2], "shared bytes"));
        futures_util::future::join_all(uploads).await;
        other.upload(&other_disk, "/", "a.txt", "shared bytes").await;
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from blobs where state = 'live'").await, 2);
        assert_eq!(
            app.fetch_scalar::<i64>("select count(*) from asset_references where asset_meta -> 'size_b' = '12'").await,
            2
        );
        assert_eq!(client.download(&disk, "b.md").await.unwrap(), b"shared bytes");
    })
    .await;
}

#[tokio::test]
async fn an_encrypted_project_stores_no_plaintext_file() {
    run(async |app| {
        let client = app.legacy_key_project().await;
        let disk = client.new_disk().await;
        app.execute("update projects set encryption_enabled = true").await;
        app.clear_key_cache();
        let response = client.upload_form(&disk, Form::new().file("file", "a.txt", "secret")).await;
        response.assert_error(403, "encryption enabled, API key required");
        assert_eq!(response.json()["error"], "ENCRYPTION_KEY_REQUIRED");
        assert_eq!(app.blobs.keys().len(), 0);
    })
    .await;
}

#[tokio::test]
async fn large_uploads_are_spooled_to_files_that_are_removed() {
    run(async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        let content: Vec<u8> = (0_u32..1_000_000).flat_map(u32::to_le_bytes).collect();
        client.upload(&disk, "/", "large.bin", &content).await;
        assert_eq!(client.download(&disk, "large.bin").await.unwrap(), content);
        assert_eq!(app.spooled_files(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_form_with_an_endless_header_is_rejected() {
    run_with(TestConfig::default().with("ARTIFACT_MAX_UPLOAD_SIZE_BYTES", "64KiB"), async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        let (kind, _) = Form::new().finish();
        let head = "--a-boundary-of-tests\r\nContent-Disposition: form-data; name=\"";
        let chunks =
            std::iter::once(Bytes::from(head)).chain(std::iter::repeat_n(Bytes::from(vec![b'n'; 64 << 10]), 200));
        let endless =
            futures_util::stream::iter(chunks.map(Ok::<_, std::io::Error>)).chain(futures_util::stream::pending());
        send(&client, &disk, &kind, Body::from_stream(endless)).await.assert_error(413, "form");
    })
    .await;
}

#[tokio::test]
async fn a_form_that_arrives_late_is_complete() {
    run(async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        let (kind, body) = Form::new().file("file", "a.txt", "content").finish();
        for chunks in [vec![body.clone()], vec![body[..3].to_vec(), body[3..].to_vec()]] {
            // The first poll returns nothing, and the next polls return the chunks.
            let mut waited = false;
            let mut chunks = chunks.into_iter();
            let late = futures_util::stream::poll_fn(move |cx| {
                if !waited {
                    waited = true;
                    cx.waker().wake_by_ref();
                    return std::task::Poll::Pending;
                }
                std::task::Poll::Ready(chunks.next().map(|chunk| Ok::<_, std::io::Error>(Bytes::from(chunk))))
            });
            let response = send(&client, &disk, &kind, Body::from_stream(late)).await;
            assert_eq!(response.status, StatusCode::CREATED, "{}", response.text());
        }
        assert_eq!(client.download(&disk, "a.txt").await.unwrap(), b"content");
    })
    .await;
}
