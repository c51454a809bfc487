//! A batch of messages that is observed: the input of the task agent, and the transaction that stores its result.

use serde_json::Map;
use sqlx::PgConnection;
use uuid::Uuid;

use super::Learn;
use super::prompt::messages::PromptMessage;
use super::settings::ObservationSettings;
use super::task_agent::edits::{LinkTarget, TaskDraft, TaskEdits};
use super::task_agent::{ExistingTask, LinkLabel, TaskAgentInput};
use crate::conversation::format;
use crate::conversation::parts::{Part, PartKind};
use crate::encryption::{ProjectEncryption, StorageFormat, value};
use crate::error::Result;
use crate::ids::{MessageId, SessionId, TaskId};
use crate::lessons::create;
use crate::messages::observing::{self, MessageContent};
use crate::sessions::lock::LockedSession;
use crate::tasks::edits::{self, StoredTask, TaskChange};
use crate::{json, usage_metrics};

/// The text that replaces a message that cannot be decrypted or parsed.
const UNREADABLE: &str = "[this message cannot be read]";

/// A batch that is ready for the task agent.
pub(super) struct Batch {
    pub input: TaskAgentInput,
    /// The messages of the batch in their order.
    messages: Vec<MessageId>,
    /// The tasks of the session when the batch was loaded.
    tasks: Vec<StoredTask>,
}

/// Loads the input of the task agent: the messages of a batch, the messages before them, and the tasks of the session.
///
/// # Errors
/// Returns an error if the database fails, or if a message of the batch is encrypted and the job has no key.
pub(super) async fn load(
    conn: &mut PgConnection,
    encryption: &ProjectEncryption,
    session: SessionId,
    batch: &[Uuid],
    settings: &ObservationSettings,
) -> Result<Batch> {
    let messages = observing::load_messages(conn, batch).await?;
    let previous_count = i64::try_from(settings.previous_message_count).unwrap_or(i64::MAX);
    let previous = match messages.first() {
        Some(first) => observing::load_previous_messages(conn, session, first.id, previous_count).await?,
        None => Vec::new(),
    };
    let tasks = edits::list_all(conn, encryption.project, session).await?;
    let planning = tasks.iter().find(|task| task.is_planning);
    let link_label = |task: Option<TaskId>| match task {
        None => LinkLabel::Unlinked,
        Some(task) if planning.is_some_and(|planning| planning.id == task) => LinkLabel::Planning,
        Some(task) => LinkLabel::Task(task),
    };
    let mut previous_messages = Vec::with_capacity(previous.len());
    for message in previous {
        let label = link_label(message.task);
        previous_messages.push((to_previous_message(encryption, message)?, label));
    }
    let ids = messages.iter().map(|message| message.id).collect();
    let messages = messages.into_iter().map(|message| to_prompt_message(encryption, message)).collect::<Result<_>>()?;
    let to_existing = |task: &StoredTask| {
        let StoredTask { id, order, status, .. } = *task;
        ExistingTask { id, order, status, data: task.data.0.clone() }
    };
    let input = TaskAgentInput {
        tasks: tasks.iter().filter(|task| !task.is_planning).map(to_existing).collect(),
        preferences: planning.map(|planning| planning.data.user_preferences.clone()).unwrap_or_default(),
        success_criteria: settings.success_criteria.clone(),
        failure_criteria: settings.failure_criteria.clone(),
        previous_messages,
        messages,
        max_iterations: settings.max_iterations,
        previous_progress_count: settings.previous_progress_count,
    };
    Ok(Batch { input, messages: ids, tasks })
}

/// Decrypts and parses a message before the batch. After a project was decrypted, its new jobs have no key, although the
/// conversion of the older messages may not be done. They are only context, so that the batch does not wait for the conversion.
fn to_previous_message(encryption: &ProjectEncryption, message: MessageContent) -> Result<PromptMessage> {
    if message.encrypted_as.is_some() && encryption.kek.is_none() {
        return Ok(PromptMessage { role: message.role, parts: vec![unreadable_part()] });
    }
    to_prompt_message(encryption, message)
}

