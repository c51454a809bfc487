//! Decides whether a session that a space learns has come to its end: when all its messages were observed, and nothing is left to
//! learn. Tasks that are still open then were worked on to the end of the conversation; a job closes them as successes.

use sqlx::PgConnection;

use super::store::{self, LearningProgress};
use crate::encryption::Owner;
use crate::error::Result;
use crate::ids::{SessionId, SpaceId};
use crate::jobs::Delay;
use crate::learn::queue::Conclude;
use crate::messages;
use crate::platform::Platform;

/// What is next for a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The open tasks are to be closed.
    Close,
    /// It has ended, as this status.
    End(&'static str),
}

/// Returns what is next; `None` if nothing can be done yet.
pub fn decide(learned: &LearningProgress) -> Option<Next> {
    match learned {
        LearningProgress { waits: true, .. } => None,
        LearningProgress { has_failed: true, has_ended_tasks: false, .. } => Some(Next::End("failed")),
        LearningProgress { has_open_tasks: true, .. } => Some(Next::Close),
        // Each of them has a job that learns it.
        LearningProgress { has_ended_tasks: true, .. } => None,
        _ => Some(Next::End("completed")),
    }
}

/// Lists sessions of a space that may have come to their end.
///
/// # Errors
/// The database fails.
pub async fn list_due(conn: &mut PgConnection, space: SpaceId, limit: usize) -> Result<Vec<SessionId>> {
    let pending = store::list_progress(conn, space).await?;
    let due = pending.iter().filter(|learned| decide(learned).is_some());
    Ok(due.map(|learned| learned.session).take(limit).collect())
}

/// Checks whether a session has come to its end. Returns `true` if its status changed.
///
/// # Errors
/// The database fails.
pub async fn update_progress(platform: &Platform, owner: &Owner, session: SessionId) -> Result<bool> {
    let mut tx = platform.db.begin().await?;
    messages::store::lock_session(&mut tx, owner.project, session).await?;
    let learned = store::get_progress(&mut tx, session).await?;
    match learned.as_ref().and_then(decide) {
        None => return Ok(false),
        Some(Next::End(status)) => {
            store::set_progress(&mut tx, session, status).await?;
            tx.commit().await?;
            return Ok(true);
        }
        Some(Next::Close) => platform.queue.enqueue(&mut tx, owner, &Conclude { session }, Delay::NONE).await?,
    }
    tx.commit().await?;
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
