//! The settings of a project: how its messages are observed, and when its tasks count as successful or failed. Unknown keys are
//! stored unchanged.

use axum::extract::{Request, State};
use serde_json::{Map, Value};

use super::store;
use crate::auth::Caller;
use crate::error::{Error, Result, UNAUTHORIZED};
use crate::http::body::read_body;
use crate::http::idempotency::Idempotency;
use crate::http::json_fields::{merge_top_level, validate_storable};
use crate::http::response::{self, CommandResult, Data, QueryResult};
use crate::json;
use crate::projects::Projects;

/// The maximum size of a patch.
const MAX_PATCH_BYTES: u64 = 64 * 1024;
/// The maximum length of a string setting.
const MAX_STRING_BYTES: usize = 2000;
/// The settings that are strings.
const STRING_KEYS: [&str; 2] = ["task_success_criteria", "task_failure_criteria"];
/// The settings that are integers.
const INTEGER_KEYS: [&str; 5] = [
    "project_session_message_use_previous_messages_turns",
    "project_session_message_buffer_max_turns",
    "project_session_message_buffer_max_overflow",
    "default_task_agent_max_iterations",
    "default_task_agent_previous_progress_num",
];
/// The maximum of each integer setting.
const MAX_INTEGER: i64 = 1_000_000;

const INVALID_PATCH_MSG: &str = "invalid or too-large JSON body (max 64KB)";
/// The key in the response whose value is `true` if new content is stored encrypted. It hides a setting of the same name.
const ENCRYPTION_ENABLED_KEY: &str = "encryption_enabled";

/// The settings of a project. Other keys are allowed.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes an object of any keys")]
pub struct ProjectConfigs {
    /// The criteria for the success of a task, as free text.
    #[schema(max_length = 2000)]
    task_success_criteria: Option<String>,
    /// The criteria for the failure of a task, as free text.
    #[schema(max_length = 2000)]
    task_failure_criteria: Option<String>,
    /// Number of previous messages that the model receives in addition to the observed ones.
    project_session_message_use_previous_messages_turns: Option<u32>,
    /// A session is observed as soon as this many of its messages are pending.
    project_session_message_buffer_max_turns: Option<u32>,
    /// Maximum number of additional messages that are observed in the same batch.
    project_session_message_buffer_max_overflow: Option<u32>,
    /// Maximum number of model calls that extract tasks from one batch of messages. A value above 50 counts as 50.
    default_task_agent_max_iterations: Option<u32>,
    /// Number of progress notes of each task that the model receives.
    default_task_agent_previous_progress_num: Option<u32>,
}

/// Get the project's settings
///
/// Returns all settings that were set explicitly, and `encryption_enabled`.
#[utoipa::path(get, path = "/api/v1/project/configs", tag = "project")]
pub async fn get_project_configs(State(ctx): State<Projects>, caller: Caller) -> QueryResult<Data<ProjectConfigs>> {
    let mut conn = ctx.db.acquire().await?;
    let settings = store::get_settings(&mut conn, caller.project).await?.ok_or(UNAUTHORIZED)?;
    let mut configs = settings.project_config;
    configs.insert(ENCRYPTION_ENABLED_KEY.into(), settings.encryption_enabled.into());
    Ok(response::ok_described_as("ok", configs))
}

/// Change the project's settings
///
/// Sets top-level keys; `null` removes a key; other keys are unchanged. The body must not exceed 64 KiB.
#[utoipa::path(patch, path = "/api/v1/project/configs", tag = "project", request_body = ProjectConfigs)]
pub async fn update_project_configs(
    State(ctx): State<Projects>,
    caller: Caller,
    idempotency: Idempotency,
    request: Request,
) -> CommandResult<Data<ProjectConfigs>> {
    let patch = read_patch(&ctx, request).await?;
    patch.iter().try_for_each(|(name, value)| validate(name, value))?;
    let mut tx = idempotency.begin().await?;
    store::lock(&mut tx, caller.project).await?.ok_or(UNAUTHORIZED)?;
    let settings = store::get_settings(&mut tx, caller.project).await?.ok_or(UNAUTHORIZED)?;
    let configs = merge_top_level(settings.project_config, patch);
    validate_storable("configs", &configs, ctx.config.limits.max_meta_bytes)?;
    store::set_settings(&mut tx, caller.project, &configs).await?;
    let response = tx.commit(response::ok_described_as("ok", configs)).await?;
    // The database notifies the other processes. This process must not use the old settings after the response.
    ctx.authenticator.invalidate_project(caller.project);
    Ok(response)
}

/// Reads the request body: a JSON object that is not empty.
async fn read_patch(ctx: &Projects, request: Request) -> Result<Map<String, Value>> {
    let body = read_body(request, &ctx.request_context, MAX_PATCH_BYTES).await.map_err(|err| match err {
        Error::PayloadTooLarge(_) => Error::PayloadTooLarge(INVALID_PATCH_MSG.into()),
        err => err,
    })?;
    let invalid = |reason: &dyn std::fmt::Display| {
        Error::bad_request_with_reason(INVALID_PATCH_MSG, format_args!("body: {reason}"))
    };
    match json::parse_first(&body).map_err(|err| invalid(&err))? {
        Value::Null => Err(Error::bad_request("empty body")),
        Value::Object(patch) if patch.is_empty() => Err(Error::bad_request("empty body")),
        Value::Object(patch) => Ok(patch),
        _ => Err(invalid(&"must be a JSON object")),
    }
}

/// Validates a setting that the server knows. `null`, which removes a setting, is always valid.
///
/// # Errors
/// Returns an error if the value has the wrong type, or is too long or out of range.
fn validate(name: &str, value: &Value) -> Result<()> {
    if value.is_null() {
        return Ok(());
    }
    if STRING_KEYS.contains(&name) {
        let text = value.as_str().ok_or_else(|| Error::bad_request(format!("{name} must be a string")))?;
        if text.len() > MAX_STRING_BYTES {
            return Err(Error::bad_request(format!("{name} exceeds max length ({MAX_STRING_BYTES} chars)")));
        }
    }
    let is_in_range = || value.as_i64().is_some_and(|number| (0..=MAX_INTEGER).contains(&number));
    if INTEGER_KEYS.contains(&name) && !is_in_range() {
        return Err(Error::bad_request(format!("{name} must be an integer from 0 to {MAX_INTEGER}")));
    }
    Ok(())
}
