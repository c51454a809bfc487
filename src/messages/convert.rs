//! Encrypts and decrypts stored messages.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use super::store::{SLICE, set_long_content};
use super::{page, sealed};
use crate::db::Db;
use crate::db::page::Cursor;
use crate::encryption::reencrypt::{ConversionProgress, Interrupt, Reencrypt};
use crate::encryption::{DecryptError, Kek, ProjectEncryption, StorageFormat, frame};
use crate::error::{Error, Result};
use crate::ids::{MessageId, ProjectId, SessionId};
use crate::sessions::lock::LockedSession;
use crate::time::Timestamp;

/// How many sessions are looked up at once.
const SESSIONS: i64 = 500;
/// How many messages are converted in one transaction at most, and how much of their contents, in bytes.
const BATCH: i64 = 500;
const BATCH_BYTES: usize = 2 << 20;

/// The messages of all sessions, as content that can be encrypted.
pub struct EncryptedMessages {
    pub db: Db,
}

#[async_trait]
impl Reencrypt for EncryptedMessages {
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

impl EncryptedMessages {
    /// Lists sessions of a project with messages that are not in this format, in the order of their creation after this position.
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
            SESSIONS
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
                return Err(Interrupt::TargetChanged);
            }
            let ConvertedBatch { count, damaged, next } =
                convert_batch(&mut session, encryption, format, after).await?;
            let damaged: Vec<_> =
                damaged.iter().map(|id| format!("message {id} is damaged and stays as it is")).collect();
            progress.record(&mut session, count, &damaged).await?;
            tx.commit().await?;
            let Some(next) = next else { return Ok(()) };
            after = Some(next);
        }
    }
}

/// What became of some messages of a session.
#[derive(Debug, Default)]
pub struct ConvertedBatch {
    pub count: i64,
    /// Messages that cannot be decrypted, and stay as they are.
    pub damaged: Vec<MessageId>,
    /// Where to continue; `None` if there are no more.
    pub next: Option<Timestamp>,
}

/// Converts the next messages of a session after that time that are not in this format.
///
/// # Errors
/// 403 if there are any and the request has not brought the project's key.
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
    for one in contents.iter_mut().filter(|one| one.is_long()) {
        one.content = page::long_content(session, one.id, one.length).await?.unwrap_or_default();
    }
    let converted = tokio::task::spawn_blocking(move || convert_contents(&kek, contents, format));
    let ConversionResult { contents, damaged } = converted.await.map_err(Error::internal)??;
    let count = i64::try_from(contents.len()).map_err(Error::internal)?;
    let (long, short): (Vec<_>, Vec<_>) = contents.into_iter().partition(ContentRow::is_long);
    write(session, short).await?;
    for mut one in long {
        let (id, content) = (one.id, std::mem::take(&mut one.content));
        write(session, vec![one]).await?;
        set_long_content(session, id, &content).await?;
    }
    Ok(ConvertedBatch { count, damaged, next })
}

/// What is encrypted of a message, as its row has it.
struct ContentRow {
    id: MessageId,
    content: Vec<u8>,
    /// Of the content as it was found, in bytes.
    length: i32,
    encrypted_as: Option<Uuid>,
    pending_calls: Option<Value>,
}

impl ContentRow {
    fn is_long(&self) -> bool {
        usize::try_from(self.length).is_ok_and(|length| length > SLICE)
    }
}

/// Lists the next messages to convert, and returns the time of the last one if there may be more after it.
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
        BATCH,
    )
    .fetch_all(&mut ***session)
    .await?;
    let mut bytes = 0;
    let fits = rows.iter().take_while(|row| {
        let before = bytes;
        bytes += usize::try_from(row.length).unwrap_or_default();
        before == 0 || bytes <= BATCH_BYTES
    });
    let batch: Vec<Uuid> = fits.map(|row| row.id).collect();
    let is_last = batch.len() == rows.len() && i64::try_from(rows.len()).is_ok_and(|count| count < BATCH);
    let last = batch.len().checked_sub(1).map(|at| rows[at].created_at);
    Ok((batch, last.filter(|_| !is_last)))
}

/// The contents of messages; long ones without their text.
async fn list_contents(conn: &mut PgConnection, ids: &[Uuid]) -> sqlx::Result<Vec<ContentRow>> {
    sqlx::query_as!(
        ContentRow,
        r#"select id as "id: MessageId", case when octet_length(content) <= $2 then content else '' end as "content!",
                  octet_length(content) as "length!", encrypted_as, pending_calls
           from messages where id = any($1) order by created_at"#,
        ids,
        i32::try_from(SLICE).unwrap_or(i32::MAX),
    )
    .fetch_all(conn)
    .await
}

struct ConversionResult {
    contents: Vec<ContentRow>,
    damaged: Vec<MessageId>,
}

fn convert_contents(kek: &Arc<Kek>, contents: Vec<ContentRow>, format: StorageFormat) -> Result<ConversionResult> {
    let mut done = ConversionResult { contents: Vec::with_capacity(contents.len()), damaged: Vec::new() };
    for one in contents {
        let id = one.id;
        match (format, one.encrypted_as) {
            (StorageFormat::Encrypted, None) => done.contents.push(seal(kek, one)?),
            (StorageFormat::Plaintext, Some(encrypted_as)) => match open(kek, one, encrypted_as) {
                Ok(one) => done.contents.push(one),
                Err(DecryptError) => done.damaged.push(id),
            },
            _ => {}
        }
    }
    Ok(done)
}

fn seal(kek: &Kek, mut one: ContentRow) -> Result<ContentRow> {
    let id = one.id.0;
    let content = frame::seal(kek, id, &one.content)?;
    one.pending_calls = one.pending_calls.map(|calls| sealed::seal_calls(kek, id, &calls)).transpose()?;
    Ok(ContentRow { content, encrypted_as: Some(id), ..one })
}

fn open(kek: &Kek, one: ContentRow, encrypted_as: Uuid) -> Result<ContentRow, DecryptError> {
    let content = frame::open(kek, encrypted_as, one.content)?;
    let pending_calls = one.pending_calls.map(|calls| sealed::pending_calls(kek, encrypted_as, &calls)).transpose()?;
    Ok(ContentRow { content, encrypted_as: None, pending_calls, ..one })
}

async fn write(conn: &mut PgConnection, contents: Vec<ContentRow>) -> sqlx::Result<()> {
    if contents.is_empty() {
        return Ok(());
    }
    let ids: Vec<Uuid> = contents.iter().map(|one| one.id.0).collect();
    let encrypted_as: Vec<Option<Uuid>> = contents.iter().map(|one| one.encrypted_as).collect();
    let (contents, pending_calls): (Vec<_>, Vec<_>) =
        contents.into_iter().map(|one| (one.content, one.pending_calls)).unzip();
    sqlx::query!(
        "update messages m set content = c.content, encrypted_as = c.encrypted_as, pending_calls = c.pending_calls
         from unnest($1::uuid[], $2::bytea[], $3::uuid[], $4::jsonb[]) as c (id, content, encrypted_as, pending_calls)
         where m.id = c.id",
        &ids,
        &contents,
        &encrypted_as as _,
        &pending_calls as _,
    )
    .execute(conn)
    .await
    .map(drop)
}
