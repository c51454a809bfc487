//! Encrypted projects: nothing of their content is stored as plaintext, and every operation works as before.

use acontextd::crypto::ProjectKey;
use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::support::client::{Client, Form};
use crate::support::{PEPPER, TestApp, TestConfig, run, run_with, wait_until};

/// A text that occurs in all content that must be encrypted.
pub const MARK: &str = "the-marked-words";

pub async fn encrypt(app: &TestApp, client: &Client) {
    client.post("/api/v1/project/encrypt", json!({})).await.assert_status(200);
    app.drain_jobs().await;
    assert_eq!(conversion_state(client).await, ("idle".to_owned(), true));
}

pub async fn decrypt(app: &TestApp, client: &Client) {
    client.post("/api/v1/project/decrypt", json!({})).await.assert_status(200);
    app.drain_jobs().await;
    assert_eq!(conversion_state(client).await, ("idle".to_owned(), false));
}

async fn conversion_state(client: &Client) -> (String, bool) {
    let status = client.get("/api/v1/project/encryption").await.data();
    assert_eq!(status["error"], Value::Null, "{status}");
    assert!(status["state"] != "idle" || status["done"] == status["total"], "{status}");
    (status["state"].as_str().unwrap().to_owned(), status["enabled"].as_bool().unwrap())
}

/// The content of a project.
pub struct Fixtures {
    pub session: String,
    disk: String,
    skill: String,
}

impl Fixtures {
    pub async fn make(client: &Client) -> Self {
        let (session, disk) = (client.new_session().await, client.new_disk().await);
        client.store_text(&session, &format!("text: {MARK}")).await;
        client.store_text(&session, &format!("{MARK} ").repeat(100_000)).await;
        let call = json!({"functionCall": {"name": "the-marked-words-f", "args": {"arg": MARK}}});
        let response = client.store_message(&session, "gemini", json!({"role": "model", "parts": [call]})).await;
        response.assert_status(201);
        let blob =
            json!({"role": "user", "parts": [{"type": "text", "text": MARK}, {"type": "file", "file_field": "f"}]});
        let payload = json!({"format": "acontext", "blob": blob}).to_string();
        let form = Form::new().text("payload", &payload).file("f", "sent.txt", format!("sent: {MARK}"));
        client.store_form_message(&session, form).await.assert_status(201);
        client.upload(&disk, "/", "notes.md", format!("old: {MARK}")).await;
        client.upload(&disk, "/", "notes.md", format!("# {MARK}\nline\n")).await;
        client.upload(&disk, "/", "empty.txt", "").await;
        client.upload(&disk, "/", "large.txt", large()).await;
        let files = [("SKILL.md", "---\nname: kit\ndescription: A kit\n---\nthe-marked-words\n"), ("run.py", MARK)];
        let skill = client.upload_skill(&files).await;
        skill.assert_status(201);
        Self { session, disk, skill: skill.data()["id"].as_str().unwrap().to_owned() }
    }

    /// Reads everything that the API returns of it.
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
            let response = client.get(&format!("/api/v1/{path}")).await;
            assert_eq!(response.status, StatusCode::OK, "{path}: {}", response.text());
            read.push(response.text());
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

/// Returns a text that is too long for an in-memory spool and for a single encrypted chunk.
pub fn large() -> String {
    format!("{MARK} ").repeat(20_000)
}

/// Asserts that no table and no object contains plaintext or the master key, and no table the API key.
async fn assert_encrypted(app: &TestApp, client: &Client) {
    assert_eq!(app.tables_containing(MARK).await, [""; 0]);
    assert_eq!(app.blobs.keys_containing(MARK.as_bytes()), [""; 0]);
    let master = master_key(client);
    let encodings = [hex::encode(master), STANDARD.encode(master), URL_SAFE_NO_PAD.encode(master)];
    for encoding in encodings {
        assert_eq!(app.tables_containing(encoding.trim_end_matches('=')).await, [""; 0]);
        assert_eq!(app.blobs.keys_containing(encoding.as_bytes()), [""; 0]);
    }
    assert_eq!(app.blobs.keys_containing(&master), [""; 0]);
    assert_eq!(app.tables_containing(client.key()).await, [""; 0]);
}

pub fn master_key(client: &Client) -> [u8; 32] {
    let key = ProjectKey::parse(client.key().strip_prefix("sk-ac-").unwrap());
    *key.master_key(PEPPER).unwrap().expect("a compact key")
}

/// Returns a configuration with a model, so that jobs can finish.
pub fn with_model() -> TestConfig {
    // Messages must not be observed while a test compares what it reads.
    TestConfig::default().with("LLM_SDK", "mock").with("SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS", "1h")
}

#[tokio::test]
async fn existing_content_is_encrypted_decrypted_and_reads_the_same() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let fixtures = Fixtures::make(&client).await;
        let is_found =
            !app.tables_containing(MARK).await.is_empty() && !app.blobs.keys_containing(MARK.as_bytes()).is_empty();
        assert!(is_found, "the plaintext was not found before the encryption");
        let before = fixtures.read(&client).await;
        encrypt(&app, &client).await;
        assert_encrypted(&app, &client).await;
        assert_eq!(fixtures.read(&client).await, before);
        // A second encryption has nothing to do.
        encrypt(&app, &client).await;
        decrypt(&app, &client).await;
        assert_eq!(fixtures.read(&client).await, before);
        let encrypted_rows = "select (select count(*) from messages where encrypted_as is not null)
            + (select count(*) from blobs where encryption_format is not null)
            + (select count(*) from jobs where encrypted_kek is not null)
            + (select count(*) from projects where master_key_check_value is not null)";
        assert_eq!(app.fetch_scalar::<i64>(encrypted_rows).await, 0);
        let objects = app.fetch_scalar::<i64>("select count(*) from blobs").await;
        assert_eq!(
            usize::try_from(objects).unwrap(),
            app.blobs.keys().len(),
            "an object has no row, or a row has no object"
        );
        client.post("/api/v1/project/decrypt", json!({})).await.assert_error(400, "project encryption is not enabled");
    })
    .await;
}

