//! The distiller: a model that turns a finished task and its messages into a lesson.

mod first_message;
mod lesson;
mod toolbox;
mod tools;

#[cfg(test)]
mod tests;

use chrono::NaiveDate;

use self::toolbox::DistillationToolbox;
use super::prompt;
use super::prompt::messages::PromptMessage;
use super::task_agent::CallParameters;
use crate::llm::agent::{self, AgentOutcome, AgentRequest};
use crate::llm::{Llm, LlmError};
use crate::tasks::{TaskData, TaskStatus};

pub use lesson::DistilledLesson;

/// The maximum number of responses. The second and third allow the model to correct a mistake.
const MAX_ITERATIONS: u32 = 3;
/// The length of the conversation after the first message, in tokens, above which old tool results are shortened. It is never
/// reached, because the results only describe mistakes.
const HISTORY_TOKENS: usize = 16_000;

/// The data of a distillation.
#[derive(Clone, Debug)]
pub struct DistillationInput {
    /// The finished task, as it was at its end.
    pub task: DistilledTask,
    /// The date of that end, or of the imported conversation.
    pub date: NaiveDate,
    /// The tasks of the session in their order, without the planning task.
    pub all_tasks: Vec<DistilledTask>,
    /// The messages that are linked to the task, oldest first.
    pub messages: Vec<PromptMessage>,
    /// The names and descriptions of the skills of the learning space.
    pub skills: Vec<(String, String)>,
}

/// A task of the session.
#[derive(Clone, Debug)]
pub struct DistilledTask {
    pub status: TaskStatus,
    pub data: TaskData,
}

/// The result of a distillation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Distillation {
    Lesson(DistilledLesson),
    /// The model has found nothing to learn.
    Skipped,
    /// The model has not reported anything that can be used.
    Missing(AgentOutcome),
}

impl Distillation {
    /// Returns the outcome of the run of the model.
    pub fn outcome(&self) -> AgentOutcome {
        match self {
            Self::Lesson(_) | Self::Skipped => AgentOutcome::Finished,
            Self::Missing(outcome) => *outcome,
        }
    }
}

/// Distills a lesson from a finished task.
///
/// # Errors
/// Returns an error if a request to the model fails.
pub async fn distill_lesson(
    llm: &dyn Llm,
    input: &DistillationInput,
    parameters: CallParameters,
) -> Result<Distillation, LlmError> {
    let mut toolbox = DistillationToolbox::new(input.task.status);
    let request = AgentRequest {
        system: match input.task.status {
            TaskStatus::Failed => prompt::DISTILL_FAILURE_SYSTEM,
            TaskStatus::Pending | TaskStatus::Running | TaskStatus::Success => prompt::DISTILL_SUCCESS_SYSTEM,
        },
        first_message: &|max_tokens| first_message::render(input, max_tokens),
        first_message_tokens: first_message::FIRST_MESSAGE_TOKENS,
        history_tokens: HISTORY_TOKENS,
        max_iterations: MAX_ITERATIONS,
        max_tokens: parameters.max_tokens,
        deadline: parameters.deadline,
        origin: parameters.origin,
    };
    let run = agent::run_agent(llm, &request, &mut toolbox).await?;
    Ok(toolbox.into_result().unwrap_or(Distillation::Missing(run.outcome)))
}
