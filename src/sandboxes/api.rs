//! HTTP handlers for sandboxes and their commands.

use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use serde::{Deserialize, Serialize};

use super::provider::{CommandEnd, CommandOutput, ProviderError, ProviderName};
use super::store::{self, NewSandbox};
use super::{SANDBOX_NOT_FOUND, Sandboxes, command_store, expiry};
use crate::auth::Caller;
use crate::config::Limits;
use crate::encryption::StorageFormat;
use crate::encryption::stored_text::StoredText;
use crate::error::{Error, MapConstraint, Result, UNAUTHORIZED};
use crate::http::extract::{Json, Path, RequestBody};
use crate::http::idempotency::Idempotency;
use crate::http::middleware::TimeLimit;
use crate::http::response::{self, CommandResult, Created, Data, HandlerError};
use crate::ids::{SandboxCommandId, SandboxId};
use crate::text_enum::text_enum;
use crate::time::Timestamp;
use crate::usage_metrics::store::{SANDBOX_ALIVE_TAG, increment};

/// The part of a command that is stored, in bytes. Commands can contain whole files.
const MAX_STORED_COMMAND_LEN: usize = 4096;
/// How long to wait before the end of a command is stored again, because the database was busy. Otherwise its output would be lost.
const STORE_RETRY_DELAYS: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(500), Duration::from_secs(2)];
const COMMAND_RUNNING: &str =
    "Idempotency-Key: the command of this key is still running; send the request again when it has ended";
const COMMAND_INTERRUPTED: &str =
    "Idempotency-Key: the command of this key was interrupted, and is not run again; use another key to run it again";

text_enum! {
    /// The status of a sandbox.
    pub enum SandboxStatus {
        Running = "running",
    }
}

#[derive(Serialize, utoipa::ToSchema)]
#[expect(clippy::struct_field_names, reason = "the names of the JSON fields")]
pub struct CreateSandboxResponse {
    sandbox_id: SandboxId,
    sandbox_status: SandboxStatus,
    sandbox_created_at: Timestamp,
    /// When the sandbox ends if it gets no further call.
    sandbox_expires_at: Timestamp,
}

/// Create a sandbox
///
/// Commands of all clients of the project can run in it, with a file system of its own. It ends some time after the last call, by
/// default 600 seconds.
#[utoipa::path(post, path = "/api/v1/sandbox", tag = "sandbox")]
pub async fn create_sandbox(
    State(ctx): State<Sandboxes>,
    caller: Caller,
    idempotency: Idempotency,
) -> CommandResult<Created<CreateSandboxResponse>> {
    idempotency.replay_if_completed().await?;
    let (provider, keepalive) = (ctx.provider()?, ctx.keepalive());
    let id = SandboxId::new();
    let host = provider.host().await.map_err(Error::from)?;
    let sandbox = NewSandbox { id, project: caller.project, provider: provider.name(), host, keepalive };
    let max_live = ctx.config.sandbox.max_live;
    let mut tx = ctx.db.begin().await?;
    let is_inserted = store::insert(&mut tx, &sandbox, i64::try_from(max_live).unwrap_or(i64::MAX))
        .await
        .map_constraint_err("sandboxes_project_id_fkey", || UNAUTHORIZED)?;
    tx.commit().await?;
    if !is_inserted {
        let msg = format!(
            "the project already has {max_live} sandboxes; kill one, or wait until one ends (the limit is ACONTEXTD_SANDBOXES)"
        );
        return Err(Error::bad_request(msg).into());
    }
    // If the process dies here, `expiry` ends the sandbox.
    let provider_id = match provider.create(id, keepalive).await {
        Ok(provider_id) => provider_id,
        Err(err) => {
            expiry::discard(&ctx, id).await?;
            return Err(Error::from(err).into());
        }
    };
    let recorded = record_creation(&ctx, &caller, &idempotency, id, &provider_id).await;
    if recorded.is_err() {
        // Another request with the same idempotency key has created a sandbox, or the database has failed.
        let ended = provider.end(&provider_id).await.map_err(Error::from);
        expiry::discard(&ctx, id).await.and(ended)?;
    }
    recorded
}

