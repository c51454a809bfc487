//! The job that writes a lesson to the skills of a learning space.
//!
//! The jobs of a space run one after the other. A job runs the skill agent with its own lesson. When the agent has finished a
//! lesson, its edits are stored in one transaction ([`storage`]), together with the state of the lesson. The agent then gets the
//! next lesson that waits in the space, in the same conversation, up to a maximum number of lessons. The job of such a lesson finds
//! it written, and completes.

mod snapshot;
mod source;
mod storage;

use std::num::NonZeroU32;
use std::time::Duration;

use self::snapshot::Snapshot;
use self::source::RunLessons;
use super::Learn;
use super::attempt_error::AttemptError;
use super::jobs::WriteLesson;
use super::lesson_jobs;
use super::skill_agent::draft::SkillLimits;
use super::skill_agent::lesson::AgentLesson;
use super::skill_agent::{self, SkillAgentError, SkillAgentInput, SkillAgentResult};
use super::task_agent::CallParameters;
use crate::db::Tx;
use crate::encryption::ProjectEncryption;
use crate::jobs::{JobError, JobHandler, RunningJob};
use crate::learning_spaces::LearningStatus;
use crate::lessons::LessonState;
use crate::lessons::store::{self, LessonRow};
use crate::llm::Purpose;
use crate::llm::agent::AgentOutcome;

/// The time for the calls of the model of an attempt, with their retries.
const RUN_TIMEOUT: Duration = Duration::from_mins(20);
/// The time after which a run gets no further lesson.
const TIME_SLICE: Duration = Duration::from_mins(8);
/// The maximum number of times that an attempt repeats a lesson because its edits no longer fit the files.
const MAX_CONFLICTS: usize = 2;

impl JobHandler for WriteLesson {
    type Context = Learn;

    const TIMEOUT: Duration = Duration::from_mins(25);
    const MAX_ATTEMPTS: i32 = lesson_jobs::MAX_ATTEMPTS;
    const CALLS_MODEL: bool = true;

    async fn run(self, ctx: &Learn, running: &RunningJob) -> Result<(), JobError> {
        let (project, space) = (running.encryption.project, self.learning_space);
        // The runs of an attempt have one deadline, because the attempt has one time limit.
        let parameters = CallParameters::new(ctx, project, Purpose::SkillAgent, RUN_TIMEOUT, Some(space));
        let mut conflicts = 0;
        loop {
            let Some(lesson) = begin_lesson(ctx, &self, running).await? else { return Ok(()) };
            let (lesson, failure) = match write_lessons(ctx, lesson, parameters, running).await {
                RunEnd::Done => return Ok(()),
                RunEnd::Failed { lesson, failure, .. } if lesson.id != self.lesson => {
                    // The lesson of this job is written, so this job completes.
                    tracing::warn!(
                        lesson.id = %lesson.id, error = %failure,
                        "failed to write another lesson of the run; the job of that lesson tries again"
                    );
                    return reset_lessons(ctx, &self, running).await;
                }
                RunEnd::Failed { is_conflict: true, .. } if conflicts < MAX_CONFLICTS => {
                    conflicts += 1;
                    continue;
                }
                RunEnd::Failed { lesson, failure, .. } => (lesson, failure),
            };
            let recorded = lesson_jobs::record_failure(ctx, &lesson, failure, running).await;
            if matches!(recorded, Err(JobError::Retry(_) | JobError::Snooze(..))) {
                // Until the next attempt, the lesson waits.
                reset_lessons(ctx, &self, running).await?;
            }
            return recorded;
        }
    }

    async fn undo(self, ctx: &Learn, running: &RunningJob) -> Result<(), JobError> {
        reset_lessons(ctx, &self, running).await
    }

    async fn abandon(self, _: &Learn, encryption: &ProjectEncryption, tx: &mut Tx) -> Result<bool, JobError> {
        lesson_jobs::abandon_lesson(tx, encryption.project, self.lesson).await
    }
}

fn skill_limits(ctx: &Learn) -> SkillLimits {
    let limits = &ctx.config.limits;
    let max_skill_md_bytes = usize::try_from(limits.max_skill_md_bytes).unwrap_or(usize::MAX);
    SkillLimits { max_files: limits.max_skill_files, max_skill_md_bytes }
}

/// The end of a run of the agent.
enum RunEnd {
    /// All lessons that the run has begun are written, or their work has ended because they do not exist anymore.
    Done,
    /// This lesson, the last one of the run, is not written. Those before it are.
    Failed {
        lesson: Box<LessonRow>,
        failure: AttemptError,
        /// `true` if the edits did not fit the current files.
        is_conflict: bool,
    },
}