#[tokio::test]
async fn new_content_of_an_encrypted_project_is_encrypted() {
    run_with(with_model(), async |app| {
        let (client, plain) = (app.project().await, app.project().await);
        encrypt(&app, &client).await;
        let fixtures = Fixtures::make(&client).await;
        assert_encrypted(&app, &client).await;
        let read = fixtures.read(&client).await;
        // An unencrypted project returns the same except for ids and times.
        let plain_fixtures = Fixtures::make(&plain).await;
        let plain_read = plain_fixtures.read(&plain).await;
        assert_eq!(read.len(), plain_read.len());
        assert_eq!(read.last(), plain_read.last());
        let occurs_in_ids_and_times = |c: char| c.is_ascii_hexdigit() || matches!(c, '-' | '.');
        for (read, plain) in read.iter().zip(&plain_read) {
            assert!(
                read.replace(occurs_in_ids_and_times, "") == plain.replace(occurs_in_ids_and_times, ""),
                "{read:.500}"
            );
        }
        decrypt(&app, &client).await;
        assert_eq!(fixtures.read(&client).await, read);
    })
    .await;
}

#[tokio::test]
async fn tool_results_and_copies_work_on_encrypted_messages() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let fixtures = Fixtures::make(&client).await;
        encrypt(&app, &client).await;
        let copy = client.post(&format!("/api/v1/session/{}/copy", fixtures.session), json!({})).await;
        copy.assert_status(200);
        let copy = copy.data()["new_session_id"].as_str().unwrap().to_owned();
        assert_encrypted(&app, &client).await;
        let items = async |session: &str| {
            let page = client.messages(session, "format=openai&with_asset_public_url=false").await;
            page["items"].clone()
        };
        assert_eq!(items(&copy).await, items(&fixtures.session).await);
        // Both sessions have the pending call, and one response answers it in each.
        let response = json!({"functionResponse": {"name": "the-marked-words-f", "response": {"ok": MARK}}});
        let response = json!({"role": "user", "parts": [response]});
        for session in [&copy, &fixtures.session] {
            let first = client.store_message(session, "gemini", response.clone()).await.data();
            assert!(first["parts"][0]["meta"]["tool_call_id"].is_string(), "{first}");
            let second = client.store_message(session, "gemini", response.clone()).await.data();
            assert!(second["parts"][0]["meta"]["tool_call_id"].is_null(), "{second}");
        }
        assert_encrypted(&app, &client).await;
        decrypt(&app, &client).await;
        assert_eq!(items(&copy).await, items(&fixtures.session).await);
    })
    .await;
}

#[tokio::test]
async fn a_copy_before_the_conversion_uses_the_new_storage_format() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let fixtures = Fixtures::make(&client).await;
        // No job runs, so that the conversion does not begin.
        client.post("/api/v1/project/encrypt", json!({})).await.assert_status(200);
        assert_eq!(conversion_state(&client).await, ("encrypting".to_owned(), true));
        let copy = client.post(&format!("/api/v1/session/{}/copy", fixtures.session), json!({})).await;
        copy.assert_status(200);
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from messages where encrypted_as is null").await, 0);
        client.post("/api/v1/project/decrypt", json!({})).await.assert_status(200);
        let copy = client.post(&format!("/api/v1/session/{}/copy", fixtures.session), json!({})).await;
        copy.assert_status(200);
        let encrypted = "select count(*) from messages where encrypted_as is not null";
        assert_eq!(app.fetch_scalar::<i64>(encrypted).await, 4, "the messages of the first copy wait for the job");
        app.drain_jobs().await;
        assert_eq!(app.fetch_scalar::<i64>(encrypted).await, 0);
    })
    .await;
}

