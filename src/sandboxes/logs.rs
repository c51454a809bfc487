//! The handler that lists what was done in sandboxes.

use std::collections::HashMap;

use axum::extract::State;
use serde::Serialize;

use super::Sandboxes;
use super::command_store::{self, CommandRow};
use super::provider::{CommandEnd, ProviderName};
use super::store::{self, SandboxLogRow};
use crate::auth::Caller;
use crate::db::page::{Cursor, Paged};
use crate::encryption::ProjectEncryption;
use crate::error::Result;
use crate::http::extract::Query;
use crate::http::page::{Page, PageParams};
use crate::http::response::{self, PageBody, QueryResult};
use crate::ids::{ProjectId, SandboxId};
use crate::time::Timestamp;

/// The number of commands that the log of a sandbox has.
const MAX_COMMANDS: i64 = 1000;
/// The number of sandboxes whose commands one query reads.
const BATCH_LEN: usize = 8;
/// The length of the commands in bytes after which a page ends early.
const MAX_PAGE_BYTES: usize = 16 << 20;

/// A sandbox, also after it has ended, with what was done in it.
#[derive(Serialize, utoipa::ToSchema)]
pub struct SandboxLog {
    id: SandboxId,
    project_id: ProjectId,
    /// The id by which the provider knows the sandbox; null after it has ended.
    backend_sandbox_id: Option<String>,
    backend_type: ProviderName,
    /// The commands that have ended, at most the last 1000, in the order in which they started.
    history_commands: Vec<CommandLog>,
    /// The files that were copied to a disk.
    generated_files: Vec<GeneratedFile>,
    /// How long the sandbox has lived, or will live if it gets no further call, in seconds.
    will_total_alive_seconds: i64,
    created_at: Timestamp,
    updated_at: Timestamp,
    /// Absent while the sandbox is running.
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<Timestamp>,
}

/// A command that has ended.
#[derive(Serialize, utoipa::ToSchema)]
pub struct CommandLog {
    /// The command; the first 4096 bytes of it.
    command: String,
    exit_code: i32,
    end_reason: CommandEnd,
    started_at: Timestamp,
    ended_at: Timestamp,
    duration_ms: i64,
    /// The number of bytes that the command has written to its standard output.
    stdout_bytes: i64,
    /// The number of bytes that the command has written to its standard error.
    stderr_bytes: i64,
}

/// A file that was copied from a sandbox to a disk.
#[derive(Serialize, utoipa::ToSchema)]
pub struct GeneratedFile {
    #[schema(example = "/workspace/report.pdf")]
    sandbox_path: String,
}

/// List sandboxes and what was done in them
///
/// Also returns sandboxes that have ended.
#[utoipa::path(get, path = "/api/v1/sandbox/logs", tag = "sandbox", params(PageParams))]
pub async fn list_sandbox_logs(
    State(ctx): State<Sandboxes>,
    caller: Caller,
    Query(page): Query<PageParams>,
) -> QueryResult<PageBody<SandboxLog>> {
    let page = page.parse(20, 200)?;
    let mut conn = ctx.db.acquire().await?;
    let rows = Page::new(store::list_logs(&mut conn, caller.project, &page).await?, &page);
    let (mut logs, mut bytes) = (Vec::new(), 0);
    let ids: Vec<SandboxId> = rows.items.iter().map(|row| row.id).collect();
    let mut items = rows.items.into_iter();
    for batch in ids.chunks(BATCH_LEN) {
        let commands = command_store::list(&mut conn, batch, MAX_COMMANDS).await?;
        let mut commands_of: HashMap<SandboxId, Vec<CommandLog>> = HashMap::new();
        for row in commands {
            bytes += row.command.content.len();
            commands_of.entry(row.sandbox).or_default().push(CommandLog::from_row(row, &caller.encryption)?);
        }
        for row in items.by_ref().take(batch.len()) {
            let commands = commands_of.remove(&row.id).unwrap_or_default();
            logs.push(SandboxLog::from_row(row, commands));
        }
        if bytes > MAX_PAGE_BYTES {
            break;
        }
    }
    drop(conn);
    let read = logs.len();
    let page = Page { items: logs, next_cursor: rows.next_cursor, has_more: rows.has_more, cursors: rows.cursors };
    Ok(response::page(&if read < ids.len() { page.truncate_to(read) } else { page }))
}

impl CommandLog {
    fn from_row(row: CommandRow, encryption: &ProjectEncryption) -> Result<Self> {
        Ok(Self {
            command: row.command.decrypt(encryption)?,
            exit_code: row.exit_code,
            end_reason: row.end_reason,
            started_at: row.started_at,
            ended_at: row.ended_at,
            duration_ms: (row.ended_at.0 - row.started_at.0).num_milliseconds().max(0),
            stdout_bytes: row.stdout_bytes,
            stderr_bytes: row.stderr_bytes,
        })
    }
}

impl SandboxLog {
    fn from_row(row: SandboxLogRow, commands: Vec<CommandLog>) -> Self {
        let files = row.generated_files.into_iter().map(|sandbox_path| GeneratedFile { sandbox_path });
        Self {
            id: row.id,
            project_id: row.project_id,
            backend_sandbox_id: row.provider_sandbox_id,
            backend_type: row.provider,
            history_commands: commands,
            generated_files: files.collect(),
            will_total_alive_seconds: row.alive_seconds,
            created_at: row.created_at,
            updated_at: row.updated_at,
            ended_at: row.ended_at,
        }
    }
}

impl Paged for SandboxLog {
    fn cursor(&self) -> Cursor {
        Cursor { created_at: self.created_at.0, id: self.id.0 }
    }
}
