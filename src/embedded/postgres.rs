//! A private Postgres: Debian's server programs, a data directory of our own, a Unix socket and no port.
//!
//! It lives and dies with this process. Our end, orderly or not, ends it: the kernel sends it SIGINT when the thread that
//! started it dies, and that thread is one that does nothing else. One that a killed server left behind is waited for, and
//! stopped if it does not end. Where it starts as root it runs as the user `postgres`.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
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

use super::programs::{RunAs, find_programs};
use crate::percent;

/// Database and user.
const NAME: &str = "acontext";
/// What the kernel allows for the path of a socket, less the name that Postgres gives it.
const MAX_SOCKET_FOLDER: usize = 107 - "/.s.PGSQL.5432".len();
/// How long one may take to answer; it may have to replay its log after a crash.
const STARTING: Duration = Duration::from_mins(2);

/// What the tests want otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    pub max_connections: u32,
    /// Off only where nothing is to be kept.
    pub fsync: bool,
    /// How long one that is ending is waited for before it is told again.
    pub patience: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { max_connections: 200, fsync: true, patience: Duration::from_secs(15) }
    }
}

/// A running private Postgres.
pub struct Postgres {
    pid: Pid,
    socket_folder: PathBuf,
    exit: watch::Receiver<Option<String>>,
    patience: Duration,
}

impl Postgres {
    /// Starts it on `<folder>/postgres`, making the database on first use, and waits until it answers.
    ///
    /// # Errors
    /// A sentence that says what is missing.
    pub async fn start(folder: &Path, bin: Option<&Path>, tuning: Tuning) -> anyhow::Result<Self> {
        let made_with = fs::read_to_string(folder.join("postgres/data/PG_VERSION")).unwrap_or_default();
        let (folder, bin) = (folder.to_owned(), find_programs(bin, made_with.trim())?);
        let started = tokio::task::spawn_blocking(move || {
            let place = Place::prepare(&folder, bin)?;
            place.initialise(tuning)?;
            place.check_version()?;
            end_former(&place.data, tuning.patience)?;
            place.spawn(tuning)
        });
        let postgres = started.await??;
        postgres.wait_until_ready().await?;
        Ok(postgres)
    }

