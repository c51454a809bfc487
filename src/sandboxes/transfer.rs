//! Copies files into and out of sandboxes, for the routes of disks and skills.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::provider::{FileToWrite, ProviderError, SandboxFile};
use super::{SANDBOX_NOT_FOUND, Sandboxes, store};
use crate::auth::Caller;
use crate::blob::ByteStream;
use crate::blob::content::ContentKey;
use crate::blob::rows::StoredBlob;
use crate::blob::service::BlobService;
use crate::db::Tx;
use crate::encryption::Kek;
use crate::error::{Error, Result};
use crate::ids::SandboxId;

/// The time by which the life of a sandbox is extended during a transfer.
pub const TRANSFER_TIME: Duration = Duration::from_mins(5);

/// Returns the content of a blob, which is opened when its first byte is read.
pub fn lazy_content(blobs: BlobService, blob: StoredBlob, kek: Option<Arc<Kek>>) -> ByteStream {
    let open = async move {
        let key = ContentKey::Kek(kek.as_deref());
        blobs.open(key, &blob, 0..blob.size.cast_unsigned()).await.map_err(io::Error::other)
    };
    stream::once(open).try_flatten().boxed()
}

/// Joins a directory in a sandbox and the name of a file.
pub fn join_path(dir: &str, name: &str) -> String {
    format!("{}/{name}", dir.strip_suffix('/').unwrap_or(dir))
}

impl Sandboxes {
    /// Checks that a sandbox exists, before a handler does work for it.
    ///
    /// # Errors
    /// Returns 404 if it does not.
    pub async fn ensure_exists(&self, caller: &Caller, sandbox: SandboxId) -> Result<()> {
        let mut conn = self.db.acquire().await?;
        store::get(&mut conn, caller.project, sandbox).await?.map(drop).ok_or(SANDBOX_NOT_FOUND)
    }

    /// Reads a file from a sandbox.
    ///
    /// # Errors
    /// Returns 404 if the sandbox or the file does not exist, 409 if the file cannot be read, 413 if it is too large, and 502 or
    /// 503 if the provider fails.
    pub async fn read_file(&self, caller: &Caller, sandbox: SandboxId, path: &str) -> Result<SandboxFile> {
        let (live, _call) = self.begin_call(caller.project, sandbox, TRANSFER_TIME).await?;
        let max_bytes = self.config.limits.max_artifact_bytes;
        let read = self.provider_of(&live).await?.read_file(&live.provider_sandbox_id, path, max_bytes).await;
        match read {
            Ok(file) => Ok(file),
            Err(err) => Err(self.provider_error(caller.project, sandbox, err).await),
        }
    }

    /// Records in the log of a sandbox that a file was copied to a disk, and the end of the call.
    ///
    /// # Errors
    /// Returns an error if the database fails.
    pub async fn record_read(&self, tx: &mut Tx, caller: &Caller, sandbox: SandboxId, path: &str) -> Result<()> {
        store::add_generated_file(tx, sandbox, path).await?;
        self.end_call(tx, caller.project, sandbox).await
    }

    /// Writes a file to the directory `dir` of a sandbox. Returns the reason if the sandbox does not accept it, for example because
    /// the directory cannot be written.
    ///
    /// # Errors
    /// Returns 404 if the sandbox does not exist, and 502 or 503 if the provider fails.
    pub async fn write_file(
        &self,
        caller: &Caller,
        sandbox: SandboxId,
        dir: &str,
        file: FileToWrite,
    ) -> Result<Option<String>> {
        let (live, _call) = self.begin_call(caller.project, sandbox, TRANSFER_TIME).await?;
        let written = self.provider_of(&live).await?.write_file(&live.provider_sandbox_id, dir, file).await;
        match written {
            Ok(()) => Ok(None),
            Err(ProviderError::FileRejected(reason)) => Ok(Some(reason)),
            Err(err) => Err(self.provider_error(caller.project, sandbox, err).await),
        }
    }

    /// Writes files to a new directory of a sandbox, which appears when it is complete. Returns its path for commands, or `None` if
    /// the directory exists.
    ///
    /// # Errors
    /// Returns 404 if the sandbox does not exist, 409 if it does not accept the files, and 502 or 503 if the provider fails.
    pub async fn write_dir(
        &self,
        caller: &Caller,
        sandbox: SandboxId,
        [dir, name]: [&str; 2],
        files: Vec<FileToWrite>,
    ) -> Result<Option<String>> {
        let (live, _call) = self.begin_call(caller.project, sandbox, TRANSFER_TIME).await?;
        let written = self.provider_of(&live).await?.write_dir(&live.provider_sandbox_id, dir, name, files).await;
        match written {
            Ok(path) => Ok(Some(path)),
            Err(ProviderError::AlreadyExists) => Ok(None),
            Err(ProviderError::FileRejected(reason)) => {
                Err(Error::Conflict(format!("the sandbox does not accept the files: {reason}").into()))
            }
            Err(err) => Err(self.provider_error(caller.project, sandbox, err).await),
        }
    }

    /// Records the end of a call that has written files.
    ///
    /// # Errors
    /// Returns an error if the database fails.
    pub async fn record_write(&self, tx: &mut Tx, caller: &Caller, sandbox: SandboxId) -> Result<()> {
        self.end_call(tx, caller.project, sandbox).await
    }
}
