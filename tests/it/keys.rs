//! Keys are replaced: the old one opens nothing more, the new one all that there was.

use std::time::Duration;

use acontextd::crypto::ProjectKey;
use acontextd::projects::root;
use axum::http::{Method, StatusCode};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::client::{Answer, Client};
use crate::support::{PEPPER, Setup, TestApp, eventually, run, run_with};

const REPLACE: &str = "/admin/v1/project/secret_key";

/// The client with the key that an answer tells.
fn renewed(client: &Client, answer: &Answer) -> Client {
    answer.assert_status(200);
    client.with_key(answer.data()["secret_key"].as_str().unwrap())
}

fn master_key(client: &Client) -> [u8; 32] {
    let key = ProjectKey::parse(client.key().strip_prefix("sk-ac-").unwrap());
    *key.master_key(PEPPER).unwrap().expect("a compact key")
}

async fn replace(client: &Client) -> Answer {
    client.put(REPLACE, json!({})).await
}

/// A client of a project that was made by the operator.
async fn with_compact_key(app: &TestApp) -> (Value, Client) {
    let made = app.admin().post("/admin/v1/project", json!({"configs": null})).await.data();
    (made["project_id"].clone(), app.client().with_key(made["secret_key"].as_str().unwrap()))
}

#[tokio::test]
async fn a_replaced_key_opens_nothing_and_the_new_one_everything() {
    run(async |app| {
        let (_, old) = with_compact_key(&app).await;
        let disk = old.new_disk().await;
        old.upload(&disk, "/", "kept.txt", "kept").await;
        let new = renewed(&old, &replace(&old).await);
        assert_eq!(new.key().len(), "sk-ac-".len() + 76);
        old.get("/api/v1/ping").await.assert_refused(401, "Unauthorized");
        replace(&old).await.assert_refused(401, "Unauthorized");
        assert_eq!(new.download(&disk, "/kept.txt").await.unwrap(), b"kept");
        assert_eq!(master_key(&new), master_key(&old), "what was sealed stays readable");
        let third = renewed(&new, &replace(&new).await);
        new.get("/api/v1/ping").await.assert_refused(401, "Unauthorized");
        third.get("/api/v1/ping").await.assert_status(200);
    })
    .await;
}

/// A root token that was rotated, replaced by another one at a start and set again at the next can be rotated again.
#[tokio::test]
async fn rotations_and_starts_with_other_tokens_work_in_any_order() {
    let setup = |token: &str| Setup::default().with("ROOT_API_BEARER_TOKEN", token);
    run_with(setup("token-a"), async |app| {
        root::ensure(&app.app).await.unwrap();
        let rotate = async |token: &str| renewed(&app.client(), &replace(&app.client().with_key(token)).await);
        let start = async |token: &str| {
            let started = app.twin(setup(token)).await;
            root::ensure(&started.app).await.unwrap();
            app.forget_keys();
        };
        for _ in 0..3 {
            let rotated = rotate("sk-ac-token-a").await;
            rotated.get("/api/v1/ping").await.assert_status(200);
            start("token-b").await;
            start("token-a").await;
            rotate("sk-ac-token-a").await.get("/api/v1/ping").await.assert_status(200);
            start("token-a").await;
            app.client().with_key("sk-ac-token-a").get("/api/v1/ping").await.assert_refused(401, "Unauthorized");
            start("token-b").await;
            rotate("sk-ac-token-b").await;
            start("token-a").await;
        }
    })
    .await;
}

#[tokio::test]
async fn the_root_token_must_not_be_the_key_of_another_project() {
    run_with(Setup::default().with("ROOT_API_BEARER_TOKEN", "token-a"), async |app| {
        root::ensure(&app.app).await.unwrap();
        let other = app.old_style_project().await;
        let token = other.key().strip_prefix("sk-ac-").unwrap();
        let started = app.twin(Setup::default().with("ROOT_API_BEARER_TOKEN", token)).await;
        let refusal = root::ensure(&started.app).await.unwrap_err().to_string();
        assert!(refusal.contains("ROOT_API_BEARER_TOKEN") && refusal.contains("another project"), "{refusal}");
    })
    .await;
}

#[tokio::test]
async fn an_old_style_key_becomes_one_with_a_master_key() {
    run(async |app| {
        let old = app.old_style_project().await;
        let new = renewed(&old, &replace(&old).await);
        let next = renewed(&new, &replace(&new).await);
        assert_eq!(master_key(&new), master_key(&next));
        let other = app.project().await;
        let other = renewed(&other, &replace(&other).await);
        assert_ne!(master_key(&new), master_key(&other));
    })
    .await;
}

