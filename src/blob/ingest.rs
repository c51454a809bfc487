//! Stores contents in two steps: [`BlobService::ingest`] writes the objects, and [`Ingest::make_live`] makes their blobs live in
//! the transaction that inserts the rows which refer to the blobs.
//!
//! A crash is harmless at any point, because a `pending` row is committed before the object is written, and the row becomes
//! `live` in the same transaction in which references are inserted. After a crash between the two transactions, the sweep deletes
//! the pending row and its object.

use std::collections::{HashMap, HashSet};

use futures_util::{Stream, StreamExt, TryStreamExt};
use sqlx::PgConnection;

use super::content;
use super::rows::EncryptionFormat;
use super::service::BlobService;
use super::spool::Spool;
use crate::db::Tx;
use crate::encryption::{Dek, ProjectEncryption, StorageFormat};
use crate::error::{Error, Result};
use crate::ids::{BlobId, ProjectId};

/// The number of contents that are stored concurrently.
const CONCURRENCY: usize = 8;

/// Distinct contents of a project, all of which are in the object store.
#[must_use = "the sweep deletes new contents that are not made live"]
pub struct Ingest {
    service: BlobService,
    project: ProjectId,
    contents: Vec<IngestedContent>,
}

/// A content of an ingest.
struct IngestedContent {
    sha256: String,
    blob: BlobId,
    /// The object that the ingest has written, or `None` if the project already had the content.
    new_object: Option<NewObject>,
}

/// An object whose blob is pending.
#[derive(Clone, Debug)]
pub(super) struct NewObject {
    pub(super) project: ProjectId,
    pub(super) object_key: String,
    pub(super) format: StorageFormat,
}

/// The live blobs of ingested contents by their SHA-256.
#[derive(Debug)]
pub struct LiveBlobs(HashMap<String, BlobId>);

/// A live blob to which rows of the current transaction may refer. Only [`LiveBlobs::get`] creates it.
#[derive(Clone, Copy, Debug)]
pub struct LiveBlob(BlobId);

impl LiveBlobs {
    /// Returns the blob of an ingested content.
    ///
    /// # Errors
    /// Returns 500 if this content was not ingested.
    pub fn get(&self, sha256: &str) -> Result<LiveBlob> {
        let blob = self.0.get(sha256).copied().map(LiveBlob);
        blob.ok_or_else(|| Error::internal(anyhow::anyhow!("the content {sha256} was not ingested")))
    }
}

impl LiveBlob {
    pub fn id(self) -> BlobId {
        self.0
    }
}

impl BlobService {
    /// Stores the contents that the project does not have yet, in the project's storage format. Stores equal contents only once,
    /// and different contents concurrently.
    ///
    /// # Errors
    /// Returns 403 if the project is encrypted and the master key is missing, and 503 if the object store fails.
    pub async fn ingest(&self, encryption: &ProjectEncryption, contents: impl Stream<Item = Spool>) -> Result<Ingest> {
        let mut seen = HashSet::new();
        let distinct = contents.filter(|content| std::future::ready(seen.insert(content.sha256.clone())));
        let ingested = distinct.map(|content| async move { self.ingest_one(encryption, &content).await });
        let mut contents: Vec<_> = ingested.buffer_unordered(CONCURRENCY).try_collect().await?;
        contents.sort_by(|a, b| a.sha256.cmp(&b.sha256));
        Ok(Ingest { service: self.clone(), project: encryption.project, contents })
    }

    async fn ingest_one(&self, encryption: &ProjectEncryption, content: &Spool) -> Result<IngestedContent> {
        let (project, sha256) = (encryption.project, content.sha256.clone());
        let query = sqlx::query!(
            r#"select p.encryption_enabled as "format: StorageFormat", b.id as "blob?: BlobId"
               from projects p left join blobs b on b.project_id = p.id and b.sha256 = $2 and b.state = 'live'
               where p.id = $1"#,
            project as _,
            sha256,
        );
        // There is no row if the project was deleted. The transaction that makes the blob live then fails.
        let row = query.fetch_optional(&*self.db).await?;
        if let Some(blob) = row.as_ref().and_then(|row| row.blob) {
            return Ok(IngestedContent { sha256, blob, new_object: None });
        }
        let format = row.map_or(StorageFormat::Plaintext, |row| row.format);
        let (blob, new_object) = self.store_object(encryption, format, content).await?;
        Ok(IngestedContent { sha256, blob, new_object: Some(new_object) })
    }

