//! The status of the server: [`health`] has the probes, [`prometheus`] the metrics.

pub mod health;
pub mod prometheus;

use std::sync::Arc;

use tokio::sync::Mutex;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::platform::{Platform, platform_context};
use crate::sandboxes::Sandboxes;
use health::ReadinessCheck;

platform_context! {
    /// The state of the handlers for the status of the server.
    Status, StatusInner
}

/// The fields of [`Status`].
pub struct StatusInner {
    platform: Platform,
    sandboxes: Sandboxes,
    /// The last readiness check. It is locked during a check, so that concurrent requests wait for its result.
    last_check: Mutex<Option<ReadinessCheck>>,
}

impl Status {
    pub fn new(platform: Platform, sandboxes: Sandboxes) -> Self {
        Self(Arc::new(StatusInner { platform, sandboxes, last_check: Mutex::default() }))
    }
}

pub fn router() -> OpenApiRouter<Status> {
    OpenApiRouter::new()
        .routes(routes!(health::health))
        .routes(routes!(health::ready))
        .routes(routes!(health::ping))
        .routes(routes!(prometheus::get_metrics))
}
