//! Behavior of every route: the response envelope, error responses, request ids and limits.

use std::sync::atomic::Ordering;
use std::time::Instant;

use acontextd::features;
use acontextd::http::middleware;
use acontextd::http::server;
use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use axum::routing::get;
use futures_util::future::join_all;
use serde_json::json;
use tower::ServiceExt;
use tower_http::catch_panic::CatchPanicLayer;

use crate::support::client::Client;
use crate::support::{TestConfig, run, run_with, wait_until};

#[tokio::test]
async fn health_requires_no_key_and_ping_requires_one() {
    run(async |app| {
        assert_eq!(app.client().get("/health").await.json(), json!({"code": 0, "msg": "ok"}));
        assert_eq!(app.project().await.get("/api/v1/ping").await.json(), json!({"code": 0, "msg": "pong"}));
        app.client().get("/api/v1/ping").await.assert_error(401, "Unauthorized");
    })
    .await;
}

#[tokio::test]
async fn ready_names_the_unavailable_dependency() {
    run(async |app| {
        // A result can be a second old.
        let wait_for_reason = async |reason: &str| {
            wait_until(reason, async || app.client().get("/ready").await.text().contains(reason)).await;
            app.client().get("/ready").await
        };
        assert_eq!(app.client().get("/ready").await.status, StatusCode::OK);
        app.blobs.set_down(true);
        let response = wait_for_reason("object store").await;
        response.assert_error(503, "object store: S3 failed to process a request: check the logs of the S3 server");
        assert_eq!(response.header("retry-after"), "2");
        app.app.db.close().await;
        wait_for_reason("database").await.assert_error(503, "database");
        assert_eq!(app.client().get("/health").await.status, StatusCode::OK);
    })
    .await;
}

/// The route requires no key.
#[tokio::test]
async fn many_readiness_probes_cause_one_check() {
    run(async |app| {
        for is_down in [false, true] {
            app.blobs.set_down(is_down);
            wait_until("the result is known", async || {
                (app.client().get("/ready").await.status == StatusCode::OK) != is_down
            })
            .await;
            app.blobs.checks.store(0, Ordering::SeqCst);
            let start = Instant::now();
            let client = app.client();
            let responses = join_all((0..200).map(|_| client.get("/ready"))).await;
            assert!(responses.iter().all(|response| (response.status == StatusCode::OK) != is_down));
            // At most one check per second, and the one that is due at the start.
            let max_checks = start.elapsed().as_secs() + 1;
            assert!(app.blobs.checks.load(Ordering::SeqCst) as u64 <= max_checks, "{:?}", start.elapsed());
        }
    })
    .await;
}

