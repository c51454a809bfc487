//! The limit of connections, with the real binary.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use acontextd::http::server::configure_socket;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

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
    let unused: Vec<TcpStream> = (0..MAX_CONNECTIONS).map(|_| connect(&server)).collect();
    // A further connection gets a response, with a body as long as its header says.
    let response = get_health(&server);
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("retry-after: "), "{head}");
    assert!(head.contains(&format!("content-length: {}", body.len())), "{response}");
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!((&body["code"], body["error"].as_str()), (&Value::from(503), None));
    wait_until("the unused connections are closed", async || get_health(&server).starts_with("HTTP/1.1 200 ")).await;
    // They are closed one after the other, so the request above may succeed before the last one is.
    for stream in &unused {
        stream.set_nonblocking(true).unwrap();
    }
    wait_until("at least half of the unused connections are closed", async || {
        let closed = unused.iter().filter(|stream| matches!((&**stream).read(&mut [0; 1]), Ok(0)));
        closed.count() >= MAX_CONNECTIONS / 2
    })
    .await;
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

/// One byte of a request is not a reason to wait until the deadline of shutdown.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_has_sent_a_part_of_a_request_does_not_delay_shutdown() {
    let dir = data_dir();
    let database = postgres::database_url(&postgres::new_database().await);
    let settings = [
        ("DATABASE_URL", database.as_str()),
        ("ROOT_SECRET_PEPPER", "a pepper for tests"),
        ("ACONTEXTD_SHUTDOWN_TIMEOUT", "10s"),
    ];
    let server = ServerProcess::start(dir.path(), &settings);
    let mut stream = connect(&server);
    stream.write_all(b"G").unwrap();
    // The server accepts connections in their order, so it has accepted the first one.
    assert!(get_health(&server).starts_with("HTTP/1.1 200 "));
    assert!(
        tokio::task::spawn_blocking(move || server.stop()).await.unwrap().success(),
        "the shutdown was not graceful"
    );
}

/// The client reads a small part of what the system has buffered. The server must notice it, because it disconnects clients that
/// do not read.
#[tokio::test]
async fn a_client_that_reads_slowly_is_noticed() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    // The system tells the server that the client has read something when a sixteenth of the client's buffer is free, which must
    // be less than the client reads below.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(128 << 10).unwrap();
    let client = socket.connect(listener.local_addr().unwrap());
    let (client, accepted) = tokio::join!(client, listener.accept());
    let (mut client, mut server) = (client.unwrap(), accepted.unwrap().0);
    configure_socket(&server);
    // The client reads at first, so that the system enlarges the server's buffer.
    let (mut received, content) = (vec![0; 32 << 20], vec![0; 32 << 20]);
    let (read, written) = tokio::join!(client.read_exact(&mut received), server.write_all(&content));
    assert_eq!((read.unwrap(), written.unwrap()), (content.len(), ()));
    // Until the buffers of both ends are full.
    let mut written = 0;
    while let Ok(ready) = tokio::time::timeout(Duration::from_secs(1), server.writable()).await {
        ready.unwrap();
        written += server.try_write(&content).unwrap_or_default();
    }
    // Otherwise the client would have to read a third of the server's buffer before the server notices it.
    assert!(written < 1 << 20, "the buffers contain {written} bytes");
    let read = async {
        for _ in 0..16 {
            assert_ne!(client.read(&mut vec![0; 64 << 10]).await.unwrap(), 0);
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = read => {}
        writable = tokio::time::timeout(Duration::from_secs(10), server.writable()) => {
            writable.expect("the server notices that the client has read all of it").unwrap();
        }
    }
}
