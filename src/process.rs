//! The life of this process: its background tasks and its shutdown.

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Handles that every part of the process shares; cheap to clone.
#[derive(Clone, Default)]
pub struct Process {
    /// Everything that runs next to the requests. Shutdown waits for it.
    pub background_tasks: TaskTracker,
    /// Cancelled when the process begins to shut down: nothing new is started.
    pub shutdown: CancellationToken,
    /// Cancelled when the time for an orderly shutdown is over.
    pub hard_stop: CancellationToken,
}
