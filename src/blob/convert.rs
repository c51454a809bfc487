//! Encrypts and decrypts stored objects. A new object replaces the old one in its row; the old one is deleted after that, by the sweep
//! if the process stops in between.

use std::sync::OnceLock;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};

use super::content::Key;
use super::ingest::NewObject;
use super::rows::{EncryptionFormat, StoredBlob, stored_blob};
use super::service::BlobService;
use crate::db::page::Cursor;
use crate::encryption::reencrypt::{ConversionProgress, Interrupt, Reencrypt};
use crate::encryption::{ProjectEncryption, StorageFormat};
use crate::error::{Error, Result};
use crate::ids::{BlobId, ProjectId};

/// How many objects are looked up at once.
const BATCH_SIZE: i64 = 500;
/// How many objects are converted concurrently.
const CONCURRENCY: usize = 4;

/// An object to convert.
struct ConversionItem {
    stored: StoredBlob,
    position: Cursor,
}

enum SwapOutcome {
    Swapped,
    /// The object was converted or deleted in the meantime.
    NotNeeded,
    /// The storage format of the project has changed.
    TargetChanged,
}

#[async_trait]
impl Reencrypt for BlobService {
    async fn count_remaining(&self, project: ProjectId, format: StorageFormat) -> Result<i64> {
        let count = sqlx::query_scalar!(
            r#"select count(*) as "count!" from blobs
               where project_id = $1 and state = 'live' and (encryption_format is null) = $2"#,
            project as _,
            format as _,
        );
        Ok(count.fetch_one(&*self.db).await?)
    }

    async fn convert(
        &self,
        encryption: &ProjectEncryption,
        format: StorageFormat,
        progress: &dyn ConversionProgress,
    ) -> Result<(), Interrupt> {
        let mut after = Cursor::START;
        loop {
            let objects = self.list_unconverted(encryption.project, format, after).await?;
            let Some(last) = objects.last() else { return Ok(()) };
            after = last.position;
            // Objects that were begun are finished even if another one finds that the conversion must end.
            let interrupt = OnceLock::new();
            let convert = async |item: ConversionItem| {
                if interrupt.get().is_none()
                    && let Err(reason) = self.convert_object(encryption, format, &item.stored, progress).await
                {
                    // The first reason counts.
                    let _ = interrupt.set(reason);
                }
            };
            stream::iter(objects).for_each_concurrent(CONCURRENCY, convert).await;
            if let Some(reason) = interrupt.into_inner() {
                return Err(reason);
            }
        }
    }

    /// Deletes objects of uploads that were cut off or whose format is wrong now, and objects that wait for the sweep. Their rows are
    /// left to the sweep, which checks once more.
    async fn delete_stale(&self, project: ProjectId, format: StorageFormat) -> Result<()> {
        let stale = sqlx::query!(
            "with marked as (
                 update blobs set state = 'dead'
                 where project_id = $1 and state = 'pending' and (encryption_format is null) = $2 returning object_key)
             select object_key as \"object_key!\" from marked
             union all
             select object_key from blobs where project_id = $1 and state = 'dead' and (encryption_format is null) = $2",
            project as _,
            format as _,
        );
        for row in stale.fetch_all(&*self.db).await? {
            self.store.delete(&row.object_key).await.map_err(Error::from)?;
        }
        Ok(())
    }
}

impl BlobService {
    /// Lists objects that are not in this format, in the order of their creation after this position.
    async fn list_unconverted(
        &self,
        project: ProjectId,
        format: StorageFormat,
        after: Cursor,
    ) -> Result<Vec<ConversionItem>> {
        let rows = sqlx::query!(
            r#"select id as "blob_id: BlobId", object_key, size, sha256,
                      encryption_format as "encryption_format: EncryptionFormat", wrapped_key, created_at
               from blobs
               where project_id = $1 and state = 'live' and (encryption_format is null) = $2 and (created_at, id) > ($3, $4)
               order by created_at, id limit $5"#,
            project as _,
            format as _,
            after.created_at,
            after.id,
            BATCH_SIZE,
        );
        let rows = rows.fetch_all(&*self.db).await?.into_iter().map(|row| ConversionItem {
            position: Cursor { created_at: row.created_at, id: row.blob_id.0 },
            stored: stored_blob!(row),
        });
        Ok(rows.collect())
    }

