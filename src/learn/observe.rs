//! The job that looks at the messages of a session: batch after batch, oldest first, until none waits.
//!
//! A session has one such job at most. Whoever stores a message leaves one if there is none (`sessions.observing`), due when
//! the message has waited long enough, or at once when enough wait. The job ends in the transaction that finds nothing left
//! to do, under the session's lock; so no message can be stored in between and be forgotten.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::store::{self, Said};
use crate::app::App;
use crate::error::Result;
use crate::ids::SessionId;
use crate::jobs::{self, Delay, Job, JobError, Running};
use crate::llm::{LlmError, Request};
use crate::metrics;
use crate::seal::{Owner, frame};

/// How soon to look again whether there is a model.
const NO_MODEL: Duration = Duration::from_hours(24);

#[derive(Debug, Serialize, Deserialize)]
pub struct Observe {
    pub session: SessionId,
}

impl Job for Observe {
    const KIND: &'static str = "observe";
    const TIMEOUT: Duration = Duration::from_mins(10);
    const MAX_ATTEMPTS: i32 = 5;

    fn lane(&self) -> Option<String> {
        Some(format!("session:{}", self.session))
    }

    fn dedupe(&self) -> Option<String> {
        Some(self.session.to_string())
    }

    async fn run(self, app: App, running: &Running) -> Result<(), JobError> {
        begin(&app, self.session).await?;
        while let Some(batch) = take(&app, self.session, running).await? {
            let outcome = look_at(&app, &running.owner, &batch).await;
            settle(&app, self.session, &batch, outcome, running).await?;
            app.observed.notify_waiters();
        }
        app.observed.notify_waiters();
        Ok(())
    }
}

/// What a try that died has left behind waits again: the lane says that nobody else works on it.
async fn begin(app: &App, session: SessionId) -> Result<(), JobError> {
    let mut tx = app.begin().await?;
    if store::lock(&mut tx, session).await?.is_some() {
        store::set_status(&mut tx, session, None, "running", "pending").await?;
    }
    tx.commit().await?;
    Ok(())
}

/// Takes the next batch; `None` if nothing waits, and then the job has completed.
async fn take(app: &App, session: SessionId, running: &Running) -> Result<Option<Vec<Uuid>>, JobError> {
    let mut tx = app.begin().await?;
    let Some(locked) = store::lock(&mut tx, session).await? else {
        return Ok(None);
    };
    if metrics::store::is_excess(&mut tx, locked.project, metrics::store::TASKS).await? {
        store::set_status(&mut tx, session, None, "pending", "limit_exceed").await?;
    }
    let settings = &app.config.learning;
    let turns = locked.turns.unwrap_or(i64::try_from(settings.buffer_turns)?).max(1);
    let overflow = locked.overflow.unwrap_or(settings.buffer_overflow.into()).max(0);
    let batch = store::take(&mut tx, session, turns.saturating_add(overflow)).await?;
    if batch.is_empty() {
        store::set_observing(&mut tx, session, false).await?;
        running.complete(&mut tx).await?;
        tx.commit().await?;
        return Ok(None);
    }
    if running.owner.kek.is_none() && store::has_sealed(&mut tx, &batch).await? {
        // As below.
        return Err(JobError::needs_key());
    }
    if !app.llm.is_configured() {
        // The messages were not taken: this is rolled back.
        return Err(JobError::NotYet(LlmError::NotConfigured.into(), NO_MODEL));
    }
    tx.commit().await?;
    Ok(Some(batch))
}

/// Asks the model about a batch.
async fn look_at(app: &App, owner: &Owner, batch: &[Uuid]) -> Result<(), Fault> {
    let mut conn = app.db.acquire().await.map_err(Fault::again)?;
    let said = store::list_said(&mut conn, batch).await.map_err(Fault::again)?;
    drop(conn);
    let mut lines = Vec::with_capacity(said.len());
    for Said { id, role, content, sealed_as, .. } in said {
        let content = match sealed_as {
            Some(of) => frame::open(owner.opening().map_err(Fault::again)?, of, content),
            None => Ok(content),
        };
        match content {
            Ok(content) => lines.push(format!("{role}: {}", String::from_utf8_lossy(&content))),
            Err(fault) => tracing::error!(message.id = %id, error = %fault, "a message does not open"),
        }
    }
    let prompt = lines.join("\n");
    let system = "You read what an agent and its user say to each other.".to_owned();
    match app.llm.complete(Request { system, prompt }).await {
        Ok(_) => Ok(()),
        Err(fault @ LlmError::Refused(_)) => Err(Fault { reason: fault.into(), is_final: true }),
        Err(fault) => Err(Fault::again(fault)),
    }
}

struct Fault {
    reason: anyhow::Error,
    /// Another try would not do better.
    is_final: bool,
}

impl Fault {
    fn again(reason: impl Into<anyhow::Error>) -> Self {
        Self { reason: reason.into(), is_final: false }
    }
}

/// Writes down what became of a batch.
async fn settle(
    app: &App,
    session: SessionId,
    batch: &[Uuid],
    outcome: Result<(), Fault>,
    running: &Running,
) -> Result<(), JobError> {
    let mut tx = app.begin().await?;
    if store::lock(&mut tx, session).await?.is_none() {
        return Ok(());
    }
    let Err(Fault { reason, is_final }) = outcome else {
        store::set_status(&mut tx, session, Some(batch), "running", "success").await?;
        tx.commit().await?;
        return Ok(());
    };
    let is_last = is_final || running.attempt >= Observe::MAX_ATTEMPTS;
    let status = if is_last { "failed" } else { "pending" };
    store::set_status(&mut tx, session, Some(batch), "running", status).await?;
    if is_last {
        // What came meanwhile is not the fault of these.
        let rest = store::count_unobserved(&mut tx, session, None).await? > 0;
        store::set_observing(&mut tx, session, rest).await?;
        if rest {
            let delay = Delay::of(app.config.learning.buffer_ttl);
            jobs::enqueue(app, &mut tx, &running.owner, &Observe { session }, delay).await?;
        }
    }
    tx.commit().await?;
    app.observed.notify_waiters();
    let reason = reason.context("LLM complete failed");
    Err(if is_final { JobError::GiveUp(reason) } else { JobError::Retry(reason) })
}

/// Sees to it that no message waits without a job, whatever happened to it, and that those which wait for a model need not
/// wait longer now that there is one. Without a model there is nothing to hurry.
pub async fn find_forgotten(app: App) -> Result<()> {
    if !app.llm.is_configured() {
        return Ok(());
    }
    let mut conn = app.db.acquire().await?;
    let forgotten = store::list_forgotten(&mut conn, 1_000).await?;
    let hurried = store::hurry_all(&mut conn, &LlmError::NotConfigured.to_string()).await?;
    drop(conn);
    for session in &forgotten {
        let mut tx = app.begin().await?;
        if let Some(locked) = store::lock(&mut tx, *session).await? {
            store::set_observing(&mut tx, *session, true).await?;
            jobs::enqueue(&app, &mut tx, &Owner::plain(locked.project), &Observe { session: *session }, Delay::NONE)
                .await?;
        }
        tx.commit().await?;
    }
    if hurried > 0 || !forgotten.is_empty() {
        app.jobs.wake();
    }
    Ok(())
}
