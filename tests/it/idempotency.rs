//! A request that is sent twice with the same `Idempotency-Key` is executed once, on every route that changes data.

use std::time::Duration;

use acontextd::db::Tx;
use acontextd::http::idempotency::store::purge_expired;
use axum::http::{Method, StatusCode};
use futures_util::future::join_all;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::client::{Client, Form, TestResponse};
use crate::support::mock_http::MockServer;
use crate::support::samples::{operations, sample_request};
use crate::support::{TestApp, TestConfig, document, run, run_with, wait_until};

const RECORDS: &str = "select count(*) from idempotency_records";
const DISKS: &str = "select count(*) from disks";

/// Returns every operation of the API description that can change data.
fn mutating_operations() -> Vec<String> {
    operations().into_iter().filter(|operation| !operation.starts_with("GET ")).collect()
}

#[track_caller]
fn assert_replay(first: &TestResponse, replay: &TestResponse) {
    assert!(first.status.is_success() && !first.is_replay(), "{}", first.text());
    assert!(replay.is_replay(), "{}", replay.text());
    assert_eq!((first.status, &first.bytes), (replay.status, &replay.bytes));
    assert_eq!(first.header("content-type"), replay.header("content-type"));
}

#[tokio::test]
async fn every_mutating_operation_is_executed_once() {
    let billing = MockServer::start().await;
    let config = TestConfig::default().with("LLM_SDK", "mock").with("SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS", "1h");
    run_with(config.with("METRICS_PUSH_URL", &billing.url), async |app| {
        let all = async {
            let operations = mutating_operations();
            assert!(operations.len() > 15, "only {operations:?} were found");
            for operation in operations {
                let client = app.project().await;
                let request = sample_request(&app, &client, &operation).await;
                let before = app.state().await;
                let first = request.send_with_key("key").await;
                assert!(first.status.is_success(), "{operation}: {}", first.text());
                let after = app.state().await;
                assert_ne!(before, after, "{operation} changed nothing");
                let replay = request.send_with_key("key").await;
                assert!(replay.is_replay(), "{operation} ignores the key: {}", replay.text());
                assert_replay(&first, &replay);
                assert_eq!(app.state().await, after, "{operation} was executed twice");
                let path = format!("{}?another=request", request.path);
                let another =
                    request.client.send_with_key("key", request.method.clone(), &path, request.body.clone()).await;
                another.assert_error(422, "Idempotency-Key");
                assert_eq!(app.state().await, after, "{operation} was executed with the key of another request");
                request.send_with_key("no key").await.assert_error(400, "Idempotency-Key");
                assert!(!request.send_with_key("another-key").await.is_replay(), "{operation}");
            }
        };
        tokio::select! {
            ended = app.run_jobs() => panic!("the runner ended: {ended:?}"),
            () = all => {}
        }
    })
    .await;
}

#[test]
fn every_mutating_operation_documents_its_key() {
    let document = serde_json::to_value(document()).unwrap();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            let headers = parameters.filter(|parameter| parameter["name"] == "Idempotency-Key").count();
            assert_eq!(headers, usize::from(method != "get"), "{method} {path}");
            assert_eq!(operation["responses"]["422"].is_object(), method != "get", "{method} {path}");
        }
    }
}

async fn create_disk(client: &Client, key: &str) -> TestResponse {
    client.json_with_key(key, Method::POST, "/api/v1/disk", &Value::Null).await
}

#[tokio::test]
async fn a_key_is_up_to_255_visible_ascii_characters() {
    run(async |app| {
        let client = app.project().await;
        for invalid in ["", " ", "two words", "tab\tbed", "größe", &"k".repeat(256)] {
            create_disk(&client, invalid).await.assert_error(400, "Idempotency-Key");
        }
        let request = client.request(Method::POST, "/api/v1/disk").header("idempotency-key", "a");
        let request = request.header("idempotency-key", "b").body(axum::body::Body::empty()).unwrap();
        client.send(request).await.assert_error(400, "Idempotency-Key");
        for valid in ["a", "\"quoted\"", &"~".repeat(255)] {
            let first = create_disk(&client, valid).await;
            assert_replay(&first, &create_disk(&client, valid).await);
        }
        assert_eq!(app.fetch_scalar::<i64>(DISKS).await, 3);
        // Without a key no record is stored.
        client.new_disk().await;
        assert_eq!(app.fetch_scalar::<i64>(RECORDS).await, 3);
    })
    .await;
}

