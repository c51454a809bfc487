//! This feature has the routes that list the background jobs of a project and retry those that have failed.

pub mod api;

use std::sync::Arc;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::jobs::JobRegistry;
use crate::platform::{Platform, platform_context};

platform_context! {
    /// The context of the feature `job_control`.
    JobControl, JobControlInner
}

/// The fields of a [`JobControl`].
pub struct JobControlInner {
    platform: Platform,
    /// The kinds of jobs, with their maximum numbers of attempts.
    registry: JobRegistry,
}

impl JobControl {
    pub fn new(platform: Platform, registry: JobRegistry) -> Self {
        Self(Arc::new(JobControlInner { platform, registry }))
    }
}

pub fn router() -> OpenApiRouter<JobControl> {
    OpenApiRouter::new().routes(routes!(api::list_jobs)).routes(routes!(api::retry_job))
}
