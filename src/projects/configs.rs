//! What a project sets for itself: how its messages are observed, and when a task counts as done. Keys that this server does
//! not know are kept as they are.

use axum::extract::{Request, State};
use serde_json::{Map, Value};

use super::store;
use crate::auth::Caller;
use crate::error::{Error, Result, UNAUTHORIZED};
use crate::http::body::body_bytes;
use crate::http::idempotency::Idempotency;
use crate::http::json::{merge, validate_storable};
use crate::http::response::{self, CommandResult, Data, QueryResult};
use crate::json;
use crate::projects::Projects;

/// The largest patch, in bytes.
const MAX_PATCH: u64 = 64 * 1024;
/// The longest of [`TEXTS`], in bytes.
const MAX_TEXT: usize = 2000;
/// Settings that are texts.
const TEXTS: [&str; 2] = ["task_success_criteria", "task_failure_criteria"];
/// Settings that are whole numbers.
const NUMBERS: [&str; 5] = [
    "project_session_message_use_previous_messages_turns",
    "project_session_message_buffer_max_turns",
    "project_session_message_buffer_max_overflow",
    "default_task_agent_max_iterations",
    "default_task_agent_previous_progress_num",
];
/// What none of them is beyond.
const MAX_NUMBER: i64 = 1_000_000;

const NO_PATCH: &str = "invalid or too-large JSON body (max 64KB)";
/// Tells whether the project is encrypted, whatever a client has set by that name.
const ENCRYPTED: &str = "encryption_enabled";

/// Settings by their names.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes an object of any keys")]
pub struct ProjectConfigs {
    /// When a task counts as done, in words.
    #[schema(max_length = 2000)]
    task_success_criteria: Option<String>,
    /// When a task counts as failed, in words.
    #[schema(max_length = 2000)]
    task_failure_criteria: Option<String>,
    /// So many messages before those that are observed are shown to the model.
    project_session_message_use_previous_messages_turns: Option<u32>,
    /// So many messages of a session need not wait longer to be observed.
    project_session_message_buffer_max_turns: Option<u32>,
    /// So many more may be observed with them.
    project_session_message_buffer_max_overflow: Option<u32>,
    /// So often the model may act on a batch of messages.
    default_task_agent_max_iterations: Option<u32>,
    /// So many notes on the progress of each task are shown to the model.
    default_task_agent_previous_progress_num: Option<u32>,
}

/// Get the project's settings
///
/// Those that were set, and `encryption_enabled`.
#[utoipa::path(get, path = "/api/v1/project/configs", tag = "project")]
pub async fn get_project_configs(State(ctx): State<Projects>, caller: Caller) -> QueryResult<Data<ProjectConfigs>> {
    let mut conn = ctx.db.acquire().await?;
    let settings = store::get_settings(&mut conn, caller.project).await?.ok_or(UNAUTHORIZED)?;
    let mut configs = settings.configs;
    configs.insert(ENCRYPTED.into(), settings.encryption_enabled.into());
    Ok(response::ok_described_as("ok", configs))
}

/// Change the project's settings
///
/// Sets keys of the first level and removes those that are `null`; other keys stay. Up to 64 KiB.
#[utoipa::path(patch, path = "/api/v1/project/configs", tag = "project", request_body = ProjectConfigs)]
pub async fn update_project_configs(
    State(ctx): State<Projects>,
    caller: Caller,
    idempotency: Idempotency,
    request: Request,
) -> CommandResult<Data<ProjectConfigs>> {
    let patch = read(&ctx, request).await?;
    patch.iter().try_for_each(|(name, value)| check(name, value))?;
    let mut tx = idempotency.begin().await?;
    store::lock(&mut tx, caller.project).await?.ok_or(UNAUTHORIZED)?;
    let settings = store::get_settings(&mut tx, caller.project).await?.ok_or(UNAUTHORIZED)?;
    let configs = merge(settings.configs, patch);
    validate_storable("configs", &configs, ctx.config.limits.meta)?;
    store::set_settings(&mut tx, caller.project, &configs).await?;
    let answer = tx.commit(response::ok_described_as("ok", configs)).await?;
    // The others are told by the database; this process shall not act on the old ones after it has answered.
    ctx.authenticator.invalidate_project(caller.project);
    Ok(answer)
}

async fn read(ctx: &Projects, request: Request) -> Result<Map<String, Value>> {
    let body = body_bytes(request, &ctx.request_context, MAX_PATCH).await.map_err(|err| match err {
        Error::PayloadTooLarge(_) => Error::PayloadTooLarge(NO_PATCH.into()),
        err => err,
    })?;
    let wrong = |why: &dyn std::fmt::Display| Error::bad_request_with_reason(NO_PATCH, format_args!("body: {why}"));
    match json::parse_first(&body).map_err(|why| wrong(&why))? {
        Value::Null => Err(Error::bad_request("empty body")),
        Value::Object(patch) if patch.is_empty() => Err(Error::bad_request("empty body")),
        Value::Object(patch) => Ok(patch),
        _ => Err(wrong(&"must be a JSON object")),
    }
}

/// What a setting that the server knows may be. `null` takes it away.
fn check(name: &str, value: &Value) -> Result<()> {
    if value.is_null() {
        return Ok(());
    }
    if TEXTS.contains(&name) {
        let text = value.as_str().ok_or_else(|| Error::bad_request(format!("{name} must be a string")))?;
        if text.len() > MAX_TEXT {
            return Err(Error::bad_request(format!("{name} exceeds max length ({MAX_TEXT} chars)")));
        }
    }
    let is_fit = || value.as_i64().is_some_and(|number| (0..=MAX_NUMBER).contains(&number));
    if NUMBERS.contains(&name) && !is_fit() {
        return Err(Error::bad_request(format!("{name} must be a whole number from 0 to {MAX_NUMBER}")));
    }
    Ok(())
}
