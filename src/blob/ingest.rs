//! Stores contents, and hands out the ids of their blobs. Every stored file goes through [`BlobService::ingest`] and then, in the
//! transaction that inserts the rows which refer to it, through [`Ingest::claim`].
//!
//! The order makes a crash harmless at any point: a `pending` row, the object, then one transaction with `live` and the reference. A
//! crash in between leaves a row that the sweep finds.

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

/// How many contents are stored concurrently.
const CONCURRENCY: usize = 8;

/// Contents of a project in the object store, each once, that no row refers to yet.
#[must_use = "contents that are not claimed are deleted by the sweep"]
pub struct Ingest {
    service: BlobService,
    project: ProjectId,
    uploads: Vec<Upload>,
}

struct Upload {
    sha256: String,
    blob: BlobId,
    /// The object that this upload has stored; `None` if the content was stored already.
    new_object: Option<NewObject>,
}

#[derive(Clone, Debug)]
pub(super) struct NewObject {
    pub(super) project: ProjectId,
    pub(super) object_key: String,
    pub(super) format: StorageFormat,
}

/// The blobs of contents that were claimed, by SHA-256.
#[derive(Debug)]
pub struct Claimed(HashMap<String, BlobId>);

/// A blob that rows of this transaction may refer to; [`Claimed`] is the only source.
#[derive(Clone, Copy, Debug)]
pub struct Claim(BlobId);

impl Claimed {
    /// Returns the claim of a content that was ingested.
    ///
    /// # Errors
    /// 500 for another content.
    pub fn get(&self, sha256: &str) -> Result<Claim> {
        let claim = self.0.get(sha256).copied().map(Claim);
        claim.ok_or_else(|| Error::internal(anyhow::anyhow!("the content {sha256} was not ingested")))
    }
}

impl Claim {
    pub fn blob(self) -> BlobId {
        self.0
    }
}

impl BlobService {
    /// Stores the contents that the project does not have yet, in the storage format of the project. Several are stored concurrently,
    /// and equal ones once.
    ///
    /// # Errors
    /// 403 if the project is encrypted and the request has not brought its key; 503 if the object store fails.
    pub async fn ingest(&self, encryption: &ProjectEncryption, contents: impl Stream<Item = Spool>) -> Result<Ingest> {
        let mut seen = HashSet::new();
        let distinct = contents.filter(|content| std::future::ready(seen.insert(content.sha256.clone())));
        let uploads = distinct.map(|content| async move { self.upload(encryption, &content).await });
        let mut uploads: Vec<_> = uploads.buffer_unordered(CONCURRENCY).try_collect().await?;
        uploads.sort_by(|one, other| one.sha256.cmp(&other.sha256));
        Ok(Ingest { service: self.clone(), project: encryption.project, uploads })
    }

    async fn upload(&self, encryption: &ProjectEncryption, content: &Spool) -> Result<Upload> {
        let (project, sha256) = (encryption.project, content.sha256.clone());
        let known = sqlx::query!(
            r#"select p.encryption_enabled as "format: StorageFormat", b.id as "blob?: BlobId"
               from projects p left join blobs b on b.project_id = p.id and b.sha256 = $2 and b.state = 'live'
               where p.id = $1"#,
            project as _,
            sha256,
        );
        // If the project is being deleted, the transaction will find out.
        let known = known.fetch_optional(&*self.db).await?;
        if let Some(blob) = known.as_ref().and_then(|known| known.blob) {
            return Ok(Upload { sha256, blob, new_object: None });
        }
        let format = known.map_or(StorageFormat::Plaintext, |known| known.format);
        let (blob, new_object) = self.store_object(encryption, format, content).await?;
        Ok(Upload { sha256, blob, new_object: Some(new_object) })
    }

    /// Stores a content in this format as a new object, whose row is pending. The row comes first, so that no object is unknown.
    ///
    /// # Errors
    /// As for [`BlobService::ingest`].
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
            (Some(kek), Some(dek)) => Some(content::wrap(kek, dek, &content.sha256)?),
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

