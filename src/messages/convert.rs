//! Converts stored messages to the other storage format: encrypts or decrypts them.
//!
//! In SQL, a storage format is a boolean: `true` if encrypted. The condition `(encrypted_as is null) = $format` therefore selects
//! the messages that are not stored in this format.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use super::encryption::{decrypt_references, encrypt_references};
use super::page;
use super::store::{SLICE_BYTES, write_large_content};
use crate::db::Db;
use crate::db::page::Cursor;
use crate::encryption::conversion::{ConversionProgress, EncryptableContent, Interrupt};
use crate::encryption::{DecryptError, Kek, ProjectEncryption, StorageFormat, value};
use crate::error::{Error, Result};
use crate::ids::{MessageId, ProjectId, SessionId};
use crate::sessions::lock::LockedSession;
use crate::time::Timestamp;

/// Maximum number of sessions that one query lists.
const MAX_LISTED_SESSIONS: i64 = 500;
/// Maximum number of messages that are converted in a transaction.
const MAX_BATCH_MESSAGES: i64 = 500;
/// Maximum size of the contents that are converted in a transaction, in bytes. A larger message is converted alone.
const MAX_BATCH_BYTES: usize = 2 << 20;

/// Converts the messages of projects whose storage format has changed.
pub struct MessageEncryptionConverter {
    pub db: Db,
}

#[async_trait]
impl EncryptableContent for MessageEncryptionConverter {
    async fn count_remaining(&self, project: ProjectId, format: StorageFormat) -> Result<i64> {
        let count = sqlx::query_scalar!(
            r#"select count(*) as "count!" from messages m join sessions s on s.id = m.session_id
               where s.project_id = $1 and (m.encrypted_as is null) = $2"#,
            project as _,
            format as _
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
            let sessions = self.list_sessions(encryption.project, format, after).await?;
            let Some((_, last)) = sessions.last() else { return Ok(()) };
            after = *last;
            for (session, _) in sessions {
                self.convert_session(encryption, format, session, progress).await?;
            }
        }
    }
}

impl MessageEncryptionConverter {
    /// Lists the next sessions of a project, in order of creation, with messages that are not stored in `format`.
    async fn list_sessions(
        &self,
        project: ProjectId,
        format: StorageFormat,
        after: Cursor,
    ) -> sqlx::Result<Vec<(SessionId, Cursor)>> {
        let rows = sqlx::query!(
            r#"select s.id as "id: SessionId", s.created_at from sessions s
               where s.project_id = $1 and (s.created_at, s.id) > ($3, $4)
                 and exists (select 1 from messages m where m.session_id = s.id and (m.encrypted_as is null) = $2)
               order by s.created_at, s.id limit $5"#,
            project as _,
            format as _,
            after.created_at,
            after.id,
            MAX_LISTED_SESSIONS
        );
        let rows = rows.fetch_all(&*self.db).await?.into_iter();
        Ok(rows.map(|row| (row.id, Cursor { created_at: row.created_at, id: row.id.0 })).collect())
    }

    async fn convert_session(
        &self,
        encryption: &ProjectEncryption,
        format: StorageFormat,
        session: SessionId,
        progress: &dyn ConversionProgress,
    ) -> Result<(), Interrupt> {
        let mut after: Option<Timestamp> = None;
        loop {
            progress.check_deadline()?;
            let mut tx = self.db.begin().await?;
            let locked = LockedSession::lock_to_store(&mut tx, encryption.project, session).await?;
            let Some((current_format, mut session)) = locked else { return Ok(()) };
            if current_format != format {
                return Err(Interrupt::FormatChanged);
            }
            let ConvertedBatch { count, corrupt, next } =
                convert_batch(&mut session, encryption, format, after).await?;
            let corrupt: Vec<_> =
                corrupt.iter().map(|id| format!("message {id} is corrupt and was left unchanged")).collect();
            progress.record(&mut session, count, &corrupt).await?;
            tx.commit().await?;
            let Some(next) = next else { return Ok(()) };
            after = Some(next);
        }
    }
}

/// The result of converting a batch of messages.
#[derive(Debug, Default)]
pub struct ConvertedBatch {
    /// Number of converted messages.
    pub count: i64,
    /// Messages that cannot be decrypted and were left unchanged.
    pub corrupt: Vec<MessageId>,
    /// The position from which to continue; `None` if there are no more messages.
    pub next: Option<Timestamp>,
}

/// Converts the next batch of a session's messages to `format`. The batch consists of messages that are later than `after` and
/// not stored in `format` yet.
///
/// # Errors
/// Returns 403 if there are such messages and `encryption` has no master key.
pub async fn convert_batch(
    session: &mut LockedSession<'_>,
    encryption: &ProjectEncryption,
    format: StorageFormat,
    after: Option<Timestamp>,
) -> Result<ConvertedBatch> {
    let (batch, next) = list_batch(session, format, after).await?;
    if batch.is_empty() {
        return Ok(ConvertedBatch::default());
    }
    let kek = encryption.kek.clone().ok_or(Error::KeyRequired)?;
    let mut contents = list_contents(session, &batch).await?;
    for row in contents.iter_mut().filter(|row| row.is_large()) {
        row.content =
            page::read_large_content(session, row.id, row.encrypted_as, row.length).await?.unwrap_or_default();
    }
    let converted = tokio::task::spawn_blocking(move || convert_contents(&kek, contents, format));
    let ConvertedContents { contents, corrupt } = converted.await.map_err(Error::internal)??;
    let count = i64::try_from(contents.len()).map_err(Error::internal)?;
    let (large, small): (Vec<_>, Vec<_>) = contents.into_iter().partition(ContentRow::is_large);
    update_contents(session, small).await?;
    for mut row in large {
        let (id, content) = (row.id, std::mem::take(&mut row.content));
        update_contents(session, vec![row]).await?;
        write_large_content(session, id, &content).await?;
    }
    Ok(ConvertedBatch { count, corrupt, next })
}