async fn record_creation(
    ctx: &Sandboxes,
    caller: &Caller,
    idempotency: &Idempotency,
    id: SandboxId,
    provider_id: &str,
) -> CommandResult<Created<CreateSandboxResponse>> {
    let mut tx = idempotency.begin().await?;
    let sandbox = store::mark_running(&mut tx, id, provider_id).await?.ok_or(SANDBOX_NOT_FOUND)?;
    let keepalive = i64::try_from(ctx.keepalive().as_secs()).unwrap_or(i64::MAX);
    increment(&mut tx, caller.project, SANDBOX_ALIVE_TAG, keepalive).await?;
    let response = CreateSandboxResponse {
        sandbox_id: sandbox.id,
        sandbox_status: SandboxStatus::Running,
        sandbox_created_at: sandbox.created_at,
        sandbox_expires_at: sandbox.expires_at,
    };
    tx.commit(response::created(response)).await
}

#[derive(Deserialize, utoipa::ToSchema)]
pub struct RunCommandRequest {
    /// The shell command. It starts in `/workspace`.
    #[schema(example = "python3 -c 'print(6 * 7)'")]
    #[serde(default)]
    command: String,
}

impl RequestBody for RunCommandRequest {
    const HAS_FREE_FORM_OBJECT: bool = true;

    fn max_bytes(limits: &Limits) -> u64 {
        // Leaves room for escape sequences.
        limits.max_command_bytes.saturating_mul(4).max(64 * 1024)
    }
}

#[derive(Serialize, utoipa::ToSchema)]
pub struct RunCommandResponse {
    /// The standard output. If it was too long, a line in the middle says how much was omitted. What is not UTF-8 is replaced with
    /// U+FFFD; copy a file to a disk for its exact content.
    stdout: String,
    /// The standard error, in the same form. If the command was killed, the last line says why.
    stderr: String,
    /// 0 if the command succeeded. If it was killed, 124 if it took too long, otherwise 137.
    exit_code: i32,
    end_reason: CommandEnd,
    /// The number of bytes that were omitted from `stdout`.
    stdout_omitted_bytes: u64,
    /// The number of bytes that were omitted from `stderr`.
    stderr_omitted_bytes: u64,
}

impl From<&CommandOutput> for RunCommandResponse {
    fn from(output: &CommandOutput) -> Self {
        Self {
            stdout: output.stdout.text.clone(),
            stderr: output.stderr.text.clone(),
            exit_code: output.exit_code,
            end_reason: output.end,
            stdout_omitted_bytes: output.stdout.omitted_bytes,
            stderr_omitted_bytes: output.stderr.omitted_bytes,
        }
    }
}

/// Run a command in a sandbox
///
/// Waits until the command ends, by default up to 120 seconds. Its processes end with it; its files stay. A command that fails is
/// a 200 with its exit code. If the client disconnects, the command continues. A request with an idempotency key runs its command
/// at most once, and returns its result again if it is repeated.
#[utoipa::path(post, path = "/api/v1/sandbox/{sandbox_id}/exec", tag = "sandbox", params(("sandbox_id" = SandboxId, Path)),
    request_body = RunCommandRequest)]
pub async fn run_command(
    State(ctx): State<Sandboxes>,
    caller: Caller,
    idempotency: Idempotency,
    Extension(time_limit): Extension<TimeLimit>,
    Path(sandbox): Path<SandboxId>,
    Json(body): Json<RunCommandRequest>,
) -> CommandResult<Data<RunCommandResponse>> {
    let command = validate_command(body.command, ctx.config.limits.max_command_bytes)?;
    idempotency.replay_if_completed().await?;
    let timeout = ctx.config.sandbox.command_timeout;
    time_limit.extend(timeout);
    let (live, call) = ctx.begin_call(caller.project, sandbox, timeout).await?;
    let provider = ctx.provider_of(&live).await?;
    let id = begin_command(&ctx, &caller, &idempotency, sandbox, &command).await?;
    let output = provider.run_command(&live.provider_sandbox_id, &command, ctx.keepalive()).await;
    drop(call);
    match output {
        Ok(output) => {
            for delay in STORE_RETRY_DELAYS {
                match store_output(&ctx, &caller, &idempotency, sandbox, (id, &output)).await {
                    Err(HandlerError::Error(err @ Error::Unavailable { .. })) => {
                        tracing::warn!(error = %err, "cannot store the end of a command; trying again");
                        tokio::time::sleep(delay).await;
                    }
                    result => return result,
                }
            }
            store_output(&ctx, &caller, &idempotency, sandbox, (id, &output)).await
        }
        Err(err) => {
            let mut conn = ctx.db.acquire().await?;
            // The local provider is only unavailable before it starts a command.
            let was_started = match &err {
                ProviderError::Ended => false,
                ProviderError::Unavailable { .. } => live.provider != ProviderName::Local,
                _ => true,
            };
            if was_started {
                command_store::interrupt(&mut conn, id).await?;
            } else {
                command_store::delete(&mut conn, id).await?;
            }
            drop(conn);
            Err(ctx.provider_error(caller.project, sandbox, err).await.into())
        }
    }
}