#[tokio::test]
async fn a_key_belongs_to_one_project_method_and_path() {
    run(async |app| {
        let (client, other) = (app.project().await, app.project().await);
        let mine = create_disk(&client, "k").await;
        let theirs = create_disk(&other, "k").await;
        assert!(!theirs.is_replay() && mine.data()["id"] != theirs.data()["id"]);
        let session = client.new_session().await;
        let path = format!("/api/v1/session/{session}/configs");
        let configs = json!({"configs": {"a": 1}});
        for (method, path) in [
            (Method::PUT, path.clone()),
            (Method::PATCH, path.clone()),
            (Method::PUT, path.replace(&session, &client.new_session().await)),
        ] {
            let first = client.json_with_key("k", method.clone(), &path, &configs).await;
            assert_replay(&first, &client.json_with_key("k", method, &path, &configs).await);
        }
        // An idempotency key returns nothing to another project, and nothing without a project key.
        app.client().json_with_key("k", Method::POST, "/api/v1/disk", &Value::Null).await.assert_error(401, "");
        assert_replay(&mine, &create_disk(&client, "k").await);
        assert_replay(&theirs, &create_disk(&other, "k").await);
    })
    .await;
}

#[tokio::test]
async fn an_error_response_is_not_stored() {
    run(async |app| {
        let client = app.project().await;
        let session = Uuid::new_v4();
        let path = format!("/api/v1/session/{session}/events");
        let event = json!({"type": "t", "data": {}});
        client.json_with_key("k", Method::POST, &path, &event).await.assert_error(404, "session not found");
        client.json_with_key("k", Method::POST, &path, &json!({"type": ""})).await.assert_error(400, "type");
        assert_eq!(app.fetch_scalar::<i64>(RECORDS).await, 0);
        client.post("/api/v1/session", json!({"use_uuid": session})).await;
        let first = client.json_with_key("k", Method::POST, &path, &event).await;
        assert_replay(&first, &client.json_with_key("k", Method::POST, &path, &event).await);
        let duplicate = json!({"use_uuid": session, "user": "ann"});
        let stranger = app.project().await;
        stranger.json_with_key("k", Method::POST, "/api/v1/session", &duplicate).await.assert_error(409, "UUID");
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from users").await, 0, "a failed request changes nothing");
        assert_eq!(app.fetch_scalar::<i64>(RECORDS).await, 1);
    })
    .await;
}

#[tokio::test]
async fn the_effect_and_the_response_are_stored_atomically() {
    run(async |app| {
        let client = app.project().await;
        // The last step before the commit fails.
        app.execute("create function fail() returns trigger language plpgsql as $$ begin raise exception 'no'; end $$")
            .await;
        app.execute("create trigger fail before update on idempotency_records for each row execute function fail()")
            .await;
        create_disk(&client, "k").await.assert_error(500, "internal error");
        assert_eq!((app.fetch_scalar::<i64>(DISKS).await, app.fetch_scalar::<i64>(RECORDS).await), (0, 0));
        app.execute("drop trigger fail on idempotency_records").await;
        let first = create_disk(&client, "k").await;
        assert_replay(&first, &create_disk(&client, "k").await);
        assert_eq!((app.fetch_scalar::<i64>(DISKS).await, app.fetch_scalar::<i64>(RECORDS).await), (1, 1));
    })
    .await;
}

/// Locks a session until the returned transaction ends.
async fn lock_session(app: &TestApp, session: &str) -> Tx {
    let mut lock = app.app.db.begin().await.unwrap();
    let select = sqlx::query("select 1 from sessions where id = $1 for update").bind(session.parse::<Uuid>().unwrap());
    select.execute(&mut *lock).await.unwrap();
    lock
}

/// Waits until exactly `expected` statements wait for a lock.
async fn wait_for_lock_waiters(app: &TestApp, expected: i64) {
    let waiters =
        "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    wait_until("the statements wait for a lock", async || app.fetch_scalar::<i64>(waiters).await == expected).await;
}