    async fn convert_object(
        &self,
        encryption: &ProjectEncryption,
        format: StorageFormat,
        stored: &StoredBlob,
        progress: &dyn ConversionProgress,
    ) -> Result<(), Interrupt> {
        progress.check_deadline()?;
        let (converted, damaged) = match self.replace_object(encryption, format, stored).await {
            Ok(SwapOutcome::Swapped | SwapOutcome::NotNeeded) => (1, Vec::new()),
            Ok(SwapOutcome::TargetChanged) => return Err(Interrupt::TargetChanged),
            Err(err @ (Error::Corrupt { .. } | Error::Internal(_))) => {
                tracing::error!(content.sha256 = stored.sha256, error = ?err, "an object cannot be converted");
                (0, vec![format!("the file with SHA-256 {} is damaged and stays as it is", stored.sha256)])
            }
            Err(err) => return Err(err.into()),
        };
        let mut conn = self.db.acquire().await?;
        progress.record(&mut conn, converted, &damaged).await
    }

    /// Stores the content of an object in this format, and deletes the object.
    async fn replace_object(
        &self,
        encryption: &ProjectEncryption,
        format: StorageFormat,
        stored: &StoredBlob,
    ) -> Result<SwapOutcome> {
        let copy = self.copy_to_spool(Key::Project(Some(encryption.decryption_key()?)), stored).await?;
        let (blob, new_object) = self.store_object(encryption, format, &copy).await?;
        let outcome = self.swap_object(stored, blob, &new_object).await?;
        if !matches!(outcome, SwapOutcome::Swapped) {
            self.discard(vec![(blob, new_object)]).await;
            return Ok(outcome);
        }
        self.store.delete(&stored.object_key).await?;
        sqlx::query!("delete from blobs where object_key = $1 and state = 'dead'", stored.object_key)
            .execute(&*self.db)
            .await?;
        Ok(outcome)
    }

    /// Puts the new object in the place of the old one, which from then on is a dead one with a row of its own.
    async fn swap_object(&self, stored: &StoredBlob, blob: BlobId, new_object: &NewObject) -> Result<SwapOutcome> {
        let mut tx = self.db.begin().await?;
        if StorageFormat::lock_for_share(&mut tx, new_object.project).await? != Some(new_object.format) {
            return Ok(SwapOutcome::TargetChanged);
        }
        let taken = sqlx::query!(
            "delete from blobs where id = $1 and state = 'pending' returning encryption_format, wrapped_key",
            blob as _
        );
        let Some(new) = taken.fetch_optional(&mut *tx).await? else { return Ok(SwapOutcome::NotNeeded) };
        let moved = sqlx::query!(
            "update blobs set object_key = $3, encryption_format = $4, wrapped_key = $5
             where id = $1 and object_key = $2 and state = 'live'",
            stored.id as _,
            stored.object_key,
            new_object.object_key,
            new.encryption_format,
            new.wrapped_key,
        );
        if moved.execute(&mut *tx).await?.rows_affected() == 0 {
            return Ok(SwapOutcome::NotNeeded);
        }
        sqlx::query!(
            "insert into blobs (id, project_id, object_key, sha256, size, state, encryption_format, wrapped_key)
             values ($1, $2, $3, $4, $5, 'dead', $6, $7)",
            BlobId::new() as _,
            new_object.project as _,
            stored.object_key,
            stored.sha256,
            stored.size,
            stored.encryption_format as _,
            stored.wrapped_key,
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(SwapOutcome::Swapped)
    }
}