    /// How to connect.
    pub fn options(&self) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass().socket(&self.socket_folder).username(NAME).database(NAME)
    }

    /// The same for other programs, such as psql.
    pub fn url(&self) -> String {
        let host = percent::encode(self.socket_folder.as_os_str().as_encoded_bytes(), b"/");
        format!("postgresql:///{NAME}?host={host}&user={NAME}")
    }

    /// Returns when it has ended, with how.
    pub async fn exited(&self) -> anyhow::Error {
        let mut exit = self.exit.clone();
        let how = exit.wait_for(Option::is_some).await.map(|how| how.clone().unwrap_or_default());
        anyhow!("the private Postgres ended by itself: {}", how.unwrap_or_else(|_| "nobody saw how".into()))
    }

    /// Stops it in order: what is committed is on disk, connections are closed.
    ///
    /// # Errors
    /// It did not end.
    pub async fn stop(self) -> anyhow::Result<()> {
        if self.exit.borrow().is_some() {
            // It ended before; its number may be another process's by now.
            return Ok(());
        }
        for signal in [Signal::INT, Signal::QUIT, Signal::KILL] {
            // An error means that it is gone already.
            let _ = kill_process(self.pid, signal);
            let mut exit = self.exit.clone();
            if tokio::time::timeout(self.patience, exit.wait_for(Option::is_some)).await.is_ok() {
                return Ok(());
            }
        }
        bail!("the private Postgres (process {}) does not end", self.pid.as_raw_nonzero())
    }

    async fn wait_until_ready(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + STARTING;
        loop {
            let options = self.options();
            let tried = tokio::select! {
                exit = self.exited() => return Err(exit),
                tried = options.connect() => tried,
            };
            match tried {
                Ok(conn) => return Ok(conn.close().await?),
                Err(sqlx::Error::Database(err)) if err.code().as_deref() == Some("3D000") => {
                    let mut conn = self.options().database("postgres").connect().await?;
                    sqlx::query("create database acontext").execute(&mut conn).await?;
                    conn.close().await?;
                }
                Err(err) if Instant::now() > deadline => {
                    return Err(err).context("the private Postgres does not answer");
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }
}

/// Where it lies and with what it runs.
struct Place {
    bin: PathBuf,
    /// `<data folder>/postgres`.
    home: PathBuf,
    data: PathBuf,
    socket_folder: PathBuf,
    run_as: Option<RunAs>,
}

impl Place {
    fn prepare(folder: &Path, bin: PathBuf) -> anyhow::Result<Self> {
        let run_as = RunAs::find()?;
        if let Some(user) = &run_as {
            user.check_way_to(folder)?;
        }
        let home = folder.join("postgres");
        let socket_folder = socket_folder(folder);
        let place = Self { bin, data: home.join("data"), home, socket_folder, run_as };
        place.own_folder(&place.home)?;
        place.own_folder(&place.socket_folder)?;
        Ok(place)
    }

    /// Makes a folder that only the one who runs Postgres may enter.
    fn own_folder(&self, folder: &Path) -> anyhow::Result<()> {
        use std::os::unix::fs::MetadataExt;
        let owner = self.run_as.as_ref().map_or(getuid().as_raw(), |user| user.uid);
        match fs::create_dir(folder) {
            Err(err) if err.kind() != io::ErrorKind::AlreadyExists => {
                return Err(err).with_context(|| format!("{} cannot be made", folder.display()));
            }
            _ => {}
        }
        // Just made, or by a start that was killed before it came to this.
        let is_ours = fs::symlink_metadata(folder)?.uid() == getuid().as_raw();
        if let Some(user) = self.run_as.as_ref().filter(|_| is_ours) {
            chown(folder, Some(user.uid), Some(user.gid))?;
        }
        let found = fs::symlink_metadata(folder)?;
        if !found.is_dir() || found.uid() != owner {
            bail!("{} must be a folder that belongs to the user with the number {owner}", folder.display());
        }
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
        Ok(())
    }

    /// A server program, as the user it runs as, told to end when the calling thread dies.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        if let Some(user) = &self.run_as {
            command.args([format!("--reuid={}", user.name), format!("--regid={}", user.gid), "--clear-groups".into()]);
        }
        command.args(["--pdeathsig", "INT", "--"]).arg(self.bin.join(program));
        // Ctrl-C in a terminal goes to our group: we stop it in order ourselves.
        command.process_group(0).current_dir("/").env_clear();
        command.env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").env("TZ", "UTC").stdin(Stdio::null());
        command
    }

    /// Makes the data directory: beside its place and then moved there, so that a crash leaves no half of one.
    fn initialise(&self, tuning: Tuning) -> anyhow::Result<()> {
        if self.data.join("PG_VERSION").exists() {
            return Ok(());
        }
        let beside = self.home.join("data.init");
        if beside.exists() {
            fs::remove_dir_all(&beside)?;
        }
        tracing::info!(folder = %self.data.display(), "making the private database");
        let done = self
            .command("initdb")
            .args(["-U", NAME, "-A", "trust", "--no-locale", "-E", "UTF8", "--data-checksums"])
            .args((!tuning.fsync).then_some("--no-sync"))
            .arg("-D")
            .arg(&beside)
            .output()
            .map_err(no_setpriv)?;
        if !done.status.success() {
            bail!("the private database could not be made: {}", String::from_utf8_lossy(&done.stderr).trim());
        }
        fs::rename(&beside, &self.data)?;
        File::open(&self.home)?.sync_all()?;
        Ok(())
    }

    fn check_version(&self) -> anyhow::Result<()> {
        let made_with = fs::read_to_string(self.data.join("PG_VERSION"))?;
        let said = Command::new(self.bin.join("postgres")).arg("--version").output()?.stdout;
        let said = String::from_utf8_lossy(&said);
        let ours =
            said.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit())).unwrap_or_default();
        if ours.split('.').next() == Some(made_with.trim()) {
            return Ok(());
        }
        bail!(
            "{data} was made by Postgres {made}, but {bin} is version {ours}: install Postgres {made} and name its folder \
             in ACONTEXTD_POSTGRES_BIN, or move the data over with pg_upgrade",
            data = self.data.display(),
            made = made_with.trim(),
            bin = self.bin.display()
        )
    }

    /// Starts it on a thread that lives as long as it does.
    fn spawn(self, tuning: Tuning) -> anyhow::Result<Postgres> {
        let (tell_pid, hear_pid) = std::sync::mpsc::channel();
        let (tell_exit, exit) = watch::channel(None);
        let socket_folder = self.socket_folder.clone();
        std::thread::Builder::new().name("postgres".into()).spawn(move || {
            let log = self.home.join("start.log");
            let child = File::create(&log).and_then(|file| self.server(tuning).stderr(file).spawn());
            let mut child = match child {
                Ok(child) => child,
                Err(err) => return drop(tell_pid.send(Err(no_setpriv(err)))),
            };
            let _ = tell_pid.send(Ok(i32::try_from(child.id()).unwrap_or_default()));
            let how = child.wait();
            tell_exit.send_replace(Some(last_words(how, &log)));
        })?;
        let pid = hear_pid.recv().context("the thread of the private Postgres ended")??;
        let pid = Pid::from_raw(pid).context("the private Postgres has no process number")?;
        Ok(Postgres { pid, socket_folder, exit, patience: tuning.patience })
    }

    fn server(&self, tuning: Tuning) -> Command {
        let mut command = self.command("postgres");
        let fsync = if tuning.fsync { "on" } else { "off" };
        let settings = [
            "listen_addresses=".to_owned(),
            "unix_socket_permissions=0700".to_owned(),
            format!("unix_socket_directories={}", self.socket_folder.display()),
            format!("max_connections={}", tuning.max_connections),
            format!("fsync={fsync}"),
            format!("full_page_writes={fsync}"),
            // A week of logs, in <data folder>/postgres/data/log.
            "logging_collector=on".to_owned(),
            "log_filename=postgresql-%a.log".to_owned(),
            "log_truncate_on_rotation=on".to_owned(),
            "log_rotation_age=1d".to_owned(),
        ];
        command.arg("-D").arg(&self.data);
        for setting in settings {
            command.args(["-c", &setting]);
        }
        command.stdout(Stdio::null());
        command
    }
}

