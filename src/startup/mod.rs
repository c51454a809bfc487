//! Startup and shutdown of the server.
//!
//! Startup locks the data directory ([`data_dir`]) and opens the port ([`listener`]) first, so that a second server is
//! rejected before it changes anything. Then it opens the database and the object store, creates the default project ([`open`]),
//! and spawns the components, which accept requests and run jobs. Shutdown stops accepting requests and jobs, waits for those in
//! flight until a deadline and aborts the rest, and then stops the message writer and the database. If a component exits
//! unexpectedly, the server shuts down, and the process ends with an error.

pub mod data_dir;
pub mod database;
mod descriptors;
pub mod listener;
pub mod object_store;
pub mod open;
pub mod signals;
mod warnings;

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
use crate::projects::pepper::PepperSources;
use data_dir::DataDir;
use open::{OpenedApp, wait_for_postgres_exit};
pub use signals::Signals;

/// How long to wait for an external database or an object store at startup.
const STARTUP_TIMEOUT: Duration = Duration::from_secs(15);

/// The time limit for each of the last steps of shutdown: to release aborted jobs, to stop the message writer, and to close the
/// connections.
const SHUTDOWN_STEP_TIMEOUT: Duration = Duration::from_secs(2);

/// The text in the startup banner in place of a key that no longer works.
const ROTATED_KEY_TEXT: &str = "replaced by a key rotation or reset, so ROOT_API_BEARER_TOKEN no longer works (use the new key; \
     or, if the project is not encrypted, change ROOT_API_BEARER_TOKEN and restart)";

/// A server that is ready to accept requests.
pub struct Server {
    pub listener: TcpListener,
    /// The maximum number of client connections.
    max_connections: usize,
    opened_app: OpenedApp,
    /// Where sandboxes run, for the banner.
    sandboxes: String,
}

impl Server {
    /// Starts the server up to the point where requests can be accepted. The system accepts connections as soon as the port is
    /// open; their requests wait.
    ///
    /// # Errors
    /// Returns an error with a remedy if any step fails.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        // First, because the other steps open files.
        let max_connections = descriptors::raise_file_limit(config.limits.max_connections);
        let data_dir = DataDir::open(&config)?;
        let pepper = PepperSources::load(config.keys.configured_pepper(), &data_dir.path)?;
        let listener = listener::bind(&config)?;
        let port = listener.local_addr()?.port();
        let opened_app = OpenedApp::open(config, data_dir, pepper, port).await?;
        warnings::log_warnings(&opened_app.app.config, &opened_app.app.public_url);
        warnings::log_model(&opened_app.app.config);
        // A machine that cannot isolate commands is logged now, and not with the first command.
        let sandboxes = opened_app.app.sandboxes.describe().await;
        Ok(Self { listener, max_connections, opened_app, sandboxes })
    }

    /// Returns the platform and the contexts of all features.
    pub fn app(&self) -> &App {
        &self.opened_app.app
    }

    /// Returns the text that is printed after startup: the base URL, the key, the locations of the data, where sandboxes run, and a
    /// first request.
    ///
    /// # Errors
    /// Returns an error if the system does not return the address of the socket.
    pub fn startup_banner(&self) -> anyhow::Result<String> {
        let config = &self.opened_app.app.config;
        let base_url = format!("http://{}/api/v1", self.listener.local_addr()?);
        let token = config.keys.root_token.expose_secret();
        // If the server is not on loopback, the token was chosen by the operator and must not appear in logs.
        let token = if config.server.is_exposed() { "<ROOT_API_BEARER_TOKEN>" } else { token };
        let (key, key_text) = if self.opened_app.default_project.accepts_root_token {
            let key = format!("sk-ac-{token}");
            (key.clone(), key)
        } else {
            ("<key>".into(), ROTATED_KEY_TEXT.to_owned())
        };
        let database = match &self.opened_app.postgres {
            Some(postgres) => postgres.url(),
            None => "external".into(),
        };
        let bucket = config.s3.bucket.as_ref();
        let objects = bucket.map_or_else(|| "local directory".into(), |bucket| format!("bucket {bucket}"));
        let sandboxes = &self.sandboxes;
        Ok(format!(
            "acontextd {}\n  base URL   {base_url}\n  key        {key_text}\n  data       {}\n  database   {database}\n  \
             objects    {objects}\n  sandboxes  {sandboxes}\n  try        curl -H 'Authorization: Bearer {key}' {base_url}/ping\n",
            env!("CARGO_PKG_VERSION"),
            config.server.data_dir().display(),
        ))
    }

    /// Serves until a signal arrives or a component exits, and then shuts down.
    ///
    /// # Errors
    /// Returns an error if a component exited unexpectedly, or if requests or jobs did not finish in time.
    pub async fn run(self, mut signals: Signals) -> anyhow::Result<()> {
        let Self { listener, max_connections, opened_app, sandboxes: _ } = self;
        let OpenedApp { app, postgres, data_dir: _data_dir, default_project: _ } = opened_app;
        let mut components = spawn_components(&app, listener, max_connections)?;
        // The message writer stops last, because requests that are in flight at shutdown may store messages.
        let mut message_writer = JoinSet::new();
        let run_writer = messages::writer::run(app.messages.clone());
        message_writer.spawn(async move { ("message writer", run_writer.await) });
        let outcome = tokio::select! {
            result = components.join_next() => Err(component_error(result)),
            result = message_writer.join_next() => Err(component_error(result)),
            error = wait_for_postgres_exit(postgres.as_ref()) => Err(error),
            name = signals.next() => {
                tracing::info!(signal = name, "shutting down");
                Ok(())
            }
        };
        let drained = shut_down(&app, components, &mut signals).await;
        app.messages.writer.close();
        let _ = tokio::time::timeout(SHUTDOWN_STEP_TIMEOUT, message_writer.join_next()).await;
        // Requests that did not finish may still hold a connection, so the wait is limited.
        let _ = tokio::time::timeout(SHUTDOWN_STEP_TIMEOUT, app.db.close()).await;
        if let Some(postgres) = postgres {
            postgres.stop().await?;
        }
        outcome.and(drained)
    }
}

