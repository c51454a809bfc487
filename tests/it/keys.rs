//! Key rotation and key reset: the old key is rejected, and the new one gives access to everything.

use std::time::Duration;

use acontextd::crypto::ProjectKey;
use acontextd::projects::default_project;
use axum::http::{Method, StatusCode};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::client::{Client, TestResponse};
use crate::support::{PEPPER, TestApp, TestConfig, run, run_with, wait_until};

const ROTATION_PATH: &str = "/admin/v1/project/secret_key";

/// Returns the client with the key from a response.
fn client_with_new_key(client: &Client, response: &TestResponse) -> Client {
    response.assert_status(200);
    client.with_key(response.data()["secret_key"].as_str().unwrap())
}

fn master_key(client: &Client) -> [u8; 32] {
    let key = ProjectKey::parse(client.key().strip_prefix("sk-ac-").unwrap());
    *key.master_key(PEPPER).unwrap().expect("a compact key")
}

async fn rotate_key(client: &Client) -> TestResponse {
    client.put(ROTATION_PATH, json!({})).await
}

/// Creates a project with the admin API. Returns its id and a client with its compact key.
async fn create_project(app: &TestApp) -> (Value, Client) {
    let project = app.admin().post("/admin/v1/project", json!({"configs": null})).await.data();
    (project["project_id"].clone(), app.client().with_key(project["secret_key"].as_str().unwrap()))
}

#[tokio::test]
async fn a_rotated_key_is_rejected_and_the_new_one_has_full_access() {
    run(async |app| {
        let (_, old) = create_project(&app).await;
        let disk = old.new_disk().await;
        old.upload(&disk, "/", "a.txt", "content").await;
        let new = client_with_new_key(&old, &rotate_key(&old).await);
        assert_eq!(new.key().len(), "sk-ac-".len() + 76);
        old.get("/api/v1/ping").await.assert_error(401, "Unauthorized");
        rotate_key(&old).await.assert_error(401, "Unauthorized");
        assert_eq!(new.download(&disk, "/a.txt").await.unwrap(), b"content");
        assert_eq!(master_key(&new), master_key(&old), "encrypted content stays readable");
        let third = client_with_new_key(&new, &rotate_key(&new).await);
        new.get("/api/v1/ping").await.assert_error(401, "Unauthorized");
        third.get("/api/v1/ping").await.assert_status(200);
    })
    .await;
}

/// A root token that was rotated, replaced by another one at a restart and configured again at the next one can be
/// rotated again.
#[tokio::test]
async fn rotations_and_restarts_with_other_tokens_work_in_any_order() {
    let config = |token: &str| TestConfig::default().with("ROOT_API_BEARER_TOKEN", token);
    run_with(config("token-a"), async |app| {
        default_project::ensure(&app.app).await.unwrap();
        let rotate =
            async |token: &str| client_with_new_key(&app.client(), &rotate_key(&app.client().with_key(token)).await);
        let restart = async |token: &str| {
            let second_process = app.second_process(config(token)).await;
            default_project::ensure(&second_process.app).await.unwrap();
            app.clear_key_cache();
        };
        for _ in 0..3 {
            let rotated = rotate("sk-ac-token-a").await;
            rotated.get("/api/v1/ping").await.assert_status(200);
            restart("token-b").await;
            restart("token-a").await;
            rotate("sk-ac-token-a").await.get("/api/v1/ping").await.assert_status(200);
            restart("token-a").await;
            app.client().with_key("sk-ac-token-a").get("/api/v1/ping").await.assert_error(401, "Unauthorized");
            restart("token-b").await;
            rotate("sk-ac-token-b").await;
            restart("token-a").await;
        }
    })
    .await;
}

#[tokio::test]
async fn the_root_token_must_not_be_the_key_of_another_project() {
    run_with(TestConfig::default().with("ROOT_API_BEARER_TOKEN", "token-a"), async |app| {
        default_project::ensure(&app.app).await.unwrap();
        let other = app.legacy_key_project().await;
        let token = other.key().strip_prefix("sk-ac-").unwrap();
        let second_process = app.second_process(TestConfig::default().with("ROOT_API_BEARER_TOKEN", token)).await;
        let error = default_project::ensure(&second_process.app).await.unwrap_err().to_string();
        assert!(error.contains("ROOT_API_BEARER_TOKEN") && error.contains("another project"), "{error}");
    })
    .await;
}

