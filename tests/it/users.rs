//! Users: they are created with their first entity, and deleted with all of their entities.

use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::run;

async fn identifiers(client: &Client, query: &str) -> Vec<String> {
    let page = client.get(&format!("/api/v1/user/ls?{query}")).await.data();
    let items = page["items"].as_array().unwrap_or_else(|| panic!("{query}: {page}")).iter();
    items.map(|user| user["identifier"].as_str().unwrap().to_owned()).collect()
}

/// Creates one entity of each kind for a user.
async fn create_entities(client: &Client, user: &str) {
    for path in ["/api/v1/session", "/api/v1/disk", "/api/v1/learning_spaces"] {
        client.post(path, json!({"user": user})).await.assert_status(201);
    }
    let archive = crate::support::zip::zip_archive(&[("SKILL.md", crate::support::samples::skill_md("own"))]);
    let form = crate::support::client::Form::new().file("file", "s.zip", archive).text("user", user);
    client.upload_skill_form(form).await.assert_status(201);
}

#[tokio::test]
async fn users_are_created_when_an_entity_names_them() {
    run(async |app| {
        let (client, other) = (app.project().await, app.project().await);
        assert_eq!(client.get("/api/v1/user/ls").await.data(), json!({"items": [], "has_more": false}));
        create_entities(&client, "ann").await;
        other.post("/api/v1/disk", json!({"user": "bob"})).await.assert_status(201);
        let users = client.get("/api/v1/user/ls").await.data();
        assert_eq!(users["items"].as_array().unwrap().len(), 1);
        let user = &users["items"][0];
        assert_eq!((&user["identifier"], &user["project_id"]), (&json!("ann"), &json!(client.project())));
        assert!(user["id"].is_string() && user["created_at"] == user["updated_at"]);
        let counts = client.get("/api/v1/user/ann/resources").await.data();
        assert_eq!(counts, json!({"counts": {"sessions_count": 1, "disks_count": 4, "skills_count": 3}}));
        client.get("/api/v1/user/bob/resources").await.assert_error(404, "user not found");
    })
    .await;
}

#[tokio::test]
async fn a_list_without_a_limit_contains_all_users() {
    let config = crate::support::TestConfig::default().with("ACONTEXTD_LIST_LIMIT", "5");
    crate::support::run_with(config, async |app| {
        let client = app.project().await;
        for n in 1..=4 {
            client.post("/api/v1/disk", json!({"user": format!("u{n}")})).await.assert_status(201);
        }
        for query in ["", "limit=0", "limit=", "limit=200"] {
            assert_eq!(identifiers(&client, query).await, ["u1", "u2", "u3", "u4"], "{query}");
        }
        assert_eq!(identifiers(&client, "time_desc=true&limit=2").await, ["u4", "u3"]);
        let page = client.get("/api/v1/user/ls?limit=3").await.data();
        let next = page["next_cursor"].as_str().unwrap();
        assert_eq!(identifiers(&client, &format!("limit=3&cursor={next}")).await, ["u4"]);
        for n in 5..=7 {
            client.post("/api/v1/disk", json!({"user": format!("u{n}")})).await.assert_status(201);
        }
        // Above the maximum that applies to every list, there is a cursor here too.
        let page = client.get("/api/v1/user/ls").await.data();
        assert_eq!((page["items"].as_array().unwrap().len(), &page["has_more"]), (5, &Value::Bool(true)));
        let next = page["next_cursor"].as_str().unwrap();
        assert_eq!(identifiers(&client, &format!("cursor={next}")).await, ["u6", "u7"]);
        for query in ["limit=201", "limit=-1", "limit=x", "cursor=garbage", "time_desc=perhaps"] {
            let name = query.split('=').next().unwrap();
            client.get(&format!("/api/v1/user/ls?{query}")).await.assert_error(400, name);
        }
    })
    .await;
}

#[tokio::test]
async fn an_identifier_may_be_any_text() {
    run(async |app| {
        let client = app.project().await;
        let long = "ü".repeat(512);
        let names = [
            "ann@example.com",
            "a/b",
            "a//b/",
            "50%",
            "%2F",
            "a b",
            " ",
            "größe 寿司",
            "ls",
            "..",
            ".",
            "a?b#c",
            "a\nb",
            "\"'\\",
            &long,
        ];
        for name in names {
            client.post("/api/v1/disk", json!({"user": name})).await.assert_status(201);
        }
        assert_eq!(identifiers(&client, "").await, names);
        for name in names {
            let path = format!("/api/v1/user/{}", acontextd::percent::encode(name.as_bytes(), b""));
            let counts = client.get(&format!("{path}/resources")).await.data();
            assert_eq!(counts["counts"]["disks_count"], 1, "{name:?}");
            client.delete(&path).await.assert_status(200);
            client.get(&format!("{path}/resources")).await.assert_error(404, "user not found");
        }
        assert_eq!(identifiers(&client, "").await, [] as [&str; 0]);
        for (name, field) in [("a%00b", "identifier"), (&"x".repeat(1025), "identifier"), ("%ff", "identifier")] {
            client.delete(&format!("/api/v1/user/{name}")).await.assert_error(400, field);
        }
    })
    .await;
}

#[tokio::test]
async fn deleting_a_user_deletes_only_the_entities_of_the_user() {
    run(async |app| {
        let (client, other) = (app.project().await, app.project().await);
        create_entities(&client, "bob").await;
        create_entities(&other, "ann").await;
        let before = app.state().await;
        create_entities(&client, "ann").await;
        let disk = client.post("/api/v1/disk", json!({"user": "ann"})).await.data()["id"].clone();
        client.upload(disk.as_str().unwrap(), "/", "a.txt", "only of ann").await;
        let session = client.post("/api/v1/session", json!({"user": "ann"})).await.data()["id"].clone();
        client.store_text(session.as_str().unwrap(), "hello").await;
        for _ in 0..2 {
            let response = client.delete("/api/v1/user/ann").await;
            assert_eq!(response.json(), json!({"code": 0, "msg": ""}));
        }
        let mut after = app.state().await;
        // Jobs of deleted entities remain and do nothing. Unreferenced blobs remain until the sweep.
        for table in ["jobs", "blobs", "blob_releases"] {
            after.insert(table.into(), before[table].clone());
        }
        assert_eq!(after, before);
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from blob_releases").await, 4);
        client.delete("/api/v1/user/eve").await.assert_status(200);
        assert_eq!(identifiers(&other, "").await, ["ann"]);
    })
    .await;
}
