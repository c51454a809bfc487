//! What projects use is told to whoever bills, and their traces to whoever watches.

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;

use crate::support::client::{Answer, Client};
use crate::support::service::Service;
use crate::support::{Setup, TestApp, eventually, run, run_with};

fn told(url: &str) -> Setup {
    Setup::default().with("METRICS_PUSH_URL", url)
}

async fn push(app: &TestApp) -> Answer {
    app.admin().post("/metrics/v1", json!({})).await
}

/// A project's daily count, so many seconds old.
async fn insert_metric(db: &PgPool, project: Uuid, tag: &str, increment: i64, age: i32) -> Uuid {
    sqlx::query_scalar(
        "insert into metrics (project_id, tag, increment, updated_at)
         values ($1, $2, $3, now() - make_interval(secs => $4)) returning id",
    )
    .bind(project)
    .bind(tag)
    .bind(increment)
    .bind(f64::from(age))
    .fetch_one(db)
    .await
    .unwrap()
}

/// The rows that the service was told of at once, as (tag, increment).
fn rows(service: &Service) -> Vec<(String, i64)> {
    let asked = service.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    let body: Value = serde_json::from_slice(&asked[0].body).unwrap();
    let rows = body["metrics"].as_array().unwrap().iter();
    rows.map(|row| (row["tag"].as_str().unwrap().to_owned(), row["increment"].as_i64().unwrap())).collect()
}

async fn stores_too_much(app: &TestApp, client: &Client) -> bool {
    let path = format!("/metrics/v1/{}/quota?path=/api/v1/disk/:disk_id/artifact&method=POST", client.project());
    app.admin().get(&path).await.status == StatusCode::FORBIDDEN
}

#[tokio::test]
async fn what_has_changed_is_told_once() {
    let service = Service::start().await;
    run_with(told(&service.url), async |app| {
        let (client, db) = (app.project().await, &app.app.db);
        insert_metric(db, client.project(), "task.created", 3, 60).await;
        insert_metric(db, client.project(), "task.created", 9, 7200).await;
        insert_metric(db, client.project(), "excess.task.created", 1, 60).await;
        let young = insert_metric(db, client.project(), "sandbox.alive", 1, 0).await;
        assert_eq!(push(&app).await.json(), json!({"code": 0, "msg": "metrics pushed successfully"}));
        let asked = service.asked();
        let [request] = &asked[..] else { panic!("{asked:?}") };
        assert_eq!(request.method, Method::POST);
        assert_eq!(request.headers["authorization"], "Bearer your-root-api-bearer-token");
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        let [row] = &body["metrics"].as_array().unwrap()[..] else { panic!("{body}") };
        assert_eq!(
            (&row["project_id"], &row["tag"], &row["increment"]),
            (&json!(client.project()), &json!("task.created"), &json!(3))
        );
        assert!(["id", "created_at", "updated_at"].iter().all(|key| row[key].is_string()), "{row}");
        assert_eq!(push(&app).await.json(), json!({"code": 0, "msg": "no metrics to push"}));
        assert!(service.asked().is_empty());
        // It was too young to be told before.
        sqlx::query("update metrics set updated_at = now() - interval '10 seconds' where id = $1")
            .bind(young)
            .execute(&**db)
            .await
            .unwrap();
        app.execute("update server_state set value = (value::timestamptz - interval '1 minute')::text").await;
        push(&app).await.assert_status(200);
        assert!(rows(&service).contains(&("sandbox.alive".into(), 1)));
    })
    .await;
}

#[tokio::test]
async fn what_is_stored_is_measured_up_and_down() {
    let service = Service::start().await;
    run_with(told(&service.url), async |app| {
        let (client, _empty) = (app.project().await, app.project().await);
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a", "x".repeat(1000)).await;
        push(&app).await.assert_status(200);
        assert_eq!(rows(&service), [("storage.usage".into(), 1000)]);
        push(&app).await.assert_status(200);
        service.asked();
        app.execute("update metrics set updated_at = now() - interval '1 hour'").await;
        assert_eq!(push(&app).await.json()["msg"], "no metrics to push", "nothing has changed");
        app.execute("update blobs set state = 'dead'").await;
        push(&app).await.assert_status(200);
        assert_eq!(rows(&service), [("storage.usage".into(), 0)]);
        assert_eq!(app.value::<i64>("select count(*) from metrics").await, 1);
    })
    .await;
}

