//! The routes of sessions.

use axum::extract::State;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::store::{self, Filter, NewSession};
use super::{NOT_FOUND, Session};
use crate::auth::Caller;
use crate::db::page::PageRequest;
use crate::error::{Error, MapConstraint, Result, UNAUTHORIZED};
use crate::http::extract::{Fields, Flag, Path, Query, RequestBody};
use crate::http::idempotency::Idempotency;
use crate::http::json::{parse_containment_filter, validate_storable};
use crate::http::page::{Page, PageParams};
use crate::http::response::{self, CommandResult, CreatedOrExisting, Empty, PageBody, QueryResult};
use crate::ids::SessionId;
use crate::platform::Platform;
use crate::users::{self, Identifier};

#[derive(Deserialize, utoipa::ToSchema)]
pub struct CreateSession {
    /// Whose session it is; made if there is no such user.
    #[serde(default, deserialize_with = "users::optional")]
    #[schema(value_type = Option<String>, max_length = 1024)]
    user: Option<Identifier>,
    /// No tasks are extracted from its messages.
    #[serde(default)]
    #[schema(value_type = Option<bool>)]
    disable_task_tracking: Option<Flag>,
    /// An object to keep with it.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    configs: Option<Map<String, Value>>,
    /// The id it shall have. If the project has that session already, nothing else happens and that one is the answer.
    #[serde(default)]
    #[schema(value_type = Option<uuid::Uuid>)]
    use_uuid: Option<String>,
}

impl RequestBody for CreateSession {
    const IS_FREE_FORM: bool = true;
}

/// Create a session
#[utoipa::path(post, path = "/api/v1/session", tag = "session", request_body = Option<CreateSession>)]
pub async fn create_session(
    State(platform): State<Platform>,
    caller: Caller,
    idempotency: Idempotency,
    Fields(body): Fields<CreateSession>,
) -> CommandResult<CreatedOrExisting<Session>> {
    let wanted = wanted_id(body.use_uuid.as_deref())?;
    if let Some(configs) = &body.configs {
        validate_storable("configs", configs, platform.config.limits.meta)?;
    }
    let mut tx = idempotency.begin().await?;
    let user = users::named(&mut tx, caller.project, body.user.as_ref()).await?;
    let id = wanted.unwrap_or_default();
    let disable_task_tracking = Flag::or(body.disable_task_tracking, false);
    let new = NewSession { id, user, disable_task_tracking, configs: body.configs };
    let made = store::insert(&mut tx, caller.project, new)
        .await
        .map_constraint_err("sessions_project_id_fkey", || UNAUTHORIZED)?;
    let answer = if let Some(session) = made {
        response::created(session).into()
    } else {
        let existing = store::get(&mut tx, caller.project, id).await?;
        response::ok(existing.ok_or(Error::Conflict("session with this UUID already exists".into()))?).into()
    };
    tx.commit(answer).await
}

/// Reads `use_uuid`; empty is as if it were not there. The nil UUID names nothing.
fn wanted_id(text: Option<&str>) -> Result<Option<SessionId>> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let id: Option<SessionId> = text.parse().ok().filter(|id: &SessionId| !id.0.is_nil());
    let invalid = || {
        Error::bad_request_with_reason(
            "invalid UUID format for use_uuid",
            "use_uuid: must be a UUID and not the nil one",
        )
    };
    id.map(Some).ok_or_else(invalid)
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListSessions {
    /// Only sessions of this user.
    #[serde(default)]
    user: Option<String>,
    /// Only the session with this id.
    #[serde(default)]
    id: Option<String>,
    /// A JSON object as text: only sessions whose configs contain it.
    #[serde(default)]
    #[param(example = "{\"source\": \"cli\"}")]
    filter_by_configs: Option<String>,
}

/// List sessions
#[utoipa::path(get, path = "/api/v1/session", tag = "session", params(ListSessions, PageParams))]
pub async fn list_sessions(
    State(platform): State<Platform>,
    caller: Caller,
    Query(query): Query<ListSessions>,
    Query(page): Query<PageParams>,
) -> QueryResult<PageBody<Session>> {
    let page: PageRequest = page.parse(20, 200)?;
    let id = query.id.as_deref().filter(|id| !id.is_empty()).map(str::parse).transpose();
    let id = id.map_err(|wrong| Error::invalid_field("id", wrong))?;
    let user = users::filter(query.user.as_deref())?;
    let configs =
        parse_containment_filter("filter_by_configs", query.filter_by_configs.as_deref(), platform.config.limits.meta)?;
    let mut conn = platform.db.acquire().await?;
    let sessions = store::list(&mut conn, caller.project, Filter { user, id, configs }, &page).await?;
    Ok(response::page(Page::new(sessions, &page)))
}

/// Delete a session
///
/// With all its messages and their files.
#[utoipa::path(delete, path = "/api/v1/session/{session_id}", tag = "session", params(("session_id" = SessionId, Path)))]
pub async fn delete_session(
    caller: Caller,
    idempotency: Idempotency,
    Path(session): Path<SessionId>,
) -> CommandResult<Empty> {
    let mut tx = idempotency.begin().await?;
    store::ensure_owned(&mut tx, caller.project, session).await?;
    let deleted = store::delete(&mut tx, caller.project, session).await?;
    if deleted { tx.commit(response::ok_empty()).await } else { Err(NOT_FOUND.into()) }
}
