//! A request that comes twice with an `Idempotency-Key` acts once, on every route that acts.

use std::time::Duration;

use acontextd::db::Tx;
use acontextd::http::idempotency::store::purge_expired;
use axum::http::{Method, StatusCode};
use futures_util::future::join_all;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::client::{Answer, Client, Form};
use crate::support::samples::{operations, sample};
use crate::support::service::Service;
use crate::support::{Setup, TestApp, document, eventually, run, run_with};

const KEPT: &str = "select count(*) from idempotency_records";
const DISKS: &str = "select count(*) from disks";

/// Every operation of the description that may act.
fn acting() -> Vec<String> {
    operations().into_iter().filter(|operation| !operation.starts_with("GET ")).collect()
}

#[track_caller]
fn assert_replay(first: &Answer, again: &Answer) {
    assert!(first.status.is_success() && !first.is_replay(), "{}", first.text());
    assert!(again.is_replay(), "{}", again.text());
    assert_eq!((first.status, &first.bytes), (again.status, &again.bytes));
    assert_eq!(first.header("content-type"), again.header("content-type"));
}

#[tokio::test]
async fn every_operation_that_acts_does_so_once() {
    let billing = Service::start().await;
    let setup = Setup::default().with("LLM_SDK", "mock").with("SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS", "1h");
    run_with(setup.with("METRICS_PUSH_URL", &billing.url), async |app| {
        let all = async {
            let acting = acting();
            assert!(acting.len() > 15, "only {acting:?} were found");
            for operation in acting {
                let client = app.project().await;
                let sample = sample(&app, &client, &operation).await;
                let before = app.state().await;
                let first = sample.send_once("key").await;
                assert!(first.status.is_success(), "{operation}: {}", first.text());
                let after = app.state().await;
                assert_ne!(before, after, "{operation} did nothing");
                let again = sample.send_once("key").await;
                assert!(again.is_replay(), "{operation} knows no keys: {}", again.text());
                assert_replay(&first, &again);
                assert_eq!(app.state().await, after, "{operation} acted twice");
                let path = format!("{}?another=request", sample.path);
                let another = sample.client.send_once("key", sample.method.clone(), &path, sample.body.clone()).await;
                another.assert_refused(422, "Idempotency-Key");
                assert_eq!(app.state().await, after, "{operation} acted with a key of another request");
                sample.send_once("no key").await.assert_refused(400, "Idempotency-Key");
                assert!(!sample.send_once("another-key").await.is_replay(), "{operation}");
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
fn every_operation_that_acts_says_so() {
    let document = serde_json::to_value(document()).unwrap();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            let keys = parameters.filter(|parameter| parameter["name"] == "Idempotency-Key").count();
            assert_eq!(keys, usize::from(method != "get"), "{method} {path}");
            assert_eq!(operation["responses"]["422"].is_object(), method != "get", "{method} {path}");
        }
    }
}

async fn make_disk(client: &Client, key: &str) -> Answer {
    client.json_once(key, Method::POST, "/api/v1/disk", &Value::Null).await
}

#[tokio::test]
async fn a_key_is_up_to_255_visible_ascii_characters() {
    run(async |app| {
        let client = app.project().await;
        for odd in ["", " ", "two words", "tab\tbed", "größe", &"k".repeat(256)] {
            make_disk(&client, odd).await.assert_refused(400, "Idempotency-Key");
        }
        let twice = client.request(Method::POST, "/api/v1/disk").header("idempotency-key", "a");
        let twice = twice.header("idempotency-key", "b").body(axum::body::Body::empty()).unwrap();
        client.send(twice).await.assert_refused(400, "Idempotency-Key");
        for fit in ["a", "\"quoted\"", &"~".repeat(255)] {
            let first = make_disk(&client, fit).await;
            assert_replay(&first, &make_disk(&client, fit).await);
        }
        assert_eq!(app.value::<i64>(DISKS).await, 3);
        // Without a key nothing is kept.
        client.new_disk().await;
        assert_eq!(app.value::<i64>(KEPT).await, 3);
    })
    .await;
}

#[tokio::test]
async fn a_key_is_of_one_project_method_and_path() {
    run(async |app| {
        let (client, other) = (app.project().await, app.project().await);
        let mine = make_disk(&client, "k").await;
        let theirs = make_disk(&other, "k").await;
        assert!(!theirs.is_replay() && mine.data()["id"] != theirs.data()["id"]);
        let session = client.new_session().await;
        let path = format!("/api/v1/session/{session}/configs");
        let configs = json!({"configs": {"a": 1}});
        for (method, path) in [
            (Method::PUT, path.clone()),
            (Method::PATCH, path.clone()),
            (Method::PUT, path.replace(&session, &client.new_session().await)),
        ] {
            let first = client.json_once("k", method.clone(), &path, &configs).await;
            assert_replay(&first, &client.json_once("k", method, &path, &configs).await);
        }
        // A key opens nothing to a stranger, and nothing without the project's key.
        app.client().json_once("k", Method::POST, "/api/v1/disk", &Value::Null).await.assert_refused(401, "");
        assert_replay(&mine, &make_disk(&client, "k").await);
        assert_replay(&theirs, &make_disk(&other, "k").await);
    })
    .await;
}

#[tokio::test]
async fn a_refusal_is_not_kept() {
    run(async |app| {
        let client = app.project().await;
        let session = Uuid::new_v4();
        let path = format!("/api/v1/session/{session}/events");
        let event = json!({"type": "t", "data": {}});
        client.json_once("k", Method::POST, &path, &event).await.assert_refused(404, "session not found");
        client.json_once("k", Method::POST, &path, &json!({"type": ""})).await.assert_refused(400, "type");
        assert_eq!(app.value::<i64>(KEPT).await, 0);
        client.post("/api/v1/session", json!({"use_uuid": session})).await;
        let first = client.json_once("k", Method::POST, &path, &event).await;
        assert_replay(&first, &client.json_once("k", Method::POST, &path, &event).await);
        let taken = json!({"use_uuid": session, "user": "nobody"});
        let stranger = app.project().await;
        stranger.json_once("k", Method::POST, "/api/v1/session", &taken).await.assert_refused(409, "UUID");
        assert_eq!(app.value::<i64>("select count(*) from users").await, 0, "a refusal changes nothing");
        assert_eq!(app.value::<i64>(KEPT).await, 1);
    })
    .await;
}

#[tokio::test]
async fn effect_and_answer_are_there_together_or_not_at_all() {
    run(async |app| {
        let client = app.project().await;
        // The last step before the commit fails.
        app.execute("create function fail() returns trigger language plpgsql as $$ begin raise exception 'no'; end $$")
            .await;
        app.execute("create trigger fail before update on idempotency_records for each row execute function fail()")
            .await;
        make_disk(&client, "k").await.assert_refused(500, "internal error");
        assert_eq!((app.value::<i64>(DISKS).await, app.value::<i64>(KEPT).await), (0, 0));
        app.execute("drop trigger fail on idempotency_records").await;
        let first = make_disk(&client, "k").await;
        assert_replay(&first, &make_disk(&client, "k").await);
        assert_eq!((app.value::<i64>(DISKS).await, app.value::<i64>(KEPT).await), (1, 1));
    })
    .await;
}

/// Holds a session up until the transaction ends.
async fn hold(app: &TestApp, session: &str) -> Tx {
    let mut lock = app.app.db.begin().await.unwrap();
    let held = sqlx::query("select 1 from sessions where id = $1 for update").bind(session.parse::<Uuid>().unwrap());
    held.execute(&mut *lock).await.unwrap();
    lock
}

/// Waits until so many statements wait for a lock.
async fn waiting(app: &TestApp, wanted: i64) {
    let waits = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    eventually("it waits", async || app.value::<i64>(waits).await == wanted).await;
}

#[tokio::test]
async fn a_twin_waits_for_the_first_and_gets_its_answer() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let path = format!("/api/v1/session/{session}/events");
        let event = json!({"type": "t", "data": {}});
        let tell = || client.json_once("k", Method::POST, &path, &event);
        let lock = hold(&app, &session).await;
        let twins = async {
            tokio::join!(tell(), async {
                waiting(&app, 1).await;
                tell().await
            })
        };
        tokio::pin!(twins);
        assert!(tokio::time::timeout(Duration::from_millis(500), &mut twins).await.is_err(), "one did not wait");
        lock.commit().await.unwrap();
        let (first, second) = twins.await;
        assert_replay(&first, &second);
        assert_eq!(app.value::<i64>("select count(*) from session_events").await, 1);
    })
    .await;
}