    /// Deletes objects that were stored in vain, also if the sweep has deleted their rows already.
    pub(super) async fn discard(&self, objects: Vec<(BlobId, NewObject)>) {
        for (blob, NewObject { object_key, .. }) in objects {
            let discarded = async {
                sqlx::query!("update blobs set state = 'dead' where id = $1 and state = 'pending'", blob as _)
                    .execute(&*self.db)
                    .await?;
                self.store.delete(&object_key).await?;
                sqlx::query!("delete from blobs where id = $1 and state = 'dead'", blob as _)
                    .execute(&*self.db)
                    .await?;
                Ok::<_, Error>(())
            };
            if let Err(err) = discarded.await {
                tracing::warn!(error = ?err, "an upload that is not needed was left to the sweep");
            }
        }
    }
}

impl Ingest {
    /// Makes the blobs available to rows of this transaction, and keeps them until it ends: all or none. `None` if the sweep has
    /// deleted one, another transaction was faster with an equal content, the storage format of the project has changed, or this
    /// transaction and another one waited for each other: roll back and ingest the contents again.
    ///
    /// Locks the project's storage format first, and then the blobs.
    ///
    /// # Errors
    /// The database fails.
    pub async fn claim(&self, tx: &mut Tx) -> Result<Option<Claimed>> {
        let is_claimed = match self.try_claim(tx).await {
            Ok(is_claimed) => is_claimed,
            Err(err) if err.is_deadlock() => false,
            Err(err) => {
                self.discard();
                return Err(err);
            }
        };
        if !is_claimed {
            self.discard();
            return Ok(None);
        }
        Ok(Some(Claimed(self.uploads.iter().map(|upload| (upload.sha256.clone(), upload.blob)).collect())))
    }

    async fn try_claim(&self, conn: &mut PgConnection) -> Result<bool> {
        if self.uploads.is_empty() {
            return Ok(true);
        }
        // `None`: the project is being deleted. The rows that will refer to the blobs cannot be inserted.
        if let Some(format) = StorageFormat::lock_for_share(conn, self.project).await?
            && self.new_objects().any(|(_, object)| object.format != format)
        {
            return Ok(false);
        }
        let (new, found): (Vec<_>, Vec<_>) = self.uploads.iter().partition(|upload| upload.new_object.is_some());
        let ids = |uploads: Vec<&Upload>| -> Vec<BlobId> { uploads.iter().map(|upload| upload.blob).collect() };
        let (new, found) = (ids(new), ids(found));
        if !found.is_empty() {
            // The share lock keeps the sweep from marking a blob dead before this transaction has ended. In one order, so that two
            // transactions do not wait for each other.
            let locked = sqlx::query_scalar!(
                "select 1 as one from blobs where id = any($1) and state = 'live' order by id for share",
                &found as _,
            );
            if locked.fetch_all(&mut *conn).await?.len() < found.len() {
                return Ok(false);
            }
        }
        if new.is_empty() {
            return Ok(true);
        }
        let promoted =
            sqlx::query!("update blobs set state = 'live' where id = any($1) and state = 'pending'", &new as _);
        match promoted.execute(conn).await {
            Ok(promoted) => Ok(promoted.rows_affected() == new.len() as u64),
            // Another transaction was faster with an equal content.
            Err(sqlx::Error::Database(err)) if err.constraint() == Some("blobs_live_idx") => Ok(false),
            Err(err) => Err(err.into()),
        }
    }

    fn new_objects(&self) -> impl Iterator<Item = (BlobId, &NewObject)> {
        self.uploads.iter().filter_map(|upload| Some((upload.blob, upload.new_object.as_ref()?)))
    }

    /// Deletes the new objects in the background: no row will refer to them.
    fn discard(&self) {
        let objects: Vec<_> = self.new_objects().map(|(blob, object)| (blob, object.clone())).collect();
        if !objects.is_empty() {
            let service = self.service.clone();
            self.service.process.background_tasks.spawn(async move { service.discard(objects).await });
        }
    }
}
