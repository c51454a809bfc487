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
use crate::http::json::validate_storable;
use crate::http::page::{Page, PageParams};
use crate::http::response::{self, CommandResult, Data, PageBody, QueryResult};
use crate::ids::SessionId;
use crate::platform::Platform;
use crate::sessions;

/// The longest type of an event, in bytes.
const MAX_TYPE: usize = 255;

#[derive(Deserialize, utoipa::ToSchema)]
pub struct AddEvent {
    /// What kind of event; any text of up to 255 bytes.
    #[serde(default)]
    #[schema(value_type = String, example = "text_event")]
    r#type: Option<String>,
    /// What happened.
    #[serde(default)]
    #[schema(value_type = Object)]
    data: Option<Map<String, Value>>,
}

impl RequestBody for AddEvent {
    const IS_FREE_FORM: bool = true;
}

/// Tell an event
#[utoipa::path(post, path = "/api/v1/session/{session_id}/events", tag = "session",
    params(("session_id" = SessionId, Path)), request_body = AddEvent)]
pub async fn add_event(
    State(platform): State<Platform>,
    caller: Caller,
    idempotency: Idempotency,
    Path(session): Path<SessionId>,
    Json(body): Json<AddEvent>,
) -> CommandResult<Data<Event>> {
    let kind =
        body.r#type.filter(|kind| !kind.is_empty()).ok_or_else(|| Error::invalid_field("type", "is required"))?;
    if kind.len() > MAX_TYPE || kind.contains('\0') {
        let wrong = format_args!("must not be longer than {MAX_TYPE} bytes, nor contain the character NUL");
        return Err(Error::invalid_field("type", wrong).into());
    }
    let data = body.data.ok_or_else(|| Error::invalid_field("data", "is required, a JSON object"))?;
    validate_storable("data", &data, platform.config.limits.meta)?;
    let mut tx = idempotency.begin_statement().await?;
    let event = store::insert(&mut tx, caller.project, session, &kind, data).await?;
    tx.commit(response::ok(event.ok_or(sessions::NOT_FOUND)?)).await
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
        return Err(sessions::NOT_FOUND);
    }
    let events = store::list(&mut conn, caller.project, session, &page).await?;
    Ok(response::page(Page::new(events, &page)))
}
