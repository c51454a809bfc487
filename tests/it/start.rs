//! The server with an external database and an external bucket, or only one of them; its traces, request log and
//! shutdown.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use reqwest::multipart::{Form, Part};
use serde_json::Value;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::s3::{self, S3Server};
use crate::support::server_process::{ServerProcess, data_dir};
use crate::support::{postgres, wait_until};

const KEY: &str = "sk-ac-your-root-api-bearer-token";

/// Stores files and reads them back through the API and a signed URL.
async fn store_and_read(url: &str) {
    let client = reqwest::Client::new();
    let disk: Value =
        client.post(format!("{url}/api/v1/disk")).bearer_auth(KEY).send().await.unwrap().json().await.unwrap();
    let artifact = format!("{url}/api/v1/disk/{}/artifact", disk["data"]["id"].as_str().unwrap());
    // The first file is spooled in memory, the second one in a temporary file.
    for content in ["small".to_owned(), "large ".repeat(100_000)] {
        let form = Form::new().part("file", Part::bytes(content.clone().into_bytes()).file_name("a.txt"));
        let stored = client.post(&artifact).bearer_auth(KEY).multipart(form).send().await.unwrap();
        assert_eq!(stored.status().as_u16(), 201, "{}", stored.text().await.unwrap());
        let fetched: Value = client
            .get(format!("{artifact}?file_path=a.txt"))
            .bearer_auth(KEY)
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        let raw = fetched["data"]["content"]["raw"].as_str();
        assert!(raw == Some(&content), "{} bytes became {:?}", content.len(), raw.map(str::len));
        let link = fetched["data"]["public_url"].as_str().unwrap();
        assert!(client.get(link).send().await.unwrap().text().await.unwrap() == content);
    }
    assert_eq!(client.get(format!("{url}/ready")).send().await.unwrap().status().as_u16(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn external_databases_and_buckets_work_together_and_alone() {
    let s3 = S3Server::start().await;
    let bucket = [
        ("S3_BUCKET", s3::BUCKET),
        ("S3_ENDPOINT", s3.url.as_str()),
        ("S3_ACCESS_KEY", s3::ACCESS_KEY),
        ("S3_SECRET_KEY", s3::SECRET_KEY),
    ];
    for (uses_embedded_postgres, uses_data_dir) in [(false, false), (false, true), (true, false)] {
        let database = postgres::database_url(&postgres::new_database().await);
        let mut settings = vec![("ROOT_SECRET_PEPPER", "a pepper for tests")];
        if !uses_embedded_postgres {
            settings.push(("DATABASE_URL", database.as_str()));
        }
        if !uses_data_dir {
            settings.extend(bucket);
        }
        let dir = data_dir();
        let server = ServerProcess::start(dir.path(), &settings);
        store_and_read(&server.url).await;
        assert_eq!(dir.path().join("postgres").exists(), uses_embedded_postgres);
        assert_eq!(dir.path().join("objects").exists(), uses_data_dir);
        assert!(server.stop().success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traces_are_exported_only_with_an_endpoint_and_join_clients() {
    let collected = Arc::new(Mutex::new(Vec::<u8>::new()));
    let collector = Router::new()
        .route(
            "/v1/traces",
            post(async |State(collected): State<Arc<Mutex<Vec<u8>>>>, body: Bytes| {
                collected.lock().unwrap().extend_from_slice(&body);
            }),
        )
        .with_state(Arc::clone(&collected));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let serving = axum::serve(listener, collector).into_future();
    let test = async {
        let database = postgres::database_url(&postgres::new_database().await);
        let base_settings = [("DATABASE_URL", database.as_str()), ("ROOT_SECRET_PEPPER", "a pepper for tests")];
        let dir = data_dir();
        let client = reqwest::Client::new();
        let server_without_traces = ServerProcess::start(dir.path(), &base_settings);
        let response = client.get(format!("{}/health", server_without_traces.url)).send().await.unwrap();
        assert!(response.headers().get("x-trace-id").is_none());
        assert!(server_without_traces.stop().success());

        let settings = [&base_settings[..], &[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())]].concat();
        let server = ServerProcess::start(dir.path(), &settings);
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let request = client.get(format!("{}/api/v1/ping", server.url)).bearer_auth(KEY);
        let response = request.header("traceparent", format!("00-{trace}-b7ad6b7169203331-01")).send().await.unwrap();
        assert_eq!(response.headers()["x-trace-id"], trace);
        assert_eq!(response.status().as_u16(), 200);
        let response = client.get(format!("{}/health", server.url)).send().await.unwrap();
        assert_eq!(response.headers()["x-trace-id"].len(), 32);
        assert_ne!(response.headers()["x-trace-id"], trace);
        assert!(tokio::task::spawn_blocking(move || server.stop()).await.unwrap().success());
        let was_collected = |bytes: &[u8]| collected.lock().unwrap().windows(bytes.len()).any(|window| window == bytes);
        wait_until("the span has arrived", async || was_collected(&hex::decode(trace).unwrap())).await;
        assert!(was_collected(b"GET /api/v1/ping"));
        assert!(!was_collected(b"your-root-api-bearer-token"), "the traces contain a key");
    };
    tokio::select! {
        ended = serving => panic!("the collector ended: {ended:?}"),
        () = test => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_logs_one_line_without_secrets_or_content() {
    let database = postgres::database_url(&postgres::new_database().await);
    let dir = data_dir();
    let base_settings = [("DATABASE_URL", database.as_str()), ("ROOT_SECRET_PEPPER", "a pepper for tests")];
    let server = ServerProcess::start(dir.path(), &base_settings);
    let client = reqwest::Client::new();
    let id = "a-request-of-this-test";
    let ping =
        client.get(format!("{}/api/v1/ping?note=private", server.url)).bearer_auth(KEY).header("x-request-id", id);
    assert_eq!(ping.send().await.unwrap().status().as_u16(), 200);
    store_and_read(&server.url).await;
    let log = server.log();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ping_lines: Vec<&Value> = lines.iter().filter(|line| line["request.id"] == id).collect();
    assert_eq!(ping_lines.len(), 1, "{log}");
    let line = ping_lines[0];
    assert_eq!(
        (line["method"].as_str(), line["path"].as_str(), line["status"].as_u64()),
        (Some("GET"), Some("/api/v1/ping"), Some(200))
    );
    assert!(line["duration_ms"].is_number() && line["project.id"].as_str().unwrap().len() == 36, "{line}");
    for secret in ["your-root-api-bearer-token", "a pepper for tests", "private", "small", "large large"] {
        assert!(!log.contains(secret), "the log contains '{secret}'");
    }
    assert!(lines.iter().any(|line| line["path"] == "/api/v1/material/{token}"));
    assert!(server.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_line_contains_each_fact_once() {
    for format in ["text", "json"] {
        let database = postgres::database_url(&postgres::new_database().await);
        let dir = data_dir();
        let settings = [
            ("DATABASE_URL", database.as_str()),
            ("ROOT_SECRET_PEPPER", "a pepper for tests"),
            ("ACONTEXTD_LOG_FORMAT", format),
            ("LOG_LEVEL", "info,acontextd=debug"),
            ("ACONTEXTD_SWEEP_EVERY", "1s"),
        ];
        let server = ServerProcess::start(dir.path(), &settings);
        let client = reqwest::Client::new();
        let ping = client.get(format!("{}/api/v1/ping", server.url)).bearer_auth(KEY).header("x-request-id", "r-123");
        assert_eq!(ping.send().await.unwrap().status().as_u16(), 200);
        let find_line = |text: &str| server.log().lines().find(|line| line.contains(text)).map(ToOwned::to_owned);
        wait_until("a job is logged", async || find_line("job completed").is_some()).await;
        let request = find_line("r-123").unwrap();
        for fact in ["r-123", "GET", "/api/v1/ping", "200", "project.id", "request.id", "duration_ms"] {
            assert_eq!(request.matches(fact).count(), 1, "'{fact}' in {request}");
        }
        let job = find_line("job completed").unwrap();
        for fact in ["job.id", "job.kind", "sweep"] {
            assert_eq!(job.matches(fact).count(), 1, "'{fact}' in {job}");
        }
        assert!(server.stop().success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_logged_if_its_client_disconnects() {
    let database = postgres::database_url(&postgres::new_database().await);
    let dir = data_dir();
    let base_settings = [("DATABASE_URL", database.as_str()), ("ROOT_SECRET_PEPPER", "a pepper for tests")];
    let server = ServerProcess::start(dir.path(), &base_settings);
    let client = reqwest::Client::new();
    let mut conn = database.parse::<PgConnectOptions>().unwrap().connect().await.unwrap();
    for (method, id) in [(reqwest::Method::POST, "a-write"), (reqwest::Method::GET, "a-read")] {
        // The table is locked until the client has disconnected. For a read, it is locked until the server has noticed that.
        let mut lock = conn.begin().await.unwrap();
        sqlx::query("lock table disks in access exclusive mode").execute(&mut *lock).await.unwrap();
        let request = client.request(method, format!("{}/api/v1/disk", server.url)).bearer_auth(KEY);
        // Long enough for the server to authenticate the key.
        let result = request.header("x-request-id", id).timeout(Duration::from_secs(2)).send().await;
        assert!(result.is_err());
        let has_line = || server.log().lines().any(|line| line.contains(id) && line.contains("\"project.id\""));
        // The server aborts a read, and completes a write.
        if id == "a-read" {
            wait_until("the request is logged", async || has_line()).await;
        }
        lock.commit().await.unwrap();
        wait_until("the request is logged", async || has_line()).await;
    }
    let status = |id: &str| server.log().lines().find(|line| line.contains(id)).unwrap().to_owned();
    assert!(status("a-write").contains("\"status\":201"), "{}", status("a-write"));
    assert!(status("a-read").contains("\"status\":499"), "{}", status("a-read"));
    assert!(server.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_ends_at_its_deadline() {
    let database = postgres::database_url(&postgres::new_database().await);
    let dir = data_dir();
    let settings = [
        ("DATABASE_URL", database.as_str()),
        ("ROOT_SECRET_PEPPER", "a pepper for tests"),
        ("ACONTEXTD_SHUTDOWN_TIMEOUT", "1s"),
    ];
    let server = ServerProcess::start(dir.path(), &settings);
    let client = reqwest::Client::new();
    let mut conn = database.parse::<PgConnectOptions>().unwrap().connect().await.unwrap();
    let mut lock = conn.begin().await.unwrap();
    sqlx::query("lock table disks in access exclusive mode").execute(&mut *lock).await.unwrap();
    let request = client.post(format!("{}/api/v1/disk", server.url)).bearer_auth(KEY);
    let result = request.timeout(std::time::Duration::from_millis(300)).send().await;
    assert!(result.is_err());
    let started_at = std::time::Instant::now();
    let exit_status = tokio::task::spawn_blocking(move || server.stop()).await.unwrap();
    assert!(!exit_status.success(), "an aborted request must be reported");
    assert!(started_at.elapsed() < std::time::Duration::from_secs(20), "shutdown took {:?}", started_at.elapsed());
    lock.commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_concurrent_connections_are_accepted() {
    let database = postgres::database_url(&postgres::new_database().await);
    let dir = data_dir();
    let base_settings = [("DATABASE_URL", database.as_str()), ("ROOT_SECRET_PEPPER", "a pepper for tests")];
    let server = ServerProcess::start(dir.path(), &base_settings);
    let address = server.url.trim_start_matches("http://").to_owned();
    // A paused process accepts no connections, so they wait in the queue of the listening socket.
    server.pause();
    let connect = |_| tokio::time::timeout(Duration::from_secs(10), TcpStream::connect(&address));
    let connections = futures_util::future::join_all((0..400).map(connect)).await;
    server.resume();
    let connected = connections.iter().filter(|connection| matches!(connection, Ok(Ok(_)))).count();
    assert_eq!(connected, 400);
    for mut stream in connections.into_iter().flatten().flatten() {
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    }
    assert!(server.stop().success());
}
