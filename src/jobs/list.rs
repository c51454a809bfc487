//! SQL of the list of jobs, and of the retry and deletion of failed ones, for clients.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::{ErrorClass, JobState, WaitReason};
use crate::db::page::{PageRequest, fetch_page, impl_paged};
use crate::ids::{JobId, ProjectId, SessionId};
use crate::time::Timestamp;

/// A job of a project.
#[derive(Debug)]
pub struct ListedJob {
    pub id: JobId,
    pub kind: String,
    /// The id of the session in the payload. An invalid id, which no job of this server has, remains a text.
    pub session: Option<String>,
    /// The id of the learning space in the payload, as above.
    pub learning_space: Option<String>,
    /// The id of the lesson in the payload, as above.
    pub lesson: Option<String>,
    pub state: JobState,
    pub wait_reason: Option<WaitReason>,
    pub attempt: i32,
    pub run_at: Timestamp,
    pub lease_expires_at: Option<DateTime<Utc>>,
    pub last_error: Option<String>,
    pub error_class: Option<ErrorClass>,
    pub created_at: Timestamp,
}

impl_paged!(ListedJob);

macro_rules! select_jobs {
    ($($rest:literal)+; $($parameter:expr),* $(,)?) => {
        sqlx::query_as!(
            ListedJob,
            r#"select t.id as "id: JobId", t.kind, t.payload ->> 'session' as session,
                      t.payload ->> 'learning_space' as learning_space, t.payload ->> 'lesson' as lesson,
                      t.state as "state: JobState",
                      t.wait_reason as "wait_reason: WaitReason", t.attempt, t.run_at as "run_at: Timestamp",
                      t.lease_expires_at, t.last_error, t.error_class as "error_class: ErrorClass",
                      t.created_at as "created_at: Timestamp"
               from "# $(+ $rest)+,
            $($parameter),*
        )
    };
}

/// Returns a page of a project's jobs.
pub async fn list(conn: &mut PgConnection, project: ProjectId, page: &PageRequest) -> sqlx::Result<Vec<ListedJob>> {
    fetch_page!(select_jobs!("jobs t where t.project_id = $4"; project as _), conn, page)
}

/// Returns a page of the jobs that work for a session of a project.
pub async fn list_of_session(
    conn: &mut PgConnection,
    project: ProjectId,
    session: SessionId,
    page: &PageRequest,
) -> sqlx::Result<Vec<ListedJob>> {
    fetch_page!(
        select_jobs!(
            "jobs t where t.project_id = $4 and t.payload ->> 'session' = $5";
            project as _,
            session.to_string(),
        ),
        conn,
        page
    )
}

/// Returns a job of a project.
pub async fn get(conn: &mut PgConnection, project: ProjectId, job: JobId) -> sqlx::Result<Option<ListedJob>> {
    select_jobs!("jobs t where t.project_id = $1 and t.id = $2"; project as _, job as _).fetch_optional(conn).await
}

/// Makes a failed job ready and due, with no attempt counted, and sets its master key. If a duplicate is ready, deletes the job
/// and makes the duplicate due instead. Returns the id of the ready job; `None` if the project has no such failed job.
pub async fn retry(
    conn: &mut PgConnection,
    project: ProjectId,
    job: JobId,
    encrypted_kek: Option<&[u8]>,
) -> sqlx::Result<Option<JobId>> {
    let duplicate = sqlx::query_scalar!(
        r#"with failed as (
               delete from jobs f where f.id = $1 and f.project_id = $2 and f.state = 'failed' and exists (
                   select 1 from jobs t where t.kind = f.kind and t.dedupe_key = f.dedupe_key and t.state = 'ready')
               returning f.kind, f.dedupe_key)
           update jobs t
           set run_at = least(t.run_at, now()), attempt = 0, wait_reason = null, last_error = null, error_class = null,
               encrypted_kek = coalesce($3, t.encrypted_kek), updated_at = now()
           from failed where t.kind = failed.kind and t.dedupe_key = failed.dedupe_key and t.state = 'ready'
           returning t.id as "id: JobId""#,
        job as _,
        project as _,
        encrypted_kek,
    );
    if let Some(duplicate) = duplicate.fetch_optional(&mut *conn).await? {
        return Ok(Some(duplicate));
    }
    sqlx::query_scalar!(
        r#"update jobs set state = 'ready', run_at = now(), attempt = 0, last_error = null, error_class = null,
                           encrypted_kek = $3, updated_at = now()
           where id = $1 and project_id = $2 and state = 'failed' returning id as "id: JobId""#,
        job as _,
        project as _,
        encrypted_kek,
    )
    .fetch_optional(conn)
    .await
}

/// Deletes the failed jobs of a project with this kind and dedupe key.
pub async fn delete_failed(
    conn: &mut PgConnection,
    project: ProjectId,
    kind: &str,
    dedupe_key: Option<&str>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "delete from jobs where project_id = $1 and kind = $2 and dedupe_key = $3 and state = 'failed'",
        project as _,
        kind,
        dedupe_key
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Deletes the ready and failed jobs of a session that is being deleted. A running job ends when it finds no session.
pub async fn delete_of_session(conn: &mut PgConnection, project: ProjectId, session: SessionId) -> sqlx::Result<()> {
    sqlx::query!(
        "delete from jobs where project_id = $1 and payload ->> 'session' = $2 and state in ('ready', 'failed')",
        project as _,
        session.to_string()
    )
    .execute(conn)
    .await
    .map(drop)
}
