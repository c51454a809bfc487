//! Stored objects: bytes under a key that is used once and never overwritten.
//!
//! [`BlobStore`] is the world outside, in two forms: a folder ([`local`]) and a bucket ([`s3`]). [`ingest`] keeps the row of each
//! object, so that no row points to nothing and no object is unknown. [`content`] is what others read and write: it seals and
//! opens. [`spool`] holds an upload until it is whole, [`sweep`] deletes objects that nothing refers to any more. [`convert`]
//! encrypts and decrypts what is stored. All of it is reached through [`service::BlobService`].

pub mod content;
pub mod convert;
pub mod ingest;
pub mod local;
pub mod rows;
pub mod s3;
pub mod service;
pub mod spool;
pub mod sweep;

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

pub use crate::encryption::object::ByteStream;

use crate::error::Error;
use spool::Spool;

/// Is called with an object's place in the list and its bytes, which it may change, from several threads at once. What it answers
/// tells whether the scan goes on.
pub type ScanCallback = Arc<dyn Fn(usize, &mut Vec<u8>) -> std::ops::ControlFlow<()> + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// A row names an object that is not there.
    #[error("object {0} is missing")]
    Missing(String),
    /// An object ends before it should.
    #[error("object {0} has lost a part")]
    Short(String),
    /// The store does not answer, is full, or answers wrongly.
    #[error("the object store failed")]
    Unavailable(#[source] anyhow::Error),
}

pub type Result<T> = std::result::Result<T, BlobError>;

impl From<BlobError> for Error {
    fn from(cause: BlobError) -> Self {
        match cause {
            BlobError::Unavailable(_) => {
                let msg = "the object store does not answer; try again in a moment".into();
                Self::Unavailable { msg, cause: Some(cause.into()) }
            }
            BlobError::Short(_) => Self::Corrupt { what: "a stored object".into(), cause: cause.into() },
            BlobError::Missing(_) => Self::Internal(cause.into()),
        }
    }
}

/// Where objects are kept. Keys are made by [`ingest`]: `<project>/<blob id>`.
#[async_trait]
pub trait BlobStore: Send + Sync {
    /// Stores an object; when this returns it survives a loss of power.
    async fn put(&self, key: &str, content: &Spool) -> Result<()>;

    /// Reads the bytes of `range`, which lies within the object.
    async fn open(&self, key: &str, range: Range<u64>) -> Result<ByteStream>;

    /// Reads a whole object into memory.
    async fn read(&self, key: &str) -> Result<Bytes>;

    /// Reads many whole objects, several at a time and in no order. Answers with the places of those that are not there.
    async fn scan(&self, keys: Vec<String>, visit: ScanCallback) -> Result<Vec<usize>>;

    /// Removes an object; one that is not there is fine.
    async fn delete(&self, key: &str) -> Result<()>;

    /// Whether the store can be reached now.
    async fn check(&self) -> Result<()>;
}

fn unavailable(err: impl Into<anyhow::Error>) -> BlobError {
    BlobError::Unavailable(err.into())
}
