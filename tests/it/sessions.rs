//! Sessions: making them, once and many at a time; finding them; and that deleting one takes everything along.

use axum::body::Body;
use axum::http::{Method, StatusCode};
use serde_json::json;
use uuid::Uuid;

use crate::support::client::{Client, Form};
use crate::support::run;

const PATH: &str = "/api/v1/session";

async fn ids(client: &Client, query: &str) -> Vec<String> {
    let answer = client.get(&format!("{PATH}?{query}")).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    let page = answer.data();
    page["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_session_is_told_with_all_its_keys() {
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
        assert_eq!(id.get_version_num(), 4, "a client copies no session with a newer kind of id");
        let configs = json!({"big": 12_345_678_901_234_567_890_u64, "nested": {"a": [null, 1.50]}});
        let full =
            client.post(PATH, json!({"user": "ada", "configs": configs, "disable_task_tracking": true})).await.data();
        assert_eq!((&full["configs"], &full["disable_task_tracking"]), (&configs, &json!(true)));
        let again = client.post(PATH, json!({"user": "ada", "configs": {}})).await.data();
        assert_eq!(again["user_id"], full["user_id"]);
        assert_eq!(again["configs"], json!({}), "an empty object is not nothing");
        let shown = client.get(&format!("{PATH}/{}/configs", full["id"].as_str().unwrap())).await;
        assert_eq!((shown.status, shown.data()), (StatusCode::OK, full));
    })
    .await;
}

#[tokio::test]
async fn sixteen_clients_may_ask_for_the_same_id_at_once() {
    run(async |app| {
        let client = app.project().await;
        let wanted = Uuid::new_v4();
        let ask = |n: usize| {
            let client = client.clone();
            async move { client.post(PATH, json!({"use_uuid": wanted, "configs": {"n": n}})).await }
        };
        let answers = futures_util::future::join_all((0..16).map(ask)).await;
        let made: Vec<_> = answers.iter().filter(|answer| answer.status == StatusCode::CREATED).collect();
        assert_eq!(made.len(), 1);
        let first = made[0].data();
        assert_eq!(first["id"], wanted.to_string());
        for answer in &answers {
            assert!(answer.status.is_success(), "{}", answer.text());
            assert_eq!(answer.data(), first, "what came later changes nothing");
        }
        let stranger = app.project().await;
        let taken = stranger.post(PATH, json!({"use_uuid": wanted, "user": "eve"})).await;
        taken.assert_refused(409, "session with this UUID already exists");
        for nothing in ["00000000-0000-0000-0000-000000000000", "not-a-uuid"] {
            let refused = client.post(PATH, json!({"use_uuid": nothing})).await;
            refused.assert_refused(400, "invalid UUID format for use_uuid");
        }
        assert_eq!(client.post(PATH, json!({"use_uuid": ""})).await.status, StatusCode::CREATED);
    })
    .await;
}

