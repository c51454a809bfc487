//! The lessons of a run of the skill agent.

use async_trait::async_trait;
use sqlx::PgConnection;
use tokio::time::Instant;

use super::TIME_SLICE;
use super::snapshot::{Snapshot, SnapshotFiles};
use super::storage::{self, StorageError};
use crate::disks::path::FilePath;
use crate::encryption::ProjectEncryption;
use crate::error::Result;
use crate::ids::SkillId;
use crate::jobs::RunningJob;
use crate::learn::skill_agent::draft::{FileText, SkillFiles};
use crate::learn::skill_agent::edits::SkillEdit;
use crate::learn::skill_agent::lesson::AgentLesson;
use crate::learn::skill_agent::{LessonSource, NextLesson};
use crate::learn::{Learn, lesson_jobs};
use crate::learning_spaces::{self, LearningStatus};
use crate::lessons::store::{self, LessonRow};
use crate::lessons::{LessonKind, LessonState};
use crate::llm::agent::AgentOutcome;

/// The lessons of a run: it stores the edits of the current lesson, and finds the next one.
pub(super) struct RunLessons<'a> {
    ctx: &'a Learn,
    running: &'a RunningJob,
    /// The current lesson.
    current: LessonRow,
    snapshot: Snapshot,
    /// The number of lessons of the run, with the current one.
    count: usize,
    started_at: Instant,
}

impl<'a> RunLessons<'a> {
    pub(super) fn new(ctx: &'a Learn, running: &'a RunningJob, first: LessonRow, snapshot: Snapshot) -> Self {
        Self { ctx, running, current: first, snapshot, count: 1, started_at: Instant::now() }
    }

    /// Returns the name of the model of the run.
    pub(super) fn model(&self) -> &str {
        self.ctx.llm.model()
    }

    /// Returns the last lesson of the run.
    pub(super) fn into_current(self) -> LessonRow {
        self.current
    }

    /// Claims the next lesson as [`claim_next`](Self::claim_next) does. If this fails, logs the error and returns `None`: the
    /// current lesson is stored, and the next one has a job of its own.
    ///
    /// # Errors
    /// Returns an error only if the lease is lost.
    async fn claim_next_or_end(&mut self) -> Result<Option<NextLesson>, StorageError> {
        match self.claim_next().await {
            Err(StorageError::Failure(failure)) if !failure.is_lease_lost() => {
                tracing::warn!(
                    learning_space.id = %self.current.learning_space, error = %failure,
                    "failed to continue a run with the next lesson; the job of that lesson tries again"
                );
                Ok(None)
            }
            result => result,
        }
    }

    /// Claims the oldest lesson that waits in the space. Returns `None` if there is none.
    async fn claim_next(&mut self) -> Result<Option<NextLesson>, StorageError> {
        let encryption = &self.running.encryption;
        let mut tx = self.ctx.db.begin().await?;
        let next = store::find_next_pending(&mut tx, encryption.project, self.current.learning_space).await?;
        let Some(next) = next else { return Ok(None) };
        if encryption.kek.is_none() && next.is_encrypted() {
            return Ok(None);
        }
        let locked = lesson_jobs::lock_lesson(&mut tx, encryption.project, next.id).await?;
        let Some((mut session, _)) = locked else { return Ok(None) };
        let from = [LessonState::Pending];
        if !store::set_state(&mut session, next.id, &from, LessonState::Writing, None).await? {
            return Ok(None);
        }
        learning_spaces::store::advance_session_status(&mut session, LearningStatus::SkillWriting).await?;
        self.running.ensure_owned(&mut session).await?;
        let snapshot = Snapshot::load(&mut tx, self.ctx, encryption, next.learning_space).await?;
        let lesson = to_agent_lesson(&mut tx, encryption, &next).await?;
        tx.commit().await?;
        let skills = snapshot.stored_skills();
        (self.current, self.snapshot, self.count) = (next, snapshot, self.count + 1);
        Ok(Some(NextLesson { lesson, skills }))
    }
}

#[async_trait]
impl SkillFiles for RunLessons<'_> {
    async fn read_text(&self, skill: SkillId, path: &FilePath) -> anyhow::Result<FileText> {
        let files =
            SnapshotFiles { platform: self.ctx, encryption: &self.running.encryption, snapshot: &self.snapshot };
        files.read_text(skill, path).await
    }
}

#[async_trait]
impl LessonSource for RunLessons<'_> {
    async fn finish_lesson(
        &mut self,
        outcome: AgentOutcome,
        edits: &[SkillEdit],
    ) -> anyhow::Result<Option<NextLesson>> {
        storage::store_edits(self.ctx, self.running, &self.current, outcome, edits).await?;
        let is_last = outcome == AgentOutcome::MaxIterations
            || self.count > self.ctx.config.learning.skill_agent_extra_lessons.into()
            || self.started_at.elapsed() > TIME_SLICE
            || self.ctx.process.shutdown.is_cancelled();
        if is_last { Ok(None) } else { Ok(self.claim_next_or_end().await?) }
    }
}

/// Returns a lesson as the skill agent gets it.
///
/// # Errors
/// Returns 403 if the lesson is encrypted and the key is missing, and an error if the database fails.
pub(super) async fn to_agent_lesson(
    conn: &mut PgConnection,
    encryption: &ProjectEncryption,
    lesson: &LessonRow,
) -> Result<AgentLesson> {
    let text = lesson.text.clone().map(|text| text.decrypt(encryption)).transpose()?;
    let date = lesson_jobs::load_date(conn, lesson.session).await?;
    Ok(AgentLesson {
        kind: lesson.kind.unwrap_or(LessonKind::Facts),
        text: text.unwrap_or_default(),
        task_description: lesson.task_data.as_ref().map(|data| data.0.task_description.clone()),
        date,
    })
}
