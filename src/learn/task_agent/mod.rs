//! The task agent: a model that extracts tasks, their progress and the user's preferences from the messages of a session.
//!
//! The agent's tools change no stored data. They edit a draft of the session's tasks ([`editor`]), so that a run has no effect
//! until the caller stores its [`TaskEdits`] in one transaction.

pub mod editor;
pub mod edits;
mod first_message;
mod toolbox;
mod tools;

#[cfg(test)]
mod tests;

use std::time::Duration;

use tokio::time::Instant;

use self::editor::TaskEditor;
use self::edits::TaskEdits;
use self::toolbox::TaskToolbox;
use super::prompt::messages::PromptMessage;
use super::{Learn, prompt};
use crate::ids::{LearningSpaceId, ProjectId, TaskId};
use crate::llm::agent::{self, AgentOutcome, AgentRequest};
use crate::llm::{CallOrigin, Llm, LlmError, Purpose};
use crate::tasks::{TaskData, TaskStatus};

pub use first_message::FIRST_MESSAGE_TOKENS;

/// The length of the conversation after the first message, in tokens, above which old tool results are shortened. The results of
/// this agent's tools are short: a run with the default of 6 iterations rarely has more than 2 000 tokens.
const HISTORY_TOKENS: usize = 16_000;

/// The data of a run.
#[derive(Clone, Debug, Default)]
pub struct TaskAgentInput {
    /// The tasks of the session in their order, without the planning task.
    pub tasks: Vec<ExistingTask>,
    /// The known preferences of the user, oldest first.
    pub preferences: Vec<String>,
    /// The project's criteria for the success of a task.
    pub success_criteria: Option<String>,
    /// The project's criteria for the failure of a task.
    pub failure_criteria: Option<String>,
    /// The messages before the batch, oldest first.
    pub previous_messages: Vec<(PromptMessage, LinkLabel)>,
    /// The messages of the batch, oldest first.
    pub messages: Vec<PromptMessage>,
    pub max_iterations: u32,
    /// The number of existing progress entries that the model receives.
    pub previous_progress_count: usize,
}

/// A stored task of the session.
#[derive(Clone, Debug)]
pub struct ExistingTask {
    pub id: TaskId,
    /// The stored order. The model receives the position of the task instead, because the order may have gaps.
    pub order: i64,
    pub status: TaskStatus,
    pub data: TaskData,
}

/// The task to which a previous message is linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkLabel {
    Unlinked,
    Task(TaskId),
    Planning,
}

/// The parameters of the requests of a run.
#[derive(Clone, Copy, Debug)]
pub struct CallParameters {
    /// The maximum length of a response, in tokens.
    pub max_tokens: u32,
    /// The deadline of the run.
    pub deadline: Instant,
    pub origin: CallOrigin,
}

impl CallParameters {
    /// Returns the parameters of a run that begins now and takes at most `timeout`, with the configured length of responses.
    pub fn new(
        ctx: &Learn,
        project: ProjectId,
        purpose: Purpose,
        timeout: Duration,
        learning_space: Option<LearningSpaceId>,
    ) -> Self {
        Self {
            max_tokens: ctx.config.model.max_tokens,
            deadline: Instant::now() + timeout,
            origin: CallOrigin { project, purpose, learning_space },
        }
    }
}

/// The result of a run.
#[derive(Debug)]
pub struct TaskAgentResult {
    pub edits: TaskEdits,
    pub outcome: AgentOutcome,
    /// The number of responses of the model.
    pub iterations: u32,
}

/// Runs the task agent on a batch of messages.
///
/// # Errors
/// Returns an error if a request to the model fails. All edits of the run are lost then.
pub async fn run_task_agent(
    llm: &dyn Llm,
    input: &TaskAgentInput,
    parameters: CallParameters,
) -> Result<TaskAgentResult, LlmError> {
    let mut toolbox = TaskToolbox::new(TaskEditor::new(&input.tasks, &input.preferences, input.messages.len()));
    let request = AgentRequest {
        system: prompt::TASK_AGENT_SYSTEM,
        first_message: &|max_tokens| first_message::render(input, max_tokens),
        first_message_tokens: FIRST_MESSAGE_TOKENS,
        history_tokens: HISTORY_TOKENS,
        max_iterations: input.max_iterations,
        max_tokens: parameters.max_tokens,
        deadline: parameters.deadline,
        origin: parameters.origin,
    };
    let run = agent::run_agent(llm, &request, &mut toolbox).await?;
    Ok(TaskAgentResult { edits: toolbox.into_edits(), outcome: run.outcome, iterations: run.iterations })
}
