//! SQL of observation: which messages were observed. Each statement that changes messages needs the session's lock, which storing
//! messages acquires too.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::ProcessStatus;
use crate::conversation::format::Format;
use crate::conversation::parts::Role;
use crate::ids::{MessageId, ProjectId, SessionId};

/// How many messages of a session are in which state.
pub struct Counts {
    pub observed: i64,
    pub in_process: i64,
    pub pending: i64,
}

pub async fn count(conn: &mut PgConnection, project: ProjectId, session: SessionId) -> sqlx::Result<Counts> {
    sqlx::query_as!(
        Counts,
        r#"select count(*) filter (where m.session_task_process_status = 'success') as "observed!",
                  count(*) filter (where m.session_task_process_status = 'running') as "in_process!",
                  count(*) filter (where m.session_task_process_status = 'pending') as "pending!"
           from messages m join sessions s on s.id = m.session_id and s.project_id = $1 where m.session_id = $2"#,
        project as _,
        session as _
    )
    .fetch_one(conn)
    .await
}

/// Whether a message up to a moment could not be looked at.
pub async fn has_failed(
    conn: &mut PgConnection,
    session: SessionId,
    until: Option<DateTime<Utc>>,
) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"select exists (select 1 from messages where session_id = $1 and session_task_process_status = 'failed'
                          and ($2::timestamptz is null or created_at <= $2)) as "failed!""#,
        session as _,
        until
    )
    .fetch_one(conn)
    .await
}

/// How many messages up to a moment are not looked at yet. The moment is the time of a message, or nothing for all.
pub async fn count_pending_messages(
    conn: &mut PgConnection,
    session: SessionId,
    until: Option<DateTime<Utc>>,
) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"select count(*) as "count!" from messages
           where session_id = $1 and session_task_process_status in ('pending', 'running')
             and ($2::timestamptz is null or created_at <= $2)"#,
        session as _,
        until
    )
    .fetch_one(conn)
    .await
}

/// Claims the oldest pending messages. Then [`crate::sessions::store::recount_pending_messages`] is due.
pub async fn take(conn: &mut PgConnection, session: SessionId, limit: i64) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        "update messages set session_task_process_status = 'running', updated_at = now()
         where id in (select id from messages where session_id = $1 and session_task_process_status = 'pending'
                      order by created_at limit $2)
         returning id",
        session as _,
        limit
    )
    .fetch_all(conn)
    .await
}

/// Moves messages of a session from one state to another; all that are in it, or these. Answers with how many.
pub async fn set_status(
    conn: &mut PgConnection,
    session: SessionId,
    only: Option<&[Uuid]>,
    from: ProcessStatus,
    to: ProcessStatus,
) -> sqlx::Result<u64> {
    sqlx::query!(
        "update messages set session_task_process_status = $4, updated_at = now()
         where session_id = $1 and session_task_process_status = $3 and ($2::uuid[] is null or id = any($2))",
        session as _,
        only as _,
        from as _,
        to as _
    )
    .execute(conn)
    .await
    .map(|done| done.rows_affected())
}

/// Sessions with messages that wait although no job is there for them.
pub async fn list_missed(conn: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<SessionId>> {
    sqlx::query_scalar!(
        r#"select distinct m.session_id as "id: SessionId" from messages m
           where m.session_task_process_status in ('pending', 'running')
             and m.updated_at < now() - interval '1 minute'
             and not exists (select 1 from jobs j where j.kind = 'observe' and j.dedupe_key = m.session_id::text
                             and j.state in ('ready', 'running'))
           limit $1"#,
        limit
    )
    .fetch_all(conn)
    .await
}

/// The content of a message, for observation.
pub struct MessageContent {
    pub id: MessageId,
    pub role: Role,
    pub format: Format,
    pub content: Vec<u8>,
    /// As which message it is sealed, if it is.
    pub encrypted_as: Option<Uuid>,
}

/// Whether one of these messages is sealed.
pub async fn has_encrypted(conn: &mut PgConnection, ids: &[Uuid]) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"select exists (select 1 from messages where id = any($1) and encrypted_as is not null) as "sealed!""#,
        ids
    )
    .fetch_one(conn)
    .await
}

pub async fn load_messages(conn: &mut PgConnection, ids: &[Uuid]) -> sqlx::Result<Vec<MessageContent>> {
    sqlx::query_as!(
        MessageContent,
        r#"select id as "id: MessageId", role as "role: Role", format as "format: Format", content, encrypted_as
           from messages where id = any($1) order by created_at"#,
        ids
    )
    .fetch_all(conn)
    .await
}
