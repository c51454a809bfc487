//! SQL of sandboxes. That of their commands is in [`command_store`](super::command_store).

use std::time::Duration;

use sqlx::PgConnection;
use uuid::Uuid;

use super::provider::ProviderName;
use crate::db::page::{PageRequest, fetch_page, impl_paged};
use crate::ids::{ProjectId, SandboxId};
use crate::text_enum::text_enum;
use crate::time::Timestamp;

text_enum! {
    /// The state of a sandbox. A sandbox that is starting does not exist for clients yet.
    pub enum SandboxState {
        Starting = "starting",
        Running = "running",
        Ended = "ended",
    }
}

/// A sandbox that is to be created.
pub struct NewSandbox {
    pub id: SandboxId,
    pub project: ProjectId,
    pub provider: ProviderName,
    pub host: Option<Uuid>,
    pub keepalive: Duration,
}

/// Inserts a sandbox that is starting. Returns `false` if the project has `max_live` sandboxes.
pub async fn insert(conn: &mut PgConnection, sandbox: &NewSandbox, max_live: i64) -> sqlx::Result<bool> {
    // Two concurrent requests must not both create the last sandbox.
    sqlx::query!(
        "select pg_advisory_xact_lock(hashtext('acontextd sandboxes'), hashtext($1::text))",
        sandbox.project.to_string()
    )
    .fetch_one(&mut *conn)
    .await?;
    let insert = sqlx::query!(
        "insert into sandboxes (id, project_id, provider, host_id, alive_seconds, expires_at)
         select $1, $2, $3, $4, round($5::float8)::bigint, now() + make_interval(secs => $5::float8)
         where (select count(*) from sandboxes where project_id = $2 and state <> 'ended') < $6",
        sandbox.id as _,
        sandbox.project as _,
        sandbox.provider as _,
        sandbox.host,
        seconds(sandbox.keepalive),
        max_live,
    );
    Ok(insert.execute(conn).await?.rows_affected() == 1)
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

/// Deletes a sandbox that could not be created.
pub async fn delete_starting(conn: &mut PgConnection, sandbox: SandboxId) -> sqlx::Result<()> {
    sqlx::query!("delete from sandboxes where id = $1 and state = 'starting'", sandbox as _)
        .execute(conn)
        .await
        .map(drop)
}

/// A sandbox that exists.
#[derive(Debug)]
pub struct LiveSandbox {
    pub id: SandboxId,
    pub provider: ProviderName,
    /// The id by which the provider knows it.
    pub provider_sandbox_id: String,
    /// The data directory that has its files.
    pub host: Option<Uuid>,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
}

/// Marks a sandbox as running. Returns `None` if it has been ended in the meantime.
pub async fn mark_running(
    conn: &mut PgConnection,
    sandbox: SandboxId,
    provider_sandbox_id: &str,
) -> sqlx::Result<Option<LiveSandbox>> {
    sqlx::query_as!(
        LiveSandbox,
        r#"update sandboxes set state = 'running', provider_sandbox_id = $2, updated_at = now()
           where id = $1 and state = 'starting'
           returning id as "id: SandboxId", provider as "provider: ProviderName",
                     provider_sandbox_id as "provider_sandbox_id!", host_id as host, created_at as "created_at: Timestamp",
                     expires_at as "expires_at: Timestamp""#,
        sandbox as _,
        provider_sandbox_id,
    )
    .fetch_optional(conn)
    .await
}

/// Returns a sandbox of a project that is running and has not expired.
pub async fn get(conn: &mut PgConnection, project: ProjectId, sandbox: SandboxId) -> sqlx::Result<Option<LiveSandbox>> {
    sqlx::query_as!(
        LiveSandbox,
        r#"select id as "id: SandboxId", provider as "provider: ProviderName",
                  provider_sandbox_id as "provider_sandbox_id!", host_id as host, created_at as "created_at: Timestamp",
                  expires_at as "expires_at: Timestamp"
           from sandboxes where id = $1 and project_id = $2 and state = 'running' and expires_at > now()"#,
        sandbox as _,
        project as _,
    )
    .fetch_optional(conn)
    .await
}

/// Ensures that a sandbox lives at least until `lifetime` from now, and returns it. Returns `None` if it is not running.
pub async fn begin_call(
    conn: &mut PgConnection,
    project: ProjectId,
    sandbox: SandboxId,
    lifetime: Duration,
) -> sqlx::Result<Option<LiveSandbox>> {
    sqlx::query_as!(
        LiveSandbox,
        r#"update sandboxes set expires_at = greatest(expires_at, now() + make_interval(secs => $3)), updated_at = now()
           where id = $1 and project_id = $2 and state = 'running' and expires_at > now()
           returning id as "id: SandboxId", provider as "provider: ProviderName",
                     provider_sandbox_id as "provider_sandbox_id!", host_id as host, created_at as "created_at: Timestamp",
                     expires_at as "expires_at: Timestamp""#,
        sandbox as _,
        project as _,
        seconds(lifetime),
    )
    .fetch_optional(conn)
    .await
}

/// Locks a running sandbox, and returns its counted life in seconds. A statement of its own, because a statement that locks a row
/// and changes it can deadlock with another one.
async fn lock(conn: &mut PgConnection, project: ProjectId, sandbox: SandboxId) -> sqlx::Result<Option<i64>> {
    sqlx::query_scalar!(
        "select alive_seconds from sandboxes where id = $1 and project_id = $2 and state = 'running' for no key update",
        sandbox as _,
        project as _,
    )
    .fetch_optional(conn)
    .await
}

/// Lets a sandbox live until `lifetime` from now, unless a call that is in progress needs it for longer. Returns by how many
/// seconds its counted life has grown, or `None` if it is not running.
pub async fn set_lifetime(
    conn: &mut PgConnection,
    project: ProjectId,
    sandbox: SandboxId,
    lifetime: Duration,
) -> sqlx::Result<Option<i64>> {
    let Some(before) = lock(conn, project, sandbox).await? else { return Ok(None) };
    let after = sqlx::query_scalar!(
        "update sandboxes s
         set expires_at = case when exists (select 1 from sandbox_commands c where c.sandbox_id = s.id and c.ended_at is null)
                               then s.expires_at else now() + make_interval(secs => $2) end,
             updated_at = now(),
             alive_seconds = greatest(s.alive_seconds, round($2 + extract(epoch from now() - s.created_at))::bigint)
         where s.id = $1 returning s.alive_seconds",
        sandbox as _,
        seconds(lifetime),
    );
    Ok(Some(after.fetch_one(conn).await? - before))
}

/// Marks a running sandbox of a project as ended. Returns by how many seconds its counted life has grown, which is negative, because
/// it ends early, or `None` if it is not running.
pub async fn end(conn: &mut PgConnection, project: ProjectId, sandbox: SandboxId) -> sqlx::Result<Option<i64>> {
    let Some(before) = lock(conn, project, sandbox).await? else { return Ok(None) };
    let after = sqlx::query_scalar!(
        "update sandboxes s
         set state = 'ended', provider_sandbox_id = null, ended_at = now(), updated_at = now(),
             alive_seconds = round(extract(epoch from now() - s.created_at))::bigint
         where s.id = $1 returning s.alive_seconds",
        sandbox as _,
    );
    Ok(Some(after.fetch_one(conn).await? - before))
}

/// A sandbox that was marked as ended, because its time was over.
#[derive(Debug)]
pub struct EndedSandbox {
    pub id: SandboxId,
    pub project: ProjectId,
    pub provider: ProviderName,
    /// `None` if it had not been created.
    pub provider_sandbox_id: Option<String>,
    /// By how many seconds its counted life has grown.
    pub grown: i64,
}

/// Marks up to `limit` sandboxes as ended whose time is over: those of remote providers, those of `host`, and those of other hosts
/// that have not ended them for an hour.
pub async fn end_expired(conn: &mut PgConnection, host: Option<Uuid>, limit: i64) -> sqlx::Result<Vec<EndedSandbox>> {
    sqlx::query_as!(
        EndedSandbox,
        r#"with old as (
               select id, alive_seconds, provider_sandbox_id from sandboxes
               where state <> 'ended' and expires_at <= now()
                 and (host_id is null or host_id = $1 or expires_at <= now() - interval '1 hour')
               order by expires_at limit $2 for no key update skip locked
           )
           update sandboxes s
           set state = 'ended', provider_sandbox_id = null, ended_at = now(), updated_at = now(),
               alive_seconds = round(extract(epoch from now() - s.created_at))::bigint
           from old where s.id = old.id
           returning s.id as "id: SandboxId", s.project_id as "project: ProjectId", s.provider as "provider: ProviderName",
                     old.provider_sandbox_id, s.alive_seconds - old.alive_seconds as "grown!""#,
        host,
        limit,
    )
    .fetch_all(conn)
    .await
}

