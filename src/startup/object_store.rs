//! Opens the object store: a bucket, or a directory in the data directory.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use rustix::fs::Access;

use super::STARTUP_TIMEOUT;
use crate::blob::ObjectStore;
use crate::blob::local::LocalObjectStore;
use crate::blob::s3::{S3ObjectStore, S3Timeouts};
use crate::blob::service::BlobService;
use crate::blob::spool::SpoolDir;
use crate::config::Config;
use crate::error::data_dir::describe_failure;

/// Opens the configured object store.
///
/// # Errors
/// Returns an error with a remedy if the local directory cannot be created or written, or if nothing names the region of the
/// bucket.
pub async fn open_object_store(
    config: &Config,
    data_dir: &Path,
    spool: &SpoolDir,
) -> anyhow::Result<Arc<dyn ObjectStore>> {
    Ok(if config.s3.is_configured() {
        Arc::new(S3ObjectStore::new(&config.s3, S3Timeouts::default()).await?)
    } else {
        let root = data_dir.join("objects");
        let store = LocalObjectStore::open(&root, spool.clone());
        let store = store.map_err(|error| describe_failure(&error, "create", &root, data_dir))?;
        // Without this check, uploads to a directory of another user would fail later, one by one.
        rustix::fs::access(&root, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK)
            .map_err(|error| describe_failure(&error.into(), "write to", &root, data_dir))?;
        Arc::new(store)
    })
}

/// Waits for up to `STARTUP_TIMEOUT` until the object store is available.
///
/// # Errors
/// Returns an error with the reason, and with what to check, if the object store does not become available.
pub async fn wait_for_object_store(blobs: &BlobService) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + STARTUP_TIMEOUT;
    loop {
        match blobs.check().await {
            Ok(()) => return Ok(()),
            Err(error) if tokio::time::Instant::now() < deadline => {
                tracing::warn!(error = format!("{:#}", anyhow!(error)), "waiting for the object store");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Err(error) => return Err(anyhow!(error).context("cannot access the object store")),
        }
    }
}
