//! The provider E2B, whose sandboxes are virtual machines.
//!
//! The API of E2B creates and ends sandboxes. `envd` is the service in each sandbox; `process` runs commands through it, and
//! `stream` decodes their events. The API also returns the token of a sandbox when its life is extended, which each call does
//! first. The id of a sandbox is therefore all that has to be stored.

mod envd;
mod process;
mod stream;

use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, stream as streams};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use uuid::Uuid;

use self::envd::{Envd, PORT, TRANSFER_TIMEOUT};
use super::http::JsonApi;
use super::shell::{self, quote};
use super::{CommandOutput, FileToWrite, ProviderError, ProviderName, ProviderStatus, SandboxFile, SandboxProvider};
use crate::blob::spool::SpoolDir;
use crate::config::Config;
use crate::ids::SandboxId;

/// The timeout of a request that runs no command and copies no file.
const REQUEST_TIMEOUT: Duration = Duration::from_mins(1);
/// The maximum length of a command that is an argument of the shell. Linux limits an argument to 128 KiB.
const MAX_ARGUMENT_LEN: usize = 128 * 1024 - 1;
/// The version of the service in a sandbox since which templates have a default user.
const DEFAULT_USER_VERSION: [u32; 2] = [0, 4];
/// The user of sandboxes whose template has no default user.
const USER: &str = "user";

/// The settings of E2B.
pub struct E2bSettings {
    /// URL of the API, without a slash at the end.
    pub api_url: String,
    /// URL of the proxy that forwards requests to all sandboxes, without a slash at the end. `None` if each sandbox has a host of
    /// its own.
    pub sandbox_url: Option<String>,
    /// The domain of these hosts, unless the API returns another one.
    pub domain: String,
    pub api_key: SecretString,
    /// The template of which sandboxes are created.
    pub template: String,
    pub command_timeout: Duration,
    pub max_output_bytes: usize,
    pub keepalive: Duration,
}

impl E2bSettings {
    pub fn from_config(config: &Config) -> Self {
        let sandbox = &config.sandbox;
        let without_slash = |url: &String| url.trim_end_matches('/').to_owned();
        let domain = sandbox.e2b_domain.clone();
        Self {
            api_url: sandbox.e2b_api_url.as_ref().map_or_else(|| format!("https://api.{domain}"), without_slash),
            sandbox_url: sandbox.e2b_sandbox_url.as_ref().map(without_slash),
            domain,
            api_key: sandbox.e2b_api_key.clone().unwrap_or_default(),
            template: sandbox.template.clone().unwrap_or_default(),
            command_timeout: sandbox.command_timeout,
            max_output_bytes: usize::try_from(sandbox.max_output_bytes).unwrap_or(usize::MAX),
            keepalive: sandbox.keepalive,
        }
    }
}

/// See the [module](self).
pub struct E2b {
    api: JsonApi,
    settings: E2bSettings,
    spool: SpoolDir,
}

impl E2b {
    /// Creates the provider. `client` must follow no redirects.
    ///
    /// # Errors
    /// Returns an error if the key contains a character that a header cannot contain.
    pub fn new(settings: E2bSettings, client: reqwest::Client, spool: SpoolDir) -> anyhow::Result<Self> {
        let headers = HeaderMap::from_iter([secret_header("x-api-key", settings.api_key.expose_secret())?]);
        let (base_url, provider) = (settings.api_url.clone(), "E2B");
        let api = JsonApi { client, base_url, headers, provider, key_setting: Some("E2B_API_KEY") };
        Ok(Self { api, settings, spool })
    }

    /// Extends the life of a sandbox to `duration`, the time of a call, and the time that a sandbox lives after its last call.
    async fn connect(&self, id: &str, duration: Duration) -> Result<Envd, ProviderError> {
        let body = json!({"timeout": seconds(duration + self.settings.keepalive)});
        let path = format!("/sandboxes/{id}/connect");
        match self.api.call(Method::POST, &path, Some(&body), REQUEST_TIMEOUT).await? {
            // 201 if the sandbox was paused.
            (StatusCode::OK | StatusCode::CREATED, body) => self.envd(id, &body),
            (StatusCode::NOT_FOUND, _) => Err(ProviderError::Ended),
            (status, body) => Err(self.api.unexpected_status(status, &body)),
        }
    }

    /// Returns the service in a sandbox that the API describes.
    fn envd(&self, id: &str, sandbox: &Value) -> Result<Envd, ProviderError> {
        let base_url = self.settings.sandbox_url.clone().unwrap_or_else(|| {
            let domain = sandbox["domain"].as_str().unwrap_or(&self.settings.domain);
            format!("https://{PORT}-{id}.{domain}")
        });
        let header = |name, value: &str| {
            secret_header(name, value)
                .map_err(|err| self.api.bad_response("has a text that no header can contain", Some(err)))
        };
        let port = PORT.to_string();
        let mut headers = HeaderMap::from_iter([header("e2b-sandbox-id", id)?, header("e2b-sandbox-port", &port)?]);
        if let Some(token) = sandbox["envdAccessToken"].as_str() {
            headers.extend([header("x-access-token", token)?]);
        }
        let version = sandbox["envdVersion"].as_str().unwrap_or_default();
        let user = is_older(version, DEFAULT_USER_VERSION).then_some(USER);
        let client = self.api.client.clone();
        Ok(Envd { api: JsonApi { client, base_url, headers, provider: "the E2B sandbox", key_setting: None }, user })
    }

