//! Sessions: the conversations of agents. What is said in them is in [`crate::messages`].
//!
//! [`api`] has the routes of a session itself, [`configs`] and [`copy`] those that change and copy one, [`store`] the SQL.
//! [`events`] are what else clients tell of a session.

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

/// The refusal of a session that is not there.
pub const NOT_FOUND: Error = Error::NotFound("session not found");
/// The refusal of another project's session, where the reference tells.
pub const DENIED: Error = Error::Forbidden("access denied: session does not belong to this project");

/// A session.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Session {
    pub id: SessionId,
    pub project_id: ProjectId,
    pub user_id: Option<UserId>,
    /// No tasks are extracted from its messages.
    pub disable_task_tracking: bool,
    /// What the client keeps with it; null if it never said anything.
    #[schema(value_type = Option<Object>)]
    pub configs: Option<Json<Map<String, Value>>>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl_paged!(Session);
