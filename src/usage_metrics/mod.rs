//! Usage metrics of projects, for billing and monitoring.
//!
//! [`push`] sends the metrics to a billing service, whose response marks projects as over a quota or clears the marks. [`api`]
//! tells a gateway in front of this server whether a project is over its quota. [`traces`] queries Jaeger, and [`store`]
//! contains the SQL.

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

/// A row of `metrics`: a counter of a project.
#[derive(Debug, Serialize)]
pub struct Metric {
    pub id: Uuid,
    pub project_id: ProjectId,
    pub tag: String,
    /// The value of the counter.
    pub increment: i64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// The quota state of a project for a tag, which the billing service reports.
#[derive(Debug, Deserialize)]
pub struct QuotaState {
    pub project_id: ProjectId,
    pub tag: String,
    /// `true` if the project is over its quota.
    pub excess: bool,
}

pub fn router() -> OpenApiRouter<Platform> {
    OpenApiRouter::new()
        .routes(routes!(api::get_quota))
        .routes(routes!(push::push_metrics))
        .routes(routes!(traces::find_traces))
}
