//! The job that distills a lesson from a finished task.
//!
//! The lesson was created, with the status and data of the task at its end, in the transaction that finished the task. The job
//! stores the text of the lesson and enqueues the job that writes it to the skills, in one transaction. If the task was reopened in
//! the meantime, the lesson is skipped: the task will end again.

use std::time::Duration;

use sqlx::PgConnection;

use super::Learn;
use super::attempt_error::AttemptError;
use super::batch::to_prompt_message;
use super::distiller::{self, Distillation, DistillationInput, DistilledLesson, DistilledTask};
use super::jobs::{Distill, WriteLesson};
use super::lesson_jobs;
use super::prompt::messages::PromptMessage;
use super::task_agent::CallParameters;
use crate::db::Tx;
use crate::encryption::stored_text::StoredText;
use crate::encryption::{ProjectEncryption, StorageFormat};
use crate::error::Result;
use crate::ids::MessageId;
use crate::jobs::{Delay, JobError, JobHandler, RunningJob};
use crate::learning_spaces::{self, LearningStatus};
use crate::lessons::LessonState;
use crate::lessons::store::{self, LessonRow};
use crate::llm::Purpose;
use crate::messages::observing;
use crate::sessions::lock::LockedSession;
use crate::skills;
use crate::tasks::edits::StoredTask;
use crate::tasks::{self, TaskStatus};

/// The time for the calls of the model for one lesson, with their retries.
const DISTILLATION_TIMEOUT: Duration = Duration::from_mins(15);
/// The maximum number of messages of a task that are loaded, the newest ones. A prompt has no room for more.
const MAX_MESSAGES: i64 = 200;
/// The maximum number of skills that the model receives.
const MAX_SKILLS: usize = 200;

/// The reason of a lesson whose task was reopened.
const REOPENED: &str = "the task was reopened before it was distilled";
/// The reason of a lesson that the model has skipped. The model's own reason is not stored, because it may contain content of the
/// session, which must be encrypted in an encrypted project.
const NOTHING_TO_LEARN: &str = "the model has found nothing to learn from the task";

impl JobHandler for Distill {
    type Context = Learn;

    const TIMEOUT: Duration = Duration::from_mins(20);
    const MAX_ATTEMPTS: i32 = lesson_jobs::MAX_ATTEMPTS;
    const CALLS_MODEL: bool = true;

    async fn run(self, ctx: &Learn, running: &RunningJob) -> Result<(), JobError> {
        let Some(loaded) = load(ctx, &self, running).await? else { return Ok(()) };
        let (project, space) = (running.encryption.project, loaded.lesson.learning_space);
        let parameters = CallParameters::new(ctx, project, Purpose::Distillation, DISTILLATION_TIMEOUT, Some(space));
        let distilled = distiller::distill_lesson(&*ctx.llm, &loaded.input, parameters).await;
        if let Ok(distilled) = &distilled {
            ctx.model_metrics.record_run(Purpose::Distillation, distilled.outcome());
        }
        let result = match distilled {
            Ok(Distillation::Lesson(lesson)) => store_lesson(ctx, &loaded, &lesson, running).await,
            Ok(Distillation::Skipped) => skip(ctx, &loaded.lesson, NOTHING_TO_LEARN, running).await,
            Ok(Distillation::Missing(outcome)) => Err(AttemptError::without_result(ctx.llm.model(), outcome)),
            Err(err) => Err(err.into()),
        };
        match result {
            Ok(()) => Ok(()),
            Err(failure) => lesson_jobs::record_failure(ctx, &loaded.lesson, failure, running).await,
        }
    }

    async fn abandon(self, _: &Learn, encryption: &ProjectEncryption, tx: &mut Tx) -> Result<bool, JobError> {
        lesson_jobs::abandon_lesson(tx, encryption.project, self.lesson).await
    }
}

/// A lesson with what its distillation needs.
struct LoadedLesson {
    lesson: LessonRow,
    input: DistillationInput,
    messages: Vec<MessageId>,
}