#[tokio::test]
async fn a_rotated_legacy_key_becomes_a_compact_key() {
    run(async |app| {
        let old = app.legacy_key_project().await;
        let new = client_with_new_key(&old, &rotate_key(&old).await);
        let next = client_with_new_key(&new, &rotate_key(&new).await);
        assert_eq!(master_key(&new), master_key(&next));
        let other = app.project().await;
        let other = client_with_new_key(&other, &rotate_key(&other).await);
        assert_ne!(master_key(&new), master_key(&other));
    })
    .await;
}

#[tokio::test]
async fn an_encrypted_project_keeps_its_master_key() {
    run(async |app| {
        let legacy = app.legacy_key_project().await;
        let (id, compact) = create_project(&app).await;
        app.execute("update projects set encryption_enabled = true").await;
        let message = "cannot rotate: project has encryption enabled but current API key has no embedded master key";
        rotate_key(&legacy).await.assert_error(400, message);
        legacy.get("/api/v1/ping").await.assert_status(200);
        let path = format!("/admin/v1/project/{}/secret_key", id.as_str().unwrap());
        let response = app.admin().put(&path, json!({})).await;
        response.assert_error(400, "cannot rotate key for encrypted projects via admin API");
        let new = client_with_new_key(&compact, &rotate_key(&compact).await);
        assert_eq!(master_key(&new), master_key(&compact));
    })
    .await;
}

#[tokio::test]
async fn the_operator_resets_a_lost_key() {
    run(async |app| {
        let (id, old) = create_project(&app).await;
        let path = format!("/admin/v1/project/{}/secret_key", id.as_str().unwrap());
        for client in [&old, &app.client()] {
            client.put(&path, json!({})).await.assert_error(401, "Unauthorized");
        }
        let new = client_with_new_key(&old, &app.admin().put(&path, json!({})).await);
        old.get("/api/v1/ping").await.assert_error(401, "Unauthorized");
        new.get("/api/v1/ping").await.assert_status(200);
        assert_ne!(master_key(&new), master_key(&old));
        let unknown = format!("/admin/v1/project/{}/secret_key", uuid::Uuid::new_v4());
        app.admin().put(&unknown, json!({})).await.assert_error(404, "project not found");
        app.admin().put("/admin/v1/project/none/secret_key", json!({})).await.assert_error(400, "project_id");
    })
    .await;
}

#[tokio::test]
async fn of_concurrent_rotations_one_succeeds() {
    run(async |app| {
        let (_, old) = create_project(&app).await;
        let responses = join_all((0..8).map(|_| rotate_key(&old))).await;
        let (succeeded, failed): (Vec<_>, Vec<_>) =
            responses.iter().partition(|response| response.status == StatusCode::OK);
        assert_eq!(succeeded.len(), 1);
        for response in failed {
            response.assert_error(401, "Unauthorized");
        }
        client_with_new_key(&old, succeeded[0]).get("/api/v1/ping").await.assert_status(200);
    })
    .await;
}

#[tokio::test]
async fn a_rotation_can_be_replayed_with_the_old_key_only() {
    run(async |app| {
        let (_, old) = create_project(&app).await;
        let (_, other) = create_project(&app).await;
        let rotate =
            async |client: &Client, key: &str| client.json_with_key(key, Method::PUT, ROTATION_PATH, &json!({})).await;
        let first = rotate(&old, "k").await;
        let replay = rotate(&old, "k").await;
        assert!(replay.is_replay(), "{}", replay.text());
        assert_eq!(replay.bytes, first.bytes);
        // The old key is accepted for nothing else.
        rotate(&old, "another").await.assert_error(401, "Unauthorized");
        rotate_key(&old).await.assert_error(401, "Unauthorized");
        let disk = old.json_with_key("k", Method::POST, "/api/v1/disk", &json!({})).await;
        disk.assert_error(401, "Unauthorized");
        assert!(!rotate(&other, "k").await.is_replay());
        app.execute("update rotated_keys set rotated_at = now() - interval '1 day'").await;
        rotate(&old, "k").await.assert_error(401, "Unauthorized");
        acontextd::projects::keys::purge_rotated_keys(app.app.projects.clone()).await.unwrap();
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from rotated_keys").await, 0);
        client_with_new_key(&old, &first).get("/api/v1/ping").await.assert_status(200);
    })
    .await;
}

#[tokio::test]
async fn another_process_is_notified_of_a_rotation() {
    run(async |app| {
        let second_process = app.second_process(TestConfig::default()).await;
        let (_, old) = create_project(&app).await;
        let client = second_process.client().with_key(old.key());
        client.get("/api/v1/ping").await.assert_status(200);
        let rotation = async {
            rotate_key(&old).await.assert_status(200);
            // The time limit is part of the guarantee.
            let rejected = wait_until("the other process rejects the old key", async || {
                client.get("/api/v1/ping").await.status == StatusCode::UNAUTHORIZED
            });
            tokio::time::timeout(Duration::from_secs(1), rejected).await.expect("within a second");
        };
        tokio::select! {
            ended = second_process.listen() => panic!("the listener ended: {ended:?}"),
            () = rotation => {}
        }
    })
    .await;
}

