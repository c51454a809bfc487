//! Encrypted projects: nothing of their content lies anywhere as it is, and all works as before.

use acontextd::crypto::ProjectKey;
use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::support::client::{Client, Form};
use crate::support::{PEPPER, Setup, TestApp, eventually, run, run_with};

/// Stands in all that is to be sealed.
pub const MARK: &str = "the-marked-words";

pub async fn encrypt(app: &TestApp, client: &Client) {
    client.post("/api/v1/project/encrypt", json!({})).await.assert_status(200);
    app.drain_jobs().await;
    assert_eq!(state(client).await, ("idle".to_owned(), true));
}

pub async fn decrypt(app: &TestApp, client: &Client) {
    client.post("/api/v1/project/decrypt", json!({})).await.assert_status(200);
    app.drain_jobs().await;
    assert_eq!(state(client).await, ("idle".to_owned(), false));
}

async fn state(client: &Client) -> (String, bool) {
    let said = client.get("/api/v1/project/encryption").await.data();
    assert_eq!(said["error"], Value::Null, "{said}");
    assert!(said["state"] != "idle" || said["done"] == said["total"], "{said}");
    (said["state"].as_str().unwrap().to_owned(), said["enabled"].as_bool().unwrap())
}

/// What a project has, and what is read of it.
pub struct Things {
    pub session: String,
    disk: String,
    skill: String,
}

impl Things {
    pub async fn make(client: &Client) -> Self {
        let (session, disk) = (client.new_session().await, client.new_disk().await);
        client.say_text(&session, &format!("said: {MARK}")).await;
        client.say_text(&session, &format!("{MARK} ").repeat(100_000)).await;
        let call = json!({"functionCall": {"name": "the-marked-words-f", "args": {"of": MARK}}});
        let said = client.say(&session, "gemini", json!({"role": "model", "parts": [call]})).await;
        said.assert_status(201);
        let blob =
            json!({"role": "user", "parts": [{"type": "text", "text": MARK}, {"type": "file", "file_field": "f"}]});
        let payload = json!({"format": "acontext", "blob": blob}).to_string();
        let form = Form::new().text("payload", &payload).file("f", "sent.txt", format!("sent: {MARK}"));
        client.say_form(&session, form).await.assert_status(201);
        client.upload(&disk, "/", "notes.md", format!("old: {MARK}")).await;
        client.upload(&disk, "/", "notes.md", format!("# {MARK}\nline\n")).await;
        client.upload(&disk, "/", "empty.txt", "").await;
        client.upload(&disk, "/", "large.txt", large()).await;
        let files = [("SKILL.md", "---\nname: kit\ndescription: A kit\n---\nthe-marked-words\n"), ("run.py", MARK)];
        let skill = client.upload_skill(&files).await;
        skill.assert_status(201);
        Self { session, disk, skill: skill.data()["id"].as_str().unwrap().to_owned() }
    }

