//! The SQL that reads rows of `blobs`.

use sqlx::PgConnection;

use crate::error::Result;
use crate::ids::{BlobId, ProjectId};
use crate::text_enum::text_enum;

text_enum! {
    /// The encryption format of an object: the column `blobs.encryption_format`.
    pub enum EncryptionFormat {
        /// Encrypted in chunks, see [`crate::encryption::object`]. The wrapped key is bound to the SHA-256 of the content.
        Chunked = "chunked",
        /// The format of Acontext: encrypted as a whole, with a wrapped key that is not bound to the content. Such objects are
        /// read but never written.
        Acontext = "acontext",
    }
}

/// A row of `blobs`, with the key of its object and the data that decrypts the object.
#[derive(Clone, Debug)]
pub struct StoredBlob {
    pub id: BlobId,
    pub object_key: String,
    /// The size of the content in bytes.
    pub size: i64,
    /// The SHA-256 of the content in lower-case hex.
    pub sha256: String,
    /// The encryption format; `None` if the object is stored as plaintext.
    pub encryption_format: Option<EncryptionFormat>,
    pub wrapped_key: Option<Vec<u8>>,
}

/// Creates a [`StoredBlob`] from the row of a larger query. The row has the same field names, except that the id is `blob_id`.
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

/// Returns the blob whose content has this SHA-256, if rows of the project still refer to it.
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

/// Returns a blob by its id. The object key of a blob changes when its content is encrypted or decrypted.
pub async fn get(conn: &mut PgConnection, blob: BlobId) -> Result<Option<StoredBlob>> {
    let row = sqlx::query_as!(
        StoredBlob,
        r#"select id as "id: BlobId", object_key, size, sha256, encryption_format as "encryption_format: EncryptionFormat", wrapped_key from blobs where id = $1"#,
        blob as _,
    );
    Ok(row.fetch_optional(conn).await?)
}

/// Lists blobs by their hashes, in the order of the hashes. Hashes without a live blob are left out.
pub async fn list_by_sha256(conn: &mut PgConnection, project: ProjectId, hashes: &[String]) -> Result<Vec<StoredBlob>> {
    let rows = sqlx::query_as!(
        StoredBlob,
        r#"select b.id as "id: BlobId", b.object_key, b.size, b.sha256, b.encryption_format as "encryption_format: EncryptionFormat",
                b.wrapped_key
         from unnest($2::text[]) with ordinality as requested (sha256, position)
         join blobs b on b.project_id = $1 and b.sha256 = requested.sha256 and b.state = 'live'
         order by requested.position"#,
        project as _,
        hashes,
    );
    Ok(rows.fetch_all(conn).await?)
}