#[tokio::test]
async fn the_database_contains_no_key() {
    run(async |app| {
        let (_, old) = create_project(&app).await;
        let response = old.json_with_key("k", Method::PUT, ROTATION_PATH, &json!({})).await;
        let new = client_with_new_key(&old, &response);
        for client in [&old, &new] {
            let body = client.key().strip_prefix("sk-ac-").unwrap();
            for text in [body.to_owned(), hex::encode(master_key(client))] {
                assert_eq!(app.tables_containing(&text).await, [] as [String; 0]);
            }
        }
        assert_eq!(app.tables_containing("idempotency_records").await.len(), 0);
        assert!(!app.tables_containing(&new.key()[..0]).await.is_empty(), "no row was searched");
    })
    .await;
}

/// Returns a client whose key is the secret of a compact key in hex. It has the same lookup hash.
fn client_with_hex_form(client: &Client) -> Client {
    let compact = client.key().strip_prefix("sk-ac-").unwrap();
    let bytes = URL_SAFE_NO_PAD.decode(compact).unwrap();
    let hex = hex::encode(&bytes[1..17]);
    assert_eq!(ProjectKey::parse(&hex).lookup_hash(PEPPER), ProjectKey::parse(compact).lookup_hash(PEPPER));
    client.with_key(&format!("sk-ac-{hex}"))
}

#[tokio::test]
async fn the_hex_form_of_a_generated_key_is_rejected() {
    run(async |app| {
        let assert_only_compact = async |client: &Client| {
            // In this order, so that the key is not cached, and in the other order.
            for client in [&client_with_hex_form(client), client, &client_with_hex_form(client)] {
                let is_compact = client.key().len() > 70;
                let status = client.get("/api/v1/ping").await.status.as_u16();
                assert_eq!(status, if is_compact { 200 } else { 401 }, "{}", client.key());
            }
        };
        let (project, created) = create_project(&app).await;
        assert_only_compact(&created).await;
        let replayable = created.json_with_key("k", Method::PUT, ROTATION_PATH, &json!({})).await;
        let rotated = client_with_new_key(&created, &replayable);
        assert_only_compact(&rotated).await;
        // The response with the new key is replayed for the old key, but not for its hex form.
        let replay = async |client: &Client| client.json_with_key("k", Method::PUT, ROTATION_PATH, &json!({})).await;
        assert!(replay(&created).await.is_replay());
        replay(&client_with_hex_form(&created)).await.assert_error(401, "Unauthorized");
        let path = format!("/admin/v1/project/{}/secret_key", project.as_str().unwrap());
        let reset = client_with_new_key(&rotated, &app.admin().put(&path, json!({})).await);
        assert_only_compact(&reset).await;
        // A key that Acontext or an earlier version has stored.
        app.execute("update projects set key_is_compact = null").await;
        app.clear_key_cache();
        for client in [&reset, &client_with_hex_form(&reset)] {
            client.get("/api/v1/ping").await.assert_status(200);
        }
    })
    .await;
}

#[tokio::test]
async fn only_the_compact_form_of_a_compact_root_token_is_accepted() {
    let (_, text) = ProjectKey::generate(PEPPER).unwrap();
    let config = TestConfig::default().with("ROOT_API_BEARER_TOKEN", &text);
    run_with(config, async |app| {
        default_project::ensure(&app.app).await.unwrap();
        let client = app.client().with_key(&format!("sk-ac-{}", *text));
        client_with_hex_form(&client).get("/api/v1/ping").await.assert_error(401, "Unauthorized");
        client.get("/api/v1/ping").await.assert_status(200);
    })
    .await;
}

#[tokio::test]
async fn a_rotated_key_that_two_projects_had_belongs_to_the_last_one() {
    run(async |app| {
        let first = app.legacy_key_project().await;
        let key = ProjectKey::parse(first.key().strip_prefix("sk-ac-").unwrap());
        rotate_key(&first).await.assert_status(200);
        app.insert_project(&key, "not checked").await;
        let second = first.json_with_key("k", Method::PUT, ROTATION_PATH, &json!({})).await;
        second.assert_status(200);
        let replay = first.json_with_key("k", Method::PUT, ROTATION_PATH, &json!({})).await;
        assert!(replay.is_replay() && replay.bytes == second.bytes, "{}", replay.text());
    })
    .await;
}
