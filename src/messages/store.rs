//! SQL of messages. [`insert`] is the one way a message comes into being; [`super::writer`] calls it for many at once.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value};
use sqlx::types::Json;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::ProcessStatus;
use super::columns::{Columns, Places, storage_formats};
use super::new_message::{InsertedMessage, NewMessage};
use crate::config::Learning;
use crate::conversation::format::FunctionCall;
use crate::db::interval;
use crate::ids::{MessageId, ProjectId, SessionId};
use crate::sessions::lock::LockedSession;
use crate::time::Timestamp;

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

/// Stores messages, in this order within each session, in one statement: locks their sessions, gives each message its parent
/// and a time later than all before it, and leaves a job for each session whose tasks are
/// tracked and that has none.
///
/// The answer has an entry for each message; `None` if the project has no such session or another storage format, or
/// another transaction holds one of them: [`super::save`] stores those.
#[expect(clippy::too_many_lines, reason = "one statement")]
pub async fn insert(
    conn: &mut PgConnection,
    new: &[NewMessage],
    buffer: Buffer,
) -> sqlx::Result<Vec<Option<InsertedMessage>>> {
    let Places { sessions, projects, turns, job_keys, counts, newest, of, nth, previous } = Places::of(new);
    let Columns { ids, roles, formats, contents, encrypted_as, tokens, metas, user_metas, pending_calls } =
        Columns::of(new);
    let (owners, formats_of_projects) = storage_formats(new);
    let rows = sqlx::query!(
        r#"with wanted as materialized (
               select w.project_id from unnest($19::uuid[], $20::boolean[]) as w (project_id, encrypted)
               where encryption_enabled_for_share(w.project_id, false) = w.encrypted
           ),
           held as materialized (
               select w.at, w.new, w.newest, greatest(coalesce(w.turns, $17), 1) as turns, w.job_key, s.id, s.project_id,
                      s.disable_task_tracking, s.last_message_id, s.pending_messages, s.has_observe_job,
                      greatest(clock_timestamp(), s.last_message_at + interval '1 microsecond') as time
               from unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::uuid[], $18::bigint[], $21::bytea[])
                   with ordinality as w (session_id, project_id, new, newest, turns, job_key, at)
               join wanted on wanted.project_id = w.project_id
               join sessions s on s.id = w.session_id and s.project_id = w.project_id
               -- In one order, so that two writers never wait for each other.
               order by s.id for no key update of s skip locked
           ),
           moved as (
               update sessions s
               set last_message_id = h.newest, last_message_at = h.time + (h.new - 1) * interval '1 microsecond',
                   pending_messages = case when h.disable_task_tracking then s.pending_messages else h.pending_messages + h.new end,
                   has_observe_job = h.has_observe_job or not h.disable_task_tracking
               from held h where s.id = h.id
           ),
           queued as (
               insert into jobs (id, project_id, kind, payload, lane, dedupe_key, run_at, encrypted_kek)
               select gen_random_uuid(), h.project_id, o.kind, o.payload, o.lane, o.dedupe_key,
                      case when h.new >= h.turns then now() else now() + $16::interval end, h.job_key
               from held h, observe_job(h.id) o where not h.disable_task_tracking and not h.has_observe_job
               on conflict (kind, dedupe_key) where state = 'ready' do nothing
           ),
           -- Enough has gathered: the job that waits need not wait longer. One that was not given the project's key is given it.
           -- Each is looked up by its session; as a join, all that wait might be gone through.
           waiting as materialized (
               select h.job_key, h.is_enough,
                      (select j.id from jobs j, observe_job(h.id) o
                       where j.kind = o.kind and j.dedupe_key = o.dedupe_key and j.state = 'ready') as job
               from (select *, pending_messages < turns and pending_messages + new >= turns as is_enough from held) h
               where not h.disable_task_tracking and h.has_observe_job and (h.is_enough or h.job_key is not null)
           ),
           hurried as (
               update jobs j
               set run_at = case when w.is_enough and j.attempt = 0 or j.wait_reason = 'key' then least(j.run_at, now())
                                 else j.run_at end,
                   wait_reason = nullif(j.wait_reason, case when w.job_key is not null then 'key' end),
                   encrypted_kek = coalesce(j.encrypted_kek, w.job_key), updated_at = now()
               from waiting w
               where j.id = w.job and j.state = 'ready'
                 and (w.is_enough and j.attempt = 0 and j.run_at > now()
                      or w.job_key is not null and j.encrypted_kek is null)
           )
           insert into messages (id, session_id, parent_id, role, format, content, encrypted_as, tokens, meta, user_meta,
                                 pending_calls, session_task_process_status, created_at, updated_at)
           select m.id, h.id, coalesce(m.previous, h.last_message_id), m.role, m.format, m.content, m.encrypted_as, m.tokens, m.meta,
                  m.user_meta, m.pending_calls, case when h.disable_task_tracking then 'disable_tracking' else 'pending' end,
                  h.time + m.nth * interval '1 microsecond', h.time + m.nth * interval '1 microsecond'
           from unnest($5::bigint[], $6::bigint[], $7::uuid[], $8::uuid[], $9::text[], $10::text[], $11::bytea[],
                       $12::int[], $13::jsonb[], $14::jsonb[], $15::jsonb[], $22::uuid[])
                   as m (at, nth, previous, id, role, format, content, tokens, meta, user_meta, pending_calls, encrypted_as)
           join held h on h.at = m.at
           returning id as "id: MessageId", parent_id as "parent: MessageId", session_task_process_status as "status: ProcessStatus",
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
        &pending_calls as _,
        interval(buffer.ttl) as _,
        buffer.turns,
        &turns as _,
        &owners,
        &formats_of_projects as _,
        &job_keys as _,
        &encrypted_as as _,
    )
    .fetch_all(conn)
    .await?;
    let mut stored: HashMap<_, _> = rows
        .into_iter()
        .map(|row| (row.id.0, InsertedMessage { parent: row.parent, status: row.status, created_at: row.created_at }))
        .collect();
    Ok(ids.iter().map(|id| stored.remove(id)).collect())
}

