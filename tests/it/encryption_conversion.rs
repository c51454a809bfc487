//! Encryption conversions: projects are encrypted and decrypted while they are in use, and the job is interrupted at
//! every step.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use acontextd::http::memory::Reservations;
use acontextd::jobs::periodic;
use axum::http::Method;
use chrono::{DateTime, Utc};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::client::{Client, Form};
use crate::support::memory::MemoryObjectStore;
use crate::support::samples::{operations, sample_request};
use crate::support::{TestApp, TestConfig, run_with, wait_until};

/// Returns a configuration with a model, so that jobs can finish.
fn with_model() -> TestConfig {
    TestConfig::default().with("LLM_SDK", "mock").with("SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS", "0")
}

async fn change_encryption(client: &Client, action: &str) {
    client.post(&format!("/api/v1/project/{action}"), json!({})).await.assert_status(200);
}

async fn encryption_status(client: &Client) -> Value {
    client.get("/api/v1/project/encryption").await.data()
}

/// Counts the messages and live blobs that do not have the given storage format.
async fn count_in_other_format(app: &TestApp, encrypted: bool) -> i64 {
    let (messages, objects): (i64, i64) = sqlx::query_as(
        "select (select count(*) from messages where (encrypted_as is null) = $1),
                (select count(*) from blobs where state = 'live' and (encryption_format is null) = $1)",
    )
    .bind(encrypted)
    .fetch_one(&*app.app.db)
    .await
    .unwrap();
    messages + objects
}

/// Runs jobs while `work` runs, and then until none is due, because a runner that is dropped may have claimed jobs.
async fn while_jobs_run<T>(app: &TestApp, work: impl Future<Output = T>) -> T {
    let work = async {
        let done = work.await;
        app.until_idle().await;
        done
    };
    tokio::select! {
        ended = app.run_jobs() => panic!("the runner ended: {ended:?}"),
        done = work => done,
    }
}

/// Creates a few messages and files. Returns the ids of their session and disk.
async fn create_content(client: &Client) -> (String, String) {
    let (session, disk) = (client.new_session().await, client.new_disk().await);
    for n in 0..3 {
        client.store_text(&session, &format!("message {n}")).await;
        client.upload(&disk, "/", &format!("{n}.txt"), format!("file {n}")).await;
    }
    (session, disk)
}

async fn assert_readable(client: &Client, (session, disk): &(String, String)) {
    let page = client.messages(session, "").await;
    for n in 0..3 {
        assert_eq!(page["items"][n]["content"], format!("message {n}"));
        assert_eq!(client.download(disk, &format!("{n}.txt")).await.unwrap(), format!("file {n}").into_bytes());
    }
}

/// Asserts that every object has a row and every row has an object.
async fn assert_rows_match_objects(app: &TestApp) {
    app.app.blobs.sweep().await.unwrap();
    let mut rows: Vec<String> =
        sqlx::query_scalar("select object_key from blobs").fetch_all(&*app.app.db).await.unwrap();
    rows.sort_unstable();
    assert_eq!(rows, app.blobs.keys());
}

#[tokio::test]
async fn a_conversion_interrupted_at_any_step_continues_without_loss() {
    for encrypts in [true, false] {
        for step in 0.. {
            let mut was_interrupted = true;
            run_with(with_model(), async |app| was_interrupted = interrupt_conversion(&app, encrypts, step).await)
                .await;
            if !was_interrupted {
                // Each of three objects is put and deleted, and there is a step before and after each put and delete.
                assert!(step >= 12, "only {step} steps were found");
                break;
            }
        }
    }
}

