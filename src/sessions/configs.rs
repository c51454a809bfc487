//! What a client keeps with a session.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::lock::LockedSession;
use super::{NOT_FOUND, Session, store};
use crate::auth::Caller;
use crate::error::Error;
use crate::http::extract::{Json, Path, RequestBody};
use crate::http::idempotency::Idempotency;
use crate::http::json::{merge, validate_storable};
use crate::http::response::{self, CommandResult, Data, Empty, QueryResult};
use crate::ids::SessionId;
use crate::platform::Platform;

/// The largest patch, in bytes.
const MAX_PATCH: usize = 64 * 1024;

/// Get a session with its configs
#[utoipa::path(get, path = "/api/v1/session/{session_id}/configs", tag = "session",
    params(("session_id" = SessionId, Path)))]
pub async fn get_session_configs(
    State(platform): State<Platform>,
    caller: Caller,
    Path(session): Path<SessionId>,
) -> QueryResult<Data<Session>> {
    let mut conn = platform.db.acquire().await?;
    let found = store::get(&mut conn, caller.project, session).await?;
    if found.is_none() {
        store::ensure_owned(&mut conn, caller.project, session).await?;
    }
    found.map(response::ok).ok_or(NOT_FOUND)
}

#[derive(Deserialize, utoipa::ToSchema)]
pub struct SessionConfigs {
    /// An object.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    configs: Option<Map<String, Value>>,
}

impl RequestBody for SessionConfigs {
    const IS_FREE_FORM: bool = true;
}

/// Replace a session's configs
///
/// As a whole. Without any, nothing changes.
#[utoipa::path(put, path = "/api/v1/session/{session_id}/configs", tag = "session",
    params(("session_id" = SessionId, Path)), request_body = SessionConfigs)]
pub async fn put_session_configs(
    State(platform): State<Platform>,
    caller: Caller,
    idempotency: Idempotency,
    Path(session): Path<SessionId>,
    Json(body): Json<SessionConfigs>,
) -> CommandResult<Empty> {
    if let Some(configs) = &body.configs {
        validate_storable("configs", configs, platform.config.limits.meta)?;
    }
    let mut tx = idempotency.begin().await?;
    store::ensure_owned(&mut tx, caller.project, session).await?;
    if let Some(configs) = body.configs {
        store::set_configs(&mut tx, caller.project, session, &configs).await?;
    }
    tx.commit(response::ok_empty()).await
}

/// What is kept with the session now.
#[derive(Serialize, utoipa::ToSchema)]
pub struct PatchedConfigs {
    #[schema(value_type = Object)]
    configs: Map<String, Value>,
}

/// Change a session's configs
///
/// Sets keys of the first level and removes those that are `null`; other keys stay. Up to 64 KiB.
#[utoipa::path(patch, path = "/api/v1/session/{session_id}/configs", tag = "session",
    params(("session_id" = SessionId, Path)), request_body = SessionConfigs)]
pub async fn patch_session_configs(
    State(platform): State<Platform>,
    caller: Caller,
    idempotency: Idempotency,
    Path(session): Path<SessionId>,
    Json(body): Json<SessionConfigs>,
) -> CommandResult<Data<PatchedConfigs>> {
    let patch = body.configs.ok_or_else(|| Error::invalid_field("configs", "is required, a JSON object"))?;
    if serde_json::to_vec(&patch).map_err(Error::internal)?.len() > MAX_PATCH {
        return Err(Error::bad_request("configs size exceeds 64KB limit").into());
    }
    let mut tx = idempotency.begin().await?;
    let mut locked = LockedSession::lock(&mut tx, caller.project, session).await?.ok_or(NOT_FOUND)?;
    let configs = store::get_configs(&mut locked).await?;
    let configs = merge(configs, patch);
    validate_storable("configs", &configs, platform.config.limits.meta)?;
    store::set_configs(&mut tx, caller.project, session, &configs).await?;
    tx.commit(response::ok(PatchedConfigs { configs })).await
}
