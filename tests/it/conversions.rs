//! Projects are encrypted and opened again while they are at work, and the job that does it is cut off at every step.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use acontextd::jobs::periodic;
use axum::http::Method;
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::client::{Client, Form};
use crate::support::memory::MemoryBlobs;
use crate::support::samples::{operations, sample};
use crate::support::{Setup, TestApp, eventually, run_with};

/// With a model, so that jobs come to their end.
fn with_model() -> Setup {
    Setup::default().with("LLM_SDK", "mock").with("SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS", "0")
}

async fn change(client: &Client, way: &str) {
    client.post(&format!("/api/v1/project/{way}"), json!({})).await.assert_status(200);
}

async fn state(client: &Client) -> Value {
    client.get("/api/v1/project/encryption").await.data()
}

/// How many messages and objects are not as the project wants them.
async fn in_other_form(app: &TestApp, sealed: bool) -> i64 {
    let (messages, objects): (i64, i64) = sqlx::query_as(
        "select (select count(*) from messages where (encrypted_as is null) = $1),
                (select count(*) from blobs where state = 'live' and (encryption_format is null) = $1)",
    )
    .bind(sealed)
    .fetch_one(&*app.app.db)
    .await
    .unwrap();
    messages + objects
}

/// Runs the queue beside something, and then to its end: a runner that is dropped while there is work may have claimed some.
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

