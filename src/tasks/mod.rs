//! Tasks: units of an agent's work that observation extracts from the messages of a session.
//!
//! [`api`] contains the route, [`store`] the SQL, and [`edits`] the SQL that writes the result of an observation. A session may
//! also have a hidden planning task, which collects planning messages. The API never returns it.

pub mod api;
pub mod edits;
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

impl TaskStatus {
    /// Returns `true` for the status of a task that has ended.
    pub fn is_finished(self) -> bool {
        matches!(self, Self::Success | Self::Failed)
    }
}

/// A unit of an agent's work, extracted from the messages of a session.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Task {
    pub id: TaskId,
    pub session_id: SessionId,
    pub project_id: ProjectId,
    /// Position among the tasks of the session, starting at 1.
    pub order: i64,
    #[schema(value_type = TaskData)]
    pub data: Json<TaskData>,
    pub status: TaskStatus,
    /// Always `false`, because the planning task is not returned.
    pub is_planning: bool,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl_paged!(Task);

/// The extracted description of a task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, utoipa::ToSchema)]
pub struct TaskData {
    #[serde(default)]
    pub task_description: String,
    /// Steps that were done, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub progresses: Vec<String>,
    /// The user's preferences. Those that the task agent extracts are preferences of the session; they are kept on its planning
    /// task, which the list of tasks does not contain.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub user_preferences: Vec<String>,
}