/// Records how a command has ended, and the end of the call.
async fn store_output(
    ctx: &Sandboxes,
    caller: &Caller,
    idempotency: &Idempotency,
    sandbox: SandboxId,
    (id, output): (SandboxCommandId, &CommandOutput),
) -> CommandResult<Data<RunCommandResponse>> {
    let mut tx = idempotency.begin().await?;
    command_store::finish(&mut tx, id, output).await?;
    ctx.end_call(&mut tx, caller.project, sandbox).await?;
    tx.commit(response::ok(RunCommandResponse::from(output))).await
}

fn validate_command(command: String, max_bytes: u64) -> Result<String> {
    if command.is_empty() {
        return Err(Error::invalid_field("command", "is required"));
    }
    if command.contains('\0') {
        return Err(Error::invalid_field("command", "must not contain the character NUL"));
    }
    if command.len() as u64 > max_bytes {
        return Err(Error::PayloadTooLarge(format!(
            "command: has more than {max_bytes} bytes; upload the content to a disk, and copy it to the sandbox"
        )));
    }
    Ok(command)
}

/// Records that a command is about to run.
///
/// # Errors
/// Returns 409 if a request with the same idempotency key has started it before.
async fn begin_command(
    ctx: &Sandboxes,
    caller: &Caller,
    idempotency: &Idempotency,
    sandbox: SandboxId,
    command: &str,
) -> Result<SandboxCommandId> {
    let id = SandboxCommandId::new();
    let stored = &command[..command.floor_char_boundary(MAX_STORED_COMMAND_LEN)];
    let mut tx = ctx.db.begin().await?;
    let format = StorageFormat::lock_for_share(&mut tx, caller.project).await?.ok_or(UNAUTHORIZED)?;
    let stored = StoredText::new(&caller.encryption, format, id.0, stored)?;
    let request = idempotency.request_hash();
    let is_new = command_store::insert(&mut tx, caller.project, sandbox, id, &stored, request).await?;
    if is_new {
        tx.commit().await?;
        return Ok(id);
    }
    let is_running = command_store::is_running(&mut tx, request).await?;
    Err(Error::Conflict(if is_running { COMMAND_RUNNING } else { COMMAND_INTERRUPTED }.into()))
}

#[derive(Serialize, utoipa::ToSchema)]
pub struct KillSandboxResponse {
    /// 0 if the sandbox has ended, and 1 if the provider could not end it.
    status: u8,
    errmsg: &'static str,
}

/// Kill a sandbox
///
/// Ends its processes and deletes its files.
#[utoipa::path(delete, path = "/api/v1/sandbox/{sandbox_id}", tag = "sandbox", params(("sandbox_id" = SandboxId, Path)))]
pub async fn kill_sandbox(
    State(ctx): State<Sandboxes>,
    caller: Caller,
    idempotency: Idempotency,
    Path(sandbox): Path<SandboxId>,
) -> CommandResult<Data<KillSandboxResponse>> {
    idempotency.replay_if_completed().await?;
    let mut conn = ctx.db.acquire().await?;
    let live = store::get(&mut conn, caller.project, sandbox).await?.ok_or(SANDBOX_NOT_FOUND)?;
    drop(conn);
    match ctx.owner_of(&live).await?.end(&live.provider_sandbox_id).await {
        Ok(()) | Err(ProviderError::Ended) => {}
        Err(err) => {
            tracing::error!(sandbox.id = %sandbox, error = %err, "the provider cannot end a sandbox");
            let failed = KillSandboxResponse { status: 1, errmsg: "Failed to kill sandbox" };
            return Ok(response::ok(failed));
        }
    }
    let mut tx = idempotency.begin().await?;
    expiry::mark_ended(&mut tx, caller.project, sandbox).await?;
    tx.commit(response::ok(KillSandboxResponse { status: 0, errmsg: "" })).await
}
