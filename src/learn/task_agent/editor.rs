//! The editor of a session's tasks: the rules for the edits of a run.
//!
//! The editor has a draft of the tasks, which the caller stores after the run. Its functions return the reply to the model:
//! either a text, or the mistake of the model, which has had no effect.

use std::collections::{BTreeMap, HashSet};

use super::ExistingTask;
use super::edits::{Draft, LinkTarget, TaskEdits};
use crate::learn::prompt::text;
use crate::tasks::TaskStatus;

/// The maximum length of a description in characters. A description is the user's request, not its documents; several thousand
/// characters in each of 100 tasks would not fit into a prompt.
pub const MAX_DESCRIPTION_CHARS: usize = 2000;
/// The maximum length of a progress entry in characters. The model is instructed to write about 150.
pub const MAX_PROGRESS_CHARS: usize = 1000;
/// The maximum length of a preference in characters. A preference is one sentence.
pub const MAX_PREFERENCE_CHARS: usize = 1000;
/// The maximum number of progress entries of a task. A task has 1 to 3 for each batch in which it is discussed.
pub const MAX_PROGRESS_ENTRIES: usize = 100;
/// The maximum number of tasks of a session. A prompt contains all of them, and a model that creates more has misunderstood its
/// instructions or is in a loop.
pub const MAX_TASKS: usize = 100;
/// The maximum number of preferences of a session, because a prompt contains all of them.
pub const MAX_PREFERENCES: usize = 200;

/// The reply to the model. `Err` is a mistake of the model: what is wrong and what to do instead.
pub(super) type Reply = Result<String, String>;

/// The draft of a session's tasks.
pub struct TaskEditor<'a> {
    tasks: Vec<Draft<'a>>,
    message_count: usize,
    links: BTreeMap<usize, LinkTarget>,
    known_preferences: HashSet<String>,
    new_preferences: Vec<String>,
}

impl<'a> TaskEditor<'a> {
    /// Creates an editor for the tasks of a session, in their order, and a batch of `message_count` messages.
    pub fn new(tasks: &'a [ExistingTask], preferences: &[String], message_count: usize) -> Self {
        Self {
            tasks: tasks.iter().map(Draft::from_stored).collect(),
            message_count,
            links: BTreeMap::new(),
            known_preferences: preferences.iter().map(|preference| text::clean(preference).trim().into()).collect(),
            new_preferences: Vec::new(),
        }
    }

    pub fn into_edits(self) -> TaskEdits {
        let tasks = self.tasks.into_iter().zip(1..).map(|(task, position)| task.finish(position));
        let tasks: Vec<_> = tasks.collect();
        TaskEdits {
            created: tasks.iter().filter(|task| task.is_new).count(),
            tasks,
            links: self.links.into_iter().collect(),
            new_preferences: self.new_preferences,
        }
    }

    /// Inserts a task after the task with a number. 0 stands for the start; a number that is too high, for the end.
    pub(super) fn insert_task(&mut self, after: i64, description: &str) -> Reply {
        let after = usize::try_from(after)
            .map_err(|_| format!("`after_task_order` is {after}, but it must be 0 or the number of a task."))?;
        let description = clean_text("task_description", description, MAX_DESCRIPTION_CHARS)?;
        if self.tasks.len() >= MAX_TASKS {
            return Err(format!(
                "The session has {} tasks. The maximum is {MAX_TASKS}, so no task was created. Update one of the \
                 existing tasks instead.",
                self.tasks.len()
            ));
        }
        let index = after.min(self.tasks.len());
        self.tasks.insert(index, Draft::new(description));
        let (number, moved) = (index + 1, self.tasks.len() - index - 1);
        Ok(match moved {
            0 => format!("Task {number} was created."),
            _ => format!("Task {number} was created. The number of each task after it has increased by 1."),
        })
    }

    /// Changes the status and the description of a task. A blank description changes nothing.
    pub(super) fn update_task(&mut self, number: i64, status: Option<TaskStatus>, description: Option<&str>) -> Reply {
        let index = self.find_task(number)?;
        let description = description.filter(|description| !text::clean(description).trim().is_empty());
        let description = description.map(|text| clean_text("task_description", text, MAX_DESCRIPTION_CHARS));
        let description = description.transpose()?;
        if status.is_none() && description.is_none() {
            return Err(format!(
                "Task {number} was not changed: the call has neither `task_status` nor `task_description`."
            ));
        }
        let task = &mut self.tasks[index];
        if let Some(status) = status {
            task.set_status(status);
        }
        if let Some(description) = description {
            task.data.task_description = description;
        }
        Ok(format!("Task {number} was updated. Its status is `{}`.", task.status))
    }

