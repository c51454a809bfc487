//! The job that turns a project's content into the form that the project wants: sealed, or opened again. It asks which one that is
//! with each step, and can be cut off between any two: what is in the other form is left to be found.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::store;
use crate::blob;
use crate::blob::rows::encryption_enabled_for_share;
use crate::db::page::Cursor;
use crate::encryption::Owner;
use crate::error::{Error, Result};
use crate::ids::{ProjectId, SessionId};
use crate::jobs::{self, Job, JobError, JobHandler, RunningJob, WaitReason};
use crate::messages;
use crate::projects::Projects;
use crate::time::Timestamp;

/// How many sessions or objects are looked up at once.
const LISTED: i64 = 500;
/// How many objects are turned at once.
const OBJECTS: usize = 4;

/// Before all that there is.
const START: Cursor = Cursor { created_at: chrono::DateTime::UNIX_EPOCH, id: Uuid::nil() };

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
    /// It is never given up: a project with content in two forms is no end.
    const MAX_ATTEMPTS: i32 = i32::MAX;
    /// A client waits for it.
    const MAX_BACKOFF: Duration = Duration::from_secs(15);

    async fn run(self, ctx: &Projects, running: &RunningJob) -> Result<(), JobError> {
        let run = Run { ctx, owner: &running.owner, enough: Instant::now() + Self::TIMEOUT / 2 };
        match run.convert(running).await {
            // Or the project was turned the other way, and there is another job for that.
            Ok(()) | Err(Stop::OtherForm) => {}
            Err(Stop::NoKey) => return Err(JobError::awaiting_key()),
            Err(Stop::Enough) => {
                let error = anyhow::anyhow!("continues in its next attempt");
                return Err(JobError::Snooze(WaitReason::TimeSlice, error, Duration::ZERO));
            }
            Err(Stop::Failed(fault)) => return Err(JobError::Retry(fault)),
        }
        ctx.conversion_finished.notify_waiters();
        Ok(())
    }
}

/// Why a try ends before all is done.
enum Stop {
    OtherForm,
    NoKey,
    /// The time is up, or the process stops.
    Enough,
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Stop {
    fn from(fault: E) -> Self {
        Self::Failed(fault.into())
    }
}

struct Run<'a> {
    ctx: &'a Projects,
    owner: &'a Owner,
    enough: Instant,
}

/// What is to be done.
#[derive(Clone, Copy)]
struct Aim {
    conversion: Uuid,
    seals: bool,
}

