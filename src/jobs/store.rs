//! SQL of the job queue. Except for [`claim`], a function with the parameter `worker_id` has no effect on a job that this worker
//! does not own.

use std::time::Duration;

use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use super::registry::JobKinds;
use super::{JobState, WaitReason};
use crate::db::interval;
use crate::ids::{JobId, ProjectId};
use crate::time::Timestamp;

/// A job to enqueue.
pub struct NewJob {
    pub kind: &'static str,
    pub payload: Value,
    pub lane: Option<String>,
    pub dedupe_key: Option<String>,
    pub delay: Duration,
    /// The project's master key, wrapped by [`crate::encryption::job_keys::JobKeyWrapper`].
    pub encrypted_kek: Option<Vec<u8>>,
    /// The span that enqueues the job, as a W3C traceparent.
    pub traceparent: Option<String>,
}

/// Inserts a job. If a duplicate is ready, sets the master key of the duplicate and makes it due earlier instead.
pub async fn insert(conn: &mut PgConnection, project: ProjectId, job: NewJob) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into jobs (id, project_id, kind, payload, lane, dedupe_key, run_at, traceparent, encrypted_kek)
         values ($1, $2, $3, $4, $5, $6, now() + $7::interval, $8, $9)
         on conflict (kind, dedupe_key) where state = 'ready' do update
             -- A job in backoff keeps its due time, unless it gets the key that it waits for.
             set run_at = case when jobs.attempt = 0 or jobs.wait_reason = 'key' and excluded.encrypted_kek is not null
                               then least(jobs.run_at, excluded.run_at) else jobs.run_at end,
                 wait_reason = nullif(jobs.wait_reason, case when excluded.encrypted_kek is not null then 'key' end),
                 encrypted_kek = coalesce(excluded.encrypted_kek, jobs.encrypted_kek), updated_at = now()
             -- Do not write if nothing changes.
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

/// Sets the master key of a project's jobs that wait for it, and makes them due. Returns their number.
pub async fn provide_key(conn: &mut PgConnection, project: ProjectId, encrypted_kek: &[u8]) -> sqlx::Result<u64> {
    let update = sqlx::query!(
        "update jobs
         set encrypted_kek = $2, run_at = least(run_at, now()), wait_reason = null, last_error = null,
             error_class = null, updated_at = now()
         where project_id = $1 and wait_reason = 'key'",
        project as _,
        encrypted_kek,
    );
    Ok(update.execute(conn).await?.rows_affected())
}

/// With a master key, sets it in all unfinished jobs of a project that have none. With `None`, removes the master key from
/// all unfinished jobs of the project. Jobs that wait for the key become due, because they now have it or no longer need it.
pub async fn set_key_for_all(
    conn: &mut PgConnection,
    project: ProjectId,
    encrypted_kek: Option<&[u8]>,
) -> sqlx::Result<()> {
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

/// Makes the ready job with this kind and dedupe key due now, whatever its wait reason. With `clears_error`, clears its wait
/// reason and last error. Returns `true` if there is such a job.
pub async fn make_due(
    conn: &mut PgConnection,
    kind: &str,
    dedupe_key: Option<&str>,
    clears_error: bool,
) -> sqlx::Result<bool> {
    let update = sqlx::query!(
        "update jobs
         set run_at = least(run_at, now()), wait_reason = case when $3 then null else wait_reason end,
             last_error = case when $3 then null else last_error end,
             error_class = case when $3 then null else error_class end, updated_at = now()
         where kind = $1 and dedupe_key = $2 and state = 'ready'",
        kind,
        dedupe_key,
        clears_error
    );
    Ok(update.execute(conn).await?.rows_affected() > 0)
}

/// Makes due all jobs that have this wait reason. Returns the number of jobs that were not due yet.
pub async fn make_all_due(conn: &mut PgConnection, reason: WaitReason) -> sqlx::Result<u64> {
    let update = sqlx::query!(
        "update jobs set run_at = now(), updated_at = now()
         where state = 'ready' and wait_reason = $1 and run_at > now()",
        reason as _
    );
    Ok(update.execute(conn).await?.rows_affected())
}

/// A ready or running job.
pub struct UnfinishedJob {
    /// The last error of a ready job. `None` for a running job, because the outcome of its current attempt is not known yet.
    pub last_error: Option<String>,
}

/// Finds the unfinished job with this kind and dedupe key. If there are two, returns the running one.
pub async fn find_unfinished(
    conn: &mut PgConnection,
    kind: &str,
    dedupe_key: Option<&str>,
) -> sqlx::Result<Option<UnfinishedJob>> {
    let last_error = sqlx::query_scalar!(
        "select case when state = 'ready' then last_error end from jobs
         where kind = $1 and dedupe_key = $2 and state in ('ready', 'running')
         order by state desc limit 1",
        kind,
        dedupe_key
    );
    Ok(last_error.fetch_optional(conn).await?.map(|last_error| UnfinishedJob { last_error }))
}

/// Returns the error of a project's newest failed job with this kind and dedupe key; `None` if there is no such job.
pub async fn find_last_error(
    conn: &mut PgConnection,
    project: ProjectId,
    kind: &str,
    dedupe_key: Option<&str>,
) -> sqlx::Result<Option<String>> {
    let last_error = sqlx::query_scalar!(
        "select last_error from jobs where project_id = $1 and kind = $2 and dedupe_key = $3 and state = 'failed'
         order by created_at desc, id desc limit 1",
        project as _,
        kind,
        dedupe_key
    );
    Ok(last_error.fetch_optional(conn).await?.flatten())
}

/// A job that this worker has claimed.
#[derive(Debug)]
pub struct ClaimedJob {
    pub id: JobId,
    pub project: ProjectId,
    pub kind: String,
    pub payload: Value,
    pub lane: Option<String>,
    pub attempt: i32,
    pub encrypted_kek: Option<Vec<u8>>,
    pub traceparent: Option<String>,
}

/// The parameters of [`claim`].
pub struct ClaimRequest<'a> {
    pub kinds: &'a JobKinds,
    /// Maximum number of claimed jobs.
    pub limit: usize,
    /// Maximum number of running jobs of one project that call a language model, including those that run already.
    pub max_model_jobs_per_project: usize,
    /// Maximum number of claimed jobs that call a language model.
    pub max_new_model_jobs: usize,
    pub lease: Duration,
}

