//! The provider Cloudflare: a worker that runs containers. The worker is that of Acontext.

use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use futures_util::TryStreamExt;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use super::http::JsonApi;
use super::output::excerpt;
use super::shell::{self, quote};
use super::{
    CommandEnd, CommandOutput, FileToWrite, ProviderError, ProviderName, ProviderStatus, SandboxFile, SandboxProvider,
};
use crate::blob::spool::Spool;
use crate::config::Config;
use crate::ids::SandboxId;

/// The timeout of a request that runs no command.
const REQUEST_TIMEOUT: Duration = Duration::from_mins(1);
/// The number of hex digits in the name of a sandbox.
const NAME_DIGITS: usize = 16;

/// The settings of the worker.
pub struct CloudflareSettings {
    /// Without a slash at the end.
    pub worker_url: String,
    pub auth_token: Option<SecretString>,
    pub command_timeout: Duration,
    pub max_output_bytes: usize,
    pub keepalive: Duration,
}

impl CloudflareSettings {
    pub fn from_config(config: &Config) -> Self {
        let sandbox = &config.sandbox;
        Self {
            worker_url: sandbox.cloudflare_worker_url.as_deref().unwrap_or_default().trim_end_matches('/').to_owned(),
            auth_token: sandbox.cloudflare_auth_token.clone(),
            command_timeout: sandbox.command_timeout,
            max_output_bytes: usize::try_from(sandbox.max_output_bytes).unwrap_or(usize::MAX),
            keepalive: sandbox.keepalive,
        }
    }
}

/// See the [module](self).
pub struct Cloudflare {
    api: JsonApi,
    settings: CloudflareSettings,
}

impl Cloudflare {
    /// Creates the provider. `client` must follow no redirects.
    ///
    /// # Errors
    /// Returns an error if the token contains a character that a header cannot contain.
    pub fn new(settings: CloudflareSettings, client: reqwest::Client) -> anyhow::Result<Self> {
        let mut headers = HeaderMap::new();
        if let Some(token) = &settings.auth_token {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose_secret()))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let api = JsonApi {
            client,
            base_url: settings.worker_url.clone(),
            headers,
            provider: "the Cloudflare worker",
            key_setting: Some("CLOUDFLARE_WORKER_AUTH_TOKEN"),
        };
        Ok(Self { api, settings })
    }

    /// Sends a request about a sandbox. Returns the body of a response with status 200, or `None` if it has the status 404.
    async fn post(&self, id: &str, operation: &str, mut body: Value) -> Result<Option<Value>, ProviderError> {
        body["keepalive_seconds"] = json!(self.settings.keepalive.as_secs());
        let timeout = match operation {
            "exec" => self.settings.command_timeout,
            _ => REQUEST_TIMEOUT,
        };
        let path = format!("/sandbox/{id}/{operation}");
        match self.api.call(Method::POST, &path, Some(&body), timeout).await? {
            (StatusCode::OK, body) => Ok(Some(body)),
            (StatusCode::NOT_FOUND, _) => Ok(None),
            (status, body) => Err(self.api.unexpected_status(status, &body)),
        }
    }

    fn text<'a>(&self, body: &'a Value, key: &str) -> Result<&'a str, ProviderError> {
        body[key].as_str().ok_or_else(|| self.api.bad_response(&format!("has no text `{key}`"), None))
    }
}

#[async_trait]
impl SandboxProvider for Cloudflare {
    fn name(&self) -> ProviderName {
        ProviderName::Cloudflare
    }

    async fn status(&self) -> ProviderStatus {
        ProviderStatus::remote(self.name(), "containers of Cloudflare")
    }

    async fn create(&self, sandbox: SandboxId, keepalive: Duration) -> Result<String, ProviderError> {
        let digits = &sandbox.0.simple().to_string()[..NAME_DIGITS];
        let body = json!({"sandbox_id": format!("sandbox-{digits}"), "keepalive_seconds": keepalive.as_secs()});
        match self.api.call(Method::POST, "/sandbox/create", Some(&body), REQUEST_TIMEOUT).await? {
            (StatusCode::OK, body) => Ok(self.text(&body, "sandbox_id")?.to_owned()),
            (status, body) => Err(self.api.unexpected_status(status, &body)),
        }
    }

    async fn run_command(&self, id: &str, command: &str, _: Duration) -> Result<CommandOutput, ProviderError> {
        let output = self.post(id, "exec", json!({"command": command})).await?.ok_or(ProviderError::Ended)?;
        let exit_code = output["exit_code"].as_i64().and_then(|code| i32::try_from(code).ok());
        Ok(CommandOutput {
            stdout: excerpt(self.text(&output, "stdout")?, self.settings.max_output_bytes),
            stderr: excerpt(self.text(&output, "stderr")?, self.settings.max_output_bytes),
            exit_code: exit_code.ok_or_else(|| self.api.bad_response("has no number `exit_code`", None))?,
            end: CommandEnd::Exited,
        })
    }

    async fn read_file(&self, id: &str, path: &str, max_bytes: u64) -> Result<SandboxFile, ProviderError> {
        let is_executable = shell::inspect_file(self, id, path, max_bytes).await?;
        let body = json!({"file_path": path, "encoding": "base64"});
        let file = self.post(id, "download", body).await?;
        let file = file.ok_or_else(|| ProviderError::FileNotFound(path.to_owned()))?;
        let decoded = STANDARD.decode(self.text(&file, "content")?);
        let content = decoded.map_err(|err| self.api.bad_response("is not base64", Some(err.into())))?;
        Ok(SandboxFile { content: Spool::from_bytes(content.into()), is_executable })
    }

    async fn write_file(&self, id: &str, dir: &str, file: FileToWrite) -> Result<(), ProviderError> {
        let path = format!("{}/{}", dir.strip_suffix('/').unwrap_or(dir), file.path);
        let content: BytesMut = file.content.try_collect().await.map_err(ProviderError::Content)?;
        if content.is_empty() {
            // The worker rejects empty content.
            shell::create_empty_file(self, id, &path).await?;
        } else {
            let body = json!({"file_path": path, "content": STANDARD.encode(&content), "encoding": "base64"});
            match self.post(id, "upload", body).await? {
                Some(body) if body["success"] == true => {}
                _ => return Err(ProviderError::FileRejected(format!("the worker does not accept the file {path}"))),
            }
        }
        if file.is_executable {
            shell::run(self, id, &format!("chmod 755 -- {}", quote(&path))).await?;
        }
        Ok(())
    }

    async fn write_dir(
        &self,
        id: &str,
        dir: &str,
        name: &str,
        files: Vec<FileToWrite>,
    ) -> Result<String, ProviderError> {
        shell::write_dir(self, id, dir, name, files).await
    }

    async fn end(&self, id: &str) -> Result<(), ProviderError> {
        self.post(id, "kill", json!({})).await.map(drop)
    }
}
