//! SQL that requeues a running job or marks it as failed, and that finds the jobs whose worker was lost. A function has no effect
//! if the worker `worker_id` no longer owns the job.

use std::time::Duration;

use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{ErrorClass, WaitReason};
use crate::db::interval;
use crate::ids::{JobId, ProjectId};

/// The parameters of a requeue. The default makes the job due immediately, as for a release at shutdown.
#[derive(Default)]
pub struct Requeue<'a> {
    pub wait_reason: Option<WaitReason>,
    /// `true` if the job is snoozed because it had no master key when it was claimed. The other fields are then ignored if the
    /// job, or the ready duplicate that replaces it, now has the key.
    pub lacked_key: bool,
    pub delay: Duration,
    /// The error to store as the last error; `None` keeps the stored one, unless `clears_error` is set.
    pub error: Option<JobFailure<'a>>,
    /// `true` if the attempt has had no error, so that the error of an earlier attempt is cleared.
    pub clears_error: bool,
}

/// The error of an attempt.
#[derive(Clone, Copy)]
pub struct JobFailure<'a> {
    pub class: ErrorClass,
    pub message: &'a str,
}

/// Requeues a job. The attempt does not count.
pub async fn requeue_uncounted(
    conn: &mut PgConnection,
    job: JobId,
    worker_id: Uuid,
    requeue: &Requeue<'_>,
) -> sqlx::Result<()> {
    lock(conn, job, worker_id).await?;
    requeue_job(conn, job, worker_id, 1, requeue).await
}

/// Records a failed attempt: requeues the job with the delay `backoff`, or marks the job as failed if `backoff` is `None`.
pub async fn fail(
    conn: &mut PgConnection,
    job: JobId,
    worker_id: Uuid,
    backoff: Option<Duration>,
    error: JobFailure<'_>,
) -> sqlx::Result<()> {
    lock(conn, job, worker_id).await?;
    match backoff {
        Some(delay) => {
            let requeue = Requeue { delay, error: Some(error), ..Requeue::default() };
            requeue_job(conn, job, worker_id, 0, &requeue).await
        }
        None => sqlx::query!(
            "update jobs set state = 'failed', worker_id = null, lease_expires_at = null, encrypted_kek = null,
                 last_error = $3, error_class = $4, updated_at = now()
             where id = $1 and worker_id = $2",
            job as _,
            worker_id,
            error.message,
            error.class as _,
        )
        .execute(conn)
        .await
        .map(drop),
    }
}

/// Locks a job. This is a separate statement, so that the next one sees what the previous holder of the lock has committed,
/// such as the project's master key. Returns `false` if this worker does not own the job.
pub async fn lock(conn: &mut PgConnection, job: JobId, worker_id: Uuid) -> sqlx::Result<bool> {
    let row = sqlx::query!("select id from jobs where id = $1 and worker_id = $2 for update", job as _, worker_id);
    Ok(row.fetch_optional(conn).await?.is_some())
}

/// Makes a running job ready. `uncounted_attempts` is 1 if the attempt does not count, otherwise 0.
///
/// If a duplicate is ready already, deletes the job, and the duplicate inherits its attempts and backoff. If it did not inherit
/// them, it would run immediately, as a first attempt. Work for which jobs are enqueued repeatedly would then never reach the
/// maximum number of attempts.
async fn requeue_job(
    conn: &mut PgConnection,
    job: JobId,
    worker_id: Uuid,
    uncounted_attempts: i32,
    &Requeue { wait_reason, lacked_key, delay, error, clears_error }: &Requeue<'_>,
) -> sqlx::Result<()> {
    let (message, class) = (error.map(|error| error.message), error.map(|error| error.class));
    // `has_reason` is true if the duplicate inherits the error, the wait reason and the delay: if there is an error, unless the
    // job waits for the master key and one of the two jobs has the key.
    let inherited = sqlx::query!(
        "with old as (
             delete from jobs o where o.id = $1 and o.worker_id = $2 and exists (
                 select 1 from jobs t where t.kind = o.kind and t.dedupe_key = o.dedupe_key and t.state = 'ready')
             returning o.kind, o.dedupe_key, o.attempt, o.encrypted_kek)
         update jobs t
         set encrypted_kek = coalesce(t.encrypted_kek, old.encrypted_kek),
             attempt = greatest(t.attempt, old.attempt - $3),
             last_error = case when old.has_reason then $5 else t.last_error end,
             error_class = case when old.has_reason then $8 else t.error_class end,
             wait_reason = case when old.has_reason then $6 else t.wait_reason end,
             run_at = case when old.has_reason then greatest(t.run_at, now() + $4::interval) else t.run_at end,
             updated_at = now()
         from (select o.*, $5::text is not null
                           and not ($7 and coalesce(o.encrypted_kek, t.encrypted_kek) is not null) as has_reason
               from old o join jobs t on t.kind = o.kind and t.dedupe_key = o.dedupe_key and t.state = 'ready') old
         where t.kind = old.kind and t.dedupe_key = old.dedupe_key and t.state = 'ready'",
        job as _,
        worker_id,
        uncounted_attempts,
        interval(delay) as _,
        message,
        wait_reason as _,
        lacked_key,
        class as _,
    );
    if inherited.execute(&mut *conn).await?.rows_affected() > 0 {
        return Ok(());
    }
    sqlx::query!(
        "update jobs set state = 'ready', worker_id = null, lease_expires_at = null, attempt = attempt - $3,
             run_at = case when $7 and encrypted_kek is not null then now() else now() + $4::interval end,
             wait_reason = case when $7 and encrypted_kek is not null then null else $6 end,
             last_error = case when $9 then null
                               when $7 and encrypted_kek is not null then last_error
                               else coalesce($5, last_error) end,
             error_class = case when $9 then null
                                when $7 and encrypted_kek is not null then error_class
                                else coalesce($8, error_class) end,
             updated_at = now()
         where id = $1 and worker_id = $2",
        job as _,
        worker_id,
        uncounted_attempts,
        interval(delay) as _,
        message,
        wait_reason as _,
        lacked_key,
        class as _,
        clears_error,
    )
    .execute(conn)
    .await
    .map(drop)
}

/// A job with an expired lease.
pub struct ExpiredJob {
    pub id: JobId,
    pub project: ProjectId,
    pub kind: String,
    pub payload: Value,
    pub encrypted_kek: Option<Vec<u8>>,
    pub attempt: i32,
    pub worker_id: Uuid,
}

/// Lists running jobs of these kinds with an expired lease, longest expired first.
pub async fn list_expired(conn: &mut PgConnection, kinds: &[String], limit: i64) -> sqlx::Result<Vec<ExpiredJob>> {
    sqlx::query_as!(
        ExpiredJob,
        r#"select id as "id: JobId", project_id as "project: ProjectId", kind, payload, encrypted_kek, attempt,
                  worker_id as "worker_id!"
           from jobs
           where state = 'running' and lease_expires_at < now() and kind = any($1)
           order by lease_expires_at limit $2"#,
        kinds,
        limit,
    )
    .fetch_all(conn)
    .await
}

/// Locks a job if this worker still owns it and its lease has expired. Returns `false` otherwise, or if another transaction
/// has locked the job.
pub async fn lock_expired(conn: &mut PgConnection, job: JobId, worker_id: Uuid) -> sqlx::Result<bool> {
    let row = sqlx::query!(
        "select id from jobs where id = $1 and worker_id = $2 and lease_expires_at < now() for update skip locked",
        job as _,
        worker_id,
    );
    Ok(row.fetch_optional(conn).await?.is_some())
}
