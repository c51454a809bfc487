//! The word that there is work: to the runner of this process at once, to other processes by a `NOTIFY` on a connection of
//! its own.
//!
//! Never from the transaction of a request: Postgres holds one lock for the whole database from a `NOTIFY` until that commit
//! is on disk, and all writers would stand in line. Word of many commits is put into one. If it is lost, a timer of a second
//! finds the work.

use std::time::Duration;

use sqlx::postgres::PgListener;
use tokio::sync::Notify;

use crate::app::App;
use crate::ids::ProjectId;

const JOBS: &str = "acontextd_jobs";
/// Spelled in `migrations/0001_projects.sql` too.
const PROJECTS: &str = "acontextd_projects";

/// How far apart two notifications are at least.
const PAUSE: Duration = Duration::from_millis(5);

#[derive(Default)]
pub struct Wake {
    here: Notify,
    elsewhere: Notify,
}

impl Wake {
    pub fn here(&self) {
        self.here.notify_one();
    }

    pub fn here_and_elsewhere(&self) {
        self.here.notify_one();
        self.elsewhere.notify_one();
    }

    /// Waits for word. Word that came before is not lost.
    pub async fn wait(&self) {
        self.here.notified().await;
    }
}

/// Carries word from this process to the others, until the process stops.
pub async fn tell(app: App) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            () = app.shutdown.cancelled() => return Ok(()),
            () = app.jobs.wake.elsewhere.notified() => {}
        }
        if let Err(fault) = sqlx::query!("select pg_notify($1, '')", JOBS).fetch_one(&app.db).await {
            tracing::warn!(error = %fault, "other processes were not told of new work; they look every second");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Hears what other processes and the database's triggers tell, until the process stops. Reconnects when the connection is
/// lost, and then takes nothing it remembers of projects for granted.
pub async fn listen(app: App) -> anyhow::Result<()> {
    loop {
        let heard = tokio::select! {
            () = app.shutdown.cancelled() => return Ok(()),
            heard = hear(&app) => heard,
        };
        app.keys.forget_all();
        if app.db.is_closed() {
            app.shutdown.cancelled().await;
        } else if let Err(fault) = heard {
            tracing::warn!(error = %fault, "the connection for notifications was lost");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

/// Returns when the connection is lost.
async fn hear(app: &App) -> sqlx::Result<()> {
    let mut listener = PgListener::connect_with(&app.db).await?;
    listener.eager_reconnect(false);
    listener.listen_all([JOBS, PROJECTS]).await?;
    // What happened before is not known.
    app.keys.forget_all();
    app.jobs.wake.here();
    while let Some(word) = listener.try_recv().await? {
        match word.channel() {
            JOBS => app.jobs.wake.here(),
            _ => match word.payload().parse::<ProjectId>() {
                Ok(project) => app.keys.forget(project),
                Err(_) => app.keys.forget_all(),
            },
        }
    }
    Ok(())
}
