//! The edits of a run, which the caller stores.

use super::ExistingTask;
use crate::ids::TaskId;
use crate::tasks::{TaskData, TaskStatus};

/// The edits of a run.
#[derive(Debug, Default)]
pub struct TaskEdits {
    /// All tasks of the session in their new order, without the planning task. Their orders are 1, 2, 3 and so on.
    pub tasks: Vec<TaskDraft>,
    /// The linked messages by their index in the batch, with their targets. The order is that of the messages.
    pub links: Vec<(usize, LinkTarget)>,
    /// The preferences that were not known before, in the order of the calls.
    pub new_preferences: Vec<String>,
    /// The number of tasks that the run has created.
    pub created: usize,
}

impl TaskEdits {
    /// Returns `true` if nothing is to be stored.
    pub fn is_empty(&self) -> bool {
        let has_tasks = self.tasks.iter().any(|task| task.has_changed || task.has_ended);
        !has_tasks && self.links.is_empty() && self.new_preferences.is_empty()
    }
}

/// A task after a run.
#[derive(Clone, Debug)]
pub struct TaskDraft {
    pub id: TaskId,
    /// `true` if the run has created the task.
    pub is_new: bool,
    pub status: TaskStatus,
    /// The description and the progress. The preferences of an existing task are unchanged.
    pub data: TaskData,
    pub order: i64,
    /// `true` if the stored task differs from this one, or does not exist.
    pub has_changed: bool,
    /// `true` if the task is finished and was not before with this status, or was reopened by the run.
    pub has_ended: bool,
}

/// The task to which a run has linked a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkTarget {
    Task(TaskId),
    Planning,
}

/// A task during a run.
pub(super) struct Draft<'a> {
    /// `None` for a task that the run has created.
    stored: Option<&'a ExistingTask>,
    pub(super) id: TaskId,
    pub(super) status: TaskStatus,
    pub(super) data: TaskData,
    /// As [`TaskDraft::has_ended`].
    has_ended: bool,
}

impl<'a> Draft<'a> {
    pub(super) fn from_stored(task: &'a ExistingTask) -> Self {
        Self { stored: Some(task), id: task.id, status: task.status, data: task.data.clone(), has_ended: false }
    }

    pub(super) fn new(description: String) -> Self {
        let data = TaskData { task_description: description, ..TaskData::default() };
        Self { stored: None, id: TaskId::new(), status: TaskStatus::Pending, data, has_ended: false }
    }

    pub(super) fn is_finished(&self) -> bool {
        self.status.is_finished()
    }

    pub(super) fn set_status(&mut self, status: TaskStatus) {
        self.has_ended = status.is_finished() && (self.has_ended || self.status != status);
        self.status = status;
    }

    /// Returns the task as it must be stored at a position, which starts at 1.
    pub(super) fn finish(self, position: usize) -> TaskDraft {
        let order = i64::try_from(position).unwrap_or(i64::MAX);
        let has_changed = self.stored.is_none_or(|stored| {
            stored.order != order
                || stored.status != self.status
                || stored.data.task_description != self.data.task_description
                || stored.data.progresses.len() != self.data.progresses.len()
                || self.has_ended
        });
        TaskDraft {
            id: self.id,
            is_new: self.stored.is_none(),
            has_ended: self.has_ended,
            status: self.status,
            data: self.data,
            order,
            has_changed,
        }
    }
}
