//! Session events, alone and between messages; copies of sessions; and session configs.

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::client::{Client, Form};
use crate::support::{TestConfig, run, run_with};

async fn record_event(client: &Client, session: &str, n: i64) -> String {
    let body = json!({"type": "step", "data": {"n": n}});
    let response = client.post(&format!("/api/v1/session/{session}/events"), body).await;
    assert_eq!(response.status, StatusCode::OK, "{}", response.text());
    response.data()["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn events_are_listed_in_both_orders_and_between_messages() {
    run(async |app| {
        let (client, stranger) = (app.project().await, app.project().await);
        let (session, other) = (client.new_session().await, client.new_session().await);
        record_event(&client, &other, 0).await;
        let before = record_event(&client, &session, 1).await;
        client.store_text(&session, "first").await;
        let between = [record_event(&client, &session, 2).await, record_event(&client, &session, 3).await];
        client.store_text(&session, "second").await;
        let after = record_event(&client, &session, 4).await;
        let all = [before, between[0].clone(), between[1].clone(), after];
        let path = format!("/api/v1/session/{session}/events");
        for direction in ["false", "true"] {
            let mut listed: Vec<Value> = Vec::new();
            let mut query = format!("limit=3&time_desc={direction}");
            loop {
                let page = client.get(&format!("{path}?{query}")).await.data();
                listed.extend(page["items"].as_array().unwrap().iter().map(|event| event["id"].clone()));
                let Some(cursor) = page["next_cursor"].as_str() else { break };
                query = format!("limit=3&time_desc={direction}&cursor={cursor}");
            }
            if direction == "true" {
                listed.reverse();
            }
            assert_eq!(json!(listed), json!(all));
        }
        let messages = client.messages(&session, "with_events=true").await;
        let ids: Vec<&Value> = messages["events"].as_array().unwrap().iter().map(|event| &event["id"]).collect();
        assert_eq!(json!(ids), json!(between), "only the events between the first and the last message");
        assert!(client.messages(&session, "with_events=true&limit=1").await.get("events").is_none());
        assert!(client.messages(&session, "").await.get("events").is_none());
        stranger.get(&path).await.assert_error(404, "session not found");
        stranger.post(&path, json!({"type": "t", "data": {}})).await.assert_error(404, "session not found");
        for (body, field) in [
            (json!({"data": {}}), "type"),
            (json!({"type": "", "data": {}}), "type"),
            (json!({"type": "t".repeat(256), "data": {}}), "type"),
            (json!({"type": "a\u{0}", "data": {}}), "type"),
            (json!({"type": 5, "data": {}}), "type"),
            (json!({"type": "t"}), "data"),
            (json!({"type": "t", "data": null}), "data"),
            (json!({"type": "t", "data": [1]}), "data"),
            (json!({"type": "t", "data": {"a": "\u{0}"}}), "data"),
        ] {
            client.post(&path, body).await.assert_error(400, field);
        }
        client.post(&path, json!({"type": "t", "data": {"a": "x".repeat(1 << 20)}})).await.assert_error(413, "data");
        client.json(Method::POST, &path, "{").await.assert_error(400, "body");
        client.get(&format!("{path}?limit=0")).await.assert_error(400, "limit");
    })
    .await;
}

#[tokio::test]
async fn a_copy_contains_everything_and_is_independent() {
    run(async |app| {
        let (client, stranger) = (app.project().await, app.project().await);
        let configs = json!({"a": {"b": [null, 1.50]}});
        let created = client.post("/api/v1/session", json!({"user": "ada", "configs": configs})).await.data();
        let session = created["id"].as_str().unwrap().to_owned();
        let mut texts = Vec::new();
        for n in 0..5 {
            client.store_text(&session, &format!("m{n}")).await;
            texts.push(json!({"role": "user", "content": format!("m{n}")}));
        }
        record_event(&client, &session, 1).await;
        let payload =
            json!({"format": "acontext", "blob": {"role": "user", "parts": [{"type": "file", "file_field": "f"}]}});
        let form = Form::new().text("payload", &payload.to_string()).file("f", "a.txt", "content");
        let file = client.store_form_message(&session, form).await.data();
        let create_task = "with t as (insert into tasks (session_id, project_id, \"order\", data, status)
                select id, project_id, 1, '{\"task_description\": \"do it\"}', 'success' from sessions returning *)
            update messages m set task_id = t.id, session_task_process_status = 'success' from t
            where m.parent_id is null";
        app.execute(create_task).await;
        let path = format!("/api/v1/session/{session}/copy");
        let copied = client.post(&path, json!({})).await.data();
        assert_eq!(copied["old_session_id"], session);
        let copy = copied["new_session_id"].as_str().unwrap();
        let (old, new) = (
            client.messages(&session, "format=acontext").await["items"].clone(),
            client.messages(copy, "format=acontext").await["items"].clone(),
        );
        let (old, new) = (old.as_array().unwrap(), new.as_array().unwrap());
        assert_eq!(old.len(), new.len());
        let ids: Vec<&str> = new.iter().map(|item| item["id"].as_str().unwrap()).collect();
        for (index, (old, new)) in old.iter().zip(new).enumerate() {
            assert_ne!(old["id"], new["id"]);
            for key in ["parts", "role", "created_at", "session_task_process_status", "meta"] {
                assert_eq!(old[key], new[key], "{key}");
            }
            assert_eq!(new["parent_id"].as_str(), index.checked_sub(1).map(|previous| ids[previous]));
        }
        let tasks = client.get(&format!("/api/v1/session/{copy}/task")).await.data();
        assert_eq!(tasks["items"][0]["data"]["task_description"], "do it");
        assert_eq!(new[0]["task_id"], tasks["items"][0]["id"]);
        assert_ne!(new[0]["task_id"], old[0]["task_id"]);
        let events = client.get(&format!("/api/v1/session/{copy}/events")).await.data();
        assert_eq!(events["items"].as_array().unwrap().len(), 1);
        let copied_configs = client.get(&format!("/api/v1/session/{copy}/configs")).await.data();
        assert_eq!((&copied_configs["configs"], &copied_configs["user_id"]), (&configs, &created["user_id"]));
        // From here on the sessions differ.
        client.store_text(copy, "only in the copy").await;
        assert_eq!(client.delete(&format!("/api/v1/session/{session}")).await.status, StatusCode::OK);
        texts.push(client.messages(copy, "").await["items"][5].clone());
        texts.push(json!({"role": "user", "content": "only in the copy"}));
        assert_eq!(client.messages(copy, "").await["items"], json!(texts));
        let key = file["parts"][0]["asset"]["s3_key"].as_str().unwrap();
        let download = format!("/api/v1/session/{copy}/asset/download?s3_key={key}");
        assert_eq!(client.get(&download).await.text(), "content");
        stranger.post(&path.replace(&session, copy), json!({})).await.assert_error(404, "SESSION_NOT_FOUND");
        client.post(&path, json!({})).await.assert_error(404, "SESSION_NOT_FOUND");
        client.post("/api/v1/session/nonsense/copy", json!({})).await.assert_error(400, "INVALID_SESSION_ID");
    })
    .await;
}

