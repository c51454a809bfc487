//! SQL of messages. New messages are inserted by [`insert`], which [`super::writer`] calls for batches. Only `sessions::copy`
//! inserts messages with a statement of its own.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value};
use sqlx::types::Json;
use sqlx::{Connection, PgConnection};

use super::ProcessStatus;
use super::batch_columns::{MessageColumns, SessionColumns, project_formats};
use super::new_message::{InsertedMessage, NewMessage};
use crate::config::Learning;
use crate::db::interval;
use crate::ids::{MessageId, ProjectId, SessionId};
use crate::sessions::lock::LockedSession;
use crate::time::Timestamp;

/// Size in bytes of the slices in which larger contents are read and written. To transfer a value, the driver needs 3.5 times its
/// length in memory.
pub const SLICE_BYTES: usize = 1024 * 1024;

/// The settings that delay the observation of stored messages.
#[derive(Clone, Copy, Debug)]
pub struct ObservationBuffer {
    /// Time after which the oldest pending message is observed.
    pub ttl: Duration,
    /// Number of pending messages at which all of them are observed without further delay.
    pub max_turns: i64,
}

impl From<&Learning> for ObservationBuffer {
    fn from(settings: &Learning) -> Self {
        Self { ttl: settings.buffer_ttl, max_turns: i64::try_from(settings.buffer_turns).unwrap_or(i64::MAX) }
    }
}

/// Inserts messages in one statement, which locks their sessions. Messages of a session are stored in the order of `new`: each
/// gets the message before it as its parent, and a later time than that message. Also enqueues an observe job for each session
/// that tracks tasks and has no such job yet, and makes the job due if enough messages are pending. The caller must wake the job
/// runners after the commit if [`InsertedMessage::is_job_due`] is set.
///
/// Returns an entry for each message. The entry is `None`, and the message is not inserted, if the project has no such session,
/// if the project's storage format is not that of the message, or if another transaction has locked the session or the format.
/// [`super::save`] then stores the message in a separate transaction.
#[expect(clippy::too_many_lines, reason = "one statement")]
pub async fn insert(
    conn: &mut PgConnection,
    new: &[NewMessage],
    buffer: ObservationBuffer,
) -> sqlx::Result<Vec<Option<InsertedMessage>>> {
    let SessionColumns {
        sessions,
        projects,
        max_turns,
        encrypted_keks,
        counts,
        last_ids,
        session_indexes,
        offsets,
        previous_ids,
    } = SessionColumns::from_messages(new);
    let MessageColumns { ids, roles, formats, contents, encrypted_as, tokens, metas, user_metas, call_references } =
        MessageColumns::from_messages(new);
    let (format_projects, storage_formats) = project_formats(new);
    let rows = sqlx::query!(
        r#"with locked_projects as materialized (
               select p.project_id from unnest($19::uuid[], $20::boolean[]) as p (project_id, encrypted)
               where encryption_enabled_for_share(p.project_id, false) = p.encrypted
           ),
           locked as materialized (
               select n.session_index, n.count, n.last_id, greatest(coalesce(n.max_turns, $17), 1) as max_turns, n.job_key, s.id,
                      s.project_id, s.disable_task_tracking, s.last_message_id, s.pending_messages, s.has_observe_job,
                      greatest(clock_timestamp(), s.last_message_at + interval '1 microsecond') as time
               from unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::uuid[], $18::bigint[], $21::bytea[])
                   with ordinality as n (session_id, project_id, count, last_id, max_turns, job_key, session_index)
               join locked_projects p on p.project_id = n.project_id
               join sessions s on s.id = n.session_id and s.project_id = n.project_id
               -- All writers lock sessions in this order, so they cannot deadlock.
               order by s.id for no key update of s skip locked
           ),
           updated as (
               update sessions s
               set last_message_id = l.last_id, last_message_at = l.time + (l.count - 1) * interval '1 microsecond',
                   pending_messages = case when l.disable_task_tracking then s.pending_messages
                                           else l.pending_messages + l.count end,
                   has_observe_job = l.has_observe_job or not l.disable_task_tracking
               from locked l where s.id = l.id
           ),
           enqueued as (
               insert into jobs (id, project_id, kind, payload, lane, dedupe_key, run_at, encrypted_kek)
               select gen_random_uuid(), l.project_id, o.kind, o.payload, o.lane, o.dedupe_key,
                      case when l.count >= l.max_turns then now() else now() + $16::interval end, l.job_key
               from locked l, observe_job(l.id) o where not l.disable_task_tracking and not l.has_observe_job
               on conflict (kind, dedupe_key) where state = 'ready' do nothing
           ),
           -- The ready jobs that become due because enough messages are pending, or that may need the project's master key. A
           -- subquery finds the job of each session, because a join might scan all ready jobs.
           ready_jobs as materialized (
               select l.job_key, l.is_enough,
                      (select j.id from jobs j, observe_job(l.id) o
                       where j.kind = o.kind and j.dedupe_key = o.dedupe_key and j.state = 'ready') as job
               from (select *, pending_messages < max_turns and pending_messages + count >= max_turns as is_enough from locked) l
               where not l.disable_task_tracking and l.has_observe_job and (l.is_enough or l.job_key is not null)
           ),
           updated_jobs as (
               update jobs j
               set run_at = case when r.is_enough and j.attempt = 0 or j.wait_reason = 'key' then least(j.run_at, now())
                                 else j.run_at end,
                   wait_reason = nullif(j.wait_reason, case when r.job_key is not null then 'key' end),
                   encrypted_kek = coalesce(j.encrypted_kek, r.job_key), updated_at = now()
               from ready_jobs r
               where j.id = r.job and j.state = 'ready'
                 and (r.is_enough and j.attempt = 0 and j.run_at > now()
                      or r.job_key is not null and j.encrypted_kek is null)
           )
           insert into messages (id, session_id, parent_id, role, format, content, encrypted_as, tokens, meta, user_meta,
                                 call_references, session_task_process_status, created_at, updated_at)
           select m.id, l.id, coalesce(m.previous_id, l.last_message_id), m.role, m.format, m.content, m.encrypted_as, m.tokens,
                  m.meta, m.user_meta, m.call_references,
                  case when l.disable_task_tracking then 'disable_tracking' else 'pending' end,
                  l.time + m.index * interval '1 microsecond', l.time + m.index * interval '1 microsecond'
           from unnest($5::bigint[], $6::bigint[], $7::uuid[], $8::uuid[], $9::text[], $10::text[], $11::bytea[],
                       $12::int[], $13::jsonb[], $14::jsonb[], $15::jsonb[], $22::uuid[])
                   as m (session_index, index, previous_id, id, role, format, content, tokens, meta, user_meta, call_references,
                         encrypted_as)
           join locked l on l.session_index = m.session_index
           returning id as "id: MessageId", parent_id as "parent: MessageId", session_task_process_status as "status: ProcessStatus",
                     created_at as "created_at: Timestamp",
                     exists (select 1 from locked l
                             where not l.disable_task_tracking and l.pending_messages + l.count >= l.max_turns
                               and (l.pending_messages < l.max_turns or not l.has_observe_job)) as "is_job_due!""#,
        &sessions,
        &projects,
        &counts,
        &last_ids,
        &session_indexes,
        &offsets,
        &previous_ids as _,
        &ids,
        &roles as _,
        &formats as _,
        &contents as _,
        &tokens,
        &metas as _,
        &user_metas as _,
        &call_references as _,
        interval(buffer.ttl) as _,
        buffer.max_turns,
        &max_turns as _,
        &format_projects,
        &storage_formats as _,
        &encrypted_keks as _,
        &encrypted_as as _,
    )
    .fetch_all(conn)
    .await?;
    let mut inserted: HashMap<_, _> = rows
        .into_iter()
        .map(|row| {
            let (parent, status, created_at, is_job_due) = (row.parent, row.status, row.created_at, row.is_job_due);
            (row.id.0, InsertedMessage { parent, status, created_at, is_job_due })
        })
        .collect();
    Ok(ids.iter().map(|id| inserted.remove(id)).collect())
}

