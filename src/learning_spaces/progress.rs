//! Determines when the learning of a session is finished: when all its messages have been observed, and each of its lessons is
//! written or was skipped. If no task has been learned and the session still has open tasks after all its messages have been
//! observed, a job sets their status to `success`. The learning fails if a lesson has failed. It also fails if the observation of a
//! message has failed, or was omitted, and there is no lesson.

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
        LearningProgress { has_failed_messages: true, has_lessons: false, .. } => {
            Some(NextStep::Finish(LearningStatus::Failed))
        }
        // Lessons of preferences advance the status too, but say nothing about the tasks.
        LearningProgress { has_open_tasks: true, status: LearningStatus::Pending, .. }
        | LearningProgress { has_open_tasks: true, has_task_lessons: false, .. } => Some(NextStep::CompleteOpenTasks),
        LearningProgress { has_open_lessons: true, .. } => None,
        LearningProgress { has_failed_lessons: true, .. } => Some(NextStep::Finish(LearningStatus::Failed)),
        _ => Some(NextStep::Finish(LearningStatus::Completed)),
    }
}

/// Returns the reason why the learning of a session waits, has failed or has ended early; `None` if it does none of this.
///
/// # Errors
/// Returns an error if the database fails.
pub async fn find_reason(llm: &dyn Llm, conn: &mut PgConnection, session: SessionId) -> sqlx::Result<Option<String>> {
    if !llm.is_configured() {
        let progress = store::get_progress(conn, session).await?;
        let has_pending_messages = progress.is_some_and(|progress| progress.has_pending_messages);
        if let Some(reason) = llm::waiting_reason(llm, has_pending_messages) {
            return Ok(Some(reason));
        }
    }
    store::find_reason(conn, session).await
}

/// Returns the sessions of a learning space whose learning waits, has failed or has ended early, with the reason.
///
/// # Errors
/// Returns an error if the database fails.
pub async fn list_reasons(
    llm: &dyn Llm,
    conn: &mut PgConnection,
    space: LearningSpaceId,
) -> sqlx::Result<HashMap<SessionId, String>> {
    let mut reasons = store::list_reasons(conn, space).await?;
    if !llm.is_configured() {
        let pending = store::list_progress(conn, space).await?.into_iter();
        reasons.extend(
            pending.filter_map(|progress| {
                Some((progress.session, llm::waiting_reason(llm, progress.has_pending_messages)?))
            }),
        );
    }
    Ok(reasons)
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
    let Some(step) = finish_or_find_step(&mut locked).await? else { return Ok(false) };
    if step == NextStep::CompleteOpenTasks {
        platform.queue.enqueue(&mut locked, encryption, &FinalizeSession { session }, Delay::NONE).await?;
    }
    tx.commit().await?;
    Ok(matches!(step, NextStep::Finish(_)))
}

/// Advances the learning status of a session whose lesson has ended: to a final status if nothing is left to do. Called in the
/// transaction that ends the lesson.
///
/// # Errors
/// Returns an error if the database fails.
pub async fn finish_if_done(session: &mut LockedSession<'_>) -> sqlx::Result<()> {
    // The open tasks of a session are completed only if a client asks for the status and no task has been learned.
    finish_or_find_step(session).await.map(drop)
}

/// Sets the final status of a session if nothing is left to do. Returns the step: this one, or the one that the caller must
/// perform.
async fn finish_or_find_step(session: &mut LockedSession<'_>) -> sqlx::Result<Option<NextStep>> {
    let id = session.id;
    let step = store::get_progress(session, id).await?.as_ref().and_then(next_step);
    if let Some(NextStep::Finish(status)) = step {
        store::advance_session_status(session, status).await?;
    }
    Ok(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PENDING: LearningProgress = LearningProgress {
        session: SessionId(uuid::Uuid::nil()),
        status: LearningStatus::Pending,
        has_pending_messages: false,
        has_failed_messages: false,
        has_open_tasks: false,
        has_lessons: false,
        has_task_lessons: false,
        has_open_lessons: false,
        has_failed_lessons: false,
    };
    const WITH_LESSONS: LearningProgress = LearningProgress {
        has_lessons: true,
        has_task_lessons: true,
        has_open_lessons: true,
        status: LearningStatus::Distilling,
        ..PENDING
    };
    const COMPLETED: Option<NextStep> = Some(NextStep::Finish(LearningStatus::Completed));
    const FAILED: Option<NextStep> = Some(NextStep::Finish(LearningStatus::Failed));

    #[test]
    fn learning_finishes_when_nothing_is_left_to_learn() {
        assert_eq!(next_step(&PENDING), COMPLETED);
        assert_eq!(next_step(&LearningProgress { has_failed_messages: true, ..PENDING }), FAILED);
        assert_eq!(next_step(&WITH_LESSONS), None);
        let written = LearningProgress { has_open_lessons: false, ..WITH_LESSONS };
        assert_eq!(next_step(&written), COMPLETED);
        assert_eq!(next_step(&LearningProgress { has_failed_lessons: true, ..written }), FAILED);
        // Some messages were observed, and their tasks were learned.
        assert_eq!(next_step(&LearningProgress { has_failed_messages: true, ..written }), COMPLETED);
        assert_eq!(next_step(&LearningProgress { has_failed_lessons: true, ..WITH_LESSONS }), None);
    }

    #[test]
    fn open_tasks_are_completed_unless_a_task_is_being_learned() {
        let open = LearningProgress { has_open_tasks: true, ..PENDING };
        assert_eq!(next_step(&open), Some(NextStep::CompleteOpenTasks));
        // The lesson of another task is not distilled yet.
        let learning = LearningProgress { status: LearningStatus::Pending, has_open_tasks: true, ..WITH_LESSONS };
        assert_eq!(next_step(&learning), Some(NextStep::CompleteOpenTasks));
        assert_eq!(next_step(&LearningProgress { status: LearningStatus::Distilling, ..learning }), None);
        let learned = LearningProgress { status: LearningStatus::SkillWriting, has_open_lessons: false, ..learning };
        assert_eq!(next_step(&learned), COMPLETED);
        // Preferences are learned, and that says nothing about the open tasks.
        for has_open_lessons in [false, true] {
            let preferences = LearningProgress { has_task_lessons: false, has_open_lessons, ..learned };
            assert_eq!(next_step(&preferences), Some(NextStep::CompleteOpenTasks));
        }
    }

    #[test]
    fn no_step_while_messages_are_pending() {
        for has_open_tasks in [false, true] {
            for has_failed_messages in [false, true] {
                for progress in [PENDING, WITH_LESSONS] {
                    let pending = LearningProgress {
                        has_pending_messages: true,
                        has_open_tasks,
                        has_failed_messages,
                        ..progress
                    };
                    assert_eq!(next_step(&pending), None);
                }
            }
        }
    }
}
