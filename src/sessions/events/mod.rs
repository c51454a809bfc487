//! Events: what else happened in a session, as its client tells it. They stand between the messages by their time.

pub mod api;
pub mod store;

use serde::Serialize;
use serde_json::{Map, Value};
use sqlx::types::Json;

use crate::db::page::impl_paged;
use crate::ids::{EventId, ProjectId, SessionId};
use crate::time::Timestamp;

/// An event.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Event {
    pub id: EventId,
    pub session_id: SessionId,
    pub project_id: ProjectId,
    /// What kind of event; any text.
    #[schema(example = "text_event")]
    pub r#type: String,
    #[schema(value_type = Object)]
    pub data: Json<Map<String, Value>>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl_paged!(Event);