/// A few messages and files.
async fn fill(client: &Client) -> (String, String) {
    let (session, disk) = (client.new_session().await, client.new_disk().await);
    for n in 0..3 {
        client.say_text(&session, &format!("message {n}")).await;
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

/// Every object has a row, and every row its object.
async fn assert_nothing_left_over(app: &TestApp) {
    app.app.blobs.sweep().await.unwrap();
    let mut rows: Vec<String> =
        sqlx::query_scalar("select object_key from blobs").fetch_all(&*app.app.db).await.unwrap();
    rows.sort_unstable();
    assert_eq!(rows, app.blobs.keys());
}

#[tokio::test]
async fn cut_off_at_any_step_it_goes_on_and_loses_nothing() {
    for seals in [true, false] {
        for step in 0.. {
            let mut was_cut_off = true;
            run_with(with_model(), async |app| was_cut_off = cut_off(&app, seals, step).await).await;
            if !was_cut_off {
                // Two puts and two deletes, each before and after it is done, of three objects.
                assert!(step >= 12, "only {step} steps were found");
                break;
            }
        }
    }
}

/// Whether there is a step of that number at which the job was held up, while another process finished it.
async fn cut_off(app: &TestApp, seals: bool, step: usize) -> bool {
    let client = app.project().await;
    let things = fill(&client).await;
    if !seals {
        change(&client, "encrypt").await;
        app.drain_jobs().await;
    }
    change(&client, if seals { "encrypt" } else { "decrypt" }).await;
    app.blobs.hold_at(step);
    let held_or_done = async {
        eventually("it is held up, or done", async || app.blobs.is_held() || state(&client).await["state"] == "idle")
            .await;
        app.blobs.is_held()
    };
    let held = tokio::select! {
        ended = app.run_jobs() => panic!("the runner ended: {ended:?}"),
        held = held_or_done => held,
    };
    assert_readable(&client, &things).await;
    if held {
        let half = state(&client).await;
        assert_eq!(half["state"], if seals { "encrypting" } else { "decrypting" });
        // As far as anybody can tell, that process is dead.
        app.execute("update jobs set lease_expires_at = now() - interval '1 second' where state = 'running'").await;
        let twin = app.twin(with_model()).await;
        periodic::reclaim_expired(twin.runner()).await.unwrap();
        app.execute("update jobs set run_at = now()").await;
        twin.drain_jobs().await;
        assert_eq!(in_other_form(app, seals).await, 0);
        assert_readable(&client, &things).await;
        // It was not; and what it still does, does no harm.
        app.blobs.let_go();
        app.app.process.shutdown.cancel();
        app.app.process.background_tasks.close();
        app.app.process.background_tasks.wait().await;
        assert_nothing_left_over(&twin).await;
    } else {
        assert_nothing_left_over(app).await;
    }
    let done = state(&client).await;
    assert_eq!((&done["state"], &done["enabled"], &done["error"]), (&json!("idle"), &json!(seals), &Value::Null));
    assert_eq!(in_other_form(app, seals).await, 0);
    assert_readable(&client, &things).await;
    held
}

#[tokio::test]
async fn whoever_writes_meanwhile_is_never_refused_and_leaves_nothing_in_the_other_form() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let (session, disk) = fill(&client).await;
        let (stop, count) = (AtomicBool::new(false), AtomicUsize::new(0));
        let writers = join_all((0..8).map(|n| write_until_stopped(&client, &session, &disk, n, &stop, &count)));
        let flips = async {
            for way in ["encrypt", "decrypt", "encrypt", "decrypt", "encrypt"] {
                let before = count.load(Ordering::SeqCst);
                eventually("there is work", async || count.load(Ordering::SeqCst) > before + 20).await;
                change(&client, way).await;
                if way == "decrypt" {
                    // Turned back before it is done, half of the time.
                    continue;
                }
                eventually("it is done", async || state(&client).await["state"] == "idle").await;
                assert_eq!(in_other_form(&app, true).await, 0, "while all write");
            }
            stop.store(true, Ordering::SeqCst);
        };
        let (written, ()) = while_jobs_run(&app, futures_util::future::join(writers, flips)).await;
        assert_eq!(in_other_form(&app, true).await, 0);
        assert_eq!(app.find("content-of").await, [""; 0]);
        assert_eq!(app.blobs.find(b"content-of"), [""; 0]);
        // All that was acknowledged is there, once.
        let mut texts: Vec<String> = Vec::new();
        let mut query = "limit=200".to_owned();
        loop {
            let page = client.messages(&session, &query).await;
            texts.extend(page["items"].as_array().unwrap().iter().map(|item| item["content"].to_string()));
            let Some(cursor) = page["next_cursor"].as_str() else { break };
            query = format!("limit=200&cursor={cursor}");
        }
        for (writer, numbers) in written.iter().enumerate() {
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

/// Stores messages (every third with a file, every third with an Idempotency-Key) and files, and reads them; answers with the
/// numbers of what was stored.
async fn write_until_stopped(
    client: &Client,
    session: &str,
    disk: &str,
    writer: usize,
    stop: &AtomicBool,
    count: &AtomicUsize,
) -> Vec<usize> {
    let mut written = Vec::new();
    for number in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let name = format!("content-of-{writer}-{number}-");
        let path = format!("/api/v1/session/{session}/messages");
        let said = match number % 3 {
            0 => client.say(session, "openai", json!({"role": "user", "content": name})).await,
            1 => {
                let body = json!({"blob": {"role": "user", "content": name}});
                client.json_once(&name, Method::POST, &path, &body).await
            }
            _ => {
                let parts = json!([{"type": "text", "text": name}, {"type": "file", "file_field": "f"}]);
                let payload = json!({"format": "acontext", "blob": {"role": "user", "parts": parts}}).to_string();
                client.say_form(session, Form::new().text("payload", &payload).file("f", "f.txt", &name)).await
            }
        };
        said.assert_status(201);
        let content = format!("{name} in a file");
        client.upload(disk, "/", &format!("{writer}-{number}.txt"), &content).await;
        assert_eq!(client.download(disk, &format!("{writer}-{number}.txt")).await.unwrap(), content.as_bytes());
        let grep = client.get(&format!("/api/v1/disk/{disk}/artifact/grep?query={name}&limit=1")).await;
        grep.assert_status(200);
        assert_eq!(grep.data()[0]["filename"], format!("{writer}-{number}.txt"));
        if number % 10 == 9 {
            client.post(&format!("/api/v1/session/{session}/copy"), json!({})).await.assert_status(200);
        }
        written.push(number);
        count.fetch_add(1, Ordering::SeqCst);
    }
    written
}

#[tokio::test]
async fn what_was_turned_back_and_again_is_looked_through_anew() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let things = fill(&client).await;
        change(&client, "encrypt").await;
        app.drain_jobs().await;
        // Held up at its first file, when all messages are opened.
        change(&client, "decrypt").await;
        app.blobs.hold_at(0);
        let held = eventually("it is held up", async || app.blobs.is_held());
        tokio::select! {
            ended = app.run_jobs() => panic!("the runner ended: {ended:?}"),
            () = held => {}
        }
        // Meanwhile the project is encrypted, a message comes, and it is decrypted again.
        change(&client, "encrypt").await;
        client.say_text(&things.0, "sealed behind its back").await;
        change(&client, "decrypt").await;
        app.blobs.let_go();
        app.drain_jobs().await;
        assert_eq!(in_other_form(&app, false).await, 0);
        let done = state(&client).await;
        assert_eq!((&done["state"], &done["done"]), (&json!("idle"), &done["total"]), "{done}");
        assert_eq!(
            app.value::<i64>("select count(*) from jobs").await,
            0,
            "a job waits for a key that is needed no more"
        );
        assert_readable(&client, &things).await;
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
                change(&client, "encrypt").await;
                let request = sample(&app, &client, operation).await;
                let answer = request.send(&client).await;
                assert!(answer.status.is_success(), "{operation}: {}", answer.text());
            }
        };
        while_jobs_run(&app, all).await;
    })
    .await;
}