/// Decrypts and parses a message. A message that cannot be read must not prevent the observation of the others.
///
/// # Errors
/// Returns an error if the message is encrypted and the job has no key.
pub(super) fn to_prompt_message(encryption: &ProjectEncryption, message: MessageContent) -> Result<PromptMessage> {
    let MessageContent { id, role, format, content, encrypted_as, .. } = message;
    let content = match encrypted_as {
        Some(encrypted_as) => value::decrypt(encryption.decryption_key()?, encrypted_as, content),
        None => Ok(content),
    };
    let body = content.map_err(anyhow::Error::from).and_then(|content| Ok(json::parse_trusted(&content)?));
    let parts = match body {
        Ok(body) => format::to_parts(format, body),
        Err(err) => {
            tracing::error!(message.id = %id, error = %err, "failed to read a message; the model does not get it");
            vec![unreadable_part()]
        }
    };
    Ok(PromptMessage { role, parts })
}

fn unreadable_part() -> Part {
    Part {
        kind: PartKind::Text,
        text: UNREADABLE.to_owned(),
        asset: None,
        filename: String::new(),
        meta: Map::new(),
        extra: Map::new(),
    }
}

/// The error of a result that was not stored, because another transaction has changed the tasks of the session since the batch
/// was loaded.
#[derive(Debug, thiserror::Error)]
#[error("the tasks of the session have changed during its observation")]
struct TasksChanged;

impl Batch {
    /// Stores the result of the task agent. If a learning space learns from the session, creates a lesson for each finished task, and
    /// one or several for the new preferences. `format` is the storage format of the project, which the transaction has locked.
    ///
    /// # Errors
    /// Returns an error if another transaction has changed the tasks of the session since the batch was loaded, or if the
    /// database fails.
    pub(super) async fn store(
        &self,
        ctx: &Learn,
        (encryption, format): (&ProjectEncryption, StorageFormat),
        session: &mut LockedSession<'_>,
        result: &TaskEdits,
    ) -> anyhow::Result<()> {
        let (project, id) = (session.project, session.id);
        if edits::list_all(session, project, id).await? != self.tasks {
            return Err(TasksChanged.into());
        }
        let changes: Vec<_> = result.tasks.iter().filter(|task| task.has_changed).map(to_change).collect();
        if !changes.is_empty() {
            edits::apply_changes(session, &changes).await?;
        }
        self.store_links(session, result).await?;
        if result.created > 0 {
            let tag = usage_metrics::store::TASKS_CREATED_TAG;
            usage_metrics::store::increment(session, project, tag, i64::try_from(result.created)?).await?;
        }
        let finished: Vec<_> = result.tasks.iter().filter(|task| task.has_ended).map(|task| task.id).collect();
        create::create_for_tasks(session, &ctx.queue, encryption, &finished).await?;
        let (preferences, encryption) = (&result.new_preferences, (encryption, format));
        create::create_for_preferences(session, &ctx.queue, encryption, preferences, &self.messages).await?;
        Ok(())
    }

    /// Stores the preferences of the user, and the links of the messages to tasks. The planning task is created if it is needed.
    async fn store_links(&self, session: &mut LockedSession<'_>, result: &TaskEdits) -> anyhow::Result<()> {
        let needs_planning = result.links.iter().any(|(_, target)| *target == LinkTarget::Planning);
        let mut planning = None;
        if needs_planning || !result.new_preferences.is_empty() {
            planning = Some(edits::append_preferences(session, &result.new_preferences).await?);
        }
        let link = |(index, target): &(usize, LinkTarget)| {
            let task = match target {
                LinkTarget::Task(task) => Some(*task),
                LinkTarget::Planning => planning,
            };
            Some((*self.messages.get(*index)?, task?))
        };
        let links: Vec<_> = result.links.iter().filter_map(link).collect();
        if !links.is_empty() {
            observing::link_to_tasks(session, &links).await?;
        }
        Ok(())
    }
}

fn to_change(task: &TaskDraft) -> TaskChange {
    TaskChange {
        id: task.id,
        order: task.order,
        status: task.status,
        data: task.data.clone(),
        has_ended: task.has_ended,
    }
}
