//! Stores the edits of a lesson.
//!
//! The edits are applied to the current files, which may have changed since the agent has read them. The new contents are ingested
//! before the transaction begins, because that takes time. The transaction locks the disks of the changed skills and checks that
//! their files are still those to which the edits were applied; otherwise everything is repeated. So an edit is never lost, and
//! never based on a content that does not exist anymore.

use bytes::Bytes;
use futures_util::stream;
use serde_json::Map;

use super::snapshot::{Snapshot, SnapshotFiles};
use crate::blob::ingest::LiveBlobs;
use crate::blob::spool::{Spool, detect_media_type};
use crate::db::Tx;
use crate::disks::apply::{self, ApplyError, Change, FileChange, NewContent};
use crate::disks::changes::{Actor, Cause};
use crate::disks::path::FilePath;
use crate::error::Error;
use crate::ids::{DiskId, MessageId};
use crate::jobs::RunningJob;
use crate::learn::attempt_error::AttemptError;
use crate::learn::skill_agent::diff::{ChangedSkill, DraftChange, NewSkill, SpaceDiff};
use crate::learn::skill_agent::draft::SpaceDraft;
use crate::learn::skill_agent::edits::{self, SkillEdit};
use crate::learn::{Learn, lesson_jobs};
use crate::learning_spaces;
use crate::lessons::LessonState;
use crate::lessons::store::LessonRow;
use crate::llm::agent::AgentOutcome;
use crate::skills::create::{PreparedFile, PreparedSkill, SkillOrigin};
use crate::skills::front_matter::FrontMatter;
use crate::{disks, skills};

/// The maximum number of times that edits are applied because the files have changed in between.
const MAX_ATTEMPTS: usize = 10;

/// The reason of a lesson about which the model has only written a text.
const NOT_FINISHED: &str = "the model ended its work without calling `finish`";

/// The reason of a lesson that the model has not finished within its calls.
const OUT_OF_CALLS: &str = "the model has used all its calls (SKILL_LEARN_AGENT_MAX_ITERATIONS) before it finished the lesson; \
     its edits until then are stored";

/// The reason why the edits of a lesson were not stored.
#[derive(Debug, thiserror::Error)]
pub(super) enum StorageError {
    /// The session, and its lessons with it, or the learning space was deleted.
    #[error("the session or the learning space was deleted")]
    LessonDeleted,
    /// An edit does not fit the current files, or the files have changed too often.
    #[error("other writers have changed the skills while the lesson was being written, so its edits no longer fit")]
    Conflict,
    #[error("{0}")]
    Failure(AttemptError),
}

impl<E: Into<AttemptError>> From<E> for StorageError {
    fn from(err: E) -> Self {
        Self::Failure(err.into())
    }
}

/// Stores the edits of a lesson that the agent has finished, and its state, in one transaction.
///
/// # Errors
/// Returns the reason why nothing was stored.
pub(super) async fn store_edits(
    ctx: &Learn,
    running: &RunningJob,
    lesson: &LessonRow,
    outcome: AgentOutcome,
    edits: &[SkillEdit],
) -> Result<(), StorageError> {
    let writer = LessonWriter { ctx, running, lesson, outcome };
    for _ in 0..MAX_ATTEMPTS {
        if writer.try_store(edits).await? {
            return Ok(());
        }
    }
    Err(writer.conflict("the files have changed during each of the attempts to store the edits"))
}

struct LessonWriter<'a> {
    ctx: &'a Learn,
    running: &'a RunningJob,
    lesson: &'a LessonRow,
    outcome: AgentOutcome,
}

