//! Calls that are in progress while something else happens.

use std::sync::atomic::Ordering;

use serde_json::json;

use super::routes::{exec, exec_path, fake_config, logs};
use crate::support::{run_with, wait_until};

#[tokio::test]
async fn a_command_is_logged_after_its_client_disconnects() {
    let (fake, config) = fake_config();
    run_with(config, async |app| {
        let client = app.project().await;
        let id = client.new_sandbox().await;
        let waiting = wait_until("the command runs", async || fake.waiting.load(Ordering::SeqCst) == 1);
        let path = exec_path(&id);
        tokio::select! {
            response = client.post(&path, json!({"command": "wait"})) => panic!("{}", response.text()),
            () = waiting => {}
        }
        fake.latch.notify_one();
        wait_until("the command is logged", async || logs(&client).await[0]["history_commands"] != json!([])).await;
        let commands = logs(&client).await[0]["history_commands"].clone();
        assert_eq!((&commands[0]["command"], &commands[0]["end_reason"]), (&json!("wait"), &json!("exited")));
    })
    .await;
}

#[tokio::test]
async fn a_command_does_not_shorten_the_life_of_a_sandbox_during_a_copy() {
    let (fake, config) = fake_config();
    run_with(config.with("SANDBOX_DEFAULT_KEEPALIVE_SECONDS", "30"), async |app| {
        let client = app.project().await;
        let (sandbox, disk) = (client.new_sandbox().await, client.new_disk().await);
        fake.sandboxes().get_mut(&format!("fake-{sandbox}")).unwrap().insert("/tmp/slow".into(), ("x".into(), false));
        let lifetime = async || {
            let lifetime = "select extract(epoch from expires_at - now())::bigint from sandboxes";
            app.fetch_scalar::<i64>(lifetime).await
        };
        let body = json!({"file_path": "/", "sandbox_filename": "slow", "sandbox_id": sandbox, "sandbox_path": "/tmp"});
        let path = format!("/api/v1/disk/{disk}/artifact/upload_from_sandbox");
        let copy = async { client.post(&path, body).await.assert_status(201) };
        tokio::join!(copy, async {
            wait_until("the copy runs", async || fake.waiting.load(Ordering::SeqCst) == 1).await;
            exec(&client, &sandbox, "true").await;
            assert!(lifetime().await > 300, "{}", lifetime().await);
            fake.latch.notify_one();
        });
        assert!(lifetime().await <= 30, "{}", lifetime().await);
    })
    .await;
}
