//! What a client keeps with a message.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::incoming::check_user_meta;
use super::store;
use crate::auth::Caller;
use crate::error::Error;
use crate::http::extract::{Json, Path, RequestBody};
use crate::http::idempotency::Idempotency;
use crate::http::json::{merge, validate_storable};
use crate::http::response::{self, CommandResult, Data};
use crate::ids::{MessageId, SessionId};
use crate::messages::Messages;
use crate::sessions;

#[derive(Deserialize, utoipa::ToSchema)]
pub struct PatchMeta {
    /// Keys to set; `null` removes one. Up to 64 KiB.
    #[schema(value_type = Object, required = true)]
    #[serde(default)]
    meta: Option<Map<String, Value>>,
}

impl RequestBody for PatchMeta {
    const IS_FREE_FORM: bool = true;
}

/// What is kept with the message now.
#[derive(Serialize, utoipa::ToSchema)]
pub struct PatchedMeta {
    #[schema(value_type = Object)]
    meta: Map<String, Value>,
}

/// Change what is kept with a message
///
/// Sets keys of the first level and removes those that are `null`; other keys stay.
#[utoipa::path(patch, path = "/api/v1/session/{session_id}/messages/{message_id}/meta", tag = "message",
    params(("session_id" = SessionId, Path), ("message_id" = MessageId, Path)), request_body = PatchMeta)]
pub async fn patch_message_meta(
    State(ctx): State<Messages>,
    caller: Caller,
    idempotency: Idempotency,
    Path(session): Path<SessionId>,
    Path(message): Path<MessageId>,
    Json(body): Json<PatchMeta>,
) -> CommandResult<Data<PatchedMeta>> {
    let patch = body.meta.ok_or_else(|| Error::invalid_field("meta", "is required, a JSON object"))?;
    check_user_meta(&patch)?;
    let mut tx = idempotency.begin().await?;
    let Some(meta) = store::lock_user_meta(&mut tx, caller.project, session, message).await? else {
        let there = sessions::store::exists(&mut tx, caller.project, session).await?;
        return Err(if there { Error::NotFound("message not found") } else { sessions::NOT_FOUND }.into());
    };
    let meta = merge(meta, patch);
    validate_storable("meta", &meta, ctx.config.limits.meta)?;
    store::set_user_meta(&mut tx, message, &meta).await?;
    tx.commit(response::ok(PatchedMeta { meta })).await
}
