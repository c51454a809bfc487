//! Signed URLs (public links).

use axum::body::Body;
use axum::http::{Method, StatusCode};
use serde_json::json;

use crate::support::{TestConfig, run, run_with, wait_until};

#[tokio::test]
async fn a_link_serves_its_content_without_a_key_until_it_is_deleted() {
    run_with(TestConfig::default().with("APP_EXTERNALURL", "https://files.example/base/"), async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a.md", "# one\n").await;
        let url =
            client.get(&format!("/api/v1/disk/{disk}/artifact?file_path=a.md")).await.data()["public_url"].clone();
        let path = url.as_str().unwrap().strip_prefix("https://files.example/base").unwrap().to_owned();
        assert!(path.starts_with("/api/v1/material/"));

        let anonymous = app.client();
        let response = anonymous.get(&path).await;
        assert_eq!((response.status, response.text().as_str()), (StatusCode::OK, "# one\n"));
        assert_eq!(response.header("content-type"), "text/markdown; charset=utf-8");
        assert_eq!(response.header("x-content-type-options"), "nosniff");
        assert_eq!(response.header("content-security-policy"), "sandbox");
        assert!(response.header("content-disposition").contains("a.md"));
        let part = anonymous.get_with(&path, "range", "bytes=2-4").await;
        assert_eq!((part.status.as_u16(), part.text().as_str()), (206, "one"));
        let head = anonymous.send(anonymous.request(Method::HEAD, &path).body(Body::empty()).unwrap()).await;
        assert_eq!((head.status, head.header("content-length"), head.bytes.len()), (StatusCode::OK, "6", 0));
        assert_eq!(anonymous.get_with(&path, "if-none-match", response.header("etag")).await.status.as_u16(), 304);

        // The link serves this content also when it is an old version, and when only another file has it.
        client.upload(&disk, "/", "a.md", "# two\n").await;
        assert_eq!(anonymous.get(&path).await.text(), "# one\n");
        client.upload(&disk, "/", "other.txt", "# one\n").await;
        client.delete(&format!("/api/v1/disk/{disk}/artifact?file_path=a.md")).await;
        assert_eq!(anonymous.get(&path).await.text(), "# one\n");
        client.delete(&format!("/api/v1/disk/{disk}/artifact?file_path=other.txt")).await;
        anonymous.get(&path).await.assert_error(404, "material not found");
    })
    .await;
}

#[tokio::test]
async fn a_link_does_not_serve_equal_content_of_another_project() {
    run(async |app| {
        let (client, other) = (app.project().await, app.project().await);
        let (disk, other_disk) = (client.new_disk().await, other.new_disk().await);
        client.upload(&disk, "/", "a.txt", "equal").await;
        other.upload(&other_disk, "/", "a.txt", "equal").await;
        let url =
            client.get(&format!("/api/v1/disk/{disk}/artifact?file_path=a.txt")).await.data()["public_url"].clone();
        let path = url.as_str().unwrap().strip_prefix("http://localhost:8029").unwrap().to_owned();
        client.delete(&format!("/api/v1/disk/{disk}")).await;
        app.client().get(&path).await.assert_error(404, "material not found");
    })
    .await;
}

#[tokio::test]
async fn the_same_file_has_the_same_link_within_the_hour() {
    run(async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a.txt", "x").await;
        let link = async || {
            client.get(&format!("/api/v1/disk/{disk}/artifact?file_path=a.txt")).await.data()["public_url"].clone()
        };
        let hour = || chrono::Utc::now().timestamp() / 3600;
        loop {
            let (before, links, after) = (hour(), (link().await, link().await), hour());
            // The links may differ if a new hour began between them.
            if before == after {
                assert_eq!(links.0, links.1);
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_link_expires_and_its_ttl_is_limited() {
    run(async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a.txt", "x").await;
        let artifact = format!("/api/v1/disk/{disk}/artifact?file_path=a.txt");
        for expire in ["0", "-1", "604801", "soon", "9223372036854775807"] {
            client.get(&format!("{artifact}&expire={expire}")).await.assert_error(400, "expire");
        }
        let url = client.get(&format!("{artifact}&expire=1")).await.data()["public_url"].clone();
        let path = url.as_str().unwrap().strip_prefix("http://localhost:8029").unwrap().to_owned();
        assert_eq!(app.client().get(&path).await.status, StatusCode::OK);
        wait_until("the link has expired", async || app.client().get(&path).await.status == StatusCode::NOT_FOUND)
            .await;
        assert_eq!(client.get(&format!("{artifact}&expire=604800")).await.status, StatusCode::OK);
    })
    .await;
}

#[tokio::test]
async fn an_invalid_token_returns_404() {
    run(async |app| {
        for token in ["nonsense", &"0".repeat(64), &"z".repeat(4000), "%00", "%ff"] {
            let response = app.client().get(&format!("/api/v1/material/{token}")).await;
            response.assert_error(404, "material not found");
        }
        assert_eq!(
            app.client().get("/api/v1/material/x").await.json(),
            json!({"code": 404, "msg": "material not found"})
        );
    })
    .await;
}
