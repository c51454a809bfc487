//! Brings a session that is learned to its end, when somebody looks at it and all its messages were observed: tasks that are
//! still open were worked on to the end of the conversation, so they are closed as successes and learned. Looking changes no
//! task; the job does.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::distill::Distill;
use super::store::{self, LearningProgress};
use crate::app::App;
use crate::error::Result;
use crate::ids::{SessionId, SpaceId};
use crate::jobs::{self, Delay, Job, JobError, Running};
use crate::seal::Owner;
use crate::tasks;

#[derive(Debug, Serialize, Deserialize)]
pub struct Conclude {
    pub session: SessionId,
}

impl Job for Conclude {
    const KIND: &'static str = "conclude";
    const TIMEOUT: Duration = Duration::from_mins(1);
    const MAX_ATTEMPTS: i32 = 5;

    fn lane(&self) -> Option<String> {
        Some(format!("session:{}", self.session))
    }

    fn dedupe(&self) -> Option<String> {
        Some(self.session.to_string())
    }

    async fn run(self, app: App, running: &Running) -> Result<(), JobError> {
        let mut tx = app.begin().await?;
        store::lock(&mut tx, self.session).await?;
        // Messages may have come meanwhile; whoever looks again after them asks for this again.
        let learned = store::get_learned(&mut tx, self.session).await?;
        if learned.as_ref().and_then(decide) == Some(Next::Close) {
            for task in tasks::store::close_open(&mut tx, running.owner.project, self.session).await? {
                jobs::enqueue(&app, &mut tx, &running.owner, &Distill { task }, Delay::NONE).await?;
            }
        }
        running.complete(&mut tx).await?;
        tx.commit().await?;
        app.jobs.wake();
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// The open tasks are to be closed.
    Close,
    /// It has ended, as this status.
    End(&'static str),
}

fn decide(learned: &LearningProgress) -> Option<Next> {
    match learned {
        LearningProgress { waits: true, .. } => None,
        LearningProgress { has_failed: true, has_ended_tasks: false, .. } => Some(Next::End("failed")),
        LearningProgress { has_open_tasks: true, .. } => Some(Next::Close),
        // Each of them has a job that learns it.
        LearningProgress { has_ended_tasks: true, .. } => None,
        _ => Some(Next::End("completed")),
    }
}

/// Sessions of a space that may have come to their end.
///
/// # Errors
/// The database fails.
pub async fn list_due(conn: &mut PgConnection, space: SpaceId, limit: usize) -> Result<Vec<SessionId>> {
    let pending = store::list_learned(conn, space).await?;
    let due = pending.iter().filter(|learned| decide(learned).is_some());
    Ok(due.map(|learned| learned.session).take(limit).collect())
}

/// Looks whether a session has come to its end. Whether its status changed.
///
/// # Errors
/// The database fails.
pub async fn look(app: &App, owner: &Owner, session: SessionId) -> Result<bool> {
    let mut tx = app.begin().await?;
    store::lock(&mut tx, session).await?;
    let learned = store::get_learned(&mut tx, session).await?;
    match learned.as_ref().and_then(decide) {
        None => return Ok(false),
        Some(Next::End(status)) => {
            store::set_learned(&mut tx, session, status).await?;
            tx.commit().await?;
            return Ok(true);
        }
        Some(Next::Close) => jobs::enqueue(app, &mut tx, owner, &Conclude { session }, Delay::NONE).await?,
    }
    tx.commit().await?;
    app.jobs.wake();
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PENDING: LearningProgress = LearningProgress {
        session: SessionId(uuid::Uuid::nil()),
        waits: false,
        has_failed: false,
        has_open_tasks: false,
        has_ended_tasks: false,
    };

    #[test]
    fn a_session_ends_when_nothing_is_left_to_learn() {
        assert_eq!(decide(&PENDING), Some(Next::End("completed")));
        assert_eq!(decide(&LearningProgress { has_failed: true, ..PENDING }), Some(Next::End("failed")));
        assert_eq!(decide(&LearningProgress { has_open_tasks: true, ..PENDING }), Some(Next::Close));
        assert_eq!(decide(&LearningProgress { has_ended_tasks: true, ..PENDING }), None);
        let both = LearningProgress { has_open_tasks: true, has_ended_tasks: true, ..PENDING };
        assert_eq!(decide(&both), Some(Next::Close));
        // A part was understood, so it is learned.
        assert_eq!(decide(&LearningProgress { has_failed: true, ..both }), Some(Next::Close));
    }

    #[test]
    fn nothing_happens_before_all_is_observed() {
        for open in [false, true] {
            for failed in [false, true] {
                let waits = LearningProgress { waits: true, has_open_tasks: open, has_failed: failed, ..PENDING };
                assert_eq!(decide(&waits), None);
            }
        }
    }
}
