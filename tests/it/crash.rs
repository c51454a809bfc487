//! The server is killed with `kill -9` during uploads and requests, again and again. What it acknowledged must be
//! complete, and nothing may be stored in part.

use aws_lc_rs::digest;
use reqwest::multipart::{Form, Part};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::server_process::{ServerProcess, data_dir};
use crate::support::wait_until;

const ROUNDS: usize = 20;
const UPLOADERS: usize = 16;
const KEY: &str = "sk-ac-your-root-api-bearer-token";

/// Returns the content of an uploaded file. It is derived from the name of the file, so that it can be checked later.
fn content(uploader: usize, number: usize) -> Vec<u8> {
    let length = [10, 3_000, 200_000, 700_000][number % 4];
    format!("{uploader}-{number} ").bytes().cycle().take(length + number).collect()
}

/// Uploads one file after the other until the server is killed. Returns the numbers of the acknowledged files.
async fn upload_until_killed(
    client: reqwest::Client,
    url: String,
    uploader: usize,
    first: usize,
    acknowledged: Arc<AtomicUsize>,
) -> Vec<usize> {
    let mut done = Vec::new();
    for number in first.. {
        let part = Part::bytes(content(uploader, number)).file_name(format!("{number}.txt"));
        let form = Form::new().text("file_path", format!("/{uploader}/")).part("file", part);
        let Ok(response) = client.post(&url).bearer_auth(KEY).multipart(form).send().await else { break };
        assert!(response.status().is_success() || response.status().as_u16() == 503, "{}", response.status());
        if response.status().is_success() {
            done.push(number);
            acknowledged.fetch_add(1, Ordering::SeqCst);
        }
    }
    done
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_during_uploads_loses_no_acknowledged_file() {
    let dir = data_dir();
    let client = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
    let settings = [("ACONTEXTD_JOB_LEASE", "1s"), ("LOG_LEVEL", "warn")];
    let mut server = ServerProcess::start(dir.path(), &settings);
    let disk: serde_json::Value =
        client.post(format!("{}/api/v1/disk", server.url)).bearer_auth(KEY).send().await.unwrap().json().await.unwrap();
    let disk = disk["data"]["id"].as_str().unwrap().to_owned();
    let mut stored: Vec<Vec<usize>> = vec![Vec::new(); UPLOADERS];
    for round in 0..ROUNDS {
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let url = format!("{}/api/v1/disk/{disk}/artifact", server.url);
        let first = round * 10_000;
        let uploaders = (0..UPLOADERS).map(|uploader| {
            let (client, url, acknowledged) = (client.clone(), url.clone(), Arc::clone(&acknowledged));
            upload_until_killed(client, url, uploader, first, acknowledged)
        });
        let uploading = futures_util::future::join_all(uploaders);
        let killing = async {
            // Each round kills the server at a different moment.
            let enough = 8 + 5 * round;
            crate::support::wait_until("enough files are stored", async || {
                acknowledged.load(Ordering::SeqCst) >= enough
            })
            .await;
            server.kill();
        };
        let (done, ()) = tokio::join!(uploading, killing);
        for (all, new) in stored.iter_mut().zip(done) {
            all.extend(new);
        }
        server = ServerProcess::start(dir.path(), &settings);
        for (uploader, numbers) in stored.iter().enumerate() {
            // The newest files of this uploader and its oldest one.
            for number in numbers.iter().rev().take(3).chain(numbers.first()) {
                check_file(&client, &server.url, &disk, uploader, *number).await;
            }
        }
    }
    for (uploader, numbers) in stored.iter().enumerate() {
        for number in numbers {
            check_file(&client, &server.url, &disk, uploader, *number).await;
        }
    }
    check_rows(dir.path()).await;
    assert!(server.stop().success());
}

async fn check_file(client: &reqwest::Client, url: &str, disk: &str, uploader: usize, number: usize) {
    let url = format!("{url}/api/v1/disk/{disk}/artifact/download?file_path=/{uploader}/{number}.txt");
    let response = client.get(url).bearer_auth(KEY).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 200, "/{uploader}/{number}.txt was acknowledged");
    let bytes = response.bytes().await.unwrap();
    assert!(bytes == content(uploader, number), "/{uploader}/{number}.txt has different content");
}