#[tokio::test]
async fn a_duplicate_request_waits_and_replays_the_response() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let path = format!("/api/v1/session/{session}/events");
        let event = json!({"type": "t", "data": {}});
        let record_event = || client.json_with_key("k", Method::POST, &path, &event);
        let lock = lock_session(&app, &session).await;
        let requests = async {
            tokio::join!(record_event(), async {
                wait_for_lock_waiters(&app, 1).await;
                record_event().await
            })
        };
        tokio::pin!(requests);
        assert!(
            tokio::time::timeout(Duration::from_millis(500), &mut requests).await.is_err(),
            "a request did not wait"
        );
        lock.commit().await.unwrap();
        let (first, second) = requests.await;
        assert_replay(&first, &second);
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from session_events").await, 1);
    })
    .await;
}

#[tokio::test]
async fn a_duplicate_request_runs_if_the_first_one_fails() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let path = format!("/api/v1/session/{session}/events");
        let record_event = async |data: &str| {
            client.json_with_key("k", Method::POST, &path, &json!({"type": "t", "data": {"n": data}})).await
        };
        let lock = lock_session(&app, &session).await;
        let rest = async {
            wait_for_lock_waiters(&app, 1).await;
            // A different request with the same key. It can be distinguished from the first one only after one of them
            // has a response.
            let second = record_event("second");
            tokio::pin!(second);
            assert!(
                tokio::time::timeout(Duration::from_millis(300), &mut second).await.is_err(),
                "the second request did not wait"
            );
            app.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity
                 where datname = current_database() and wait_event_type = 'Lock'",
            )
            .await;
            wait_for_lock_waiters(&app, 0).await;
            lock.commit().await.unwrap();
            second.await
        };
        let (first, second) = tokio::join!(record_event("first"), rest);
        first.assert_error(503, "database");
        assert_eq!(second.status, StatusCode::OK, "{}", second.text());
        assert!(!second.is_replay());
        assert_eq!(app.fetch_scalar::<Value>("select data from session_events").await, json!({"n": "second"}));
    })
    .await;
}

#[tokio::test]
async fn a_duplicate_request_that_waits_too_long_is_409() {
    run_with(TestConfig::default().with("ACONTEXTD_IDEMPOTENCY_WAIT", "200ms"), async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let path = format!("/api/v1/session/{session}");
        let delete = || client.json_with_key("k", Method::DELETE, &path, &Value::Null);
        let lock = lock_session(&app, &session).await;
        let duplicate = async {
            wait_for_lock_waiters(&app, 1).await;
            delete().await.assert_error(409, "Idempotency-Key");
            lock.commit().await.unwrap();
        };
        let (first, ()) = tokio::join!(delete(), duplicate);
        assert_replay(&first, &delete().await);
    })
    .await;
}

#[tokio::test]
async fn of_sixteen_concurrent_duplicates_one_is_executed() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let path = format!("/api/v1/session/{session}/messages");
        let message = json!({"blob": {"role": "user", "content": "once"}});
        for round in 0..5 {
            let key = format!("key-{round}");
            let responses = join_all((0..16).map(|_| client.json_with_key(&key, Method::POST, &path, &message))).await;
            assert_eq!(responses.iter().filter(|response| response.is_replay()).count(), 15);
            for response in &responses {
                assert_eq!((response.status, &response.bytes), (StatusCode::CREATED, &responses[0].bytes));
            }
        }
        assert_eq!(client.messages(&session, "").await["ids"].as_array().unwrap().len(), 5);
    })
    .await;
}

#[tokio::test]
async fn many_duplicate_requests_do_not_block_other_requests() {
    run_with(TestConfig::default().with("ACONTEXTD_IDEMPOTENCY_WAIT", "1m"), async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let path = format!("/api/v1/session/{session}/copy");
        let lock = lock_session(&app, &session).await;
        // Far more requests than the pool has connections.
        let duplicates = join_all((0..60).map(|_| client.json_with_key("k", Method::POST, &path, &Value::Null)));
        let others = async {
            wait_for_lock_waiters(&app, 1).await;
            for n in 0..20 {
                assert_eq!(create_disk(&client, &format!("other-{n}")).await.status, StatusCode::CREATED);
                client.new_disk().await;
            }
            lock.commit().await.unwrap();
        };
        let (duplicates, ()) = tokio::join!(duplicates, others);
        assert_eq!(
            duplicates.iter().filter(|response| response.status == StatusCode::OK && response.is_replay()).count(),
            59
        );
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from sessions").await, 2);
    })
    .await;
}

