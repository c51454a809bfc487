//! SQL of messages. [`insert`] is the one way a message comes into being; [`super::writer`] calls it for many at once.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value};
use sqlx::types::Json;
use sqlx::{Connection, PgConnection};

use super::columns::{Columns, Places};
use super::format::{Call, Format};
use super::parts::Role;
use crate::config::Learning;
use crate::db::interval;
use crate::http::time::Timestamp;
use crate::ids::{BlobId, MessageId, ProjectId, SessionId};

/// Longer contents come and go in slices, in bytes: what the driver makes of a value takes three and a half times its length.
pub const SLICE: usize = 1024 * 1024;

/// When tasks are looked for in stored messages.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    /// How long the oldest waits for more.
    pub ttl: Duration,
    /// So many need not wait longer.
    pub turns: i64,
}

impl From<&Learning> for Buffer {
    fn from(settings: &Learning) -> Self {
        Self { ttl: settings.buffer_ttl, turns: i64::try_from(settings.buffer_turns).unwrap_or(i64::MAX) }
    }
}

/// A message that is to be stored.
#[derive(Clone, Debug)]
pub struct NewMessage {
    pub id: MessageId,
    pub project: ProjectId,
    pub session: SessionId,
    pub role: Role,
    pub format: Format,
    /// The message in its format, as JSON text.
    pub content: Bytes,
    pub tokens: i32,
    pub meta: Map<String, Value>,
    pub user_meta: Map<String, Value>,
    /// Calls of Gemini functions that wait for their answers.
    pub open_calls: Vec<Call>,
    /// The project's own setting of [`Buffer::turns`].
    pub buffer_turns: Option<i64>,
}

/// What the database adds to a message.
#[derive(Clone, Debug)]
pub struct Stored {
    pub parent: Option<MessageId>,
    pub status: String,
    pub created_at: Timestamp,
}

/// Stores messages, in this order within each session, in one statement: locks their sessions, gives each message its parent
/// and a time later than all before it, and leaves a job for each session whose tasks are
/// tracked and that has none.
///
/// The answer has an entry for each message; `None` if the project has no such session, or another transaction holds it:
/// who wants to wait for it calls [`lock_session`] before.
#[expect(clippy::too_many_lines, reason = "one statement")]
pub async fn insert(conn: &mut PgConnection, new: &[NewMessage], buffer: Buffer) -> sqlx::Result<Vec<Option<Stored>>> {
    let Places { sessions, projects, turns, counts, newest, of, nth, previous } = Places::of(new);
    let Columns { ids, roles, formats, contents, tokens, metas, user_metas, open_calls } = Columns::of(new);
    let rows = sqlx::query!(
        r#"with held as materialized (
               select w.at, w.new, w.newest, greatest(coalesce(w.turns, $17), 1) as turns, s.id, s.project_id, s.disable_task_tracking, s.last_message_id, s.unobserved,
                      s.observing, greatest(clock_timestamp(), s.last_message_at + interval '1 microsecond') as time
               from unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::uuid[], $18::bigint[])
                   with ordinality as w (session_id, project_id, new, newest, turns, at)
               join sessions s on s.id = w.session_id and s.project_id = w.project_id
               -- In one order, so that two writers never wait for each other.
               order by s.id for no key update of s skip locked
           ),
           moved as (
               update sessions s
               set last_message_id = h.newest, last_message_at = h.time + (h.new - 1) * interval '1 microsecond',
                   unobserved = case when h.disable_task_tracking then s.unobserved else h.unobserved + h.new end,
                   observing = h.observing or not h.disable_task_tracking
               from held h where s.id = h.id
           ),
           queued as (
               insert into jobs (id, project_id, kind, payload, lane, dedupe, run_at)
               select gen_random_uuid(), h.project_id, 'observe', jsonb_build_object('session', h.id),
                      'session:' || h.id, h.id::text,
                      case when h.new >= h.turns then now() else now() + $16::interval end
               from held h where not h.disable_task_tracking and not h.observing
               on conflict (kind, dedupe) where state = 'ready' do nothing
           ),
           -- Enough has gathered: the job that waits need not wait longer.
           hurried as (
               update jobs j set run_at = now(), updated_at = now()
               from held h
               where not h.disable_task_tracking and h.observing and h.unobserved < h.turns
                 and h.unobserved + h.new >= h.turns
                 and j.kind = 'observe' and j.dedupe = h.id::text and j.state = 'ready' and j.attempt = 0
                 and j.run_at > now()
           )
           insert into messages (id, session_id, parent_id, role, format, content, tokens, meta, user_meta, open_calls,
                                 session_task_process_status, created_at, updated_at)
           select m.id, h.id, coalesce(m.previous, h.last_message_id), m.role, m.format, m.content, m.tokens, m.meta,
                  m.user_meta, m.open_calls, case when h.disable_task_tracking then 'disable_tracking' else 'pending' end,
                  h.time + m.nth * interval '1 microsecond', h.time + m.nth * interval '1 microsecond'
           from unnest($5::bigint[], $6::bigint[], $7::uuid[], $8::uuid[], $9::text[], $10::text[], $11::bytea[],
                       $12::int[], $13::jsonb[], $14::jsonb[], $15::jsonb[])
                   as m (at, nth, previous, id, role, format, content, tokens, meta, user_meta, open_calls)
           join held h on h.at = m.at
           returning id as "id: MessageId", parent_id as "parent: MessageId", session_task_process_status as status,
                     created_at as "created_at: Timestamp""#,
        &sessions,
        &projects,
        &counts,
        &newest,
        &of,
        &nth,
        &previous as _,
        &ids,
        &roles as _,
        &formats as _,
        &contents as _,
        &tokens,
        &metas as _,
        &user_metas as _,
        &open_calls as _,
        interval(buffer.ttl) as _,
        buffer.turns,
        &turns as _,
    )
    .fetch_all(conn)
    .await?;
    let mut stored: HashMap<_, _> = rows
        .into_iter()
        .map(|row| (row.id.0, Stored { parent: row.parent, status: row.status, created_at: row.created_at }))
        .collect();
    Ok(ids.iter().map(|id| stored.remove(id)).collect())
}