impl LessonWriter<'_> {
    /// Applies the edits to the current files and stores the result. Returns `false` if the files have changed in between.
    async fn try_store(&self, edits: &[SkillEdit]) -> Result<bool, StorageError> {
        let encryption = &self.running.encryption;
        let mut conn = self.ctx.db.acquire().await?;
        let snapshot = Snapshot::load(&mut conn, self.ctx, encryption, self.lesson.learning_space).await?;
        drop(conn);
        let changes = self.apply_edits(&snapshot, edits).await?;
        let contents: Vec<Spool> = texts(&changes).map(to_spool).collect();
        let ingest = self.ctx.blobs.ingest(encryption, stream::iter(contents)).await?;
        let mut tx = self.ctx.db.begin().await?;
        let Some(blobs) = ingest.make_live(&mut tx).await? else { return Ok(false) };
        if !self.store_changes(&mut tx, &snapshot, &changes, &blobs).await? {
            return Ok(false);
        }
        let locked = lesson_jobs::lock_lesson(&mut tx, encryption.project, self.lesson.id).await?;
        let (mut session, _) = locked.ok_or(StorageError::LessonDeleted)?;
        let is_unfinished = self.outcome == AgentOutcome::NoToolCalls && edits.is_empty();
        let reason = match self.outcome {
            _ if is_unfinished => Some(NOT_FINISHED.to_owned()),
            AgentOutcome::Finished | AgentOutcome::NoToolCalls => None,
            AgentOutcome::MaxIterations => Some(OUT_OF_CALLS.to_owned()),
            outcome => Some(format!("the work of the model was ended (outcome: {outcome})")),
        };
        lesson_jobs::end_lesson(&mut session, self.lesson.id, LessonState::Written, reason.as_deref()).await?;
        self.running.ensure_owned(&mut session).await?;
        tx.commit().await?;
        if is_unfinished {
            tracing::warn!(
                lesson.id = %self.lesson.id, model = self.ctx.llm.model(),
                "the model called neither `finish` nor a tool that changes a skill, although it was reminded"
            );
        }
        tracing::info!(
            session.id = %self.lesson.session, lesson.id = %self.lesson.id, outcome = %self.outcome,
            skills.created = changes.new_skills.len(), skills.changed = changes.changed_skills.len(), "lesson written"
        );
        Ok(true)
    }

    /// Logs why the edits do not fit, and returns the error, which clients see. The reason itself is a reply for the model. It may
    /// contain text of the files, so it is not logged in an encrypted project.
    fn conflict(&self, reason: &str) -> StorageError {
        let reason = self.running.encryption.kek.is_none().then_some(reason);
        tracing::warn!(lesson.id = %self.lesson.id, reason, "the edits of a lesson do not fit the changed files");
        StorageError::Conflict
    }

    /// Applies the edits to the skills of a snapshot, and returns the difference.
    async fn apply_edits(&self, snapshot: &Snapshot, edits: &[SkillEdit]) -> Result<SpaceDiff, StorageError> {
        let mut draft = SpaceDraft::new(snapshot.stored_skills(), super::skill_limits(self.ctx));
        let files = SnapshotFiles { platform: self.ctx, encryption: &self.running.encryption, snapshot };
        let applied = edits::apply_edits(&mut draft, edits, &files).await.map_err(AttemptError::transient)?;
        applied.map_err(|mistake| self.conflict(&mistake))?;
        Ok(draft.diff())
    }

    /// Stores the changes of files and skills. Returns `false` if the files are not those of the snapshot anymore, or if the name of
    /// a new skill has been taken.
    async fn store_changes(
        &self,
        tx: &mut Tx,
        snapshot: &Snapshot,
        changes: &SpaceDiff,
        blobs: &LiveBlobs,
    ) -> Result<bool, StorageError> {
        let (project, space) = (self.running.encryption.project, self.lesson.learning_space);
        if changes.is_empty() {
            return Ok(true);
        }
        if !learning_spaces::store::lock_for_share(tx, project, space).await? {
            lesson_jobs::log_discarded(self.lesson.id);
            return Err(StorageError::LessonDeleted);
        }
        let disks: Vec<DiskId> = changed_disks(snapshot, changes);
        let locked = disks::store::lock_tracked(tx, project, &disks).await?;
        let is_unchanged = |skill: &ChangedSkill| {
            let row = snapshot.find_skill(skill.id)?;
            Some(locked.get(&row.disk_id) == Some(&row.updated_at))
        };
        if !changes.changed_skills.iter().all(|skill| is_unchanged(skill).unwrap_or_default()) {
            return Ok(false);
        }
        let model = self.ctx.llm.model().to_owned();
        let messages: Vec<MessageId> = self.lesson.message_ids.iter().map(|id| MessageId(*id)).collect();
        let cause = self.cause(&model, &messages);
        for skill in &changes.changed_skills {
            self.store_skill(tx, snapshot, skill, blobs, cause).await?;
        }
        for skill in &changes.new_skills {
            if !self.create_skill(tx, skill, blobs, cause).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn cause<'a>(&'a self, model: &'a str, messages: &'a [MessageId]) -> Cause<'a> {
        Cause {
            actor: Actor::Learner,
            job: Some(self.running.id),
            model: Some(model),
            learning_space: Some(self.lesson.learning_space),
            session: Some(self.lesson.session),
            task: self.lesson.task,
            lesson: Some(self.lesson.id),
            messages,
            ..Cause::REQUEST
        }
    }

    async fn store_skill(
        &self,
        tx: &mut Tx,
        snapshot: &Snapshot,
        skill: &ChangedSkill,
        blobs: &LiveBlobs,
        cause: Cause<'_>,
    ) -> Result<(), StorageError> {
        let Some(row) = snapshot.find_skill(skill.id) else { return Ok(()) };
        let project = self.running.encryption.project;
        let to_change = |change: &DraftChange| to_file_change(snapshot, skill, change, blobs);
        let changes = skill.files.iter().map(to_change).collect::<Result<Vec<_>, Error>>()?;
        let max_versions = self.ctx.config.limits.max_file_versions;
        match apply::apply(tx, project, row.disk_id, &changes, cause, max_versions).await? {
            Ok(_) => {}
            // The disk is locked, and the files are those of the snapshot.
            Err(err @ (ApplyError::DiskNotFound | ApplyError::CannotMove { .. })) => {
                return Err(AttemptError::transient(err).into());
            }
        }
        if let Some(description) = &skill.description {
            skills::store::set_description(tx, project, skill.id, description).await?;
        }
        Ok(())
    }

    /// Creates a skill of the space. Returns `false` if the space has a skill of this name.
    async fn create_skill(
        &self,
        tx: &mut Tx,
        skill: &NewSkill,
        blobs: &LiveBlobs,
        cause: Cause<'_>,
    ) -> Result<bool, StorageError> {
        let (project, space) = (self.running.encryption.project, self.lesson.learning_space);
        let found = learning_spaces::store::get(tx, project, space).await?;
        let user = found.ok_or(StorageError::LessonDeleted)?.user_id;
        let files = skill.files.iter().map(|(path, text)| PreparedFile::new(path.clone(), &to_spool(text)));
        let skill_md = skill.files.iter().find(|(path, _)| path.relative() == "SKILL.md");
        let front_matter = FrontMatter::parse(skill_md.map(|(_, text)| text.as_bytes()).unwrap_or_default())?;
        let prepared = PreparedSkill { front_matter, files: files.collect() };
        let origin = SkillOrigin { project, user, meta: None, cause };
        let created = prepared.insert(tx, self.ctx, origin, blobs).await?;
        Ok(learning_spaces::store::add_skill(tx, space, created.id, &created.name).await?.is_some())
    }
}