/// Pauses a conversion at a step, and lets another process finish it. Returns `false` if there is no such step.
async fn interrupt_conversion(app: &TestApp, encrypts: bool, step: usize) -> bool {
    let client = app.project().await;
    let content = create_content(&client).await;
    if !encrypts {
        change_encryption(&client, "encrypt").await;
        app.drain_jobs().await;
    }
    change_encryption(&client, if encrypts { "encrypt" } else { "decrypt" }).await;
    app.blobs.pause_at_step(step);
    let paused_or_done = async {
        wait_until("the conversion is paused or done", async || {
            app.blobs.is_paused() || encryption_status(&client).await["state"] == "idle"
        })
        .await;
        app.blobs.is_paused()
    };
    let is_paused = tokio::select! {
        ended = app.run_jobs() => panic!("the runner ended: {ended:?}"),
        is_paused = paused_or_done => is_paused,
    };
    assert_readable(&client, &content).await;
    if is_paused {
        let status = encryption_status(&client).await;
        assert_eq!(status["state"], if encrypts { "encrypting" } else { "decrypting" });
        // The lease expires, so that the process appears to be dead.
        app.execute("update jobs set lease_expires_at = now() - interval '1 second' where state = 'running'").await;
        let second_process = app.second_process(with_model()).await;
        periodic::reclaim_expired(second_process.runner()).await.unwrap();
        app.execute("update jobs set run_at = now()").await;
        second_process.drain_jobs().await;
        assert_eq!(count_in_other_format(app, encrypts).await, 0);
        assert_readable(&client, &content).await;
        // The process was only paused. What it still does must not do any harm.
        app.blobs.resume();
        app.app.process.shutdown.cancel();
        app.app.process.background_tasks.close();
        app.app.process.background_tasks.wait().await;
        assert_rows_match_objects(&second_process).await;
    } else {
        assert_rows_match_objects(app).await;
    }
    let done = encryption_status(&client).await;
    assert_eq!((&done["state"], &done["enabled"], &done["error"]), (&json!("idle"), &json!(encrypts), &Value::Null));
    assert_eq!(count_in_other_format(app, encrypts).await, 0);
    assert_readable(&client, &content).await;
    is_paused
}

#[tokio::test]
async fn writes_during_a_conversion_succeed_and_use_the_new_format() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let (session, disk) = create_content(&client).await;
        let (stop, count) = (AtomicBool::new(false), AtomicUsize::new(0));
        let writers = join_all((0..8).map(|n| write_until_stopped(&client, &session, &disk, n, &stop, &count)));
        let changes = async {
            for action in ["encrypt", "decrypt", "encrypt", "decrypt", "encrypt"] {
                let before = count.load(Ordering::SeqCst);
                wait_until("more content is stored", async || count.load(Ordering::SeqCst) > before + 20).await;
                change_encryption(&client, action).await;
                if action == "decrypt" {
                    // The next change may reverse this conversion before it is done.
                    continue;
                }
                wait_until("the conversion is done", async || encryption_status(&client).await["state"] == "idle")
                    .await;
                assert_eq!(count_in_other_format(&app, true).await, 0, "while the writers run");
            }
            stop.store(true, Ordering::SeqCst);
        };
        let (stored, ()) = while_jobs_run(&app, futures_util::future::join(writers, changes)).await;
        assert_eq!(count_in_other_format(&app, true).await, 0);
        assert_eq!(app.tables_containing("content-of").await, [""; 0]);
        assert_eq!(app.blobs.keys_containing(b"content-of"), [""; 0]);
        // Everything that was acknowledged is stored exactly once.
        let mut texts: Vec<String> = Vec::new();
        let mut query = "limit=200".to_owned();
        loop {
            let page = client.messages(&session, &query).await;
            texts.extend(page["items"].as_array().unwrap().iter().map(|item| item["content"].to_string()));
            let Some(cursor) = page["next_cursor"].as_str() else { break };
            query = format!("limit=200&cursor={cursor}");
        }
        for (writer, numbers) in stored.iter().enumerate() {
            for number in numbers {
                let name = format!("content-of-{writer}-{number}-");
                assert_eq!(texts.iter().filter(|text| text.contains(&name)).count(), 1, "{name}");
                let file = client.download(&disk, &format!("/{writer}-{number}.txt")).await.unwrap();
                assert_eq!(file, format!("{name} in a file").into_bytes());
            }
        }
    })
    .await;
}

