//! What the two jobs of a lesson have in common: how they begin and end their work on a lesson, and how they fail.

use chrono::{NaiveDate, Utc};
use sqlx::PgConnection;

use super::Learn;
use super::attempt_error::{self, AttemptError};
use super::jobs::{Distill, WriteLesson};
use super::skill_agent::lesson::parse_original_date;
use crate::db::Tx;
use crate::encryption::ProjectEncryption;
use crate::error;
use crate::ids::{LessonId, ProjectId, SessionId};
use crate::jobs::{Delay, Job, JobError, JobQueue, RunningJob};
use crate::learning_spaces::{self, LearningStatus, progress};
use crate::lessons::LessonState;
use crate::lessons::store::{self, LessonRow};
use crate::sessions;
use crate::sessions::lock::LockedSession;

/// The maximum number of attempts to distill or write a lesson. With their backoffs they take about 50 minutes, so that a lesson
/// survives an outage of the model.
pub(super) const MAX_ATTEMPTS: i32 = 12;

/// The states of a lesson that has not ended.
const OPEN: [LessonState; 3] = [LessonState::Distilling, LessonState::Pending, LessonState::Writing];

/// The reason of a lesson whose job was abandoned.
const ABANDONED: &str = "the work on the lesson was interrupted repeatedly: it took too long, or the server stopped";

/// Locks the learning space of a lesson against deletion, and then its session. If the lesson does not exist anymore, because its
/// session or its space was deleted, logs this and returns `None`: the work on the lesson ends then.
///
/// # Errors
/// Returns an error if the database fails.
pub(super) async fn lock_lesson(
    tx: &mut Tx,
    project: ProjectId,
    lesson: LessonId,
) -> sqlx::Result<Option<(LockedSession<'_>, LessonRow)>> {
    let locked = try_lock_lesson(tx, project, lesson).await?;
    if locked.is_none() {
        log_discarded(lesson);
    }
    Ok(locked)
}

async fn try_lock_lesson(
    tx: &mut Tx,
    project: ProjectId,
    lesson: LessonId,
) -> sqlx::Result<Option<(LockedSession<'_>, LessonRow)>> {
    let Some(LessonRow { learning_space, session, .. }) = store::get(tx, project, lesson).await? else {
        return Ok(None);
    };
    if !learning_spaces::store::lock_for_share(tx, project, learning_space).await? {
        return Ok(None);
    }
    let Some(mut session) = LockedSession::lock(tx, project, session).await? else { return Ok(None) };
    let lesson = store::get(&mut session, project, lesson).await?;
    Ok(lesson.map(|lesson| (session, lesson)))
}

/// Logs why the work on a lesson ends without a result.
pub(super) fn log_discarded(lesson: LessonId) {
    tracing::info!(
        lesson.id = %lesson, reason = "the session or the learning space was deleted", "lesson discarded"
    );
}

/// Locks a lesson as [`lock_lesson`] does. Also returns `None` if the lesson is not in this state, because its work was done by an
/// earlier attempt or by the job of another lesson.
///
/// # Errors
/// Returns an error if the database fails.
pub(super) async fn lock_in_state(
    tx: &mut Tx,
    project: ProjectId,
    lesson: LessonId,
    state: LessonState,
) -> sqlx::Result<Option<(LockedSession<'_>, LessonRow)>> {
    let locked = lock_lesson(tx, project, lesson).await?;
    Ok(locked.filter(|(_, lesson)| lesson.state == state))
}

/// Checks the conditions of the work on a lesson, and advances the learning status of its session. `is_encrypted` is `true` if the
/// work requires the project's master key.
///
/// # Errors
/// Returns [`JobError::Snooze`] if no model is configured or the key is missing. Returns another error if the lease is lost or the
/// database fails.
pub(super) async fn begin(
    ctx: &Learn,
    session: &mut LockedSession<'_>,
    is_encrypted: bool,
    status: LearningStatus,
    running: &RunningJob,
) -> error::Result<(), JobError> {
    if !ctx.llm.is_configured() {
        return Err(attempt_error::awaiting_model());
    }
    if is_encrypted && running.encryption.kek.is_none() {
        return Err(JobError::awaiting_key());
    }
    learning_spaces::store::advance_session_status(session, status).await?;
    running.ensure_owned(session).await
}