#[tokio::test]
async fn messages_to_a_locked_session_do_not_block_other_sessions() {
    run(async |app| {
        let client = app.project().await;
        let (locked, free) = (client.new_session().await, client.new_session().await);
        let message = json!({"blob": {"role": "user", "content": "waits"}});
        let store_message = async |session: &str, key: &str| {
            let path = format!("/api/v1/session/{session}/messages");
            let response = client.json_with_key(key, Method::POST, &path, &message).await;
            assert_eq!(response.status, StatusCode::CREATED, "{}", response.text());
        };
        let lock = lock_session(&app, &locked).await;
        let keys: Vec<String> = (0..60).map(|n| format!("key-{n}")).collect();
        let waiters = join_all(keys.iter().map(|key| store_message(&locked, key)));
        let others = async {
            // The waiting requests use a quarter of the connections, as they do without keys.
            wait_for_lock_waiters(&app, 5).await;
            for key in &keys {
                store_message(&free, key).await;
            }
            lock.commit().await.unwrap();
        };
        tokio::join!(waiters, others);
        for session in [locked, free] {
            assert_eq!(client.messages(&session, "").await["ids"].as_array().unwrap().len(), 60);
        }
    })
    .await;
}

#[tokio::test]
async fn a_record_is_kept_for_a_day() {
    run(async |app| {
        let client = app.project().await;
        let age = "update idempotency_records set created_at = created_at - interval '12 hours'";
        let first = create_disk(&client, "old").await;
        app.execute(age).await;
        assert_replay(&first, &create_disk(&client, "old").await);
        create_disk(&client, "young").await;
        app.execute(age).await;
        // The expired record is not deleted yet, but it is ignored, also if another request has its key.
        let path = "/api/v1/disk?another=request";
        let second = client.json_with_key("old", Method::POST, path, &Value::Null).await;
        assert_ne!(second.data()["id"], first.data()["id"]);
        assert_replay(&second, &client.json_with_key("old", Method::POST, path, &Value::Null).await);
        assert_eq!((app.fetch_scalar::<i64>(DISKS).await, app.fetch_scalar::<i64>(RECORDS).await), (3, 2));
        app.execute(age).await;
        purge_expired(app.app.db.clone()).await.unwrap();
        assert_eq!(
            app.fetch_scalar::<i64>(RECORDS).await,
            1,
            "the record of `young` has expired, and the record of `old` was replaced"
        );
        create_disk(&client, "more").await;
        app.execute("update idempotency_records set created_at = created_at - interval '24 hours'").await;
        purge_expired(app.app.db.clone()).await.unwrap();
        assert_eq!(app.fetch_scalar::<i64>(RECORDS).await, 0);
    })
    .await;
}

#[tokio::test]
async fn a_stored_secret_is_encrypted_and_deleted_with_its_project() {
    run(async |app| {
        let send = async || app.admin().json_with_key("k", Method::POST, "/admin/v1/project", &json!({})).await;
        let created = send().await;
        let key = created.data()["secret_key"].as_str().unwrap().to_owned();
        assert_replay(&created, &send().await);
        let stored: Vec<u8> = app.fetch_scalar("select body from idempotency_records").await;
        assert_eq!(stored.len(), created.bytes.len() + 12 + 16);
        assert!(!stored.windows(6).any(|window| window == b"secret"), "the response is stored as plaintext");
        let client = app.client().with_key(&key);
        create_disk(&client, "k").await;
        assert_eq!(app.fetch_scalar::<i64>(RECORDS).await, 2);
        let id = created.data()["project_id"].as_str().unwrap().to_owned();
        app.admin().delete(&format!("/admin/v1/project/{id}")).await;
        assert_eq!(app.fetch_scalar::<i64>(RECORDS).await, 1, "only the record of the admin request remains");
    })
    .await;
}

