//! SQL of the queue. Every statement about a running job is fenced by its owner.

use std::time::Duration;

use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{JobState, WaitReason};
use crate::db::interval;
use crate::ids::{JobId, ProjectId};

/// A job that is put on the queue.
pub struct NewJob {
    pub kind: &'static str,
    pub payload: Value,
    pub lane: Option<String>,
    pub dedupe_key: Option<String>,
    pub delay: Duration,
    /// The project's key, as [`crate::encryption::jobs::JobKeys`] seals it.
    pub encrypted_kek: Option<Vec<u8>>,
    /// Where the work comes from, as a W3C traceparent.
    pub traceparent: Option<String>,
}

pub async fn insert(conn: &mut PgConnection, project: ProjectId, job: NewJob) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into jobs (id, project_id, kind, payload, lane, dedupe_key, run_at, traceparent, encrypted_kek)
         values ($1, $2, $3, $4, $5, $6, now() + $7::interval, $8, $9)
         on conflict (kind, dedupe_key) where state = 'ready' do update
             -- A job in back-off keeps its time, but for one that waits for the key that it is given now.
             set run_at = case when jobs.attempt = 0 or jobs.wait_reason = 'key' and excluded.encrypted_kek is not null
                               then least(jobs.run_at, excluded.run_at) else jobs.run_at end,
                 wait_reason = nullif(jobs.wait_reason, case when excluded.encrypted_kek is not null then 'key' end),
                 encrypted_kek = coalesce(excluded.encrypted_kek, jobs.encrypted_kek), updated_at = now()
             -- Writes nothing if nothing changes.
             where jobs.attempt = 0 and excluded.run_at < jobs.run_at
                or jobs.encrypted_kek is null and excluded.encrypted_kek is not null",
        JobId::new() as _,
        project as _,
        job.kind,
        job.payload,
        job.lane,
        job.dedupe_key,
        interval(job.delay) as _,
        job.traceparent,
        job.encrypted_kek,
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Gives a project's key to its jobs that wait for it, and makes them due.
pub async fn provide_key(conn: &mut PgConnection, project: ProjectId, encrypted_kek: &[u8]) -> sqlx::Result<u64> {
    let moved = sqlx::query!(
        "update jobs set encrypted_kek = $2, run_at = least(run_at, now()), wait_reason = null, last_error = null, updated_at = now()
         where project_id = $1 and wait_reason = 'key'",
        project as _,
        encrypted_kek,
    );
    Ok(moved.execute(conn).await?.rows_affected())
}