    /// Writes a command that is too long for an argument to a file. Returns a command that runs and deletes it.
    async fn write_command(&self, envd: &Envd, command: &str) -> Result<String, ProviderError> {
        let path = format!("/tmp/.acontextd-{}", Uuid::new_v4().simple());
        let content = command.to_owned().into();
        envd.write_file(&path, streams::once(async move { Ok(content) }).boxed()).await?;
        Ok(format!(r#"eval -- "$(cat -- {path}; rm -f -- {path})""#))
    }
}

fn secret_header(name: &'static str, value: &str) -> anyhow::Result<(HeaderName, HeaderValue)> {
    let mut value = HeaderValue::from_str(value)?;
    value.set_sensitive(true);
    Ok((HeaderName::from_static(name), value))
}

/// Returns a duration in seconds, rounded up.
fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// Compares the first two numbers of a version. A version that is not known counts as new.
fn is_older(version: &str, than: [u32; 2]) -> bool {
    let mut numbers = version.split('.').map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => [major, minor] < than,
        _ => false,
    }
}

#[async_trait]
impl SandboxProvider for E2b {
    fn name(&self) -> ProviderName {
        ProviderName::E2b
    }

    async fn status(&self) -> ProviderStatus {
        ProviderStatus::remote(self.name(), "virtual machines of E2B")
    }

    async fn create(&self, _: SandboxId, keepalive: Duration) -> Result<String, ProviderError> {
        let body = json!({
            "templateID": self.settings.template,
            "timeout": seconds(keepalive),
            "metadata": {},
            // Without it, requests to the sandbox need no token.
            "secure": true,
        });
        match self.api.call(Method::POST, "/sandboxes", Some(&body), REQUEST_TIMEOUT).await? {
            (StatusCode::CREATED, body) => {
                let id = body["sandboxID"].as_str();
                // The id becomes part of paths and host names.
                let id = id.filter(|id| !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'));
                id.map(str::to_owned).ok_or_else(|| self.api.bad_response("has no valid `sandboxID`", None))
            }
            (status, body) => Err(self.api.unexpected_status(status, &body)),
        }
    }

    async fn run_command(&self, id: &str, command: &str, _: Duration) -> Result<CommandOutput, ProviderError> {
        let timeout = self.settings.command_timeout;
        let envd = self.connect(id, timeout).await?;
        let script;
        let command = if command.len() > MAX_ARGUMENT_LEN {
            script = self.write_command(&envd, command).await?;
            &script
        } else {
            command
        };
        envd.run_command(command, timeout, self.settings.max_output_bytes).await
    }

    async fn read_file(&self, id: &str, path: &str, max_bytes: u64) -> Result<SandboxFile, ProviderError> {
        let is_executable = shell::inspect_file(self, id, path, max_bytes).await?;
        let envd = self.connect(id, TRANSFER_TIMEOUT).await?;
        Ok(SandboxFile { content: envd.read_file(path, max_bytes, &self.spool).await?, is_executable })
    }

    async fn write_file(&self, id: &str, dir: &str, file: FileToWrite) -> Result<(), ProviderError> {
        let path = format!("{}/{}", dir.strip_suffix('/').unwrap_or(dir), file.path);
        let envd = self.connect(id, TRANSFER_TIMEOUT).await?;
        envd.write_file(&path, file.content).await?;
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
        match self.api.call(Method::DELETE, &format!("/sandboxes/{id}"), None, REQUEST_TIMEOUT).await? {
            (StatusCode::OK | StatusCode::NO_CONTENT | StatusCode::NOT_FOUND, _) => Ok(()),
            (status, body) => Err(self.api.unexpected_status(status, &body)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the URL of the API, and that of a sandbox that the API describes.
    fn urls(environment: &[(&str, &str)], sandbox: &Value) -> [String; 2] {
        let required = [("SANDBOX_TYPE", "e2b"), ("E2B_API_KEY", "key"), ("SANDBOX_DEFAULT_TEMPLATE", "base")];
        let environment = required.iter().chain(environment).map(|(name, value)| (name.into(), value.into())).collect();
        let config =
            Config::from_args_and_env(["acontextd"], &environment).unwrap_or_else(|_| panic!("{environment:?}"));
        let dir = tempfile::tempdir().unwrap();
        let spool = SpoolDir::open(dir.path()).unwrap();
        let provider = E2b::new(E2bSettings::from_config(&config), reqwest::Client::new(), spool).unwrap();
        let sandbox = provider.envd("i1", sandbox).unwrap();
        [provider.api.base_url, sandbox.api.base_url]
    }

    #[test]
    fn urls_are_below_the_domain_unless_they_are_set() {
        let default = ["https://api.e2b.app", "https://49983-i1.e2b.app"];
        assert_eq!(urls(&[], &json!({"domain": null})), default);
        let other = json!({"domain": "other.example"});
        assert_eq!(urls(&[], &other), [default[0], "https://49983-i1.other.example"]);
        let domain = ("E2B_DOMAIN_BASE_URL", "own.example");
        assert_eq!(urls(&[domain], &json!({})), ["https://api.own.example", "https://49983-i1.own.example"]);
        let set = [domain, ("E2B_API_URL", "http://api:3000/"), ("E2B_SANDBOX_URL", "http://proxy:3002/")];
        assert_eq!(urls(&set, &other), ["http://api:3000", "http://proxy:3002"]);
    }

    #[test]
    fn versions_are_compared_by_number() {
        for (version, expected) in
            [("0.1.5", true), ("0.3.9", true), ("0.4.0", false), ("0.10.0", false), ("1.0", false)]
        {
            assert_eq!(is_older(version, DEFAULT_USER_VERSION), expected, "{version}");
        }
        assert!(!is_older("", DEFAULT_USER_VERSION));
    }
}
