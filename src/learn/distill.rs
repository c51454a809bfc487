//! The job that learns from a task that has ended.

use std::time::Duration;

use super::Learn;
use super::queue::Distill;
use crate::jobs::{JobError, JobHandler, RunningJob, WaitReason};

/// How soon to check again whether this can be done.
const LATER: Duration = Duration::from_hours(24);

impl JobHandler for Distill {
    type Context = Learn;

    const TIMEOUT: Duration = Duration::from_mins(10);
    const MAX_ATTEMPTS: i32 = 5;

    /// Nothing is learned by this version: what is to be learned waits, and says why.
    async fn run(self, _: &Learn, _: &RunningJob) -> Result<(), JobError> {
        let error = anyhow::anyhow!("this version does not learn from tasks");
        Err(JobError::Snooze(WaitReason::Upgrade, error, LATER))
    }
}