impl Run<'_> {
    async fn convert(&self, running: &RunningJob) -> Result<(), Stop> {
        let project = self.owner.project;
        let mut conn = self.ctx.db.acquire().await?;
        // `None`: the project is gone.
        let Some(seals) = encryption_enabled_for_share(&mut conn, project).await? else { return Ok(()) };
        let left = store::count_messages(&mut conn, project, seals).await?;
        let left = left + self.ctx.blobs.count_unconverted(project, seals).await?;
        if left > 0 && self.owner.kek.is_none() {
            return Err(Stop::NoKey);
        }
        let Some(conversion) = store::set_left(&mut conn, project, left).await? else { return Ok(()) };
        drop(conn);
        let aim = Aim { conversion, seals };
        self.turn_messages(aim).await?;
        self.turn_objects(aim).await?;
        self.ctx.blobs.delete_stale_objects(project, seals).await?;
        self.end(running, aim).await
    }

    async fn turn_messages(&self, aim: Aim) -> Result<(), Stop> {
        let mut after = START;
        loop {
            let mut conn = self.ctx.db.acquire().await?;
            let sessions = store::list_sessions(&mut conn, self.owner.project, aim.seals, after, LISTED).await?;
            drop(conn);
            let Some((_, last)) = sessions.last() else { return Ok(()) };
            after = *last;
            for (session, _) in sessions {
                self.turn_session(session, aim).await?;
            }
        }
    }

    async fn turn_session(&self, session: SessionId, aim: Aim) -> Result<(), Stop> {
        let Aim { conversion, seals } = aim;
        let mut after: Option<Timestamp> = None;
        loop {
            self.check_time()?;
            let mut tx = self.ctx.db.begin().await?;
            if encryption_enabled_for_share(&mut tx, self.owner.project).await? != Some(seals) {
                return Err(Stop::OtherForm);
            }
            if !messages::store::lock_session(&mut tx, self.owner.project, session).await? {
                return Ok(());
            }
            let turned = messages::convert::turn(&mut tx, self.owner, session, seals, after).await?;
            let error = turned.damaged.first().map(|id| format!("message {id} is damaged and stays as it is"));
            let failed = i64::try_from(turned.damaged.len())?;
            if !store::add(&mut tx, conversion, turned.count, failed, error.as_deref()).await? {
                return Err(Stop::OtherForm);
            }
            tx.commit().await?;
            let Some(next) = turned.next else { return Ok(()) };
            after = Some(next);
        }
    }

    async fn turn_objects(&self, aim: Aim) -> Result<(), Stop> {
        let mut after = START;
        loop {
            let objects = self.ctx.blobs.list_unconverted(self.owner.project, aim.seals, after, LISTED).await?;
            let Some(last) = objects.last() else { return Ok(()) };
            after = last.position;
            // What was begun is done to its end, also when another one finds that no more is wanted.
            let stop = OnceLock::new();
            let turn = async |one: blob::convert::ConversionItem| {
                if stop.get().is_none()
                    && let Err(reason) = self.turn_object(one.stored, aim).await
                {
                    // The first reason is as good as another.
                    let _ = stop.set(reason);
                }
            };
            stream::iter(objects).for_each_concurrent(OBJECTS, turn).await;
            if let Some(reason) = stop.into_inner() {
                return Err(reason);
            }
        }
    }

    async fn turn_object(&self, stored: blob::rows::StoredBlob, aim: Aim) -> Result<(), Stop> {
        self.check_time()?;
        let (done, failed, error) = match self.ctx.blobs.convert_object(self.owner, &stored, aim.seals).await {
            Ok(true) => (1, 0, None),
            Ok(false) => return Err(Stop::OtherForm),
            Err(fault @ (Error::Damaged { .. } | Error::Internal(_))) => {
                tracing::error!(content.sha256 = stored.sha256, fault = ?fault, "an object cannot be turned");
                (0, 1, Some(format!("the file with SHA-256 {} is damaged and stays as it is", stored.sha256)))
            }
            Err(fault) => return Err(fault.into()),
        };
        let mut conn = self.ctx.db.acquire().await?;
        let goes_on = store::add(&mut conn, aim.conversion, done, failed, error.as_deref()).await?;
        if goes_on { Ok(()) } else { Err(Stop::OtherForm) }
    }

    async fn end(&self, running: &RunningJob, aim: Aim) -> Result<(), Stop> {
        let Aim { conversion, seals } = aim;
        let project = self.owner.project;
        let mut tx = self.ctx.db.begin().await?;
        if encryption_enabled_for_share(&mut tx, project).await? != Some(seals) {
            return Err(Stop::OtherForm);
        }
        let failed = store::end(&mut tx, conversion).await?.ok_or(Stop::OtherForm)?;
        if seals {
            // For jobs that were left meanwhile by somebody who did not know yet.
            if let Some(key) = self.ctx.queue.wrap_key(self.owner)? {
                jobs::store::set_key(&mut tx, project, Some(&key)).await?;
            }
        } else if failed == 0 {
            store::forget_check(&mut tx, project).await?;
            jobs::store::set_key(&mut tx, project, None).await?;
        }
        match running.complete(&mut tx).await {
            Ok(()) => Ok(tx.commit().await?),
            Err(JobError::Retry(fault) | JobError::Permanent(fault) | JobError::Snooze(_, fault, _)) => {
                Err(Stop::Failed(fault))
            }
        }
    }

    fn check_time(&self) -> Result<(), Stop> {
        if Instant::now() >= self.enough || self.ctx.process.shutdown.is_cancelled() {
            Err(Stop::Enough)
        } else {
            Ok(())
        }
    }
}