#[tokio::test]
async fn work_on_sealed_messages_is_given_the_key_and_takes_it_along() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        change(&client, "encrypt").await;
        app.drain_jobs().await;
        let session = client.new_session().await;
        client.say_text(&session, "to be observed").await;
        let keys = "select count(*) from jobs where kind = 'observe' and encrypted_kek is not null";
        assert_eq!(app.value::<i64>(keys).await, 1);
        app.drain_jobs().await;
        let status = async || client.get(&format!("/api/v1/session/{session}/observing_status")).await.data();
        assert_eq!(status().await["observed"], 1);
        assert_eq!(app.value::<i64>("select count(*) from jobs").await, 0, "the key is gone with the job");
    })
    .await;
}

#[tokio::test]
async fn work_without_a_key_waits_until_somebody_brings_it() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        change(&client, "encrypt").await;
        app.drain_jobs().await;
        let space = client.new_space().await;
        for bring in ["store", "flush", "poll", "learn", "poll of the space"] {
            let session = client.new_session().await;
            let learn = async || {
                let path = format!("/api/v1/learning_spaces/{space}/learn");
                client.post(&path, json!({"session_id": session})).await.assert_status(201);
            };
            if bring == "poll of the space" {
                learn().await;
            }
            client.say_text(&session, "waits").await;
            app.execute("update jobs set encrypted_kek = null").await;
            app.drain_jobs().await;
            let job = "select state, last_error from jobs where kind = 'observe' and dedupe_key = $1";
            let job: Vec<(String, Option<String>)> =
                sqlx::query_as(job).bind(&session).fetch_all(&*app.app.db).await.unwrap();
            assert_eq!(job, [("ready".to_owned(), Some("needs the project's key".to_owned()))], "before a {bring}");
            // The job is found by its wait reason; the error is for people.
            app.execute("update jobs set last_error = 'in other words'").await;
            let at = format!("/api/v1/session/{session}");
            let brought = async {
                match bring {
                    "store" => drop(client.say_text(&session, "brings it").await),
                    "flush" => client.post(&format!("{at}/flush"), json!({})).await.assert_status(200),
                    "poll" => client.get(&format!("{at}/observing_status")).await.assert_status(200),
                    "learn" => learn().await,
                    _ => {
                        let sessions = format!("/api/v1/learning_spaces/{space}/sessions");
                        client.get(&sessions).await.assert_status(200);
                    }
                }
            };
            while_jobs_run(&app, async {
                brought.await;
                eventually(&format!("it is observed after a {bring}"), async || {
                    app.value::<i64>("select count(*) from messages where session_task_process_status = 'pending'")
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
async fn work_without_a_key_goes_on_when_nothing_is_sealed_any_more() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        change(&client, "encrypt").await;
        app.drain_jobs().await;
        let session = client.new_session().await;
        client.say_text(&session, "waits").await;
        app.execute("update jobs set encrypted_kek = null").await;
        app.drain_jobs().await;
        let waiting = "select count(*) from jobs where wait_reason = 'key'";
        assert_eq!(app.value::<i64>(waiting).await, 1);
        change(&client, "decrypt").await;
        app.drain_jobs().await;
        assert_eq!(app.value::<i64>("select count(*) from jobs").await, 0);
        assert_eq!(
            app.value::<i64>("select count(*) from messages where session_task_process_status = 'success'").await,
            1
        );
    })
    .await;
}

#[tokio::test]
async fn a_job_that_failed_for_good_has_no_key_any_more() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        change(&client, "encrypt").await;
        app.drain_jobs().await;
        let session = client.new_session().await;
        client.say_text(&session, "never observed").await;
        app.execute("update jobs set payload = '{}'").await;
        app.drain_jobs().await;
        let kept = "select count(*) filter (where encrypted_kek is null) from jobs where state = 'failed'";
        assert_eq!(app.value::<i64>(kept).await, 1);
    })
    .await;
}

#[tokio::test]
async fn an_upload_that_was_begun_in_the_other_form_leaves_nothing() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        // The bytes are on their way into the store, as they are, when the project is encrypted.
        let held = app.blobs.puts.acquire_many(MemoryBlobs::PUTS).await.unwrap();
        let upload = client.upload(&disk, "/", "a.txt", "content-of-an-upload");
        let encrypt = async {
            eventually("the upload is under way", async || {
                app.value::<i64>("select count(*) from blobs where state = 'pending'").await == 1
            })
            .await;
            change(&client, "encrypt").await;
            app.drain_jobs().await;
            drop(held);
        };
        tokio::join!(upload, encrypt);
        eventually("what was in clear is gone", async || app.blobs.find(b"content-of").is_empty()).await;
        assert_eq!(client.download(&disk, "a.txt").await.unwrap(), b"content-of-an-upload");
        assert_eq!(in_other_form(&app, true).await, 0);
        assert_nothing_left_over(&app).await;
    })
    .await;
}