fn last_words(how: io::Result<ExitStatus>, log: &Path) -> String {
    let how = how.map_or_else(|err| err.to_string(), |status| status.to_string());
    let log = fs::read_to_string(log).unwrap_or_default();
    format!("{how} {}", log.trim())
}

fn no_setpriv(err: io::Error) -> anyhow::Error {
    anyhow!(err).context("setpriv cannot be run: install util-linux")
}

/// `<data folder>/run`, or a short path where that is too long for a socket.
fn socket_folder(folder: &Path) -> PathBuf {
    let near = folder.join("run");
    if near.as_os_str().len() <= MAX_SOCKET_FOLDER {
        return near;
    }
    let name = digest::digest(&digest::SHA256, near.as_os_str().as_encoded_bytes());
    Path::new("/tmp").join(format!("acontextd-{}", hex::encode(&name.as_ref()[..8])))
}

/// Waits for one that a killed server left behind; tells it to end, ever more firmly, if it does not.
fn end_former(data: &Path, patience: Duration) -> anyhow::Result<()> {
    for signal in [None, Some(Signal::INT), Some(Signal::QUIT), Some(Signal::KILL)] {
        let Some(pid) = former(data) else { return Ok(()) };
        if let Some(signal) = signal {
            tracing::warn!(pid = pid.as_raw_nonzero(), ?signal, "a former private Postgres does not end; stopping it");
            let _ = kill_process(pid, signal);
        }
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if former(data).is_none() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    match former(data) {
        None => Ok(()),
        Some(pid) => bail!("a former private Postgres (process {}) cannot be stopped", pid.as_raw_nonzero()),
    }
}

/// The process that works on this data directory, if there is one: the number in its lock file may be stale and mean
/// another process by now, but only a Postgres at work has the data directory as its working directory. Its helpers are such
/// too, and outlive it for a moment if it is killed; then the lock file's number means nobody and they are looked for.
fn former(data: &Path) -> Option<Pid> {
    let link = |pid: &Pid, name| fs::read_link(format!("/proc/{}/{name}", pid.as_raw_nonzero())).unwrap_or_default();
    // Its program may have been replaced by an update meanwhile, which the link tells behind the name.
    let is_postgres =
        |exe: PathBuf| exe.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"postgres"));
    let works_here = |pid: &Pid| link(pid, "cwd") == data && is_postgres(link(pid, "exe"));
    let lock = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let named = lock.lines().next().and_then(|pid| Pid::from_raw(pid.trim().parse().ok()?));
    named.filter(works_here).or_else(|| {
        let processes = fs::read_dir("/proc").ok()?.flatten();
        let pids = processes.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
        pids.into_iter().find(works_here)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_path_is_never_too_long() {
        assert_eq!(socket_folder(Path::new("/var/lib/acontextd")), Path::new("/var/lib/acontextd/run"));
        let long = PathBuf::from(format!("/{}", "a".repeat(120)));
        let short = socket_folder(&long);
        assert!(short.starts_with("/tmp") && short.as_os_str().len() <= MAX_SOCKET_FOLDER);
        assert_eq!(short, socket_folder(&long));
        assert_ne!(short, socket_folder(&long.join("b")));
    }
}
