//! SQL of observation: the processing status of messages, and the job that observes them.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::ProcessStatus;
use crate::conversation::format::Format;
use crate::conversation::parts::Role;
use crate::encryption::ProjectEncryption;
use crate::error::Result;
use crate::ids::{MessageId, ProjectId, SessionId, TaskId};
use crate::jobs::{Delay, JobQueue};
use crate::learn::jobs::Observe;
use crate::sessions;
use crate::sessions::lock::LockedSession;
use crate::time::Timestamp;

/// The number of messages of a session by processing status.
pub struct ObservationCounts {
    pub observed: i64,
    pub in_process: i64,
    pub pending: i64,
}

/// Counts the messages of a session by processing status. All are 0 if the project has no such session.
pub async fn count_by_status(
    conn: &mut PgConnection,
    project: ProjectId,
    session: SessionId,
) -> sqlx::Result<ObservationCounts> {
    sqlx::query_as!(
        ObservationCounts,
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

/// Counts the messages of a session with this status. With `until`, counts only messages up to this time.
pub async fn count_messages(
    conn: &mut PgConnection,
    session: SessionId,
    status: ProcessStatus,
    until: Option<DateTime<Utc>>,
) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"select count(*) as "count!" from messages
           where session_id = $1 and session_task_process_status = $2 and ($3::timestamptz is null or created_at <= $3)"#,
        session as _,
        status as _,
        until
    )
    .fetch_one(conn)
    .await
}

/// Counts the messages of a session that are not observed yet. With `until`, counts only messages up to this time.
pub async fn count_unobserved_messages(
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

/// Claims the oldest pending messages of a session for an observation: sets their status to `running`, and returns their ids.
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

/// Enqueues the job that observes a session. If this job is ready already, [`JobQueue::enqueue`] makes it due earlier instead,
/// unless it is in backoff.
///
/// # Errors
/// Returns an error if the database fails.
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

/// Sets the status of a session's messages that have the status `from` to `to`. With `only`, changes only messages with these
/// ids. Returns the number of changed messages.
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
    .map(|result| result.rows_affected())
}

/// Lists sessions with messages that have been pending or running for over a minute, and without a job that will observe them.
pub async fn list_unobserved_sessions(
    conn: &mut PgConnection,
    limit: i64,
) -> sqlx::Result<Vec<(ProjectId, SessionId)>> {
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

/// Links messages of a session to its tasks. A message that was linked to another task is linked to the new one only.
pub async fn link_to_tasks(session: &mut LockedSession<'_>, links: &[(MessageId, TaskId)]) -> sqlx::Result<()> {
    let (messages, tasks): (Vec<_>, Vec<_>) = links.iter().map(|(message, task)| (message.0, task.0)).unzip();
    sqlx::query!(
        "update messages m set task_id = l.task, updated_at = now()
         from unnest($2::uuid[], $3::uuid[]) as l(message, task) where m.session_id = $1 and m.id = l.message",
        session.id as _,
        &messages,
        &tasks,
    )
    .execute(&mut ***session)
    .await
    .map(drop)
}

/// The content of a message, for observation.
pub struct MessageContent {
    pub id: MessageId,
    /// The task to which the message is linked.
    pub task: Option<TaskId>,
    pub role: Role,
    pub format: Format,
    pub content: Vec<u8>,
    /// Id of the message for which the content was encrypted; `None` if it is plaintext.
    pub encrypted_as: Option<Uuid>,
}

/// Returns `true` if one of these messages is encrypted.
pub async fn has_encrypted(conn: &mut PgConnection, ids: &[Uuid]) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"select exists (select 1 from messages where id = any($1) and encrypted_as is not null) as "encrypted!""#,
        ids
    )
    .fetch_one(conn)
    .await
}

pub async fn load_messages(conn: &mut PgConnection, ids: &[Uuid]) -> sqlx::Result<Vec<MessageContent>> {
    sqlx::query_as!(
        MessageContent,
        r#"select id as "id: MessageId", task_id as "task: TaskId", role as "role: Role", format as "format: Format",
                  content, encrypted_as
           from messages where id = any($1) order by created_at"#,
        ids
    )
    .fetch_all(conn)
    .await
}

/// Loads the last `limit` messages that are linked to a task, oldest first. With `until`, loads only messages up to this time.
pub async fn load_task_messages(
    conn: &mut PgConnection,
    task: TaskId,
    until: Option<Timestamp>,
    limit: i64,
) -> sqlx::Result<Vec<MessageContent>> {
    let messages = sqlx::query_as!(
        MessageContent,
        r#"select id as "id: MessageId", task_id as "task: TaskId", role as "role: Role", format as "format: Format",
                  content, encrypted_as
           from messages where task_id = $1 and ($2::timestamptz is null or created_at <= $2)
           order by created_at desc limit $3"#,
        task as _,
        until as _,
        limit
    );
    let mut messages = messages.fetch_all(conn).await?;
    messages.reverse();
    Ok(messages)
}

/// Loads the last `limit` messages of a session before a message, oldest first.
pub async fn load_previous_messages(
    conn: &mut PgConnection,
    session: SessionId,
    before: MessageId,
    limit: i64,
) -> sqlx::Result<Vec<MessageContent>> {
    let messages = sqlx::query_as!(
        MessageContent,
        r#"select id as "id: MessageId", task_id as "task: TaskId", role as "role: Role", format as "format: Format",
                  content, encrypted_as
           from messages
           where session_id = $1 and created_at < (select created_at from messages where id = $2)
           order by created_at desc limit $3"#,
        session as _,
        before as _,
        limit
    );
    let mut messages = messages.fetch_all(conn).await?;
    messages.reverse();
    Ok(messages)
}
