//! kill -9 in the middle of uploads, again and again: what was acknowledged is there with its bytes, what was not is not half
//! there.

use aws_lc_rs::digest;
use reqwest::multipart::{Form, Part};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::eventually;
use crate::support::program::{Program, data_folder};

const ROUNDS: usize = 20;
const UPLOADERS: usize = 16;
const KEY: &str = "sk-ac-your-root-api-bearer-token";

/// What an uploader stores: its content follows from its name, so that it can be checked later.
fn content(uploader: usize, number: usize) -> Vec<u8> {
    let length = [10, 3_000, 200_000, 700_000][number % 4];
    format!("{uploader}-{number} ").bytes().cycle().take(length + number).collect()
}

/// Uploads one file after the other until the server is gone; answers with the numbers that were acknowledged.
async fn upload_until_the_end(
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
        let Ok(answer) = client.post(&url).bearer_auth(KEY).multipart(form).send().await else { break };
        assert!(answer.status().is_success() || answer.status().as_u16() == 503, "{}", answer.status());
        if answer.status().is_success() {
            done.push(number);
            acknowledged.fetch_add(1, Ordering::SeqCst);
        }
    }
    done
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_in_the_middle_of_uploads_loses_nothing_that_was_acknowledged() {
    let folder = data_folder();
    let client = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
    let settings = [("ACONTEXTD_JOB_LEASE", "1s"), ("LOG_LEVEL", "warn")];
    let mut program = Program::start(folder.path(), &settings);
    let disk: serde_json::Value = client
        .post(format!("{}/api/v1/disk", program.url))
        .bearer_auth(KEY)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let disk = disk["data"]["id"].as_str().unwrap().to_owned();
    let mut kept: Vec<Vec<usize>> = vec![Vec::new(); UPLOADERS];
    for round in 0..ROUNDS {
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let url = format!("{}/api/v1/disk/{disk}/artifact", program.url);
        let first = round * 10_000;
        let uploaders = (0..UPLOADERS).map(|uploader| {
            let (client, url, acknowledged) = (client.clone(), url.clone(), Arc::clone(&acknowledged));
            upload_until_the_end(client, url, uploader, first, acknowledged)
        });
        let uploading = futures_util::future::join_all(uploaders);
        let killing = async {
            // Not at the same moment in every round.
            let enough = 8 + 5 * round;
            crate::support::eventually("enough is stored", async || acknowledged.load(Ordering::SeqCst) >= enough)
                .await;
            program.kill();
        };
        let (done, ()) = tokio::join!(uploading, killing);
        for (all, new) in kept.iter_mut().zip(done) {
            all.extend(new);
        }
        program = Program::start(folder.path(), &settings);
        for (uploader, numbers) in kept.iter().enumerate() {
            // The last ones of this round, and one of long ago.
            for number in numbers.iter().rev().take(3).chain(numbers.first()) {
                check(&client, &program.url, &disk, uploader, *number).await;
            }
        }
    }
    for (uploader, numbers) in kept.iter().enumerate() {
        for number in numbers {
            check(&client, &program.url, &disk, uploader, *number).await;
        }
    }
    check_rows(folder.path()).await;
    assert!(program.stop().success());
}

async fn check(client: &reqwest::Client, url: &str, disk: &str, uploader: usize, number: usize) {
    let url = format!("{url}/api/v1/disk/{disk}/artifact/download?file_path=/{uploader}/{number}.txt");
    let answer = client.get(url).bearer_auth(KEY).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 200, "/{uploader}/{number}.txt was acknowledged");
    let bytes = answer.bytes().await.unwrap();
    assert!(bytes == content(uploader, number), "/{uploader}/{number}.txt has other bytes");
}

