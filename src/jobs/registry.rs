//! The registry of job kinds and their handlers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::Value;

use super::{JobError, JobHandler, RunningJob};

type RunFn = Arc<dyn Fn(Value, Arc<RunningJob>) -> BoxFuture<'static, Result<(), JobError>> + Send + Sync>;

/// The handler of a job kind, bound to its context, with the settings of the kind.
#[derive(Clone)]
pub struct RegisteredHandler {
    pub(super) timeout: Duration,
    pub(super) max_attempts: i32,
    pub(super) max_backoff: Duration,
    pub(super) run: RunFn,
}

/// The job kinds that this process can run, with their handlers. Jobs of other kinds are left to other processes.
#[derive(Clone, Default)]
pub struct JobRegistry(HashMap<&'static str, RegisteredHandler>);

impl JobRegistry {
    /// Registers a job kind. Its handler runs with a clone of `context`.
    #[must_use]
    pub fn register<J: JobHandler>(mut self, context: J::Context) -> Self {
        let run: RunFn = Arc::new(move |payload, running: Arc<RunningJob>| {
            let context = context.clone();
            Box::pin(async move {
                let job: J = serde_json::from_value(payload).map_err(|err| JobError::Permanent(err.into()))?;
                job.run(&context, &running).await
            })
        });
        let (timeout, max_attempts, max_backoff) = (J::TIMEOUT, J::MAX_ATTEMPTS, J::MAX_BACKOFF);
        self.0.insert(J::KIND, RegisteredHandler { timeout, max_attempts, max_backoff, run });
        self
    }

    pub(super) fn kinds(&self) -> Vec<String> {
        self.0.keys().map(ToString::to_string).collect()
    }

    pub(super) fn get(&self, kind: &str) -> Option<&RegisteredHandler> {
        self.0.get(kind)
    }
}
