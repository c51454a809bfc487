//! The life of this process: its background tasks and its shutdown, and waiting for changes that it or another process makes.

use std::future::Future;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
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

/// How often to check for a change that another process has made.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Waits for a change until a deadline. This process announces its changes, other processes do not.
pub struct Changes<'a> {
    announced: &'a Notify,
    deadline: Instant,
}

impl<'a> Changes<'a> {
    pub fn until(deadline: Instant, announced: &'a Notify) -> Self {
        Self { announced, deadline }
    }

    /// Returns a future that ends when there may have been a change since this call. To miss none, call this first, check then, and
    /// await the future if there was no change yet.
    pub fn next(&self) -> impl Future<Output = ()> + use<'a> {
        let announced = self.announced.notified();
        let wake = self.deadline.min(Instant::now() + POLL_INTERVAL);
        async move { drop(tokio::time::timeout_at(wake, announced).await) }
    }

    /// Returns `true` if the deadline has passed.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }
}

impl Deref for Process {
    type Target = ProcessInner;

    fn deref(&self) -> &ProcessInner {
        &self.0
    }
}
