//! Encrypts and decrypts existing objects. The row of the blob is changed to refer to a new object, and then the old object is
//! deleted. If the process stops before the old object is deleted, the sweep deletes it.
//!
//! In SQL, a storage format is a boolean: `true` if encrypted. The condition `(encryption_format is null) = $format` therefore
//! selects the blobs that are not stored in this format.

use std::sync::OnceLock;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};

use super::content::ContentKey;
use super::ingest::NewObject;
use super::rows::{EncryptionFormat, StoredBlob, stored_blob};
use super::service::BlobService;
use crate::db::page::Cursor;
use crate::encryption::conversion::{ConversionProgress, EncryptableContent, Interrupt};
use crate::encryption::{ProjectEncryption, StorageFormat};
use crate::error::{Error, Result};
use crate::ids::{BlobId, ProjectId};

/// The number of objects per query.
const BATCH_SIZE: i64 = 500;
/// The number of objects that are converted concurrently.
const CONCURRENCY: usize = 4;

/// A blob to convert, with its position in the list of unconverted blobs.
struct ConversionItem {
    blob: StoredBlob,
    position: Cursor,
}

/// The result of replacing an object.
enum ReplaceOutcome {
    Replaced,
    /// The blob has another object or is no longer live.
    RowChanged,
    /// The sweep has deleted the pending row of the new object, because the copy took longer than the grace period.
    NewObjectDeleted,
    /// The storage format of the project has changed.
    FormatChanged,
}

#[async_trait]
impl EncryptableContent for BlobService {
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
            let items = self.list_unconverted(encryption.project, format, after).await?;
            let Some(last) = items.last() else { return Ok(()) };
            after = last.position;
            // After an interrupt, no conversion of another object begins, but those that have begun are completed.
            let interrupt = OnceLock::new();
            let convert = async |item: ConversionItem| {
                if interrupt.get().is_none()
                    && let Err(reason) = self.convert_object(encryption, format, &item.blob, progress).await
                {
                    // `set` fails if another object has set a reason. Only the first reason is returned.
                    let _ = interrupt.set(reason);
                }
            };
            stream::iter(items).for_each_concurrent(CONCURRENCY, convert).await;
            if let Some(reason) = interrupt.into_inner() {
                return Err(reason);
            }
        }
    }

    /// Deletes the objects of pending and dead blobs that are not stored in `format`: abandoned uploads, uploads that began
    /// before the storage format changed, and blobs that wait for the sweep. The rows remain until the sweep deletes them.
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
    /// Lists the next live blobs after `after`, in order of creation, that are not stored in `format`.
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
            blob: stored_blob!(row),
        });
        Ok(rows.collect())
    }

    /// Converts an object and records the progress. An object that cannot be read is left unchanged and recorded as corrupt.
    async fn convert_object(
        &self,
        encryption: &ProjectEncryption,
        format: StorageFormat,
        blob: &StoredBlob,
        progress: &dyn ConversionProgress,
    ) -> Result<(), Interrupt> {
        progress.check_deadline()?;
        let (converted, corrupt) = match self.replace_object(encryption, format, blob).await {
            Ok(ReplaceOutcome::Replaced | ReplaceOutcome::RowChanged) => (1, Vec::new()),
            Ok(ReplaceOutcome::FormatChanged) => return Err(Interrupt::FormatChanged),
            Ok(ReplaceOutcome::NewObjectDeleted) => {
                return Err(Error::unavailable(
                    "the sweep deleted the converted copy of a file before it was used, because the conversion of the file took \
                     longer than ACONTEXTD_BLOB_GRACE; the conversion is retried",
                )
                .into());
            }
            Err(err @ (Error::Corrupt { .. } | Error::Internal(_))) => {
                tracing::error!(
                    content.sha256 = blob.sha256,
                    error = ?err,
                    "cannot convert the object; it is left unchanged"
                );
                (0, vec![format!("the file with SHA-256 {} is corrupt and was left unchanged", blob.sha256)])
            }
            Err(err) => return Err(err.into()),
        };
        let mut conn = self.db.acquire().await?;
        progress.record(&mut conn, converted, &corrupt).await
    }

    /// Replaces the object of a blob by a new object in `format`, and deletes the old object.
    async fn replace_object(
        &self,
        encryption: &ProjectEncryption,
        format: StorageFormat,
        blob: &StoredBlob,
    ) -> Result<ReplaceOutcome> {
        let copy = self.copy_to_spool(ContentKey::Kek(Some(encryption.decryption_key()?)), blob).await?;
        let (new_id, new_object) = self.store_object(encryption, format, &copy).await?;
        let outcome = self.replace_in_row(blob, new_id, &new_object).await?;
        if !matches!(outcome, ReplaceOutcome::Replaced) {
            self.discard(vec![(new_id, new_object)]).await;
            return Ok(outcome);
        }
        self.store.delete(&blob.object_key).await?;
        sqlx::query!("delete from blobs where object_key = $1 and state = 'dead'", blob.object_key)
            .execute(&*self.db)
            .await?;
        Ok(outcome)
    }

    /// Replaces the old object by the new one in the row of the blob, and inserts a dead row for the old object. Deletes the
    /// pending row `new_id` of the new object.
    async fn replace_in_row(
        &self,
        blob: &StoredBlob,
        new_id: BlobId,
        new_object: &NewObject,
    ) -> Result<ReplaceOutcome> {
        let mut tx = self.db.begin().await?;
        if StorageFormat::lock_for_share(&mut tx, new_object.project).await? != Some(new_object.format) {
            return Ok(ReplaceOutcome::FormatChanged);
        }
        let deleted = sqlx::query!(
            "delete from blobs where id = $1 and state = 'pending' returning encryption_format, wrapped_key",
            new_id as _
        );
        let Some(new) = deleted.fetch_optional(&mut *tx).await? else { return Ok(ReplaceOutcome::NewObjectDeleted) };
        let updated = sqlx::query!(
            "update blobs set object_key = $3, encryption_format = $4, wrapped_key = $5
             where id = $1 and object_key = $2 and state = 'live'",
            blob.id as _,
            blob.object_key,
            new_object.object_key,
            new.encryption_format,
            new.wrapped_key,
        );
        if updated.execute(&mut *tx).await?.rows_affected() == 0 {
            return Ok(ReplaceOutcome::RowChanged);
        }
        sqlx::query!(
            "insert into blobs (id, project_id, object_key, sha256, size, state, encryption_format, wrapped_key)
             values ($1, $2, $3, $4, $5, 'dead', $6, $7)",
            BlobId::new() as _,
            new_object.project as _,
            blob.object_key,
            blob.sha256,
            blob.size,
            blob.encryption_format as _,
            blob.wrapped_key,
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(ReplaceOutcome::Replaced)
    }
}
