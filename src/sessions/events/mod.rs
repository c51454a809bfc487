//! Events: client-defined records in a session's timeline. Their times determine their positions among the messages.

pub mod api;
pub mod store;

use serde::Serialize;
use serde_json::{Map, Value};
use sqlx::types::Json;

use crate::db::page::impl_paged;
use crate::ids::{EventId, ProjectId, SessionId};
use crate::time::Timestamp;

/// A client-defined record in a session's timeline.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Event {
    pub id: EventId,
    pub session_id: SessionId,
    pub project_id: ProjectId,
    /// Type of the event; any text.
    #[schema(example = "text_event")]
    pub r#type: String,
    #[schema(value_type = Object)]
    pub data: Json<Map<String, Value>>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl_paged!(Event);
