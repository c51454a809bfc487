//! SQL of the commands of sandboxes.

use sqlx::PgConnection;
use uuid::Uuid;

use super::provider::{CommandEnd, CommandOutput};
use crate::encryption::stored_text::{StaleText, StoredText};
use crate::ids::{ProjectId, SandboxCommandId, SandboxId};
use crate::time::Timestamp;

/// Inserts a command that is about to run. Returns `false` if a command of the same request exists.
pub async fn insert(
    conn: &mut PgConnection,
    project: ProjectId,
    sandbox: SandboxId,
    id: SandboxCommandId,
    command: &StoredText,
    request_hash: Option<&[u8]>,
) -> sqlx::Result<bool> {
    let insert = sqlx::query!(
        "insert into sandbox_commands (id, sandbox_id, project_id, command, encrypted_as, request_hash)
         values ($1, $2, $3, $4, $5, $6) on conflict (request_hash) do nothing",
        id as _,
        sandbox as _,
        project as _,
        command.content,
        command.encrypted_as,
        request_hash,
    );
    Ok(insert.execute(conn).await?.rows_affected() == 1)
}

/// Returns whether the command of a request has not ended.
pub async fn is_running(conn: &mut PgConnection, request_hash: Option<&[u8]>) -> sqlx::Result<bool> {
    let is_running = sqlx::query_scalar!(
        r#"select exists (select 1 from sandbox_commands where request_hash = $1 and ended_at is null) as "is_running!""#,
        request_hash
    );
    is_running.fetch_one(conn).await
}

/// Records how a command has ended.
pub async fn finish(conn: &mut PgConnection, id: SandboxCommandId, output: &CommandOutput) -> sqlx::Result<()> {
    sqlx::query!(
        "update sandbox_commands
         set ended_at = clock_timestamp(), exit_code = $2, end_reason = $3, stdout_bytes = $4, stderr_bytes = $5
         where id = $1 and ended_at is null",
        id as _,
        output.exit_code,
        output.end as _,
        i64::try_from(output.stdout.total_bytes).unwrap_or(i64::MAX),
        i64::try_from(output.stderr.total_bytes).unwrap_or(i64::MAX),
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Records that a command was started, and that it is not known how it has ended.
pub async fn interrupt(conn: &mut PgConnection, id: SandboxCommandId) -> sqlx::Result<()> {
    sqlx::query!(
        "update sandbox_commands set ended_at = clock_timestamp(), exit_code = 137, end_reason = 'interrupted'
         where id = $1 and ended_at is null",
        id as _,
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Deletes a command that could not be run.
pub async fn delete(conn: &mut PgConnection, id: SandboxCommandId) -> sqlx::Result<()> {
    sqlx::query!("delete from sandbox_commands where id = $1", id as _).execute(conn).await.map(drop)
}

/// Marks commands as interrupted that started before `before` and have not ended: those of sandboxes on `host`, or of remote
/// providers if `host` is `None`.
pub async fn interrupt_lost(conn: &mut PgConnection, host: Option<Uuid>, before: Timestamp) -> sqlx::Result<u64> {
    let update = sqlx::query!(
        "update sandbox_commands c set ended_at = now(), exit_code = 137, end_reason = 'interrupted'
         from sandboxes s
         where s.id = c.sandbox_id and c.ended_at is null and c.started_at < $2 and s.host_id is not distinct from $1",
        host,
        before.0,
    );
    Ok(update.execute(conn).await?.rows_affected())
}

/// A command that has ended.
#[derive(Debug)]
pub struct CommandRow {
    pub sandbox: SandboxId,
    pub command: StoredText,
    pub exit_code: i32,
    pub end_reason: CommandEnd,
    pub started_at: Timestamp,
    pub ended_at: Timestamp,
    pub stdout_bytes: i64,
    pub stderr_bytes: i64,
}

/// Lists the last `limit` commands of each of these sandboxes that have ended, in the order in which they started.
pub async fn list(conn: &mut PgConnection, sandboxes: &[SandboxId], limit: i64) -> sqlx::Result<Vec<CommandRow>> {
    let rows = sqlx::query!(
        r#"select c.sandbox_id as "sandbox_id: SandboxId", c.command, c.encrypted_as, c.exit_code as "exit_code!",
                  c.end_reason as "end_reason!: CommandEnd", c.started_at as "started_at: Timestamp",
                  c.ended_at as "ended_at!: Timestamp", coalesce(c.stdout_bytes, 0) as "stdout_bytes!",
                  coalesce(c.stderr_bytes, 0) as "stderr_bytes!"
           from unnest($1::uuid[]) as s (id)
           cross join lateral (select * from sandbox_commands c where c.sandbox_id = s.id and c.ended_at is not null
                               order by c.id desc limit $2) c
           order by c.sandbox_id, c.id"#,
        sandboxes as _,
        limit,
    );
    let rows = rows.map(|row| CommandRow {
        sandbox: row.sandbox_id,
        command: StoredText { content: row.command, encrypted_as: row.encrypted_as },
        exit_code: row.exit_code,
        end_reason: row.end_reason,
        started_at: row.started_at,
        ended_at: row.ended_at,
        stdout_bytes: row.stdout_bytes,
        stderr_bytes: row.stderr_bytes,
    });
    rows.fetch_all(conn).await
}

/// Counts the commands of a project that are not stored in the given storage format.
pub async fn count_remaining(conn: &mut PgConnection, project: ProjectId, encrypted: bool) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"select count(*) as "count!" from sandbox_commands where project_id = $1 and (encrypted_as is null) = $2"#,
        project as _,
        encrypted
    )
    .fetch_one(conn)
    .await
}

/// Locks up to `limit` commands after `after` whose storage format is not the given one, in the order of their ids.
pub async fn lock_remaining(
    conn: &mut PgConnection,
    project: ProjectId,
    encrypted: bool,
    after: Uuid,
    limit: i64,
) -> sqlx::Result<Vec<StaleText>> {
    let texts = sqlx::query!(
        "select id, command, encrypted_as from sandbox_commands
         where project_id = $1 and (encrypted_as is null) = $2 and id > $3 order by id limit $4 for no key update",
        project as _,
        encrypted,
        after,
        limit
    );
    let texts = texts
        .map(|row| StaleText { id: row.id, text: StoredText { content: row.command, encrypted_as: row.encrypted_as } });
    texts.fetch_all(conn).await
}

/// Replaces the stored form of a command.
pub async fn set_text(conn: &mut PgConnection, id: Uuid, command: &StoredText) -> sqlx::Result<()> {
    sqlx::query!(
        "update sandbox_commands set command = $2, encrypted_as = $3 where id = $1",
        id,
        command.content,
        command.encrypted_as
    )
    .execute(conn)
    .await
    .map(drop)
}
