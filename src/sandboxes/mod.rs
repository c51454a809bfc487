//! Sandboxes, in which agents run commands.
//!
//! A [provider](provider::SandboxProvider) runs the commands; by default it is the machine of this server. The rows of the database
//! say which sandboxes exist, until when, and what was done in them. Each call extends the life of its sandbox.
//!
//! [`api`] has the handlers for sandboxes and commands, [`logs`] the one that lists what was done. [`transfer`] copies files into
//! and out of sandboxes for the routes of disks and skills. [`active_calls`] knows which calls are in progress, and [`expiry`] ends sandboxes whose time is over. [`convert`] converts the
//! stored commands to the other storage format.

pub mod active_calls;
pub mod api;
pub mod command_store;
pub mod convert;
pub mod expiry;
pub mod logs;
pub mod provider;
pub mod store;
pub mod transfer;

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::config::SandboxType;
use crate::db::Tx;
use crate::error::storage::temp_file_error;
use crate::error::{Error, Result};
use crate::ids::{ProjectId, SandboxId};
use crate::platform::{Platform, platform_context};
use crate::time::Timestamp;
use crate::usage_metrics::store::{SANDBOX_ALIVE_TAG, increment};
use active_calls::{ActiveCall, ActiveCalls};
use provider::{ProviderError, ProviderStatus, SandboxProvider};
use store::LiveSandbox;

/// The error for a sandbox that does not exist, has ended, or belongs to another project.
pub const SANDBOX_NOT_FOUND: Error = Error::NotFound("sandbox not found; it may have ended");

platform_context! {
    /// The provider of sandboxes.
    Sandboxes, SandboxesInner
}

/// The fields of [`Sandboxes`].
pub struct SandboxesInner {
    platform: Platform,
    /// If sandboxes are disabled, this is `None` or the local provider, which only ends sandboxes then.
    provider: Option<Arc<dyn SandboxProvider>>,
    is_enabled: bool,
    active_calls: ActiveCalls,
    /// Commands that started earlier were started by another process.
    started_at: Timestamp,
}

impl Sandboxes {
    pub fn new(platform: Platform, provider: Option<Arc<dyn SandboxProvider>>) -> Self {
        let config = &platform.config;
        let is_enabled = config.sandbox.kind(config.server.is_exposed()) != SandboxType::Disabled;
        let (active_calls, started_at) = (ActiveCalls::default(), Timestamp(Utc::now()));
        Self(Arc::new(SandboxesInner { platform, provider, is_enabled, active_calls, started_at }))
    }

    fn provider(&self) -> Result<&Arc<dyn SandboxProvider>> {
        let msg = "sandboxes are disabled on this server; its operator can enable them with SANDBOX_TYPE=local";
        self.provider.as_ref().filter(|_| self.is_enabled).ok_or_else(|| Error::unavailable(msg))
    }

    /// Returns whether sandboxes can be created; `None` if they are disabled.
    pub async fn status(&self) -> Option<ProviderStatus> {
        match self.provider.as_ref().filter(|_| self.is_enabled) {
            Some(provider) => Some(provider.status().await),
            None => None,
        }
    }

    /// Describes where sandboxes run.
    pub async fn describe(&self) -> String {
        match self.status().await {
            None => "disabled; SANDBOX_TYPE enables them".to_owned(),
            Some(ProviderStatus { problem: Some(_), .. }) => "not available; GET /ready has the reason".to_owned(),
            Some(ProviderStatus { provider, warning: Some(_), .. }) => {
                format!("{provider}, with a weaker isolation; GET /ready has the reason")
            }
            Some(ProviderStatus { provider, .. }) => provider.to_string(),
        }
    }

    /// Returns the provider that runs commands in a sandbox and copies its files.
    ///
    /// # Errors
    /// Returns 503 if sandboxes are disabled, and the errors of [`Self::owner_of`].
    async fn provider_of(&self, sandbox: &LiveSandbox) -> Result<&Arc<dyn SandboxProvider>> {
        self.provider()?;
        self.owner_of(sandbox).await
    }

