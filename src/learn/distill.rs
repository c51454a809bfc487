//! The job that learns from a task that has ended.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::app::App;
use crate::ids::TaskId;
use crate::jobs::{Job, JobError, Running};

/// How soon to look again whether this can be done.
const LATER: Duration = Duration::from_hours(24);

#[derive(Debug, Serialize, Deserialize)]
pub struct Distill {
    pub task: TaskId,
}

impl Job for Distill {
    const KIND: &'static str = "distill";
    const TIMEOUT: Duration = Duration::from_mins(10);
    const MAX_ATTEMPTS: i32 = 5;

    fn dedupe(&self) -> Option<String> {
        Some(self.task.to_string())
    }

    /// Nothing is learned by this version: what is to be learned waits, and says why.
    async fn run(self, _: App, _: &Running) -> Result<(), JobError> {
        Err(JobError::NotYet(anyhow::anyhow!("this version does not learn from tasks"), LATER))
    }
}