/// Resets the lessons of the space that this or an earlier attempt has left unfinished. The lane ensures that no other job is
/// writing lessons of the space.
async fn reset_lessons(ctx: &Learn, job: &WriteLesson, running: &RunningJob) -> Result<(), JobError> {
    let mut tx = ctx.db.begin().await?;
    store::reset_writing(&mut tx, running.encryption.project, job.learning_space).await?;
    running.ensure_owned(&mut tx).await?;
    tx.commit().await?;
    Ok(())
}

/// Begins to write the lesson of the job. Returns `None` if the lesson does not exist anymore, or was written before.
///
/// # Errors
/// Returns [`JobError::Snooze`] if the master key for an encrypted lesson is missing, or if no model is configured.
async fn begin_lesson(ctx: &Learn, job: &WriteLesson, running: &RunningJob) -> Result<Option<LessonRow>, JobError> {
    let project = running.encryption.project;
    reset_lessons(ctx, job, running).await?;
    let mut tx = ctx.db.begin().await?;
    let locked = lesson_jobs::lock_in_state(&mut tx, project, job.lesson, LessonState::Pending).await?;
    let Some((mut session, lesson)) = locked else { return Ok(None) };
    let is_encrypted = lesson.is_encrypted();
    store::set_state(&mut session, lesson.id, &[LessonState::Pending], LessonState::Writing, None).await?;
    lesson_jobs::begin(ctx, &mut session, is_encrypted, LearningStatus::SkillWriting, running).await?;
    tx.commit().await?;
    Ok(Some(lesson))
}

/// Loads the skills of the space, and the lesson as the skill agent gets it.
async fn load_run(
    ctx: &Learn,
    encryption: &ProjectEncryption,
    lesson: &LessonRow,
) -> Result<(Snapshot, AgentLesson), AttemptError> {
    let mut conn = ctx.db.acquire().await?;
    let snapshot = Snapshot::load(&mut conn, ctx, encryption, lesson.learning_space).await?;
    Ok((snapshot, source::to_agent_lesson(&mut conn, encryption, lesson).await?))
}

/// Runs the skill agent with a lesson, and with further lessons of the space.
async fn write_lessons(ctx: &Learn, lesson: LessonRow, parameters: CallParameters, running: &RunningJob) -> RunEnd {
    let encryption = &running.encryption;
    let (snapshot, first) = match load_run(ctx, encryption, &lesson).await {
        Ok(loaded) => loaded,
        Err(failure) => return RunEnd::Failed { lesson: Box::new(lesson), failure, is_conflict: false },
    };
    let learning = &ctx.config.learning;
    let input = SkillAgentInput {
        lesson: first,
        skills: snapshot.stored_skills(),
        limits: skill_limits(ctx),
        max_iterations: learning.skill_agent_iterations,
        extra_iterations: NonZeroU32::new(learning.skill_agent_extra_iterations).unwrap_or(NonZeroU32::MIN),
    };
    let mut lessons = RunLessons::new(ctx, running, lesson, snapshot);
    let result = skill_agent::run_skill_agent(&*ctx.llm, &input, parameters, &mut lessons).await;
    if let Ok(run) = &result {
        ctx.model_metrics.record_run(Purpose::SkillAgent, run.outcome);
    }
    to_run_end(result, lessons)
}

fn to_run_end(result: Result<SkillAgentResult, SkillAgentError>, lessons: RunLessons<'_>) -> RunEnd {
    let (failure, is_conflict) = match result {
        Ok(SkillAgentResult {
            outcome: outcome @ (AgentOutcome::OnlyErrors | AgentOutcome::ContentFilter), ..
        }) => (AttemptError::without_result(lessons.model(), outcome), false),
        Ok(_) => return RunEnd::Done,
        Err(SkillAgentError::Llm(err)) => (err.into(), false),
        Err(SkillAgentError::Store(err)) => match err.downcast::<storage::StorageError>() {
            Ok(storage::StorageError::LessonDeleted) => return RunEnd::Done,
            Ok(conflict @ storage::StorageError::Conflict) => (AttemptError::transient(conflict), true),
            Ok(storage::StorageError::Failure(failure)) => (failure, false),
            Err(err) => (AttemptError::transient(err), false),
        },
    };
    RunEnd::Failed { lesson: Box::new(lessons.into_current()), failure, is_conflict }
}
