//! SQL of observation: which messages were observed, and the job that observes them.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::ProcessStatus;
use crate::conversation::format::Format;
use crate::conversation::parts::Role;
use crate::encryption::ProjectEncryption;
use crate::error::Result;
use crate::ids::{MessageId, ProjectId, SessionId};
use crate::jobs::{Delay, JobQueue};
use crate::learn::queue::Observe;
use crate::sessions;
use crate::sessions::lock::LockedSession;

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

/// Claims the oldest pending messages of a session for an observation.
pub async fn claim_batch(session: &mut LockedSession<'_>, limit: i64) -> sqlx::Result<Vec<Uuid>> {
    let claimed = sqlx::query_scalar!(
        "update messages set session_task_process_status = 'running', updated_at = now()
         where id in (select id from messages where session_id = $1 and session_task_process_status = 'pending'
                      order by created_at limit $2)
         returning id",
        session.id as _,
        limit
    )
    .fetch_all(&mut ***session)
    .await?;
    sessions::store::recount_pending_messages(session).await?;
    Ok(claimed)
}

/// Enqueues the job that observes a session, or makes the one that is ready due earlier.
///
/// # Errors
/// The database fails.
pub async fn enqueue_job(
    session: &mut LockedSession<'_>,
    queue: &JobQueue,
    encryption: &ProjectEncryption,
    delay: Delay,
) -> Result<()> {
    sessions::store::set_has_observe_job(session, true).await?;
    let job = Observe { session: session.id };
    queue.enqueue(session, encryption, &job, delay).await
}

/// Changes the status of all messages of a session that have the status `from`, or of these. Returns their number.
pub async fn set_status(
    session: &mut LockedSession<'_>,
    only: Option<&[Uuid]>,
    from: ProcessStatus,
    to: ProcessStatus,
) -> sqlx::Result<u64> {
    sqlx::query!(
        "update messages set session_task_process_status = $4, updated_at = now()
         where session_id = $1 and session_task_process_status = $3 and ($2::uuid[] is null or id = any($2))",
        session.id as _,
        only as _,
        from as _,
        to as _
    )
    .execute(&mut ***session)
    .await
    .map(|done| done.rows_affected())
}

/// Lists sessions with pending messages and without a job that will observe them.
pub async fn list_missed(conn: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<(ProjectId, SessionId)>> {
    let rows = sqlx::query!(
        r#"select distinct s.project_id as "project: ProjectId", s.id as "session: SessionId"
           from messages m join sessions s on s.id = m.session_id
           where m.session_task_process_status in ('pending', 'running')
             and m.updated_at < now() - interval '1 minute'
             and not exists (select 1 from jobs j, observe_job(m.session_id) o
                             where j.kind = o.kind and j.dedupe_key = o.dedupe_key and j.state in ('ready', 'running'))
           limit $1"#,
        limit
    );
    Ok(rows.fetch_all(conn).await?.into_iter().map(|row| (row.project, row.session)).collect())
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
