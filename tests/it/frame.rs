//! What every route shares: the envelope, refusals, ids, limits.

use acontextd::features;
use acontextd::http::middleware;
use acontextd::http::server;
use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use axum::routing::get;
use serde_json::json;
use tower::ServiceExt;
use tower_http::catch_panic::CatchPanicLayer;

use crate::support::client::Client;
use crate::support::{Setup, run, run_with};

#[tokio::test]
async fn health_needs_nothing_and_ping_a_key() {
    run(async |app| {
        assert_eq!(app.client().get("/health").await.json(), json!({"code": 0, "msg": "ok"}));
        assert_eq!(app.project().await.get("/api/v1/ping").await.json(), json!({"code": 0, "msg": "pong"}));
        app.client().get("/api/v1/ping").await.assert_refused(401, "Unauthorized");
    })
    .await;
}

#[tokio::test]
async fn ready_names_what_does_not_answer() {
    run(async |app| {
        assert_eq!(app.client().get("/ready").await.status, StatusCode::OK);
        app.blobs.set_down(true);
        let answer = app.client().get("/ready").await;
        answer.assert_refused(503, "object store");
        assert_eq!(answer.header("retry-after"), "2");
        app.app.db.close().await;
        app.client().get("/ready").await.assert_refused(503, "database");
        assert_eq!(app.client().get("/health").await.status, StatusCode::OK);
    })
    .await;
}

#[tokio::test]
async fn unknown_paths_and_wrong_methods_are_404_in_the_envelope() {
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
                client.json(method.clone(), path, "{}").await.assert_refused(404, "no such route");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_slash_at_the_end_is_the_path_without_it() {
    run(async |app| {
        let service = server::service(features::router(&app.app).unwrap());
        for path in ["/health/", "/health", "/api/v1/ping/"] {
            let request = Request::builder().uri(path).header(header::HOST, "localhost").body(Body::empty()).unwrap();
            let status = service.clone().oneshot(request).await.unwrap().status();
            assert_eq!(status.as_u16(), if path.contains("ping") { 401 } else { 200 }, "{path}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_panic_is_a_clean_500() {
    async fn handler() -> &'static str {
        panic!("a secret of the handler")
    }
    let router = Router::new().route("/", get(handler)).layer(CatchPanicLayer::custom(middleware::panicked));
    let answer = Client::new(router, None).get("/").await;
    answer.assert_refused(500, "internal error");
    assert!(!answer.text().contains("secret"));
}

#[tokio::test]
async fn a_request_has_an_id_its_own_or_a_new_one() {
    run(async |app| {
        let client = app.client();
        let new = client.get("/health").await;
        assert_eq!(new.header("x-request-id").len(), 36);
        let taken = client.get_with("/health", "x-request-id", "from-a-proxy-1").await;
        assert_eq!(taken.header("x-request-id"), "from-a-proxy-1");
        for odd in ["", "with space", &"x".repeat(129)] {
            let answer = client.get_with("/nothing", "x-request-id", odd).await;
            assert_eq!(answer.header("x-request-id").len(), 36, "{odd:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn bodies_that_cannot_be_read_are_refused_with_a_reason() {
    run(async |app| {
        let client = app.project().await;
        let deep = format!("{}{}", "{\"user\":[".repeat(5_000), "]}".repeat(5_000));
        for body in ["{\"user\": ", "not json", "[]", "\"text\"", deep.as_str()] {
            client.json(Method::POST, "/api/v1/disk", body).await.assert_refused(400, "body");
        }
        client.json(Method::POST, "/api/v1/disk", r#"{"user": 7}"#).await.assert_refused(400, "user");
        client.json(Method::POST, "/api/v1/disk", r#"{"user": "a\u0000b"}"#).await.assert_refused(400, "user");
        let long = json!({"user": "u".repeat(1025)}).to_string();
        client.json(Method::POST, "/api/v1/disk", &long).await.assert_refused(400, "user");
        assert_eq!(client.json(Method::POST, "/api/v1/disk", "null").await.status, StatusCode::CREATED);
        assert_eq!(client.json(Method::POST, "/api/v1/disk", "").await.status, StatusCode::CREATED);
    })
    .await;
}

#[tokio::test]
async fn a_form_is_taken_where_json_is() {
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
            let answer = client.send(request.body(Body::from(body)).unwrap()).await;
            assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
        }
        assert_eq!(app.value::<i64>("select count(*) from users where identifier = 'ann b'").await, 1);
        assert_eq!(app.value::<i64>("select count(*) from disks where user_id is not null").await, 2);
    })
    .await;
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_before_it_is_read() {
    run_with(Setup::default().with("ACONTEXTD_JSON_LIMIT", "1000"), async |app| {
        let client = app.project().await;
        let path = format!("/api/v1/session/{}/messages", client.new_session().await);
        let body = json!({"blob": "u".repeat(1000)}).to_string();
        client.json(Method::POST, &path, &body).await.assert_refused(413, "1000 bytes");
        let announced = client
            .request(Method::POST, &path)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONTENT_LENGTH, "1001");
        // A body that never ends: reading it would not return.
        let endless = Body::from_stream(futures_util::stream::pending::<std::io::Result<bytes::Bytes>>());
        client.send(announced.body(endless).unwrap()).await.assert_refused(413, "1000 bytes");
    })
    .await;
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_503() {
    let setup = Setup::default().with("ACONTEXTD_REQUEST_TIMEOUT", "50ms").with("ACONTEXTD_IDLE_TIMEOUT", "1h");
    run_with(setup, async |app| {
        let client = app.project().await;
        let endless = Body::from_stream(futures_util::stream::pending::<std::io::Result<bytes::Bytes>>());
        let request = client.request(Method::POST, "/api/v1/disk").header(header::CONTENT_TYPE, "application/json");
        client.send(request.body(endless).unwrap()).await.assert_refused(503, "took longer");
    })
    .await;
}

#[tokio::test]
async fn a_database_that_is_down_is_503_and_comes_back_by_itself() {
    run(async |app| {
        let client = app.project().await;
        client.new_disk().await;
        app.execute("alter table disks rename to disks_away").await;
        // Not an outage but a error of ours: 500 without a word of SQL.
        let answer = client.get("/api/v1/disk").await;
        answer.assert_refused(500, "internal error");
        assert!(!answer.text().contains("disks"));
        app.execute("alter table disks_away rename to disks").await;
        assert_eq!(client.get("/api/v1/disk").await.status, StatusCode::OK);
        // Every connection of the pool is cut.
        app.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()").await;
        crate::support::eventually("the pool has new connections", async || {
            let answer = client.get("/api/v1/disk").await;
            assert!([200, 503].contains(&answer.status.as_u16()), "{}", answer.text());
            answer.status == StatusCode::OK
        })
        .await;
    })
    .await;
}