#[tokio::test]
async fn a_session_that_is_too_large_is_not_copied() {
    let config = TestConfig::default().with("ACONTEXTD_COPY_LIMIT", "2");
    run_with(config, async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let path = format!("/api/v1/session/{session}/copy");
        for n in 0..3 {
            assert_eq!(client.post(&path, json!({})).await.status, StatusCode::OK);
            client.store_text(&session, &format!("m{n}")).await;
        }
        client.post(&path, json!({})).await.assert_error(413, "SESSION_TOO_LARGE");
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from sessions").await, 4, "no session was created");
    })
    .await;
}

#[tokio::test]
async fn configs_are_replaced_as_a_whole_or_key_by_key() {
    run(async |app| {
        let (client, stranger) = (app.project().await, app.project().await);
        let session = client.new_session().await;
        let path = format!("/api/v1/session/{session}/configs");
        let change = async |body: Value| client.json(Method::PATCH, &path, &body.to_string()).await;
        let read_configs = async || client.get(&path).await.data()["configs"].clone();
        assert_eq!(change(json!({"configs": {}})).await.data(), json!({"configs": {}}), "null becomes an object");
        assert_eq!(client.put(&path, json!({"configs": {"a": 1, "deep": {"x": null}}})).await.status, StatusCode::OK);
        assert_eq!(client.put(&path, json!({})).await.json(), json!({"code": 0, "msg": ""}));
        assert_eq!(client.put(&path, json!({"configs": null})).await.status, StatusCode::OK);
        assert_eq!(
            read_configs().await,
            json!({"a": 1, "deep": {"x": null}}),
            "a body without configs changes nothing"
        );
        let merged = change(json!({"configs": {"a": null, "deep": {"y": null}, "b": [1]}})).await;
        assert_eq!(merged.data(), json!({"configs": {"b": [1], "deep": {"y": null}}}));
        let changes = (0..16).map(|n| change(json!({"configs": {format!("k{n}"): n}})));
        for response in futures_util::future::join_all(changes).await {
            assert_eq!(response.status, StatusCode::OK);
        }
        assert_eq!(read_configs().await.as_object().unwrap().len(), 18, "no change is lost");
        for (body, text) in [
            (json!({}), "configs"),
            (json!({"configs": null}), "configs"),
            (json!({"configs": [1]}), "configs"),
            (json!({"configs": {"a": "\u{0}"}}), "configs"),
            (json!({"configs": {"a": "x".repeat(65_536)}}), "configs size exceeds 64KB limit"),
        ] {
            change(body).await.assert_error(400, text);
        }
        client.put(&path, json!({"configs": "text"})).await.assert_error(400, "configs");
        client.put(&path, json!({"configs": {"a": "x".repeat(1 << 20)}})).await.assert_error(413, "configs");
        let body = json!({"configs": {"b": 1}});
        stranger.put(&path, body.clone()).await.assert_error(403, "does not belong");
        stranger.json(Method::PATCH, &path, &body.to_string()).await.assert_error(404, "session not found");
        let missing = format!("/api/v1/session/{}/configs", Uuid::new_v4());
        client.put(&missing, body).await.assert_error(404, "session not found");
    })
    .await;
}
