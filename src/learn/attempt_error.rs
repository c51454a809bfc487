//! The errors of the attempts of the jobs that call a model: those of an attempt as a whole, and those of its work.

use std::fmt;
use std::time::Duration;

use crate::error::Error;
use crate::jobs::{ClassifiedError, ErrorClass, JobError, LeaseLost, WaitReason};
use crate::llm::LlmError;
use crate::llm::agent::AgentOutcome;

/// The beginning of the error of work that has failed because of the model. Clients recognize such a failure by it.
pub(super) const MODEL_FAILURE: &str = "LLM complete failed";

/// The delay before the next attempt if no model is configured.
const MODEL_RECHECK_INTERVAL: Duration = Duration::from_hours(24);

/// The error of an attempt to observe a batch of messages, or to distill or write a lesson.
#[derive(Debug)]
pub(super) enum AttemptError {
    /// The error of the work. The work has failed if the error is permanent, or if the attempt was the last one.
    Work { source: anyhow::Error, is_permanent: bool },
    /// An error that does not concern the work, such as a lost lease or a missing key.
    Job(JobError),
}

impl AttemptError {
    /// Returns the error of work for which another attempt would fail too.
    pub(super) fn permanent(source: impl Into<anyhow::Error>) -> Self {
        Self::Work { source: source.into(), is_permanent: true }
    }

    /// Returns the error of work for which another attempt may succeed.
    pub(super) fn transient(source: impl Into<anyhow::Error>) -> Self {
        Self::Work { source: source.into(), is_permanent: false }
    }

    /// Returns `true` if the worker does not own the job anymore.
    pub(super) fn is_lease_lost(&self) -> bool {
        matches!(self, Self::Job(JobError::Retry(err)) if err.is::<LeaseLost>())
    }

    /// Returns the permanent error of a run of a model that has ended with this outcome and without a result.
    pub(super) fn without_result(model: &str, outcome: AgentOutcome) -> Self {
        let problem = match outcome {
            AgentOutcome::OnlyErrors | AgentOutcome::MaxIterations | AgentOutcome::Finished => format!(
                "the model {model} made only invalid tool calls: set LLM_SIMPLE_MODEL to a model that supports tool calls"
            ),
            AgentOutcome::NoToolCalls => format!(
                "the model {model} has called no tool, although it was reminded: set LLM_SIMPLE_MODEL to a model that \
                 supports tool calls"
            ),
            AgentOutcome::ContentFilter => format!(
                "the content filter of the provider withheld the response of the model {model}: remove the content that \
                 it rejects, or set LLM_SIMPLE_MODEL to another model"
            ),
        };
        let source = anyhow::Error::msg(problem).context(MODEL_FAILURE);
        Self::permanent(ClassifiedError::new(ErrorClass::Model, source))
    }
}

impl fmt::Display for AttemptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Work { source, .. }
            | Self::Job(JobError::Retry(source) | JobError::Permanent(source) | JobError::Snooze(_, source, _)) => {
                write!(f, "{source:#}")
            }
        }
    }
}

impl From<JobError> for AttemptError {
    fn from(err: JobError) -> Self {
        match err {
            JobError::Retry(source) if !source.is::<LeaseLost>() => Self::transient(source),
            err => Self::Job(err),
        }
    }
}

impl From<Error> for AttemptError {
    fn from(err: Error) -> Self {
        match err {
            Error::KeyRequired => Self::Job(JobError::awaiting_key()),
            err => Self::transient(err),
        }
    }
}

impl From<LlmError> for AttemptError {
    fn from(err: LlmError) -> Self {
        let is_permanent = !err.is_retryable();
        Self::Work { source: classify_llm_error(err), is_permanent }
    }
}

impl From<sqlx::Error> for AttemptError {
    fn from(err: sqlx::Error) -> Self {
        Self::transient(err)
    }
}

/// Adds the class to an error of the model. Clients recognize such an error by the beginning of its text.
fn classify_llm_error(err: LlmError) -> anyhow::Error {
    let class = match &err {
        LlmError::NotConfigured | LlmError::Misconfigured(_) => ErrorClass::ModelSettings,
        LlmError::Unavailable(_) | LlmError::ContextTooLong(_) | LlmError::Rejected(_) => ErrorClass::Model,
    };
    let min_backoff = err.retry_after().unwrap_or_default();
    ClassifiedError::new(class, anyhow::Error::from(err).context(MODEL_FAILURE)).with_min_backoff(min_backoff).into()
}

/// Returns the error of a job that must call a model but finds none configured. A process with a model makes the job due earlier.
pub(super) fn awaiting_model() -> JobError {
    JobError::Snooze(WaitReason::Model, LlmError::NotConfigured.into(), MODEL_RECHECK_INTERVAL)
}
