//! The life of this process: its background tasks and its shutdown.

use std::ops::Deref;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A handle that every part of the process shares. It is one `Arc`, because middlewares clone it for each request, and a clone of a
/// [`CancellationToken`] takes a lock.
#[derive(Clone, Default)]
pub struct Process(Arc<ProcessInner>);

#[derive(Default)]
pub struct ProcessInner {
    /// Everything that runs next to the requests. Shutdown waits for it.
    pub background_tasks: TaskTracker,
    /// Cancelled when the process begins to shut down: nothing new is started.
    pub shutdown: CancellationToken,
    /// Cancelled when the time for an orderly shutdown is over.
    pub hard_stop: CancellationToken,
}

impl Deref for Process {
    type Target = ProcessInner;

    fn deref(&self) -> &ProcessInner {
        &self.0
    }
}
