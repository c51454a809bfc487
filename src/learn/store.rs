//! SQL of observation. Each statement that moves messages wants the session's lock, which whoever stores messages takes too.

use serde::Deserialize;
use sqlx::PgConnection;
use sqlx::types::Json;
use uuid::Uuid;

use crate::ids::{MessageId, ProjectId, SessionId, SpaceId};

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
    until: Option<chrono::DateTime<chrono::Utc>>,
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
pub async fn count_unobserved(
    conn: &mut PgConnection,
    session: SessionId,
    until: Option<chrono::DateTime<chrono::Utc>>,
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

/// A session while it is locked.
pub struct Locked {
    pub project: ProjectId,
    pub last_message_at: Option<chrono::DateTime<chrono::Utc>>,
    /// The project's own settings of the buffer.
    pub turns: Option<i64>,
    pub overflow: Option<i64>,
}

/// Locks a session; `None` if it is not there any more.
pub async fn lock(conn: &mut PgConnection, session: SessionId) -> sqlx::Result<Option<Locked>> {
    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Buffer {
        // A value of another type is as if it were not there.
        project_session_message_buffer_max_turns: serde_json::Value,
        project_session_message_buffer_max_overflow: serde_json::Value,
    }
    let row = sqlx::query!(
        r#"select s.project_id as "project: ProjectId", s.last_message_at,
                  case when jsonb_typeof(p.configs -> 'project_config') = 'object'
                       then p.configs -> 'project_config' end as "buffer: Json<Buffer>"
           from sessions s join projects p on p.id = s.project_id
           where s.id = $1 for no key update of s"#,
        session as _
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| {
        let buffer = row.buffer.map(|buffer| buffer.0).unwrap_or_default();
        Locked {
            project: row.project,
            last_message_at: row.last_message_at,
            turns: buffer.project_session_message_buffer_max_turns.as_i64(),
            overflow: buffer.project_session_message_buffer_max_overflow.as_i64(),
        }
    }))
}

/// Takes the oldest waiting messages.
pub async fn take(conn: &mut PgConnection, session: SessionId, limit: i64) -> sqlx::Result<Vec<Uuid>> {
    let taken = sqlx::query_scalar!(
        "update messages set session_task_process_status = 'running', updated_at = now()
         where id in (select id from messages where session_id = $1 and session_task_process_status = 'pending'
                      order by created_at limit $2)
         returning id",
        session as _,
        limit
    )
    .fetch_all(&mut *conn)
    .await?;
    sqlx::query!(
        "update sessions set unobserved = (select count(*) from messages
                                           where session_id = $1 and session_task_process_status = 'pending')
         where id = $1",
        session as _
    )
    .execute(conn)
    .await?;
    Ok(taken)
}

/// Moves messages of a session from one state to another; all that are in it, or these. Answers with how many.
pub async fn set_status(
    conn: &mut PgConnection,
    session: SessionId,
    only: Option<&[Uuid]>,
    from: &str,
    to: &str,
) -> sqlx::Result<u64> {
    sqlx::query!(
        "update messages set session_task_process_status = $4, updated_at = now()
         where session_id = $1 and session_task_process_status = $3 and ($2::uuid[] is null or id = any($2))",
        session as _,
        only as _,
        from,
        to
    )
    .execute(conn)
    .await
    .map(|done| done.rows_affected())
}

/// Notes whether a job of the session is there.
pub async fn set_observing(conn: &mut PgConnection, session: SessionId, observing: bool) -> sqlx::Result<()> {
    sqlx::query!("update sessions set observing = $2 where id = $1", session as _, observing)
        .execute(conn)
        .await
        .map(drop)
}

/// Makes the waiting job of a session due now, whatever it waits for, and forgets why. Whether there is one.
pub async fn hurry(conn: &mut PgConnection, session: SessionId) -> sqlx::Result<bool> {
    let moved = sqlx::query!(
        "update jobs set run_at = least(run_at, now()), last_error = null, updated_at = now()
         where kind = 'observe' and dedupe = $1::uuid::text and state = 'ready'",
        session as _
    );
    Ok(moved.execute(conn).await?.rows_affected() > 0)
}

