//! From settings to a running server, and from a signal to its end.
//!
//! Start: the data folder and its lock, the port (so that a second server is refused before anything else), the private
//! Postgres (or yours), the pepper, the objects, the migrations, the default project; then requests are taken. Stop: no new requests and
//! jobs; what runs is waited for up to a deadline; then the task that stores messages, and the database. If any part ends by
//! itself, the process ends with an error.

use std::fs::{self, File, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use secrecy::ExposeSecret;
use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;

use crate::app::{self, App, Parts};
use crate::blob::Blobs;
use crate::blob::local::LocalBlobs;
use crate::blob::s3::S3Blobs;
use crate::blob::spool::SpoolDir;
use crate::config::{Config, Database};
use crate::db::pooler::{PoolerCheck, SHARED_SESSIONS};
use crate::embedded::postgres::{Postgres, Tuning};
use crate::error::is_outage;
use crate::http::server;
use crate::jobs::{periodic, runner, wake};
use crate::projects::pepper::Pepper;
use crate::{messages, projects};

/// How long a database of the operator's may take to answer for the first time.
const PATIENCE: Duration = Duration::from_secs(15);

/// How many connections may wait to be taken. With the usual 128 a crowd that comes at once is partly reset.
const BACKLOG: u32 = 4096;

/// How long what was cut off may take to end.
const CUT_OFF: Duration = Duration::from_secs(2);

/// A server that is ready to take requests.
pub struct Server {
    pub app: App,
    pub listener: TcpListener,
    postgres: Option<Postgres>,
    _data_lock: Option<File>,
}

impl Server {
    /// Brings everything up. What connects meanwhile waits.
    ///
    /// # Errors
    /// A sentence that says what to do.
    pub async fn start(mut config: Config) -> anyhow::Result<Self> {
        let folder = data_folder(&config)?;
        let embedded = !config.database.is_external();
        let lock = (embedded || !config.s3.is_configured()).then(|| lock(&folder)).transpose()?;
        let pepper = Pepper::load(config.keys.configured_pepper(), &folder)?;
        let listener = bind(&config)?;
        let port = listener.local_addr()?.port();
        let postgres = if embedded {
            Some(Postgres::start(&folder, config.server.postgres_bin.as_deref(), Tuning::default()).await?)
        } else {
            None
        };
        let database = match &postgres {
            Some(postgres) => postgres.options(),
            None => external(&config.database)?,
        };
        let pooler = PoolerCheck::default();
        let inspected = async {
            let mut conn = connect(&database, postgres.is_none(), &pooler).await?;
            let pepper = pepper.resolve(&mut conn, &config.keys).await?;
            conn.close().await?;
            anyhow::Ok(pepper)
        };
        let pepper = tokio::select! {
            pepper = inspected => pepper?,
            exit = exited(postgres.as_ref()) => return Err(exit),
        };
        config.keys.set_pepper(pepper);
        let spool = SpoolDir::open(&folder).with_context(|| format!("{} cannot be written", folder.display()))?;
        let blobs: Arc<dyn Blobs> = if config.s3.is_configured() {
            Arc::new(S3Blobs::new(&config.s3))
        } else {
            Arc::new(LocalBlobs::open(&folder.join("objects"), spool.clone())?)
        };
        let kinds = app::kinds();
        let app = App::new(Parts { config, database, pooler, blobs, spool, port, kinds })?;
        prepare(&app, postgres.as_ref()).await?;
        Ok(Self { app, listener, postgres, _data_lock: lock })
    }

    /// What to tell the user: where the server is, the key, the data, and a first call.
    pub fn welcome(&self) -> anyhow::Result<String> {
        let config = &self.app.config;
        let base = format!("http://{}/api/v1", self.listener.local_addr()?);
        let token = config.keys.root_token.expose_secret();
        // A key of the operator's own is known to the operator and stays out of logs.
        let key = if config.server.host.is_loopback() { format!("sk-ac-{token}") } else { "(as configured)".into() };
        let database = match &self.postgres {
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

    /// Serves until a signal comes or a part of the program ends.
    ///
    /// # Errors
    /// A part ended by itself, or the stop took too long.
    pub async fn run(self, mut signals: Signals) -> anyhow::Result<()> {
        let Self { app, listener, postgres, _data_lock } = self;
        let mut parts = parts(&app, listener);
        // What still runs at a stop may have messages to store: this part is the last to go.
        let mut writer = JoinSet::new();
        writer.spawn(messages::writer::run(app.clone()));
        let outcome = tokio::select! {
            ended = parts.join_next() => Err(end_of(ended)),
            ended = writer.join_next() => Err(match ended {
                Some(Err(fault)) => anyhow!(fault).context("the message writer panicked"),
                Some(Ok(Err(fault))) => fault.context("the message writer failed"),
                _ => anyhow!("the message writer ended by itself"),
            }),
            exit = exited(postgres.as_ref()) => Err(exit),
            name = signals.next() => {
                tracing::info!(signal = name, "stopping");
                Ok(())
            }
        };
        let stopped = stop(&app, parts, &mut signals).await;
        app.messages.close();
        let _ = tokio::time::timeout(CUT_OFF, writer.join_next()).await;
        // What was cut off may still hold a connection; the database ends it.
        let _ = tokio::time::timeout(CUT_OFF, futures_util::future::join(app.pages.close(), app.db.close())).await;
        if let Some(postgres) = postgres {
            postgres.stop().await?;
        }
        outcome.and(stopped)
    }
}

/// Everything that must run as long as the server does.
fn parts(app: &App, listener: TcpListener) -> JoinSet<(&'static str, anyhow::Result<()>)> {
    let mut parts = JoinSet::new();
    let mut part = |name, future: futures_util::future::BoxFuture<'static, anyhow::Result<()>>| {
        parts.spawn(async move { (name, future.await) });
    };
    part("http server", Box::pin(server::serve(app.clone(), listener, app.router())));
    part("job runner", Box::pin(runner::run(app.clone())));
    part("notifications in", Box::pin(wake::listen(app.clone())));
    part("notifications out", Box::pin(wake::tell(app.clone())));
    part("pooler check", Box::pin(close_pools_if_shared(app.clone())));
    for reconciler in app::reconcilers(&app.config) {
        part(reconciler.name, Box::pin(periodic::repeat(app.clone(), reconciler)));
    }
    parts
}

/// Closes the pools when a pooler is found to share sessions. The process stays, so that `/ready` can say why.
async fn close_pools_if_shared(app: App) -> anyhow::Result<()> {
    tokio::select! {
        () = app.shutdown.cancelled() => return Ok(()),
        () = app.pooler.wait_for_shared_session() => {}
    }
    futures_util::future::join(app.pages.close(), app.db.close()).await;
    app.shutdown.cancelled().await;
    Ok(())
}

fn end_of(ended: Option<Result<(&'static str, anyhow::Result<()>), tokio::task::JoinError>>) -> anyhow::Error {
    match ended {
        Some(Ok((name, Ok(())))) => anyhow!("the {name} ended by itself"),
        Some(Ok((name, Err(fault)))) => fault.context(format!("the {name} failed")),
        Some(Err(fault)) => anyhow!(fault).context("a part of the program panicked"),
        None => anyhow!("nothing was running"),
    }
}

async fn exited(postgres: Option<&Postgres>) -> anyhow::Error {
    match postgres {
        Some(postgres) => postgres.exited().await,
        None => std::future::pending().await,
    }
}

/// The orderly end: nothing new, then wait for what runs, then cut off what is late.
async fn stop(
    app: &App,
    mut parts: JoinSet<(&'static str, anyhow::Result<()>)>,
    signals: &mut Signals,
) -> anyhow::Result<()> {
    app.shutdown.cancel();
    let rest = async {
        while let Some(ended) = parts.join_next().await {
            if !matches!(ended, Ok((_, Ok(())))) {
                tracing::error!(error = ?end_of(Some(ended)), "a part did not stop in order");
            }
        }
        app.tasks.close();
        app.tasks.wait().await;
    };
    tokio::pin!(rest);
    let in_time = tokio::select! {
        done = tokio::time::timeout(app.config.server.shutdown_timeout, &mut rest) => done.is_ok(),
        _ = signals.next() => false,
    };
    if in_time {
        return Ok(());
    }
    app.hard_stop.cancel();
    // Jobs that hear this hand themselves back.
    if tokio::time::timeout(CUT_OFF, rest).await.is_ok() {
        Ok(())
    } else {
        bail!("some requests or jobs did not end in time and were cut off")
    }
}

/// What tells the process to stop. From the moment this is made, the signals end nothing by themselves.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// # Errors
    /// The system refuses.
    pub fn take() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next one; answers with its name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

async fn prepare(app: &App, postgres: Option<&Postgres>) -> anyhow::Result<()> {
    let reached = async {
        crate::db::migrate(&app.db).await?;
        reach_objects(app).await?;
        projects::root::ensure(app).await.map(drop)
    };
    tokio::select! {
        reached = reached => reached,
        exit = exited(postgres) => Err(exit),
    }
}

/// Opens the first connection. An external database may take a while to answer, as when both start together; it may also be
/// behind a pooler, which is refused if it shares sessions.
async fn connect(
    database: &PgConnectOptions,
    is_external: bool,
    pooler: &PoolerCheck,
) -> anyhow::Result<sqlx::PgConnection> {
    if !is_external {
        return Ok(pooler.connect(database, &[]).await?);
    }
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let tried = tokio::time::timeout_at(deadline, pooler.connect(database, &[])).await;
        match tried {
            Ok(Ok(conn)) => {
                pooler.verify_at_startup(database).await?;
                return Ok(conn);
            }
            Ok(Err(_)) if pooler.found_shared_session() => bail!(SHARED_SESSIONS),
            Ok(Err(error)) if is_outage(&error) && tokio::time::Instant::now() < deadline => {
                tracing::warn!(error = %error, "the database does not answer yet; retrying");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Ok(Err(error)) => {
                return Err(error).context(
                    "cannot connect to the database named by DATABASE_URL (or DATABASE_HOST): check the address, the user, \
                     the password and the database name",
                );
            }
            Err(_) => bail!("the database named by DATABASE_URL (or DATABASE_HOST) does not answer"),
        }
    }
}

async fn reach_objects(app: &App) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match app.blobs.check().await {
            Ok(()) => return Ok(()),
            Err(fault) if tokio::time::Instant::now() < deadline => {
                tracing::warn!(error = format!("{:#}", anyhow!(fault)), "the object store does not answer yet");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Err(fault) => {
                return Err(anyhow!(fault).context(
                    "the objects cannot be reached: look at S3_BUCKET (it must exist), S3_ENDPOINT, S3_ACCESS_KEY and \
                     S3_SECRET_KEY, or at the rights of the data folder",
                ));
            }
        }
    }
}

fn bind(config: &Config) -> anyhow::Result<TcpListener> {
    let address = config.server.address();
    listen(address).map_err(|fault| match fault.kind() {
        io::ErrorKind::AddrInUse => anyhow!(
            "API_EXPORT_PORT is {}, but another program listens there: stop it, or choose another port such as {}",
            address.port(),
            address.port().saturating_add(1)
        ),
        io::ErrorKind::AddrNotAvailable => anyhow!(
            "ACONTEXTD_HOST is {}, but this machine has no such address: choose one it has, such as 127.0.0.1",
            address.ip()
        ),
        _ => anyhow!(fault).context(format!("cannot listen on {address}")),
    })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Makes the data folder. The private Postgres runs as another user and must get through it.
fn data_folder(config: &Config) -> anyhow::Result<std::path::PathBuf> {
    let folder = config.server.data_dir();
    let make = || -> io::Result<_> {
        let new = !folder.exists();
        fs::create_dir_all(&folder)?;
        if new {
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o711))?;
        }
        fs::canonicalize(&folder)
    };
    make().with_context(|| {
        format!(
            "ACONTEXTD_DATA_DIR is {}, but that folder cannot be made: choose one that can, such as ~/acontextd-data",
            folder.display()
        )
    })
}

/// One server for one data folder.
fn lock(folder: &Path) -> anyhow::Result<File> {
    let file = fs::OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(folder.join("lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(
            "ACONTEXTD_DATA_DIR is {}, but another acontextd uses that folder: stop it, or choose another folder",
            folder.display()
        ),
        Err(TryLockError::Error(fault)) => Err(fault.into()),
    }
}

fn external(settings: &Database) -> anyhow::Result<PgConnectOptions> {
    let options = if let Some(url) = &settings.database_url {
        url.expose_secret().parse::<PgConnectOptions>().map_err(|fault| {
            anyhow!("DATABASE_URL cannot be read ({fault}): write it like postgres://user:password@host:5432/name")
        })?
    } else {
        let options = PgConnectOptions::new_without_pgpass()
            .host(settings.database_host.as_deref().unwrap_or("localhost"))
            .port(settings.database_port)
            .username(&settings.database_user)
            .database(&settings.database_name);
        match &settings.database_password {
            Some(password) => options.password(password.expose_secret()),
            None => options,
        }
    };
    // `DATABASE_ENABLE_TLS` only ever raises what the URL or PGSSLMODE asks for.
    let is_weaker = matches!(options.get_ssl_mode(), PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Prefer);
    Ok(if settings.database_tls && is_weaker { options.ssl_mode(PgSslMode::Require) } else { options })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn ssl_mode(url: &str, tls: &str) -> String {
        let environment = [("DATABASE_URL", url), ("DATABASE_ENABLE_TLS", tls), ("ROOT_SECRET_PEPPER", "0123456789")];
        let environment: HashMap<_, _> = environment.map(|(name, value)| (name.into(), value.into())).into();
        let config = Config::from_parts(["acontextd"], &environment).unwrap_or_else(|_| panic!("{url} was refused"));
        format!("{:?}", external(&config.database).unwrap().get_ssl_mode())
    }

    #[test]
    fn enabling_tls_never_weakens_the_mode_of_the_url() {
        for (mode, with_tls, without) in [
            ("disable", "Require", "Disable"),
            ("allow", "Require", "Allow"),
            ("prefer", "Require", "Prefer"),
            ("require", "Require", "Require"),
            ("verify-ca", "VerifyCa", "VerifyCa"),
            ("verify-full", "VerifyFull", "VerifyFull"),
        ] {
            let url = format!("postgres://db/a?sslmode={mode}");
            assert_eq!(ssl_mode(&url, "true"), with_tls, "{mode}");
            assert_eq!(ssl_mode(&url, "false"), without, "{mode}");
        }
        assert_eq!(ssl_mode("postgres://db/a", "true"), "Require");
    }
}
