//! The program with a database and objects of the operator's, and with one of them alone; its stop; its traces.

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

use crate::support::program::{Program, data_folder};
use crate::support::{eventually, postgres, s3};

const KEY: &str = "sk-ac-your-root-api-bearer-token";

/// Stores a file and reads it back, through the API and a link.
async fn store_and_read(url: &str) {
    let client = reqwest::Client::new();
    let disk: Value =
        client.post(format!("{url}/api/v1/disk")).bearer_auth(KEY).send().await.unwrap().json().await.unwrap();
    let at = format!("{url}/api/v1/disk/{}/artifact", disk["data"]["id"].as_str().unwrap());
    // One that stays in memory on its way, and one that does not.
    for content in ["small".to_owned(), "large ".repeat(100_000)] {
        let form = Form::new().part("file", Part::bytes(content.clone().into_bytes()).file_name("a.txt"));
        let stored = client.post(&at).bearer_auth(KEY).multipart(form).send().await.unwrap();
        assert_eq!(stored.status().as_u16(), 201, "{}", stored.text().await.unwrap());
        let shown: Value =
            client.get(format!("{at}?file_path=a.txt")).bearer_auth(KEY).send().await.unwrap().json().await.unwrap();
        let raw = shown["data"]["content"]["raw"].as_str();
        assert!(raw == Some(&content), "{} bytes became {:?}", content.len(), raw.map(str::len));
        let link = shown["data"]["public_url"].as_str().unwrap();
        assert!(client.get(link).send().await.unwrap().text().await.unwrap() == content);
    }
    assert_eq!(client.get(format!("{url}/ready")).send().await.unwrap().status().as_u16(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_works_with_a_database_and_a_bucket_of_yours_and_with_either_alone() {
    let endpoint = format!("http://{}", s3::start().await);
    let bucket = [
        ("S3_BUCKET", s3::BUCKET),
        ("S3_ENDPOINT", endpoint.as_str()),
        ("S3_ACCESS_KEY", s3::ACCESS_KEY),
        ("S3_SECRET_KEY", s3::SECRET_KEY),
    ];
    for (own_database, own_objects) in [(false, false), (false, true), (true, false)] {
        let database = postgres::url_of(&postgres::new_database().await);
        let mut settings = vec![("ROOT_SECRET_PEPPER", "a pepper for tests")];
        if !own_database {
            settings.push(("DATABASE_URL", database.as_str()));
        }
        if !own_objects {
            settings.extend(bucket);
        }
        let folder = data_folder();
        let program = Program::start(folder.path(), &settings);
        store_and_read(&program.url).await;
        assert_eq!(folder.path().join("postgres").exists(), own_database);
        assert_eq!(folder.path().join("objects").exists(), own_objects);
        assert!(program.stop().success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traces_leave_only_where_they_are_wanted_and_follow_the_clients() {
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
        let database = postgres::url_of(&postgres::new_database().await);
        let yours = [("DATABASE_URL", database.as_str()), ("ROOT_SECRET_PEPPER", "a pepper for tests")];
        let folder = data_folder();
        let client = reqwest::Client::new();
        let quiet = Program::start(folder.path(), &yours);
        let answer = client.get(format!("{}/health", quiet.url)).send().await.unwrap();
        assert!(answer.headers().get("x-trace-id").is_none());
        assert!(quiet.stop().success());

        let settings = [&yours[..], &[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())]].concat();
        let program = Program::start(folder.path(), &settings);
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let request = client.get(format!("{}/api/v1/ping", program.url)).bearer_auth(KEY);
        let answer = request.header("traceparent", format!("00-{trace}-b7ad6b7169203331-01")).send().await.unwrap();
        assert_eq!(answer.headers()["x-trace-id"], trace);
        assert_eq!(answer.status().as_u16(), 200);
        let own = client.get(format!("{}/health", program.url)).send().await.unwrap();
        assert_eq!(own.headers()["x-trace-id"].len(), 32);
        assert_ne!(own.headers()["x-trace-id"], trace);
        assert!(tokio::task::spawn_blocking(move || program.stop()).await.unwrap().success());
        let has = |bytes: &[u8]| collected.lock().unwrap().windows(bytes.len()).any(|window| window == bytes);
        eventually("the span has arrived", async || has(&hex::decode(trace).unwrap())).await;
        assert!(has(b"GET /api/v1/ping"));
        assert!(!has(b"your-root-api-bearer-token"), "a key left with the traces");
    };
    tokio::select! {
        ended = serving => panic!("the collector ended: {ended:?}"),
        () = test => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_leaves_one_line_without_keys_tokens_or_content() {
    let database = postgres::url_of(&postgres::new_database().await);
    let folder = data_folder();
    let yours = [("DATABASE_URL", database.as_str()), ("ROOT_SECRET_PEPPER", "a pepper for tests")];
    let program = Program::start(folder.path(), &yours);
    let client = reqwest::Client::new();
    let id = "a-request-of-this-test";
    let ping =
        client.get(format!("{}/api/v1/ping?note=private", program.url)).bearer_auth(KEY).header("x-request-id", id);
    assert_eq!(ping.send().await.unwrap().status().as_u16(), 200);
    store_and_read(&program.url).await;
    let log = program.log();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of_ping: Vec<&Value> = lines.iter().filter(|line| line["request.id"] == id).collect();
    assert_eq!(of_ping.len(), 1, "{log}");
    let line = of_ping[0];
    assert_eq!(
        (line["method"].as_str(), line["path"].as_str(), line["status"].as_u64()),
        (Some("GET"), Some("/api/v1/ping"), Some(200))
    );
    assert!(line["duration_ms"].is_number() && line["project.id"].as_str().unwrap().len() == 36, "{line}");
    for secret in ["your-root-api-bearer-token", "a pepper for tests", "private", "small", "large large"] {
        assert!(!log.contains(secret), "the log has '{secret}'");
    }
    assert!(lines.iter().any(|line| line["path"] == "/api/v1/material/{token}"));
    assert!(program.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_whose_client_hung_up_leaves_its_line_too() {
    let database = postgres::url_of(&postgres::new_database().await);
    let folder = data_folder();
    let yours = [("DATABASE_URL", database.as_str()), ("ROOT_SECRET_PEPPER", "a pepper for tests")];
    let program = Program::start(folder.path(), &yours);
    let client = reqwest::Client::new();
    let mut conn = database.parse::<PgConnectOptions>().unwrap().connect().await.unwrap();
    for (method, id) in [(reqwest::Method::POST, "a-write"), (reqwest::Method::GET, "a-read")] {
        // The table is locked until the client has gone.
        let mut lock = conn.begin().await.unwrap();
        sqlx::query("lock table disks in access exclusive mode").execute(&mut *lock).await.unwrap();
        let request = client.request(method, format!("{}/api/v1/disk", program.url)).bearer_auth(KEY);
        // Long enough for the key to be checked.
        let hung_up = request.header("x-request-id", id).timeout(Duration::from_secs(2)).send().await;
        assert!(hung_up.is_err());
        lock.commit().await.unwrap();
        let has_line = || program.log().lines().any(|line| line.contains(id) && line.contains("\"project.id\""));
        eventually("the line is there", async || has_line()).await;
    }
    let status = |id: &str| program.log().lines().find(|line| line.contains(id)).unwrap().to_owned();
    assert!(status("a-write").contains("\"status\":201"), "{}", status("a-write"));
    assert!(status("a-read").contains("\"status\":499"), "{}", status("a-read"));
    assert!(program.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_ends_at_its_deadline_whatever_still_runs() {
    let database = postgres::url_of(&postgres::new_database().await);
    let folder = data_folder();
    let settings = [
        ("DATABASE_URL", database.as_str()),
        ("ROOT_SECRET_PEPPER", "a pepper for tests"),
        ("ACONTEXTD_SHUTDOWN_TIMEOUT", "1s"),
    ];
    let program = Program::start(folder.path(), &settings);
    let client = reqwest::Client::new();
    let mut conn = database.parse::<PgConnectOptions>().unwrap().connect().await.unwrap();
    let mut lock = conn.begin().await.unwrap();
    sqlx::query("lock table disks in access exclusive mode").execute(&mut *lock).await.unwrap();
    let stuck = client.post(format!("{}/api/v1/disk", program.url)).bearer_auth(KEY);
    let stuck = stuck.timeout(std::time::Duration::from_millis(300)).send().await;
    assert!(stuck.is_err());
    let began = std::time::Instant::now();
    let ended = tokio::task::spawn_blocking(move || program.stop()).await.unwrap();
    assert!(!ended.success(), "what was cut off is an error");
    assert!(began.elapsed() < std::time::Duration::from_secs(20), "it took {:?}", began.elapsed());
    lock.commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_that_connects_at_once_is_let_in() {
    let database = postgres::url_of(&postgres::new_database().await);
    let folder = data_folder();
    let yours = [("DATABASE_URL", database.as_str()), ("ROOT_SECRET_PEPPER", "a pepper for tests")];
    let program = Program::start(folder.path(), &yours);
    let address = program.url.trim_start_matches("http://").to_owned();
    // As if it had no time to take connections: they have to wait in line.
    program.pause();
    let connect = |_| tokio::time::timeout(Duration::from_secs(10), TcpStream::connect(&address));
    let crowd = futures_util::future::join_all((0..400).map(connect)).await;
    program.go_on();
    let connected = crowd.iter().filter(|one| matches!(one, Ok(Ok(_)))).count();
    assert_eq!(connected, 400);
    for mut stream in crowd.into_iter().flatten().flatten() {
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    assert!(program.stop().success());
}
