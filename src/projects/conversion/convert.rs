//! The job that converts the content of a project to the storage format of the project. It reads that format in each transaction,
//! and can be interrupted between any two: what is still in the other format is found again.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use uuid::Uuid;

use super::store;
use crate::encryption::reencrypt::{ConversionProgress, Interrupt};
use crate::encryption::{ProjectEncryption, StorageFormat};
use crate::ids::ProjectId;
use crate::jobs::{self, Job, JobError, JobHandler, RunningJob, WaitReason};
use crate::projects::Projects;

#[derive(Debug, Serialize, Deserialize)]
pub struct Convert {
    pub project: ProjectId,
}

impl Job for Convert {
    const KIND: &'static str = "convert";

    fn lane(&self) -> Option<String> {
        Some(format!("convert:{}", self.project))
    }

    fn dedupe_key(&self) -> Option<String> {
        Some(self.project.to_string())
    }
}

impl JobHandler for Convert {
    type Context = Projects;

    const TIMEOUT: Duration = Duration::from_mins(10);
    /// It never fails permanently: a project must not stay with content in two formats.
    const MAX_ATTEMPTS: i32 = i32::MAX;
    /// A client waits for it.
    const MAX_BACKOFF: Duration = Duration::from_secs(15);

    async fn run(self, ctx: &Projects, running: &RunningJob) -> Result<(), JobError> {
        let converter =
            Converter { ctx, encryption: &running.encryption, deadline: Instant::now() + Self::TIMEOUT / 2 };
        match converter.convert(running).await {
            // If the target has changed, another job converts to the new one.
            Ok(()) | Err(Interrupt::TargetChanged) => {}
            Err(Interrupt::KeyMissing) => return Err(JobError::awaiting_key()),
            Err(Interrupt::OutOfTime) => {
                let error = anyhow::anyhow!("continues in its next attempt");
                return Err(JobError::Snooze(WaitReason::TimeSlice, error, Duration::ZERO));
            }
            Err(Interrupt::Failed(error)) => return Err(JobError::Retry(error)),
        }
        ctx.conversion_finished.notify_waiters();
        Ok(())
    }
}

struct Converter<'a> {
    ctx: &'a Projects,
    encryption: &'a ProjectEncryption,
    deadline: Instant,
}

impl Converter<'_> {
    async fn convert(&self, running: &RunningJob) -> Result<(), Interrupt> {
        let project = self.encryption.project;
        let mut conn = self.ctx.db.acquire().await?;
        // `None`: the project was deleted.
        let Some(format) = StorageFormat::lock_for_share(&mut conn, project).await? else { return Ok(()) };
        let mut remaining = 0;
        for content in &self.ctx.encrypted_content {
            remaining += content.count_remaining(project, format).await?;
        }
        if remaining > 0 && self.encryption.kek.is_none() {
            return Err(Interrupt::KeyMissing);
        }
        let Some(conversion) = store::set_remaining(&mut conn, project, remaining).await? else { return Ok(()) };
        drop(conn);
        let progress = Progress { converter: self, conversion };
        for content in &self.ctx.encrypted_content {
            content.convert(self.encryption, format, &progress).await?;
        }
        for content in &self.ctx.encrypted_content {
            content.delete_stale(project, format).await?;
        }
        self.finish(running, conversion, format).await
    }

    async fn finish(&self, running: &RunningJob, conversion: Uuid, format: StorageFormat) -> Result<(), Interrupt> {
        let project = self.encryption.project;
        let mut tx = self.ctx.db.begin().await?;
        if StorageFormat::lock_for_share(&mut tx, project).await? != Some(format) {
            return Err(Interrupt::TargetChanged);
        }
        let failed = store::finish(&mut tx, conversion).await?.ok_or(Interrupt::TargetChanged)?;
        if format.is_encrypted() {
            // For jobs that were enqueued in the meantime by a process that did not know yet.
            if let Some(key) = self.ctx.queue.wrap_key(self.encryption)? {
                jobs::store::set_key(&mut tx, project, Some(&key)).await?;
            }
        } else if failed == 0 {
            store::clear_key_check_value(&mut tx, project).await?;
            jobs::store::set_key(&mut tx, project, None).await?;
        }
        match running.complete(&mut tx).await {
            Ok(()) => Ok(tx.commit().await?),
            Err(JobError::Retry(error) | JobError::Permanent(error) | JobError::Snooze(_, error, _)) => {
                Err(Interrupt::Failed(error))
            }
        }
    }
}

struct Progress<'a> {
    converter: &'a Converter<'a>,
    conversion: Uuid,
}

#[async_trait]
impl ConversionProgress for Progress<'_> {
    async fn record(&self, conn: &mut PgConnection, converted: i64, damaged: &[String]) -> Result<(), Interrupt> {
        let failed = i64::try_from(damaged.len())?;
        let error = damaged.first().map(String::as_str);
        let is_current = store::add_progress(conn, self.conversion, converted, failed, error).await?;
        if is_current { Ok(()) } else { Err(Interrupt::TargetChanged) }
    }

    fn check_deadline(&self) -> Result<(), Interrupt> {
        let Converter { ctx, deadline, .. } = self.converter;
        if Instant::now() >= *deadline || ctx.process.shutdown.is_cancelled() {
            Err(Interrupt::OutOfTime)
        } else {
            Ok(())
        }
    }
}
