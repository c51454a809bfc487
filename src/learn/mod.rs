//! Observation of sessions, and learning from them, in background jobs. One job per session observes its stored messages in
//! batches.
//!
//! [`jobs`] contains the payloads of the jobs, for the features that enqueue them. [`api`] contains the routes that return
//! the observation status of a session and flush it. [`observe`] is the job that observes a session, in the batches of `batch`.
//! [`settings`] reads the project's settings.
//!
//! If a learning space learns from a session, [`distill`] is the job that distills a lesson from each of its finished tasks,
//! `skill_writer` the job that writes the lesson to the skills of the space, and [`finalize`] the job that completes the open tasks.
//! `lesson_jobs` contains what the first two have in common, and `attempt_error` the errors of the jobs that call a model.
//!
//! Three models have no I/O of their own: [`task_agent`] extracts tasks from messages, [`distiller`] derives a lesson from a task,
//! and [`skill_agent`] writes lessons to skills. [`prompt`] contains the texts for models, and renders data so that it is safe in them. [`secrets`]
//! finds passwords and keys in what models write.

pub mod api;
mod attempt_error;
mod batch;
pub mod distill;
pub mod distiller;
pub mod finalize;
pub mod jobs;
mod lesson_jobs;
pub mod observe;
pub mod prompt;
mod report_thinking;
pub mod secrets;
pub mod settings;
pub mod skill_agent;
mod skill_writer;
pub mod task_agent;

use std::sync::Arc;

use tokio::sync::Notify;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::Result;
use crate::jobs::WaitReason;
use crate::llm::Llm;
use crate::platform::{Platform, platform_context};

platform_context! {
    /// The context of the routes and jobs of this module.
    Learn, LearnInner
}

/// The fields of a [`Learn`].
pub struct LearnInner {
    platform: Platform,
    llm: Arc<dyn Llm>,
    /// Notified when messages have been observed or an observation has failed.
    observation_finished: Notify,
}

impl Learn {
    pub fn new(platform: Platform, llm: Arc<dyn Llm>) -> Self {
        Self(Arc::new(LearnInner { platform, llm, observation_finished: Notify::new() }))
    }
}

/// Makes due the jobs of all kinds that wait for a model: they were snoozed by a process without one. Does nothing if this process
/// has no model. A periodic task calls this function.
///
/// # Errors
/// Returns an error if the database fails.
pub async fn resume_jobs_awaiting_model(ctx: Learn) -> Result<()> {
    if !ctx.llm.is_configured() {
        return Ok(());
    }
    let mut tx = ctx.db.begin_autocommit().await?;
    ctx.queue.make_all_due(&mut tx, WaitReason::Model).await?;
    Ok(tx.commit().await?)
}

pub fn router() -> OpenApiRouter<Learn> {
    OpenApiRouter::new().routes(routes!(api::get_observing_status)).routes(routes!(api::flush_session))
}
