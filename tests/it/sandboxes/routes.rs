//! The routes of sandboxes, with a provider that runs nothing.

use std::sync::Arc;

use acontextd::sandboxes::expiry;
use acontextd::sandboxes::provider::ProviderError;
use axum::http::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::fake_sandboxes::FakeSandboxes;
use crate::support::samples::skill_md;
use crate::support::{Client, TestApp, TestConfig, run, run_with};

pub(super) fn fake_config() -> (Arc<FakeSandboxes>, TestConfig) {
    let fake = Arc::<FakeSandboxes>::default();
    (Arc::clone(&fake), TestConfig { sandbox_provider: fake, ..TestConfig::default() })
}

pub(super) fn exec_path(sandbox: &str) -> String {
    format!("/api/v1/sandbox/{sandbox}/exec")
}

pub(super) async fn exec(client: &Client, sandbox: &str, command: &str) -> Value {
    client.post(&exec_path(sandbox), json!({"command": command})).await.data()
}

pub(super) async fn logs(client: &Client) -> Vec<Value> {
    client.get("/api/v1/sandbox/logs").await.data()["items"].as_array().unwrap().clone()
}

/// Returns the sum of the metric `sandbox.alive`.
async fn alive_seconds(app: &TestApp) -> i64 {
    app.fetch_scalar("select coalesce(sum(increment), 0)::bigint from metrics where tag = 'sandbox.alive'").await
}