#[tokio::test]
async fn lists_are_narrowed_and_walked_both_ways() {
    run(async |app| {
        let (client, stranger) = (app.project().await, app.project().await);
        stranger.new_session().await;
        let mut all = Vec::new();
        for n in 0..5 {
            let user = if n % 2 == 0 { "ada" } else { "bob" };
            let configs = json!({"source": "cli", "n": n, "deep": {"even": n % 2 == 0, "more": [n]}});
            let made = client.post(PATH, json!({"user": user, "configs": configs})).await.data();
            all.push(made["id"].as_str().unwrap().to_owned());
        }
        assert_eq!(ids(&client, "").await, all);
        assert_eq!(ids(&client, "user=ada").await, [all[0].clone(), all[2].clone(), all[4].clone()]);
        assert_eq!(ids(&client, "user=nobody").await, [] as [String; 0]);
        assert_eq!(ids(&client, &format!("id={}", all[3])).await, [all[3].clone()]);
        let filter = |text: &str| format!("filter_by_configs={}", acontextd::percent::encode(text.as_bytes(), b""));
        for (text, found) in [
            (r#"{"n": 1.0}"#, vec![1]),
            (r#"{"deep": {"even": true}}"#, vec![0, 2, 4]),
            (r#"{"deep": {"more": [3]}, "source": "cli"}"#, vec![3]),
            (r#"{"source": "CLI"}"#, vec![]),
            ("{}", vec![0, 1, 2, 3, 4]),
            ("null", vec![0, 1, 2, 3, 4]),
        ] {
            let found: Vec<_> = found.into_iter().map(|n: usize| all[n].clone()).collect();
            assert_eq!(ids(&client, &filter(text)).await, found, "{text}");
        }
        for direction in ["false", "true"] {
            let mut walked = Vec::new();
            let mut query = format!("limit=2&time_desc={direction}");
            loop {
                let page = client.get(&format!("{PATH}?{query}")).await.data();
                walked.extend(page["items"].as_array().unwrap().iter().map(|item| item["id"].clone()));
                let Some(cursor) = page["next_cursor"].as_str() else { break };
                query = format!("limit=2&time_desc={direction}&cursor={cursor}");
            }
            if direction == "true" {
                walked.reverse();
            }
            assert_eq!(json!(walked), json!(all));
        }
    })
    .await;
}

#[tokio::test]
async fn a_refusal_names_the_field() {
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
            client.post(PATH, body).await.assert_refused(400, field);
        }
        let large = json!({"configs": {"a": "x".repeat(1 << 20)}});
        client.post(PATH, large).await.assert_refused(413, "configs");
        client.json(Method::POST, PATH, "").await.assert_refused(400, "body");
        client.json(Method::POST, PATH, "[]").await.assert_refused(400, "");
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
            client.get(&format!("{PATH}?{query}")).await.assert_refused(400, field);
        }
        assert_eq!(ids(&client, "").await, [] as [String; 0]);
    })
    .await;
}

#[tokio::test]
async fn a_deleted_session_takes_messages_and_files_along() {
    run(async |app| {
        let (client, stranger) = (app.project().await, app.project().await);
        let (session, other) = (client.new_session().await, client.new_session().await);
        client.say_text(&session, "goes").await;
        client.say_text(&other, "stays").await;
        let payload =
            json!({"format": "acontext", "blob": {"role": "user", "parts": [{"type": "file", "file_field": "f"}]}});
        let form = Form::new().text("payload", &payload.to_string()).file("f", "a.txt", "content of a file");
        assert_eq!(client.say_form(&session, form).await.status, StatusCode::CREATED);
        let path = format!("{PATH}/{session}");
        stranger.delete(&path).await.assert_refused(403, "session does not belong to this project");
        stranger.get(&format!("{path}/configs")).await.assert_refused(403, "does not belong");
        assert_eq!(app.value::<i64>("select count(*) from messages").await, 3);
        let gone = client.delete(&path).await;
        assert_eq!((gone.status, gone.json()), (StatusCode::OK, json!({"code": 0, "msg": ""})));
        assert_eq!(app.value::<i64>("select count(*) from messages").await, 1);
        assert_eq!(app.value::<i64>("select count(*) from message_files").await, 0);
        assert_eq!(app.value::<i64>("select count(*) from blob_releases").await, 1);
        client.delete(&path).await.assert_refused(404, "session not found");
        client.get(&format!("{path}/configs")).await.assert_refused(404, "session not found");
        client.get(&format!("{path}/messages")).await.assert_refused(404, "session not found");
        client
            .say(&session, "openai", json!({"role": "user", "content": "late"}))
            .await
            .assert_refused(404, "session not found");
        assert_eq!(client.messages(&other, "").await["items"], json!([{"role": "user", "content": "stays"}]));
        client.delete(&format!("{PATH}/{}", Uuid::nil())).await.assert_refused(404, "session not found");
        client.delete(&format!("{PATH}/nonsense")).await.assert_refused(400, "session_id");
    })
    .await;
}

#[tokio::test]
async fn a_user_who_goes_takes_the_sessions_along() {
    run(async |app| {
        let client = app.project().await;
        let made = client.post(PATH, json!({"user": "ada"})).await.data();
        let kept = client.new_session().await;
        client.say_text(made["id"].as_str().unwrap(), "hello").await;
        app.execute("delete from users where identifier = 'ada'").await;
        assert_eq!(ids(&client, "").await, [kept]);
        assert_eq!(app.value::<i64>("select count(*) from messages").await, 0);
    })
    .await;
}
