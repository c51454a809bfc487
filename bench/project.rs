//! Creates projects, with or without encryption.

use anyhow::{Context, ensure};
use serde_json::Value;
use uuid::Uuid;

use crate::http::{Client, Request};
use crate::server::ADMIN_TOKEN;

pub struct Project {
    pub id: Uuid,
    pub key: String,
}

impl Project {
    pub async fn create(client: &mut Client) -> anyhow::Result<Self> {
        let request = Request::post_json("create a project", "/admin/v1/project", "{}").with_key(ADMIN_TOKEN);
        let created = client.data(&request).await?;
        let id = created["project_id"].as_str().context("a new project has no id")?.parse()?;
        Ok(Self { id, key: created["secret_key"].as_str().context("a new project has no key")?.to_owned() })
    }

    /// Sets the key of the request to the key of this project.
    pub fn with_key(&self, request: Request) -> Request {
        request.with_key(&self.key)
    }

    pub async fn new_session(&self, client: &mut Client, tracked: bool) -> anyhow::Result<String> {
        client.new_id(&self.with_key(Request::new_session(tracked))).await
    }

    pub async fn new_disk(&self, client: &mut Client) -> anyhow::Result<String> {
        client.new_id(&self.with_key(Request::new_disk())).await
    }

    /// Encrypts or decrypts the project and waits until all content is converted, which must be `expected` messages and
    /// files.
    pub async fn convert(&self, client: &mut Client, encrypt: bool, expected: usize) -> anyhow::Result<()> {
        let action = if encrypt { "encrypt" } else { "decrypt" };
        client.data(&self.with_key(Request::post(action, &format!("/api/v1/project/{action}")))).await?;
        let request = self.with_key(Request::get("encryption", "/api/v1/project/encryption"));
        loop {
            let status = client.data(&request).await?;
            if status["state"] != "idle" {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                continue;
            }
            ensure!(status["enabled"] == encrypt && status["error"] == Value::Null, "{action} ended with {status}");
            ensure!(
                status["done"] == expected && status["total"] == expected,
                "{action} of {expected} ended with {status}"
            );
            return Ok(());
        }
    }
}