#[tokio::test]
async fn forms_are_compared_by_their_content() {
    run(async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        let path = format!("/api/v1/disk/{disk}/artifact");
        let send = async |body| client.send_with_key("k", Method::POST, &path, body).await;
        let form = |name: &str, content: &str, meta: &str| {
            Form::new().text("file_path", "/d/").text("meta", meta).file("file", name, content)
        };
        let first = send(form("a.txt", "content", "{}").finish()).await;
        client.upload(&disk, "/d/", "a.txt", "changed since").await;
        assert_replay(&first, &send(form("a.txt", "content", "{}").finish_with_other_boundary()).await);
        for another in [form("b.txt", "content", "{}"), form("a.txt", "Content", "{}"), form("a.txt", "content", "{ }")]
        {
            send(another.finish()).await.assert_error(422, "Idempotency-Key");
        }
        // A replay requires neither the disk nor the object store.
        assert_eq!(client.delete(&format!("/api/v1/disk/{disk}")).await.status, StatusCode::OK);
        app.blobs.set_down(true);
        assert_replay(&first, &send(form("a.txt", "content", "{}").finish()).await);
        let other = client.send_with_key("l", Method::POST, &path, form("a.txt", "content", "{}").finish()).await;
        other.assert_error(404, "disk not found");
    })
    .await;
}

#[tokio::test]
async fn messages_of_every_kind_are_stored_once() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let path = format!("/api/v1/session/{session}/messages");
        let json = |json: Value| ("application/json".to_owned(), json.to_string().into_bytes());
        let call = json!({"role": "model", "parts": [{"functionCall": {"name": "f", "args": {}}}]});
        let response = json!({"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"a": 1}}}]});
        let with_file = json!({"format": "acontext",
            "blob": {"role": "user", "parts": [{"type": "file", "file_field": "f"}]}});
        let long = "long ".repeat(100_000);
        let bodies = [
            json(json!({"blob": {"role": "user", "content": "short"}})),
            json(json!({"blob": {"role": "user", "content": long}})),
            json(json!({"format": "gemini", "blob": call})),
            json(json!({"format": "gemini", "blob": response})),
            Form::new().text("payload", &with_file.to_string()).file("f", "a.txt", "content").finish(),
        ];
        let mut responses = Vec::new();
        for (n, body) in bodies.iter().enumerate() {
            let key = format!("key-{n}");
            let first = client.send_with_key(&key, Method::POST, &path, body.clone()).await;
            assert_replay(&first, &client.send_with_key(&key, Method::POST, &path, body.clone()).await);
            client.send_with_key(&key, Method::POST, &path, bodies[(n + 1) % 5].clone()).await.assert_error(422, "");
            responses.push(first);
        }
        let page = client.messages(&session, "format=acontext").await;
        let ids: Vec<Value> = responses.iter().map(|response| response.data()["id"].clone()).collect();
        assert_eq!(page["ids"], json!(ids));
        assert_eq!(page["items"][3]["parts"], responses[3].data()["parts"]);
        // The responses are replayed although the messages are deleted.
        assert_eq!(client.delete(&format!("/api/v1/session/{session}")).await.status, StatusCode::OK);
        for (n, (body, first)) in bodies.iter().zip(&responses).enumerate() {
            assert_replay(first, &client.send_with_key(&format!("key-{n}"), Method::POST, &path, body.clone()).await);
        }
    })
    .await;
}

#[tokio::test]
async fn a_failed_flush_can_be_repeated_with_its_key() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        client.store_text(&session, "waits").await;
        let path = format!("/api/v1/session/{session}/flush");
        let flush = || client.json_with_key("k", Method::POST, &path, &Value::Null);
        for _ in 0..2 {
            let response = flush().await;
            assert!(!response.is_replay());
            assert_eq!(response.data()["status"], 503, "{}", response.text());
        }
        app.execute("update messages set session_task_process_status = 'success'").await;
        let succeeded = flush().await;
        assert_eq!(succeeded.data()["status"], 200, "{}", succeeded.text());
        client.store_text(&session, "later").await;
        assert_replay(&succeeded, &flush().await);
    })
    .await;
}
