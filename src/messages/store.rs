//! SQL of messages. [`insert`] is the one way a message comes into being; [`super::writer`] calls it for many at once.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value};
use sqlx::PgConnection;
use sqlx::types::Json;
use uuid::Uuid;

use super::format::{Call, Format};
use super::parts::Role;
use crate::config::Learning;
use crate::db::interval;
use crate::http::time::Timestamp;
use crate::ids::{BlobId, MessageId, ProjectId, SessionId};

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
}

/// What the database adds to a message.
#[derive(Clone, Debug)]
pub struct Stored {
    pub parent: Option<MessageId>,
    pub status: String,
    pub created_at: Timestamp,
}

/// What to do about a session that another transaction holds.
#[derive(Clone, Copy, Debug)]
pub enum Lock {
    Wait,
    /// Leave its messages out.
    Skip,
}

/// Stores messages, in this order within each session, in one statement: locks their sessions, gives each message its parent
/// and a time later than all before it, and leaves a job for each session whose tasks are
/// tracked and that has none.
///
/// The answer has an entry for each message; `None` if the project has no such session, or it was left out.
#[expect(clippy::too_many_lines, reason = "one statement")]
pub async fn insert(
    conn: &mut PgConnection,
    new: &[NewMessage],
    buffer: Buffer,
    lock: Lock,
) -> sqlx::Result<Vec<Option<Stored>>> {
    let Columns { ids, sessions, projects, roles, formats, contents, tokens, metas, user_metas, open_calls } =
        Columns::of(new);
    let rows = sqlx::query!(
        r#"with input as (
               select * from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::bytea[], $7::int[],
                                    $8::jsonb[], $9::jsonb[], $10::jsonb[])
                   with ordinality as i (id, session_id, project_id, role, format, content, tokens,
                                         meta, user_meta, open_calls, n)
           ),
           -- In order of id, so that two writers never wait for each other. One of the two is empty.
           waited as (
               select s.id, s.project_id, s.disable_task_tracking, s.last_message_id, s.unobserved, s.observing,
                      greatest(clock_timestamp(), s.last_message_at + interval '1 microsecond') as time
               from sessions s where $12 and s.id = any($2) order by s.id for no key update
           ),
           skipped as (
               select s.id, s.project_id, s.disable_task_tracking, s.last_message_id, s.unobserved, s.observing,
                      greatest(clock_timestamp(), s.last_message_at + interval '1 microsecond') as time
               from sessions s where not $12 and s.id = any($2) order by s.id for no key update skip locked
           ),
           placed as (
               select i.*, t.disable_task_tracking, t.unobserved, t.observing,
                      coalesce(lag(i.id) over in_session, t.last_message_id) as parent_id,
                      t.time + (row_number() over in_session - 1) * interval '1 microsecond' as time
               from input i
               join (select * from waited union all select * from skipped) t
                 on t.id = i.session_id and t.project_id = i.project_id
               window in_session as (partition by i.session_id order by i.n)
           ),
           grown as (
               select distinct on (session_id) session_id, project_id, id, time, disable_task_tracking, observing, unobserved,
                      count(*) over (partition by session_id) as new
               from placed order by session_id, n desc
           ),
           moved as (
               update sessions s
               set last_message_id = g.id, last_message_at = g.time,
                   unobserved = case when g.disable_task_tracking then s.unobserved else g.unobserved + g.new end,
                   observing = g.observing or not g.disable_task_tracking
               from grown g where s.id = g.session_id
           ),
           queued as (
               insert into jobs (id, project_id, kind, payload, lane, dedupe, run_at)
               select gen_random_uuid(), g.project_id, 'observe', jsonb_build_object('session', g.session_id),
                      'session:' || g.session_id, g.session_id::text,
                      case when g.new >= $13 then now() else now() + $11::interval end
               from grown g where not g.disable_task_tracking and not g.observing
               on conflict (kind, dedupe) where state = 'ready' do nothing
           ),
           -- Enough has gathered: the job that waits need not wait longer.
           hurried as (
               update jobs j set run_at = now(), updated_at = now()
               from grown g
               where not g.disable_task_tracking and g.observing and g.unobserved < $13 and g.unobserved + g.new >= $13
                 and j.kind = 'observe' and j.dedupe = g.session_id::text and j.state = 'ready' and j.attempt = 0
                 and j.run_at > now()
           )
           insert into messages (id, session_id, parent_id, role, format, content, tokens, meta, user_meta, open_calls,
                                 session_task_process_status, created_at, updated_at)
           select id, session_id, parent_id, role, format, content, tokens, meta, user_meta, open_calls,
                  case when disable_task_tracking then 'disable_tracking' else 'pending' end, time, time
           from placed
           returning id as "id: MessageId", parent_id as "parent: MessageId", session_task_process_status as status,
                     created_at as "created_at: Timestamp""#,
        &ids,
        &sessions,
        &projects,
        &roles as _,
        &formats as _,
        &contents as _,
        &tokens,
        &metas as _,
        &user_metas as _,
        &open_calls as _,
        interval(buffer.ttl) as _,
        matches!(lock, Lock::Wait),
        buffer.turns,
    )
    .fetch_all(conn)
    .await?;
    let mut stored: HashMap<_, _> = rows
        .into_iter()
        .map(|row| (row.id, Stored { parent: row.parent, status: row.status, created_at: row.created_at }))
        .collect();
    Ok(new.iter().map(|message| stored.remove(&message.id)).collect())
}

