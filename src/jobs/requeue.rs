//! SQL that returns a running job to the queue, or ends it as failed. Every statement is fenced by the job's worker.

use std::time::Duration;

use sqlx::PgConnection;
use uuid::Uuid;

use super::WaitReason;
use crate::db::interval;
use crate::ids::JobId;

/// How a job returns to the queue. The default is at once, for no reason of its own: its process stops.
#[derive(Default)]
pub struct Requeue<'a> {
    pub wait_reason: Option<WaitReason>,
    /// The job waits for its key, which it was not given when it was claimed. If it was given one in the meantime, or if the equal
    /// job that takes over has one, there is nothing to wait for.
    pub lacked_key: bool,
    pub delay: Duration,
    /// Why; `None` keeps the last error.
    pub error: Option<&'a str>,
}

/// Returns a job to the queue; its attempt does not count.
pub async fn requeue_unspent(
    conn: &mut PgConnection,
    job: JobId,
    worker_id: Uuid,
    requeue: &Requeue<'_>,
) -> sqlx::Result<()> {
    lock(conn, job, worker_id).await?;
    make_ready(conn, job, worker_id, 1, requeue).await
}

/// The job failed: it goes back to wait out its back-off, or ends as failed after its last try.
pub async fn fail(
    conn: &mut PgConnection,
    job: JobId,
    worker_id: Uuid,
    retry_after: Option<Duration>,
    reason: &str,
) -> sqlx::Result<()> {
    lock(conn, job, worker_id).await?;
    match retry_after {
        Some(delay) => {
            let requeue = Requeue { delay, error: Some(reason), ..Requeue::default() };
            make_ready(conn, job, worker_id, 0, &requeue).await
        }
        None => sqlx::query!(
            "update jobs set state = 'failed', worker_id = null, lease_expires_at = null, encrypted_kek = null,
                 last_error = $3, updated_at = now()
             where id = $1 and worker_id = $2",
            job as _,
            worker_id,
            reason,
        )
        .execute(conn)
        .await
        .map(drop),
    }
}

async fn lock(conn: &mut PgConnection, job: JobId, worker_id: Uuid) -> sqlx::Result<()> {
    let row = sqlx::query!("select id from jobs where id = $1 and worker_id = $2 for update", job as _, worker_id);
    row.fetch_optional(conn).await.map(drop)
}

/// Back to `ready`. If an equal job waits already, that one takes over: this row goes, and the waiting one inherits its tries
/// and its back-off, or a steady stream of new jobs would retry without a pause and without an end.
async fn make_ready(
    conn: &mut PgConnection,
    job: JobId,
    worker_id: Uuid,
    unspent: i32,
    &Requeue { wait_reason, lacked_key, delay, error }: &Requeue<'_>,
) -> sqlx::Result<()> {
    let inherited = sqlx::query!(
        "with old as (
             delete from jobs o where o.id = $1 and o.worker_id = $2 and exists (
                 select 1 from jobs t where t.kind = o.kind and t.dedupe_key = o.dedupe_key and t.state = 'ready')
             returning o.kind, o.dedupe_key, o.attempt, o.encrypted_kek)
         update jobs t
         set encrypted_kek = coalesce(t.encrypted_kek, old.encrypted_kek), attempt = greatest(t.attempt, old.attempt - $3),
             last_error = case when old.has_reason then $5 else t.last_error end,
             wait_reason = case when old.has_reason then $6 else t.wait_reason end,
             run_at = case when old.has_reason then greatest(t.run_at, now() + $4::interval) else t.run_at end,
             updated_at = now()
         from (select o.*, $5::text is not null
                           and not ($7 and coalesce(o.encrypted_kek, t.encrypted_kek) is not null) as has_reason
               from old o join jobs t on t.kind = o.kind and t.dedupe_key = o.dedupe_key and t.state = 'ready') old
         where t.kind = old.kind and t.dedupe_key = old.dedupe_key and t.state = 'ready'",
        job as _,
        worker_id,
        unspent,
        interval(delay) as _,
        error,
        wait_reason as _,
        lacked_key,
    );
    if inherited.execute(&mut *conn).await?.rows_affected() > 0 {
        return Ok(());
    }
    sqlx::query!(
        "update jobs set state = 'ready', worker_id = null, lease_expires_at = null, attempt = attempt - $3,
             run_at = case when $7 and encrypted_kek is not null then now() else now() + $4::interval end,
             wait_reason = case when $7 and encrypted_kek is not null then null else $6 end,
             last_error = case when $7 and encrypted_kek is not null then last_error else coalesce($5, last_error) end,
             updated_at = now()
         where id = $1 and worker_id = $2",
        job as _,
        worker_id,
        unspent,
        interval(delay) as _,
        error,
        wait_reason as _,
        lacked_key,
    )
    .execute(conn)
    .await
    .map(drop)
}