#[tokio::test]
async fn a_twin_of_a_first_that_fails_acts_itself() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let path = format!("/api/v1/session/{session}/events");
        let tell = async |data: &str| {
            client.json_once("k", Method::POST, &path, &json!({"type": "t", "data": {"n": data}})).await
        };
        let lock = hold(&app, &session).await;
        let rest = async {
            waiting(&app, 1).await;
            // Another request, that nobody can tell from the first before one of them is answered.
            let second = tell("second");
            tokio::pin!(second);
            assert!(tokio::time::timeout(Duration::from_millis(300), &mut second).await.is_err(), "it did not wait");
            app.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity
                 where datname = current_database() and wait_event_type = 'Lock'",
            )
            .await;
            waiting(&app, 0).await;
            lock.commit().await.unwrap();
            second.await
        };
        let (first, second) = tokio::join!(tell("first"), rest);
        first.assert_refused(503, "database");
        assert_eq!(second.status, StatusCode::OK, "{}", second.text());
        assert!(!second.is_replay());
        assert_eq!(app.value::<Value>("select data from session_events").await, json!({"n": "second"}));
    })
    .await;
}

#[tokio::test]
async fn a_twin_that_waits_too_long_is_409() {
    run_with(Setup::default().with("ACONTEXTD_IDEMPOTENCY_WAIT", "200ms"), async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let path = format!("/api/v1/session/{session}");
        let delete = || client.json_once("k", Method::DELETE, &path, &Value::Null);
        let lock = hold(&app, &session).await;
        let late = async {
            waiting(&app, 1).await;
            delete().await.assert_refused(409, "Idempotency-Key");
            lock.commit().await.unwrap();
        };
        let (first, ()) = tokio::join!(delete(), late);
        assert_replay(&first, &delete().await);
    })
    .await;
}