/// The columns of a message that can be encrypted.
struct ContentRow {
    id: MessageId,
    content: Vec<u8>,
    /// Length of the content before the conversion, in bytes.
    length: i32,
    encrypted_as: Option<Uuid>,
    call_references: Option<Value>,
}

impl ContentRow {
    fn is_large(&self) -> bool {
        usize::try_from(self.length).is_ok_and(|length| length > SLICE_BYTES)
    }
}

/// Lists the ids of the next messages to convert. Also returns the time of the last of them if more messages may follow.
async fn list_batch(
    session: &mut LockedSession<'_>,
    format: StorageFormat,
    after: Option<Timestamp>,
) -> Result<(Vec<Uuid>, Option<Timestamp>)> {
    let rows = sqlx::query!(
        r#"select id, created_at as "created_at: Timestamp", octet_length(content) as "length!" from messages
           where session_id = $1 and created_at > coalesce($2, '-infinity'::timestamptz) and (encrypted_as is null) = $3
           order by created_at limit $4"#,
        session.id as _,
        after.map(|after| after.0),
        format as _,
        MAX_BATCH_MESSAGES,
    )
    .fetch_all(&mut ***session)
    .await?;
    let mut bytes = 0;
    let fits = rows.iter().take_while(|row| {
        let before = bytes;
        bytes += usize::try_from(row.length).unwrap_or_default();
        before == 0 || bytes <= MAX_BATCH_BYTES
    });
    let batch: Vec<Uuid> = fits.map(|row| row.id).collect();
    let is_last = batch.len() == rows.len() && i64::try_from(rows.len()).is_ok_and(|count| count < MAX_BATCH_MESSAGES);
    let last = batch.len().checked_sub(1).map(|index| rows[index].created_at);
    Ok((batch, last.filter(|_| !is_last)))
}

/// Lists the contents of messages. The content of a large message is empty and must be read in slices.
async fn list_contents(conn: &mut PgConnection, ids: &[Uuid]) -> sqlx::Result<Vec<ContentRow>> {
    sqlx::query_as!(
        ContentRow,
        r#"select id as "id: MessageId", case when octet_length(content) <= $2 then content else '' end as "content!",
                  octet_length(content) as "length!", encrypted_as, call_references
           from messages where id = any($1) order by created_at"#,
        ids,
        i32::try_from(SLICE_BYTES).unwrap_or(i32::MAX),
    )
    .fetch_all(conn)
    .await
}

struct ConvertedContents {
    contents: Vec<ContentRow>,
    corrupt: Vec<MessageId>,
}

fn convert_contents(kek: &Arc<Kek>, contents: Vec<ContentRow>, format: StorageFormat) -> Result<ConvertedContents> {
    let mut result = ConvertedContents { contents: Vec::with_capacity(contents.len()), corrupt: Vec::new() };
    for row in contents {
        let id = row.id;
        match (format, row.encrypted_as) {
            (StorageFormat::Encrypted, None) => result.contents.push(encrypt(kek, row)?),
            (StorageFormat::Plaintext, Some(encrypted_as)) => match decrypt(kek, row, encrypted_as) {
                Ok(row) => result.contents.push(row),
                Err(DecryptError) => result.corrupt.push(id),
            },
            _ => {}
        }
    }
    Ok(result)
}

fn encrypt(kek: &Kek, mut row: ContentRow) -> Result<ContentRow> {
    let id = row.id.0;
    let content = value::encrypt(kek, id, &row.content)?;
    row.call_references = row.call_references.map(|references| encrypt_references(kek, id, &references)).transpose()?;
    Ok(ContentRow { content, encrypted_as: Some(id), ..row })
}

fn decrypt(kek: &Kek, row: ContentRow, encrypted_as: Uuid) -> Result<ContentRow, DecryptError> {
    let content = value::decrypt(kek, encrypted_as, row.content)?;
    let call_references =
        row.call_references.map(|references| decrypt_references(kek, encrypted_as, &references)).transpose()?;
    Ok(ContentRow { content, encrypted_as: None, call_references, ..row })
}

async fn update_contents(conn: &mut PgConnection, contents: Vec<ContentRow>) -> sqlx::Result<()> {
    if contents.is_empty() {
        return Ok(());
    }
    let ids: Vec<Uuid> = contents.iter().map(|row| row.id.0).collect();
    let encrypted_as: Vec<Option<Uuid>> = contents.iter().map(|row| row.encrypted_as).collect();
    let (contents, call_references): (Vec<_>, Vec<_>) =
        contents.into_iter().map(|row| (row.content, row.call_references)).unzip();
    sqlx::query!(
        "update messages m set content = c.content, encrypted_as = c.encrypted_as, call_references = c.call_references
         from unnest($1::uuid[], $2::bytea[], $3::uuid[], $4::jsonb[]) as c (id, content, encrypted_as, call_references)
         where m.id = c.id",
        &ids,
        &contents,
        &encrypted_as as _,
        &call_references as _,
    )
    .execute(conn)
    .await
    .map(drop)
}
