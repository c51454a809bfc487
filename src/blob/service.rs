//! The handle to stored objects.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::BlobStore;
use super::spool::SpoolDir;
use crate::config::Limits;
use crate::db::Db;
use crate::jobs::JobQueue;
use crate::process::Process;

/// How much of files may be held in memory at one time to be shown or packed, in KiB. A response with a file's text takes about three
/// times as much.
pub(super) const PREVIEW_BUDGET_KIB: u32 = 64 * 1024;

/// Stores, reads, converts and deletes objects; cheap to clone. [`super::content`], [`super::ingest`], [`super::convert`] and
/// [`super::sweep`] have its methods.
#[derive(Clone)]
pub struct BlobService(Arc<Inner>);

pub struct Inner {
    pub(super) db: Db,
    pub(super) queue: JobQueue,
    pub(super) process: Process,
    pub(super) spool: SpoolDir,
    pub(super) store: Arc<dyn BlobStore>,
    /// How long an object stays after its last reference is gone.
    pub(super) grace: Duration,
    /// How long an upload may take.
    pub(super) upload_timeout: Duration,
    pub(super) preview_budget: Semaphore,
}

impl BlobService {
    pub fn new(
        db: Db,
        queue: JobQueue,
        process: Process,
        spool: SpoolDir,
        store: Arc<dyn BlobStore>,
        limits: &Limits,
    ) -> Self {
        Self(Arc::new(Inner {
            db,
            queue,
            process,
            spool,
            store,
            grace: limits.blob_grace,
            upload_timeout: limits.upload,
            preview_budget: Semaphore::new(PREVIEW_BUDGET_KIB as usize),
        }))
    }

    /// Checks that the object store can be reached.
    ///
    /// # Errors
    /// The store does not respond.
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
