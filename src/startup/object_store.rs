//! The object store: a bucket, or a directory in the data directory.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;

use super::STARTUP_TIMEOUT;
use crate::blob::BlobStore;
use crate::blob::local::LocalBlobStore;
use crate::blob::s3::S3BlobStore;
use crate::blob::service::BlobService;
use crate::blob::spool::SpoolDir;
use crate::config::Config;

/// Opens the configured object store.
///
/// # Errors
/// The directory cannot be created.
pub fn open_object_store(config: &Config, data_dir: &Path, spool: &SpoolDir) -> anyhow::Result<Arc<dyn BlobStore>> {
    Ok(if config.s3.is_configured() {
        Arc::new(S3BlobStore::new(&config.s3))
    } else {
        Arc::new(LocalBlobStore::open(&data_dir.join("objects"), spool.clone())?)
    })
}

/// Waits until the object store responds.
///
/// # Errors
/// It does not respond in time; the message names the settings to check.
pub async fn wait_for_object_store(blobs: &BlobService) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + STARTUP_TIMEOUT;
    loop {
        match blobs.check().await {
            Ok(()) => return Ok(()),
            Err(error) if tokio::time::Instant::now() < deadline => {
                tracing::warn!(error = format!("{:#}", anyhow!(error)), "the object store does not answer yet");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Err(error) => {
                return Err(anyhow!(error).context(
                    "the objects cannot be reached: look at S3_BUCKET (it must exist), S3_ENDPOINT, S3_ACCESS_KEY and \
                     S3_SECRET_KEY, or at the rights of the data folder",
                ));
            }
        }
    }
}
