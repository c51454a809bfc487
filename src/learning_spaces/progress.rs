//! Determines when the learning of a session is finished: when all its messages have been observed and nothing is left to
//! learn. If the session still has open tasks after all its messages have been observed, a job sets their status to `success`.
//! The learning fails if the observation of a message has failed, or was omitted, and no task is finished.

use std::collections::HashMap;

use sqlx::PgConnection;

use super::LearningStatus;
use super::store::{self, LearningProgress};
use crate::encryption::ProjectEncryption;
use crate::error::Result;
use crate::ids::{LearningSpaceId, SessionId};
use crate::jobs::Delay;
use crate::learn::jobs::FinalizeSession;
use crate::llm::{self, Llm};
use crate::platform::Platform;
use crate::sessions::lock::LockedSession;

/// The next step in the learning of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextStep {
    /// Enqueue the job that completes the open tasks.
    CompleteOpenTasks,
    /// Set this final status.
    Finish(LearningStatus),
}

/// Returns the next step; `None` if there is nothing to do yet.
pub fn next_step(progress: &LearningProgress) -> Option<NextStep> {
    match progress {
        LearningProgress { has_pending_messages: true, .. } => None,
        LearningProgress { has_failed: true, has_finished_tasks: false, .. } => {
            Some(NextStep::Finish(LearningStatus::Failed))
        }
        LearningProgress { has_open_tasks: true, .. } => Some(NextStep::CompleteOpenTasks),
        // The learning is finished when the jobs that distill these tasks have completed.
        LearningProgress { has_finished_tasks: true, .. } => None,
        _ => Some(NextStep::Finish(LearningStatus::Completed)),
    }
}

/// Returns the reason why the learning of a session waits for a model; `None` if it does not.
///
/// # Errors
/// Returns an error if the database fails.
pub async fn waiting_reason(
    llm: &dyn Llm,
    conn: &mut PgConnection,
    session: SessionId,
) -> sqlx::Result<Option<String>> {
    if llm.is_configured() {
        return Ok(None);
    }
    let progress = store::get_progress(conn, session).await?;
    Ok(llm::waiting_reason(llm, progress.is_some_and(|progress| progress.has_pending_messages)))
}

/// Returns the sessions of a learning space whose learning waits for a model, with the reason.
///
/// # Errors
/// Returns an error if the database fails.
pub async fn list_waiting_reasons(
    llm: &dyn Llm,
    conn: &mut PgConnection,
    space: LearningSpaceId,
) -> sqlx::Result<HashMap<SessionId, String>> {
    if llm.is_configured() {
        return Ok(HashMap::new());
    }
    let pending = store::list_progress(conn, space).await?.into_iter();
    let with_reason = pending
        .filter_map(|progress| Some((progress.session, llm::waiting_reason(llm, progress.has_pending_messages)?)));
    Ok(with_reason.collect())
}

/// Lists up to `limit` sessions of a learning space that have a next step.
///
/// # Errors
/// Returns an error if the database fails.
pub async fn list_with_next_step(
    conn: &mut PgConnection,
    space: LearningSpaceId,
    limit: usize,
) -> Result<Vec<SessionId>> {
    let pending = store::list_progress(conn, space).await?;
    let with_next_step = pending.iter().filter(|progress| next_step(progress).is_some());
    Ok(with_next_step.map(|progress| progress.session).take(limit).collect())
}

/// Performs the next step in the learning of a session, if there is one. Returns `true` if the learning status has changed.
///
/// # Errors
/// Returns an error if the database fails.
pub async fn perform_next_step(
    platform: &Platform,
    encryption: &ProjectEncryption,
    session: SessionId,
) -> Result<bool> {
    let mut tx = platform.db.begin().await?;
    let Some(mut locked) = LockedSession::lock(&mut tx, encryption.project, session).await? else { return Ok(false) };
    let progress = store::get_progress(&mut locked, session).await?;
    match progress.as_ref().and_then(next_step) {
        None => return Ok(false),
        Some(NextStep::Finish(status)) => {
            store::set_session_status(&mut locked, status).await?;
            tx.commit().await?;
            return Ok(true);
        }
        Some(NextStep::CompleteOpenTasks) => {
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
    fn learning_finishes_when_nothing_is_left_to_learn() {
        assert_eq!(next_step(&PENDING), Some(NextStep::Finish(LearningStatus::Completed)));
        assert_eq!(
            next_step(&LearningProgress { has_failed: true, ..PENDING }),
            Some(NextStep::Finish(LearningStatus::Failed))
        );
        assert_eq!(next_step(&LearningProgress { has_open_tasks: true, ..PENDING }), Some(NextStep::CompleteOpenTasks));
        assert_eq!(next_step(&LearningProgress { has_finished_tasks: true, ..PENDING }), None);
        let both = LearningProgress { has_open_tasks: true, has_finished_tasks: true, ..PENDING };
        assert_eq!(next_step(&both), Some(NextStep::CompleteOpenTasks));
        // Some messages were observed, so their tasks are learned.
        assert_eq!(next_step(&LearningProgress { has_failed: true, ..both }), Some(NextStep::CompleteOpenTasks));
    }

    #[test]
    fn no_step_while_messages_are_pending() {
        for has_open_tasks in [false, true] {
            for has_failed in [false, true] {
                let pending = LearningProgress { has_pending_messages: true, has_open_tasks, has_failed, ..PENDING };
                assert_eq!(next_step(&pending), None);
            }
        }
    }
}
