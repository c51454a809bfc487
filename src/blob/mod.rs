//! Blobs: deduplicated contents of a project. A blob has a row in `blobs` and an object in the object store. An object key is
//! used only once, and an object is never overwritten. Features use blobs through [`service::BlobService`].
//!
//! - [`ObjectStore`] is the interface of the object store, implemented by [`local`] (a directory) and [`s3`] (a bucket).
//! - [`spool`] buffers an upload until it is complete.
//! - [`ingest`] stores contents. It inserts the row before the object, so that every object has a row.
//! - [`content`] reads and writes contents, and decrypts and encrypts them.
//! - [`convert`] encrypts and decrypts existing objects.
//! - [`sweep`] deletes unreferenced objects.

pub mod content;
pub mod convert;
pub mod ingest;
pub mod local;
pub mod rows;
pub mod s3;
pub mod service;
pub mod spool;
pub mod sweep;

use std::io;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::task::JoinError;

pub use crate::encryption::object::ByteStream;

use crate::error::Error;
use crate::error::storage::StorageOutage;
use spool::Spool;

/// The callback of a scan. It receives the index of an object in the list and the object's bytes, which it may modify, and
/// returns whether the scan continues. It is called concurrently from several threads.
pub type ScanCallback = Arc<dyn Fn(usize, &mut Vec<u8>) -> std::ops::ControlFlow<()> + Send + Sync>;

/// An error of the object store.
#[derive(Debug, thiserror::Error)]
pub enum ObjectStoreError {
    /// The object does not exist.
    #[error("object {0} not found")]
    NotFound(String),
    /// The object is shorter than expected.
    #[error("object {0} is truncated")]
    Truncated(String),
    /// The object store cannot be reached, is full, or returned an unexpected response.
    #[error("{0}")]
    Unavailable(StorageOutage, #[source] anyhow::Error),
}

pub type Result<T> = std::result::Result<T, ObjectStoreError>;

impl From<ObjectStoreError> for Error {
    fn from(cause: ObjectStoreError) -> Self {
        match cause {
            ObjectStoreError::Unavailable(..) => {
                let msg = "the object store is unavailable; retry shortly".into();
                Self::Unavailable { msg, cause: Some(cause.into()) }
            }
            ObjectStoreError::Truncated(_) => Self::Corrupt { what: "a stored object".into(), cause: cause.into() },
            ObjectStoreError::NotFound(_) => Self::Internal(cause.into()),
        }
    }
}

/// An object store. An object key is `<project id>/<UUID>`; [`ingest`] creates it.
#[async_trait]
pub trait ObjectStore: Send + Sync {
    /// Stores an object. When the call has returned, the object survives a power loss.
    async fn put(&self, key: &str, content: &Spool) -> Result<()>;

    /// Returns the bytes of `range`, which must lie within the object.
    async fn open(&self, key: &str, range: Range<u64>) -> Result<ByteStream>;

    /// Reads a whole object into memory.
    async fn read(&self, key: &str) -> Result<Bytes>;

    /// Reads many whole objects concurrently, in any order. Returns the indices of the objects that do not exist.
    async fn scan(&self, keys: Vec<String>, visit: ScanCallback) -> Result<Vec<usize>>;

    /// Deletes an object. Succeeds if the object does not exist.
    async fn delete(&self, key: &str) -> Result<()>;

    /// Checks that the object store is available.
    async fn check(&self) -> Result<()>;
}

/// Converts an error of a stream that [`ObjectStore::open`] has returned.
fn map_stream_error(err: io::Error) -> ObjectStoreError {
    match err.downcast::<ObjectStoreError>() {
        Ok(err) => err,
        Err(err) => map_disk_error(err),
    }
}

/// Converts an error of the local disk.
fn map_disk_error(err: io::Error) -> ObjectStoreError {
    ObjectStoreError::Unavailable(StorageOutage::classify_disk_error(&err), err.into())
}

/// Converts the error of a blocking task that panicked or was canceled.
fn map_join_error(err: JoinError) -> ObjectStoreError {
    ObjectStoreError::Unavailable(StorageOutage::InternalError, err.into())
}
