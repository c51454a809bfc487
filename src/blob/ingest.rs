//! The rows of stored objects. Every stored file goes through [`BlobService::upload`] and then, in the transaction that inserts the rows
//! which refer to it, through [`BlobService::claim`].
//!
//! The order makes a crash harmless at any point: a `pending` row, the object, then one transaction with `live` and the
//! reference. What is left over is a row that the sweep finds.

use sqlx::PgConnection;

use super::rows::EncryptionFormat;
use super::service::BlobService;
use super::spool::Spool;
use super::{content, rows};
use crate::encryption::{Dek, Owner};
use crate::error::{Error, Result};
use crate::ids::{BlobId, ProjectId};

/// Content that is stored but that no row refers to yet.
#[derive(Debug)]
pub struct Upload {
    blob: BlobId,
    /// What this upload put there; nothing if the content was found.
    new_object: Option<NewObject>,
}

#[derive(Clone, Debug)]
pub(super) struct NewObject {
    pub(super) project: ProjectId,
    pub(super) object_key: String,
    pub(super) sealed: bool,
}

impl BlobService {
    /// Sees to it that the content is in the object store: found there, or put there in the form that the project wants.
    ///
    /// # Errors
    /// 403 if the project is encrypted and its key not at hand; 503 if the object store fails.
    pub async fn upload(&self, owner: &Owner, content: &Spool) -> Result<Upload> {
        let project = owner.project;
        let known = sqlx::query!(
            r#"select p.encryption_enabled, b.id as "blob?: BlobId"
               from projects p left join blobs b on b.project_id = p.id and b.sha256 = $2 and b.state = 'live'
               where p.id = $1"#,
            project as _,
            content.sha256,
        );
        // A project that is deleted just now has nothing to say in this; the transaction will find out.
        let known = known.fetch_optional(&*self.db).await?;
        if let Some(blob) = known.as_ref().and_then(|known| known.blob) {
            return Ok(Upload { blob, new_object: None });
        }
        let kek = owner.sealing(known.is_some_and(|known| known.encryption_enabled))?;
        let blob = BlobId::new();
        let new_object = NewObject { project, object_key: object_key(project, blob), sealed: kek.is_some() };
        let dek = kek.map(|_| Dek::random()).transpose()?;
        let seal = match (kek, &dek) {
            (Some(kek), Some(dek)) => Some(content::wrap(kek, dek, &content.sha256)?),
            _ => None,
        };
        self.insert_pending(blob, &new_object.object_key, project, content, seal.as_deref()).await?;
        self.put_content(&new_object.object_key, content, dek.as_ref()).await?;
        Ok(Upload { blob, new_object: Some(new_object) })
    }

    /// Notes that an object may come to be under this name.
    pub(super) async fn insert_pending(
        &self,
        blob: BlobId,
        object_key: &str,
        project: ProjectId,
        content: &Spool,
        wrapped_key: Option<&[u8]>,
    ) -> Result<()> {
        sqlx::query!(
            "insert into blobs (id, project_id, object_key, sha256, size, encryption_format, wrapped_key)
             values ($1, $2, $3, $4, $5, case when $6::bytea is not null then $7 end, $6)",
            blob as _,
            project as _,
            object_key,
            content.sha256,
            i64::try_from(content.size).map_err(Error::internal)?,
            wrapped_key,
            EncryptionFormat::Chunked as _,
        )
        .execute(&*self.db)
        .await?;
        Ok(())
    }

    /// Makes the upload's blob one that rows of this transaction may refer to, and holds it there until the transaction ends.
    /// `None` if another one took its place meanwhile (an equal content that came first, or the sweep), or the project wants its
    /// content in another form now: begin again with [`BlobService::upload`], in a new transaction.
    pub async fn claim(&self, conn: &mut PgConnection, upload: &Upload) -> Result<Option<BlobId>> {
        Ok(self.claim_all(conn, std::slice::from_ref(upload)).await?.and_then(|blobs| blobs.first().copied()))
    }

    /// As [`BlobService::claim`], for several contents of a project, no two of them equal: all of them or none.
    pub async fn claim_all(&self, conn: &mut PgConnection, uploads: &[Upload]) -> Result<Option<Vec<BlobId>>> {
        let claimed = try_claim(conn, uploads).await;
        if !matches!(claimed, Ok(true)) {
            // Nobody will refer to them any more.
            let left: Vec<_> =
                uploads.iter().filter_map(|upload| Some((upload.blob, upload.new_object.clone()?))).collect();
            if !left.is_empty() {
                let service = self.clone();
                self.process.background_tasks.spawn(async move { service.discard(left).await });
            }
        }
        Ok(claimed?.then(|| uploads.iter().map(|upload| upload.blob).collect()))
    }

    /// Removes what was put into the store in vain, whatever has become of its row.
    pub(super) async fn discard(&self, left: Vec<(BlobId, NewObject)>) {
        for (blob, NewObject { object_key, .. }) in left {
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
            if let Err(fault) = discarded.await {
                tracing::warn!(error = ?fault, "an upload that is not needed was left to the sweep");
            }
        }
    }
}

/// The name of an object that will be; used once.
pub(super) fn object_key(project: ProjectId, blob: BlobId) -> String {
    format!("{project}/{blob}")
}

async fn try_claim(conn: &mut PgConnection, uploads: &[Upload]) -> Result<bool> {
    let found: Vec<BlobId> = uploads.iter().filter(|one| one.new_object.is_none()).map(|one| one.blob).collect();
    if !found.is_empty() {
        // The share lock keeps the sweep from calling it dead before this transaction has ended. In one order, so that two
        // transactions do not wait for each other.
        let held = sqlx::query_scalar!(
            "select 1 as one from blobs where id = any($1) and state = 'live' order by id for share",
            &found as _,
        );
        if held.fetch_all(&mut *conn).await?.len() < found.len() {
            return Ok(false);
        }
    }
    let new_object: Vec<(BlobId, &NewObject)> =
        uploads.iter().filter_map(|one| Some((one.blob, one.new_object.as_ref()?))).collect();
    let Some((_, first)) = new_object.first() else { return Ok(true) };
    let wanted = rows::encryption_enabled_for_share(&mut *conn, first.project).await?;
    if new_object.iter().any(|(_, one)| wanted.is_some_and(|sealed| sealed != one.sealed)) {
        return Ok(false);
    }
    let ids: Vec<BlobId> = new_object.iter().map(|(blob, _)| *blob).collect();
    let made = sqlx::query!("update blobs set state = 'live' where id = any($1) and state = 'pending'", &ids as _);
    match made.execute(conn).await {
        Ok(made) => Ok(made.rows_affected() == ids.len() as u64),
        // An equal content came first.
        Err(sqlx::Error::Database(fault)) if fault.constraint() == Some("blobs_live_idx") => Ok(false),
        Err(fault) => Err(fault.into()),
    }
}
