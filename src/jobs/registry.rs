//! The registry of job kinds and their handlers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::Value;

use super::{JobError, JobHandler, RunningJob};
use crate::db::Tx;
use crate::encryption::ProjectEncryption;

type RunFn = Arc<dyn Fn(Value, Arc<RunningJob>) -> BoxFuture<'static, Result<(), JobError>> + Send + Sync>;

type AbandonFn = Arc<
    dyn for<'a> Fn(Value, &'a ProjectEncryption, &'a mut Tx) -> BoxFuture<'a, Result<bool, JobError>> + Send + Sync,
>;

/// The handler of a job kind, bound to its context, with the settings of the kind.
#[derive(Clone)]
pub struct RegisteredHandler {
    pub(super) timeout: Duration,
    pub(super) max_attempts: i32,
    pub(super) max_backoff: Duration,
    pub(super) calls_model: bool,
    pub(super) run: RunFn,
    /// [`JobHandler::undo`].
    pub(super) undo: RunFn,
    /// [`JobHandler::abandon`].
    pub(super) abandon: AbandonFn,
}

/// The names of the job kinds that a process can run.
#[derive(Clone, Debug, Default)]
pub struct JobKinds {
    /// The kinds whose jobs call a language model.
    pub calling_model: Vec<String>,
    pub other: Vec<String>,
}

impl JobKinds {
    pub fn all(&self) -> Vec<String> {
        [self.calling_model.as_slice(), self.other.as_slice()].concat()
    }
}

/// The job kinds that this process can run, with their handlers. Jobs of other kinds are left to other processes.
#[derive(Clone, Default)]
pub struct JobRegistry(HashMap<&'static str, RegisteredHandler>);

impl JobRegistry {
    /// Registers a job kind. Its handler runs with a clone of `context`.
    #[must_use]
    pub fn register<J: JobHandler>(mut self, context: J::Context) -> Self {
        let parse = |payload| serde_json::from_value::<J>(payload).map_err(|err| JobError::Permanent(err.into()));
        let (undo_context, abandon_context) = (context.clone(), context.clone());
        let run: RunFn = Arc::new(move |payload, running: Arc<RunningJob>| {
            let context = context.clone();
            Box::pin(async move { parse(payload)?.run(&context, &running).await })
        });
        let undo: RunFn = Arc::new(move |payload, running: Arc<RunningJob>| {
            let context = undo_context.clone();
            Box::pin(async move { parse(payload)?.undo(&context, &running).await })
        });
        let abandon: AbandonFn = Arc::new(move |payload, encryption, tx| {
            let context = abandon_context.clone();
            Box::pin(async move {
                // A job with an invalid payload has stored nothing.
                let Ok(job) = serde_json::from_value::<J>(payload) else { return Ok(true) };
                job.abandon(&context, encryption, tx).await
            })
        });
        let handler = RegisteredHandler {
            timeout: J::TIMEOUT,
            max_attempts: J::MAX_ATTEMPTS,
            max_backoff: J::MAX_BACKOFF,
            calls_model: J::CALLS_MODEL,
            run,
            undo,
            abandon,
        };
        self.0.insert(J::KIND, handler);
        self
    }

    pub(super) fn kinds(&self) -> JobKinds {
        let (calling, other): (Vec<_>, Vec<_>) = self.0.iter().partition(|(_, handler)| handler.calls_model);
        let names = |handlers: Vec<(&&str, _)>| handlers.into_iter().map(|(kind, _)| (*kind).to_owned()).collect();
        JobKinds { calling_model: names(calling), other: names(other) }
    }

    /// Returns the maximum number of attempts of a job kind; `None` if this process cannot run the kind.
    pub fn max_attempts(&self, kind: &str) -> Option<i32> {
        self.get(kind).map(|handler| handler.max_attempts)
    }

    pub(super) fn get(&self, kind: &str) -> Option<&RegisteredHandler> {
        self.0.get(kind)
    }
}