#[tokio::test]
async fn a_legacy_key_cannot_encrypt_or_access_encrypted_content() {
    run(async |app| {
        let client = app.legacy_key_project().await;
        for action in ["encrypt", "decrypt"] {
            for base in ["/api/v1/project", "/admin/v1/project"] {
                let response = client.post(&format!("{base}/{action}"), json!({})).await;
                response.assert_error(400, "compact API key required to derive encryption key; rotate your API key");
            }
        }
        let (session, disk) = (client.new_session().await, client.new_disk().await);
        client.store_text(&session, "a plaintext message").await;
        client.upload(&disk, "/", "plain.txt", "a plaintext file").await;
        app.execute("update projects set encryption_enabled = true").await;
        app.clear_key_cache();
        // Unencrypted content can be read.
        assert_eq!(client.download(&disk, "plain.txt").await.unwrap(), b"a plaintext file");
        assert_eq!(client.messages(&session, "").await["items"][0]["content"], "a plaintext message");
        app.execute("update messages set encrypted_as = id").await;
        app.execute("update blobs set encryption_format = 'chunked', wrapped_key = '\\x00'").await;
        let artifact = format!("/api/v1/disk/{disk}/artifact");
        for path in [
            format!("/api/v1/session/{session}/messages"),
            format!("{artifact}?file_path=plain.txt"),
            format!("{artifact}/download?file_path=plain.txt"),
            format!("{artifact}/grep?query=plain"),
        ] {
            let response = client.get(&path).await;
            response.assert_error(403, "encryption enabled, API key required");
            assert_eq!(response.json()["error"], "ENCRYPTION_KEY_REQUIRED");
        }
        client.get(&format!("{artifact}/ls")).await.assert_status(200);
        client.get(&format!("/api/v1/session/{session}/token_counts")).await.assert_status(200);
        let response = client.post(&format!("/api/v1/session/{session}/copy"), json!({})).await;
        response.assert_error(403, "encryption enabled, API key required");
        client.post("/api/v1/learning_spaces", json!({})).await.assert_error(403, "API key required");
        client.upload_skill(&[("SKILL.md", "---\nname: a\ndescription: b\n---\n")]).await.assert_error(403, "key");
    })
    .await;
}

#[tokio::test]
async fn a_key_with_another_master_key_is_rejected() {
    run(async |app| {
        let client = app.project().await;
        let body = client.key().strip_prefix("sk-ac-").unwrap().to_owned();
        let mut bytes = URL_SAFE_NO_PAD.decode(&body).unwrap();
        // The key's secret with the wrapped master key of another key of the same server.
        let (_, other) = ProjectKey::generate(PEPPER).unwrap();
        let other = URL_SAFE_NO_PAD.decode(&*other).unwrap();
        bytes[17..].copy_from_slice(&other[17..]);
        let with_mixed_key = client.with_key(&format!("sk-ac-{}", URL_SAFE_NO_PAD.encode(&bytes)));
        with_mixed_key.get("/api/v1/ping").await.assert_error(401, "failed to unwrap compact token");
        // The project is encrypted with another master key than that of its API key, as if the key had been generated
        // again.
        encrypt(&app, &client).await;
        app.execute("update projects set master_key_check_value = '\\x00112233445566778899aabbccddeeff'").await;
        app.clear_key_cache();
        for path in ["/api/v1/ping", "/api/v1/project/configs"] {
            client.get(path).await.assert_error(401, "wrong master key for this project");
        }
        client.post("/api/v1/project/decrypt", json!({})).await.assert_error(401, "master key");
    })
    .await;
}

#[tokio::test]
async fn a_key_cannot_be_reset_while_content_is_encrypted() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        Fixtures::make(&client).await;
        encrypt(&app, &client).await;
        let reset = format!("/admin/v1/project/{}/secret_key", client.project());
        app.admin().put(&reset, json!({})).await.assert_error(400, "cannot rotate key for encrypted projects");
        // No job runs, so that all content is still encrypted although encryption is disabled.
        client.post("/api/v1/project/decrypt", json!({})).await.assert_status(200);
        assert_eq!(conversion_state(&client).await, ("decrypting".to_owned(), false));
        app.admin().put(&reset, json!({})).await.assert_error(400, "cannot rotate key for encrypted projects");
        app.drain_jobs().await;
        app.admin().put(&reset, json!({})).await.assert_status(200);
    })
    .await;
}

