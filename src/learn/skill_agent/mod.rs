//! The skill agent: a model that writes lessons to the skills of a learning space.
//!
//! The agent's tools change no stored data. They edit a draft of the skills ([`draft`]), and record the edits ([`edits`]). When
//! the agent has finished a lesson, a [`LessonSource`] stores its edits. For this, it applies them to the current skills and
//! stores the difference ([`diff`]). It then returns the next lesson, which the agent gets in the same conversation.

pub mod diff;
pub mod draft;
pub mod edits;
mod excerpt;
mod first_message;
pub mod lesson;
mod names;
mod toolbox;
mod tools;

#[cfg(test)]
mod tests;

use std::num::NonZeroU32;

use async_trait::async_trait;

use self::draft::{SkillFiles, SkillLimits, SpaceDraft, StoredSkill};
use self::edits::SkillEdit;
use self::lesson::AgentLesson;
use self::toolbox::SkillToolbox;
use super::prompt;
use super::task_agent::CallParameters;
use crate::llm::agent::{self, AgentOutcome, AgentRequest};
use crate::llm::{Llm, LlmError};

pub use first_message::FIRST_MESSAGE_TOKENS;

/// The length of the conversation after the first message, in tokens, above which old tool results are shortened. It has room for
/// two very long files.
const HISTORY_TOKENS: usize = 64_000;

/// The data of a run.
#[derive(Clone, Debug)]
pub struct SkillAgentInput {
    /// The first lesson.
    pub lesson: AgentLesson,
    /// The skills of the space.
    pub skills: Vec<StoredSkill>,
    pub limits: SkillLimits,
    /// The maximum number of responses for the first lesson.
    pub max_iterations: u32,
    /// The number of responses by which the maximum increases with each further lesson.
    pub extra_iterations: NonZeroU32,
}

/// The lessons of a run, and the storage of their edits. It also reads the files of the skills.
#[async_trait]
pub trait LessonSource: SkillFiles {
    /// Stores the edits of the current lesson, which the agent has finished, and returns the next lesson. Without edits, the
    /// agent has decided that the lesson adds nothing.
    ///
    /// The outcome is `Finished`, `NoToolCalls` or `MaxIterations`. If it is `NoToolCalls` without edits, the model was reminded to
    /// call a tool, and has called none nevertheless. After `MaxIterations` the run ends, and a returned lesson is
    /// ignored.
    ///
    /// # Errors
    /// Returns an error if the edits cannot be stored. The run ends then.
    async fn finish_lesson(&mut self, outcome: AgentOutcome, edits: &[SkillEdit])
    -> anyhow::Result<Option<NextLesson>>;
}

/// The next lesson of a run, and the skills of the space after the edits of the previous one were stored.
#[derive(Clone, Debug)]
pub struct NextLesson {
    pub lesson: AgentLesson,
    pub skills: Vec<StoredSkill>,
}

/// The result of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SkillAgentResult {
    /// The outcome of the last lesson. If it is `OnlyErrors` or `ContentFilter`, its edits were not stored.
    pub outcome: AgentOutcome,
    /// The number of responses of the model.
    pub iterations: u32,
}

/// An error that has ended a run. The edits of the current lesson are lost; those of earlier lessons are stored.
#[derive(Debug, thiserror::Error)]
pub enum SkillAgentError {
    /// A request to the model has failed.
    #[error("{0}")]
    Llm(#[from] LlmError),
    /// A file could not be read, or edits could not be stored.
    #[error("{0:#}")]
    Store(anyhow::Error),
}

/// Runs the skill agent on a lesson, and on the further lessons that `source` returns.
///
/// # Errors
/// Returns an error if a request to the model fails, or with the error of `source`.
pub async fn run_skill_agent<S: LessonSource>(
    llm: &dyn Llm,
    input: &SkillAgentInput,
    parameters: CallParameters,
    source: &mut S,
) -> Result<SkillAgentResult, SkillAgentError> {
    let stored = SpaceDraft::new(input.skills.clone(), input.limits);
    let mut toolbox = SkillToolbox::new(input, source);
    let request = AgentRequest {
        system: prompt::SKILL_AGENT_SYSTEM,
        first_message: &|max_tokens| first_message::render(&input.lesson, &stored, max_tokens),
        first_message_tokens: FIRST_MESSAGE_TOKENS,
        history_tokens: HISTORY_TOKENS,
        max_iterations: input.max_iterations,
        max_tokens: parameters.max_tokens,
        deadline: parameters.deadline,
        origin: parameters.origin,
    };
    let run = agent::run_agent(llm, &request, &mut toolbox).await?;
    match toolbox.into_error() {
        Some(err) => Err(SkillAgentError::Store(err)),
        None => Ok(SkillAgentResult { outcome: run.outcome, iterations: run.iterations }),
    }
}