#[tokio::test]
async fn sixteen_at_once_act_once() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let path = format!("/api/v1/session/{session}/messages");
        let message = json!({"blob": {"role": "user", "content": "once"}});
        for round in 0..5 {
            let key = format!("key-{round}");
            let answers = join_all((0..16).map(|_| client.json_once(&key, Method::POST, &path, &message))).await;
            assert_eq!(answers.iter().filter(|answer| answer.is_replay()).count(), 15);
            for answer in &answers {
                assert_eq!((answer.status, &answer.bytes), (StatusCode::CREATED, &answers[0].bytes));
            }
        }
        assert_eq!(client.messages(&session, "").await["ids"].as_array().unwrap().len(), 5);
    })
    .await;
}

#[tokio::test]
async fn a_crowd_of_twins_holds_up_nobody_else() {
    run_with(Setup::default().with("ACONTEXTD_IDEMPOTENCY_WAIT", "1m"), async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let path = format!("/api/v1/session/{session}/copy");
        let lock = hold(&app, &session).await;
        // Far more than there are connections.
        let twins = join_all((0..60).map(|_| client.json_once("k", Method::POST, &path, &Value::Null)));
        let others = async {
            waiting(&app, 1).await;
            for n in 0..20 {
                assert_eq!(make_disk(&client, &format!("other-{n}")).await.status, StatusCode::CREATED);
                client.new_disk().await;
            }
            lock.commit().await.unwrap();
        };
        let (twins, ()) = tokio::join!(twins, others);
        assert_eq!(twins.iter().filter(|answer| answer.status == StatusCode::OK && answer.is_replay()).count(), 59);
        assert_eq!(app.value::<i64>("select count(*) from sessions").await, 2);
    })
    .await;
}

