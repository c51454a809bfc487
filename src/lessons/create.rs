//! Creates lessons and the jobs that process them, in the transaction that makes them necessary.

use super::store;
use crate::encryption::stored_text::StoredText;
use crate::encryption::{ProjectEncryption, StorageFormat};
use crate::error::Result;
use crate::ids::{LessonId, MessageId, TaskId};
use crate::jobs::{Delay, JobQueue};
use crate::learn::jobs::{Distill, WriteLesson};
use crate::sessions::lock::LockedSession;

/// The maximum number of messages that a lesson names.
const MAX_MESSAGES: usize = 200;
/// The maximum length of a lesson that consists of several preferences, in bytes. The prompts of the skill agent have room for
/// it, so that it is never cut.
const MAX_PREFERENCES_BYTES: usize = 8_000;

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

/// Creates lessons from preferences of the user, which need no distillation: one lesson, or several if the preferences are
/// long. Does nothing if there are no preferences, or if no learning space learns from the session. `messages` are those of the
/// batch in which the user has stated the preferences; empty if they are not known. `format` is the project's storage format,
/// which the transaction has locked.
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
    let messages = &messages[..messages.len().min(MAX_MESSAGES)];
    for text in to_lists(preferences) {
        let lesson = LessonId::new();
        let content = StoredText::new(encryption, format, lesson.0, &text)?;
        store::insert_preferences(session, learning_space, lesson, &content, messages).await?;
        let job = WriteLesson { session: id, learning_space, lesson };
        queue.enqueue(session, encryption, &job, Delay::NONE).await?;
    }
    Ok(())
}

/// Returns preferences as lists of at most [`MAX_PREFERENCES_BYTES`]. A longer preference is a list of its own.
fn to_lists(preferences: &[String]) -> Vec<String> {
    let mut lists: Vec<String> = Vec::new();
    for preference in preferences {
        let entry = format!("- {preference}");
        match lists.last_mut() {
            Some(list) if list.len() + 1 + entry.len() <= MAX_PREFERENCES_BYTES => {
                list.push('\n');
                list.push_str(&entry);
            }
            _ => lists.push(entry),
        }
    }
    lists
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_preferences_are_several_lists() {
        let preferences: Vec<String> = (0..20).map(|n| format!("{n:02} {}", "x".repeat(995))).collect();
        let lists = to_lists(&preferences);
        assert_eq!(lists.iter().map(|list| list.lines().count()).collect::<Vec<_>>(), [7, 7, 6]);
        assert!(lists.iter().all(|list| list.len() <= MAX_PREFERENCES_BYTES));
        let entries: Vec<String> = preferences.iter().map(|preference| format!("- {preference}")).collect();
        assert_eq!(lists.join("\n"), entries.join("\n"), "nothing is lost, and the order is kept");
        let long = "x".repeat(9_000);
        assert_eq!(
            to_lists(&["a".into(), long.clone(), "b".into()]),
            ["- a".into(), format!("- {long}"), "- b".into()]
        );
        assert!(to_lists(&[]).is_empty());
    }
}
