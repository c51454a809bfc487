//! Turns stored messages from one form into the other: sealed, or opened again.

use std::sync::Arc;

use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use super::store::{SLICE, set_long_content};
use super::{page, sealed};
use crate::encryption::{Damaged, Kek, Owner, frame};
use crate::error::{Error, Result};
use crate::ids::{MessageId, SessionId};
use crate::time::Timestamp;

/// How many messages are turned in one transaction at most, and how much of their contents, in bytes.
const BATCH: i64 = 500;
const BATCH_BYTES: usize = 2 << 20;

/// What was done to some messages of a session.
#[derive(Debug, Default)]
pub struct Turned {
    pub count: i64,
    /// Those that do not open, and stay as they are.
    pub damaged: Vec<MessageId>,
    /// Where to go on; nothing if there are no more.
    pub next: Option<Timestamp>,
}

/// Turns the next messages of a session after that time that are in the other form. Wants the session's lock.
///
/// # Errors
/// 403 if there are any and the project's key is not at hand.
pub async fn turn(
    conn: &mut PgConnection,
    owner: &Owner,
    session: SessionId,
    seals: bool,
    after: Option<Timestamp>,
) -> Result<Turned> {
    let (batch, next) = list_batch(conn, session, seals, after).await?;
    if batch.is_empty() {
        return Ok(Turned::default());
    }
    let kek = owner.kek.clone().ok_or(Error::KeyRequired)?;
    let mut contents = list_contents(conn, &batch).await?;
    for one in contents.iter_mut().filter(|one| one.is_long()) {
        one.content = page::long_content(conn, one.id, one.length).await?.unwrap_or_default();
    }
    let done = tokio::task::spawn_blocking(move || in_form(&kek, contents, seals)).await.map_err(Error::internal)??;
    let (count, damaged) = (i64::try_from(done.contents.len()).map_err(Error::internal)?, done.damaged);
    let (long, short): (Vec<_>, Vec<_>) = done.contents.into_iter().partition(Stored::is_long);
    write(conn, short).await?;
    for mut one in long {
        let (id, content) = (one.id, std::mem::take(&mut one.content));
        write(conn, vec![one]).await?;
        set_long_content(conn, id, &content).await?;
    }
    Ok(Turned { count, damaged, next })
}

/// A message as its row has it.
struct Stored {
    id: MessageId,
    content: Vec<u8>,
    /// Of the content as it was found, in bytes.
    length: i32,
    encrypted_as: Option<Uuid>,
    pending_calls: Option<Value>,
}

impl Stored {
    fn is_long(&self) -> bool {
        usize::try_from(self.length).is_ok_and(|length| length > SLICE)
    }
}

/// The next messages that are to be turned, and the time of the last one if there may be more after it.
async fn list_batch(
    conn: &mut PgConnection,
    session: SessionId,
    seals: bool,
    after: Option<Timestamp>,
) -> Result<(Vec<Uuid>, Option<Timestamp>)> {
    let rows = sqlx::query!(
        r#"select id, created_at as "created_at: Timestamp", octet_length(content) as "length!" from messages
           where session_id = $1 and created_at > coalesce($2, '-infinity'::timestamptz) and (encrypted_as is null) = $3
           order by created_at limit $4"#,
        session as _,
        after.map(|after| after.0),
        seals,
        BATCH,
    )
    .fetch_all(conn)
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
async fn list_contents(conn: &mut PgConnection, ids: &[Uuid]) -> sqlx::Result<Vec<Stored>> {
    sqlx::query_as!(
        Stored,
        r#"select id as "id: MessageId", case when octet_length(content) <= $2 then content else '' end as "content!",
                  octet_length(content) as "length!", encrypted_as, pending_calls
           from messages where id = any($1) order by created_at"#,
        ids,
        i32::try_from(SLICE).unwrap_or(i32::MAX),
    )
    .fetch_all(conn)
    .await
}

struct InForm {
    contents: Vec<Stored>,
    damaged: Vec<MessageId>,
}

fn in_form(kek: &Arc<Kek>, contents: Vec<Stored>, seals: bool) -> Result<InForm> {
    let mut done = InForm { contents: Vec::with_capacity(contents.len()), damaged: Vec::new() };
    for one in contents {
        let id = one.id;
        match (seals, one.encrypted_as) {
            (true, None) => done.contents.push(seal(kek, one)?),
            (false, Some(encrypted_as)) => match open(kek, one, encrypted_as) {
                Ok(one) => done.contents.push(one),
                Err(Damaged) => done.damaged.push(id),
            },
            _ => {}
        }
    }
    Ok(done)
}

fn seal(kek: &Kek, mut one: Stored) -> Result<Stored> {
    let id = one.id.0;
    let content = frame::seal(kek, id, &one.content)?;
    one.pending_calls = one.pending_calls.map(|calls| sealed::seal_calls(kek, id, &calls)).transpose()?;
    Ok(Stored { content, encrypted_as: Some(id), ..one })
}

fn open(kek: &Kek, one: Stored, encrypted_as: Uuid) -> Result<Stored, Damaged> {
    let content = frame::open(kek, encrypted_as, one.content)?;
    let pending_calls = one.pending_calls.map(|calls| sealed::pending_calls(kek, encrypted_as, &calls)).transpose()?;
    Ok(Stored { content, encrypted_as: None, pending_calls, ..one })
}

async fn write(conn: &mut PgConnection, contents: Vec<Stored>) -> sqlx::Result<()> {
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
