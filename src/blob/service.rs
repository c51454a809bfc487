//! The handle through which features use blobs.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::ObjectStore;
use super::spool::SpoolDir;
use crate::config::Limits;
use crate::db::Db;
use crate::jobs::JobQueue;
use crate::process::Process;

/// The memory budget of [`BlobService::read_within_budget`] in KiB. Only the bytes that are read count, not copies of them: a
/// response with the text of a file takes about three times the size of the file.
pub(super) const READ_BUDGET_KIB: u32 = 64 * 1024;

/// Stores, reads, converts and deletes blobs. A clone is cheap. The methods are in [`super::content`], [`super::ingest`],
/// [`super::convert`] and [`super::sweep`].
#[derive(Clone)]
pub struct BlobService(Arc<Inner>);

pub struct Inner {
    pub(super) db: Db,
    pub(super) queue: JobQueue,
    pub(super) process: Process,
    pub(super) spool_dir: SpoolDir,
    pub(super) store: Arc<dyn ObjectStore>,
    /// How long an object is kept after its last reference was deleted.
    pub(super) grace_period: Duration,
    /// The timeout of an upload.
    pub(super) upload_timeout: Duration,
    pub(super) read_budget: Semaphore,
}

impl BlobService {
    pub fn new(
        db: Db,
        queue: JobQueue,
        process: Process,
        spool_dir: SpoolDir,
        store: Arc<dyn ObjectStore>,
        limits: &Limits,
    ) -> Self {
        Self(Arc::new(Inner {
            db,
            queue,
            process,
            spool_dir,
            store,
            grace_period: limits.blob_grace,
            upload_timeout: limits.upload_timeout,
            read_budget: Semaphore::new(READ_BUDGET_KIB as usize),
        }))
    }

    /// Checks that the object store is available.
    ///
    /// # Errors
    /// Returns an error if the object store is not available.
    pub async fn check(&self) -> super::Result<()> {
        self.store.check().await
    }
}

impl Deref for BlobService {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}
