//! From settings to a running server, and from a signal to its end.
//!
//! Startup: the data directory and its lock ([`data_dir`]), the port ([`listener`], so that a second server is rejected before anything
//! else happens), then the database, the objects and the default project ([`open`]); then requests are accepted. Shutdown: no new
//! requests and jobs; those in flight are awaited up to a deadline; then the message writer, and the database. If any component ends by
//! itself, the process ends with an error.

pub mod data_dir;
pub mod database;
pub mod listener;
pub mod object_store;
pub mod open;
pub mod signals;

use std::time::Duration;

use anyhow::{anyhow, bail};
use futures_util::future::BoxFuture;
use secrecy::ExposeSecret;
use tokio::net::TcpListener;
use tokio::task::{JoinError, JoinSet};

use crate::config::Config;
use crate::db::{Db, job_waker, notify};
use crate::features::{self, App};
use crate::http::server;
use crate::jobs::runner;
use crate::messages;
use crate::projects::pepper::Pepper;
use data_dir::DataDir;
use open::{OpenedServer, postgres_exit};
pub use signals::Signals;

/// How long an external database or object store may take to respond for the first time.
const STARTUP_TIMEOUT: Duration = Duration::from_secs(15);

/// How long requests and jobs may take to end after they were aborted.
const ABORT_GRACE: Duration = Duration::from_secs(2);

/// A server that is ready to accept requests.
pub struct Server {
    pub listener: TcpListener,
    opened: OpenedServer,
}

impl Server {
    /// Brings everything up. Clients that connect meanwhile wait.
    ///
    /// # Errors
    /// The message says what to do.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let data_dir = DataDir::open(&config)?;
        let pepper = Pepper::load(config.keys.configured_pepper(), &data_dir.path)?;
        let listener = listener::bind(&config)?;
        let port = listener.local_addr()?.port();
        let opened = OpenedServer::open(config, data_dir, pepper, port).await?;
        Ok(Self { listener, opened })
    }

    pub fn app(&self) -> &App {
        &self.opened.app
    }

    /// Returns what a user needs first: the base URL, the key, the data directory, and a first request.
    ///
    /// # Errors
    /// The system does not tell the address.
    pub fn startup_banner(&self) -> anyhow::Result<String> {
        let config = &self.opened.app.config;
        let base = format!("http://{}/api/v1", self.listener.local_addr()?);
        let token = config.keys.root_token.expose_secret();
        // A key of the operator's own is known to the operator and stays out of logs.
        let key = if config.server.host.is_loopback() { format!("sk-ac-{token}") } else { "(as configured)".into() };
        let database = match &self.opened.postgres {
            Some(postgres) => postgres.url(),
            None => "yours".into(),
        };
        let objects =
            config.s3.bucket.as_ref().map_or_else(|| "a folder in the data folder".into(), |b| format!("bucket {b}"));
        Ok(format!(
            "acontextd {}\n  base URL  {base}\n  key       {key}\n  data      {}\n  database  {database}\n  objects   \
             {objects}\n  try       curl -H 'Authorization: Bearer {key}' {base}/ping\n",
            env!("CARGO_PKG_VERSION"),
            config.server.data_dir().display(),
        ))
    }

    /// Serves until a signal arrives or a component ends.
    ///
    /// # Errors
    /// A component ended by itself, or shutdown took too long.
    pub async fn run(self, mut signals: Signals) -> anyhow::Result<()> {
        let Self { listener, opened } = self;
        let OpenedServer { app, postgres, data_dir: _data_dir } = opened;
        let mut components = spawn_components(&app, listener)?;
        // Requests that are in flight at shutdown may store messages: this component ends last.
        let mut writer = JoinSet::new();
        writer.spawn(messages::writer::run(app.messages.clone()));
        let outcome = tokio::select! {
            result = components.join_next() => Err(component_error(result)),
            result = writer.join_next() => {
                Err(component_error(result.map(|result| result.map(|result| ("message writer", result)))))
            }
            error = postgres_exit(postgres.as_ref()) => Err(error),
            name = signals.next() => {
                tracing::info!(signal = name, "stopping");
                Ok(())
            }
        };
        let drained = shut_down(&app, components, &mut signals).await;
        app.messages.writer.close();
        let _ = tokio::time::timeout(ABORT_GRACE, writer.join_next()).await;
        // Aborted requests may still hold a connection; the database ends it.
        let _ = tokio::time::timeout(ABORT_GRACE, app.db.close()).await;
        if let Some(postgres) = postgres {
            postgres.stop().await?;
        }
        outcome.and(drained)
    }
}

/// The name of a component that ended, and how.
type ComponentResult = Result<(&'static str, anyhow::Result<()>), JoinError>;

/// Spawns everything that must run as long as the server does.
fn spawn_components(app: &App, listener: TcpListener) -> anyhow::Result<JoinSet<(&'static str, anyhow::Result<()>)>> {
    let mut components = JoinSet::new();
    let mut spawn = |name, component: BoxFuture<'static, anyhow::Result<()>>| {
        components.spawn(async move { (name, component.await) });
    };
    let runner = features::runner(app, features::job_registry(app));
    let handlers = features::notification_handlers(app);
    spawn("http server", Box::pin(server::serve(app.process.clone(), listener, features::router(app)?)));
    for task in features::periodic_tasks(app, &runner) {
        spawn(task.name, Box::pin(task.run_periodically(app.db.clone())));
    }
    spawn("job runner", Box::pin(runner::run(runner)));
    spawn("notification listener", Box::pin(notify::listen(app.db.clone(), handlers)));
    spawn("notification publisher", Box::pin(job_waker::publish(app.db.clone())));
    spawn("pooler check", Box::pin(close_pools_if_shared(app.db.clone())));
    Ok(components)
}

/// Closes the pools when a pooler is found to share sessions. The process stays, so that `/ready` can say why.
async fn close_pools_if_shared(db: Db) -> anyhow::Result<()> {
    let shutdown = &db.process().shutdown;
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        () = db.pooler().wait_for_shared_session() => {}
    }
    db.close().await;
    shutdown.cancelled().await;
    Ok(())
}

fn component_error(result: Option<ComponentResult>) -> anyhow::Error {
    match result {
        Some(Ok((name, Ok(())))) => anyhow!("the {name} ended by itself"),
        Some(Ok((name, Err(error)))) => error.context(format!("the {name} failed")),
        Some(Err(error)) => anyhow!(error).context("a component panicked"),
        None => anyhow!("nothing was running"),
    }
}

/// Shuts down: starts nothing new, waits for in-flight requests and jobs, and aborts those that take too long.
async fn shut_down(
    app: &App,
    mut components: JoinSet<(&'static str, anyhow::Result<()>)>,
    signals: &mut Signals,
) -> anyhow::Result<()> {
    app.process.shutdown.cancel();
    let drain = async {
        while let Some(result) = components.join_next().await {
            if !matches!(result, Ok((_, Ok(())))) {
                tracing::error!(error = ?component_error(Some(result)), "a component did not stop in order");
            }
        }
        app.process.background_tasks.close();
        app.process.background_tasks.wait().await;
    };
    tokio::pin!(drain);
    let is_drained = tokio::select! {
        done = tokio::time::timeout(app.config.server.shutdown_timeout, &mut drain) => done.is_ok(),
        _ = signals.next() => false,
    };
    if is_drained {
        return Ok(());
    }
    app.process.hard_stop.cancel();
    // Running jobs return to the queue.
    if tokio::time::timeout(ABORT_GRACE, drain).await.is_ok() {
        Ok(())
    } else {
        bail!("some requests or jobs did not end in time and were cut off")
    }
}