    /// All that can be read, as it is told.
    async fn read(&self, client: &Client) -> Vec<String> {
        let Self { session, disk, skill } = self;
        let mut read = Vec::new();
        for format in ["acontext", "openai", "anthropic", "gemini"] {
            let plain = format!("/api/v1/session/{session}/messages?format={format}&with_asset_public_url=false");
            read.push(client.get(&plain).await.text());
            let edit = "[{\"type\":\"middle_out\",\"params\":{\"token_reduce_to\":1000}}]";
            let edit = acontextd::percent::encode(edit.as_bytes(), b"");
            read.push(client.get(&format!("{plain}&edit_strategies={edit}")).await.text());
        }
        for path in [
            format!("session/{session}/token_counts"),
            format!("disk/{disk}/artifact/download?file_path=notes.md"),
            format!("disk/{disk}/artifact/download?file_path=empty.txt"),
            format!("disk/{disk}/artifact/download?file_path=large.txt"),
            format!("disk/{disk}/artifact?file_path=notes.md&with_public_url=false"),
            format!("disk/{disk}/artifact/ls"),
            format!("disk/{disk}/artifact/grep?query=MARKED.words"),
            format!("disk/{disk}/artifact/glob?query=*.md"),
            format!("agent_skills/{skill}"),
            format!("agent_skills/{skill}/file?file_path=run.py"),
        ] {
            let answer = client.get(&format!("/api/v1/{path}")).await;
            assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text());
            read.push(answer.text());
        }
        let page: Value = serde_json::from_str(&read[0]).unwrap();
        let file = &page["data"]["items"][3]["parts"][1]["asset"]["s3_key"];
        let sent = format!("/api/v1/session/{session}/asset/download?s3_key={}", file.as_str().unwrap());
        assert_eq!(client.get(&sent).await.text(), format!("sent: {MARK}"));
        let large_path = format!("/api/v1/disk/{disk}/artifact/download?file_path=large.txt");
        let range = client.get_with(&large_path, "range", "bytes=65000-200000").await;
        assert_eq!((range.status.as_u16(), range.text().as_str()), (206, &large()[65_000..=200_000]));
        let zip = client.get(&format!("/api/v1/agent_skills/{skill}/download_zip")).await;
        let mut zip = zip::ZipArchive::new(std::io::Cursor::new(zip.bytes)).unwrap();
        read.push(std::io::read_to_string(zip.by_name("run.py").unwrap()).unwrap());
        read
    }
}

/// Longer than what stays in memory while it comes in, and than a chunk.
pub fn large() -> String {
    format!("{MARK} ").repeat(20_000)
}

/// Wants nothing of the content, and nothing of the key, in any table and in any object.
async fn assert_sealed(app: &TestApp, client: &Client) {
    assert_eq!(app.find(MARK).await, [""; 0]);
    assert_eq!(app.blobs.find(MARK.as_bytes()), [""; 0]);
    let master = master_key(client);
    let forms = [hex::encode(master), STANDARD.encode(master), URL_SAFE_NO_PAD.encode(master)];
    for form in forms {
        assert_eq!(app.find(form.trim_end_matches('=')).await, [""; 0]);
        assert_eq!(app.blobs.find(form.as_bytes()), [""; 0]);
    }
    assert_eq!(app.blobs.find(&master), [""; 0]);
    assert_eq!(app.find(client.key()).await, [""; 0]);
}

pub fn master_key(client: &Client) -> [u8; 32] {
    let key = ProjectKey::parse(client.key().strip_prefix("sk-ac-").unwrap());
    *key.master_key(PEPPER).unwrap().expect("a compact key")
}

/// With a model, so that jobs come to their end.
pub fn with_model() -> Setup {
    Setup::default().with("LLM_SDK", "mock")
}

#[tokio::test]
async fn what_is_there_is_sealed_and_opened_again_and_reads_the_same() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let things = Things::make(&client).await;
        assert!(!app.find(MARK).await.is_empty() && !app.blobs.find(MARK.as_bytes()).is_empty(), "nothing to look for");
        let before = things.read(&client).await;
        encrypt(&app, &client).await;
        assert_sealed(&app, &client).await;
        assert_eq!(things.read(&client).await, before);
        // Again: nothing to do.
        encrypt(&app, &client).await;
        decrypt(&app, &client).await;
        assert_eq!(things.read(&client).await, before);
        let sealed = "select (select count(*) from messages where encrypted_as is not null)
            + (select count(*) from blobs where encryption_format is not null) + (select count(*) from jobs where encrypted_kek is not null)
            + (select count(*) from projects where master_key_check_value is not null)";
        assert_eq!(app.value::<i64>(sealed).await, 0);
        let objects = app.value::<i64>("select count(*) from blobs").await;
        assert_eq!(usize::try_from(objects).unwrap(), app.blobs.keys().len(), "objects are left over");
        client.post("/api/v1/project/decrypt", json!({})).await.assert_refused(400, "project encryption is not enabled");
    })
    .await;
}

