//! SQL of the files of messages.

use sqlx::PgConnection;

use crate::blob::ingest::LiveBlob;
use crate::blob::rows::{EncryptionFormat, StoredBlob, stored_blob};
use crate::ids::{BlobId, MessageId, ProjectId, SessionId};
use crate::sessions::lock::LockedSession;

/// A file of a message to insert.
pub struct NewMessageFile<'a> {
    pub s3_key: &'a str,
    pub blob: LiveBlob,
    pub sha256: &'a str,
    pub mime: &'a str,
    pub filename: &'a str,
}

pub async fn insert_file(
    session: &mut LockedSession<'_>,
    message: MessageId,
    file: &NewMessageFile<'_>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into message_files (message_id, s3_key, session_id, blob_id, sha256, mime, filename)
         values ($1, $2, $3, $4, $5, $6, $7) on conflict (message_id, s3_key) do nothing",
        message as _,
        file.s3_key,
        session.id as _,
        file.blob.id() as _,
        file.sha256,
        file.mime,
        file.filename,
    )
    .execute(&mut ***session)
    .await
    .map(drop)
}

/// A stored file of a message.
pub struct StoredMessageFile {
    pub blob: StoredBlob,
    pub filename: String,
}

/// Returns the file with this `s3_key` among the files of the session's messages.
pub async fn get_file(
    conn: &mut PgConnection,
    project: ProjectId,
    session: SessionId,
    s3_key: &str,
) -> sqlx::Result<Option<StoredMessageFile>> {
    let row = sqlx::query!(
        r#"select b.id as "blob_id: BlobId", b.object_key, b.size, f.sha256,
                  b.encryption_format as "encryption_format: EncryptionFormat", b.wrapped_key, f.filename
           from message_files f join blobs b on b.id = f.blob_id and b.project_id = $1
           where f.session_id = $2 and f.s3_key = $3 limit 1"#,
        project as _,
        session as _,
        s3_key
    );
    let row = row.fetch_optional(conn).await?;
    Ok(row.map(|row| StoredMessageFile { filename: row.filename, blob: stored_blob!(row) }))
}
