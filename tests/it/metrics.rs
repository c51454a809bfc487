//! The push of usage metrics to billing with its quotas, the traces of projects, and `/metrics`.

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;

use crate::support::client::{Client, TestResponse};
use crate::support::mock_http::MockServer;
use crate::support::{TestApp, TestConfig, run, run_with, wait_until};

fn with_push_url(url: &str) -> TestConfig {
    TestConfig::default().with("METRICS_PUSH_URL", url)
}

async fn push(app: &TestApp) -> TestResponse {
    app.admin().post("/metrics/v1", json!({})).await
}

/// Inserts a count of a project that was updated `age` seconds ago.
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

/// Returns the rows of the only request since the last call, as (tag, increment).
fn pushed_rows(service: &MockServer) -> Vec<(String, i64)> {
    let requests = service.take_requests();
    assert_eq!(requests.len(), 1, "{requests:?}");
    let body: Value = serde_json::from_slice(&requests[0].body).unwrap();
    let rows = body["metrics"].as_array().unwrap().iter();
    rows.map(|row| (row["tag"].as_str().unwrap().to_owned(), row["increment"].as_i64().unwrap())).collect()
}

async fn exceeds_storage_quota(app: &TestApp, client: &Client) -> bool {
    let path = format!("/metrics/v1/{}/quota?path=/api/v1/disk/:disk_id/artifact&method=POST", client.project());
    app.admin().get(&path).await.status == StatusCode::FORBIDDEN
}

#[tokio::test]
async fn changed_metrics_are_pushed_once() {
    let service = MockServer::start().await;
    run_with(with_push_url(&service.url), async |app| {
        let (client, db) = (app.project().await, &app.app.db);
        insert_metric(db, client.project(), "task.created", 3, 60).await;
        insert_metric(db, client.project(), "task.created", 9, 7200).await;
        insert_metric(db, client.project(), "excess.task.created", 1, 60).await;
        let recent = insert_metric(db, client.project(), "sandbox.alive", 1, 0).await;
        assert_eq!(push(&app).await.json(), json!({"code": 0, "msg": "metrics pushed successfully"}));
        let requests = service.take_requests();
        let [request] = &requests[..] else { panic!("{requests:?}") };
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
        assert!(service.take_requests().is_empty());
        // This count was too recent for the earlier pushes.
        sqlx::query("update metrics set updated_at = now() - interval '10 seconds' where id = $1")
            .bind(recent)
            .execute(&**db)
            .await
            .unwrap();
        app.execute("update server_state set value = (value::timestamptz - interval '1 minute')::text").await;
        push(&app).await.assert_status(200);
        assert!(pushed_rows(&service).contains(&("sandbox.alive".into(), 1)));
    })
    .await;
}

#[tokio::test]
async fn storage_usage_is_pushed_when_it_changes() {
    let service = MockServer::start().await;
    run_with(with_push_url(&service.url), async |app| {
        let (client, _empty) = (app.project().await, app.project().await);
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a", "x".repeat(1000)).await;
        push(&app).await.assert_status(200);
        assert_eq!(pushed_rows(&service), [("storage.usage".into(), 1000)]);
        push(&app).await.assert_status(200);
        service.take_requests();
        app.execute("update metrics set updated_at = now() - interval '1 hour'").await;
        assert_eq!(push(&app).await.json()["msg"], "no metrics to push", "nothing has changed");
        app.execute("update blobs set state = 'dead'").await;
        push(&app).await.assert_status(200);
        assert_eq!(pushed_rows(&service), [("storage.usage".into(), 0)]);
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from metrics").await, 1);
    })
    .await;
}