#[tokio::test]
async fn what_comes_to_an_encrypted_project_is_sealed_from_the_beginning() {
    run_with(with_model(), async |app| {
        let (client, plain) = (app.project().await, app.project().await);
        encrypt(&app, &client).await;
        let things = Things::make(&client).await;
        assert_sealed(&app, &client).await;
        let read = things.read(&client).await;
        // As in a project that is not, but for ids and times.
        let same = Things::make(&plain).await;
        let of_plain = same.read(&plain).await;
        assert_eq!(read.len(), of_plain.len());
        assert_eq!(read.last(), of_plain.last());
        let is_of_ids_and_times = |c: char| c.is_ascii_hexdigit() || matches!(c, '-' | '.');
        for (read, plain) in read.iter().zip(&of_plain) {
            assert!(read.replace(is_of_ids_and_times, "") == plain.replace(is_of_ids_and_times, ""), "{read:.500}");
        }
        decrypt(&app, &client).await;
        assert_eq!(things.read(&client).await, read);
    })
    .await;
}

#[tokio::test]
async fn answers_and_copies_work_on_what_is_sealed() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let things = Things::make(&client).await;
        encrypt(&app, &client).await;
        let copy = client.post(&format!("/api/v1/session/{}/copy", things.session), json!({})).await;
        copy.assert_status(200);
        let copy = copy.data()["new_session_id"].as_str().unwrap().to_owned();
        assert_sealed(&app, &client).await;
        let texts = async |session: &str| {
            let page = client.messages(session, "format=openai&with_asset_public_url=false").await;
            page["items"].clone()
        };
        assert_eq!(texts(&copy).await, texts(&things.session).await);
        // The call that waits is known in both, and is answered in each once.
        let answer = json!({"functionResponse": {"name": "the-marked-words-f", "response": {"ok": MARK}}});
        let answer = json!({"role": "user", "parts": [answer]});
        for session in [&copy, &things.session] {
            client.say(session, "gemini", answer.clone()).await.assert_status(201);
            client.say(session, "gemini", answer.clone()).await.assert_refused(400, "the-marked-words-f");
        }
        assert_sealed(&app, &client).await;
        decrypt(&app, &client).await;
        assert_eq!(texts(&copy).await, texts(&things.session).await);
    })
    .await;
}

#[tokio::test]
async fn a_copy_that_is_made_while_a_session_waits_to_be_sealed_is_sealed() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let things = Things::make(&client).await;
        // No job runs.
        client.post("/api/v1/project/encrypt", json!({})).await.assert_status(200);
        assert_eq!(state(&client).await, ("encrypting".to_owned(), true));
        let copy = client.post(&format!("/api/v1/session/{}/copy", things.session), json!({})).await;
        copy.assert_status(200);
        assert_eq!(app.value::<i64>("select count(*) from messages where encrypted_as is null").await, 0);
        client.post("/api/v1/project/decrypt", json!({})).await.assert_status(200);
        let copy = client.post(&format!("/api/v1/session/{}/copy", things.session), json!({})).await;
        copy.assert_status(200);
        let sealed = "select count(*) from messages where encrypted_as is not null";
        assert_eq!(app.value::<i64>(sealed).await, 4, "those of the first copy wait for the job");
        app.drain_jobs().await;
        assert_eq!(app.value::<i64>(sealed).await, 0);
    })
    .await;
}

