//! The background tasks of this process, and the cancellation tokens for its shutdown. [`ChangeWaiter`] waits for changes that
//! this or another process makes.

use std::future::Future;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A handle to the background tasks of this process and the cancellation tokens for its shutdown, which all components share. The
/// fields are in one `Arc`, because middleware clones the handle for each request, and cloning a [`CancellationToken`] takes a
/// lock.
#[derive(Clone, Default)]
pub struct Process(Arc<ProcessInner>);

/// The fields of a [`Process`].
#[derive(Default)]
pub struct ProcessInner {
    /// The tokio tasks that shutdown waits for, such as connections, requests that change something, and attempts of jobs.
    pub background_tasks: TaskTracker,
    /// Canceled when shutdown begins. Components then start no new work.
    pub shutdown: CancellationToken,
    /// Canceled when the deadline of the graceful shutdown has passed, or at a second SIGTERM or SIGINT. Running jobs are then
    /// aborted.
    pub abort: CancellationToken,
}

/// The interval at which to check for changes by other processes.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// A wait for changes, with a deadline. A [`Notify`] signals the changes by this process. The caller checks for changes by other
/// processes, at intervals of `POLL_INTERVAL`.
pub struct ChangeWaiter<'a> {
    changed: &'a Notify,
    deadline: Instant,
}

impl<'a> ChangeWaiter<'a> {
    /// Creates a waiter for the changes that `changed` signals. It waits until `deadline` at the latest.
    pub fn until(deadline: Instant, changed: &'a Notify) -> Self {
        Self { changed, deadline }
    }

    /// Returns a future that completes when `changed` is notified after this call, after `POLL_INTERVAL`, or at the deadline,
    /// whichever is first. To miss no change, call this before you check the state, and await the future afterwards.
    pub fn next(&self) -> impl Future<Output = ()> + use<'a> {
        let notified = self.changed.notified();
        let wake_at = self.deadline.min(Instant::now() + POLL_INTERVAL);
        async move { drop(tokio::time::timeout_at(wake_at, notified).await) }
    }

    /// Returns `true` if the deadline has passed.
    pub fn is_timed_out(&self) -> bool {
        Instant::now() >= self.deadline
    }
}

impl Deref for Process {
    type Target = ProcessInner;

    fn deref(&self) -> &ProcessInner {
        &self.0
    }
}