#[tokio::test]
async fn the_response_to_a_push_sets_and_clears_quota_flags() {
    let service = MockServer::start().await;
    run_with(with_push_url(&service.url), async |app| {
        let (client, other) = (app.project().await, app.project().await);
        let push_with_response = async |excess: bool| {
            insert_metric(&app.app.db, client.project(), "task.created", 1, 60).await;
            let quota = |project: Uuid| json!({"project_id": project, "tag": "storage.usage", "excess": excess});
            service.set_response(200, &json!({"quota": [quota(client.project()), quota(Uuid::new_v4())]}));
            app.execute("update server_state set value = (value::timestamptz - interval '1 hour')::text").await;
            push(&app).await.assert_status(200);
        };
        for excess in [true, true, false, true] {
            push_with_response(excess).await;
            assert_eq!(exceeds_storage_quota(&app, &client).await, excess);
            assert!(!exceeds_storage_quota(&app, &other).await);
        }
        let flags = "select count(*) from metrics where tag = 'excess.storage.usage' and updated_at = 'epoch'";
        assert_eq!(app.fetch_scalar::<i64>(flags).await, 1);
        // The flags that the service has set are never pushed to it.
        service.take_requests();
        app.execute("update metrics set updated_at = now() - interval '1 hour' where tag not like 'excess.%'").await;
        push(&app).await.assert_status(200);
        assert!(
            service.take_requests().iter().all(|request| !String::from_utf8_lossy(&request.body).contains("excess"))
        );
    })
    .await;
}

#[tokio::test]
async fn the_next_push_repeats_a_failed_one() {
    let service = MockServer::start().await;
    run_with(with_push_url(&service.url), async |app| {
        let client = app.project().await;
        insert_metric(&app.app.db, client.project(), "task.created", 3, 60).await;
        for (status, body, msg) in [
            (500, json!({"secret": "a-secret-of-billing"}), "external API returned status 500"),
            (200, json!("no object"), "failed to unmarshal response"),
            (200, json!({"quota": [{"project_id": "none"}]}), "failed to unmarshal response"),
        ] {
            service.set_response(status, &body);
            let response = push(&app).await;
            response.assert_error(502, msg);
            assert!(!response.text().contains("a-secret-of-billing"));
        }
        service.take_requests();
        service.set_response(200, &json!({"quota": []}));
        push(&app).await.assert_status(200);
        assert_eq!(pushed_rows(&service), [("task.created".into(), 3)]);
    })
    .await;
}

#[tokio::test]
async fn an_unreachable_service_is_a_502_and_a_missing_url_a_503() {
    let closed_url = MockServer::start().await.url;
    run_with(with_push_url(&closed_url), async |app| {
        let client = app.project().await;
        insert_metric(&app.app.db, client.project(), "task.created", 3, 60).await;
        push(&app).await.assert_error(502, "failed to call external API");
    })
    .await;
    run(async |app| push(&app).await.assert_error(503, "METRICS_PUSH_URL")).await;
}

#[tokio::test]
async fn only_one_push_runs_at_a_time() {
    let service = MockServer::start().await;
    run_with(with_push_url(&service.url), async |app| {
        let client = app.project().await;
        insert_metric(&app.app.db, client.project(), "task.created", 3, 60).await;
        let release = service.block();
        let second = async {
            wait_until("the first push has sent its request", async || !service.take_requests().is_empty()).await;
            push(&app).await.assert_error(429, "another push is in progress, please try again later");
            release.notify_one();
        };
        let (first, ()) = tokio::join!(push(&app), second);
        first.assert_status(200);
        push(&app).await.assert_status(200);
    })
    .await;
}