/// As [`insert`], in a transaction of its own, for a message that may be stored already: by a statement that went on after its
/// connection was lost.
pub async fn insert_once(
    conn: &mut PgConnection,
    new: &[NewMessage],
    buffer: Buffer,
) -> sqlx::Result<Vec<Option<Stored>>> {
    match insert(conn, new, buffer).await {
        Err(fault) if is_there(&fault) => {
            let ids: Vec<_> = new.iter().map(|message| message.id).collect();
            get_stored(conn, &ids).await
        }
        done => done,
    }
}

/// Stores one message, of any length, in a transaction; waits for its session. `None` if the project has no such session.
pub async fn insert_one(tx: &mut PgConnection, new: &NewMessage, buffer: Buffer) -> sqlx::Result<Option<Stored>> {
    if !lock_session(tx, new.project, new.session).await? {
        return Ok(None);
    }
    if new.content.len() <= SLICE {
        return Ok(insert(tx, std::slice::from_ref(new), buffer).await?.pop().flatten());
    }
    let without = NewMessage { content: Bytes::new(), ..new.clone() };
    let stored = insert(tx, &[without], buffer).await?.pop().flatten();
    for (n, slice) in (0..).zip(new.content.chunks(SLICE)) {
        sqlx::query!("insert into message_slices (message_id, n, slice) values ($1, $2, $3)", new.id as _, n, slice)
            .execute(&mut *tx)
            .await?;
    }
    sqlx::query!(
        "with slices as (delete from message_slices where message_id = $1 returning n, slice)
         update messages set content = (select string_agg(slice, ''::bytea order by n) from slices) where id = $1",
        new.id as _
    )
    .execute(&mut *tx)
    .await?;
    tx.shrink_buffers();
    Ok(stored)
}

/// As [`insert_one`], in a transaction of its own, for a message that may be stored already; see [`insert_once`].
pub async fn insert_waiting(conn: &mut PgConnection, new: &NewMessage, buffer: Buffer) -> sqlx::Result<Option<Stored>> {
    let mut tx = conn.begin().await?;
    match insert_one(&mut tx, new, buffer).await {
        Err(fault) if is_there(&fault) => {
            tx.rollback().await?;
            Ok(get_stored(conn, &[new.id]).await?.pop().flatten())
        }
        Ok(stored) => tx.commit().await.map(|()| stored),
        // Whatever stands there by now, a part of a long message perhaps, goes with the transaction.
        fault => fault,
    }
}

fn is_there(fault: &sqlx::Error) -> bool {
    matches!(fault, sqlx::Error::Database(fault) if fault.constraint() == Some("messages_pkey"))
}

pub(super) fn shown_calls(calls: &[Call]) -> Option<Value> {
    let call = |call: &Call| serde_json::json!({"id": call.id, "name": call.name});
    (!calls.is_empty()).then(|| calls.iter().map(call).collect())
}

/// What of these messages is stored: after a connection was lost, nobody knows.
pub async fn get_stored(conn: &mut PgConnection, ids: &[MessageId]) -> sqlx::Result<Vec<Option<Stored>>> {
    let rows = sqlx::query!(
        r#"select id as "id: MessageId", parent_id as "parent: MessageId", session_task_process_status as status,
                  created_at as "created_at: Timestamp"
           from messages where id = any($1)"#,
        ids as _
    )
    .fetch_all(conn)
    .await?;
    let find = |id: &MessageId| {
        let row = rows.iter().find(|row| row.id == *id)?;
        Some(Stored { parent: row.parent, status: row.status.clone(), created_at: row.created_at })
    };
    Ok(ids.iter().map(find).collect())
}