/// Returns those of `sandboxes` that have ended, or whose project was deleted.
pub async fn list_ended(conn: &mut PgConnection, sandboxes: &[SandboxId]) -> sqlx::Result<Vec<SandboxId>> {
    sqlx::query_scalar!(
        r#"select c.id as "id!: SandboxId" from unnest($1::uuid[]) as c (id)
           where not exists (select 1 from sandboxes s where s.id = c.id and s.state <> 'ended')"#,
        sandboxes as _,
    )
    .fetch_all(conn)
    .await
}

/// Records the path of a file that was copied out of a sandbox.
pub async fn add_generated_file(conn: &mut PgConnection, sandbox: SandboxId, path: &str) -> sqlx::Result<()> {
    sqlx::query!(
        "update sandboxes set generated_files = generated_files || $2::text where id = $1 and cardinality(generated_files) < 1000",
        sandbox as _,
        path
    )
    .execute(conn)
    .await
    .map(drop)
}

/// A sandbox with what was done in it, without its commands.
#[derive(Debug)]
pub struct SandboxLogRow {
    pub id: SandboxId,
    pub project_id: ProjectId,
    pub provider: ProviderName,
    pub provider_sandbox_id: Option<String>,
    pub alive_seconds: i64,
    pub generated_files: Vec<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub ended_at: Option<Timestamp>,
}

impl_paged!(SandboxLogRow);

macro_rules! select_logs {
    ($($rest:literal)+; $($parameter:expr),* $(,)?) => {
        sqlx::query_as!(
            SandboxLogRow,
            r#"select t.id as "id: SandboxId", t.project_id as "project_id: ProjectId", t.provider as "provider: ProviderName",
                      t.provider_sandbox_id, t.alive_seconds, t.generated_files, t.created_at as "created_at: Timestamp",
                      t.updated_at as "updated_at: Timestamp", t.ended_at as "ended_at: Timestamp"
               from "# $(+ $rest)+,
            $($parameter),*
        )
    };
}

/// Lists the sandboxes of a project that have been created.
pub async fn list_logs(
    conn: &mut PgConnection,
    project: ProjectId,
    page: &PageRequest,
) -> sqlx::Result<Vec<SandboxLogRow>> {
    fetch_page!(select_logs!("sandboxes t where t.project_id = $4 and t.state <> 'starting'"; project as _), conn, page)
}