#[tokio::test]
async fn without_a_master_key_nothing_is_encrypted_and_nothing_sealed_is_read_or_written() {
    run(async |app| {
        let client = app.old_style_project().await;
        for way in ["encrypt", "decrypt"] {
            for at in ["/api/v1/project", "/admin/v1/project"] {
                let refused = client.post(&format!("{at}/{way}"), json!({})).await;
                refused.assert_refused(400, "compact API key required to derive encryption key; rotate your API key");
            }
        }
        let (session, disk) = (client.new_session().await, client.new_disk().await);
        client.say_text(&session, "said in clear").await;
        client.upload(&disk, "/", "clear.txt", "in clear").await;
        app.execute("update projects set encryption_enabled = true").await;
        app.forget_keys();
        // What is not sealed can be read.
        assert_eq!(client.download(&disk, "clear.txt").await.unwrap(), b"in clear");
        assert_eq!(client.messages(&session, "").await["items"][0]["content"], "said in clear");
        app.execute("update messages set encrypted_as = id").await;
        app.execute("update blobs set encryption_format = 'chunked', wrapped_key = '\\x00'").await;
        let artifact = format!("/api/v1/disk/{disk}/artifact");
        for path in [
            format!("/api/v1/session/{session}/messages"),
            format!("{artifact}?file_path=clear.txt"),
            format!("{artifact}/download?file_path=clear.txt"),
            format!("{artifact}/grep?query=clear"),
        ] {
            let refused = client.get(&path).await;
            refused.assert_refused(403, "encryption enabled, API key required");
            assert_eq!(refused.json()["error"], "ENCRYPTION_KEY_REQUIRED");
        }
        client.get(&format!("{artifact}/ls")).await.assert_status(200);
        client.get(&format!("/api/v1/session/{session}/token_counts")).await.assert_status(200);
        let copied = client.post(&format!("/api/v1/session/{session}/copy"), json!({})).await;
        copied.assert_refused(403, "encryption enabled, API key required");
        client.post("/api/v1/learning_spaces", json!({})).await.assert_refused(403, "API key required");
        client.upload_skill(&[("SKILL.md", "---\nname: a\ndescription: b\n---\n")]).await.assert_refused(403, "key");
    })
    .await;
}

#[tokio::test]
async fn a_key_around_another_master_key_is_refused() {
    run(async |app| {
        let client = app.project().await;
        let body = client.key().strip_prefix("sk-ac-").unwrap().to_owned();
        let mut bytes = URL_SAFE_NO_PAD.decode(&body).unwrap();
        // The same secret, and what is wrapped of another key of the same server.
        let (_, other) = ProjectKey::generate(PEPPER).unwrap();
        let other = URL_SAFE_NO_PAD.decode(&*other).unwrap();
        bytes[17..].copy_from_slice(&other[17..]);
        let mixed = client.with_key(&format!("sk-ac-{}", URL_SAFE_NO_PAD.encode(&bytes)));
        mixed.get("/api/v1/ping").await.assert_refused(401, "failed to unwrap compact token");
        // The project is sealed with another key than the one that is shown: as if it had been made anew.
        encrypt(&app, &client).await;
        app.execute("update projects set master_key_check_value = '\\x00112233445566778899aabbccddeeff'").await;
        app.forget_keys();
        for path in ["/api/v1/ping", "/api/v1/project/configs"] {
            client.get(path).await.assert_refused(401, "its master key is not the one of this project");
        }
        client.post("/api/v1/project/decrypt", json!({})).await.assert_refused(401, "master key");
    })
    .await;
}

#[tokio::test]
async fn a_key_cannot_be_lost_while_something_is_sealed() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        Things::make(&client).await;
        encrypt(&app, &client).await;
        let reset = format!("/admin/v1/project/{}/secret_key", client.project());
        app.admin().put(&reset, json!({})).await.assert_refused(400, "cannot rotate key for encrypted projects");
        // No job runs: the flag is off, and all is still sealed.
        client.post("/api/v1/project/decrypt", json!({})).await.assert_status(200);
        assert_eq!(state(&client).await, ("decrypting".to_owned(), false));
        app.admin().put(&reset, json!({})).await.assert_refused(400, "cannot rotate key for encrypted projects");
        app.drain_jobs().await;
        app.admin().put(&reset, json!({})).await.assert_status(200);
    })
    .await;
}

#[tokio::test]
async fn a_key_that_was_replaced_reads_what_was_sealed_before() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let things = Things::make(&client).await;
        let before = things.read(&client).await;
        encrypt(&app, &client).await;
        let answer = client.put("/admin/v1/project/secret_key", json!({})).await;
        let new = client.with_key(answer.data()["secret_key"].as_str().unwrap());
        assert_eq!(things.read(&new).await, before);
        client.post("/api/v1/project/decrypt", json!({})).await.assert_refused(401, "Unauthorized");
        new.post("/api/v1/project/decrypt", json!({})).await.assert_status(200);
        app.drain_jobs().await;
        assert_eq!(things.read(&new).await, before);
    })
    .await;
}