    /// Stores content in `format` as a new object with a pending row. The row is inserted before the object is written, so that
    /// every object has a row.
    ///
    /// # Errors
    /// Returns the same errors as [`BlobService::ingest`].
    pub(super) async fn store_object(
        &self,
        encryption: &ProjectEncryption,
        format: StorageFormat,
        content: &Spool,
    ) -> Result<(BlobId, NewObject)> {
        let (project, blob) = (encryption.project, BlobId::new());
        let new_object = NewObject { project, object_key: format!("{project}/{blob}"), format };
        let kek = encryption.encryption_key(format)?;
        let dek = kek.map(|_| Dek::random()).transpose()?;
        let wrapped_key = match (kek, &dek) {
            (Some(kek), Some(dek)) => Some(content::wrap_dek(kek, dek, &content.sha256)?),
            _ => None,
        };
        sqlx::query!(
            "insert into blobs (id, project_id, object_key, sha256, size, encryption_format, wrapped_key)
             values ($1, $2, $3, $4, $5, case when $6::bytea is not null then $7 end, $6)",
            blob as _,
            project as _,
            new_object.object_key,
            content.sha256,
            i64::try_from(content.size).map_err(Error::internal)?,
            wrapped_key,
            EncryptionFormat::Chunked as _,
        )
        .execute(&*self.db)
        .await?;
        self.put_content(&new_object.object_key, content, dek.as_ref()).await?;
        Ok((blob, new_object))
    }

    /// Deletes new objects that are not used, even if the sweep has already deleted their rows. Logs errors; the sweep deletes
    /// the objects that remain.
    pub(super) async fn discard(&self, objects: Vec<(BlobId, NewObject)>) {
        for (blob, NewObject { object_key, .. }) in objects {
            let result = async {
                sqlx::query!("update blobs set state = 'dead' where id = $1 and state = 'pending'", blob as _)
                    .execute(&*self.db)
                    .await?;
                self.store.delete(&object_key).await?;
                sqlx::query!("delete from blobs where id = $1 and state = 'dead'", blob as _)
                    .execute(&*self.db)
                    .await?;
                Ok::<_, Error>(())
            };
            if let Err(err) = result.await {
                tracing::warn!(object_key, error = ?err, "cannot delete an unused object; the sweep will delete it");
            }
        }
    }
}

impl Ingest {
    /// Makes all blobs live, so that rows of this transaction can refer to them. Prevents the deletion of the blobs until the
    /// transaction ends.
    ///
    /// Returns `None` if the sweep has deleted one of the blobs, another transaction has stored an equal content first, the
    /// storage format of the project has changed, or there was a deadlock. The caller must then roll back and ingest the contents
    /// again.
    ///
    /// Locks the storage format of the project first, and then the blobs.
    ///
    /// # Errors
    /// Returns an error if the database fails.
    pub async fn make_live(&self, tx: &mut Tx) -> Result<Option<LiveBlobs>> {
        let is_live = match self.try_make_live(tx).await {
            Ok(is_live) => is_live,
            Err(err) if err.is_deadlock() => false,
            Err(err) => {
                self.discard();
                return Err(err);
            }
        };
        if !is_live {
            self.discard();
            return Ok(None);
        }
        Ok(Some(LiveBlobs(self.contents.iter().map(|content| (content.sha256.clone(), content.blob)).collect())))
    }

    /// Returns `false` in the cases in which [`Ingest::make_live`] returns `None`, except for deadlocks.
    async fn try_make_live(&self, conn: &mut PgConnection) -> Result<bool> {
        if self.contents.is_empty() {
            return Ok(true);
        }
        // `None`: the project was deleted. The insert of a row that refers to a blob then fails.
        if let Some(format) = StorageFormat::lock_for_share(conn, self.project).await?
            && self.new_objects().any(|(_, object)| object.format != format)
        {
            return Ok(false);
        }
        let (new, existing): (Vec<_>, Vec<_>) = self.contents.iter().partition(|content| content.new_object.is_some());
        let ids =
            |contents: Vec<&IngestedContent>| -> Vec<BlobId> { contents.iter().map(|content| content.blob).collect() };
        let (new, existing) = (ids(new), ids(existing));
        if !existing.is_empty() {
            // The share lock prevents the sweep from marking a blob dead before this transaction ends. All transactions lock
            // blobs in the order of their ids, to avoid deadlocks.
            let locked = sqlx::query_scalar!(
                "select 1 as one from blobs where id = any($1) and state = 'live' order by id for share",
                &existing as _,
            );
            if locked.fetch_all(&mut *conn).await?.len() < existing.len() {
                return Ok(false);
            }
        }
        if new.is_empty() {
            return Ok(true);
        }
        let update =
            sqlx::query!("update blobs set state = 'live' where id = any($1) and state = 'pending'", &new as _);
        match update.execute(conn).await {
            Ok(updated) => Ok(updated.rows_affected() == new.len() as u64),
            // Another transaction has stored an equal content first.
            Err(sqlx::Error::Database(err)) if err.constraint() == Some("blobs_live_idx") => Ok(false),
            Err(err) => Err(err.into()),
        }
    }

    fn new_objects(&self) -> impl Iterator<Item = (BlobId, &NewObject)> {
        self.contents.iter().filter_map(|content| Some((content.blob, content.new_object.as_ref()?)))
    }

    /// Deletes the new objects in the background, because no row will refer to them.
    fn discard(&self) {
        let objects: Vec<_> = self.new_objects().map(|(blob, object)| (blob, object.clone())).collect();
        if !objects.is_empty() {
            let service = self.service.clone();
            self.service.process.background_tasks.spawn(async move { service.discard(objects).await });
        }
    }
}
