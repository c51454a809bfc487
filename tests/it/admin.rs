//! The operator's routes for projects, and the default project.

use acontextd::projects::root;
use axum::http::{Method, StatusCode};
use serde_json::json;

use crate::support::{Setup, run, run_with};

#[tokio::test]
async fn a_project_is_made_used_and_deleted() {
    run(async |app| {
        let made = app.admin().post("/admin/v1/project", json!({"configs": {"plan": "small"}})).await;
        assert_eq!(made.status, StatusCode::OK, "{}", made.text());
        let (id, key) = (made.data()["project_id"].clone(), made.data()["secret_key"].clone());
        let key = key.as_str().unwrap();
        assert_eq!(key.len(), "sk-ac-".len() + 76);
        let client = app.client().with_key(key);
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a.txt", "content").await;
        assert_eq!(app.value::<serde_json::Value>("select configs from projects").await, json!({"plan": "small"}));

        let gone = app.admin().delete(&format!("/admin/v1/project/{}", id.as_str().unwrap())).await;
        assert_eq!(gone.json(), json!({"code": 0, "msg": "project deleted"}));
        client.get("/api/v1/ping").await.assert_refused(401, "Unauthorized");
        for table in ["disks", "artifacts", "artifact_versions"] {
            let count = format!("select count(*) from {table}");
            let count: i64 = sqlx::query_scalar(&count).fetch_one(&*app.app.db).await.unwrap();
            assert_eq!(count, 0, "{table}");
        }
        assert_eq!(app.value::<i64>("select count(*) from blob_releases").await, 1, "its bytes go to the sweep");
        let again = app.admin().delete(&format!("/admin/v1/project/{}", id.as_str().unwrap())).await;
        assert_eq!(again.status, StatusCode::OK);
    })
    .await;
}

#[tokio::test]
async fn the_operators_token_is_taken_in_two_places_and_no_other() {
    run(async |app| {
        let project = app.project().await;
        let none = app.client();
        let body = || json!({"configs": null});
        assert_eq!(app.admin().post("/admin/v1/project", body()).await.status, StatusCode::OK);
        let header = none.get_with("/admin/v1/project", "x-access-token", crate::support::ADMIN).await;
        header.assert_refused(404, "no such route");
        for client in [&none, &project, &none.with_key("wrong")] {
            client.post("/admin/v1/project", body()).await.assert_refused(401, "Unauthorized");
        }
        app.admin().get("/api/v1/ping").await.assert_refused(401, "Unauthorized");
    })
    .await;
}

#[tokio::test]
async fn without_a_token_administration_is_off() {
    run_with(Setup::default().with("ADMIN_API_TOKEN", ""), async |app| {
        for client in [app.client(), app.admin(), app.client().with_key("")] {
            client.post("/admin/v1/project", json!({})).await.assert_refused(403, "ADMIN_API_TOKEN");
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_no_project_is_refused_by_name() {
    run(async |app| {
        let admin = app.admin();
        admin.json(Method::POST, "/admin/v1/project", "").await.assert_refused(400, "body");
        for configs in [json!([]), json!("x"), json!({"a": "\0"}), json!({"__default_init_project__": true})] {
            admin.post("/admin/v1/project", json!({"configs": configs})).await.assert_refused(400, "configs");
        }
        admin.delete("/admin/v1/project/none").await.assert_refused(400, "project_id");
        assert_eq!(app.value::<i64>("select count(*) from projects").await, 0);
    })
    .await;
}

const TOKEN: &str = "ROOT_API_BEARER_TOKEN";

#[tokio::test]
async fn the_default_project_is_made_once_by_whoever_comes_first() {
    let setup = || Setup::default().with(TOKEN, "first-token");
    run_with(setup(), async |app| {
        let twin = app.twin(setup()).await;
        let (one, other) = tokio::join!(root::ensure(&app.app), root::ensure(&twin.app));
        assert_eq!(one.unwrap(), other.unwrap());
        assert_eq!(app.value::<i64>("select count(*) from projects").await, 1);
        let client = app.client().with_key("sk-ac-first-token");
        assert_eq!(client.get("/api/v1/ping").await.status, StatusCode::OK);
    })
    .await;
}

#[tokio::test]
async fn a_rotated_key_survives_a_restart_and_a_new_token_is_applied() {
    run_with(Setup::default().with(TOKEN, "first-token"), async |app| {
        root::ensure(&app.app).await.unwrap();
        app.execute("update projects set secret_key_hmac = 'rotated'").await;
        root::ensure(&app.app).await.unwrap();
        assert_eq!(app.value::<String>("select secret_key_hmac from projects").await, "rotated");

        let later = app.twin(Setup::default().with(TOKEN, "second-token")).await;
        root::ensure(&later.app).await.unwrap();
        let client = later.client().with_key("sk-ac-second-token");
        assert_eq!(client.get("/api/v1/ping").await.status, StatusCode::OK);

        app.execute("update projects set encryption_enabled = true").await;
        let third = app.twin(Setup::default().with(TOKEN, "third-token")).await;
        let refusal = root::ensure(&third.app).await.unwrap_err().to_string();
        assert!(refusal.contains(TOKEN) && refusal.contains("encrypted"), "{refusal}");
    })
    .await;
}