#[tokio::test]
async fn a_new_key_reads_content_encrypted_before_the_rotation() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let fixtures = Fixtures::make(&client).await;
        let before = fixtures.read(&client).await;
        encrypt(&app, &client).await;
        let response = client.put("/admin/v1/project/secret_key", json!({})).await;
        let new = client.with_key(response.data()["secret_key"].as_str().unwrap());
        assert_eq!(fixtures.read(&new).await, before);
        client.post("/api/v1/project/decrypt", json!({})).await.assert_error(401, "Unauthorized");
        new.post("/api/v1/project/decrypt", json!({})).await.assert_status(200);
        app.drain_jobs().await;
        assert_eq!(fixtures.read(&new).await, before);
    })
    .await;
}

#[tokio::test]
async fn keys_of_deleted_projects_encrypt_nothing() {
    run(async |app| {
        let client = app.project().await;
        app.admin().delete(&format!("/admin/v1/project/{}", client.project())).await.assert_status(200);
        for action in ["encrypt", "decrypt"] {
            client.post(&format!("/api/v1/project/{action}"), json!({})).await.assert_error(401, "Unauthorized");
        }
    })
    .await;
}

#[tokio::test]
async fn deleting_a_project_during_its_conversion_leaves_no_rows() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        Fixtures::make(&client).await;
        client.post("/api/v1/project/encrypt", json!({})).await.assert_status(200);
        app.admin().delete(&format!("/admin/v1/project/{}", client.project())).await.assert_status(200);
        app.drain_jobs().await;
        let remaining =
            "select (select count(*) from encryption_conversions) + (select count(*) from jobs where kind = 'convert')";
        assert_eq!(app.fetch_scalar::<i64>(remaining).await, 0);
    })
    .await;
}

#[tokio::test]
async fn concurrent_encryptions_and_decryptions_end_in_one_state() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let fixtures = Fixtures::make(&client).await;
        let before = fixtures.read(&client).await;
        for last in ["encrypt", "decrypt"] {
            let calls = (0..8).map(|n| {
                let action = if n % 2 == 0 { "encrypt" } else { "decrypt" };
                let client = client.clone();
                async move { client.post(&format!("/api/v1/project/{action}"), json!({})).await }
            });
            let work = async {
                for response in futures_util::future::join_all(calls).await {
                    // A decryption is rejected if the project is not encrypted at that time.
                    assert!([200, 400].contains(&response.status.as_u16()), "{}", response.text());
                }
                client.post(&format!("/api/v1/project/{last}"), json!({})).await;
                wait_until("the conversion is done", async || conversion_state(&client).await.0 == "idle").await;
                app.until_idle().await;
            };
            tokio::select! {
                ended = app.run_jobs() => panic!("the runner ended: {ended:?}"),
                () = work => {}
            }
            assert_eq!(conversion_state(&client).await.1, last == "encrypt");
            assert_eq!(fixtures.read(&client).await, before);
            let (messages, objects) = match last {
                "encrypt" => ("encrypted_as is null", "encryption_format is null"),
                _ => ("encrypted_as is not null", "encryption_format is not null"),
            };
            for (table, condition) in [("messages", messages), ("blobs", objects)] {
                let count = format!("select count(*) from {table} where {condition}");
                let count: i64 = sqlx::query_scalar(&count).fetch_one(&*app.app.db).await.unwrap();
                assert_eq!(count, 0, "{table} after {last}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn the_response_to_a_decryption_can_be_replayed() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        encrypt(&app, &client).await;
        let path = "/api/v1/project/decrypt";
        let decrypted = client.json_with_key("once", axum::http::Method::POST, path, &json!({})).await;
        decrypted.assert_status(200);
        app.drain_jobs().await;
        let replay = client.json_with_key("once", axum::http::Method::POST, path, &json!({})).await;
        assert!(replay.is_replay() && replay.bytes == decrypted.bytes, "{}", replay.text());
    })
    .await;
}

#[tokio::test]
async fn idempotency_records_are_encrypted_with_the_master_key() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        encrypt(&app, &client).await;
        let (path, body) =
            (format!("/api/v1/session/{session}/messages"), json!({"blob": {"role": "user", "content": MARK}}));
        let store_message =
            async |client: &Client| client.json_with_key("k", axum::http::Method::POST, &path, &body).await;
        let first = store_message(&client).await;
        first.assert_status(201);
        let replay = store_message(&client).await;
        assert!(replay.is_replay() && replay.bytes == first.bytes, "{}", replay.text());
        assert_eq!(
            app.fetch_scalar::<i64>("select count(*) from idempotency_records where encrypted_with_master_key").await,
            1
        );
        assert_encrypted(&app, &client).await;
        decrypt(&app, &client).await;
        assert_eq!(
            store_message(&client).await.bytes,
            first.bytes,
            "the response is replayed also when the project is no longer encrypted"
        );
    })
    .await;
}