#[tokio::test]
async fn keys_of_deleted_projects_encrypt_nothing() {
    run(async |app| {
        let client = app.project().await;
        app.admin().delete(&format!("/admin/v1/project/{}", client.project())).await.assert_status(200);
        for way in ["encrypt", "decrypt"] {
            client.post(&format!("/api/v1/project/{way}"), json!({})).await.assert_refused(401, "Unauthorized");
        }
    })
    .await;
}

#[tokio::test]
async fn a_project_that_is_deleted_while_it_is_encrypted_leaves_nothing() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        Things::make(&client).await;
        client.post("/api/v1/project/encrypt", json!({})).await.assert_status(200);
        app.admin().delete(&format!("/admin/v1/project/{}", client.project())).await.assert_status(200);
        app.drain_jobs().await;
        let left =
            "select (select count(*) from encryption_conversions) + (select count(*) from jobs where kind = 'convert')";
        assert_eq!(app.value::<i64>(left).await, 0);
    })
    .await;
}

#[tokio::test]
async fn many_who_encrypt_and_decrypt_at_once_come_to_one_end() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let things = Things::make(&client).await;
        let before = things.read(&client).await;
        for last in ["encrypt", "decrypt"] {
            let calls = (0..8).map(|n| {
                let way = if n % 2 == 0 { "encrypt" } else { "decrypt" };
                let client = client.clone();
                async move { client.post(&format!("/api/v1/project/{way}"), json!({})).await }
            });
            let work = async {
                for answer in futures_util::future::join_all(calls).await {
                    // A decryption may come where there is nothing to decrypt.
                    assert!([200, 400].contains(&answer.status.as_u16()), "{}", answer.text());
                }
                client.post(&format!("/api/v1/project/{last}"), json!({})).await;
                eventually("all is turned", async || state(&client).await.0 == "idle").await;
                app.until_idle().await;
            };
            tokio::select! {
                ended = app.run_jobs() => panic!("the runner ended: {ended:?}"),
                () = work => {}
            }
            assert_eq!(state(&client).await.1, last == "encrypt");
            assert_eq!(things.read(&client).await, before);
            let (messages, objects) = match last {
                "encrypt" => ("encrypted_as is null", "encryption_format is null"),
                _ => ("encrypted_as is not null", "encryption_format is not null"),
            };
            for (table, wrong) in [("messages", messages), ("blobs", objects)] {
                let count = format!("select count(*) from {table} where {wrong}");
                let count: i64 = sqlx::query_scalar(&count).fetch_one(&*app.app.db).await.unwrap();
                assert_eq!(count, 0, "{table} after {last}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn the_answer_to_a_decryption_can_be_asked_for_again() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        encrypt(&app, &client).await;
        let path = "/api/v1/project/decrypt";
        let decrypted = client.json_once("once", axum::http::Method::POST, path, &json!({})).await;
        decrypted.assert_status(200);
        app.drain_jobs().await;
        let again = client.json_once("once", axum::http::Method::POST, path, &json!({})).await;
        assert!(again.is_replay() && again.bytes == decrypted.bytes, "{}", again.text());
    })
    .await;
}

#[tokio::test]
async fn idempotency_records_of_encrypted_projects_open_with_their_key_alone() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        encrypt(&app, &client).await;
        let (path, body) =
            (format!("/api/v1/session/{session}/messages"), json!({"blob": {"role": "user", "content": MARK}}));
        let say = async |client: &Client| client.json_once("k", axum::http::Method::POST, &path, &body).await;
        let first = say(&client).await;
        first.assert_status(201);
        let again = say(&client).await;
        assert!(again.is_replay() && again.bytes == first.bytes, "{}", again.text());
        assert_eq!(
            app.value::<i64>("select count(*) from idempotency_records where encrypted_with_master_key").await,
            1
        );
        assert_sealed(&app, &client).await;
        decrypt(&app, &client).await;
        assert_eq!(say(&client).await.bytes, first.bytes, "also when the project is not encrypted any more");
    })
    .await;
}