/// Returns the disks of the changed skills, without duplicates and in order, so that two transactions cannot deadlock.
fn changed_disks(snapshot: &Snapshot, changes: &SpaceDiff) -> Vec<DiskId> {
    let skills = changes.changed_skills.iter().filter_map(|skill| snapshot.find_skill(skill.id));
    let mut disks: Vec<DiskId> = skills.map(|skill| skill.disk_id).collect();
    disks.sort_unstable();
    disks.dedup();
    disks
}

/// Returns the texts that must be stored.
fn texts(changes: &SpaceDiff) -> impl Iterator<Item = &String> {
    let new = changes.new_skills.iter().flat_map(|skill| skill.files.iter().map(|(_, text)| text));
    let written = changes.changed_skills.iter().flat_map(|skill| &skill.files).filter_map(|change| match change {
        DraftChange::Replace { text, .. } | DraftChange::Create { text, .. } => Some(text),
        DraftChange::Delete { .. } | DraftChange::Move { .. } => None,
    });
    new.chain(written)
}

fn to_spool(text: &String) -> Spool {
    Spool::from_bytes(Bytes::copy_from_slice(text.as_bytes()))
}

/// Converts a change of a draft to one of a disk. A replaced file keeps its user metadata and its mode.
fn to_file_change(
    snapshot: &Snapshot,
    skill: &ChangedSkill,
    change: &DraftChange,
    blobs: &LiveBlobs,
) -> Result<FileChange, Error> {
    let put = |path: &FilePath, text: &String, meta| {
        let spool = to_spool(text);
        let content = NewContent {
            blob: blobs.get(&spool.sha256)?,
            mime: detect_media_type(&spool, path.filename()),
            size: i64::try_from(spool.size).map_err(Error::internal)?,
            sha256: spool.sha256,
        };
        Ok(FileChange { path: path.clone(), change: Change::Put { content, meta, mode: None } })
    };
    match change {
        DraftChange::Delete { path } => Ok(FileChange { path: path.clone(), change: Change::Remove }),
        DraftChange::Move { from, to } => {
            Ok(FileChange { path: from.clone(), change: Change::Move { to: to.clone() } })
        }
        DraftChange::Replace { path, text } => {
            let moved_from = skill.files.iter().find_map(|change| match change {
                DraftChange::Move { from, to } if to == path => Some(from),
                _ => None,
            });
            let stored = snapshot.find_file(skill.id, moved_from.unwrap_or(path));
            put(path, text, stored.map(|file| file.meta.0.clone()).unwrap_or_default())
        }
        DraftChange::Create { path, text } => put(path, text, Map::new()),
    }
}