/// Every file has its version, every version its live blob, every blob its object with those bytes, and there is no object
/// without a row.
async fn check_rows(folder: &std::path::Path) {
    let options =
        PgConnectOptions::new_without_pgpass().socket(folder.join("run")).username("acontext").database("acontext");
    let mut conn = options.connect().await.unwrap();
    let half: i64 = sqlx::query_scalar(
        "select count(*) from artifacts a
         full join (select * from artifact_versions where to_revision is null) v using (disk_id, path, filename)
         left join blobs b on b.id = v.blob_id and b.state = 'live'
         where a.id is null or v.blob_id is null or b.id is null",
    )
    .fetch_one(&mut conn)
    .await
    .unwrap();
    assert_eq!(half, 0, "something is half there");
    let rows: Vec<(String, String, String)> =
        sqlx::query_as("select object_key, sha256, state from blobs").fetch_all(&mut conn).await.unwrap();
    let mut objects = walk(&folder.join("objects"));
    for (key, sha256, state) in rows {
        let (project, id) = key.split_once('/').unwrap();
        let path = folder.join("objects").join(project).join(&id[id.len() - 2..]).join(id);
        match std::fs::read(&path) {
            Ok(bytes) => assert_eq!(hex::encode(digest::digest(&digest::SHA256, &bytes)), sha256, "{key}, {state}"),
            Err(_) => assert_ne!(state, "live", "{key} has no object"),
        }
        objects.retain(|object| *object != path);
    }
    assert_eq!(objects, [] as [std::path::PathBuf; 0], "objects without a row");
    conn.close().await.unwrap();
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

/// Stores one message after the other until the server is gone; answers with the ids that were acknowledged, in order.
async fn speak_until_the_end(
    client: reqwest::Client,
    urls: Vec<String>,
    writer: usize,
    acknowledged: Arc<AtomicUsize>,
) -> Vec<(usize, String)> {
    let mut said = Vec::new();
    for number in 0.. {
        // To the session that all share, and to one that few do.
        let session = if number % 2 == 0 { 0 } else { 1 + writer % (urls.len() - 1) };
        // Short ones are committed together, long ones alone.
        let text = format!("{writer} ").repeat([10, 300, 200_000][number % 3]);
        let body = serde_json::json!({"blob": {"role": "user", "content": text}});
        let Ok(answer) = client.post(&urls[session]).bearer_auth(KEY).json(&body).send().await else { break };
        let status = answer.status();
        assert!(status.is_success() || status.as_u16() == 503, "{status}");
        if status.is_success() {
            // The answer may have been cut off: what came whole is a promise.
            let Ok(stored) = answer.json::<serde_json::Value>().await else { break };
            said.push((session, stored["data"]["id"].as_str().unwrap().to_owned()));
            acknowledged.fetch_add(1, Ordering::SeqCst);
        }
    }
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_in_the_middle_of_conversations_loses_no_message_and_keeps_their_order() {
    let folder = data_folder();
    let client = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
    let settings = [("LOG_LEVEL", "warn")];
    let mut program = Program::start(folder.path(), &settings);
    let mut sessions: Vec<String> = Vec::new();
    for _ in 0..4 {
        let made = client.post(format!("{}/api/v1/session", program.url)).bearer_auth(KEY).send().await.unwrap();
        let made: serde_json::Value = made.json().await.unwrap();
        sessions.push(made["data"]["id"].as_str().unwrap().to_owned());
    }
    let mut kept: Vec<Vec<(usize, String)>> = vec![Vec::new(); UPLOADERS];
    for round in 0..ROUNDS / 2 {
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let url = |session: &String| format!("{}/api/v1/session/{session}/messages", program.url);
        let urls: Vec<String> = sessions.iter().map(url).collect();
        let writers = (0..UPLOADERS)
            .map(|writer| speak_until_the_end(client.clone(), urls.clone(), writer, Arc::clone(&acknowledged)));
        let killing = async {
            // Not at the same moment in every round.
            let enough = 20 + 13 * round;
            crate::support::eventually("enough is said", async || acknowledged.load(Ordering::SeqCst) >= enough).await;
            program.kill();
        };
        let (said, ()) = tokio::join!(futures_util::future::join_all(writers), killing);
        for (all, new) in kept.iter_mut().zip(said) {
            all.extend(new);
        }
        program = Program::start(folder.path(), &settings);
    }
    for (number, session) in sessions.iter().enumerate() {
        let ids = conversation(&client, &program.url, session).await;
        for said in &kept {
            let places = said.iter().filter(|(of, _)| *of == number).map(|(_, id)| {
                ids.iter().position(|known| known == id).unwrap_or_else(|| panic!("{id} was acknowledged"))
            });
            assert!(places.is_sorted(), "what one writer said is in the order it was said");
        }
    }
    assert!(program.stop().success());
}

/// The ids of a session's messages, walked in pages; their chain must be whole and their texts too.
async fn conversation(client: &reqwest::Client, url: &str, session: &str) -> Vec<String> {
    let mut ids: Vec<String> = Vec::new();
    let mut query = "format=acontext&limit=20".to_owned();
    loop {
        let url = format!("{url}/api/v1/session/{session}/messages?{query}");
        let page: serde_json::Value = client.get(url).bearer_auth(KEY).send().await.unwrap().json().await.unwrap();
        for item in page["data"]["items"].as_array().unwrap() {
            assert_eq!(item["parent_id"].as_str(), ids.last().map(String::as_str), "the chain is whole");
            let text = item["parts"][0]["text"].as_str().unwrap();
            let (writer, rest) = text.split_at(text.find(' ').unwrap() + 1);
            assert!(text.len() % writer.len() == 0 && rest.starts_with(writer), "the text is whole");
            ids.push(item["id"].as_str().unwrap().to_owned());
        }
        let Some(cursor) = page["data"]["next_cursor"].as_str() else { break };
        query = format!("format=acontext&limit=20&cursor={cursor}");
    }
    let mut once = ids.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), ids.len(), "nothing is there twice");
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_lets_an_upload_finish() {
    let folder = data_folder();
    let program = Program::start(folder.path(), &[]);
    let client = reqwest::Client::new();
    let disk: serde_json::Value = client
        .post(format!("{}/api/v1/disk", program.url))
        .bearer_auth(KEY)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let path = format!("/api/v1/disk/{}/artifact", disk["data"]["id"].as_str().unwrap());
    // A body that comes in two halves, with the signal between them.
    let address = program.url.trim_start_matches("http://").to_owned();
    let mut upload = TcpStream::connect(&address).await.unwrap();
    let first = "--b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"halves.txt\"\r\n\r\nfirst half, ";
    let second = "second half\r\n--b--\r\n";
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {KEY}\r\nexpect: 100-continue\r\n\
         content-type: multipart/form-data; boundary=b\r\ncontent-length: {}\r\n\r\n",
        first.len() + second.len()
    );
    upload.write_all(head.as_bytes()).await.unwrap();
    // Said by a server that reads the body: from here on the request is one it must finish.
    let mut go_on = [0; 25];
    upload.read_exact(&mut go_on).await.unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    upload.write_all(first.as_bytes()).await.unwrap();
    let stop = tokio::task::spawn_blocking(move || program.stop());
    eventually("the port is closed", async || TcpStream::connect(&address).await.is_err()).await;
    upload.write_all(second.as_bytes()).await.unwrap();
    let mut answer = String::new();
    upload.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    assert!(stop.await.unwrap().success());
}

