//! Disks.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::support::run;

#[tokio::test]
async fn a_disk_belongs_to_its_project_and_its_user() {
    run(async |app| {
        let (client, other) = (app.project().await, app.project().await);
        let made = client.post("/api/v1/disk", json!({"user": "ann", "name": "ignored"})).await;
        assert_eq!(made.status, StatusCode::CREATED);
        let disk = made.data();
        assert_eq!(disk["project_id"], client.project().to_string());
        assert_eq!(disk["created_at"], disk["updated_at"]);
        assert!(disk["user_id"].is_string());
        let again = client.post("/api/v1/disk", json!({"user": "ann"})).await.data();
        let elsewhere = other.post("/api/v1/disk", json!({"user": "ann"})).await.data();
        let nobodys = client.post("/api/v1/disk", json!({"user": ""})).await.data();
        assert_eq!(again["user_id"], disk["user_id"]);
        assert_ne!(elsewhere["user_id"], disk["user_id"]);
        assert_eq!(nobodys["user_id"], Value::Null);

        let ids = async |query: &str| {
            let page = client.get(&format!("/api/v1/disk?{query}")).await.data();
            page["items"].as_array().unwrap().iter().map(|item| item["id"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(ids("").await, [disk["id"].clone(), again["id"].clone(), nobodys["id"].clone()]);
        assert_eq!(ids("user=ann").await, [disk["id"].clone(), again["id"].clone()]);
        assert_eq!(ids("user=nobody").await, [] as [Value; 0]);
        assert_eq!(ids(&format!("id={}", again["id"].as_str().unwrap())).await, [again["id"].clone()]);
        assert_eq!(ids(&format!("id={}", elsewhere["id"].as_str().unwrap())).await, [] as [Value; 0]);
    })
    .await;
}

#[tokio::test]
async fn sixteen_at_once_make_one_user() {
    run(async |app| {
        let client = app.project().await;
        let made = (0..16).map(|_| client.post("/api/v1/disk", json!({"user": "ann"})));
        for answer in futures_util::future::join_all(made).await {
            assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
        }
        assert_eq!(app.value::<i64>("select count(*) from users").await, 1);
        assert_eq!(app.value::<i64>("select count(*) from disks").await, 16);
    })
    .await;
}

#[tokio::test]
async fn a_deleted_disk_takes_its_files_and_no_others() {
    run(async |app| {
        let (client, other) = (app.project().await, app.project().await);
        let (gone, kept) = (client.new_disk().await, client.new_disk().await);
        client.upload(&gone, "/", "a.txt", "first").await;
        client.upload(&gone, "/", "a.txt", "second").await;
        client.upload(&kept, "/", "a.txt", "second").await;
        other.delete(&format!("/api/v1/disk/{gone}")).await.assert_refused(404, "disk not found or access denied");
        let answer = client.delete(&format!("/api/v1/disk/{gone}")).await;
        assert_eq!(answer.json(), json!({"code": 0, "msg": ""}));
        client.delete(&format!("/api/v1/disk/{gone}")).await.assert_refused(404, "disk not found");
        client.delete("/api/v1/disk/none").await.assert_refused(400, "disk_id");
        assert_eq!(app.value::<i64>("select count(*) from artifact_versions").await, 1);
        assert_eq!(client.download(&kept, "/a.txt").await.unwrap(), b"second");
        assert_eq!(client.download(&gone, "/a.txt").await, Err(StatusCode::FORBIDDEN));
    })
    .await;
}

#[tokio::test]
async fn a_foreign_disk_is_refused_on_every_route_and_nothing_changes() {
    run(async |app| {
        let (client, other) = (app.project().await, app.project().await);
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a.txt", "mine").await;
        let at = format!("/api/v1/disk/{disk}/artifact");
        let denied = "access denied: disk does not belong to this project";
        for path in ["?file_path=/a.txt", "/download?file_path=/a.txt", "/ls", "/grep?query=m", "/glob?query=*"] {
            other.get(&format!("{at}{path}")).await.assert_refused(403, denied);
        }
        other.put(&at, json!({"file_path": "/a.txt", "meta": "{}"})).await.assert_refused(403, denied);
        other.delete(&format!("{at}?file_path=/a.txt")).await.assert_refused(403, denied);
        let form = crate::support::client::Form::new().file("file", "a.txt", "theirs");
        other.form(&disk, form).await.assert_refused(404, "disk not found or access denied");
        assert_eq!(client.download(&disk, "/a.txt").await.unwrap(), b"mine");
        assert_eq!(app.value::<i64>("select count(*) from artifact_versions").await, 1);
    })
    .await;
}