/// Loads a lesson that is to be distilled, and sets the learning status of its session. Completes the job and returns `None` if
/// the lesson does not exist anymore, was distilled before, or is skipped because its task was reopened.
///
/// # Errors
/// Returns [`JobError::Snooze`] if the master key for an encrypted message is missing, or if no model is configured.
async fn load(ctx: &Learn, job: &Distill, running: &RunningJob) -> Result<Option<LoadedLesson>, JobError> {
    let project = running.encryption.project;
    let mut tx = ctx.db.begin().await?;
    let locked = lesson_jobs::lock_in_state(&mut tx, project, job.lesson, LessonState::Distilling).await?;
    let Some((mut session, lesson)) = locked else { return Ok(None) };
    let all_tasks = tasks::edits::list_all(&mut session, project, job.session).await?;
    let task = all_tasks.iter().find(|task| task.id == job.task);
    if task.is_none_or(|task| !task.status.is_finished()) {
        // The learning has begun, so reading its status must not complete the open task.
        learning_spaces::store::advance_session_status(&mut session, LearningStatus::Distilling).await?;
        lesson_jobs::end_lesson(&mut session, job.lesson, LessonState::Skipped, Some(REOPENED)).await?;
        running.complete(&mut session).await?;
        tx.commit().await?;
        return Ok(None);
    }
    let loaded = observing::load_task_messages(&mut session, job.task, lesson.ended_at, MAX_MESSAGES).await?;
    let skills = list_skills(&mut session, &lesson).await?;
    let date = lesson_jobs::load_date(&mut session, job.session).await?;
    let is_encrypted = loaded.iter().any(|message| message.encrypted_as.is_some());
    lesson_jobs::begin(ctx, &mut session, is_encrypted, LearningStatus::Distilling, running).await?;
    tx.commit().await?;
    let messages = loaded.iter().map(|message| message.id).collect();
    let rendered = loaded.into_iter().map(|message| to_prompt_message(&running.encryption, message));
    let task = DistilledTask {
        status: lesson.task_status.unwrap_or(TaskStatus::Success),
        data: lesson.task_data.as_ref().map(|data| data.0.clone()).unwrap_or_default(),
    };
    // The task may have been reopened and have ended again. The model gets it as it was at the end that the lesson is about.
    let at_that_end = |stored: StoredTask| if stored.id == job.task { task.clone() } else { to_distilled(stored) };
    let input = DistillationInput {
        all_tasks: all_tasks.into_iter().filter(|task| !task.is_planning).map(at_that_end).collect(),
        task,
        date,
        messages: rendered.collect::<Result<Vec<PromptMessage>>>()?,
        skills,
    };
    Ok(Some(LoadedLesson { lesson, input, messages }))
}

fn to_distilled(task: StoredTask) -> DistilledTask {
    DistilledTask { status: task.status, data: task.data.0 }
}

/// Returns the names and descriptions of the skills of the lesson's learning space.
async fn list_skills(session: &mut LockedSession<'_>, lesson: &LessonRow) -> sqlx::Result<Vec<(String, String)>> {
    let (project, conn): (_, &mut PgConnection) = (session.project, session);
    let skills = skills::store::list_by_space(conn, project, lesson.learning_space, MAX_SKILLS).await?;
    Ok(skills.into_iter().map(|skill| (skill.name, skill.description)).collect())
}

/// Stores the text of the lesson, and enqueues the job that writes it.
async fn store_lesson(
    ctx: &Learn,
    loaded: &LoadedLesson,
    distilled: &DistilledLesson,
    running: &RunningJob,
) -> Result<(), AttemptError> {
    let LoadedLesson { lesson, messages, .. } = loaded;
    let project = running.encryption.project;
    let mut tx = ctx.db.begin().await?;
    let Some(format) = StorageFormat::lock_for_share(&mut tx, project).await? else {
        lesson_jobs::log_discarded(lesson.id);
        return Ok(());
    };
    let Some((mut session, _)) = lesson_jobs::lock_lesson(&mut tx, project, lesson.id).await? else { return Ok(()) };
    let text = StoredText::new(&running.encryption, format, lesson.id.0, &distilled.text)?;
    if store::set_distilled(&mut session, lesson.id, distilled.kind, &text, messages).await? {
        let must_wait = store::is_writing_other(&mut session, lesson.learning_space, lesson.id).await?;
        let status = if must_wait { LearningStatus::Queued } else { LearningStatus::SkillWriting };
        learning_spaces::store::advance_session_status(&mut session, status).await?;
        let job = WriteLesson { session: lesson.session, learning_space: lesson.learning_space, lesson: lesson.id };
        ctx.queue.enqueue(&mut session, &running.encryption, &job, Delay::NONE).await?;
    }
    running.complete(&mut session).await?;
    tx.commit().await?;
    tracing::info!(
        session.id = %lesson.session, lesson.id = %lesson.id, lesson.kind = %distilled.kind, "lesson distilled"
    );
    Ok(())
}

/// Marks the lesson as skipped, and completes the job.
async fn skip(ctx: &Learn, lesson: &LessonRow, reason: &str, running: &RunningJob) -> Result<(), AttemptError> {
    let mut tx = ctx.db.begin().await?;
    let locked = lesson_jobs::lock_lesson(&mut tx, running.encryption.project, lesson.id).await?;
    let Some((mut session, _)) = locked else { return Ok(()) };
    lesson_jobs::end_lesson(&mut session, lesson.id, LessonState::Skipped, Some(reason)).await?;
    running.complete(&mut session).await?;
    tx.commit().await?;
    tracing::info!(session.id = %lesson.session, lesson.id = %lesson.id, "lesson skipped");
    Ok(())
}