#[tokio::test]
async fn messages_with_keys_for_a_session_that_is_held_up_hold_up_no_other() {
    run(async |app| {
        let client = app.project().await;
        let (held, free) = (client.new_session().await, client.new_session().await);
        let said = json!({"blob": {"role": "user", "content": "waits"}});
        let say = async |session: &str, key: &str| {
            let path = format!("/api/v1/session/{session}/messages");
            let answer = client.json_once(key, Method::POST, &path, &said).await;
            assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
        };
        let lock = hold(&app, &held).await;
        let keys: Vec<String> = (0..60).map(|n| format!("key-{n}")).collect();
        let waiters = join_all(keys.iter().map(|key| say(&held, key)));
        let going_on = async {
            // A quarter of the connections, as without keys.
            waiting(&app, 5).await;
            for key in &keys {
                say(&free, key).await;
            }
            lock.commit().await.unwrap();
        };
        tokio::join!(waiters, going_on);
        for session in [held, free] {
            assert_eq!(client.messages(&session, "").await["ids"].as_array().unwrap().len(), 60);
        }
    })
    .await;
}

#[tokio::test]
async fn an_answer_is_kept_for_a_day() {
    run(async |app| {
        let client = app.project().await;
        let age = "update idempotency_records set created_at = created_at - interval '12 hours'";
        let first = make_disk(&client, "old").await;
        app.execute(age).await;
        assert_replay(&first, &make_disk(&client, "old").await);
        make_disk(&client, "young").await;
        app.execute(age).await;
        // Nobody has swept yet: it counts as gone all the same, for another request too.
        let path = "/api/v1/disk?another=request";
        let second = client.json_once("old", Method::POST, path, &Value::Null).await;
        assert_ne!(second.data()["id"], first.data()["id"]);
        assert_replay(&second, &client.json_once("old", Method::POST, path, &Value::Null).await);
        assert_eq!((app.value::<i64>(DISKS).await, app.value::<i64>(KEPT).await), (3, 2));
        app.execute(age).await;
        purge_expired(app.app.db.clone()).await.unwrap();
        assert_eq!(app.value::<i64>(KEPT).await, 1, "the young one is over, the other one began anew");
        make_disk(&client, "more").await;
        app.execute("update idempotency_records set created_at = created_at - interval '24 hours'").await;
        purge_expired(app.app.db.clone()).await.unwrap();
        assert_eq!(app.value::<i64>(KEPT).await, 0);
    })
    .await;
}

#[tokio::test]
async fn a_kept_secret_is_sealed_and_goes_with_its_project() {
    run(async |app| {
        let send = async || app.admin().json_once("k", Method::POST, "/admin/v1/project", &json!({})).await;
        let made = send().await;
        let key = made.data()["secret_key"].as_str().unwrap().to_owned();
        assert_replay(&made, &send().await);
        let kept: Vec<u8> = app.value("select body from idempotency_records").await;
        assert_eq!(kept.len(), made.bytes.len() + 12 + 16);
        assert!(!kept.windows(6).any(|window| window == b"secret"), "it lies in clear");
        let client = app.client().with_key(&key);
        make_disk(&client, "k").await;
        assert_eq!(app.value::<i64>(KEPT).await, 2);
        let id = made.data()["project_id"].as_str().unwrap().to_owned();
        app.admin().delete(&format!("/admin/v1/project/{id}")).await;
        assert_eq!(app.value::<i64>(KEPT).await, 1, "the operator's is left");
    })
    .await;
}