/// Asserts that every artifact has a current version, every current version a live blob, and every live blob an object,
/// that each object has the content of its blob, and that there is no object without a row.
async fn check_rows(dir: &std::path::Path) {
    let options =
        PgConnectOptions::new_without_pgpass().socket(dir.join("run")).username("acontext").database("acontext");
    let mut conn = options.connect().await.unwrap();
    let incomplete: i64 = sqlx::query_scalar(
        "select count(*) from artifacts a
         full join (select * from artifact_versions where to_revision is null) v using (disk_id, path, filename)
         left join blobs b on b.id = v.blob_id and b.state = 'live'
         where a.id is null or v.blob_id is null or b.id is null",
    )
    .fetch_one(&mut conn)
    .await
    .unwrap();
    assert_eq!(incomplete, 0, "an artifact, its version or its live blob is missing");
    let rows: Vec<(String, String, String)> =
        sqlx::query_as("select object_key, sha256, state from blobs").fetch_all(&mut conn).await.unwrap();
    let mut objects = list_files(&dir.join("objects"));
    for (key, sha256, state) in rows {
        let (project, id) = key.split_once('/').unwrap();
        let path = dir.join("objects").join(project).join(&id[id.len() - 2..]).join(id);
        match std::fs::read(&path) {
            Ok(bytes) => assert_eq!(hex::encode(digest::digest(&digest::SHA256, &bytes)), sha256, "{key}, {state}"),
            Err(_) => assert_ne!(state, "live", "{key} has no object"),
        }
        objects.retain(|object| *object != path);
    }
    assert_eq!(objects, [] as [std::path::PathBuf; 0], "objects without a row");
    conn.close().await.unwrap();
}

fn list_files(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { list_files(&path) } else { vec![path] }).collect()
}

