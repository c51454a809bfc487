//! The job that completes the open tasks of a session that a learning space learns from. Its conditions are in
//! [`crate::learning_spaces::progress`].

use std::time::Duration;

use super::Learn;
use super::jobs::FinalizeSession;
use crate::jobs::{JobError, JobHandler, RunningJob};
use crate::learning_spaces::progress::{self, NextStep};
use crate::lessons::create;
use crate::sessions::lock::LockedSession;
use crate::{learning_spaces, tasks};

impl JobHandler for FinalizeSession {
    type Context = Learn;

    const TIMEOUT: Duration = Duration::from_mins(1);
    const MAX_ATTEMPTS: i32 = 5;

    async fn run(self, ctx: &Learn, running: &RunningJob) -> Result<(), JobError> {
        let mut tx = ctx.db.begin().await?;
        if let Some(mut session) = LockedSession::lock(&mut tx, running.encryption.project, self.session).await? {
            // If messages have been stored in the meantime, the tasks stay open. A request for the learning status enqueues
            // the job again after these messages have been observed.
            let progress = learning_spaces::store::get_progress(&mut session, self.session).await?;
            if progress.as_ref().and_then(progress::next_step) == Some(NextStep::CompleteOpenTasks) {
                let completed = tasks::store::complete_open(&mut session).await?;
                create::create_for_tasks(&mut session, &ctx.queue, &running.encryption, &completed).await?;
            }
        }
        running.complete(&mut tx).await?;
        Ok(tx.commit().await?)
    }
}