/// Stores messages (every third with a file, every third with an `Idempotency-Key`) and files, and reads the files.
/// Returns the numbers of those that were stored.
async fn write_until_stopped(
    client: &Client,
    session: &str,
    disk: &str,
    writer: usize,
    stop: &AtomicBool,
    count: &AtomicUsize,
) -> Vec<usize> {
    let mut stored = Vec::new();
    for number in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let name = format!("content-of-{writer}-{number}-");
        let path = format!("/api/v1/session/{session}/messages");
        let response = match number % 3 {
            0 => client.store_message(session, "openai", json!({"role": "user", "content": name})).await,
            1 => {
                let body = json!({"blob": {"role": "user", "content": name}});
                client.json_with_key(&name, Method::POST, &path, &body).await
            }
            _ => {
                let parts = json!([{"type": "text", "text": name}, {"type": "file", "file_field": "f"}]);
                let payload = json!({"format": "acontext", "blob": {"role": "user", "parts": parts}}).to_string();
                client
                    .store_form_message(session, Form::new().text("payload", &payload).file("f", "f.txt", &name))
                    .await
            }
        };
        response.assert_status(201);
        let content = format!("{name} in a file");
        client.upload(disk, "/", &format!("{writer}-{number}.txt"), &content).await;
        assert_eq!(client.download(disk, &format!("{writer}-{number}.txt")).await.unwrap(), content.as_bytes());
        let grep = client.get(&format!("/api/v1/disk/{disk}/artifact/grep?query={name}&limit=1")).await;
        grep.assert_status(200);
        assert_eq!(grep.data()[0]["filename"], format!("{writer}-{number}.txt"));
        if number % 10 == 9 {
            client.post(&format!("/api/v1/session/{session}/copy"), json!({})).await.assert_status(200);
        }
        stored.push(number);
        count.fetch_add(1, Ordering::SeqCst);
    }
    stored
}

#[tokio::test]
async fn a_conversion_that_was_reversed_twice_restarts() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let content = create_content(&client).await;
        change_encryption(&client, "encrypt").await;
        app.drain_jobs().await;
        // The conversion is paused at its first file, when all messages are decrypted.
        change_encryption(&client, "decrypt").await;
        app.blobs.pause_at_step(0);
        let paused = wait_until("the conversion is paused", async || app.blobs.is_paused());
        tokio::select! {
            ended = app.run_jobs() => panic!("the runner ended: {ended:?}"),
            () = paused => {}
        }
        // In the meantime the project is encrypted, a message is stored, and the project is decrypted again.
        change_encryption(&client, "encrypt").await;
        client.store_text(&content.0, "encrypted in the meantime").await;
        change_encryption(&client, "decrypt").await;
        app.blobs.resume();
        app.drain_jobs().await;
        assert_eq!(count_in_other_format(&app, false).await, 0);
        let done = encryption_status(&client).await;
        assert_eq!((&done["state"], &done["done"]), (&json!("idle"), &done["total"]), "{done}");
        assert_eq!(
            app.fetch_scalar::<i64>("select count(*) from jobs").await,
            0,
            "a job waits for a key that it no longer requires"
        );
        assert_readable(&client, &content).await;
    })
    .await;
}

#[tokio::test]
async fn every_operation_works_on_an_encrypted_project() {
    run_with(with_model().with("SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS", "1h"), async |app| {
        let all = async {
            for operation in operations().iter().filter(|operation| operation.contains(" /api/v1/")) {
                if operation.contains("/material/") {
                    continue;
                }
                let client = app.project().await;
                change_encryption(&client, "encrypt").await;
                let request = sample_request(&app, &client, operation).await;
                let response = request.send(&client).await;
                assert!(response.status.is_success(), "{operation}: {}", response.text());
            }
        };
        while_jobs_run(&app, all).await;
    })
    .await;
}