#[tokio::test]
async fn an_encrypted_project_keeps_its_master_key() {
    run(async |app| {
        let plain = app.old_style_project().await;
        let (id, compact) = with_compact_key(&app).await;
        app.execute("update projects set encryption_enabled = true").await;
        let msg = "cannot rotate: project has encryption enabled but current API key has no embedded master key";
        replace(&plain).await.assert_refused(400, msg);
        plain.get("/api/v1/ping").await.assert_status(200);
        let path = format!("/admin/v1/project/{}/secret_key", id.as_str().unwrap());
        let refused = app.admin().put(&path, json!({})).await;
        refused.assert_refused(400, "cannot rotate key for encrypted projects via admin API");
        let new = renewed(&compact, &replace(&compact).await);
        assert_eq!(master_key(&new), master_key(&compact));
    })
    .await;
}

#[tokio::test]
async fn the_operator_replaces_a_lost_key() {
    run(async |app| {
        let (id, old) = with_compact_key(&app).await;
        let path = format!("/admin/v1/project/{}/secret_key", id.as_str().unwrap());
        for client in [&old, &app.client()] {
            client.put(&path, json!({})).await.assert_refused(401, "Unauthorized");
        }
        let new = renewed(&old, &app.admin().put(&path, json!({})).await);
        old.get("/api/v1/ping").await.assert_refused(401, "Unauthorized");
        new.get("/api/v1/ping").await.assert_status(200);
        assert_ne!(master_key(&new), master_key(&old));
        let nobody = format!("/admin/v1/project/{}/secret_key", uuid::Uuid::new_v4());
        app.admin().put(&nobody, json!({})).await.assert_refused(404, "project not found");
        app.admin().put("/admin/v1/project/none/secret_key", json!({})).await.assert_refused(400, "project_id");
    })
    .await;
}

#[tokio::test]
async fn of_many_at_once_one_replaces_the_key() {
    run(async |app| {
        let (_, old) = with_compact_key(&app).await;
        let answers = join_all((0..8).map(|_| replace(&old))).await;
        let (made, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == StatusCode::OK);
        assert_eq!(made.len(), 1);
        for answer in refused {
            answer.assert_refused(401, "Unauthorized");
        }
        renewed(&old, made[0]).get("/api/v1/ping").await.assert_status(200);
    })
    .await;
}

#[tokio::test]
async fn a_lost_answer_is_told_again_to_the_old_key_alone() {
    run(async |app| {
        let (_, old) = with_compact_key(&app).await;
        let (_, other) = with_compact_key(&app).await;
        let ask = async |client: &Client, key: &str| client.json_once(key, Method::PUT, REPLACE, &json!({})).await;
        let first = ask(&old, "k").await;
        let again = ask(&old, "k").await;
        assert!(again.is_replay(), "{}", again.text());
        assert_eq!(again.bytes, first.bytes);
        // It is good for nothing else.
        ask(&old, "another").await.assert_refused(401, "Unauthorized");
        replace(&old).await.assert_refused(401, "Unauthorized");
        let disk = old.json_once("k", Method::POST, "/api/v1/disk", &json!({})).await;
        disk.assert_refused(401, "Unauthorized");
        assert!(!ask(&other, "k").await.is_replay());
        app.execute("update rotated_keys set rotated_at = now() - interval '1 day'").await;
        ask(&old, "k").await.assert_refused(401, "Unauthorized");
        acontextd::projects::keys::purge_rotated(app.app.projects.clone()).await.unwrap();
        assert_eq!(app.value::<i64>("select count(*) from rotated_keys").await, 0);
        renewed(&old, &first).get("/api/v1/ping").await.assert_status(200);
    })
    .await;
}

#[tokio::test]
async fn another_process_hears_of_it() {
    run(async |app| {
        let twin = app.twin(Setup::default()).await;
        let (_, old) = with_compact_key(&app).await;
        let elsewhere = twin.client().with_key(old.key());
        elsewhere.get("/api/v1/ping").await.assert_status(200);
        let told = async {
            replace(&old).await.assert_status(200);
            // The bound is part of the promise.
            let refuses = eventually("the other process refuses the old key", async || {
                elsewhere.get("/api/v1/ping").await.status == StatusCode::UNAUTHORIZED
            });
            tokio::time::timeout(Duration::from_secs(1), refuses).await.expect("within a second");
        };
        tokio::select! {
            ended = twin.listen() => panic!("listening ended: {ended:?}"),
            () = told => {}
        }
    })
    .await;
}

#[tokio::test]
async fn no_key_is_in_the_database() {
    run(async |app| {
        let (_, old) = with_compact_key(&app).await;
        let answer = old.json_once("k", Method::PUT, REPLACE, &json!({})).await;
        let new = renewed(&old, &answer);
        for client in [&old, &new] {
            let body = client.key().strip_prefix("sk-ac-").unwrap();
            for text in [body.to_owned(), hex::encode(master_key(client))] {
                assert_eq!(app.find(&text).await, [] as [String; 0]);
            }
        }
        assert_eq!(app.find("idempotency_records").await.len(), 0);
        assert!(!app.find(&new.key()[..0]).await.is_empty(), "nothing was looked through");
    })
    .await;
}