#[tokio::test]
async fn a_sandbox_is_created_used_and_killed() {
    run(async |app| {
        let client = app.project().await;
        let created = client.post("/api/v1/sandbox", json!({})).await;
        created.assert_status(201);
        let created = created.data();
        assert_eq!(created["sandbox_status"], "running");
        let time = |name: &str| chrono::DateTime::parse_from_rfc3339(created[name].as_str().unwrap()).unwrap();
        assert_eq!((time("sandbox_expires_at") - time("sandbox_created_at")).num_seconds(), 600);
        let id = created["sandbox_id"].as_str().unwrap();
        let output = exec(&client, id, "echo").await;
        assert_eq!(
            output,
            json!({"stdout": "echo", "stderr": "", "exit_code": 0, "end_reason": "exited", "stdout_omitted_bytes": 0,
                   "stderr_omitted_bytes": 0})
        );
        assert_eq!(exec(&client, id, "exit 7").await["exit_code"], 7);
        assert!((600..=602).contains(&alive_seconds(&app).await));
        let [log] = logs(&client).await.try_into().unwrap();
        assert_eq!((&log["id"], &log["project_id"]), (&json!(id), &json!(client.project())));
        assert_eq!(
            (&log["backend_type"], &log["backend_sandbox_id"]),
            (&json!("cloudflare"), &json!(format!("fake-{id}")))
        );
        assert!(log.get("ended_at").is_none());
        let path = format!("/api/v1/sandbox/{id}");
        assert_eq!(client.delete(&path).await.data(), json!({"status": 0, "errmsg": ""}));
        assert!(alive_seconds(&app).await <= 2);
        client.delete(&path).await.assert_error(404, "sandbox not found");
        client.post(&exec_path(id), json!({"command": "x"})).await.assert_error(404, "sandbox not found");
        // What was done can be read after the end.
        let [log] = logs(&client).await.try_into().unwrap();
        assert_eq!((&log["backend_sandbox_id"], &log["generated_files"]), (&Value::Null, &json!([])));
        assert!(log["ended_at"].is_string() && log["will_total_alive_seconds"].as_i64().unwrap() <= 2);
        let commands = log["history_commands"].as_array().unwrap();
        let summary: Vec<_> = commands.iter().map(|entry| (&entry["command"], &entry["exit_code"])).collect();
        assert_eq!(summary, [(&json!("echo"), &json!(0)), (&json!("exit 7"), &json!(7))]);
        for entry in commands {
            assert!(entry["started_at"].is_string() && entry["ended_at"].is_string(), "{entry}");
            assert!(
                entry["duration_ms"].as_i64().unwrap() >= 0 && entry["stdout_bytes"].as_i64().unwrap() > 0,
                "{entry}"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn invalid_requests_are_rejected() {
    run(async |app| {
        let client = app.project().await;
        let id = client.new_sandbox().await;
        for (path, body, error) in [
            (exec_path("abc"), json!({"command": "ls"}), "sandbox_id: must be a UUID"),
            (exec_path(&id), json!({}), "command: is required"),
            (exec_path(&id), json!({"command": ""}), "command: is required"),
            (exec_path(&id), json!({"command": 7}), "command"),
            (exec_path(&id), json!({"command": "a\0b"}), "command: must not contain the character NUL"),
        ] {
            client.post(&path, body).await.assert_error(400, error);
        }
        client.delete("/api/v1/sandbox/abc").await.assert_error(400, "sandbox_id: must be a UUID");
        client.post(&exec_path(&id), json!({"command": "x".repeat((1 << 20) + 1)})).await.assert_error(413, "command");
        let unknown = Uuid::new_v4().to_string();
        client.post(&exec_path(&unknown), json!({"command": "ls"})).await.assert_error(404, "sandbox not found");
        client.delete(&format!("/api/v1/sandbox/{unknown}")).await.assert_error(404, "sandbox not found");
        assert_eq!(logs(&client).await[0]["history_commands"], json!([]));
    })
    .await;
}

#[tokio::test]
async fn sandboxes_belong_to_one_project() {
    run(async |app| {
        let (owner, other) = (app.project().await, app.project().await);
        let id = owner.new_sandbox().await;
        other.post(&exec_path(&id), json!({"command": "ls"})).await.assert_error(404, "sandbox not found");
        other.delete(&format!("/api/v1/sandbox/{id}")).await.assert_error(404, "sandbox not found");
        let disk = other.new_disk().await;
        other.upload(&disk, "/", "a.txt", "a").await;
        let body = json!({"file_path": "/", "filename": "a.txt", "sandbox_id": id, "sandbox_path": "/tmp"});
        other
            .post(&format!("/api/v1/disk/{disk}/artifact/download_to_sandbox"), body)
            .await
            .assert_error(404, "sandbox");
        let body = json!({"file_path": "/", "sandbox_filename": "old.txt", "sandbox_id": id, "sandbox_path": "/tmp"});
        other
            .post(&format!("/api/v1/disk/{disk}/artifact/upload_from_sandbox"), body)
            .await
            .assert_error(404, "sandbox");
        let skill = other.new_skill("foreign").await;
        let path = format!("/api/v1/agent_skills/{skill}/download_to_sandbox");
        other.post(&path, json!({"sandbox_id": id})).await.assert_error(404, "sandbox");
        assert!(logs(&other).await.is_empty());
        assert_eq!(logs(&owner).await[0]["history_commands"], json!([]));
    })
    .await;
}

#[tokio::test]
async fn a_project_has_a_maximum_of_sandboxes() {
    let (_, config) = fake_config();
    run_with(config.with("ACONTEXTD_SANDBOXES", "2"), async |app| {
        let client = app.project().await;
        let first = client.new_sandbox().await;
        client.new_sandbox().await;
        client.post("/api/v1/sandbox", json!({})).await.assert_error(400, "already has 2 sandboxes");
        app.project().await.new_sandbox().await;
        client.delete(&format!("/api/v1/sandbox/{first}")).await.assert_status(200);
        client.new_sandbox().await;
    })
    .await;
}

#[tokio::test]
async fn expired_sandboxes_end() {
    let (fake, config) = fake_config();
    run_with(config, async |app| {
        let client = app.project().await;
        let (expired, kept) = (client.new_sandbox().await, client.new_sandbox().await);
        let id: Uuid = expired.parse().unwrap();
        sqlx::query("update sandboxes set expires_at = now() where id = $1")
            .bind(id)
            .execute(&*app.app.db)
            .await
            .unwrap();
        client.post(&exec_path(&expired), json!({"command": "ls"})).await.assert_error(404, "sandbox not found");
        expiry::end_expired(app.app.sandboxes.clone()).await.unwrap();
        assert_eq!(fake.sandboxes().keys().cloned().collect::<Vec<_>>(), [format!("fake-{kept}")]);
        assert!((600..=602).contains(&alive_seconds(&app).await), "the other sandbox counts as a whole");
        let log = logs(&client).await.into_iter().find(|log| log["id"] == expired.as_str()).unwrap();
        assert!(log["ended_at"].is_string());
        // A call extends the life.
        app.execute("update sandboxes set expires_at = now() + interval '5 seconds' where state = 'running'").await;
        exec(&client, &kept, "true").await;
        let lifetime = "select extract(epoch from expires_at - now())::bigint from sandboxes where state = 'running'";
        assert!(app.fetch_scalar::<i64>(lifetime).await > 590);
    })
    .await;
}

#[tokio::test]
async fn a_sandbox_that_the_provider_has_ended_is_gone() {
    let (fake, config) = fake_config();
    run_with(config, async |app| {
        let client = app.project().await;
        let id = client.new_sandbox().await;
        fake.sandboxes().clear();
        client.post(&exec_path(&id), json!({"command": "ls"})).await.assert_error(404, "sandbox not found");
        let [log] = logs(&client).await.try_into().unwrap();
        assert!(log["ended_at"].is_string());
        assert_eq!(log["history_commands"], json!([]), "a command that was not run is not logged");
    })
    .await;
}

#[tokio::test]
async fn a_command_with_an_idempotency_key_runs_once() {
    run(async |app| {
        let client = app.project().await;
        let id = client.new_sandbox().await;
        let body = json!({"command": "exit 3"});
        let first = client.json_with_key("k", Method::POST, &exec_path(&id), &body).await;
        let second = client.json_with_key("k", Method::POST, &exec_path(&id), &body).await;
        assert_eq!((first.data(), second.is_replay()), (second.data(), true));
        assert_eq!(logs(&client).await[0]["history_commands"].as_array().unwrap().len(), 1);
        // The server was killed while a command ran.
        app.execute("delete from idempotency_records").await;
        app.execute("update sandbox_commands set ended_at = null, exit_code = null, end_reason = null").await;
        let again = client.json_with_key("k", Method::POST, &exec_path(&id), &body).await;
        again.assert_error(409, "is still running");
        app.execute("update sandbox_commands set ended_at = now(), exit_code = 137, end_reason = 'interrupted'").await;
        let again = client.json_with_key("k", Method::POST, &exec_path(&id), &body).await;
        again.assert_error(409, "is not run again");
        let created = client.json_with_key("c", Method::POST, "/api/v1/sandbox", &json!({})).await;
        let replayed = client.json_with_key("c", Method::POST, "/api/v1/sandbox", &json!({})).await;
        assert_eq!(created.data(), replayed.data());
        assert_eq!(logs(&client).await.len(), 2);
    })
    .await;
}

#[tokio::test]
async fn files_are_copied_between_disks_and_sandboxes() {
    let (fake, config) = fake_config();
    run_with(config, async |app| {
        let client = app.project().await;
        let (sandbox, disk) = (client.new_sandbox().await, client.new_disk().await);
        client.upload(&disk, "/docs/", "a.txt", "content").await;
        let artifact = format!("/api/v1/disk/{disk}/artifact");
        let to_sandbox = |directory: &str, sandbox_path: &str| {
            let body = json!({"file_path": directory, "filename": "a.txt", "sandbox_id": sandbox, "sandbox_path": sandbox_path});
            let (client, path) = (client.clone(), format!("{artifact}/download_to_sandbox"));
            async move { client.post(&path, body).await }
        };
        assert_eq!(to_sandbox("/docs/", "/workspace/").await.data(), json!({"success": true}));
        assert_eq!(to_sandbox("/docs", "/tmp").await.data(), json!({"success": true}));
        let rejected = json!({"success": false, "reason": "read-only file system"});
        assert_eq!(to_sandbox("/docs/", "/etc").await.data(), rejected);
        to_sandbox("/none/", "/tmp").await.assert_error(404, "artifact not found");
        to_sandbox("/../", "/tmp").await.assert_error(400, "invalid file_path");
        let paths: Vec<String> = fake.sandboxes()[&format!("fake-{sandbox}")].keys().cloned().collect();
        assert_eq!(paths, ["/tmp/a.txt", "/tmp/old.txt", "/workspace//a.txt"]);
        fake.sandboxes().get_mut(&format!("fake-{sandbox}")).unwrap().insert("/workspace/run".into(), ("#!".into(), true));
        let from_sandbox = |name: &str| {
            let body = json!({"file_path": "/artifacts/", "sandbox_filename": name, "sandbox_id": sandbox, "sandbox_path": "/workspace/"});
            let (client, path) = (client.clone(), format!("{artifact}/upload_from_sandbox"));
            async move { client.post(&path, body).await }
        };
        let uploaded = from_sandbox("run").await;
        uploaded.assert_status(201);
        assert_eq!((&uploaded.data()["path"], &uploaded.data()["filename"]), (&json!("/artifacts/"), &json!("run")));
        assert_eq!(client.download(&disk, "/artifacts/run").await.unwrap(), b"#!");
        assert_eq!(app.fetch_scalar::<String>("select mode from current_artifacts where filename = 'run'").await, "0755");
        from_sandbox("none").await.assert_error(404, "file not found in the sandbox");
        from_sandbox("../run").await.assert_error(400, "sandbox_filename");
        assert_eq!(logs(&client).await[0]["generated_files"], json!([{"sandbox_path": "/workspace/run"}]));
    })
    .await;
}

#[tokio::test]
async fn a_skill_is_copied_once() {
    let (fake, config) = fake_config();
    run_with(config, async |app| {
        let client = app.project().await;
        let sandbox = client.new_sandbox().await;
        let files = [("SKILL.md", skill_md("pdf forms").as_str()), ("scripts/run.py", "print()")]
            .map(|(a, b)| (a, b.to_owned()));
        let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (*path, text.as_str())).collect();
        let skill = client.upload_skill(&files).await.data()["id"].as_str().unwrap().to_owned();
        let path = format!("/api/v1/agent_skills/{skill}/download_to_sandbox");
        let copied = client.post(&path, json!({"sandbox_id": sandbox})).await.data();
        assert_eq!((&copied["success"], &copied["dir_path"]), (&json!(true), &json!("/skills/pdf-forms")));
        assert_eq!((&copied["name"], &copied["description"]), (&json!("pdf-forms"), &json!("What pdf forms is for")));
        let paths: Vec<String> = fake.sandboxes()[&format!("fake-{sandbox}")].keys().cloned().collect();
        assert_eq!(paths, ["/skills/pdf-forms/SKILL.md", "/skills/pdf-forms/scripts/run.py", "/tmp/old.txt"]);
        let again = client.post(&path, json!({"sandbox_id": sandbox})).await;
        again.assert_error(409, "skill directory '/skills/pdf-forms' already exists in sandbox");
        for (path, body, status, error) in [
            (path.clone(), json!({}), 400, "parameter error"),
            (path.clone(), json!({"sandbox_id": 5}), 400, "parameter error"),
            (path.clone(), json!({"sandbox_id": "x"}), 400, "invalid sandbox_id"),
            (
                "/api/v1/agent_skills/x/download_to_sandbox".into(),
                json!({"sandbox_id": sandbox}),
                400,
                "invalid skill id",
            ),
            (path.replace(&skill, &Uuid::now_v7().to_string()), json!({"sandbox_id": sandbox}), 404, "skill not found"),
        ] {
            client.post(&path, body).await.assert_error(status, error);
        }
    })
    .await;
}

#[tokio::test]
async fn commands_of_an_encrypted_project_are_encrypted() {
    run(async |app| {
        let client = app.project().await;
        let id = client.new_sandbox().await;
        let command = format!("# {}\n{}", "an old secret", "x".repeat(10_000));
        exec(&client, &id, &command).await;
        assert_eq!(app.tables_containing("an old secret").await, ["sandbox_commands"]);
        client.post("/api/v1/project/encrypt", json!({})).await.assert_status(200);
        app.drain_jobs().await;
        exec(&client, &id, "# another secret").await;
        for secret in ["an old secret", "another secret"] {
            assert!(app.tables_containing(secret).await.is_empty(), "{secret}");
        }
        let commands = logs(&client).await[0]["history_commands"].clone();
        assert_eq!(commands[0]["command"], command[..4096]);
        assert_eq!(commands[1]["command"], "# another secret");
        client.post("/api/v1/project/decrypt", json!({})).await.assert_status(200);
        app.drain_jobs().await;
        assert_eq!(app.tables_containing("another secret").await, ["sandbox_commands"]);
    })
    .await;
}

#[tokio::test]
async fn commands_that_a_killed_server_was_running_are_interrupted() {
    let (_, config) = fake_config();
    run_with(config, async |app| {
        let client = app.project().await;
        let id = client.new_sandbox().await;
        exec(&client, &id, "true").await;
        app.execute(
            "update sandbox_commands set ended_at = null, exit_code = null, end_reason = null,
                                         started_at = now() - interval '1 hour'",
        )
        .await;
        assert_eq!(logs(&client).await[0]["history_commands"], json!([]));
        expiry::end_expired(app.app.sandboxes.clone()).await.unwrap();
        let commands = logs(&client).await[0]["history_commands"].clone();
        assert_eq!((&commands[0]["end_reason"], &commands[0]["exit_code"]), (&json!("interrupted"), &json!(137)));
    })
    .await;
}

#[tokio::test]
async fn the_log_of_an_encrypted_project_requires_the_key() {
    run(async |app| {
        let client = app.project().await;
        let id = client.new_sandbox().await;
        client.post("/api/v1/project/encrypt", json!({})).await.assert_status(200);
        exec(&client, &id, "# secret").await;
        let keyless = app.replace_with_keyless(&client).await;
        let command = keyless.post(&exec_path(&id), json!({"command": "true"})).await;
        command.assert_error(403, "encryption enabled, API key required");
        keyless.get("/api/v1/sandbox/logs").await.assert_error(403, "encryption enabled, API key required");
        // It can still be killed.
        keyless.delete(&format!("/api/v1/sandbox/{id}")).await.assert_status(200);
    })
    .await;
}

#[tokio::test]
async fn the_readiness_probe_describes_the_provider() {
    run(async |app| {
        let ready = app.client().get("/ready").await;
        assert_eq!(ready.json()["msg"], "ready");
        assert_eq!(ready.data()["sandboxes"], json!({"provider": "cloudflare", "isolation": "none", "limits": {}}));
    })
    .await;
}

#[test]
fn errors_of_providers_have_a_status() {
    use acontextd::error::Error;
    let status = |err: ProviderError| Error::from(err).status().as_u16();
    let unavailable = |msg: &str| ProviderError::Unavailable { msg: msg.into(), cause: None };
    assert_eq!(status(ProviderError::Ended), 404);
    assert_eq!(status(unavailable("no sandbox")), 503);
    assert_eq!(status(ProviderError::BadResponse { msg: "unexpected".into(), cause: None }), 502);
    assert_eq!(status(ProviderError::FileTooLarge(1)), 413);
    // An error of the object store keeps its status.
    assert_eq!(status(ProviderError::Content(std::io::Error::other(Error::KeyRequired))), 403);
}