/// Stores one message after the other until the server is killed. Returns the acknowledged messages in order, each as
/// the index of its session and its id.
async fn store_messages_until_killed(
    client: reqwest::Client,
    urls: Vec<String>,
    writer: usize,
    acknowledged: Arc<AtomicUsize>,
) -> Vec<(usize, String)> {
    let mut stored = Vec::new();
    for number in 0.. {
        // Alternately in the session that all writers share, and in one that few of them share.
        let session = if number % 2 == 0 { 0 } else { 1 + writer % (urls.len() - 1) };
        // Short messages are committed in groups, long ones alone.
        let text = format!("{writer} ").repeat([10, 300, 200_000][number % 3]);
        let body = serde_json::json!({"blob": {"role": "user", "content": text}});
        let Ok(response) = client.post(&urls[session]).bearer_auth(KEY).json(&body).send().await else { break };
        let status = response.status();
        assert!(status.is_success() || status.as_u16() == 503, "{status}");
        if status.is_success() {
            // The response may have been cut off. Only a complete one is an acknowledgment.
            let Ok(message) = response.json::<serde_json::Value>().await else { break };
            stored.push((session, message["data"]["id"].as_str().unwrap().to_owned()));
            acknowledged.fetch_add(1, Ordering::SeqCst);
        }
    }
    stored
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_while_messages_are_stored_loses_none_and_keeps_order() {
    let dir = data_dir();
    let client = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
    let settings = [("LOG_LEVEL", "warn")];
    let mut server = ServerProcess::start(dir.path(), &settings);
    let mut sessions: Vec<String> = Vec::new();
    for _ in 0..4 {
        let response = client.post(format!("{}/api/v1/session", server.url)).bearer_auth(KEY).send().await.unwrap();
        let session: serde_json::Value = response.json().await.unwrap();
        sessions.push(session["data"]["id"].as_str().unwrap().to_owned());
    }
    let mut stored: Vec<Vec<(usize, String)>> = vec![Vec::new(); UPLOADERS];
    for round in 0..ROUNDS / 2 {
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let url = |session: &String| format!("{}/api/v1/session/{session}/messages", server.url);
        let urls: Vec<String> = sessions.iter().map(url).collect();
        let writers = (0..UPLOADERS)
            .map(|writer| store_messages_until_killed(client.clone(), urls.clone(), writer, Arc::clone(&acknowledged)));
        let killing = async {
            // Each round kills the server at a different moment.
            let enough = 20 + 13 * round;
            crate::support::wait_until("enough messages are stored", async || {
                acknowledged.load(Ordering::SeqCst) >= enough
            })
            .await;
            server.kill();
        };
        let (newly_stored, ()) = tokio::join!(futures_util::future::join_all(writers), killing);
        for (all, new) in stored.iter_mut().zip(newly_stored) {
            all.extend(new);
        }
        server = ServerProcess::start(dir.path(), &settings);
    }
    for (number, session) in sessions.iter().enumerate() {
        let ids = read_conversation(&client, &server.url, session).await;
        for messages in &stored {
            let positions = messages.iter().filter(|(index, _)| *index == number).map(|(_, id)| {
                ids.iter().position(|known| known == id).unwrap_or_else(|| panic!("{id} was acknowledged"))
            });
            assert!(positions.is_sorted(), "the messages of one writer are in the order in which they were stored");
        }
    }
    assert!(server.stop().success());
}

/// Reads the ids of a session's messages page by page. Asserts that the chain of parents and each text are complete.
async fn read_conversation(client: &reqwest::Client, url: &str, session: &str) -> Vec<String> {
    let mut ids: Vec<String> = Vec::new();
    let mut query = "format=acontext&limit=20".to_owned();
    loop {
        let url = format!("{url}/api/v1/session/{session}/messages?{query}");
        let page: serde_json::Value = client.get(url).bearer_auth(KEY).send().await.unwrap().json().await.unwrap();
        for item in page["data"]["items"].as_array().unwrap() {
            assert_eq!(item["parent_id"].as_str(), ids.last().map(String::as_str), "the chain of parents is complete");
            let text = item["parts"][0]["text"].as_str().unwrap();
            let (writer, rest) = text.split_at(text.find(' ').unwrap() + 1);
            assert!(text.len() % writer.len() == 0 && rest.starts_with(writer), "the text is complete");
            ids.push(item["id"].as_str().unwrap().to_owned());
        }
        let Some(cursor) = page["data"]["next_cursor"].as_str() else { break };
        query = format!("format=acontext&limit=20&cursor={cursor}");
    }
    let mut unique = ids.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), ids.len(), "no message is returned twice");
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn graceful_shutdown_lets_a_running_upload_finish() {
    let dir = data_dir();
    let server = ServerProcess::start(dir.path(), &[]);
    let client = reqwest::Client::new();
    let disk: serde_json::Value =
        client.post(format!("{}/api/v1/disk", server.url)).bearer_auth(KEY).send().await.unwrap().json().await.unwrap();
    let path = format!("/api/v1/disk/{}/artifact", disk["data"]["id"].as_str().unwrap());
    // The body is sent in two halves, and SIGTERM between them.
    let address = server.url.trim_start_matches("http://").to_owned();
    let mut upload = TcpStream::connect(&address).await.unwrap();
    let first = "--b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"halves.txt\"\r\n\r\nfirst half, ";
    let second = "second half\r\n--b--\r\n";
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {KEY}\r\nexpect: 100-continue\r\n\
         content-type: multipart/form-data; boundary=b\r\ncontent-length: {}\r\n\r\n",
        first.len() + second.len()
    );
    upload.write_all(head.as_bytes()).await.unwrap();
    // The server sends this when it reads the body. From then on it must finish the request.
    let mut interim_response = [0; 25];
    upload.read_exact(&mut interim_response).await.unwrap();
    assert_eq!(&interim_response, b"HTTP/1.1 100 Continue\r\n\r\n");
    upload.write_all(first.as_bytes()).await.unwrap();
    let stop = tokio::task::spawn_blocking(move || server.stop());
    wait_until("the port is closed", async || TcpStream::connect(&address).await.is_err()).await;
    upload.write_all(second.as_bytes()).await.unwrap();
    let mut response = String::new();
    upload.read_to_string(&mut response).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 201"), "{response}");
    assert!(stop.await.unwrap().success());
}

