//! The embedded Postgres: the server binaries of this machine, files in `<data directory>/postgres`, a Unix socket and no port.
//!
//! It exits with this process, even if the process is killed: the kernel sends SIGINT to Postgres when the thread that
//! started it exits, and that thread does nothing else. A Postgres left over from a killed server is given time to exit and
//! then stopped. If the server runs as root, Postgres runs as the user that `PostgresUser::find` returns.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use aws_lc_rs::digest;
use rustix::process::{Pid, Signal, getuid, kill_process};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection};
use tokio::sync::watch;

use super::binaries::{PostgresUser, find_binaries};
use super::orphan::stop_orphan;
use crate::error::data_dir::{describe_failure, describe_wrong_owner};
use crate::percent;

/// The name of the database, and of the database user.
const DATABASE_NAME: &str = "acontext";
/// The kernel's limit for the path of a socket, minus the file name that Postgres appends.
const MAX_SOCKET_DIR_LEN: usize = 107 - "/.s.PGSQL.5432".len();
/// How long to wait until Postgres accepts connections. After a crash it must replay its log first.
const STARTUP_TIMEOUT: Duration = Duration::from_mins(2);

/// Options of an embedded Postgres. Only tests change them.
#[derive(Clone, Copy, Debug)]
pub struct PostgresOptions {
    pub max_connections: u32,
    /// `false` if the data does not have to survive a crash.
    pub fsync: bool,
    /// How long to wait for Postgres to exit after each signal.
    pub stop_timeout: Duration,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self { max_connections: 200, fsync: true, stop_timeout: Duration::from_secs(15) }
    }
}

/// A running embedded Postgres.
pub struct EmbeddedPostgres {
    pid: Pid,
    socket_dir: PathBuf,
    /// The exit message, once the process has exited.
    exit_rx: watch::Receiver<Option<String>>,
    stop_timeout: Duration,
}

impl EmbeddedPostgres {
    /// Starts Postgres with its files in `<data_dir>/postgres`, and creates that directory on first use. Returns when Postgres
    /// accepts connections. `bin_dir` is the configured directory of the server binaries.
    ///
    /// # Errors
    /// Returns an error with a remedy if binaries or permissions are missing, or if Postgres does not start.
    pub async fn start(data_dir: &Path, bin_dir: Option<&Path>, options: PostgresOptions) -> anyhow::Result<Self> {
        let data_version = fs::read_to_string(data_dir.join("postgres/data/PG_VERSION")).unwrap_or_default();
        let (data_dir, bin_dir) = (data_dir.to_owned(), find_binaries(bin_dir, data_version.trim())?);
        let started = tokio::task::spawn_blocking(move || {
            let cluster = PostgresCluster::prepare(&data_dir, bin_dir)?;
            cluster.init(options)?;
            cluster.check_version()?;
            stop_orphan(&cluster.cluster_dir, options.stop_timeout)?;
            cluster.spawn(options)
        });
        let postgres = started.await??;
        postgres.wait_until_ready().await?;
        Ok(postgres)
    }

