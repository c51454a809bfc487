//! What each kind of content that can be encrypted implements, so that a project's content can be converted when its encryption is
//! enabled or disabled. The list of all kinds is in `features.rs`.

use async_trait::async_trait;
use sqlx::PgConnection;

use super::{ProjectEncryption, StorageFormat};
use crate::error::Result;
use crate::ids::ProjectId;

/// Why a conversion ends before everything is converted.
#[derive(Debug)]
pub enum Interrupt {
    /// The storage format of the project has changed, or another conversion has replaced this one.
    TargetChanged,
    /// There is encrypted content, or content to encrypt, and no key.
    KeyMissing,
    /// The attempt has used its share of time, or the process shuts down.
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
    /// Adds to the progress, in the transaction that converted these items if there is one: how many were converted, and for each
    /// that cannot be, what it is.
    ///
    /// # Errors
    /// [`Interrupt::TargetChanged`] if another conversion has replaced this one: roll back.
    async fn record(&self, conn: &mut PgConnection, converted: i64, damaged: &[String]) -> Result<(), Interrupt>;

    /// # Errors
    /// [`Interrupt::OutOfTime`]
    fn check_deadline(&self) -> Result<(), Interrupt>;
}

/// A kind of content that is stored as plaintext or encrypted.
#[async_trait]
pub trait Reencrypt: Send + Sync {
    /// Counts the items of a project that are not stored in this format.
    ///
    /// # Errors
    /// The database fails.
    async fn count_remaining(&self, project: ProjectId, format: StorageFormat) -> Result<i64>;

    /// Converts all items of a project that are not stored in this format; each item or batch in a transaction that first
    /// [locks the format](StorageFormat::lock_for_share). Items that cannot be decrypted stay as they are.
    ///
    /// # Errors
    /// See [`Interrupt`]; a later call continues.
    async fn convert(
        &self,
        encryption: &ProjectEncryption,
        format: StorageFormat,
        progress: &dyn ConversionProgress,
    ) -> Result<(), Interrupt>;

    /// Deletes what is left in the other format once everything is converted, and that nothing refers to.
    ///
    /// # Errors
    /// The database or the object store fails.
    async fn delete_stale(&self, _project: ProjectId, _format: StorageFormat) -> Result<()> {
        Ok(())
    }
}
