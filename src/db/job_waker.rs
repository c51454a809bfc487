//! Notifies job runners of due jobs: the runner of this process directly, those of other processes with a Postgres
//! notification.
//!
//! The notification is not sent in the transaction that enqueues the job, because Postgres commits transactions that contain a
//! `NOTIFY` one after the other: each holds a global lock until its commit is on disk. Notifications of several commits are
//! coalesced into one. If a notification is lost, runners still find the job when they poll.

use std::time::Duration;

use tokio::sync::Notify;

use super::Db;
use super::notify::NotificationHandler;

/// The notification channel for due jobs.
const JOBS_CHANNEL: &str = "acontextd_jobs";

/// The minimum time between two notifications.
const MIN_NOTIFY_INTERVAL: Duration = Duration::from_millis(5);

/// A signal to job runners that there may be due jobs.
#[derive(Default)]
pub struct JobWaker {
    /// Wakes the runner of this process.
    local: Notify,
    /// Wakes [`publish`], which notifies the other processes.
    remote: Notify,
}

impl JobWaker {
    /// Wakes the runner of this process.
    pub fn wake_local(&self) {
        self.local.notify_one();
    }

    /// Wakes the runners of all processes.
    pub fn wake_all(&self) {
        self.local.notify_one();
        self.remote.notify_one();
    }

    /// Waits until the runner of this process is woken. Returns immediately if it was woken before this call.
    pub async fn wait_local(&self) {
        self.local.notified().await;
    }
}

impl NotificationHandler for JobWaker {
    fn channel(&self) -> &'static str {
        JOBS_CHANNEL
    }

    fn on_notification(&self, _: &str) {
        self.wake_local();
    }

    fn on_connection_change(&self) {
        self.wake_local();
    }
}

/// Sends the notifications to other processes until shutdown. This is a component of the process.
///
/// # Errors
/// Never returns an error; all components have this signature.
pub async fn publish(db: Db) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            () = db.process().shutdown.cancelled() => return Ok(()),
            () = db.job_waker().remote.notified() => {}
        }
        if let Err(error) = sqlx::query!("select pg_notify($1, '')", JOBS_CHANNEL).fetch_one(&*db).await {
            tracing::warn!(error = %error, "failed to notify other processes of due jobs; they poll every second");
        }
        tokio::time::sleep(MIN_NOTIFY_INTERVAL).await;
    }
}
