//! Turns stored objects from one form into the other: sealed, or opened again. A new object takes the place of the old one in
//! its row; the old one is then removed, and if that is cut off, the sweep does it.

use super::content::{self, Key};
use super::ingest::{self, NewObject};
use super::rows::{self, EncryptionFormat, StoredBlob, stored_blob};
use super::service::BlobService;
use crate::db::page::Cursor;
use crate::encryption::{Dek, Owner};
use crate::error::{Error, Result};
use crate::ids::{BlobId, ProjectId};

/// An object that has to be turned.
pub struct ConversionItem {
    pub stored: StoredBlob,
    pub position: Cursor,
}

enum SwapOutcome {
    Swapped,
    /// There is nothing to be turned any more.
    NotNeeded,
    /// The project wants its content in the other form now.
    TargetChanged,
}

impl BlobService {
    /// Objects of a project that are in the other form, in the order they were made, after this one.
    ///
    /// # Errors
    /// The database fails.
    pub async fn list_unconverted(
        &self,
        project: ProjectId,
        seals: bool,
        after: Cursor,
        limit: i64,
    ) -> Result<Vec<ConversionItem>> {
        let rows = sqlx::query!(
            r#"select id as "blob_id: BlobId", object_key, size, sha256, encryption_format as "encryption_format: EncryptionFormat",
                      wrapped_key, created_at from blobs
               where project_id = $1 and state = 'live' and (encryption_format is null) = $2 and (created_at, id) > ($3, $4)
               order by created_at, id limit $5"#,
            project as _,
            seals,
            after.created_at,
            after.id,
            limit,
        );
        let rows = rows.fetch_all(&*self.db).await?.into_iter().map(|row| ConversionItem {
            position: Cursor { created_at: row.created_at, id: row.blob_id.0 },
            stored: stored_blob!(row),
        });
        Ok(rows.collect())
    }

    /// How many there are.
    ///
    /// # Errors
    /// The database fails.
    pub async fn count_unconverted(&self, project: ProjectId, seals: bool) -> Result<i64> {
        let count = sqlx::query_scalar!(
            r#"select count(*) as "count!" from blobs where project_id = $1 and state = 'live' and (encryption_format is null) = $2"#,
            project as _,
            seals,
        );
        Ok(count.fetch_one(&*self.db).await?)
    }

    /// Turns one object. Whether the project still wants that.
    ///
    /// # Errors
    /// 500 if the object is missing or damaged; 503 if the database or the object store fails.
    pub async fn convert_object(&self, owner: &Owner, stored: &StoredBlob, seals: bool) -> Result<bool> {
        let copy = self.copy_to_spool(Key::Project(Some(owner.opening()?)), stored).await?;
        let kek = owner.sealing(seals)?;
        let dek = kek.map(|_| Dek::random()).transpose()?;
        let wrapped = match (kek, &dek) {
            (Some(kek), Some(dek)) => Some(content::wrap(kek, dek, &stored.sha256)?),
            _ => None,
        };
        let blob = BlobId::new();
        let object_key = ingest::object_key(owner.project, blob);
        self.insert_pending(blob, &object_key, owner.project, &copy, wrapped.as_deref()).await?;
        self.put_content(&object_key, &copy, dek.as_ref()).await?;
        let new_object = NewObject { project: owner.project, object_key, sealed: seals };
        match self.swap_object(stored, blob, &new_object).await? {
            SwapOutcome::Swapped => {}
            other => {
                self.discard(vec![(blob, new_object)]).await;
                return Ok(matches!(other, SwapOutcome::NotNeeded));
            }
        }
        self.store.delete(&stored.object_key).await?;
        sqlx::query!("delete from blobs where object_key = $1 and state = 'dead'", stored.object_key)
            .execute(&*self.db)
            .await?;
        Ok(true)
    }

    /// Puts the new object in the place of the old one, which from then on is a dead one with a row of its own.
    async fn swap_object(&self, stored: &StoredBlob, blob: BlobId, new_object: &NewObject) -> Result<SwapOutcome> {
        let mut tx = self.db.begin().await?;
        if rows::encryption_enabled_for_share(&mut tx, new_object.project).await? != Some(new_object.sealed) {
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

    /// Removes objects in the other form that no row will ever refer to: of uploads that were cut off or are refused now, and what
    /// waits for the sweep. Their rows are left to the sweep, which looks once more.
    ///
    /// # Errors
    /// 503 if the database or the object store fails.
    pub async fn delete_stale_objects(&self, project: ProjectId, seals: bool) -> Result<()> {
        let left = sqlx::query!(
            "with marked as (
                 update blobs set state = 'dead'
                 where project_id = $1 and state = 'pending' and (encryption_format is null) = $2 returning object_key)
             select object_key as \"object_key!\" from marked
             union all
             select object_key from blobs where project_id = $1 and state = 'dead' and (encryption_format is null) = $2",
            project as _,
            seals,
        );
        for row in left.fetch_all(&*self.db).await? {
            self.store.delete(&row.object_key).await.map_err(Error::from)?;
        }
        Ok(())
    }
}