/// Whether a job of the session runs or waits; and if it waits, why it failed. What a try that still runs will come to is not
/// known, whatever the one before it came to.
pub async fn find_job(conn: &mut PgConnection, session: SessionId) -> sqlx::Result<Option<Option<String>>> {
    sqlx::query_scalar!(
        "select case when state = 'ready' then last_error end from jobs
         where kind = 'observe' and dedupe = $1::uuid::text and state in ('ready', 'running')
         order by state desc limit 1",
        session as _
    )
    .fetch_optional(conn)
    .await
}

/// Makes all jobs due now that wait for a model.
pub async fn hurry_all(conn: &mut PgConnection, reason: &str) -> sqlx::Result<u64> {
    let moved = sqlx::query!(
        "update jobs set run_at = now(), updated_at = now()
         where kind = 'observe' and state = 'ready' and last_error = $1 and run_at > now()",
        reason
    );
    Ok(moved.execute(conn).await?.rows_affected())
}

/// Sessions with messages that wait although no job is there for them.
pub async fn list_forgotten(conn: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<SessionId>> {
    sqlx::query_scalar!(
        r#"select distinct m.session_id as "id: SessionId" from messages m
           where m.session_task_process_status in ('pending', 'running')
             and m.updated_at < now() - interval '1 minute'
             and not exists (select 1 from jobs j where j.kind = 'observe' and j.dedupe = m.session_id::text
                             and j.state in ('ready', 'running'))
           limit $1"#,
        limit
    )
    .fetch_all(conn)
    .await
}

/// What was said in these messages, for whoever looks at them.
pub struct Said {
    pub id: MessageId,
    pub role: String,
    pub format: String,
    pub content: Vec<u8>,
    /// As which message it is sealed, if it is.
    pub sealed_as: Option<Uuid>,
}

/// Whether one of these messages is sealed.
pub async fn has_sealed(conn: &mut PgConnection, ids: &[Uuid]) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"select exists (select 1 from messages where id = any($1) and sealed_as is not null) as "sealed!""#,
        ids
    )
    .fetch_one(conn)
    .await
}

pub async fn list_said(conn: &mut PgConnection, ids: &[Uuid]) -> sqlx::Result<Vec<Said>> {
    sqlx::query_as!(
        Said,
        r#"select id as "id: MessageId", role, format, content, sealed_as
           from messages where id = any($1) order by created_at"#,
        ids
    )
    .fetch_all(conn)
    .await
}

/// The progress of a session whose learning is pending.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct LearningProgress {
    pub session: SessionId,
    /// Messages are pending.
    pub waits: bool,
    /// Messages failed to be observed.
    pub has_failed: bool,
    pub has_open_tasks: bool,
    pub has_ended_tasks: bool,
}

/// What is known of a session; `None` if it is not learned, or something has come of it already.
pub async fn get_learned(conn: &mut PgConnection, session: SessionId) -> sqlx::Result<Option<LearningProgress>> {
    sqlx::query_as!(
        LearningProgress,
        r#"select session_id as "session!: SessionId", waits as "waits!",
                  has_failed as "has_failed!", has_open_tasks as "has_open_tasks!", has_ended_tasks as "has_ended_tasks!"
           from pending_learning_sessions where session_id = $1"#,
        session as _
    )
    .fetch_optional(conn)
    .await
}

/// As [`get_learned`], for all sessions of a space, oldest first.
pub async fn list_learned(conn: &mut PgConnection, space: SpaceId) -> sqlx::Result<Vec<LearningProgress>> {
    sqlx::query_as!(
        LearningProgress,
        r#"select session_id as "session!: SessionId", waits as "waits!",
                  has_failed as "has_failed!", has_open_tasks as "has_open_tasks!", has_ended_tasks as "has_ended_tasks!"
           from pending_learning_sessions where learning_space_id = $1 order by created_at, id"#,
        space as _
    )
    .fetch_all(conn)
    .await
}

/// Says what has come of learning a session.
pub async fn set_learned(conn: &mut PgConnection, session: SessionId, status: &str) -> sqlx::Result<()> {
    sqlx::query!(
        "update learning_space_sessions set status = $2, updated_at = now() where session_id = $1",
        session as _,
        status
    )
    .execute(conn)
    .await
    .map(drop)
}
