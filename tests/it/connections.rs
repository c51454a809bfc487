//! The limit of connections, with the real binary.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use crate::support::server_process::{ServerProcess, data_dir};
use crate::support::{postgres, wait_until};

const MAX_CONNECTIONS: usize = 20;

fn connect(server: &ServerProcess) -> TcpStream {
    let stream = TcpStream::connect(server.url.trim_start_matches("http://")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

/// Sends `GET /health` on a new connection and returns the whole response.
fn get_health(server: &ServerProcess) -> String {
    let mut stream = connect(server);
    // The server may have rejected the connection already.
    let _ = stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_send_nothing_do_not_keep_others_out() {
    let dir = data_dir();
    let database = postgres::database_url(&postgres::new_database().await);
    let server = ServerProcess::start(
        dir.path(),
        &[
            ("DATABASE_URL", &database),
            ("ROOT_SECRET_PEPPER", "a pepper for tests"),
            ("ACONTEXTD_MAX_CONNECTIONS", &MAX_CONNECTIONS.to_string()),
        ],
    );
    let in_use: Vec<TcpStream> = (0..MAX_CONNECTIONS).map(|_| connect(&server)).collect();
    // A further connection gets a response, with a body as long as its header says.
    let response = get_health(&server);
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("retry-after: "), "{head}");
    assert!(head.contains(&format!("content-length: {}", body.len())), "{response}");
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!((&body["code"], body["error"].as_str()), (&Value::from(503), None));
    wait_until("the unused connections are closed", async || get_health(&server).starts_with("HTTP/1.1 200 ")).await;
    // Half of the maximum number stays open or was closed with the others.
    let closed = in_use.into_iter().filter(|stream| {
        stream.set_nonblocking(true).unwrap();
        matches!((&*stream).read(&mut [0; 1]), Ok(0))
    });
    assert!(closed.count() >= MAX_CONNECTIONS / 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn startup_raises_the_limit_of_open_files() {
    let dir = data_dir();
    let database = postgres::database_url(&postgres::new_database().await);
    let settings = [("DATABASE_URL", database.as_str()), ("ROOT_SECRET_PEPPER", "a pepper for tests")];
    let server = ServerProcess::start_with_file_limit(dir.path(), &settings, "300:1000");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(line.split_whitespace().nth(3), Some("1000"), "{line}");
    assert!(server.log().contains("accepts only 744 instead of 4096 connections"), "{}", server.log());
}
