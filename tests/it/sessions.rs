//! Sessions: creation (also concurrent), lists, and deletion with everything that belongs to a session.

use axum::body::Body;
use axum::http::{Method, StatusCode};
use serde_json::json;
use uuid::Uuid;

use crate::support::client::{Client, Form};
use crate::support::run;

const PATH: &str = "/api/v1/session";

async fn ids(client: &Client, query: &str) -> Vec<String> {
    let response = client.get(&format!("{PATH}?{query}")).await;
    assert_eq!(response.status, StatusCode::OK, "{}", response.text());
    let page = response.data();
    page["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn responses_contain_all_fields_of_a_session() {
    run(async |app| {
        let client = app.project().await;
        // A client without options sends neither a body nor a content type.
        let bare = client.send(client.request(Method::POST, PATH).body(Body::empty()).unwrap()).await;
        assert_eq!(bare.status, StatusCode::CREATED);
        let bare = bare.data();
        let keys: Vec<&str> = bare.as_object().unwrap().keys().map(String::as_str).collect();
        let all = ["configs", "created_at", "disable_task_tracking", "id", "project_id", "updated_at", "user_id"];
        assert_eq!(keys, all);
        assert!(bare["configs"].is_null() && bare["user_id"].is_null() && bare["disable_task_tracking"] == false);
        assert_eq!(bare["project_id"], client.project().to_string());
        let id: Uuid = bare["id"].as_str().unwrap().parse().unwrap();
        assert_eq!(id.get_version_num(), 4, "clients cannot copy a session whose id has a newer version");
        let configs = json!({"big": 12_345_678_901_234_567_890_u64, "nested": {"a": [null, 1.50]}});
        let full =
            client.post(PATH, json!({"user": "ada", "configs": configs, "disable_task_tracking": true})).await.data();
        assert_eq!((&full["configs"], &full["disable_task_tracking"]), (&configs, &json!(true)));
        let again = client.post(PATH, json!({"user": "ada", "configs": {}})).await.data();
        assert_eq!(again["user_id"], full["user_id"]);
        assert_eq!(again["configs"], json!({}), "an empty object is stored");
        let response = client.get(&format!("{PATH}/{}/configs", full["id"].as_str().unwrap())).await;
        assert_eq!((response.status, response.data()), (StatusCode::OK, full));
    })
    .await;
}

#[tokio::test]
async fn concurrent_requests_for_one_id_create_one_session() {
    run(async |app| {
        let client = app.project().await;
        let id = Uuid::new_v4();
        let create = |n: usize| {
            let client = client.clone();
            async move { client.post(PATH, json!({"use_uuid": id, "configs": {"n": n}})).await }
        };
        let responses = futures_util::future::join_all((0..16).map(create)).await;
        let created: Vec<_> = responses.iter().filter(|response| response.status == StatusCode::CREATED).collect();
        assert_eq!(created.len(), 1);
        let first = created[0].data();
        assert_eq!(first["id"], id.to_string());
        for response in &responses {
            assert!(response.status.is_success(), "{}", response.text());
            assert_eq!(response.data(), first, "later requests change nothing");
        }
        let stranger = app.project().await;
        let conflict = stranger.post(PATH, json!({"use_uuid": id, "user": "eve"})).await;
        conflict.assert_error(409, "session with this UUID already exists");
        for invalid in ["00000000-0000-0000-0000-000000000000", "not-a-uuid"] {
            let response = client.post(PATH, json!({"use_uuid": invalid})).await;
            response.assert_error(400, "invalid UUID format for use_uuid");
        }
        assert_eq!(client.post(PATH, json!({"use_uuid": ""})).await.status, StatusCode::CREATED);
    })
    .await;
}

#[tokio::test]
async fn lists_can_be_filtered_and_paged_in_both_directions() {
    run(async |app| {
        let (client, stranger) = (app.project().await, app.project().await);
        stranger.new_session().await;
        let mut all = Vec::new();
        for n in 0..5 {
            let user = if n % 2 == 0 { "ada" } else { "bob" };
            let configs = json!({"source": "cli", "n": n, "deep": {"even": n % 2 == 0, "more": [n]}});
            let created = client.post(PATH, json!({"user": user, "configs": configs})).await.data();
            all.push(created["id"].as_str().unwrap().to_owned());
        }
        assert_eq!(ids(&client, "").await, all);
        assert_eq!(ids(&client, "user=ada").await, [all[0].clone(), all[2].clone(), all[4].clone()]);
        assert_eq!(ids(&client, "user=eve").await, [] as [String; 0]);
        assert_eq!(ids(&client, &format!("id={}", all[3])).await, [all[3].clone()]);
        let filter = |text: &str| format!("filter_by_configs={}", acontextd::percent::encode(text.as_bytes(), b""));
        for (text, expected) in [
            (r#"{"n": 1.0}"#, vec![1]),
            (r#"{"deep": {"even": true}}"#, vec![0, 2, 4]),
            (r#"{"deep": {"more": [3]}, "source": "cli"}"#, vec![3]),
            (r#"{"source": "CLI"}"#, vec![]),
            ("{}", vec![0, 1, 2, 3, 4]),
            ("null", vec![0, 1, 2, 3, 4]),
        ] {
            let expected: Vec<_> = expected.into_iter().map(|n: usize| all[n].clone()).collect();
            assert_eq!(ids(&client, &filter(text)).await, expected, "{text}");
        }
        for direction in ["false", "true"] {
            let mut listed = Vec::new();
            let mut query = format!("limit=2&time_desc={direction}");
            loop {
                let page = client.get(&format!("{PATH}?{query}")).await.data();
                listed.extend(page["items"].as_array().unwrap().iter().map(|item| item["id"].clone()));
                let Some(cursor) = page["next_cursor"].as_str() else { break };
                query = format!("limit=2&time_desc={direction}&cursor={cursor}");
            }
            if direction == "true" {
                listed.reverse();
            }
            assert_eq!(json!(listed), json!(all));
        }
    })
    .await;
}

#[tokio::test]
async fn error_responses_name_the_field() {
    run(async |app| {
        let client = app.project().await;
        for (body, field) in [
            (json!({"user": 5}), "user"),
            (json!({"user": "a\u{0}b"}), "user"),
            (json!({"user": "u".repeat(1025)}), "user"),
            (json!({"configs": "text"}), "configs"),
            (json!({"configs": {"a": ["\u{0}"]}}), "configs"),
            (json!({"disable_task_tracking": "maybe"}), "disable_task_tracking"),
            (json!({"use_uuid": 7}), "use_uuid"),
        ] {
            client.post(PATH, body).await.assert_error(400, field);
        }
        let large = json!({"configs": {"a": "x".repeat(1 << 20)}});
        client.post(PATH, large).await.assert_error(413, "configs");
        client.json(Method::POST, PATH, "").await.assert_error(400, "body");
        client.json(Method::POST, PATH, "[]").await.assert_error(400, "");
        for (query, field) in [
            ("limit=0", "limit"),
            ("limit=201", "limit"),
            ("cursor=%21", "cursor"),
            ("id=x", "id"),
            ("user=%00", "user"),
            ("filter_by_configs=%7B", "filter_by_configs"),
            ("filter_by_configs=%5B%5D", "filter_by_configs"),
            ("time_desc=perhaps", "time_desc"),
        ] {
            client.get(&format!("{PATH}?{query}")).await.assert_error(400, field);
        }
        assert_eq!(ids(&client, "").await, [] as [String; 0]);
    })
    .await;
}

#[tokio::test]
async fn deleting_a_session_deletes_its_messages_and_files() {
    run(async |app| {
        let (client, stranger) = (app.project().await, app.project().await);
        let (session, other) = (client.new_session().await, client.new_session().await);
        client.store_text(&session, "deleted").await;
        client.store_text(&other, "remains").await;
        let payload =
            json!({"format": "acontext", "blob": {"role": "user", "parts": [{"type": "file", "file_field": "f"}]}});
        let form = Form::new().text("payload", &payload.to_string()).file("f", "a.txt", "content of a file");
        assert_eq!(client.store_form_message(&session, form).await.status, StatusCode::CREATED);
        let path = format!("{PATH}/{session}");
        stranger.delete(&path).await.assert_error(403, "session does not belong to this project");
        stranger.get(&format!("{path}/configs")).await.assert_error(403, "does not belong");
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from messages").await, 3);
        let response = client.delete(&path).await;
        assert_eq!((response.status, response.json()), (StatusCode::OK, json!({"code": 0, "msg": ""})));
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from messages").await, 1);
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from message_files").await, 0);
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from blob_releases").await, 1);
        client.delete(&path).await.assert_error(404, "session not found");
        client.get(&format!("{path}/configs")).await.assert_error(404, "session not found");
        client.get(&format!("{path}/messages")).await.assert_error(404, "session not found");
        client
            .store_message(&session, "openai", json!({"role": "user", "content": "late"}))
            .await
            .assert_error(404, "session not found");
        assert_eq!(client.messages(&other, "").await["items"], json!([{"role": "user", "content": "remains"}]));
        client.delete(&format!("{PATH}/{}", Uuid::nil())).await.assert_error(404, "session not found");
        client.delete(&format!("{PATH}/nonsense")).await.assert_error(400, "session_id");
    })
    .await;
}

#[tokio::test]
async fn deleting_a_user_deletes_the_sessions() {
    run(async |app| {
        let client = app.project().await;
        let created = client.post(PATH, json!({"user": "ada"})).await.data();
        let other = client.new_session().await;
        client.store_text(created["id"].as_str().unwrap(), "hello").await;
        app.execute("delete from users where identifier = 'ada'").await;
        assert_eq!(ids(&client, "").await, [other]);
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from messages").await, 0);
    })
    .await;
}