/// As [`insert`], in a transaction of its own, for a message that may be stored already: by a statement that went on after its
/// connection was lost.
pub async fn insert_once(
    conn: &mut PgConnection,
    new: &[NewMessage],
    buffer: Buffer,
    lock: Lock,
) -> sqlx::Result<Vec<Option<Stored>>> {
    match insert(conn, new, buffer, lock).await {
        Err(sqlx::Error::Database(fault)) if fault.constraint() == Some("messages_pkey") => get_stored(conn, new).await,
        done => done,
    }
}

/// New messages as arrays, one for each column.
struct Columns<'a> {
    ids: Vec<Uuid>,
    sessions: Vec<Uuid>,
    projects: Vec<Uuid>,
    roles: Vec<&'static str>,
    formats: Vec<&'static str>,
    contents: Vec<&'a [u8]>,
    tokens: Vec<i32>,
    metas: Vec<Json<&'a Map<String, Value>>>,
    user_metas: Vec<Json<&'a Map<String, Value>>>,
    open_calls: Vec<Option<Json<Value>>>,
}

impl<'a> Columns<'a> {
    fn of(new: &'a [NewMessage]) -> Self {
        Self {
            ids: new.iter().map(|message| message.id.0).collect(),
            sessions: new.iter().map(|message| message.session.0).collect(),
            projects: new.iter().map(|message| message.project.0).collect(),
            roles: new.iter().map(|message| message.role.as_str()).collect(),
            formats: new.iter().map(|message| message.format.as_str()).collect(),
            contents: new.iter().map(|message| message.content.as_ref()).collect(),
            tokens: new.iter().map(|message| message.tokens).collect(),
            metas: new.iter().map(|message| Json(&message.meta)).collect(),
            user_metas: new.iter().map(|message| Json(&message.user_meta)).collect(),
            open_calls: new.iter().map(|message| shown_calls(&message.open_calls).map(Json)).collect(),
        }
    }
}

fn shown_calls(calls: &[Call]) -> Option<Value> {
    let call = |call: &Call| serde_json::json!({"id": call.id, "name": call.name});
    (!calls.is_empty()).then(|| calls.iter().map(call).collect())
}

/// What of these messages is stored: after a connection was lost, nobody knows.
pub async fn get_stored(conn: &mut PgConnection, new: &[NewMessage]) -> sqlx::Result<Vec<Option<Stored>>> {
    let ids: Vec<_> = new.iter().map(|message| message.id.0).collect();
    let rows = sqlx::query!(
        r#"select id as "id: MessageId", parent_id as "parent: MessageId", session_task_process_status as status,
                  created_at as "created_at: Timestamp"
           from messages where id = any($1)"#,
        &ids
    )
    .fetch_all(conn)
    .await?;
    let find = |message: &NewMessage| {
        let row = rows.iter().find(|row| row.id == message.id)?;
        Some(Stored { parent: row.parent, status: row.status.clone(), created_at: row.created_at })
    };
    Ok(new.iter().map(find).collect())
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