/// Locks a session; whether the project has it.
pub async fn lock_session(conn: &mut PgConnection, project: ProjectId, session: SessionId) -> sqlx::Result<bool> {
    let found = sqlx::query_scalar!(
        "select 1 as one from sessions where id = $1 and project_id = $2 for no key update",
        session as _,
        project as _
    );
    Ok(found.fetch_optional(conn).await?.is_some())
}

/// The calls of Gemini functions in a session that wait for their answers, oldest first, with the messages that make them.
/// Wants the session's lock.
pub async fn list_open_calls(conn: &mut PgConnection, session: SessionId) -> sqlx::Result<Vec<(MessageId, Vec<Call>)>> {
    #[derive(Debug, serde::Deserialize)]
    struct Open {
        id: String,
        name: String,
    }
    let rows = sqlx::query!(
        r#"select id as "id: MessageId", open_calls as "open_calls!: Json<Vec<Open>>"
           from messages where session_id = $1 and open_calls is not null order by created_at limit 1000"#,
        session as _
    )
    .fetch_all(conn)
    .await?;
    let calls = |open: Vec<Open>| open.into_iter().map(|call| Call { id: call.id, name: call.name }).collect();
    Ok(rows.into_iter().map(|row| (row.id, calls(row.open_calls.0))).collect())
}

pub async fn set_open_calls(conn: &mut PgConnection, message: MessageId, calls: &[Call]) -> sqlx::Result<()> {
    sqlx::query!("update messages set open_calls = $2 where id = $1", message as _, shown_calls(calls).map(Json) as _)
        .execute(conn)
        .await
        .map(drop)
}

/// The tokens of all messages of a session.
pub async fn sum_tokens(conn: &mut PgConnection, project: ProjectId, session: SessionId) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"select coalesce(sum(m.tokens), 0) as "tokens!"
           from messages m join sessions s on s.id = m.session_id and s.project_id = $1 where m.session_id = $2"#,
        project as _,
        session as _
    )
    .fetch_one(conn)
    .await
}

/// What a client keeps with a message; locks the message.
pub async fn lock_user_meta(
    conn: &mut PgConnection,
    project: ProjectId,
    session: SessionId,
    message: MessageId,
) -> sqlx::Result<Option<Map<String, Value>>> {
    let found = sqlx::query_scalar!(
        r#"select m.user_meta as "meta: Json<Map<String, Value>>"
           from messages m join sessions s on s.id = m.session_id and s.project_id = $1
           where m.session_id = $2 and m.id = $3 for update of m"#,
        project as _,
        session as _,
        message as _
    );
    Ok(found.fetch_optional(conn).await?.map(|meta| meta.0))
}

pub async fn set_user_meta(conn: &mut PgConnection, message: MessageId, meta: &Map<String, Value>) -> sqlx::Result<()> {
    sqlx::query!(
        "update messages set user_meta = $2, updated_at = clock_timestamp() where id = $1",
        message as _,
        Json(meta) as _
    )
    .execute(conn)
    .await
    .map(drop)
}

/// A file that a message has.
pub struct MessageFile<'a> {
    pub s3_key: &'a str,
    pub blob: BlobId,
    pub sha256: &'a str,
    pub mime: &'a str,
    pub filename: &'a str,
}

pub async fn insert_file(
    conn: &mut PgConnection,
    session: SessionId,
    message: MessageId,
    file: &MessageFile<'_>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into message_files (message_id, s3_key, session_id, blob_id, sha256, mime, filename)
         values ($1, $2, $3, $4, $5, $6, $7) on conflict (message_id, s3_key) do nothing",
        message as _,
        file.s3_key,
        session as _,
        file.blob as _,
        file.sha256,
        file.mime,
        file.filename,
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Where a file of a session lies, and how it is shown.
pub struct FoundFile {
    pub object_key: String,
    pub size: i64,
    pub sha256: String,
    pub filename: String,
}

/// A file by its public name, among those of the session's messages.
pub async fn get_file(
    conn: &mut PgConnection,
    project: ProjectId,
    session: SessionId,
    s3_key: &str,
) -> sqlx::Result<Option<FoundFile>> {
    sqlx::query_as!(
        FoundFile,
        "select b.object_key, b.size, b.sha256, f.filename
         from message_files f join blobs b on b.id = f.blob_id and b.project_id = $1
         where f.session_id = $2 and f.s3_key = $3 limit 1",
        project as _,
        session as _,
        s3_key
    )
    .fetch_optional(conn)
    .await
}
