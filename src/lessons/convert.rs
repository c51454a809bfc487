//! Converts the texts of lessons to the other storage format: encrypts or decrypts them.

use async_trait::async_trait;
use uuid::Uuid;

use super::store;
use super::text::StoredText;
use crate::db::Db;
use crate::encryption::conversion::{ConversionProgress, EncryptableContent, Interrupt};
use crate::encryption::{ProjectEncryption, StorageFormat};
use crate::error::{Error, Result};
use crate::ids::{LessonId, ProjectId};

/// The maximum number of lessons that are converted in a transaction. A lesson has a few kilobytes.
const MAX_BATCH_LESSONS: i64 = 200;

/// Converts the lessons of projects whose storage format has changed.
pub struct LessonConverter {
    pub db: Db,
}

#[async_trait]
impl EncryptableContent for LessonConverter {
    async fn count_remaining(&self, project: ProjectId, format: StorageFormat) -> Result<i64> {
        let mut conn = self.db.acquire().await?;
        Ok(store::count_remaining(&mut conn, project, format.is_encrypted()).await?)
    }

    async fn convert(
        &self,
        encryption: &ProjectEncryption,
        format: StorageFormat,
        progress: &dyn ConversionProgress,
    ) -> Result<(), Interrupt> {
        let mut after = LessonId(Uuid::nil());
        loop {
            progress.check_deadline()?;
            let mut tx = self.db.begin().await?;
            let current_format = StorageFormat::lock_for_share(&mut tx, encryption.project).await?;
            if current_format != Some(format) {
                return Err(Interrupt::FormatChanged);
            }
            let encrypted = format.is_encrypted();
            let lessons =
                store::lock_remaining(&mut tx, encryption.project, encrypted, after, MAX_BATCH_LESSONS).await?;
            let Some(last) = lessons.last() else { return Ok(()) };
            after = last.id;
            let (mut converted, mut corrupt) = (0, Vec::new());
            for store::StaleText { id, text } in lessons {
                match text.decrypt(encryption) {
                    Ok(text) => {
                        let text = StoredText::new(encryption, format, id, &text)?;
                        store::set_text(&mut tx, id, &text).await?;
                        converted += 1;
                    }
                    Err(Error::KeyRequired) => return Err(Interrupt::KeyMissing),
                    Err(_) => corrupt.push(format!("lesson {id} is corrupt and was left unchanged")),
                }
            }
            progress.record(&mut tx, converted, &corrupt).await?;
            tx.commit().await?;
        }
    }
}