/// Sends one request after the other, each with its own idempotency key, until the server is killed. Returns the number
/// of the request that has no response. The next server gets it first, because clients repeat such requests.
async fn send_until_killed(
    client: reqwest::Client,
    session: String,
    worker: usize,
    first: usize,
    completed: Arc<AtomicUsize>,
) -> usize {
    for number in first.. {
        let key = format!("{worker}-{number}");
        let (path, body) = match number % 2 {
            0 => ("events", serde_json::json!({"type": "t", "data": {"key": key}})),
            _ => ("messages", serde_json::json!({"blob": {"role": "user", "content": key}})),
        };
        let request = client.post(format!("{session}/{path}")).bearer_auth(KEY).header("idempotency-key", &key);
        let Ok(response) = request.json(&body).send().await else { return number };
        let status = response.status();
        // The response may have been cut off.
        if !status.is_success() || response.bytes().await.is_err() {
            assert!(status.is_success() || status.as_u16() == 503, "{status}");
            return number;
        }
        completed.fetch_add(1, Ordering::SeqCst);
    }
    first
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_during_requests_with_keys_executes_none_twice() {
    let dir = data_dir();
    let client = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
    let settings = [("LOG_LEVEL", "warn")];
    let mut server = ServerProcess::start(dir.path(), &settings);
    let response = client.post(format!("{}/api/v1/session", server.url)).bearer_auth(KEY).send().await.unwrap();
    let session: serde_json::Value = response.json().await.unwrap();
    let session = session["data"]["id"].as_str().unwrap().to_owned();
    let mut next = vec![0; UPLOADERS];
    for round in 0..ROUNDS / 4 {
        let completed = Arc::new(AtomicUsize::new(0));
        let url = format!("{}/api/v1/session/{session}", server.url);
        let workers = next.iter().enumerate().map(|(worker, first)| {
            send_until_killed(client.clone(), url.clone(), worker, *first, Arc::clone(&completed))
        });
        let killing = async {
            // Each round kills the server at a different moment.
            let enough = 20 + 13 * round;
            crate::support::wait_until("enough requests are completed", async || {
                completed.load(Ordering::SeqCst) >= enough
            })
            .await;
            server.kill();
        };
        let (incomplete, ()) = tokio::join!(futures_util::future::join_all(workers), killing);
        next = incomplete;
        server = ServerProcess::start(dir.path(), &settings);
    }
    let options = PgConnectOptions::new_without_pgpass().socket(dir.path().join("run"));
    let mut conn = options.username("acontext").database("acontext").connect().await.unwrap();
    let keys: Vec<String> = sqlx::query_scalar(
        "select data ->> 'key' from session_events
         union all select convert_from(content, 'utf8')::jsonb ->> 'content' from messages",
    )
    .fetch_all(&mut conn)
    .await
    .unwrap();
    conn.close().await.unwrap();
    for (worker, last) in next.into_iter().enumerate() {
        for number in 0..=last {
            let key = format!("{worker}-{number}");
            let times = keys.iter().filter(|stored| **stored == key).count();
            assert!(times == 1 || (number == last && times == 0), "{key} was executed {times} times");
        }
    }
    assert!(server.stop().success());
}