/// The result of [`claim`].
pub struct Claim {
    pub jobs: Vec<ClaimedJob>,
    /// The time at which the due jobs were determined.
    pub claimed_at: Timestamp,
}

/// Claims due jobs for a worker: round-robin between projects (counting their running jobs), oldest first within a project, and
/// at most one job of a lane. Jobs that call a language model have a limit of their own, within which they are also claimed
/// round-robin between projects.
///
/// The caller must commit the claim in a transaction of its own, because this function makes the commit asynchronous. If a
/// crash of the database loses the claim, the jobs are ready again. An advisory lock serializes the claims of all workers.
/// Otherwise two workers could claim jobs of the same lane, and one of them would get an error from the index `jobs_lane_idx`.
#[expect(clippy::too_many_lines, reason = "one SQL statement")]
pub async fn claim(conn: &mut PgConnection, worker_id: Uuid, request: &ClaimRequest<'_>) -> sqlx::Result<Claim> {
    let claimed_at = prepare_claim(conn).await?;
    let as_i64 = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let jobs = sqlx::query_as!(
        ClaimedJob,
        r#"with recursive ready_projects (project_id) as (
               (select project_id from jobs where state = 'ready' order by project_id limit 1)
               union all
               select (select j.project_id from jobs j
                       where j.state = 'ready' and j.project_id > p.project_id order by j.project_id limit 1)
               from ready_projects p where p.project_id is not null
           ),
           busy as (
               select project_id, count(*) as jobs, count(*) filter (where kind = any($5)) as model_jobs
               from jobs where state = 'running' group by project_id
           ),
           due as (
               select d.id, d.run_at, c.calls_model,
                      row_number() over (partition by d.project_id order by d.run_at, d.id)
                          + coalesce(busy.jobs, 0) as fair_rank,
                      row_number() over (partition by d.project_id, c.calls_model order by d.run_at, d.id)
                          + coalesce(busy.model_jobs, 0) as model_rank,
                      row_number() over (partition by coalesce(d.lane, d.id::text) order by d.run_at, d.id) as lane_rank
               from ready_projects p
               cross join (values (false, $2::text[]), (true, $5::text[])) as c(calls_model, kinds)
               cross join lateral (
                   select j.id, j.project_id, j.run_at, j.lane from jobs j
                   where j.state = 'ready' and j.project_id = p.project_id and j.run_at <= now()
                     and j.kind = any(c.kinds)
                     and not exists (select 1 from jobs r where r.state = 'running' and r.lane = j.lane)
                   order by j.run_at, j.id limit $3
               ) d
               left join busy on busy.project_id = d.project_id
           ),
           eligible as (
               select id, run_at, fair_rank, calls_model,
                      row_number() over (partition by calls_model order by model_rank, run_at, id) as worker_rank
               from due where lane_rank = 1 and (not calls_model or model_rank <= $6)
           ),
           -- Skips rows that a request has locked to enqueue a duplicate, so that the claim does not wait for it.
           claimed as (
               select r.id from jobs r join eligible e on e.id = r.id
               where r.state = 'ready' and (not e.calls_model or e.worker_rank <= $7)
               order by e.fair_rank, e.run_at, e.id limit $3
               for update of r skip locked
           )
           update jobs j
           set state = 'running', attempt = j.attempt + 1, worker_id = $1, lease_expires_at = now() + $4::interval,
               wait_reason = null, updated_at = now()
           from claimed where j.id = claimed.id and j.state = 'ready'
           returning j.id as "id: JobId", j.project_id as "project: ProjectId", j.kind, j.payload, j.lane, j.attempt,
                     j.encrypted_kek, j.traceparent"#,
        worker_id,
        &request.kinds.other,
        as_i64(request.limit),
        interval(request.lease) as _,
        &request.kinds.calling_model,
        as_i64(request.max_model_jobs_per_project),
        as_i64(request.max_new_model_jobs),
    )
    .fetch_all(conn)
    .await?;
    Ok(Claim { jobs, claimed_at })
}