#[tokio::test]
async fn unknown_paths_and_methods_are_404_in_the_response_envelope() {
    run(async |app| {
        let client = app.project().await;
        for (method, path) in [
            (Method::GET, "/nothing"),
            (Method::GET, "/api/v1/nothing"),
            (Method::PUT, "/api/v1/disk"),
            (Method::POST, "/api/v1/ping"),
            (Method::PATCH, "/health"),
        ] {
            for client in [&client, &app.client()] {
                client.json(method.clone(), path, "{}").await.assert_error(404, "route not found");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn trailing_slashes_are_ignored_and_leading_ones_are_not() {
    run(async |app| {
        let service = server::trim_trailing_slashes(features::router(&app.app).unwrap());
        for (path, expected) in [
            ("/health/", 200),
            ("/health", 200),
            ("/health//", 200),
            ("/api/v1/ping/", 401),
            ("/ready/?a=/", 200),
            // Only the slashes at the end.
            ("//health", 404),
            ("//api/v1/ping", 404),
            ("/api//v1/ping", 404),
            ("//", 404),
        ] {
            let request = Request::builder().uri(path).header(header::HOST, "localhost").body(Body::empty()).unwrap();
            let status = service.clone().oneshot(request).await.unwrap().status();
            assert_eq!(status.as_u16(), expected, "{path}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_panic_becomes_a_500_without_details() {
    async fn handler() -> &'static str {
        panic!("a secret of the handler")
    }
    let router = Router::new().route("/", get(handler)).layer(CatchPanicLayer::custom(middleware::handle_panic));
    let response = Client::new(router, None).get("/").await;
    response.assert_error(500, "internal error");
    assert!(!response.text().contains("secret"));
}

#[tokio::test]
async fn a_valid_request_id_is_returned_and_others_are_replaced() {
    run(async |app| {
        let client = app.client();
        let generated = client.get("/health").await;
        assert_eq!(generated.header("x-request-id").len(), 36);
        let given = client.get_with("/health", "x-request-id", "from-a-proxy-1").await;
        assert_eq!(given.header("x-request-id"), "from-a-proxy-1");
        for invalid in ["", "with space", &"x".repeat(129)] {
            let response = client.get_with("/nothing", "x-request-id", invalid).await;
            assert_eq!(response.header("x-request-id").len(), 36, "{invalid:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn invalid_bodies_are_rejected_with_a_reason() {
    run(async |app| {
        let client = app.project().await;
        let deep = format!("{}{}", "{\"user\":[".repeat(5_000), "]}".repeat(5_000));
        for body in ["{\"user\": ", "not json", "[]", "\"text\"", deep.as_str()] {
            client.json(Method::POST, "/api/v1/disk", body).await.assert_error(400, "body");
        }
        client.json(Method::POST, "/api/v1/disk", r#"{"user": 7}"#).await.assert_error(400, "user");
        client.json(Method::POST, "/api/v1/disk", r#"{"user": "a\u0000b"}"#).await.assert_error(400, "user");
        let long = json!({"user": "u".repeat(1025)}).to_string();
        client.json(Method::POST, "/api/v1/disk", &long).await.assert_error(400, "user");
        assert_eq!(client.json(Method::POST, "/api/v1/disk", "null").await.status, StatusCode::CREATED);
        assert_eq!(client.json(Method::POST, "/api/v1/disk", "").await.status, StatusCode::CREATED);
    })
    .await;
}

#[tokio::test]
async fn forms_are_accepted_where_json_is() {
    run(async |app| {
        let client = app.project().await;
        for (kind, body) in [
            ("application/x-www-form-urlencoded", "user=ann%20b&user=other"),
            (
                "multipart/form-data; boundary=x",
                "--x\r\nContent-Disposition: form-data; name=\"user\"\r\n\r\nann b\r\n--x--\r\n",
            ),
        ] {
            let request = client.request(Method::POST, "/api/v1/disk").header(header::CONTENT_TYPE, kind);
            let response = client.send(request.body(Body::from(body)).unwrap()).await;
            assert_eq!(response.status, StatusCode::CREATED, "{}", response.text());
        }
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from users where identifier = 'ann b'").await, 1);
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from disks where user_id is not null").await, 2);
    })
    .await;
}

#[tokio::test]
async fn a_body_over_the_limit_is_rejected_before_it_is_read() {
    run_with(TestConfig::default().with("ACONTEXTD_JSON_LIMIT", "1000"), async |app| {
        let client = app.project().await;
        let path = format!("/api/v1/session/{}/messages", client.new_session().await);
        let body = json!({"blob": "u".repeat(1000)}).to_string();
        client.json(Method::POST, &path, &body).await.assert_error(413, "1000 bytes");
        let request = client
            .request(Method::POST, &path)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONTENT_LENGTH, "1001");
        // A body that never ends: reading it would not return.
        let endless = Body::from_stream(futures_util::stream::pending::<std::io::Result<bytes::Bytes>>());
        client.send(request.body(endless).unwrap()).await.assert_error(413, "1000 bytes");
    })
    .await;
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_503() {
    let config = TestConfig::default().with("ACONTEXTD_REQUEST_TIMEOUT", "50ms").with("ACONTEXTD_IDLE_TIMEOUT", "1h");
    run_with(config, async |app| {
        let client = app.project().await;
        let endless = Body::from_stream(futures_util::stream::pending::<std::io::Result<bytes::Bytes>>());
        let request = client.request(Method::POST, "/api/v1/disk").header(header::CONTENT_TYPE, "application/json");
        client.send(request.body(endless).unwrap()).await.assert_error(503, "took longer");
    })
    .await;
}

#[tokio::test]
async fn the_pool_recovers_when_its_connections_are_terminated() {
    run(async |app| {
        let client = app.project().await;
        client.new_disk().await;
        app.execute("alter table disks rename to disks_away").await;
        // This is not an outage but a bug of the server: the response is a 500 that contains no SQL.
        let response = client.get("/api/v1/disk").await;
        response.assert_error(500, "internal error");
        assert!(!response.text().contains("disks"));
        app.execute("alter table disks_away rename to disks").await;
        assert_eq!(client.get("/api/v1/disk").await.status, StatusCode::OK);
        // Terminate every connection of the pool.
        app.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity
             where datname = current_database() and pid <> pg_backend_pid()",
        )
        .await;
        crate::support::wait_until("the pool has new connections", async || {
            let response = client.get("/api/v1/disk").await;
            assert!([200, 503].contains(&response.status.as_u16()), "{}", response.text());
            response.status == StatusCode::OK
        })
        .await;
    })
    .await;
}
