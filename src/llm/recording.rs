//! A model that records each model call: a row in the database, and the Prometheus metrics.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::metrics::ModelMetrics;
use super::usage::{self, CallOutcome, ModelCall};
use super::{CallOrigin, ChatRequest, ChatResponse, Llm, LlmError, TokenUsage};
use crate::db::Db;
use crate::process::Process;

/// A model that records each model call of another [`Llm`]: each request with its repeated attempts.
pub struct RecordingLlm {
    inner: Arc<dyn Llm>,
    recorder: Recorder,
}

#[derive(Clone)]
struct Recorder {
    db: Db,
    process: Process,
    metrics: Arc<ModelMetrics>,
}

impl RecordingLlm {
    pub fn new(inner: Arc<dyn Llm>, db: Db, process: Process, metrics: Arc<ModelMetrics>) -> Self {
        Self { inner, recorder: Recorder { db, process, metrics } }
    }
}

#[async_trait]
impl Llm for RecordingLlm {
    fn is_configured(&self) -> bool {
        self.inner.is_configured()
    }

    fn model(&self) -> &str {
        self.inner.model()
    }

    async fn chat(&self, request: &ChatRequest<'_>) -> Result<ChatResponse, LlmError> {
        if !self.is_configured() {
            return self.inner.chat(request).await;
        }
        let mut call = CallInProgress {
            recorder: Some(self.recorder.clone()),
            origin: request.origin,
            model: self.model().to_owned(),
            started_at: Instant::now(),
        };
        let response = self.inner.chat(request).await;
        let (outcome, usage) = match &response {
            Ok(response) => {
                call.model.clone_from(&response.model);
                (CallOutcome::Ok, response.usage)
            }
            Err(err) => (CallOutcome::from(err), TokenUsage::default()),
        };
        if let Some((recorder, call)) = call.end(outcome, usage) {
            // The task has logged an error of the insert.
            let _ = recorder.spawn_insert(call).await;
        }
        response
    }
}

impl From<&LlmError> for CallOutcome {
    fn from(err: &LlmError) -> Self {
        match err {
            LlmError::NotConfigured | LlmError::Misconfigured(_) => Self::Misconfigured,
            LlmError::Unavailable(_) => Self::Unavailable,
            LlmError::ContextTooLong(_) => Self::ContextTooLong,
            LlmError::Rejected(_) => Self::Rejected,
        }
    }
}

impl Recorder {
    /// Inserts the row of a model call in a task of its own, so that the row is inserted even if the job is aborted in the
    /// meantime. An error is only logged, because the response is worth more than its row.
    fn spawn_insert(self, call: ModelCall) -> JoinHandle<()> {
        let tasks = self.process.background_tasks.clone();
        tasks.spawn(async move {
            let insert = async { usage::insert(&mut *self.db.acquire().await?, &call).await };
            if let Err(err) = insert.await {
                tracing::warn!(error = %err, "failed to record a model call; the usage of the project lacks it");
            }
        })
    }
}

/// A model call whose response has not arrived. If it is dropped, it is recorded as canceled, because the provider may charge for
/// it.
struct CallInProgress {
    /// `None` after the call has ended.
    recorder: Option<Recorder>,
    origin: CallOrigin,
    model: String,
    started_at: Instant,
}

impl CallInProgress {
    /// Ends the call. Returns the row to insert, and `None` if the call has ended before.
    fn end(&mut self, outcome: CallOutcome, usage: TokenUsage) -> Option<(Recorder, ModelCall)> {
        let recorder = self.recorder.take()?;
        let duration = self.started_at.elapsed();
        recorder.metrics.record_call(self.origin.purpose, outcome, duration, usage);
        let duration_ms = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        let model = std::mem::take(&mut self.model);
        Some((recorder, ModelCall { origin: self.origin, model, outcome, usage, duration_ms }))
    }
}

impl Drop for CallInProgress {
    fn drop(&mut self) {
        if let Some((recorder, call)) = self.end(CallOutcome::Canceled, TokenUsage::default()) {
            recorder.spawn_insert(call);
        }
    }
}