/// Makes the commit of a claim asynchronous, and waits until no other worker claims jobs. Returns the time of the transaction.
async fn prepare_claim(conn: &mut PgConnection) -> sqlx::Result<Timestamp> {
    let time =
        sqlx::query_scalar!(r#"select now() as "now!: Timestamp" from set_config('synchronous_commit', 'off', true)"#)
            .fetch_one(&mut *conn)
            .await?;
    sqlx::query!("select pg_advisory_xact_lock(hashtext('acontextd claim jobs'))").fetch_one(conn).await?;
    Ok(time)
}

/// Returns the time until the next of the ready jobs of these kinds that were not due at the time `since` is due: zero if it is
/// due already, `None` if there is no such job.
pub async fn time_until_due(
    conn: &mut PgConnection,
    kinds: &[String],
    since: Timestamp,
) -> sqlx::Result<Option<Duration>> {
    let seconds = sqlx::query_scalar!(
        r#"select extract(epoch from min(run_at) - now())::float8 as seconds from jobs
           where state = 'ready' and run_at > $2 and kind = any($1)"#,
        kinds,
        since as _,
    )
    .fetch_one(conn)
    .await?;
    Ok(seconds.map(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default()))
}

/// Renews the leases of these jobs, and returns the ids of the jobs that this worker still owns. If another transaction has
/// locked a job, for example to complete it, the lease is not renewed, but the id is returned.
pub async fn renew_leases(
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

/// Locks a job for a share of the transaction. Returns `false` if this worker does not own the job or the job does not exist.
pub async fn lock_owned(conn: &mut PgConnection, job: JobId, worker_id: Uuid) -> sqlx::Result<bool> {
    let row = sqlx::query!("select id from jobs where id = $1 and worker_id = $2 for share", job as _, worker_id);
    Ok(row.fetch_optional(conn).await?.is_some())
}

/// Makes the current attempt of a running job the first one, and clears the error of the last attempt. Returns `false` if this
/// worker does not own the job or the job does not exist.
pub async fn restart_attempts(conn: &mut PgConnection, job: JobId, worker_id: Uuid) -> sqlx::Result<bool> {
    let update = sqlx::query!(
        "update jobs set attempt = 1, last_error = null, error_class = null, updated_at = now()
         where id = $1 and worker_id = $2",
        job as _,
        worker_id,
    );
    Ok(update.execute(conn).await?.rows_affected() == 1)
}

/// Deletes a completed job. Returns `false` if this worker does not own the job or the job does not exist.
pub async fn complete(conn: &mut PgConnection, job: JobId, worker_id: Uuid) -> sqlx::Result<bool> {
    let delete = sqlx::query!("delete from jobs where id = $1 and worker_id = $2", job as _, worker_id);
    Ok(delete.execute(conn).await?.rows_affected() == 1)
}

/// Deletes jobs that failed longer ago than `age`. Returns their number.
pub async fn delete_failed(conn: &mut PgConnection, age: Duration) -> sqlx::Result<u64> {
    let delete = sqlx::query!(
        "delete from jobs where state = 'failed' and updated_at < now() - $1::interval",
        interval(age) as _
    );
    Ok(delete.execute(conn).await?.rows_affected())
}

/// The number and the age of the jobs with one kind and state.
pub struct JobCount {
    pub kind: String,
    pub state: JobState,
    pub count: i64,
    /// Seconds since the earliest due time (`run_at`) of these jobs; 0 if this time is in the future. Running and failed jobs
    /// also have a due time.
    pub oldest_due_seconds: i64,
}

/// Counts the jobs of each kind and state.
pub async fn count_by_kind_and_state(conn: &mut PgConnection) -> sqlx::Result<Vec<JobCount>> {
    sqlx::query_as!(
        JobCount,
        r#"select kind, state as "state: JobState", count(*) as "count!",
                  greatest(extract(epoch from now() - min(run_at)), 0)::bigint as "oldest_due_seconds!"
           from jobs group by kind, state"#
    )
    .fetch_all(conn)
    .await
}
