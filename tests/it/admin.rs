//! The admin routes for projects, and the default project.

use acontextd::projects::default_project;
use axum::http::{Method, StatusCode};
use serde_json::json;

use crate::support::{TestConfig, run, run_with};

#[tokio::test]
async fn a_project_is_created_used_and_deleted() {
    run(async |app| {
        let created = app.admin().post("/admin/v1/project", json!({"configs": {"plan": "small"}})).await;
        assert_eq!(created.status, StatusCode::OK, "{}", created.text());
        let (id, key) = (created.data()["project_id"].clone(), created.data()["secret_key"].clone());
        let key = key.as_str().unwrap();
        assert_eq!(key.len(), "sk-ac-".len() + 76);
        let client = app.client().with_key(key);
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a.txt", "content").await;
        assert_eq!(
            app.fetch_scalar::<serde_json::Value>("select configs from projects").await,
            json!({"plan": "small"})
        );

        let deleted = app.admin().delete(&format!("/admin/v1/project/{}", id.as_str().unwrap())).await;
        assert_eq!(deleted.json(), json!({"code": 0, "msg": "project deleted"}));
        client.get("/api/v1/ping").await.assert_error(401, "Unauthorized");
        for table in ["disks", "artifacts", "artifact_versions", "changes", "change_files"] {
            let count = format!("select count(*) from {table}");
            let count: i64 = sqlx::query_scalar(&count).fetch_one(&*app.app.db).await.unwrap();
            assert_eq!(count, 0, "{table}");
        }
        assert_eq!(
            app.fetch_scalar::<i64>("select count(*) from blob_releases").await,
            1,
            "its blob is released to the sweep"
        );
        let again = app.admin().delete(&format!("/admin/v1/project/{}", id.as_str().unwrap())).await;
        assert_eq!(again.status, StatusCode::OK);
    })
    .await;
}

#[tokio::test]
async fn the_admin_token_authenticates_admin_routes_only() {
    run(async |app| {
        let project = app.project().await;
        let without_key = app.client();
        let body = || json!({"configs": null});
        assert_eq!(app.admin().post("/admin/v1/project", body()).await.status, StatusCode::OK);
        let response = without_key.get_with("/admin/v1/project", "x-access-token", crate::support::ADMIN).await;
        response.assert_error(404, "route not found");
        for client in [&without_key, &project, &without_key.with_key("wrong")] {
            client.post("/admin/v1/project", body()).await.assert_error(401, "Unauthorized");
        }
        app.admin().get("/api/v1/ping").await.assert_error(401, "Unauthorized");
    })
    .await;
}

#[tokio::test]
async fn without_an_admin_token_the_admin_routes_are_disabled() {
    run_with(TestConfig::default().with("ADMIN_API_TOKEN", ""), async |app| {
        for client in [app.client(), app.admin(), app.client().with_key("")] {
            client.post("/admin/v1/project", json!({})).await.assert_error(403, "ADMIN_API_TOKEN");
        }
    })
    .await;
}

#[tokio::test]
async fn invalid_projects_are_rejected_with_the_field_name() {
    run(async |app| {
        let admin = app.admin();
        admin.json(Method::POST, "/admin/v1/project", "").await.assert_error(400, "body");
        for configs in [json!([]), json!("x"), json!({"a": "\0"}), json!({"__default_init_project__": true})] {
            admin.post("/admin/v1/project", json!({"configs": configs})).await.assert_error(400, "configs");
        }
        admin.delete("/admin/v1/project/none").await.assert_error(400, "project_id");
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from projects").await, 0);
    })
    .await;
}

const TOKEN: &str = "ROOT_API_BEARER_TOKEN";

#[tokio::test]
async fn concurrent_processes_create_the_default_project_once() {
    let config = || TestConfig::default().with(TOKEN, "first-token");
    run_with(config(), async |app| {
        let second_process = app.second_process(config()).await;
        let (first, second) =
            tokio::join!(default_project::ensure(&app.app), default_project::ensure(&second_process.app));
        assert_eq!(first.unwrap(), second.unwrap());
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from projects").await, 1);
        let client = app.client().with_key("sk-ac-first-token");
        assert_eq!(client.get("/api/v1/ping").await.status, StatusCode::OK);
    })
    .await;
}

#[tokio::test]
async fn a_rotated_key_survives_a_restart_and_a_new_token_is_applied() {
    run_with(TestConfig::default().with(TOKEN, "first-token"), async |app| {
        default_project::ensure(&app.app).await.unwrap();
        app.execute("update projects set secret_key_hmac = 'rotated'").await;
        default_project::ensure(&app.app).await.unwrap();
        assert_eq!(app.fetch_scalar::<String>("select secret_key_hmac from projects").await, "rotated");

        let second = app.second_process(TestConfig::default().with(TOKEN, "second-token")).await;
        default_project::ensure(&second.app).await.unwrap();
        let client = second.client().with_key("sk-ac-second-token");
        assert_eq!(client.get("/api/v1/ping").await.status, StatusCode::OK);

        app.execute("update projects set encryption_enabled = true").await;
        let third = app.second_process(TestConfig::default().with(TOKEN, "third-token")).await;
        let error = default_project::ensure(&third.app).await.unwrap_err().to_string();
        assert!(error.contains(TOKEN) && error.contains("encrypted"), "{error}");
    })
    .await;
}
