//! The task agent's tools as calls of the [`TaskEditor`].

use serde::Deserialize;
use serde_json::{Map, Value};

use super::editor::{Reply, TaskEditor};
use super::edits::TaskEdits;
use super::tools;
use crate::learn::report_thinking::{self, ReportThinking};
use crate::llm::Tool;
use crate::llm::agent::arguments::Integer;
use crate::llm::agent::{ToolReply, Toolbox};
use crate::tasks::TaskStatus;

/// The tools of the task agent.
pub(super) struct TaskToolbox<'a> {
    tools: Vec<Tool>,
    editor: TaskEditor<'a>,
}

impl<'a> TaskToolbox<'a> {
    pub(super) fn new(editor: TaskEditor<'a>) -> Self {
        Self { tools: tools::task_tools(), editor }
    }

    pub(super) fn into_edits(self) -> TaskEdits {
        self.editor.into_edits()
    }

    fn edit(&mut self, name: &str, arguments: Map<String, Value>) -> Reply {
        match name {
            "insert_task" => {
                let InsertTask { after_task_order, task_description } = self.parse(name, arguments)?;
                self.editor.insert_task(after_task_order.0, &task_description)
            }
            "update_task" => {
                let UpdateTask { task_order, task_status, task_description } = self.parse(name, arguments)?;
                self.editor.update_task(task_order.0, task_status, task_description.as_deref())
            }
            "append_messages_to_planning_section" => {
                let AppendMessagesToPlanningSection { message_ids } = self.parse(name, arguments)?;
                self.editor.append_messages_to_planning_section(&to_i64s(&message_ids))
            }
            "append_messages_to_task" => {
                let AppendMessagesToTask { task_order, message_id_range } = self.parse(name, arguments)?;
                self.editor.append_messages_to_task(task_order.0, &to_i64s(&message_id_range))
            }
            "append_task_progress" => {
                let AppendTaskProgress { task_order, progress } = self.parse(name, arguments)?;
                self.editor.append_task_progress(task_order.0, &progress)
            }
            "submit_user_preference" => {
                let SubmitUserPreference { preference } = self.parse(name, arguments)?;
                self.editor.submit_user_preference(&preference)
            }
            // Any other tool is `report_thinking`.
            _ => {
                let ReportThinking { .. } = self.parse(name, arguments)?;
                Ok(report_thinking::REPLY.into())
            }
        }
    }
}

impl Toolbox for TaskToolbox<'_> {
    fn tools(&self) -> &[Tool] {
        &self.tools
    }

    async fn call(&mut self, name: &str, arguments: Map<String, Value>) -> ToolReply {
        if name == "finish" {
            return ToolReply::Finish;
        }
        match self.edit(name, arguments) {
            Ok(text) => ToolReply::Text(text),
            Err(mistake) => ToolReply::Error(mistake),
        }
    }
}

fn to_i64s(integers: &[Integer]) -> Vec<i64> {
    integers.iter().map(|integer| integer.0).collect()
}

#[derive(Deserialize)]
struct InsertTask {
    after_task_order: Integer,
    task_description: String,
}

#[derive(Deserialize)]
#[expect(clippy::struct_field_names, reason = "the names of the arguments")]
struct UpdateTask {
    task_order: Integer,
    task_status: Option<TaskStatus>,
    task_description: Option<String>,
}

#[derive(Deserialize)]
struct AppendMessagesToPlanningSection {
    message_ids: Vec<Integer>,
}

#[derive(Deserialize)]
struct AppendMessagesToTask {
    task_order: Integer,
    message_id_range: Vec<Integer>,
}

#[derive(Deserialize)]
struct AppendTaskProgress {
    task_order: Integer,
    progress: String,
}

#[derive(Deserialize)]
struct SubmitUserPreference {
    preference: String,
}
