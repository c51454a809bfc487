//! The job that distills a lesson from a finished task.

use std::time::Duration;

use super::Learn;
use super::jobs::Distill;
use crate::jobs::{JobError, JobHandler, RunningJob, WaitReason};

/// The delay before the next attempt, which a later version of the server may execute.
const RECHECK_INTERVAL: Duration = Duration::from_hours(24);

impl JobHandler for Distill {
    type Context = Learn;

    const TIMEOUT: Duration = Duration::from_mins(10);
    const MAX_ATTEMPTS: i32 = 5;
    const CALLS_MODEL: bool = true;

    /// Snoozes the job, because this version does not implement distillation.
    async fn run(self, _: &Learn, _: &RunningJob) -> Result<(), JobError> {
        let error = anyhow::anyhow!("this version does not learn from tasks");
        Err(JobError::Snooze(WaitReason::Upgrade, error, RECHECK_INTERVAL))
    }
}