/// As [`insert`], in a transaction of its own, for a message that may be stored already: by a statement that went on after its
/// connection was lost.
pub async fn insert_or_find(
    conn: &mut PgConnection,
    new: &[NewMessage],
    buffer: Buffer,
) -> sqlx::Result<Vec<Option<InsertedMessage>>> {
    match insert(conn, new, buffer).await {
        Err(err) if is_duplicate_id(&err) => {
            let ids: Vec<_> = new.iter().map(|message| message.id).collect();
            find_inserted(conn, &ids).await
        }
        done => done,
    }
}

/// Stores one message, of any length, in the storage format that is locked.
pub async fn insert_one(
    session: &mut LockedSession<'_>,
    new: &NewMessage,
    buffer: Buffer,
) -> sqlx::Result<InsertedMessage> {
    let is_long = new.content.len() > SLICE;
    let without_content = is_long.then(|| NewMessage { content: Bytes::new(), ..new.clone() });
    let row = without_content.as_ref().unwrap_or(new);
    let inserted = insert(session, std::slice::from_ref(row), buffer).await?.pop().flatten();
    // Nothing can have changed while the session is locked.
    let inserted = inserted.ok_or(sqlx::Error::RowNotFound)?;
    if is_long {
        set_long_content(session, new.id, &new.content).await?;
    }
    Ok(inserted)
}

/// Writes a long content in slices, in a transaction.
pub async fn set_long_content(tx: &mut PgConnection, message: MessageId, content: &[u8]) -> sqlx::Result<()> {
    for (n, slice) in (0..).zip(content.chunks(SLICE)) {
        sqlx::query!("insert into message_slices (message_id, seq, bytes) values ($1, $2, $3)", message as _, n, slice)
            .execute(&mut *tx)
            .await?;
    }
    sqlx::query!(
        "with slices as (delete from message_slices where message_id = $1 returning seq, bytes)
         update messages set content = (select string_agg(bytes, ''::bytea order by seq) from slices) where id = $1",
        message as _
    )
    .execute(&mut *tx)
    .await?;
    tx.shrink_buffers();
    Ok(())
}

/// Whether the message is there already: stored by a statement that went on after its connection was lost.
pub fn is_duplicate_id(err: &sqlx::Error) -> bool {
    matches!(err, sqlx::Error::Database(err) if err.constraint() == Some("messages_pkey"))
}

/// Calls that wait for their answers, as the column has them if they are not sealed.
pub fn shown_calls(calls: &[FunctionCall]) -> Option<Value> {
    let call = |call: &FunctionCall| serde_json::json!({"id": call.id, "name": call.name});
    (!calls.is_empty()).then(|| calls.iter().map(call).collect())
}

/// What of these messages is stored: after a connection was lost, nobody knows.
pub async fn find_inserted(conn: &mut PgConnection, ids: &[MessageId]) -> sqlx::Result<Vec<Option<InsertedMessage>>> {
    let rows = sqlx::query!(
        r#"select id as "id: MessageId", parent_id as "parent: MessageId", session_task_process_status as "status: ProcessStatus",
                  created_at as "created_at: Timestamp"
           from messages where id = any($1)"#,
        ids as _
    )
    .fetch_all(conn)
    .await?;
    let find = |id: &MessageId| {
        let row = rows.iter().find(|row| row.id == *id)?;
        Some(InsertedMessage { parent: row.parent, status: row.status, created_at: row.created_at })
    };
    Ok(ids.iter().map(find).collect())
}

/// A message with calls of Gemini functions that wait for their answers.
pub struct Calling {
    pub id: MessageId,
    pub encrypted_as: Option<Uuid>,
    pub pending_calls: Value,
}

/// The messages of a session with calls that wait for their answers, oldest first.
pub async fn list_calling(session: &mut LockedSession<'_>) -> sqlx::Result<Vec<Calling>> {
    sqlx::query_as!(
        Calling,
        r#"select id as "id: MessageId", encrypted_as, pending_calls as "pending_calls!"
           from messages where session_id = $1 and pending_calls is not null order by created_at limit 1000"#,
        session.id as _
    )
    .fetch_all(&mut ***session)
    .await
}

pub async fn set_pending_calls(
    session: &mut LockedSession<'_>,
    message: MessageId,
    calls: Option<Value>,
) -> sqlx::Result<()> {
    sqlx::query!("update messages set pending_calls = $2 where id = $1", message as _, calls)
        .execute(&mut ***session)
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
