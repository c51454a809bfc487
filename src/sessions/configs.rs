//! The routes of a session's configs, the metadata that a client stores with it.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::lock::LockedSession;
use super::{SESSION_NOT_FOUND, Session, store};
use crate::auth::Caller;
use crate::error::Error;
use crate::http::extract::{Json, Path, RequestBody};
use crate::http::idempotency::Idempotency;
use crate::http::json_fields::{merge_top_level, validate_storable};
use crate::http::response::{self, CommandResult, Data, Empty, QueryResult};
use crate::ids::SessionId;
use crate::platform::Platform;

/// Maximum size of a patch, in bytes.
const MAX_PATCH_BYTES: usize = 64 * 1024;

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
    found.map(response::ok).ok_or(SESSION_NOT_FOUND)
}

#[derive(Deserialize, utoipa::ToSchema)]
pub struct UpdateSessionConfigsRequest {
    /// Client-supplied metadata.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    configs: Option<Map<String, Value>>,
}

impl RequestBody for UpdateSessionConfigsRequest {
    const HAS_FREE_FORM_OBJECT: bool = true;
}

/// Replace a session's configs
///
/// Replaces all configs. If the request has no `configs`, nothing changes.
#[utoipa::path(put, path = "/api/v1/session/{session_id}/configs", tag = "session",
    params(("session_id" = SessionId, Path)), request_body = UpdateSessionConfigsRequest)]
pub async fn put_session_configs(
    State(platform): State<Platform>,
    caller: Caller,
    idempotency: Idempotency,
    Path(session): Path<SessionId>,
    Json(body): Json<UpdateSessionConfigsRequest>,
) -> CommandResult<Empty> {
    if let Some(configs) = &body.configs {
        validate_storable("configs", configs, platform.config.limits.max_meta_bytes)?;
    }
    let mut tx = idempotency.begin().await?;
    store::ensure_owned(&mut tx, caller.project, session).await?;
    if let Some(configs) = body.configs {
        store::set_configs(&mut tx, caller.project, session, &configs).await?;
    }
    tx.commit(response::ok_empty()).await
}

/// The resulting configs of the session.
#[derive(Serialize, utoipa::ToSchema)]
pub struct PatchSessionConfigsResponse {
    #[schema(value_type = Object)]
    configs: Map<String, Value>,
}

/// Update a session's configs
///
/// Sets top-level keys; `null` removes a key. Other keys are unchanged. The patch may have up to 64 KiB.
#[utoipa::path(patch, path = "/api/v1/session/{session_id}/configs", tag = "session",
    params(("session_id" = SessionId, Path)), request_body = UpdateSessionConfigsRequest)]
pub async fn patch_session_configs(
    State(platform): State<Platform>,
    caller: Caller,
    idempotency: Idempotency,
    Path(session): Path<SessionId>,
    Json(body): Json<UpdateSessionConfigsRequest>,
) -> CommandResult<Data<PatchSessionConfigsResponse>> {
    let patch = body.configs.ok_or_else(|| Error::invalid_field("configs", "is required and must be a JSON object"))?;
    if serde_json::to_vec(&patch).map_err(Error::internal)?.len() > MAX_PATCH_BYTES {
        return Err(Error::bad_request("configs size exceeds 64KB limit").into());
    }
    let mut tx = idempotency.begin().await?;
    let mut locked = LockedSession::lock(&mut tx, caller.project, session).await?.ok_or(SESSION_NOT_FOUND)?;
    let configs = store::get_configs(&mut locked).await?;
    let configs = merge_top_level(configs, patch);
    validate_storable("configs", &configs, platform.config.limits.max_meta_bytes)?;
    store::set_configs(&mut tx, caller.project, session, &configs).await?;
    tx.commit(response::ok(PatchSessionConfigsResponse { configs })).await
}
