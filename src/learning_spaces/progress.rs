//! Decides whether a session that a space learns has come to its end: when all its messages were observed, and nothing is left to
//! learn. Tasks that are still open then were worked on to the end of the conversation; a job closes them as successes.

use sqlx::PgConnection;

use super::LearningStatus;
use super::store::{self, LearningProgress};
use crate::encryption::ProjectEncryption;
use crate::error::Result;
use crate::ids::{SessionId, SpaceId};
use crate::jobs::Delay;
use crate::learn::queue::FinalizeSession;
use crate::platform::Platform;
use crate::sessions::lock::LockedSession;

/// What is next for a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextStep {
    /// A job closes the open tasks.
    CloseTasks,
    /// The session gets this status, its last one.
    Finish(LearningStatus),
}

/// Returns what is next; `None` if nothing can be done yet.
pub fn next_step(learned: &LearningProgress) -> Option<NextStep> {
    match learned {
        LearningProgress { has_pending_messages: true, .. } => None,
        LearningProgress { has_failed: true, has_finished_tasks: false, .. } => {
            Some(NextStep::Finish(LearningStatus::Failed))
        }
        LearningProgress { has_open_tasks: true, .. } => Some(NextStep::CloseTasks),
        // Each of them has a job that learns it.
        LearningProgress { has_finished_tasks: true, .. } => None,
        _ => Some(NextStep::Finish(LearningStatus::Completed)),
    }
}

/// Lists sessions of a space that may have come to their end.
///
/// # Errors
/// The database fails.
pub async fn list_due(conn: &mut PgConnection, space: SpaceId, limit: usize) -> Result<Vec<SessionId>> {
    let pending = store::list_progress(conn, space).await?;
    let due = pending.iter().filter(|learned| next_step(learned).is_some());
    Ok(due.map(|learned| learned.session).take(limit).collect())
}

/// Checks whether a session has come to its end. Returns `true` if its status changed.
///
/// # Errors
/// The database fails.
pub async fn update_progress(platform: &Platform, encryption: &ProjectEncryption, session: SessionId) -> Result<bool> {
    let mut tx = platform.db.begin().await?;
    let Some(mut locked) = LockedSession::lock(&mut tx, encryption.project, session).await? else { return Ok(false) };
    let learned = store::get_progress(&mut locked, session).await?;
    match learned.as_ref().and_then(next_step) {
        None => return Ok(false),
        Some(NextStep::Finish(status)) => {
            store::set_session_status(&mut locked, status).await?;
            tx.commit().await?;
            return Ok(true);
        }
        Some(NextStep::CloseTasks) => {
            platform.queue.enqueue(&mut locked, encryption, &FinalizeSession { session }, Delay::NONE).await?;
        }
    }
    tx.commit().await?;
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PENDING: LearningProgress = LearningProgress {
        session: SessionId(uuid::Uuid::nil()),
        has_pending_messages: false,
        has_failed: false,
        has_open_tasks: false,
        has_finished_tasks: false,
    };

    #[test]
    fn a_session_ends_when_nothing_is_left_to_learn() {
        assert_eq!(next_step(&PENDING), Some(NextStep::Finish(LearningStatus::Completed)));
        assert_eq!(
            next_step(&LearningProgress { has_failed: true, ..PENDING }),
            Some(NextStep::Finish(LearningStatus::Failed))
        );
        assert_eq!(next_step(&LearningProgress { has_open_tasks: true, ..PENDING }), Some(NextStep::CloseTasks));
        assert_eq!(next_step(&LearningProgress { has_finished_tasks: true, ..PENDING }), None);
        let both = LearningProgress { has_open_tasks: true, has_finished_tasks: true, ..PENDING };
        assert_eq!(next_step(&both), Some(NextStep::CloseTasks));
        // A part was understood, so it is learned.
        assert_eq!(next_step(&LearningProgress { has_failed: true, ..both }), Some(NextStep::CloseTasks));
    }

    #[test]
    fn nothing_happens_before_all_is_observed() {
        for open in [false, true] {
            for failed in [false, true] {
                let pending = LearningProgress {
                    has_pending_messages: true,
                    has_open_tasks: open,
                    has_failed: failed,
                    ..PENDING
                };
                assert_eq!(next_step(&pending), None);
            }
        }
    }
}