    /// Returns the provider that can end a sandbox.
    ///
    /// # Errors
    /// Returns 503 if another provider is configured now, or if the files of the sandbox are on another machine.
    async fn owner_of(&self, sandbox: &LiveSandbox) -> Result<&Arc<dyn SandboxProvider>> {
        let Some(provider) = self.provider.as_ref().filter(|provider| provider.name() == sandbox.provider) else {
            let msg = format!("the sandbox belongs to the provider {}, which is not configured", sandbox.provider);
            return Err(Error::unavailable(msg));
        };
        if sandbox.host != provider.host().await? {
            let msg =
                "the sandbox runs on another server; send the requests of a sandbox to the server that created it";
            return Err(Error::unavailable(msg));
        }
        Ok(provider)
    }

    /// How long a sandbox lives without a call.
    fn keepalive(&self) -> Duration {
        self.config.sandbox.keepalive
    }

    /// Returns a sandbox of a project, and extends its life to `duration`, the time of a call, and the time that a sandbox lives
    /// after its last call.
    ///
    /// # Errors
    /// Returns 404 if there is no such sandbox.
    async fn begin_call(
        &self,
        project: ProjectId,
        sandbox: SandboxId,
        duration: Duration,
    ) -> Result<(LiveSandbox, ActiveCall)> {
        let call = self.active_calls.begin(sandbox, duration);
        let mut conn = self.db.acquire().await?;
        let sandbox = store::begin_call(&mut conn, project, sandbox, duration + self.keepalive()).await?;
        Ok((sandbox.ok_or(SANDBOX_NOT_FOUND)?, call))
    }

    /// Records the end of a call: the sandbox lives on for the usual time after its last call.
    async fn end_call(&self, tx: &mut Tx, project: ProjectId, sandbox: SandboxId) -> Result<()> {
        let lifetime = self.active_calls.remaining(sandbox) + self.keepalive();
        if let Some(grown) = store::set_lifetime(tx, project, sandbox, lifetime).await? {
            increment(tx, project, SANDBOX_ALIVE_TAG, grown).await?;
        }
        Ok(())
    }

    /// Converts the error of a provider. If the sandbox has ended without a request, records that.
    async fn provider_error(&self, project: ProjectId, sandbox: SandboxId, error: ProviderError) -> Error {
        if matches!(error, ProviderError::Ended)
            && let Err(err) = expiry::record_end(self, project, sandbox).await
        {
            return err;
        }
        error.into()
    }
}

impl From<ProviderError> for Error {
    fn from(error: ProviderError) -> Self {
        match error {
            ProviderError::Ended => SANDBOX_NOT_FOUND,
            ProviderError::FileNotFound(_) => Self::NotFound("file not found in the sandbox"),
            ProviderError::FileRejected(reason) => {
                Self::Conflict(format!("the file cannot be copied from the sandbox: {reason}").into())
            }
            ProviderError::AlreadyExists => Self::Conflict(error.to_string().into()),
            ProviderError::FileTooLarge(max) => {
                Self::PayloadTooLarge(format!("the file has more than {max} bytes; see ARTIFACT_MAX_UPLOAD_SIZE_BYTES"))
            }
            // An error of the object store keeps its status.
            ProviderError::Content(err) => err.downcast().unwrap_or_else(temp_file_error),
            ProviderError::Unavailable { msg, cause } => Self::Unavailable { msg: msg.into(), cause },
            ProviderError::BadResponse { msg, cause } => Self::BadGateway { msg: msg.into(), cause },
            ProviderError::Internal(cause) => Self::Internal(cause),
        }
    }
}

pub fn router() -> OpenApiRouter<Sandboxes> {
    OpenApiRouter::new()
        .routes(routes!(api::create_sandbox))
        .routes(routes!(logs::list_sandbox_logs))
        .routes(routes!(api::kill_sandbox))
        .routes(routes!(api::run_command))
}
