//! The routes of events.

use axum::extract::State;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Event, store};
use crate::auth::Caller;
use crate::db::page::PageRequest;
use crate::error::Error;
use crate::http::extract::{Json, Path, Query, RequestBody};
use crate::http::idempotency::Idempotency;
use crate::http::json_fields::validate_storable;
use crate::http::page::{Page, PageParams};
use crate::http::response::{self, CommandResult, Data, PageBody, QueryResult};
use crate::ids::SessionId;
use crate::platform::Platform;
use crate::sessions;

/// Maximum length of an event type, in bytes.
const MAX_TYPE_BYTES: usize = 255;

#[derive(Deserialize, utoipa::ToSchema)]
pub struct AddEventRequest {
    /// Type of the event; any text of up to 255 bytes.
    #[serde(default)]
    #[schema(value_type = String, example = "text_event")]
    r#type: Option<String>,
    /// Content of the event.
    #[serde(default)]
    #[schema(value_type = Object)]
    data: Option<Map<String, Value>>,
}

impl RequestBody for AddEventRequest {
    const HAS_FREE_FORM_OBJECT: bool = true;
}

/// Record an event
#[utoipa::path(post, path = "/api/v1/session/{session_id}/events", tag = "session",
    params(("session_id" = SessionId, Path)), request_body = AddEventRequest)]
pub async fn add_event(
    State(platform): State<Platform>,
    caller: Caller,
    idempotency: Idempotency,
    Path(session): Path<SessionId>,
    Json(body): Json<AddEventRequest>,
) -> CommandResult<Data<Event>> {
    let kind =
        body.r#type.filter(|kind| !kind.is_empty()).ok_or_else(|| Error::invalid_field("type", "is required"))?;
    if kind.len() > MAX_TYPE_BYTES || kind.contains('\0') {
        let reason = format_args!("must not exceed {MAX_TYPE_BYTES} bytes or contain a NUL character");
        return Err(Error::invalid_field("type", reason).into());
    }
    let data = body.data.ok_or_else(|| Error::invalid_field("data", "is required and must be a JSON object"))?;
    validate_storable("data", &data, platform.config.limits.max_meta_bytes)?;
    let mut tx = idempotency.begin_autocommit().await?;
    let event = store::insert(&mut tx, caller.project, session, &kind, data).await?;
    tx.commit(response::ok(event.ok_or(sessions::SESSION_NOT_FOUND)?)).await
}

/// List events
#[utoipa::path(get, path = "/api/v1/session/{session_id}/events", tag = "session",
    params(("session_id" = SessionId, Path), PageParams))]
pub async fn list_events(
    State(platform): State<Platform>,
    caller: Caller,
    Path(session): Path<SessionId>,
    Query(page): Query<PageParams>,
) -> QueryResult<PageBody<Event>> {
    let page: PageRequest = page.parse(50, 200)?;
    let mut conn = platform.db.acquire().await?;
    if !sessions::store::exists(&mut conn, caller.project, session).await? {
        return Err(sessions::SESSION_NOT_FOUND);
    }
    let events = store::list(&mut conn, caller.project, session, &page).await?;
    Ok(response::page(&Page::new(events, &page)))
}