    /// Returns the connection options.
    pub fn options(&self) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass().socket(&self.socket_dir).username(DATABASE_NAME).database(DATABASE_NAME)
    }

    /// Returns the connection URL for other programs, such as psql.
    pub fn url(&self) -> String {
        let host = percent::encode(self.socket_dir.as_os_str().as_encoded_bytes(), b"/");
        format!("postgresql:///{DATABASE_NAME}?host={host}&user={DATABASE_NAME}")
    }

    /// Waits until Postgres exits, and returns an error with its exit message.
    pub async fn wait_for_exit(&self) -> anyhow::Error {
        let mut exit_rx = self.exit_rx.clone();
        let message = exit_rx.wait_for(Option::is_some).await.map(|message| message.clone().unwrap_or_default());
        anyhow!("embedded Postgres exited unexpectedly: {}", message.unwrap_or_else(|_| "unknown exit status".into()))
    }

    /// Shuts Postgres down. Uses the fast mode first, which closes all connections; committed data is on disk.
    ///
    /// # Errors
    /// Returns an error if the process does not exit.
    pub async fn stop(self) -> anyhow::Result<()> {
        if self.exit_rx.borrow().is_some() {
            // The process has exited already, and its id may belong to another process by now.
            return Ok(());
        }
        for signal in [Signal::INT, Signal::QUIT, Signal::KILL] {
            // An error means that the process has exited already.
            let _ = kill_process(self.pid, signal);
            let mut exit_rx = self.exit_rx.clone();
            if tokio::time::timeout(self.stop_timeout, exit_rx.wait_for(Option::is_some)).await.is_ok() {
                return Ok(());
            }
        }
        bail!("embedded Postgres (pid {}) did not exit", self.pid.as_raw_nonzero())
    }

    /// Waits until Postgres accepts connections, and creates the database if it does not exist.
    async fn wait_until_ready(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + STARTUP_TIMEOUT;
        loop {
            let options = self.options();
            let attempt = tokio::select! {
                error = self.wait_for_exit() => return Err(error),
                attempt = options.connect() => attempt,
            };
            match attempt {
                Ok(conn) => return Ok(conn.close().await?),
                // 3D000 is invalid_catalog_name: the database does not exist.
                Err(sqlx::Error::Database(err)) if err.code().as_deref() == Some("3D000") => {
                    let mut conn = self.options().database("postgres").connect().await?;
                    sqlx::query("create database acontext").execute(&mut conn).await?;
                    conn.close().await?;
                }
                Err(err) if Instant::now() > deadline => {
                    return Err(err).context(
                        "embedded Postgres does not accept connections: see its log in \
                         <data directory>/postgres/data/log",
                    );
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }
}

/// A database cluster in the sense of Postgres: the directory of the databases, with the binaries and the user to run it.
struct PostgresCluster {
    bin_dir: PathBuf,
    data_dir: PathBuf,
    /// `<data directory>/postgres`.
    postgres_dir: PathBuf,
    /// The files that `initdb` creates, in `<data directory>/postgres/data`. Postgres calls this its data directory.
    cluster_dir: PathBuf,
    socket_dir: PathBuf,
    /// `None` if Postgres runs as the user of the server.
    user: Option<PostgresUser>,
}

impl PostgresCluster {
    /// Creates the directories that Postgres needs, except the cluster directory, which [`PostgresCluster::init`] creates.
    fn prepare(data_dir: &Path, bin_dir: PathBuf) -> anyhow::Result<Self> {
        let user = PostgresUser::find()?;
        if let Some(user) = &user {
            user.check_traversable(data_dir)?;
        }
        let postgres_dir = data_dir.join("postgres");
        let (cluster_dir, socket_dir) = (postgres_dir.join("data"), socket_dir(data_dir));
        let cluster = Self { bin_dir, data_dir: data_dir.to_owned(), postgres_dir, cluster_dir, socket_dir, user };
        cluster.create_private_dir(&cluster.postgres_dir)?;
        cluster.create_private_dir(&cluster.socket_dir)?;
        Ok(cluster)
    }

    /// Creates a directory that only the user of Postgres can access.
    fn create_private_dir(&self, dir: &Path) -> anyhow::Result<()> {
        let create = || -> io::Result<()> {
            match fs::create_dir(dir) {
                Err(err) if err.kind() != io::ErrorKind::AlreadyExists => return Err(err),
                _ => {}
            }
            // If the server owns the directory, it is new, or its creation was interrupted before `chown`.
            let is_owned_by_server = fs::symlink_metadata(dir)?.uid() == getuid().as_raw();
            match self.user.as_ref().filter(|_| is_owned_by_server) {
                Some(user) => chown(dir, Some(user.uid), Some(user.gid)),
                None => Ok(()),
            }
        };
        create().map_err(self.describe("create", dir))?;
        self.check_owner(dir, fs::symlink_metadata(dir))?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(self.describe("change the mode of", dir))
    }

    /// Checks that a directory belongs to the user of Postgres.
    fn check_owner(&self, dir: &Path, metadata: io::Result<fs::Metadata>) -> anyhow::Result<()> {
        let uid = self.user.as_ref().map_or(getuid().as_raw(), |user| user.uid);
        let metadata = metadata.map_err(self.describe("read", dir))?;
        if metadata.is_dir() && metadata.uid() == uid {
            return Ok(());
        }
        Err(describe_wrong_owner(dir, &metadata, uid, &self.data_dir))
    }

    /// Returns a function that describes why `action` has failed for `path`.
    fn describe<'a>(&'a self, action: &'a str, path: &'a Path) -> impl Fn(io::Error) -> anyhow::Error + 'a {
        move |error| describe_failure(&error, action, path, &self.data_dir)
    }

    /// Returns the command for a server binary, run as the user of Postgres. The process receives SIGINT when the calling
    /// thread exits.
    fn command(&self, binary: &str) -> Command {
        let mut command = Command::new("setpriv");
        if let Some(user) = &self.user {
            command.args([format!("--reuid={}", user.name), format!("--regid={}", user.gid), "--clear-groups".into()]);
        }
        command.args(["--pdeathsig", "INT", "--"]).arg(self.bin_dir.join(binary));
        // A separate process group, because Ctrl-C signals the server's group, and the server must stop Postgres itself.
        command.process_group(0).current_dir("/").env_clear();
        command.env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").env("TZ", "UTC").stdin(Stdio::null());
        command
    }

    /// Creates the cluster directory if it does not exist. Creates it under a temporary name and renames it, so that a crash
    /// leaves no incomplete cluster directory.
    fn init(&self, options: PostgresOptions) -> anyhow::Result<()> {
        if self.cluster_dir.exists() {
            self.check_owner(&self.cluster_dir, fs::metadata(&self.cluster_dir))?;
        }
        if self.cluster_dir.join("PG_VERSION").exists() {
            return Ok(());
        }
        let tmp_dir = self.postgres_dir.join("data.init");
        if tmp_dir.exists() {
            fs::remove_dir_all(&tmp_dir).map_err(self.describe("remove", &tmp_dir))?;
        }
        tracing::info!(dir = %self.cluster_dir.display(), "initializing the embedded Postgres");
        let output = self
            .command("initdb")
            .args(["-U", DATABASE_NAME, "-A", "trust", "--no-locale", "-E", "UTF8", "--data-checksums"])
            .args((!options.fsync).then_some("--no-sync"))
            .arg("-D")
            .arg(&tmp_dir)
            .output()
            .map_err(setpriv_error)?;
        if !output.status.success() {
            bail!("failed to initialize the embedded Postgres: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        fs::rename(&tmp_dir, &self.cluster_dir).map_err(self.describe("create", &self.cluster_dir))?;
        let sync = File::open(&self.postgres_dir).and_then(|dir| dir.sync_all());
        sync.map_err(self.describe("write to", &self.postgres_dir))
    }

    /// Checks that the binaries have the major version that created the cluster directory.
    fn check_version(&self) -> anyhow::Result<()> {
        let version_file = self.cluster_dir.join("PG_VERSION");
        let data_version = fs::read_to_string(&version_file).map_err(self.describe("read", &version_file))?;
        let binary = self.bin_dir.join("postgres");
        let output = Command::new(&binary).arg("--version").output();
        let output = output.with_context(|| format!("cannot run {}: check its permissions", binary.display()))?;
        let output = String::from_utf8_lossy(&output.stdout);
        let is_number = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit());
        let server_version = output.split_whitespace().find(is_number).unwrap_or_default();
        if server_version.split('.').next() == Some(data_version.trim()) {
            return Ok(());
        }
        bail!(
            "{data} was created by Postgres {data_version}, but {bin_dir} has version {server_version}: install \
             Postgres {data_version} and set ACONTEXTD_POSTGRES_BIN to its directory, or upgrade with pg_upgrade",
            data = self.cluster_dir.display(),
            data_version = data_version.trim(),
            bin_dir = self.bin_dir.display()
        )
    }

    /// Starts Postgres on a new thread, which waits until Postgres exits.
    fn spawn(self, options: PostgresOptions) -> anyhow::Result<EmbeddedPostgres> {
        let (pid_tx, pid_rx) = std::sync::mpsc::channel();
        let (exit_tx, exit_rx) = watch::channel(None);
        let socket_dir = self.socket_dir.clone();
        std::thread::Builder::new().name("postgres".into()).spawn(move || {
            let log = self.postgres_dir.join("start.log");
            let file = File::create(&log).map_err(self.describe("write", &log));
            let child = file.and_then(|file| self.server_command(options).stderr(file).spawn().map_err(setpriv_error));
            let mut child = match child {
                Ok(child) => child,
                Err(err) => return drop(pid_tx.send(Err(err))),
            };
            let _ = pid_tx.send(Ok(i32::try_from(child.id()).unwrap_or_default()));
            let exit_status = child.wait();
            exit_tx.send_replace(Some(exit_message(exit_status, &log)));
        })?;
        let pid = pid_rx.recv().context("the thread of the embedded Postgres exited")??;
        let pid = Pid::from_raw(pid).context("embedded Postgres has no process id")?;
        Ok(EmbeddedPostgres { pid, socket_dir, exit_rx, stop_timeout: options.stop_timeout })
    }

    /// Returns the command that runs the server.
    fn server_command(&self, options: PostgresOptions) -> Command {
        let mut command = self.command("postgres");
        let fsync = if options.fsync { "on" } else { "off" };
        let settings = [
            "listen_addresses=".to_owned(),
            "unix_socket_permissions=0700".to_owned(),
            format!("unix_socket_directories={}", self.socket_dir.display()),
            format!("max_connections={}", options.max_connections),
            format!("fsync={fsync}"),
            format!("full_page_writes={fsync}"),
            // Retains one week of logs, in <data directory>/postgres/data/log.
            "logging_collector=on".to_owned(),
            "log_filename=postgresql-%a.log".to_owned(),
            "log_truncate_on_rotation=on".to_owned(),
            "log_rotation_age=1d".to_owned(),
        ];
        command.arg("-D").arg(&self.cluster_dir);
        for setting in settings {
            command.args(["-c", &setting]);
        }
        command.stdout(Stdio::null());
        command
    }
}

/// Returns the exit status and what Postgres wrote to standard error.
fn exit_message(exit_status: io::Result<ExitStatus>, log: &Path) -> String {
    let exit_status = exit_status.map_or_else(|err| err.to_string(), |status| status.to_string());
    let log = fs::read_to_string(log).unwrap_or_default();
    format!("{exit_status} {}", log.trim())
}

fn setpriv_error(err: io::Error) -> anyhow::Error {
    anyhow!(err).context("cannot run setpriv: install util-linux")
}

/// Returns the directory of the socket: `<data directory>/run`, or a directory in `/tmp` if that path is too long for a socket.
fn socket_dir(data_dir: &Path) -> PathBuf {
    let dir = data_dir.join("run");
    if dir.as_os_str().len() <= MAX_SOCKET_DIR_LEN {
        return dir;
    }
    let hash = digest::digest(&digest::SHA256, dir.as_os_str().as_encoded_bytes());
    Path::new("/tmp").join(format!("acontextd-{}", hex::encode(&hash.as_ref()[..8])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_path_is_never_too_long() {
        assert_eq!(socket_dir(Path::new("/var/lib/acontextd")), Path::new("/var/lib/acontextd/run"));
        let long = PathBuf::from(format!("/{}", "a".repeat(120)));
        let short = socket_dir(&long);
        assert!(short.starts_with("/tmp") && short.as_os_str().len() <= MAX_SOCKET_DIR_LEN);
        assert_eq!(short, socket_dir(&long));
        assert_ne!(short, socket_dir(&long.join("b")));
    }
}
