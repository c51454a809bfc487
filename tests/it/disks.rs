//! Disks.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::support::run;

#[tokio::test]
async fn a_disk_belongs_to_its_project_and_its_user() {
    run(async |app| {
        let (client, other) = (app.project().await, app.project().await);
        let response = client.post("/api/v1/disk", json!({"user": "ann", "name": "ignored"})).await;
        assert_eq!(response.status, StatusCode::CREATED);
        let disk = response.data();
        assert_eq!(disk["project_id"], client.project().to_string());
        assert_eq!(disk["created_at"], disk["updated_at"]);
        assert!(disk["user_id"].is_string());
        let second = client.post("/api/v1/disk", json!({"user": "ann"})).await.data();
        let foreign = other.post("/api/v1/disk", json!({"user": "ann"})).await.data();
        let without_user = client.post("/api/v1/disk", json!({"user": ""})).await.data();
        assert_eq!(second["user_id"], disk["user_id"]);
        assert_ne!(foreign["user_id"], disk["user_id"]);
        assert_eq!(without_user["user_id"], Value::Null);

        let ids = async |query: &str| {
            let page = client.get(&format!("/api/v1/disk?{query}")).await.data();
            page["items"].as_array().unwrap().iter().map(|item| item["id"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(ids("").await, [disk["id"].clone(), second["id"].clone(), without_user["id"].clone()]);
        assert_eq!(ids("user=ann").await, [disk["id"].clone(), second["id"].clone()]);
        assert_eq!(ids("user=unknown").await, [] as [Value; 0]);
        assert_eq!(ids(&format!("id={}", second["id"].as_str().unwrap())).await, [second["id"].clone()]);
        assert_eq!(ids(&format!("id={}", foreign["id"].as_str().unwrap())).await, [] as [Value; 0]);
    })
    .await;
}

#[tokio::test]
async fn concurrent_disk_creations_create_one_user() {
    run(async |app| {
        let client = app.project().await;
        let requests = (0..16).map(|_| client.post("/api/v1/disk", json!({"user": "ann"})));
        for response in futures_util::future::join_all(requests).await {
            assert_eq!(response.status, StatusCode::CREATED, "{}", response.text());
        }
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from users").await, 1);
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from disks").await, 16);
    })
    .await;
}

#[tokio::test]
async fn deleting_a_disk_deletes_its_files_and_no_others() {
    run(async |app| {
        let (client, other) = (app.project().await, app.project().await);
        let (deleted, remaining) = (client.new_disk().await, client.new_disk().await);
        client.upload(&deleted, "/", "a.txt", "first").await;
        client.upload(&deleted, "/", "a.txt", "second").await;
        client.upload(&remaining, "/", "a.txt", "second").await;
        other.delete(&format!("/api/v1/disk/{deleted}")).await.assert_error(404, "disk not found or access denied");
        let response = client.delete(&format!("/api/v1/disk/{deleted}")).await;
        assert_eq!(response.json(), json!({"code": 0, "msg": ""}));
        client.delete(&format!("/api/v1/disk/{deleted}")).await.assert_error(404, "disk not found");
        client.delete("/api/v1/disk/none").await.assert_error(400, "disk_id");
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from artifact_versions").await, 1);
        assert_eq!(client.download(&remaining, "/a.txt").await.unwrap(), b"second");
        assert_eq!(client.download(&deleted, "/a.txt").await, Err(StatusCode::FORBIDDEN));
    })
    .await;
}

#[tokio::test]
async fn a_foreign_disk_is_rejected_on_every_route_and_not_changed() {
    run(async |app| {
        let (client, other) = (app.project().await, app.project().await);
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a.txt", "mine").await;
        let artifact_url = format!("/api/v1/disk/{disk}/artifact");
        let denied = "access denied: disk does not belong to this project";
        for path in ["?file_path=/a.txt", "/download?file_path=/a.txt", "/ls", "/grep?query=m", "/glob?query=*"] {
            other.get(&format!("{artifact_url}{path}")).await.assert_error(403, denied);
        }
        other.put(&artifact_url, json!({"file_path": "/a.txt", "meta": "{}"})).await.assert_error(403, denied);
        other.delete(&format!("{artifact_url}?file_path=/a.txt")).await.assert_error(403, denied);
        let form = crate::support::client::Form::new().file("file", "a.txt", "theirs");
        other.upload_form(&disk, form).await.assert_error(404, "disk not found or access denied");
        assert_eq!(client.download(&disk, "/a.txt").await.unwrap(), b"mine");
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from artifact_versions").await, 1);
    })
    .await;
}