/// Sends one request after the other, each with a key of its own and again until it is answered, as clients do; ends when the
/// server is gone. What is not answered then is the first thing that is sent to the next one.
async fn act_until_the_end(
    client: reqwest::Client,
    session: String,
    worker: usize,
    first: usize,
    answered: Arc<AtomicUsize>,
) -> usize {
    for number in first.. {
        let key = format!("{worker}-{number}");
        let (path, body) = match number % 2 {
            0 => ("events", serde_json::json!({"type": "t", "data": {"key": key}})),
            _ => ("messages", serde_json::json!({"blob": {"role": "user", "content": key}})),
        };
        let request = client.post(format!("{session}/{path}")).bearer_auth(KEY).header("idempotency-key", &key);
        let Ok(answer) = request.json(&body).send().await else { return number };
        let status = answer.status();
        // The answer may have been cut off.
        if !status.is_success() || answer.bytes().await.is_err() {
            assert!(status.is_success() || status.as_u16() == 503, "{status}");
            return number;
        }
        answered.fetch_add(1, Ordering::SeqCst);
    }
    first
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_in_the_middle_of_requests_with_keys_makes_none_act_twice() {
    let folder = data_folder();
    let client = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
    let settings = [("LOG_LEVEL", "warn")];
    let mut program = Program::start(folder.path(), &settings);
    let made = client.post(format!("{}/api/v1/session", program.url)).bearer_auth(KEY).send().await.unwrap();
    let made: serde_json::Value = made.json().await.unwrap();
    let session = made["data"]["id"].as_str().unwrap().to_owned();
    let mut next = vec![0; UPLOADERS];
    for round in 0..ROUNDS / 4 {
        let answered = Arc::new(AtomicUsize::new(0));
        let url = format!("{}/api/v1/session/{session}", program.url);
        let workers = next.iter().enumerate().map(|(worker, first)| {
            act_until_the_end(client.clone(), url.clone(), worker, *first, Arc::clone(&answered))
        });
        let killing = async {
            // Not at the same moment in every round.
            let enough = 20 + 13 * round;
            crate::support::eventually("enough is done", async || answered.load(Ordering::SeqCst) >= enough).await;
            program.kill();
        };
        let (ends, ()) = tokio::join!(futures_util::future::join_all(workers), killing);
        next = ends;
        program = Program::start(folder.path(), &settings);
    }
    let options = PgConnectOptions::new_without_pgpass().socket(folder.path().join("run"));
    let mut conn = options.username("acontext").database("acontext").connect().await.unwrap();
    let keys: Vec<String> = sqlx::query_scalar(
        "select data ->> 'key' from session_events
         union all select convert_from(content, 'utf8')::jsonb ->> 'content' from messages",
    )
    .fetch_all(&mut conn)
    .await
    .unwrap();
    conn.close().await.unwrap();
    for (worker, end) in next.into_iter().enumerate() {
        for number in 0..=end {
            let key = format!("{worker}-{number}");
            let times = keys.iter().filter(|known| **known == key).count();
            assert!(times == 1 || (number == end && times == 0), "{key} acted {times} times");
        }
    }
    assert!(program.stop().success());
}