/// Gives a project's key to all its jobs that have none, or takes it from all of them. Those that wait for it are due now: they
/// have it, or need it no more.
pub async fn set_key(conn: &mut PgConnection, project: ProjectId, encrypted_kek: Option<&[u8]>) -> sqlx::Result<()> {
    sqlx::query!(
        "update jobs
         set encrypted_kek = $2, run_at = case when wait_reason = 'key' then least(run_at, now()) else run_at end,
             wait_reason = nullif(wait_reason, 'key'), updated_at = now()
         where project_id = $1 and state <> 'failed'
           and (($2::bytea is null) = (encrypted_kek is not null) or wait_reason = 'key')",
        project as _,
        encrypted_kek,
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Makes the waiting job of a kind and dedupe key due now, whatever it waits for. Returns `true` if there is one.
pub async fn make_due(
    conn: &mut PgConnection,
    kind: &str,
    dedupe_key: Option<&str>,
    clears_error: bool,
) -> sqlx::Result<bool> {
    let moved = sqlx::query!(
        "update jobs
         set run_at = least(run_at, now()), wait_reason = case when $3 then null else wait_reason end,
             last_error = case when $3 then null else last_error end, updated_at = now()
         where kind = $1 and dedupe_key = $2 and state = 'ready'",
        kind,
        dedupe_key,
        clears_error
    );
    Ok(moved.execute(conn).await?.rows_affected() > 0)
}

/// Makes all jobs of a kind due now that wait for this reason. Returns their number.
pub async fn make_all_due(conn: &mut PgConnection, kind: &str, reason: WaitReason) -> sqlx::Result<u64> {
    let moved = sqlx::query!(
        "update jobs set run_at = now(), updated_at = now()
         where kind = $1 and state = 'ready' and wait_reason = $2 and run_at > now()",
        kind,
        reason as _
    );
    Ok(moved.execute(conn).await?.rows_affected())
}

/// Finds a job of a kind and dedupe key that waits or runs; for one that waits, the inner value is why its last attempt failed. The
/// outcome of an attempt that still runs is not known, whatever the one before it came to.
pub async fn find_unfinished(
    conn: &mut PgConnection,
    kind: &str,
    dedupe_key: Option<&str>,
) -> sqlx::Result<Option<Option<String>>> {
    sqlx::query_scalar!(
        "select case when state = 'ready' then last_error end from jobs
         where kind = $1 and dedupe_key = $2 and state in ('ready', 'running')
         order by state desc limit 1",
        kind,
        dedupe_key
    )
    .fetch_optional(conn)
    .await
}

/// A job that this process has claimed.
#[derive(Debug)]
pub struct Claimed {
    pub id: JobId,
    pub project: ProjectId,
    pub kind: String,
    pub payload: Value,
    pub lane: Option<String>,
    pub attempt: i32,
    pub encrypted_kek: Option<Vec<u8>>,
    pub traceparent: Option<String>,
}

/// Takes up to `limit` due jobs of these kinds for `worker_id`: fair between projects (each in turn, counting what runs already),
/// oldest first within one, and never a second job of a lane.
///
/// Wants a transaction of its own. It stands in line with the other claims, so that none of them has to look twice; being
/// lost in a crash does no harm (the jobs are simply ready again), so its commit does not wait for the disk.
pub async fn claim(
    conn: &mut PgConnection,
    worker_id: Uuid,
    kinds: &[String],
    limit: usize,
    lease: Duration,
) -> sqlx::Result<Vec<Claimed>> {
    sqlx::query!("select set_config('synchronous_commit', 'off', true)").fetch_one(&mut *conn).await?;
    sqlx::query!("select pg_advisory_xact_lock(hashtext('acontextd claim jobs'))").fetch_one(&mut *conn).await?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    sqlx::query_as!(
        Claimed,
        r#"with recursive waiting (project_id) as (
               (select project_id from jobs where state = 'ready' order by project_id limit 1)
               union all
               select (select j.project_id from jobs j
                       where j.state = 'ready' and j.project_id > w.project_id order by j.project_id limit 1)
               from waiting w where w.project_id is not null
           ),
           busy as (select project_id, count(*) as jobs from jobs where state = 'running' group by project_id),
           due as (
               select d.id, d.run_at,
                      row_number() over (partition by d.project_id order by d.run_at, d.id)
                          + coalesce(busy.jobs, 0) as turn,
                      row_number() over (partition by coalesce(d.lane, d.id::text) order by d.run_at, d.id) as in_lane
               from waiting w
               cross join lateral (
                   select j.id, j.project_id, j.run_at, j.lane from jobs j
                   where j.state = 'ready' and j.project_id = w.project_id and j.run_at <= now() and j.kind = any($2)
                     and not exists (select 1 from jobs r where r.state = 'running' and r.lane = j.lane)
                   order by j.run_at, j.id limit $3
               ) d
               left join busy on busy.project_id = d.project_id
           ),
           -- A waiting row can be locked by a request that enqueues an equal job: that is no reason to wait here.
           taken as (
               select r.id from jobs r join due on due.id = r.id
               where due.in_lane = 1 and r.state = 'ready'
               order by due.turn, due.run_at, due.id limit $3
               for update of r skip locked
           )
           update jobs j
           set state = 'running', attempt = j.attempt + 1, worker_id = $1, lease_expires_at = now() + $4::interval,
               wait_reason = null, updated_at = now()
           from taken where j.id = taken.id and j.state = 'ready'
           returning j.id as "id: JobId", j.project_id as "project: ProjectId", j.kind, j.payload, j.lane, j.attempt,
                     j.encrypted_kek, j.traceparent"#,
        worker_id,
        kinds,
        limit,
        interval(lease) as _,
    )
    .fetch_all(conn)
    .await
}

/// How long until the next job of these kinds is due; `None` if none waits.
pub async fn next_due(conn: &mut PgConnection, kinds: &[String]) -> sqlx::Result<Option<Duration>> {
    let seconds = sqlx::query_scalar!(
        r#"select extract(epoch from min(run_at) - now())::float8 as seconds from jobs
           where state = 'ready' and kind = any($1)"#,
        kinds,
    )
    .fetch_one(conn)
    .await?;
    Ok(seconds.map(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default()))
}

/// Moves the end of these jobs' leases; answers with those that are still this worker's. One that is just being completed is
/// locked, and is left as it is.
pub async fn extend(
    conn: &mut PgConnection,
    worker_id: Uuid,
    jobs: &[Uuid],
    lease: Duration,
) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        "update jobs set lease_expires_at = now() + $3::interval where id in (
             select id from jobs where id = any($1) and worker_id = $2 order by id for update skip locked)
         returning id",
        jobs,
        worker_id,
        interval(lease) as _,
    )
    .fetch_all(&mut *conn)
    .await?;
    sqlx::query_scalar!("select id from jobs where id = any($1) and worker_id = $2", jobs, worker_id)
        .fetch_all(conn)
        .await
}

