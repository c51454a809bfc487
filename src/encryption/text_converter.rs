//! Converts the texts of a table to the other storage format: encrypts or decrypts them.

use async_trait::async_trait;
use sqlx::PgConnection;
use uuid::Uuid;

use super::conversion::{ConversionProgress, EncryptableContent, Interrupt};
use super::stored_text::{StaleText, StoredText};
use super::{ProjectEncryption, StorageFormat};
use crate::db::Db;
use crate::error::{Error, Result};
use crate::ids::ProjectId;

/// The maximum number of texts that are converted in a transaction. A text has a few kilobytes.
const MAX_BATCH_LEN: i64 = 200;

/// A table whose rows have a text.
#[async_trait]
pub trait TextTable: Send + Sync {
    /// What a row is, such as "lesson".
    const NOUN: &'static str;

    /// Counts the texts of a project that are not stored in the given storage format.
    async fn count_remaining(&self, conn: &mut PgConnection, project: ProjectId, encrypted: bool) -> sqlx::Result<i64>;

    /// Locks up to `limit` rows after `after` whose storage format is not the given one, in the order of their ids.
    async fn lock_remaining(
        &self,
        conn: &mut PgConnection,
        project: ProjectId,
        encrypted: bool,
        after: Uuid,
        limit: i64,
    ) -> sqlx::Result<Vec<StaleText>>;

    /// Replaces the text of a row.
    async fn set_text(&self, conn: &mut PgConnection, id: Uuid, text: &StoredText) -> sqlx::Result<()>;
}

/// Converts the texts of a table for projects whose storage format has changed.
pub struct TextConverter<T> {
    pub db: Db,
    pub table: T,
}

#[async_trait]
impl<T: TextTable> EncryptableContent for TextConverter<T> {
    async fn count_remaining(&self, project: ProjectId, format: StorageFormat) -> Result<i64> {
        let mut conn = self.db.acquire().await?;
        Ok(self.table.count_remaining(&mut conn, project, format.is_encrypted()).await?)
    }

    async fn convert(
        &self,
        encryption: &ProjectEncryption,
        format: StorageFormat,
        progress: &dyn ConversionProgress,
    ) -> Result<(), Interrupt> {
        let (project, encrypted) = (encryption.project, format.is_encrypted());
        let mut after = Uuid::nil();
        loop {
            progress.check_deadline()?;
            let mut tx = self.db.begin().await?;
            let current_format = StorageFormat::lock_for_share(&mut tx, project).await?;
            if current_format != Some(format) {
                return Err(Interrupt::FormatChanged);
            }
            let stale = self.table.lock_remaining(&mut tx, project, encrypted, after, MAX_BATCH_LEN).await?;
            let Some(last) = stale.last() else { return Ok(()) };
            after = last.id;
            let (mut converted, mut corrupt) = (0, Vec::new());
            for StaleText { id, text } in stale {
                match text.decrypt(encryption) {
                    Ok(text) => {
                        let text = StoredText::new(encryption, format, id, &text)?;
                        self.table.set_text(&mut tx, id, &text).await?;
                        converted += 1;
                    }
                    Err(Error::KeyRequired) => return Err(Interrupt::KeyMissing),
                    Err(_) => corrupt.push(format!("{} {id} is corrupt and was left unchanged", T::NOUN)),
                }
            }
            progress.record(&mut tx, converted, &corrupt).await?;
            tx.commit().await?;
        }
    }
}
