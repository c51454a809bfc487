//! The settings of a project.

use axum::http::Method;
use futures_util::future::join_all;
use serde_json::json;

use crate::support::{TestConfig, run};

const CONFIGS: &str = "/api/v1/project/configs";

#[tokio::test]
async fn settings_are_merged_and_read_back_equal() {
    run(async |app| {
        let (client, other) = (app.project().await, app.project().await);
        let second_process = app.second_process(TestConfig::default()).await;
        let elsewhere = second_process.client().with_key(client.key());
        let get = async || elsewhere.get(CONFIGS).await;
        assert_eq!(get().await.json(), json!({"code": 0, "data": {"encryption_enabled": false}, "msg": "ok"}));
        let turns = "project_session_message_buffer_max_turns";
        let patched =
            client.patch(CONFIGS, json!({"task_success_criteria": "green", turns: 4, "own": {"a": [1]}})).await;
        let expected = json!({"task_success_criteria": "green", turns: 4, "own": {"a": [1]}});
        assert_eq!(patched.json(), json!({"code": 0, "data": expected, "msg": "ok"}));
        let patched = client
            .patch(CONFIGS, json!({"own": {"b": null}, turns: null, "encryption_enabled": true, "none": null}))
            .await;
        let expected = json!({"task_success_criteria": "green", "own": {"b": null}, "encryption_enabled": true});
        assert_eq!(patched.data(), expected);
        // `encryption_enabled` is always the encryption setting of the project, whatever was written.
        let expected = json!({"task_success_criteria": "green", "own": {"b": null}, "encryption_enabled": false});
        assert_eq!(get().await.data(), expected);
        assert_eq!(other.get(CONFIGS).await.data(), json!({"encryption_enabled": false}));
    })
    .await;
}

#[tokio::test]
async fn concurrent_changes_are_all_stored() {
    run(async |app| {
        let client = app.project().await;
        let patches = (0..16).map(|n| {
            let (client, key) = (client.clone(), format!("k{n}"));
            async move { client.patch(CONFIGS, json!({key: n})).await }
        });
        for response in join_all(patches).await {
            response.assert_status(200);
        }
        assert_eq!(client.get(CONFIGS).await.data().as_object().unwrap().len(), 17);
    })
    .await;
}

#[tokio::test]
async fn a_change_with_an_invalid_setting_is_rejected_as_a_whole() {
    run(async |app| {
        let client = app.project().await;
        let long = "ü".repeat(1001);
        for (patch, msg) in [
            (json!({"own": 1, "task_success_criteria": 5}), "task_success_criteria must be a string"),
            (json!({"own": 1, "task_failure_criteria": ["a"]}), "task_failure_criteria must be a string"),
            (json!({"own": 1, "task_failure_criteria": long}), "task_failure_criteria exceeds max length (2000 chars)"),
            (
                json!({"own": 1, "project_session_message_buffer_max_turns": "many"}),
                "project_session_message_buffer_max_turns",
            ),
            (json!({"own": 1, "default_task_agent_max_iterations": 1.5}), "default_task_agent_max_iterations"),
            (
                json!({"own": 1, "default_task_agent_previous_progress_num": -1}),
                "default_task_agent_previous_progress_num",
            ),
            (json!({"own": "\0"}), "configs"),
        ] {
            client.patch(CONFIGS, patch).await.assert_error(400, msg);
        }
        for body in ["{}", "null"] {
            client.json(Method::PATCH, CONFIGS, body).await.assert_error(400, "empty body");
        }
        for body in ["[1]", "\"text\"", "{broken", ""] {
            let response = client.json(Method::PATCH, CONFIGS, body).await;
            response.assert_error(400, "invalid or too-large JSON body (max 64KB)");
        }
        let large = json!({"own": "x".repeat(64 * 1024)});
        client.patch(CONFIGS, large).await.assert_error(413, "invalid or too-large JSON body (max 64KB)");
        assert_eq!(client.get(CONFIGS).await.data(), json!({"encryption_enabled": false}));
        let fit = "x".repeat(2000);
        client.patch(CONFIGS, json!({"task_success_criteria": fit})).await.assert_status(200);
    })
    .await;
}

#[tokio::test]
async fn all_settings_together_have_a_limit() {
    run(async |app| {
        let client = app.project().await;
        let mut rejected = None;
        for n in 0..20 {
            let response = client.patch(CONFIGS, json!({format!("k{n}"): "x".repeat(60 * 1024)})).await;
            if !response.status.is_success() {
                rejected = Some(response);
                break;
            }
        }
        rejected.expect("a limit").assert_error(413, "configs");
    })
    .await;
}

#[tokio::test]
async fn configs_of_the_operator_are_preserved() {
    run(async |app| {
        let client = app.project().await;
        for (stored, expected) in [
            (
                "'{\"mark\": true, \"project_config\": {\"a\": 1}}'",
                json!({"mark": true, "project_config": {"a": 1, "b": 2}}),
            ),
            ("'{\"project_config\": 7}'", json!({"project_config": {"b": 2}})),
            ("'[1]'", json!({"project_config": {"b": 2}})),
            ("null", json!({"project_config": {"b": 2}})),
        ] {
            let sql = format!("update projects set configs = {stored}");
            sqlx::query(&sql).execute(&*app.app.db).await.unwrap();
            client.patch(CONFIGS, json!({"b": 2})).await.assert_status(200);
            assert_eq!(
                app.fetch_scalar::<serde_json::Value>("select configs from projects").await,
                expected,
                "{stored}"
            );
        }
    })
    .await;
}
