//! Language models: one trait, and what speaks to a provider behind it.

mod mock;

use std::sync::Arc;

use async_trait::async_trait;

use crate::config::Learning;

/// A question to a model.
pub struct Request {
    /// What the model is told to be.
    pub system: String,
    /// What it is asked.
    pub prompt: String,
}

/// A model's answer.
pub struct Reply {
    pub text: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum LlmError {
    /// There is nobody to ask.
    #[error("no model is configured that this version can speak to (LLM_SDK)")]
    NotConfigured,
    /// The same question may be answered in a moment.
    #[error("{0}")]
    Unavailable(anyhow::Error),
    /// The provider does not take this question.
    #[error("{0}")]
    Refused(anyhow::Error),
}

#[async_trait]
pub trait Llm: Send + Sync {
    /// Whether there is anybody to ask.
    fn is_configured(&self) -> bool {
        true
    }

    async fn complete(&self, request: Request) -> Result<Reply, LlmError>;
}

/// The model that the settings name.
pub fn from_config(settings: &Learning) -> Arc<dyn Llm> {
    match settings.sdk.as_str() {
        "mock" => Arc::new(mock::Mock),
        _ => Arc::new(Nobody),
    }
}

struct Nobody;

#[async_trait]
impl Llm for Nobody {
    fn is_configured(&self) -> bool {
        false
    }

    async fn complete(&self, _: Request) -> Result<Reply, LlmError> {
        Err(LlmError::NotConfigured)
    }
}