#[tokio::test]
async fn traces_are_queried_with_the_id_of_the_project() {
    let jaeger = MockServer::start().await;
    jaeger.set_response(200, &json!({"data": []}));
    let config = TestConfig::default().with("JAEGER_QUERY_ENDPOINT", &format!("{}/", jaeger.url));
    run_with(config, async |app| {
        let (client, stranger) = (app.project().await, Uuid::new_v4());
        let path = format!("/admin/v1/project/{}/metrics", client.project());
        let query =
            format!("service=acontextd&limit=5&unknown=1&tags=%7B%22a%22:%22b%22,%22project.id%22:%22{stranger}%22%7D");
        let response = app.admin().get(&format!("{path}?{query}")).await;
        assert_eq!((response.status, response.json()), (StatusCode::OK, json!({"data": []})));
        assert_eq!(response.header("content-type"), "application/json");
        let requests = jaeger.take_requests();
        let uri = requests[0].uri.to_string();
        let tags = json!({"a": "b", "project.id": client.project()}).to_string();
        let tags = acontextd::percent::encode(tags.as_bytes(), b"");
        assert_eq!(uri, format!("/api/traces?service=acontextd&limit=5&tags={tags}"));
        jaeger.set_response(404, &json!({"errors": []}));
        let response = app.admin().get(&path).await;
        assert_eq!((response.status, response.json()), (StatusCode::NOT_FOUND, json!({"errors": []})));
        app.admin().get(&format!("{path}?tags=[]")).await.assert_error(400, "tags");
        client.get(&path).await.assert_error(401, "Unauthorized");
    })
    .await;
    run(async |app| {
        let path = format!("/admin/v1/project/{}/metrics", Uuid::new_v4());
        app.admin().get(&path).await.assert_error(503, "JAEGER_QUERY_ENDPOINT");
    })
    .await;
}

/// Returns the value of the line with this name and these labels.
fn metric_value(text: &str, line: &str) -> Option<f64> {
    let value = text.lines().find_map(|candidate| candidate.strip_prefix(line)?.strip_prefix(' '))?;
    Some(value.parse().unwrap())
}

#[tokio::test]
async fn metrics_count_requests_and_jobs() {
    run(async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        for _ in 0..3 {
            client.get(&format!("/api/v1/disk/{disk}/artifact/ls")).await.assert_status(200);
        }
        client.get(&format!("/api/v1/disk/{}/artifact/ls", Uuid::new_v4())).await.assert_status(403);
        client.get("/no/such/path").await.assert_status(404);
        let unknown_method = client.request(Method::from_bytes(b"BREW").unwrap(), "/api/v1/disk");
        client.send(unknown_method.body(axum::body::Body::empty()).unwrap()).await.assert_status(404);
        let session = client.new_session().await;
        client.store_text(&session, "hello").await;
        app.execute("update jobs set run_at = now() - interval '90 seconds'").await;
        let response = app.admin().get("/metrics").await;
        assert!(response.header("content-type").starts_with("application/openmetrics-text"));
        let text = response.text();
        let listed = r#"method="GET",route="/api/v1/disk/{disk_id}/artifact/ls""#;
        for (line, expected) in [
            (format!("acontextd_http_requests_total{{{listed},status=\"200\"}}"), 3.0),
            (format!("acontextd_http_requests_total{{{listed},status=\"403\"}}"), 1.0),
            (format!("acontextd_http_request_duration_seconds_count{{{listed}}}"), 4.0),
            (r#"acontextd_http_requests_total{method="GET",route="none",status="404"}"#.into(), 1.0),
            (r#"acontextd_http_requests_total{method="other",route="/api/v1/disk",status="404"}"#.into(), 1.0),
            (r#"acontextd_jobs{kind="observe",state="ready"}"#.into(), 1.0),
        ] {
            assert_eq!(metric_value(&text, &line), Some(expected), "{line}\n{text}");
        }
        let age =
            metric_value(&text, r#"acontextd_jobs_oldest_due_age_seconds{kind="observe",state="ready"}"#).unwrap();
        assert!((90.0..200.0).contains(&age), "{age}");
        assert!(metric_value(&text, r#"acontextd_database_connections{pool="main",state="idle"}"#).is_some(), "{text}");
        assert!(text.ends_with("# EOF\n") && !text.contains(&disk) && !text.contains(client.key()));
        for unauthorized in [app.client(), client] {
            unauthorized.get("/metrics").await.assert_error(401, "Unauthorized");
        }
    })
    .await;
}
