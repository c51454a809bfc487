//! Tasks: the pieces of work that are found in the messages of a session.
//!
//! [`api`] has the route, [`store`] the SQL. A session has one more task that is never shown: it holds the messages that only
//! plan.

pub mod api;
pub mod store;

use serde::{Deserialize, Serialize};
use sqlx::types::Json;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::db::page::impl_paged;
use crate::ids::{ProjectId, SessionId, TaskId};
use crate::platform::Platform;
use crate::text_enum::text_enum;
use crate::time::Timestamp;

pub fn router() -> OpenApiRouter<Platform> {
    OpenApiRouter::new().routes(routes!(api::get_tasks))
}

text_enum! {
    /// The status of a task. `success` and `failed` are final.
    pub enum TaskStatus {
        Pending = "pending",
        Running = "running",
        Success = "success",
        Failed = "failed",
    }
}

/// A task.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Task {
    pub id: TaskId,
    pub session_id: SessionId,
    pub project_id: ProjectId,
    /// Its place among the tasks of the session, from 1.
    pub order: i64,
    #[schema(value_type = TaskData)]
    pub data: Json<TaskData>,
    pub status: TaskStatus,
    pub is_planning: bool,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl_paged!(Task);

/// What is known of a task.
#[derive(Clone, Debug, Default, Deserialize, Serialize, utoipa::ToSchema)]
pub struct TaskData {
    #[serde(default)]
    pub task_description: String,
    /// What was done, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub progresses: Vec<String>,
    /// How its user wants it done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub user_preferences: Vec<String>,
}