/// Inserts messages like [`insert`]. If an earlier attempt has stored them although it lost its connection, finds the stored
/// messages instead. Must not be called in a transaction.
pub async fn insert_or_find(
    conn: &mut PgConnection,
    new: &[NewMessage],
    buffer: ObservationBuffer,
) -> sqlx::Result<Vec<Option<InsertedMessage>>> {
    match insert(conn, new, buffer).await {
        Err(err) if is_duplicate_id(&err) => {
            let ids: Vec<_> = new.iter().map(|message| message.id).collect();
            find_inserted(conn, &ids).await
        }
        result => result,
    }
}

/// Inserts one message of any length. Its storage format must be the one that the transaction has locked.
pub async fn insert_one(
    session: &mut LockedSession<'_>,
    new: &NewMessage,
    buffer: ObservationBuffer,
) -> sqlx::Result<InsertedMessage> {
    let is_large = new.content.len() > SLICE_BYTES;
    let without_content = is_large.then(|| NewMessage { content: Bytes::new(), ..new.clone() });
    let row = without_content.as_ref().unwrap_or(new);
    let inserted = insert(session, std::slice::from_ref(row), buffer).await?.pop().flatten();
    // This cannot be `None`, because the session and the storage format are locked.
    let inserted = inserted.ok_or(sqlx::Error::RowNotFound)?;
    if inserted.is_job_due {
        session.wake_on_commit();
    }
    if is_large {
        write_large_content(session, new.id, &new.content).await?;
    }
    Ok(inserted)
}

/// Writes the content of a large message in slices. Must be called in a transaction.
pub async fn write_large_content(tx: &mut PgConnection, message: MessageId, content: &[u8]) -> sqlx::Result<()> {
    for (n, slice) in (0..).zip(content.chunks(SLICE_BYTES)) {
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

/// Returns `true` if the error means that a message with this id exists: an earlier attempt has stored it although it lost its
/// connection.
pub fn is_duplicate_id(err: &sqlx::Error) -> bool {
    matches!(err, sqlx::Error::Database(err) if err.constraint() == Some("messages_pkey"))
}

/// Finds the messages with these ids. Shows whether a commit was successful although its connection was lost. Returns an entry
/// for each id; `None` if the message is not stored.
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
        let (parent, status, created_at) = (row.parent, row.status, row.created_at);
        Some(InsertedMessage { parent, status, created_at, is_job_due: false })
    };
    Ok(ids.iter().map(find).collect())
}

/// Returns the number of tokens in all messages of a session.
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

/// Locks a message and returns its user metadata.
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