#[tokio::test]
async fn jobs_for_encrypted_messages_contain_the_wrapped_key() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        change_encryption(&client, "encrypt").await;
        app.drain_jobs().await;
        let session = client.new_session().await;
        client.store_text(&session, "to be observed").await;
        let jobs_with_key = "select count(*) from jobs where kind = 'observe' and encrypted_kek is not null";
        assert_eq!(app.fetch_scalar::<i64>(jobs_with_key).await, 1);
        app.drain_jobs().await;
        let status = async || client.get(&format!("/api/v1/session/{session}/observing_status")).await.data();
        assert_eq!(status().await["observed"], 1);
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from jobs").await, 0, "the key is deleted with the job");
    })
    .await;
}

#[tokio::test]
async fn jobs_without_a_key_wait_until_a_request_provides_it() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        change_encryption(&client, "encrypt").await;
        app.drain_jobs().await;
        let space = client.new_space().await;
        for request in ["store", "flush", "flush of another session", "poll", "learn", "poll of the space"] {
            let session = client.new_session().await;
            let learn = async || {
                let path = format!("/api/v1/learning_spaces/{space}/learn");
                client.post(&path, json!({"session_id": session})).await.assert_status(201);
            };
            if request == "poll of the space" {
                learn().await;
            }
            client.store_text(&session, "waits").await;
            app.execute("update jobs set encrypted_kek = null").await;
            app.drain_jobs().await;
            let job = "select state, last_error from jobs where kind = 'observe' and dedupe_key = $1";
            let job: Vec<(String, Option<String>)> =
                sqlx::query_as(job).bind(&session).fetch_all(&*app.app.db).await.unwrap();
            let [(state, Some(error))] = &job[..] else { panic!("before {request}: {job:?}") };
            assert!(state == "ready" && error.contains("master key is missing"), "before {request}: {job:?}");
            // Requests find the job by its wait reason. The error is only a text for operators.
            app.execute("update jobs set last_error = 'another text'").await;
            let session_path = format!("/api/v1/session/{session}");
            let provide_key = async {
                match request {
                    "store" => drop(client.store_text(&session, "provides the key").await),
                    "flush" => client.post(&format!("{session_path}/flush"), json!({})).await.assert_status(200),
                    "flush of another session" => {
                        let other = client.new_session().await;
                        let flush = format!("/api/v1/session/{other}/flush");
                        client.post(&flush, json!({})).await.assert_status(200);
                    }
                    "poll" => client.get(&format!("{session_path}/observing_status")).await.assert_status(200),
                    "learn" => learn().await,
                    _ => {
                        let sessions = format!("/api/v1/learning_spaces/{space}/sessions");
                        client.get(&sessions).await.assert_status(200);
                    }
                }
            };
            while_jobs_run(&app, async {
                provide_key.await;
                wait_until(&format!("the messages are observed after: {request}"), async || {
                    app.fetch_scalar::<i64>(
                        "select count(*) from messages where session_task_process_status = 'pending'",
                    )
                    .await
                        == 0
                })
                .await;
            })
            .await;
        }
    })
    .await;
}

#[tokio::test]
async fn jobs_without_a_key_run_after_the_project_is_decrypted() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        change_encryption(&client, "encrypt").await;
        app.drain_jobs().await;
        let session = client.new_session().await;
        client.store_text(&session, "waits").await;
        app.execute("update jobs set encrypted_kek = null").await;
        app.drain_jobs().await;
        let waiting = "select count(*) from jobs where wait_reason = 'key'";
        assert_eq!(app.fetch_scalar::<i64>(waiting).await, 1);
        change_encryption(&client, "decrypt").await;
        app.drain_jobs().await;
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from jobs").await, 0);
        assert_eq!(
            app.fetch_scalar::<i64>("select count(*) from messages where session_task_process_status = 'success'")
                .await,
            1
        );
    })
    .await;
}

#[tokio::test]
async fn a_permanently_failed_job_has_no_key() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        change_encryption(&client, "encrypt").await;
        app.drain_jobs().await;
        let session = client.new_session().await;
        client.store_text(&session, "never observed").await;
        app.execute("update jobs set payload = '{}'").await;
        app.drain_jobs().await;
        let without_key = "select count(*) filter (where encrypted_kek is null) from jobs where state = 'failed'";
        assert_eq!(app.fetch_scalar::<i64>(without_key).await, 1);
    })
    .await;
}

