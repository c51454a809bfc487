//! The encryption conversion of a project: the trait that each kind of encryptable content implements, and the progress of the
//! conversion. `features.rs` lists all implementations.

use async_trait::async_trait;
use sqlx::PgConnection;

use super::{ProjectEncryption, StorageFormat};
use crate::error::Result;
use crate::ids::ProjectId;

/// Why a conversion ends early.
#[derive(Debug)]
pub enum Interrupt {
    /// The storage format of the project has changed, or another conversion has replaced this one.
    FormatChanged,
    /// Content must be decrypted or encrypted, but the job has no master key.
    KeyMissing,
    /// The time of the attempt is used up, or the process is shutting down.
    OutOfTime,
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Interrupt {
    fn from(err: E) -> Self {
        Self::Failed(err.into())
    }
}

/// The progress of a conversion.
#[async_trait]
pub trait ConversionProgress: Send + Sync {
    /// Adds to the recorded progress: the number of converted items, and a message for each corrupt item. `conn` is the
    /// transaction that has converted the items, unless that transaction is already committed.
    ///
    /// # Errors
    /// Returns [`Interrupt::FormatChanged`] if another conversion has replaced this one; the caller must roll back.
    async fn record(&self, conn: &mut PgConnection, converted: i64, corrupt: &[String]) -> Result<(), Interrupt>;

    /// Checks that the attempt may continue.
    ///
    /// # Errors
    /// Returns [`Interrupt::OutOfTime`] if the time of the attempt is used up or the process is shutting down.
    fn check_deadline(&self) -> Result<(), Interrupt>;
}

/// A kind of content that is stored as plaintext or encrypted.
#[async_trait]
pub trait EncryptableContent: Send + Sync {
    /// Counts the items of a project that are not stored in `format`.
    ///
    /// # Errors
    /// Returns an error if the database fails.
    async fn count_remaining(&self, project: ProjectId, format: StorageFormat) -> Result<i64>;

    /// Converts all items of a project that are not stored in `format`. Each item or batch has its own transaction, which
    /// first [locks the format](StorageFormat::lock_for_share). Items that cannot be decrypted are left unchanged.
    ///
    /// # Errors
    /// Returns the reason why the conversion ended early. Another call continues the conversion.
    async fn convert(
        &self,
        encryption: &ProjectEncryption,
        format: StorageFormat,
        progress: &dyn ConversionProgress,
    ) -> Result<(), Interrupt>;

    /// Deletes unreferenced data that is not stored in `format`. Called after all items have been converted.
    ///
    /// # Errors
    /// Returns an error if the database or the object store fails.
    async fn delete_stale(&self, _project: ProjectId, _format: StorageFormat) -> Result<()> {
        Ok(())
    }
}