#[tokio::test]
async fn a_form_is_known_by_what_it_says() {
    run(async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        let path = format!("/api/v1/disk/{disk}/artifact");
        let send = async |body| client.send_once("k", Method::POST, &path, body).await;
        let form = |name: &str, content: &str, meta: &str| {
            Form::new().text("file_path", "/d/").text("meta", meta).file("file", name, content)
        };
        let first = send(form("a.txt", "content", "{}").end()).await;
        client.upload(&disk, "/d/", "a.txt", "changed since").await;
        assert_replay(&first, &send(form("a.txt", "content", "{}").end_otherwise()).await);
        for another in [form("b.txt", "content", "{}"), form("a.txt", "Content", "{}"), form("a.txt", "content", "{ }")]
        {
            send(another.end()).await.assert_refused(422, "Idempotency-Key");
        }
        // Neither the disk nor the object store is needed for what was answered before.
        assert_eq!(client.delete(&format!("/api/v1/disk/{disk}")).await.status, StatusCode::OK);
        app.blobs.set_down(true);
        assert_replay(&first, &send(form("a.txt", "content", "{}").end()).await);
        let other = client.send_once("l", Method::POST, &path, form("a.txt", "content", "{}").end()).await;
        other.assert_refused(404, "disk not found");
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
        let answer = json!({"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"a": 1}}}]});
        let with_file = json!({"format": "acontext",
            "blob": {"role": "user", "parts": [{"type": "file", "file_field": "f"}]}});
        let long = "long ".repeat(100_000);
        let bodies = [
            json(json!({"blob": {"role": "user", "content": "short"}})),
            json(json!({"blob": {"role": "user", "content": long}})),
            json(json!({"format": "gemini", "blob": call})),
            json(json!({"format": "gemini", "blob": answer})),
            Form::new().text("payload", &with_file.to_string()).file("f", "a.txt", "content").end(),
        ];
        let mut answers = Vec::new();
        for (n, body) in bodies.iter().enumerate() {
            let key = format!("key-{n}");
            let first = client.send_once(&key, Method::POST, &path, body.clone()).await;
            assert_replay(&first, &client.send_once(&key, Method::POST, &path, body.clone()).await);
            client.send_once(&key, Method::POST, &path, bodies[(n + 1) % 5].clone()).await.assert_refused(422, "");
            answers.push(first);
        }
        let page = client.messages(&session, "format=acontext").await;
        let ids: Vec<Value> = answers.iter().map(|answer| answer.data()["id"].clone()).collect();
        assert_eq!(page["ids"], json!(ids));
        assert_eq!(page["items"][3]["parts"], answers[3].data()["parts"]);
        // What is gone was stored nevertheless.
        assert_eq!(client.delete(&format!("/api/v1/session/{session}")).await.status, StatusCode::OK);
        for (n, (body, first)) in bodies.iter().zip(&answers).enumerate() {
            assert_replay(first, &client.send_once(&format!("key-{n}"), Method::POST, &path, body.clone()).await);
        }
    })
    .await;
}

#[tokio::test]
async fn a_flush_that_did_not_work_can_be_sent_again() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        client.say_text(&session, "waits").await;
        let path = format!("/api/v1/session/{session}/flush");
        let flush = || client.json_once("k", Method::POST, &path, &Value::Null);
        for _ in 0..2 {
            let answer = flush().await;
            assert!(!answer.is_replay());
            assert_eq!(answer.data()["status"], 503, "{}", answer.text());
        }
        app.execute("update messages set session_task_process_status = 'success'").await;
        let worked = flush().await;
        assert_eq!(worked.data()["status"], 200, "{}", worked.text());
        client.say_text(&session, "later").await;
        assert_replay(&worked, &flush().await);
    })
    .await;
}
