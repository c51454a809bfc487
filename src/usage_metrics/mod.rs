//! What is counted of projects, for whoever bills or watches them.
//!
//! [`push`] tells a billing service and takes in which projects have too much, [`api`] is what a gateway asks about that before it
//! lets a request through. [`traces`] asks Jaeger. [`store`] is the SQL.

pub mod api;
pub mod push;
pub mod store;
pub mod traces;

use serde::{Deserialize, Serialize};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::ids::ProjectId;
use crate::platform::Platform;
use crate::time::Timestamp;

/// A row of metrics.
#[derive(Debug, Serialize)]
pub struct Metric {
    pub id: Uuid,
    pub project_id: ProjectId,
    pub tag: String,
    pub increment: i64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// Whether a project exceeds its quota of a tag.
#[derive(Debug, Deserialize)]
pub struct Quota {
    pub project_id: ProjectId,
    pub tag: String,
    pub excess: bool,
}

pub fn router() -> OpenApiRouter<Platform> {
    OpenApiRouter::new()
        .routes(routes!(api::get_quota))
        .routes(routes!(push::push_metrics))
        .routes(routes!(traces::find_traces))
}