#[tokio::test]
async fn the_answer_says_who_has_too_much() {
    let service = Service::start().await;
    run_with(told(&service.url), async |app| {
        let (client, other) = (app.project().await, app.project().await);
        let says = async |excess: bool| {
            insert_metric(&app.app.db, client.project(), "task.created", 1, 60).await;
            let of = |project: Uuid| json!({"project_id": project, "tag": "storage.usage", "excess": excess});
            service.answer(200, &json!({"quota": [of(client.project()), of(Uuid::new_v4())]}));
            app.execute("update server_state set value = (value::timestamptz - interval '1 hour')::text").await;
            push(&app).await.assert_status(200);
        };
        for excess in [true, true, false, true] {
            says(excess).await;
            assert_eq!(stores_too_much(&app, &client).await, excess);
            assert!(!stores_too_much(&app, &other).await);
        }
        let flags = "select count(*) from metrics where tag = 'excess.storage.usage' and updated_at = 'epoch'";
        assert_eq!(app.value::<i64>(flags).await, 1);
        // A flag is never told to whoever has set it.
        service.asked();
        app.execute("update metrics set updated_at = now() - interval '1 hour' where tag not like 'excess.%'").await;
        push(&app).await.assert_status(200);
        assert!(service.asked().iter().all(|asked| !String::from_utf8_lossy(&asked.body).contains("excess")));
    })
    .await;
}

#[tokio::test]
async fn what_could_not_be_told_is_told_the_next_time() {
    let service = Service::start().await;
    run_with(told(&service.url), async |app| {
        let client = app.project().await;
        insert_metric(&app.app.db, client.project(), "task.created", 3, 60).await;
        for (status, body, msg) in [
            (500, json!({"secret": "of theirs"}), "external API returned status 500"),
            (200, json!("no object"), "failed to unmarshal response"),
            (200, json!({"quota": [{"project_id": "none"}]}), "failed to unmarshal response"),
        ] {
            service.answer(status, &body);
            let answer = push(&app).await;
            answer.assert_refused(502, msg);
            assert!(!answer.text().contains("of theirs"));
        }
        service.asked();
        service.answer(200, &json!({"quota": []}));
        push(&app).await.assert_status(200);
        assert_eq!(rows(&service), [("task.created".into(), 3)]);
    })
    .await;
}

#[tokio::test]
async fn a_service_that_is_not_there_is_a_502_and_none_at_all_a_503() {
    let gone = Service::start().await.url;
    run_with(told(&gone), async |app| {
        let client = app.project().await;
        insert_metric(&app.app.db, client.project(), "task.created", 3, 60).await;
        push(&app).await.assert_refused(502, "failed to call external API");
    })
    .await;
    run(async |app| push(&app).await.assert_refused(503, "METRICS_PUSH_URL")).await;
}

#[tokio::test]
async fn one_push_at_a_time() {
    let service = Service::start().await;
    run_with(told(&service.url), async |app| {
        let client = app.project().await;
        insert_metric(&app.app.db, client.project(), "task.created", 3, 60).await;
        let word = service.hold();
        let second = async {
            eventually("the first push is under way", async || !service.asked().is_empty()).await;
            push(&app).await.assert_refused(429, "another push is in progress, please try again later");
            word.notify_one();
        };
        let (first, ()) = tokio::join!(push(&app), second);
        first.assert_status(200);
        push(&app).await.assert_status(200);
    })
    .await;
}

