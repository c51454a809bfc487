//! What is learned from conversations in the background. So far: stored messages are observed in batches, by a job for each session.
//!
//! [`queue`] has the payloads of the jobs, for all who enqueue them. [`api`] has the routes that report and expedite observation,
//! [`observe`] is the job. [`distill`] is the job of each ended task of a session that a space learns, [`finalize`] ends what is open
//! in such a session. [`settings`] reads what a project has set for itself.

pub mod api;
pub mod distill;
pub mod finalize;
pub mod observe;
pub mod queue;
pub mod settings;

use std::sync::Arc;

use tokio::sync::Notify;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::llm::Llm;
use crate::platform::{Platform, platform_context};

platform_context! {
    /// The context of learning.
    Learn, LearnInner
}

pub struct LearnInner {
    platform: Platform,
    llm: Arc<dyn Llm>,
    /// Notified whenever messages were observed.
    observation_finished: Notify,
}

impl Learn {
    pub fn new(platform: Platform, llm: Arc<dyn Llm>) -> Self {
        Self(Arc::new(LearnInner { platform, llm, observation_finished: Notify::new() }))
    }
}

pub fn router() -> OpenApiRouter<Learn> {
    OpenApiRouter::new().routes(routes!(api::get_observing_status)).routes(routes!(api::flush_session))
}