/// The job is done.
pub async fn delete(conn: &mut PgConnection, job: JobId, worker_id: Uuid) -> sqlx::Result<bool> {
    let gone = sqlx::query!("delete from jobs where id = $1 and worker_id = $2", job as _, worker_id);
    Ok(gone.execute(conn).await?.rows_affected() == 1)
}

/// A job whose lease ran out.
pub struct Expired {
    pub id: JobId,
    pub kind: String,
    pub attempt: i32,
    pub worker_id: Uuid,
}

/// Running jobs of these kinds whose process has not been heard of until the end of their lease.
pub async fn list_expired(conn: &mut PgConnection, kinds: &[String], limit: i64) -> sqlx::Result<Vec<Expired>> {
    sqlx::query_as!(
        Expired,
        r#"select id as "id: JobId", kind, attempt, worker_id as "worker_id!" from jobs
           where state = 'running' and lease_expires_at < now() and kind = any($1)
           order by lease_expires_at limit $2"#,
        kinds,
        limit,
    )
    .fetch_all(conn)
    .await
}

/// Locks a job if its lease has run out and still belongs to this worker.
pub async fn lock_expired(conn: &mut PgConnection, job: JobId, worker_id: Uuid) -> sqlx::Result<bool> {
    let row = sqlx::query!(
        "select id from jobs where id = $1 and worker_id = $2 and lease_expires_at < now() for update skip locked",
        job as _,
        worker_id,
    );
    Ok(row.fetch_optional(conn).await?.is_some())
}

/// Forgets jobs that failed longer ago than `age`.
pub async fn delete_failed(conn: &mut PgConnection, age: Duration) -> sqlx::Result<u64> {
    let gone = sqlx::query!(
        "delete from jobs where state = 'failed' and updated_at < now() - $1::interval",
        interval(age) as _
    );
    Ok(gone.execute(conn).await?.rows_affected())
}

/// The jobs of one kind and state.
pub struct Waiting {
    pub kind: String,
    pub state: JobState,
    pub count: i64,
    /// Since the oldest of them was due; 0 if none is.
    pub late_seconds: i64,
}

/// How many jobs there are of each kind and state.
pub async fn count(conn: &mut PgConnection) -> sqlx::Result<Vec<Waiting>> {
    sqlx::query_as!(
        Waiting,
        r#"select kind, state as "state: JobState", count(*) as "count!",
                  greatest(extract(epoch from now() - min(run_at)), 0)::bigint as "late_seconds!"
           from jobs group by kind, state"#
    )
    .fetch_all(conn)
    .await
}