/// Sets the final state of a lesson that has not ended, and finishes the learning of its session if nothing is left to do.
///
/// # Errors
/// Returns an error if the database fails.
pub(super) async fn end_lesson(
    session: &mut LockedSession<'_>,
    lesson: LessonId,
    state: LessonState,
    reason: Option<&str>,
) -> sqlx::Result<()> {
    store::set_state(session, lesson, &OPEN, state, reason).await?;
    progress::finish_if_done(session).await
}

/// Marks as failed a lesson whose job has lost its last attempt, because it timed out or the process of its worker died. Returns
/// `false` if the lesson does not exist anymore.
///
/// # Errors
/// Returns an error if the database fails.
pub(super) async fn abandon_lesson(tx: &mut Tx, project: ProjectId, lesson: LessonId) -> error::Result<bool, JobError> {
    let Some((mut session, _)) = lock_lesson(tx, project, lesson).await? else { return Ok(false) };
    end_lesson(&mut session, lesson, LessonState::Failed, Some(ABANDONED)).await?;
    Ok(true)
}

/// Records the failure of an attempt. If no other attempt follows, marks the lesson and the job as failed in one transaction. If
/// the lesson does not exist anymore, completes the job instead.
///
/// # Errors
/// Returns the error of the failure, unless the job was completed, or an error if the database fails.
pub(super) async fn record_failure(
    ctx: &Learn,
    lesson: &LessonRow,
    failure: AttemptError,
    running: &RunningJob,
) -> error::Result<(), JobError> {
    let (source, is_permanent) = match failure {
        AttemptError::Job(err) => return Err(err),
        AttemptError::Work { source, is_permanent } => (source, is_permanent),
    };
    if !is_permanent && running.attempt() < MAX_ATTEMPTS {
        return Err(JobError::Retry(source));
    }
    let mut tx = ctx.db.begin().await?;
    let Some((mut session, _)) = lock_lesson(&mut tx, running.encryption.project, lesson.id).await? else {
        running.complete(&mut tx).await?;
        return Ok(tx.commit().await?);
    };
    let reason = format!("{source:#}");
    end_lesson(&mut session, lesson.id, LessonState::Failed, Some(&reason)).await?;
    running.fail(&mut session, &source).await?;
    tx.commit().await?;
    Err(JobError::Permanent(source))
}

/// Returns the date of the lessons of a session: that of the imported conversation if the session has one, otherwise today.
///
/// # Errors
/// Returns an error if the database fails.
pub(super) async fn load_date(conn: &mut PgConnection, session: SessionId) -> sqlx::Result<NaiveDate> {
    let date = sessions::store::get_original_date(conn, session).await?;
    let original_date = date.as_deref().filter(|date| !date.trim().is_empty());
    let parsed = original_date.and_then(parse_original_date);
    if original_date.is_some() && parsed.is_none() {
        tracing::warn!(
            session.id = %session,
            "the setting original_date of the session is not a date; its lessons get the current date"
        );
    }
    Ok(parsed.unwrap_or_else(|| Utc::now().date_naive()))
}

/// Reopens the failed lessons of a session, and those that have lost their job, and enqueues new jobs for them. The learning
/// status of the session does not change, as when a client retries the job of a lesson: `failed` is final.
///
/// # Errors
/// Returns an error if the database fails.
pub(super) async fn retry_failed_lessons(
    session: &mut LockedSession<'_>,
    queue: &JobQueue,
    encryption: &ProjectEncryption,
) -> error::Result<()> {
    let id = session.id;
    for lesson in store::reopen_failed_of_session(session).await? {
        if let Some(task) = lesson.task_to_distill {
            let job = Distill { session: id, task, lesson: lesson.id };
            replace_failed_job(session, queue, encryption, &job).await?;
        } else {
            let job = WriteLesson { session: id, learning_space: lesson.learning_space, lesson: lesson.id };
            replace_failed_job(session, queue, encryption, &job).await?;
        }
    }
    Ok(())
}

/// Deletes the failed jobs with the kind and dedupe key of `job`, and enqueues `job`.
async fn replace_failed_job<J: Job>(
    session: &mut LockedSession<'_>,
    queue: &JobQueue,
    encryption: &ProjectEncryption,
    job: &J,
) -> error::Result<()> {
    let project = session.project;
    queue.delete_failed(session, project, job).await?;
    queue.enqueue(session, encryption, job, Delay::NONE).await
}
