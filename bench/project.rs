//! A project of its own, plain or encrypted.

use anyhow::{Context, ensure};
use serde_json::Value;
use uuid::Uuid;

use crate::http::{Client, Request};
use crate::server::ADMIN;

pub struct Project {
    pub id: Uuid,
    pub key: String,
}

impl Project {
    pub async fn make(client: &mut Client) -> anyhow::Result<Self> {
        let request = Request::post_json("create a project", "/admin/v1/project", "{}").with_key(ADMIN);
        let made = client.data(&request).await?;
        let id = made["project_id"].as_str().context("a new project has no id")?.parse()?;
        Ok(Self { id, key: made["secret_key"].as_str().context("a new project has no key")?.to_owned() })
    }

    /// The same request, to this project.
    pub fn asks(&self, request: Request) -> Request {
        request.with_key(&self.key)
    }

    pub async fn new_session(&self, client: &mut Client, tracked: bool) -> anyhow::Result<String> {
        client.new_id(&self.asks(Request::new_session(tracked))).await
    }

    pub async fn new_disk(&self, client: &mut Client) -> anyhow::Result<String> {
        client.new_id(&self.asks(Request::new_disk())).await
    }

    /// Encrypts it or opens it again, and waits until all that is there is in that form, which must be so much.
    pub async fn convert(&self, client: &mut Client, seals: bool, expected: usize) -> anyhow::Result<()> {
        let action = if seals { "encrypt" } else { "decrypt" };
        client.data(&self.asks(Request::post(action, &format!("/api/v1/project/{action}")))).await?;
        let look = self.asks(Request::get("encryption", "/api/v1/project/encryption"));
        loop {
            let now = client.data(&look).await?;
            if now["state"] != "idle" {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                continue;
            }
            ensure!(now["enabled"] == seals && now["error"] == Value::Null, "{action} ended with {now}");
            ensure!(now["done"] == expected && now["total"] == expected, "{action} of {expected} ended with {now}");
            return Ok(());
        }
    }
}
