//! Notifies job runners of due jobs: the runner of this process at once, those of other processes with a Postgres notification.
//!
//! The notification is not sent in the transaction that enqueues the job: from `NOTIFY` until the commit is on disk, Postgres holds a
//! lock on the whole database, and all writers would wait for each other. One notification covers many commits. If it is lost,
//! runners find the job when they poll.

use std::time::Duration;

use tokio::sync::Notify;

use super::Db;
use super::notify::NotificationHandler;

/// The channel of notifications about jobs.
const JOBS_CHANNEL: &str = "acontextd_jobs";

/// The minimum time between two notifications about jobs.
const MIN_NOTIFY_INTERVAL: Duration = Duration::from_millis(5);

/// The signal that there may be due jobs.
#[derive(Default)]
pub struct JobWaker {
    local: Notify,
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

    /// Waits until the runner of this process is woken. A signal that was sent before is not lost.
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

    fn on_reconnect(&self) {
        self.wake_local();
    }
}

/// Notifies other processes of due jobs until the process shuts down.
///
/// # Errors
/// Never; the signature is that of every component.
pub async fn publish(db: Db) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            () = db.process().shutdown.cancelled() => return Ok(()),
            () = db.job_waker().remote.notified() => {}
        }
        if let Err(error) = sqlx::query!("select pg_notify($1, '')", JOBS_CHANNEL).fetch_one(&*db).await {
            tracing::warn!(error = %error, "other processes were not notified of new jobs; they poll every second");
        }
        tokio::time::sleep(MIN_NOTIFY_INTERVAL).await;
    }
}
