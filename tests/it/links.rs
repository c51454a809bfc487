//! Public links.

use axum::body::Body;
use axum::http::{Method, StatusCode};
use serde_json::json;

use crate::support::{Setup, eventually, run, run_with};

#[tokio::test]
async fn a_link_serves_its_bytes_without_a_key_as_long_as_they_are_kept() {
    run_with(Setup::default().with("APP_EXTERNALURL", "https://files.example/base/"), async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a.md", "# one\n").await;
        let url =
            client.get(&format!("/api/v1/disk/{disk}/artifact?file_path=a.md")).await.data()["public_url"].clone();
        let path = url.as_str().unwrap().strip_prefix("https://files.example/base").unwrap().to_owned();
        assert!(path.starts_with("/api/v1/material/"));

        let anyone = app.client();
        let opened = anyone.get(&path).await;
        assert_eq!((opened.status, opened.text().as_str()), (StatusCode::OK, "# one\n"));
        assert_eq!(opened.header("content-type"), "text/markdown; charset=utf-8");
        assert_eq!(opened.header("x-content-type-options"), "nosniff");
        assert_eq!(opened.header("content-security-policy"), "sandbox");
        assert!(opened.header("content-disposition").contains("a.md"));
        let part = anyone.get_with(&path, "range", "bytes=2-4").await;
        assert_eq!((part.status.as_u16(), part.text().as_str()), (206, "one"));
        let head = anyone.send(anyone.request(Method::HEAD, &path).body(Body::empty()).unwrap()).await;
        assert_eq!((head.status, head.header("content-length"), head.bytes.len()), (StatusCode::OK, "6", 0));
        assert_eq!(anyone.get_with(&path, "if-none-match", opened.header("etag")).await.status.as_u16(), 304);

        // The bytes stay the link's own: as an old version, and when only another file has them.
        client.upload(&disk, "/", "a.md", "# two\n").await;
        assert_eq!(anyone.get(&path).await.text(), "# one\n");
        client.upload(&disk, "/", "other.txt", "# one\n").await;
        client.delete(&format!("/api/v1/disk/{disk}/artifact?file_path=a.md")).await;
        assert_eq!(anyone.get(&path).await.text(), "# one\n");
        client.delete(&format!("/api/v1/disk/{disk}/artifact?file_path=other.txt")).await;
        anyone.get(&path).await.assert_refused(404, "material not found");
    })
    .await;
}

#[tokio::test]
async fn a_link_is_of_its_project_alone() {
    run(async |app| {
        let (client, other) = (app.project().await, app.project().await);
        let (disk, theirs) = (client.new_disk().await, other.new_disk().await);
        client.upload(&disk, "/", "a.txt", "equal").await;
        other.upload(&theirs, "/", "a.txt", "equal").await;
        let url =
            client.get(&format!("/api/v1/disk/{disk}/artifact?file_path=a.txt")).await.data()["public_url"].clone();
        let path = url.as_str().unwrap().strip_prefix("http://localhost:8029").unwrap().to_owned();
        client.delete(&format!("/api/v1/disk/{disk}")).await;
        app.client().get(&path).await.assert_refused(404, "material not found");
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
            // Unless the clock struck in between.
            if before == after {
                assert_eq!(links.0, links.1);
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_link_ends_and_its_life_has_bounds() {
    run(async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a.txt", "x").await;
        let at = format!("/api/v1/disk/{disk}/artifact?file_path=a.txt");
        for expire in ["0", "-1", "604801", "soon", "9223372036854775807"] {
            client.get(&format!("{at}&expire={expire}")).await.assert_refused(400, "expire");
        }
        let url = client.get(&format!("{at}&expire=1")).await.data()["public_url"].clone();
        let path = url.as_str().unwrap().strip_prefix("http://localhost:8029").unwrap().to_owned();
        assert_eq!(app.client().get(&path).await.status, StatusCode::OK);
        eventually("the link has ended", async || app.client().get(&path).await.status == StatusCode::NOT_FOUND).await;
        assert_eq!(client.get(&format!("{at}&expire=604800")).await.status, StatusCode::OK);
    })
    .await;
}

#[tokio::test]
async fn what_is_no_token_opens_nothing() {
    run(async |app| {
        for token in ["nonsense", &"0".repeat(64), &"z".repeat(4000), "%00", "%ff"] {
            let answer = app.client().get(&format!("/api/v1/material/{token}")).await;
            answer.assert_refused(404, "material not found");
        }
        assert_eq!(
            app.client().get("/api/v1/material/x").await.json(),
            json!({"code": 404, "msg": "material not found"})
        );
    })
    .await;
}
