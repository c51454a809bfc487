//! The providers of sandboxes: the trait that each implements, and what they exchange with the rest of the feature.

pub mod cloudflare;
pub mod e2b;
mod http;
pub mod local;
mod output;
mod shell;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::cloudflare::{Cloudflare, CloudflareSettings};
use self::e2b::{E2b, E2bSettings};
use self::local::{LocalProvider, LocalSettings};
use crate::blob::ByteStream;
use crate::blob::spool::{Spool, SpoolDir};
use crate::config::{Config, SandboxType};
use crate::ids::SandboxId;
use crate::text_enum::text_enum;

text_enum! {
    /// The name of a provider, as it is configured and as clients see it.
    pub enum ProviderName {
        Local = "local",
        E2b = "e2b",
        Cloudflare = "cloudflare",
    }
}

/// Returns the provider that the settings select. If sandboxes are disabled, returns the local provider if it has been used, so that
/// its sandboxes end. `client` must follow no redirects. `abort` is canceled when running commands must end.
///
/// # Errors
/// Returns an error if the key of a provider contains a character that a header cannot contain.
pub fn from_config(
    config: &Config,
    client: reqwest::Client,
    spool: SpoolDir,
    abort: CancellationToken,
) -> anyhow::Result<Option<Arc<dyn SandboxProvider>>> {
    Ok(match config.sandbox.kind(config.server.is_exposed()) {
        SandboxType::Local => Some(Arc::new(LocalProvider::new(LocalSettings::from_config(config), spool, abort))),
        SandboxType::Cloudflare => Some(Arc::new(Cloudflare::new(CloudflareSettings::from_config(config), client)?)),
        SandboxType::E2b => Some(Arc::new(E2b::new(E2bSettings::from_config(config), client, spool)?)),
        SandboxType::Disabled => {
            let settings = LocalSettings::from_config(config);
            settings
                .dir
                .exists()
                .then(|| Arc::new(LocalProvider::new(settings, spool, abort)) as Arc<dyn SandboxProvider>)
        }
    })
}

/// A service that runs commands in sandboxes. The methods may be called concurrently, also for the same sandbox.
#[async_trait]
pub trait SandboxProvider: Send + Sync {
    fn name(&self) -> ProviderName;

    /// Returns whether sandboxes can be created, and how they are isolated.
    async fn status(&self) -> ProviderStatus;

    /// Returns the id of the directory on this machine that has the files of the sandboxes. `None` for a remote service.
    async fn host(&self) -> Result<Option<Uuid>, ProviderError> {
        Ok(None)
    }

    /// Deletes what is left of sandboxes that have ended, and returns the sandboxes on this machine. None for a remote service, which
    /// ends sandboxes by itself.
    async fn sweep(&self) -> Result<Vec<SandboxId>, ProviderError> {
        Ok(Vec::new())
    }

    /// Creates a sandbox that ends after `keepalive` without a call. Returns the id by which the provider knows it.
    async fn create(&self, sandbox: SandboxId, keepalive: Duration) -> Result<String, ProviderError>;

    /// Runs a shell command to its end.
    async fn run_command(&self, id: &str, command: &str, keepalive: Duration) -> Result<CommandOutput, ProviderError>;

    /// Reads a file. Its content may have at most `max_bytes`.
    async fn read_file(&self, id: &str, path: &str, max_bytes: u64) -> Result<SandboxFile, ProviderError>;

    /// Writes a file in the directory `dir`, which is created if it does not exist. Replaces an existing file.
    async fn write_file(&self, id: &str, dir: &str, file: FileToWrite) -> Result<(), ProviderError>;

    /// Writes files below a new directory `name` in the directory `dir`. If the call fails, the directory does not exist. Returns the
    /// path of the directory for commands, which differs from `dir` and `name` if the sandbox has no file system of its own.
    async fn write_dir(
        &self,
        id: &str,
        dir: &str,
        name: &str,
        files: Vec<FileToWrite>,
    ) -> Result<String, ProviderError>;

    /// Ends a sandbox: its processes, and its files. Has no effect if it has already ended.
    async fn end(&self, id: &str) -> Result<(), ProviderError>;
}

/// Whether sandboxes can be created, and how they are isolated.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct ProviderStatus {
    pub provider: ProviderName,
    /// The reason why no sandbox can be created; absent if sandboxes can be created, or if that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// What separates a sandbox from the machine and from other sandboxes.
    pub isolation: &'static str,
    /// Why the isolation is weaker than it could be; absent if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// What enforces each limit.
    #[schema(value_type = Object)]
    pub limits: BTreeMap<&'static str, &'static str>,
}

impl ProviderStatus {
    /// Returns the status of a service that is not contacted to find out whether it works.
    fn remote(provider: ProviderName, isolation: &'static str) -> Self {
        let limits = BTreeMap::from([("command_timeout", "the server"), ("others", "the provider")]);
        Self { provider, problem: None, isolation, warning: None, limits }
    }
}

/// The reason why a call of a provider failed.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// The sandbox has ended.
    #[error("the sandbox has ended")]
    Ended,
    /// The file does not exist.
    #[error("no such file in the sandbox: {0}")]
    FileNotFound(String),
    /// The file cannot be read or written, for the reason that the text says.
    #[error("{0}")]
    FileRejected(String),
    /// The file is larger than the limit in bytes.
    #[error("the file has more than {0} bytes")]
    FileTooLarge(u64),
    /// The content of a file that was to be written could not be read.
    #[error("the content of a file cannot be read or stored")]
    Content(#[source] std::io::Error),
    /// The directory to create exists.
    #[error("the directory exists")]
    AlreadyExists,
    /// No sandbox is to be had, or the provider does not respond.
    #[error("{msg}")]
    Unavailable { msg: String, cause: Option<anyhow::Error> },
    /// The provider has responded with something else than its interface says.
    #[error("{msg}")]
    BadResponse { msg: String, cause: Option<anyhow::Error> },
    #[error(transparent)]
    Internal(#[from] anyhow::Error),
}

/// How a command has ended, and what it has written.
#[derive(Debug)]
pub struct CommandOutput {
    pub stdout: CommandStream,
    pub stderr: CommandStream,
    pub exit_code: i32,
    pub end: CommandEnd,
}

text_enum! {
    /// Why a command has ended.
    pub enum CommandEnd {
        Exited = "exited",
        TimedOut = "timed_out",
        OutOfMemory = "out_of_memory",
        OutOfDisk = "out_of_disk",
        /// The sandbox was ended while the command ran, or the server was shut down.
        Killed = "killed",
        /// The server was killed while the command ran.
        Interrupted = "interrupted",
    }
}

/// What a command has written to one of its output streams.
#[derive(Debug, Default)]
pub struct CommandStream {
    /// The output. If it was too long, the middle is replaced with a line that says how much was omitted.
    pub text: String,
    /// The number of bytes that the command has written.
    pub total_bytes: u64,
    pub omitted_bytes: u64,
}

/// A file that was read from a sandbox.
pub struct SandboxFile {
    pub content: Spool,
    pub is_executable: bool,
}

/// A file to write to a sandbox.
pub struct FileToWrite {
    /// The path relative to the directory, without `.` and `..`.
    pub path: String,
    pub size: u64,
    pub is_executable: bool,
    pub content: ByteStream,
}
