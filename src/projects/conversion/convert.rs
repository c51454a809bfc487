//! The job that converts existing content to the storage format of its project. The format is read again in each transaction.
//! The job can be interrupted after each transaction: the next attempt finds the content that is still in the other format.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use uuid::Uuid;

use super::store;
use crate::encryption::conversion::{ConversionProgress, Interrupt};
use crate::encryption::{ProjectEncryption, StorageFormat};
use crate::ids::ProjectId;
use crate::jobs::{self, Job, JobError, JobHandler, RunningJob, WaitReason};
use crate::projects::Projects;

/// The job that converts a project's content.
#[derive(Debug, Serialize, Deserialize)]
pub struct ConvertProject {
    pub project: ProjectId,
}

impl Job for ConvertProject {
    const KIND: &'static str = "convert";

    fn lane(&self) -> Option<String> {
        Some(format!("convert:{}", self.project))
    }

    fn dedupe_key(&self) -> Option<String> {
        Some(self.project.to_string())
    }
}

impl JobHandler for ConvertProject {
    type Context = Projects;

    const TIMEOUT: Duration = Duration::from_mins(10);
    /// The job never fails permanently, because a project must not be left with content in two formats.
    const MAX_ATTEMPTS: i32 = i32::MAX;
    /// Short, because a client waits for the conversion.
    const MAX_BACKOFF: Duration = Duration::from_secs(15);

    async fn run(self, ctx: &Projects, running: &RunningJob) -> Result<(), JobError> {
        let attempt = Attempt { ctx, encryption: &running.encryption, deadline: Instant::now() + Self::TIMEOUT / 2 };
        match attempt.convert(running).await {
            // If the storage format has changed, another job converts the content to the new format.
            Ok(()) | Err(Interrupt::FormatChanged) => {}
            Err(Interrupt::KeyMissing) => return Err(JobError::awaiting_key()),
            Err(Interrupt::OutOfTime) => {
                let error = anyhow::anyhow!(
                    "the attempt has used its time slice, or the process is shutting down; the next attempt continues \
                     the conversion"
                );
                return Err(JobError::Snooze(WaitReason::TimeSlice, error, Duration::ZERO));
            }
            Err(Interrupt::Failed(error)) => return Err(JobError::Retry(error)),
        }
        ctx.conversion_finished.notify_waiters();
        Ok(())
    }
}

/// An attempt of the job.
struct Attempt<'a> {
    ctx: &'a Projects,
    encryption: &'a ProjectEncryption,
    deadline: Instant,
}

impl Attempt<'_> {
    async fn convert(&self, running: &RunningJob) -> Result<(), Interrupt> {
        let project = self.encryption.project;
        let mut conn = self.ctx.db.acquire().await?;
        let Some(format) = StorageFormat::lock_for_share(&mut conn, project).await? else {
            // The project was deleted.
            return Ok(());
        };
        let mut remaining = 0;
        for content in &self.ctx.content_kinds {
            remaining += content.count_remaining(project, format).await?;
        }
        if remaining > 0 && self.encryption.kek.is_none() {
            return Err(Interrupt::KeyMissing);
        }
        let Some(conversion_id) = store::begin_attempt(&mut conn, project, remaining).await? else { return Ok(()) };
        drop(conn);
        let progress = Progress { attempt: self, conversion_id };
        for content in &self.ctx.content_kinds {
            content.convert(self.encryption, format, &progress).await?;
        }
        for content in &self.ctx.content_kinds {
            content.delete_stale(project, format).await?;
        }
        self.finish(running, conversion_id, format).await
    }

    /// Finishes the conversion, and completes the job in the same transaction.
    async fn finish(&self, running: &RunningJob, conversion_id: Uuid, format: StorageFormat) -> Result<(), Interrupt> {
        let project = self.encryption.project;
        let mut tx = self.ctx.db.begin().await?;
        if StorageFormat::lock_for_share(&mut tx, project).await? != Some(format) {
            return Err(Interrupt::FormatChanged);
        }
        let failed = store::finish(&mut tx, conversion_id).await?.ok_or(Interrupt::FormatChanged)?;
        if format.is_encrypted() {
            // In the meantime, a process that did not know of the new format may have enqueued jobs without the key.
            if let Some(key) = self.ctx.queue.wrap_kek_if_encrypted(self.encryption)? {
                jobs::store::set_key_for_all(&mut tx, project, Some(&key)).await?;
            }
        } else if failed == 0 {
            store::clear_key_check_value(&mut tx, project).await?;
            jobs::store::set_key_for_all(&mut tx, project, None).await?;
        }
        match running.complete(&mut tx).await {
            Ok(()) => Ok(tx.commit().await?),
            Err(JobError::Retry(error) | JobError::Permanent(error) | JobError::Snooze(_, error, _)) => {
                Err(Interrupt::Failed(error))
            }
        }
    }
}

/// The progress of a conversion, which is recorded in the database.
struct Progress<'a> {
    attempt: &'a Attempt<'a>,
    conversion_id: Uuid,
}

#[async_trait]
impl ConversionProgress for Progress<'_> {
    async fn record(&self, conn: &mut PgConnection, converted: i64, corrupt: &[String]) -> Result<(), Interrupt> {
        let failed = i64::try_from(corrupt.len())?;
        let error = corrupt.first().map(String::as_str);
        let is_current = store::add_progress(conn, self.conversion_id, converted, failed, error).await?;
        if is_current { Ok(()) } else { Err(Interrupt::FormatChanged) }
    }

    fn check_deadline(&self) -> Result<(), Interrupt> {
        let Attempt { ctx, deadline, .. } = self.attempt;
        if Instant::now() >= *deadline || ctx.process.shutdown.is_cancelled() {
            Err(Interrupt::OutOfTime)
        } else {
            Ok(())
        }
    }
}