/// The name of a component that exited, and its result.
type ComponentExit = (&'static str, anyhow::Result<()>);

/// Spawns the components, which run until shutdown.
fn spawn_components(
    app: &App,
    listener: TcpListener,
    max_connections: usize,
) -> anyhow::Result<JoinSet<ComponentExit>> {
    let mut components = JoinSet::new();
    let mut spawn = |name, component: BoxFuture<'static, anyhow::Result<()>>| {
        components.spawn(async move { (name, component.await) });
    };
    let runner = features::runner(app, features::job_registry(app));
    let handlers = features::notification_handlers(app);
    spawn(
        "HTTP server",
        Box::pin(server::serve(app.process.clone(), listener, features::router(app)?, max_connections)),
    );
    for task in features::periodic_tasks(app, &runner) {
        spawn(task.name, Box::pin(task.run_periodically(app.db.clone())));
    }
    spawn("job runner", Box::pin(runner::run(runner)));
    spawn("notification listener", Box::pin(notify::listen(app.db.clone(), handlers)));
    spawn("notification publisher", Box::pin(job_waker::publish(app.db.clone())));
    spawn("pooler check", Box::pin(close_pools_on_shared_session(app.db.clone())));
    Ok(components)
}

/// Closes the connection pools when a pooler is found to share sessions. The process keeps running, so that `/ready` can
/// return the reason.
async fn close_pools_on_shared_session(db: Db) -> anyhow::Result<()> {
    let shutdown = &db.process().shutdown;
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        () = db.pooler_check().wait_for_shared_session() => {}
    }
    db.close().await;
    shutdown.cancelled().await;
    Ok(())
}

/// Returns the error for a component that exited unexpectedly.
fn component_error(result: Option<Result<ComponentExit, JoinError>>) -> anyhow::Error {
    match result {
        Some(Ok((name, Ok(())))) => anyhow!("{name} exited unexpectedly"),
        Some(Ok((name, Err(error)))) => error.context(format!("{name} failed")),
        Some(Err(error)) => anyhow!(error).context("a component panicked"),
        None => anyhow!("no component was running"),
    }
}

/// Stops accepting requests and jobs, and waits for those in flight until the deadline or a second signal. Then aborts running
/// jobs.
///
/// # Errors
/// Returns an error if requests or jobs are still running [`SHUTDOWN_STEP_TIMEOUT`] after jobs were aborted.
async fn shut_down(app: &App, mut components: JoinSet<ComponentExit>, signals: &mut Signals) -> anyhow::Result<()> {
    app.process.shutdown.cancel();
    let drain = async {
        while let Some(result) = components.join_next().await {
            if !matches!(result, Ok((_, Ok(())))) {
                tracing::error!(error = ?component_error(Some(result)), "component did not shut down cleanly");
            }
        }
        app.process.background_tasks.close();
        app.process.background_tasks.wait().await;
    };
    tokio::pin!(drain);
    let is_drained = tokio::select! {
        result = tokio::time::timeout(app.config.server.shutdown_timeout, &mut drain) => result.is_ok(),
        _ = signals.next() => false,
    };
    if is_drained {
        return Ok(());
    }
    app.process.abort.cancel();
    // Aborted jobs are released to the queue.
    if tokio::time::timeout(SHUTDOWN_STEP_TIMEOUT, drain).await.is_ok() {
        Ok(())
    } else {
        bail!(
            "some requests or jobs did not finish before the shutdown deadline and were aborted: increase \
             ACONTEXTD_SHUTDOWN_TIMEOUT"
        )
    }
}