#[tokio::test]
async fn traces_of_a_project_are_asked_for_with_its_id() {
    let jaeger = Service::start().await;
    jaeger.answer(200, &json!({"data": []}));
    let setup = Setup::default().with("JAEGER_QUERY_ENDPOINT", &format!("{}/", jaeger.url));
    run_with(setup, async |app| {
        let (client, stranger) = (app.project().await, Uuid::new_v4());
        let path = format!("/admin/v1/project/{}/metrics", client.project());
        let query =
            format!("service=acontextd&limit=5&unknown=1&tags=%7B%22a%22:%22b%22,%22project.id%22:%22{stranger}%22%7D");
        let answer = app.admin().get(&format!("{path}?{query}")).await;
        assert_eq!((answer.status, answer.json()), (StatusCode::OK, json!({"data": []})));
        assert_eq!(answer.header("content-type"), "application/json");
        let asked = jaeger.asked();
        let uri = asked[0].uri.to_string();
        let tags = json!({"a": "b", "project.id": client.project()}).to_string();
        let tags = acontextd::percent::encode(tags.as_bytes(), b"");
        assert_eq!(uri, format!("/api/traces?service=acontextd&limit=5&tags={tags}"));
        jaeger.answer(404, &json!({"errors": []}));
        let refused = app.admin().get(&path).await;
        assert_eq!((refused.status, refused.json()), (StatusCode::NOT_FOUND, json!({"errors": []})));
        app.admin().get(&format!("{path}?tags=[]")).await.assert_refused(400, "tags");
        client.get(&path).await.assert_refused(401, "Unauthorized");
    })
    .await;
    run(async |app| {
        let path = format!("/admin/v1/project/{}/metrics", Uuid::new_v4());
        app.admin().get(&path).await.assert_refused(503, "JAEGER_QUERY_ENDPOINT");
    })
    .await;
}

/// The value of a line, by its name and labels.
fn value(text: &str, line: &str) -> Option<f64> {
    let found = text.lines().find_map(|one| one.strip_prefix(line)?.strip_prefix(' '))?;
    Some(found.parse().unwrap())
}

#[tokio::test]
async fn operators_can_watch_requests_and_jobs() {
    run(async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        for _ in 0..3 {
            client.get(&format!("/api/v1/disk/{disk}/artifact/ls")).await.assert_status(200);
        }
        client.get(&format!("/api/v1/disk/{}/artifact/ls", Uuid::new_v4())).await.assert_status(403);
        client.get("/no/such/path").await.assert_status(404);
        let odd = client.request(Method::from_bytes(b"BREW").unwrap(), "/api/v1/disk");
        client.send(odd.body(axum::body::Body::empty()).unwrap()).await.assert_status(404);
        let session = client.new_session().await;
        client.say_text(&session, "hello").await;
        app.execute("update jobs set run_at = now() - interval '90 seconds'").await;
        let answer = app.admin().get("/metrics").await;
        assert!(answer.header("content-type").starts_with("application/openmetrics-text"));
        let text = answer.text();
        let listed = r#"method="GET",route="/api/v1/disk/{disk_id}/artifact/ls""#;
        for (line, wanted) in [
            (format!("acontextd_http_requests_total{{{listed},status=\"200\"}}"), 3.0),
            (format!("acontextd_http_requests_total{{{listed},status=\"403\"}}"), 1.0),
            (format!("acontextd_http_request_duration_seconds_count{{{listed}}}"), 4.0),
            (r#"acontextd_http_requests_total{method="GET",route="none",status="404"}"#.into(), 1.0),
            (r#"acontextd_http_requests_total{method="other",route="/api/v1/disk",status="404"}"#.into(), 1.0),
            (r#"acontextd_jobs{kind="observe",state="ready"}"#.into(), 1.0),
        ] {
            assert_eq!(value(&text, &line), Some(wanted), "{line}\n{text}");
        }
        let late = value(&text, r#"acontextd_jobs_late_seconds{kind="observe",state="ready"}"#).unwrap();
        assert!((90.0..200.0).contains(&late), "{late}");
        assert!(value(&text, r#"acontextd_database_connections{pool="main",state="idle"}"#).is_some(), "{text}");
        assert!(text.ends_with("# EOF\n") && !text.contains(&disk) && !text.contains(client.key()));
        for closed in [app.client(), client] {
            closed.get("/metrics").await.assert_refused(401, "Unauthorized");
        }
    })
    .await;
}
