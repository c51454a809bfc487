//! Sessions: the conversations of agents. Their messages are in [`crate::messages`].
//!
//! [`api`] creates, lists and deletes sessions, [`configs`] reads and updates their configs, and [`copy`] copies a session.
//! [`events`] are records that clients add to a session's timeline. [`store`] is the SQL, and [`lock`] locks a session.

pub mod api;
pub mod configs;
pub mod copy;
pub mod events;
pub mod lock;
pub mod store;

use serde::Serialize;
use serde_json::{Map, Value};
use sqlx::types::Json;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::db::page::impl_paged;
use crate::error::Error;
use crate::ids::{ProjectId, SessionId, UserId};
use crate::platform::Platform;
use crate::time::Timestamp;

pub fn router() -> OpenApiRouter<Platform> {
    OpenApiRouter::new()
        .routes(routes!(api::create_session, api::list_sessions))
        .routes(routes!(api::delete_session))
        .routes(routes!(configs::get_session_configs, configs::put_session_configs, configs::patch_session_configs))
        .routes(routes!(events::api::add_event, events::api::list_events))
}

/// The error for a session that does not exist in the project.
pub const SESSION_NOT_FOUND: Error = Error::NotFound("session not found");
/// The error for a session of another project, on the routes where upstream distinguishes it from a missing one.
pub const SESSION_ACCESS_DENIED: Error = Error::Forbidden("access denied: session does not belong to this project");

/// A session.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Session {
    pub id: SessionId,
    pub project_id: ProjectId,
    pub user_id: Option<UserId>,
    /// If `true`, no tasks are extracted from the session's messages.
    pub disable_task_tracking: bool,
    /// Client-supplied metadata; null if it was never set.
    #[schema(value_type = Option<Object>)]
    pub configs: Option<Json<Map<String, Value>>>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl_paged!(Session);
