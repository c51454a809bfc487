//! SQL that reads the rows of stored objects.

use sqlx::PgConnection;

use crate::error::Result;
use crate::ids::{BlobId, ProjectId};
use crate::text_enum::text_enum;

text_enum! {
    /// How an object is encrypted: the column `blobs.encryption_format`.
    pub enum EncryptionFormat {
        /// In chunks, see [`crate::encryption::object`]; its key is bound to the SHA-256 of the content.
        Chunked = "chunked",
        /// As Acontext encrypts objects: at once, with a key that is bound to nothing. Such objects are read and never written.
        Acontext = "acontext",
    }
}

/// Where a stored content is, and what it takes to open it.
#[derive(Clone, Debug)]
pub struct StoredBlob {
    pub id: BlobId,
    pub object_key: String,
    /// Of the content, in bytes.
    pub size: i64,
    /// Of the content, in lower-case hex.
    pub sha256: String,
    /// `None` if the object is stored as it is.
    pub encryption_format: Option<EncryptionFormat>,
    pub wrapped_key: Option<Vec<u8>>,
}

/// Makes a [`StoredBlob`] of the row of a larger query, which has its fields and names the id `blob_id`.
macro_rules! stored_blob {
    ($row:ident) => {
        $crate::blob::rows::StoredBlob {
            id: $row.blob_id,
            object_key: $row.object_key,
            size: $row.size,
            sha256: $row.sha256,
            encryption_format: $row.encryption_format,
            wrapped_key: $row.wrapped_key,
        }
    };
}
pub(crate) use stored_blob;

/// Finds content by its hash, if rows of the project still refer to it.
pub async fn get_by_sha256(conn: &mut PgConnection, project: ProjectId, sha256: &str) -> Result<Option<StoredBlob>> {
    let row = sqlx::query_as!(
        StoredBlob,
        r#"select id as "id: BlobId", object_key, size, sha256, encryption_format as "encryption_format: EncryptionFormat", wrapped_key from blobs b
         where project_id = $1 and sha256 = $2 and state = 'live'
           and exists (select 1 from blob_references r where r.blob_id = b.id)"#,
        project as _,
        sha256,
    );
    Ok(row.fetch_optional(conn).await?)
}

/// Where a content is now: it moves when the form it is stored in changes.
pub async fn get(conn: &mut PgConnection, blob: BlobId) -> Result<Option<StoredBlob>> {
    let row = sqlx::query_as!(
        StoredBlob,
        r#"select id as "id: BlobId", object_key, size, sha256, encryption_format as "encryption_format: EncryptionFormat", wrapped_key from blobs where id = $1"#,
        blob as _,
    );
    Ok(row.fetch_optional(conn).await?)
}

/// Several contents by their hashes, in the order of the hashes.
pub async fn list_by_sha256(conn: &mut PgConnection, project: ProjectId, hashes: &[String]) -> Result<Vec<StoredBlob>> {
    let rows = sqlx::query_as!(
        StoredBlob,
        r#"select b.id as "id: BlobId", b.object_key, b.size, b.sha256, b.encryption_format as "encryption_format: EncryptionFormat",
                b.wrapped_key
         from unnest($2::text[]) with ordinality as w (sha256, n)
         join blobs b on b.project_id = $1 and b.sha256 = w.sha256 and b.state = 'live'
         order by w.n"#,
        project as _,
        hashes,
    );
    Ok(rows.fetch_all(conn).await?)
}
