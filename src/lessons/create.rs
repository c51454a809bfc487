//! Creates lessons and the jobs that process them, in the transaction that makes them necessary.

use super::store;
use super::text::StoredText;
use crate::encryption::{ProjectEncryption, StorageFormat};
use crate::error::Result;
use crate::ids::{LessonId, MessageId, TaskId};
use crate::jobs::{Delay, JobQueue};
use crate::learn::jobs::{Distill, WriteLesson};
use crate::sessions::lock::LockedSession;

/// The maximum number of messages that a lesson names.
const MAX_MESSAGES: usize = 200;

/// Creates a lesson for each of these tasks that is finished, unless the learning space has one for the same end of the task. Does
/// nothing if no learning space learns from the session.
///
/// # Errors
/// Returns an error if the database fails.
pub async fn create_for_tasks(
    session: &mut LockedSession<'_>,
    queue: &JobQueue,
    encryption: &ProjectEncryption,
    tasks: &[TaskId],
) -> Result<()> {
    for (lesson, task) in store::insert_for_tasks(session, tasks).await? {
        let job = Distill { session: session.id, task, lesson };
        queue.enqueue(session, encryption, &job, Delay::NONE).await?;
    }
    Ok(())
}

/// Creates a lesson from preferences of the user, which needs no distillation. Does nothing if there are no preferences, or if no
/// learning space learns from the session. `messages` are those in which the user has stated them. `format` is the project's
/// storage format, which the transaction has locked.
///
/// # Errors
/// Returns 403 if the lesson must be encrypted and the key is missing, and an error if the database fails.
pub async fn create_for_preferences(
    session: &mut LockedSession<'_>,
    queue: &JobQueue,
    (encryption, format): (&ProjectEncryption, StorageFormat),
    preferences: &[String],
    messages: &[MessageId],
) -> Result<()> {
    if preferences.is_empty() {
        return Ok(());
    }
    let id = session.id;
    let Some(learning_space) = store::find_learning_space(session, id).await? else { return Ok(()) };
    let lesson = LessonId::new();
    let text = preferences.iter().map(|preference| format!("- {preference}")).collect::<Vec<_>>().join("\n");
    let content = StoredText::new(encryption, format, lesson, &text)?;
    let messages = &messages[..messages.len().min(MAX_MESSAGES)];
    store::insert_preferences(session, learning_space, lesson, &content, messages).await?;
    let job = WriteLesson { session: session.id, learning_space, lesson };
    queue.enqueue(session, encryption, &job, Delay::NONE).await
}
