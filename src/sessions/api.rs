//! The routes of sessions.

use axum::extract::State;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::store::{self, NewSession, SessionFilter};
use super::{SESSION_NOT_FOUND, Session};
use crate::auth::Caller;
use crate::db::page::PageRequest;
use crate::error::{Error, MapConstraint, Result, UNAUTHORIZED};
use crate::http::extract::{JsonOrForm, LenientBool, Path, Query, RequestBody};
use crate::http::idempotency::Idempotency;
use crate::http::json_fields::{parse_containment_filter, validate_storable};
use crate::http::page::{Page, PageParams};
use crate::http::response::{self, CommandResult, CreatedOrExisting, Empty, PageBody, QueryResult};
use crate::ids::SessionId;
use crate::jobs;
use crate::platform::Platform;
use crate::users::{self, UserIdentifier};

#[derive(Deserialize, utoipa::ToSchema)]
pub struct CreateSessionRequest {
    /// Identifier of the owning user. The user is created if it does not exist.
    #[serde(default, deserialize_with = "users::deserialize_optional")]
    #[schema(value_type = Option<String>, max_length = 1024)]
    user: Option<UserIdentifier>,
    /// If `true`, no tasks are extracted from the session's messages.
    #[serde(default)]
    #[schema(value_type = Option<bool>)]
    disable_task_tracking: Option<LenientBool>,
    /// Client-supplied metadata.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    configs: Option<Map<String, Value>>,
    /// Id of the new session. If the project already has a session with this id, it is returned unchanged.
    #[serde(default)]
    #[schema(value_type = Option<uuid::Uuid>)]
    use_uuid: Option<String>,
}

impl RequestBody for CreateSessionRequest {
    const HAS_FREE_FORM_OBJECT: bool = true;
}

/// Create a session
#[utoipa::path(post, path = "/api/v1/session", tag = "session", request_body = Option<CreateSessionRequest>)]
pub async fn create_session(
    State(platform): State<Platform>,
    caller: Caller,
    idempotency: Idempotency,
    JsonOrForm(body): JsonOrForm<CreateSessionRequest>,
) -> CommandResult<CreatedOrExisting<Session>> {
    let requested_id = parse_use_uuid(body.use_uuid.as_deref())?;
    if let Some(configs) = &body.configs {
        validate_storable("configs", configs, platform.config.limits.max_meta_bytes)?;
    }
    let mut tx = idempotency.begin().await?;
    let user = users::resolve_or_create(&mut tx, caller.project, body.user.as_ref()).await?;
    let id = requested_id.unwrap_or_default();
    let disable_task_tracking = LenientBool::unwrap_or(body.disable_task_tracking, false);
    let new = NewSession { id, user, disable_task_tracking, configs: body.configs };
    let inserted = store::insert(&mut tx, caller.project, new)
        .await
        .map_constraint_err("sessions_project_id_fkey", || UNAUTHORIZED)?;
    let response = if let Some(session) = inserted {
        response::created(session).into()
    } else {
        let existing = store::get(&mut tx, caller.project, id).await?;
        response::ok(existing.ok_or(Error::Conflict("session with this UUID already exists".into()))?).into()
    };
    tx.commit(response).await
}

/// Parses `use_uuid`. Ignores an empty text, and rejects the nil UUID.
fn parse_use_uuid(text: Option<&str>) -> Result<Option<SessionId>> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let id: Option<SessionId> = text.parse().ok().filter(|id: &SessionId| !id.0.is_nil());
    let invalid = || {
        Error::bad_request_with_reason(
            "invalid UUID format for use_uuid",
            "use_uuid: must be a UUID other than the nil UUID",
        )
    };
    id.map(Some).ok_or_else(invalid)
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListSessionsParams {
    /// Only sessions of the user with this identifier.
    #[serde(default)]
    user: Option<String>,
    /// Only the session with this id.
    #[serde(default)]
    id: Option<String>,
    /// Only sessions whose configs contain this JSON object.
    #[serde(default)]
    #[param(example = "{\"source\": \"cli\"}")]
    filter_by_configs: Option<String>,
}

/// List sessions
#[utoipa::path(get, path = "/api/v1/session", tag = "session", params(ListSessionsParams, PageParams))]
pub async fn list_sessions(
    State(platform): State<Platform>,
    caller: Caller,
    Query(query): Query<ListSessionsParams>,
    Query(page): Query<PageParams>,
) -> QueryResult<PageBody<Session>> {
    let page: PageRequest = page.parse(20, 200)?;
    let id = query.id.as_deref().filter(|id| !id.is_empty()).map(str::parse).transpose();
    let id = id.map_err(|err| Error::invalid_field("id", err))?;
    let user = users::validate_filter(query.user.as_deref())?;
    let max_bytes = platform.config.limits.max_meta_bytes;
    let configs = parse_containment_filter("filter_by_configs", query.filter_by_configs.as_deref(), max_bytes)?;
    let mut conn = platform.db.acquire().await?;
    let sessions = store::list(&mut conn, caller.project, SessionFilter { user, id, configs }, &page).await?;
    Ok(response::page(&Page::new(sessions, &page)))
}

/// Delete a session
///
/// Deletes the session with its messages, their files, its tasks and its events.
#[utoipa::path(delete, path = "/api/v1/session/{session_id}", tag = "session", params(("session_id" = SessionId, Path)))]
pub async fn delete_session(
    caller: Caller,
    idempotency: Idempotency,
    Path(session): Path<SessionId>,
) -> CommandResult<Empty> {
    let mut tx = idempotency.begin().await?;
    store::ensure_owned(&mut tx, caller.project, session).await?;
    let deleted = store::delete(&mut tx, caller.project, session).await?;
    jobs::list::delete_of_session(&mut tx, caller.project, session).await?;
    if deleted { tx.commit(response::ok_empty()).await } else { Err(SESSION_NOT_FOUND.into()) }
}
