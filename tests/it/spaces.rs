//! Learning spaces: their user metadata and their skills.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::run;

const SPACES: &str = "/api/v1/learning_spaces";

/// Returns the names of the skills in a space.
async fn skill_names(client: &Client, space: &str) -> Vec<String> {
    let skills = client.get(&format!("{SPACES}/{space}/skills")).await.data();
    skills.as_array().unwrap().iter().map(|skill| skill["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_new_space_has_two_default_skills() {
    run(async |app| {
        let client = app.project().await;
        let response = client.post(SPACES, json!({"user": "ann", "meta": {"n": 9_007_199_254_740_993_i64}})).await;
        response.assert_status(201);
        let space = response.data();
        assert_eq!(space["meta"], json!({"n": 9_007_199_254_740_993_i64}));
        let id = space["id"].as_str().unwrap();
        assert_eq!(client.get(&format!("{SPACES}/{id}")).await.data(), space);
        let skills = client.get(&format!("{SPACES}/{id}/skills")).await.data();
        assert_eq!(skill_names(&client, id).await, ["daily-logs", "user-general-facts"]);
        for skill in skills.as_array().unwrap() {
            assert_eq!(skill["user_id"], space["user_id"]);
            assert_eq!(skill["file_index"], json!([{"path": "SKILL.md", "mime": "text/markdown; charset=utf-8"}]));
            let file = format!("/api/v1/agent_skills/{}/file?file_path=SKILL.md", skill["id"].as_str().unwrap());
            let raw = client.get(&file).await.data()["content"]["raw"].as_str().unwrap().to_owned();
            assert!(raw.starts_with(&format!("---\nname: {}\n", skill["name"].as_str().unwrap())), "{raw}");
        }
        // Another space has other skills, which share the stored content.
        let other = client.new_space().await;
        let other_skills = client.get(&format!("{SPACES}/{other}/skills")).await.data();
        assert_ne!(other_skills[0]["disk_id"], skills[0]["disk_id"]);
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from blobs").await, 2);
    })
    .await;
}

#[tokio::test]
async fn spaces_can_be_created_concurrently() {
    run(async |app| {
        let client = app.project().await;
        let requests = (0..16).map(|_| client.post(SPACES, json!({"user": "ann"})));
        for response in join_all(requests).await {
            response.assert_status(201);
        }
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from learning_space_skills").await, 32);
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from blobs where state = 'live'").await, 2);
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from users").await, 1);
    })
    .await;
}

#[tokio::test]
async fn a_space_is_not_created_without_its_default_skills() {
    run(async |app| {
        let client = app.project().await;
        app.blobs.set_down(true);
        client.post(SPACES, json!({"user": "ann"})).await.assert_error(503, "object store");
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from users").await, 0);
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from learning_spaces").await, 0);
        app.blobs.set_down(false);
        client.post(SPACES, json!({"user": "ann"})).await.assert_status(201);
    })
    .await;
}

#[tokio::test]
async fn spaces_can_be_filtered_by_user_and_metadata() {
    run(async |app| {
        let client = app.project().await;
        for (user, meta) in [
            ("ann", json!({"source": "cli", "n": 1, "deep": {"a": 1, "b": 2}})),
            ("bob", json!({"source": "cli", "n": "1", "tags": ["x", "y"]})),
            ("", json!(null)),
        ] {
            client.post(SPACES, json!({"user": user, "meta": meta})).await.assert_status(201);
        }
        let count = async |query: &str| {
            let page = client.get(&format!("{SPACES}?{query}")).await.data();
            page["items"].as_array().unwrap_or_else(|| panic!("{query}: {page}")).len()
        };
        for (filter, expected) in [
            (r#"{"source":"cli"}"#, 2),
            (r#"{"n":1}"#, 1),
            (r#"{"deep":{"a":1}}"#, 1),
            (r#"{"tags":["y"]}"#, 1),
            (r#"{"source":null}"#, 0),
            ("{}", 3),
            ("null", 3),
            ("", 3),
        ] {
            let filter = acontextd::percent::encode(filter.as_bytes(), b"");
            assert_eq!(count(&format!("filter_by_meta={filter}")).await, expected, "{filter}");
        }
        assert_eq!(count("user=bob&filter_by_meta=%7B%22source%22:%22cli%22%7D").await, 1);
        assert_eq!(count("user=eve").await, 0);
        for filter in ["[1]", "%22x%22", "%7Bbroken", "7"] {
            let response = client.get(&format!("{SPACES}?filter_by_meta={filter}")).await;
            response.assert_error(400, "invalid filter_by_meta JSON");
        }
        let nul = client.get(&format!("{SPACES}?filter_by_meta=%7B%22a%22:%22%5Cu0000%22%7D")).await;
        nul.assert_error(400, "filter_by_meta");
    })
    .await;
}

#[tokio::test]
async fn concurrent_changes_of_metadata_are_all_stored() {
    run(async |app| {
        let client = app.project().await;
        let space = client.new_space().await;
        let path = format!("{SPACES}/{space}");
        let patches = (0..16).map(|n| {
            let key = format!("k{n}");
            let (client, path) = (client.clone(), path.clone());
            async move { client.patch(&path, json!({"meta": {key: n, "same": null}})).await }
        });
        for response in join_all(patches).await {
            response.assert_status(200);
        }
        let space = client.get(&path).await.data();
        assert_eq!(space["meta"].as_object().unwrap().len(), 17);
        assert_eq!(space["meta"]["same"], Value::Null, "null is a value");
        assert_ne!(space["updated_at"], space["created_at"]);
        for body in [json!({}), json!({"meta": null}), json!({"meta": [1]}), json!({"meta": {"a": "\0"}})] {
            client.patch(&path, body).await.assert_error(400, "meta");
        }
        let large = json!({"meta": {"large": "x".repeat(1024 * 1024)}});
        client.patch(&path, large).await.assert_error(413, "meta");
        assert_eq!(client.get(&path).await.data(), space);
    })
    .await;
}

#[tokio::test]
async fn a_space_has_one_skill_of_each_name() {
    run(async |app| {
        let client = app.project().await;
        let space = client.new_space().await;
        let path = format!("{SPACES}/{space}/skills");
        let (skill, duplicate) = (client.new_skill("contacts").await, client.new_skill("contacts").await);
        let response = client.post(&path, json!({"skill_id": skill})).await;
        response.assert_status(201);
        assert_eq!(response.data()["learning_space_id"], space);
        let again = client.post(&path, json!({"skill_id": skill})).await;
        again.assert_error(409, "skill already included in this space");
        let other = client.post(&path, json!({"skill_id": duplicate})).await;
        other.assert_error(409, "skill with name 'contacts' already exists in this space");
        for (body, status, msg) in [
            (json!({}), 400, "skill_id: is required"),
            (json!({"skill_id": ""}), 400, "skill_id: is required"),
            (json!({"skill_id": "none"}), 400, "skill_id"),
            (json!({"skill_id": 5}), 400, "skill_id"),
            (json!({"skill_id": uuid::Uuid::new_v4()}), 404, "skill not found"),
        ] {
            client.post(&path, body).await.assert_error(status, msg);
        }
        assert_eq!(skill_names(&client, &space).await, ["daily-logs", "user-general-facts", "contacts"]);
        for _ in 0..2 {
            client.delete(&format!("{path}/{skill}")).await.assert_status(200);
        }
        client.post(&path, json!({"skill_id": duplicate})).await.assert_status(201);
    })
    .await;
}

#[tokio::test]
async fn one_of_many_skills_with_the_same_name_is_added() {
    run(async |app| {
        let client = app.project().await;
        let space = client.new_space().await;
        let mut skills = Vec::new();
        for _ in 0..8 {
            skills.push(client.new_skill("contacts").await);
        }
        let path = format!("{SPACES}/{space}/skills");
        let responses = join_all(skills.iter().map(|skill| client.post(&path, json!({"skill_id": skill})))).await;
        let (created, rejected): (Vec<_>, Vec<_>) = responses.iter().partition(|response| response.status.is_success());
        assert_eq!(created.len(), 1);
        for response in rejected {
            response.assert_error(409, "skill with name 'contacts' already exists");
        }
        let same = join_all((0..8).map(|_| client.post(&path, json!({"skill_id": skills[0]})))).await;
        for response in same {
            assert_eq!(response.status.as_u16(), 409, "{}", response.text());
        }
        assert_eq!(skill_names(&client, &space).await.len(), 3);
    })
    .await;
}

#[tokio::test]
async fn deleting_a_space_keeps_its_skills_and_sessions() {
    run(async |app| {
        let client = app.project().await;
        let (space, session) = (client.new_space().await, client.new_session().await);
        let path = format!("{SPACES}/{space}");
        let learn = json!({"session_id": session});
        client.post(&format!("{path}/learn"), learn.clone()).await.assert_status(201);
        let response = client.delete(&path).await;
        assert_eq!(response.json(), json!({"code": 0, "msg": "ok"}));
        for deleted in [path.clone(), format!("{path}/skills"), format!("{path}/sessions")] {
            client.get(&deleted).await.assert_error(404, "learning space not found");
        }
        client.delete(&path).await.assert_error(404, "learning space not found");
        client.patch(&path, json!({"meta": {}})).await.assert_error(404, "learning space not found");
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from agent_skills").await, 2);
        let next = client.new_space().await;
        client.post(&format!("{SPACES}/{next}/learn"), learn).await.assert_status(201);
    })
    .await;
}
