//! The route that updates a message's user metadata.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::request::validate_user_meta;
use super::store;
use crate::auth::Caller;
use crate::error::Error;
use crate::http::extract::{Json, Path, RequestBody};
use crate::http::idempotency::Idempotency;
use crate::http::json_fields::{merge_top_level, validate_storable};
use crate::http::response::{self, CommandResult, Data};
use crate::ids::{MessageId, SessionId};
use crate::messages::Messages;
use crate::sessions;

#[derive(Deserialize, utoipa::ToSchema)]
pub struct PatchMessageMetaRequest {
    /// Top-level keys to set; `null` removes a key. Up to 64 KiB.
    #[schema(value_type = Object, required = true)]
    #[serde(default)]
    meta: Option<Map<String, Value>>,
}

impl RequestBody for PatchMessageMetaRequest {
    const HAS_FREE_FORM_OBJECT: bool = true;
}

/// The resulting metadata of the message.
#[derive(Serialize, utoipa::ToSchema)]
pub struct PatchMessageMetaResponse {
    #[schema(value_type = Object)]
    meta: Map<String, Value>,
}

/// Update a message's metadata
///
/// Sets top-level keys; `null` removes a key. Other keys are unchanged.
#[utoipa::path(patch, path = "/api/v1/session/{session_id}/messages/{message_id}/meta", tag = "message",
    params(("session_id" = SessionId, Path), ("message_id" = MessageId, Path)), request_body = PatchMessageMetaRequest)]
pub async fn patch_message_meta(
    State(ctx): State<Messages>,
    caller: Caller,
    idempotency: Idempotency,
    Path(session): Path<SessionId>,
    Path(message): Path<MessageId>,
    Json(body): Json<PatchMessageMetaRequest>,
) -> CommandResult<Data<PatchMessageMetaResponse>> {
    let patch = body.meta.ok_or_else(|| Error::invalid_field("meta", "is required and must be a JSON object"))?;
    validate_user_meta(&patch)?;
    let mut tx = idempotency.begin().await?;
    let Some(meta) = store::lock_user_meta(&mut tx, caller.project, session, message).await? else {
        let session_exists = sessions::store::exists(&mut tx, caller.project, session).await?;
        let not_found = if session_exists { Error::NotFound("message not found") } else { sessions::SESSION_NOT_FOUND };
        return Err(not_found.into());
    };
    let meta = merge_top_level(meta, patch);
    validate_storable("meta", &meta, ctx.config.limits.max_meta_bytes)?;
    store::set_user_meta(&mut tx, message, &meta).await?;
    tx.commit(response::ok(PatchMessageMetaResponse { meta })).await
}