    /// Links messages to the planning task. Ids of messages that do not exist are ignored if there are others.
    pub(super) fn append_messages_to_planning_section(&mut self, ids: &[i64]) -> Reply {
        if let Some(id) = ids.iter().find(|id| **id < 0) {
            return Err(format!("`message_ids` contains {id}. {}", self.valid_message_ids()));
        }
        let indexes = ids.iter().filter_map(|id| usize::try_from(*id).ok()).filter(|index| *index < self.message_count);
        let indexes: Vec<usize> = indexes.collect();
        if indexes.is_empty() {
            return Err(format!("`message_ids` contains no message of this batch. {}", self.valid_message_ids()));
        }
        let ignored = ids.len() - indexes.len();
        self.links.extend(indexes.into_iter().map(|index| (index, LinkTarget::Planning)));
        Ok(match ignored {
            0 => "The messages were linked to the planning section.".into(),
            _ => format!(
                "The messages were linked to the planning section, except for {ignored} that do not exist. {}",
                self.valid_message_ids()
            ),
        })
    }

    /// Links the messages of a range, which includes both ends, to a task. The part of the range after the last message is
    /// ignored.
    pub(super) fn append_messages_to_task(&mut self, number: i64, range: &[i64]) -> Reply {
        let index = self.find_task(number)?;
        let &[first, last] = range else {
            return Err(format!(
                "`message_id_range` has {} numbers, but it must have 2: the ids of the first and the last message.",
                range.len()
            ));
        };
        let invalid = |reason: &str| Err(format!("`message_id_range` {reason}. {}", self.valid_message_ids()));
        let (Ok(start), Ok(end)) = (usize::try_from(first), usize::try_from(last)) else {
            return invalid("contains a negative number");
        };
        if start > end {
            return invalid("has a first id that is greater than the last one");
        }
        if start >= self.message_count {
            return invalid("contains no message of this batch");
        }
        let end = end.min(self.message_count - 1);
        self.ensure_unfinished(index)?;
        let task = &mut self.tasks[index];
        if task.status == TaskStatus::Pending {
            task.status = TaskStatus::Running;
        }
        let (id, status) = (task.id, task.status);
        self.links.extend((start..=end).map(|index| (index, LinkTarget::Task(id))));
        Ok(format!("The messages {start} to {end} were linked to task {number}. Its status is `{status}`."))
    }

    pub(super) fn append_task_progress(&mut self, number: i64, progress: &str) -> Reply {
        let index = self.find_task(number)?;
        let progress = clean_text("progress", progress, MAX_PROGRESS_CHARS)?;
        self.ensure_unfinished(index)?;
        let entries = &mut self.tasks[index].data.progresses;
        if entries.len() >= MAX_PROGRESS_ENTRIES {
            return Err(format!(
                "Task {number} has {} progress entries. The maximum is {MAX_PROGRESS_ENTRIES}, so this one was not \
                 recorded.",
                entries.len()
            ));
        }
        entries.push(progress);
        Ok(format!("The progress of task {number} was recorded."))
    }

    pub(super) fn submit_user_preference(&mut self, preference: &str) -> Reply {
        let preference = clean_text("preference", preference, MAX_PREFERENCE_CHARS)?;
        if self.known_preferences.contains(&preference) {
            return Ok("This preference is known already.".into());
        }
        if self.known_preferences.len() >= MAX_PREFERENCES {
            return Err(format!(
                "The session has {} preferences. The maximum is {MAX_PREFERENCES}, so this one was not recorded.",
                self.known_preferences.len()
            ));
        }
        self.known_preferences.insert(preference.clone());
        self.new_preferences.push(preference);
        Ok("The preference was recorded.".into())
    }

    /// Returns the index of the task with a number.
    fn find_task(&self, number: i64) -> Result<usize, String> {
        let index = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
        index.filter(|index| *index < self.tasks.len()).ok_or_else(|| match self.tasks.len() {
            0 => format!("Task {number} does not exist: the session has no tasks. Create one with `insert_task`."),
            count => format!("Task {number} does not exist. `task_order` must be from 1 to {count}."),
        })
    }

    fn ensure_unfinished(&self, index: usize) -> Result<(), String> {
        let task = &self.tasks[index];
        if !task.is_finished() {
            return Ok(());
        }
        let number = index + 1;
        Err(format!(
            "Task {number} is finished: its status is `{}`. If it continues, set its status to `running` with \
             `update_task` and repeat this call.",
            task.status
        ))
    }

    fn valid_message_ids(&self) -> String {
        match self.message_count {
            0 => "This batch has no messages.".into(),
            count => format!("The ids of the messages are 0 to {}.", count - 1),
        }
    }
}

/// Returns an argument without invisible characters and without white space around it.
fn clean_text(argument: &str, value: &str, max_chars: usize) -> Result<String, String> {
    let cleaned = text::clean(value);
    let cleaned = cleaned.trim();
    let length = cleaned.chars().count();
    if cleaned.is_empty() {
        return Err(format!("`{argument}` is empty. It must contain a text of 1 to {max_chars} characters."));
    }
    if length > max_chars {
        return Err(format!(
            "`{argument}` has {length} characters. The maximum is {max_chars}, so nothing was changed. Send a shorter \
             text."
        ));
    }
    Ok(cleaned.into())
}