#[tokio::test]
async fn an_upload_begun_before_the_encryption_leaves_no_plaintext() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        // The upload is writing plaintext to the object store when the project is encrypted.
        let permits = app.blobs.puts.acquire_many(MemoryObjectStore::PUTS).await.unwrap();
        let upload = client.upload(&disk, "/", "a.txt", "content-of-an-upload");
        let encrypt = async {
            wait_until("the upload has begun", async || {
                app.fetch_scalar::<i64>("select count(*) from blobs where state = 'pending'").await == 1
            })
            .await;
            change_encryption(&client, "encrypt").await;
            app.drain_jobs().await;
            drop(permits);
        };
        tokio::join!(upload, encrypt);
        wait_until("the plaintext is deleted", async || app.blobs.keys_containing(b"content-of").is_empty()).await;
        assert_eq!(client.download(&disk, "a.txt").await.unwrap(), b"content-of-an-upload");
        assert_eq!(count_in_other_format(&app, true).await, 0);
        assert_rows_match_objects(&app).await;
    })
    .await;
}

/// The contents of a page over 1 MiB are loaded after its rows, and a conversion can rewrite them in between.
#[tokio::test]
async fn a_large_page_is_read_correctly_during_a_conversion() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        for length in [400 << 10, 400 << 10, 400 << 10, 3 << 20] {
            client.store_text(&session, &"x".repeat(length)).await;
        }
        let page = client.messages(&session, "format=openai&limit=10").await["items"].clone();
        for action in ["encrypt", "decrypt"] {
            let start: DateTime<Utc> = app.fetch_scalar("select clock_timestamp()").await;
            // Takes all memory for bodies, so that the request waits between its queries.
            let reservations = Reservations::default();
            app.app.platform.request_context.body_memory.reserve_body(&reservations, u64::MAX).await.unwrap();
            let convert = async {
                wait_until("the rows are read", async || {
                    let reads = sqlx::query_scalar::<_, i64>(
                        "select count(*) from pg_stat_activity where datname = current_database() and state = 'idle'
                         and query like 'with page as%' and query_start > $1",
                    );
                    reads.bind(start).fetch_one(&*app.app.db).await.unwrap() > 0
                })
                .await;
                change_encryption(&client, action).await;
                while_jobs_run(&app, async {}).await;
                assert_eq!(count_in_other_format(&app, action == "encrypt").await, 0);
                drop(reservations);
            };
            let (read, ()) = tokio::join!(client.messages(&session, "format=openai&limit=10"), convert);
            assert_eq!(read["items"], page, "{action}");
        }
    })
    .await;
}

/// A copy takes longer than the grace period, so the sweep deletes it before the conversion uses it.
#[tokio::test]
async fn an_object_whose_copy_was_deleted_is_converted_later() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a.txt", "content").await;
        change_encryption(&client, "encrypt").await;
        // After the new object was written.
        app.blobs.pause_at_step(1);
        let paused = wait_until("the conversion is paused", async || app.blobs.is_paused());
        tokio::select! {
            ended = app.run_jobs() => panic!("the runner ended: {ended:?}"),
            () = paused => {}
        }
        app.execute("delete from blobs where state = 'pending'").await;
        app.blobs.resume();
        let retry = async {
            wait_until("the conversion has ended", async || {
                app.execute("update jobs set run_at = now() where state = 'ready'").await;
                encryption_status(&client).await["state"] == "idle"
            })
            .await;
        };
        while_jobs_run(&app, retry).await;
        assert_eq!(count_in_other_format(&app, true).await, 0);
        let done = encryption_status(&client).await;
        assert_eq!((&done["state"], &done["done"], &done["total"]), (&json!("idle"), &json!(1), &json!(1)), "{done}");
        assert_eq!(client.download(&disk, "/a.txt").await.unwrap(), b"content");
    })
    .await;
}
