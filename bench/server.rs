//! Runs the real program as a child process, and reads its memory and CPU time from the kernel.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::Bench;
use crate::http::{Client, Request};

/// The admin token of the servers.
pub const ADMIN_TOKEN: &str = "the-operator-of-the-benchmarks";
/// How long startup or shutdown of a process may take.
const PROCESS_TIMEOUT: Duration = Duration::from_mins(1);

/// A child process that is stopped when this value is dropped.
pub struct Process(Child);

impl Process {
    pub fn spawn(command: &mut Command) -> anyhow::Result<Self> {
        let program = command.get_program().to_owned();
        command.spawn().map(Self).with_context(|| format!("cannot run {}", program.display()))
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Sends the signal and waits until the process has exited.
    pub fn stop(&mut self, signal: Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).context("the process has no valid pid")?;
        kill_process(pid, signal)?;
        let deadline = Instant::now() + PROCESS_TIMEOUT;
        while self.0.try_wait()?.is_none() {
            if Instant::now() > deadline {
                bail!("process {} does not exit", self.pid());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    pub fn memory(&self) -> anyhow::Result<Memory> {
        Memory::read(self.pid())
    }

    /// Returns the CPU time of the process on all cores, with a resolution of 10 ms.
    pub fn cpu_time(&self) -> anyhow::Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // The name of the program is in parentheses and may itself contain any character.
        let fields = stat.rsplit_once(')').map_or("", |parts| parts.1).split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        Ok(Duration::from_millis(ticks * 10))
    }

    /// Returns whether the process has exited.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.has_ended() && self.stop(Signal::TERM).is_err() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// The memory of a process, in KiB.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// The resident memory (`VmRSS`).
    pub resident: u64,
    /// The resident memory that is not mapped from a file (`RssAnon`).
    pub anonymous: u64,
    /// The maximum of the resident memory since the process started, or since [`Memory::reset_peak`] (`VmHWM`).
    pub peak: u64,
}

impl Memory {
    fn read(pid: u32) -> anyhow::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
        };
        Ok(Self { resident: kib("VmRSS"), anonymous: kib("RssAnon"), peak: kib("VmHWM") })
    }

    /// Resets the peak to the current resident memory.
    pub fn reset_peak(process: &Process) -> anyhow::Result<()> {
        fs::write(format!("/proc/{}/clear_refs", process.pid()), "5").context("cannot reset the peak memory")
    }
}

/// A running `acontextd` with its own data directory.
pub struct Server {
    pub process: Process,
    pub address: SocketAddr,
    pub data: PathBuf,
}

impl Server {
    /// Starts a server and waits until it is ready.
    pub async fn start(bench: &Bench, name: &str) -> anyhow::Result<Self> {
        let mut server = Self::spawn(bench, name)?;
        server.wait_for("/ready").await?;
        Ok(server)
    }

    /// Starts a server with additional settings and waits until it is ready.
    pub async fn start_with(bench: &Bench, name: &str, settings: &[(&str, String)]) -> anyhow::Result<Self> {
        let mut server = Self::spawn_with(bench, name, settings)?;
        server.wait_for("/ready").await?;
        Ok(server)
    }

    /// Starts a server on the data directory with the given name. Creates the directory on first use.
    pub fn spawn(bench: &Bench, name: &str) -> anyhow::Result<Self> {
        Self::spawn_with(bench, name, &[])
    }

    fn spawn_with(bench: &Bench, name: &str, settings: &[(&str, String)]) -> anyhow::Result<Self> {
        let data = bench.dir.join(name);
        fs::create_dir_all(&data)?;
        // The embedded Postgres runs as another user and needs access to its own directory below.
        fs::set_permissions(&data, fs::Permissions::from_mode(0o711))?;
        let address = free_address()?;
        let log = File::options().create(true).append(true).open(bench.dir.join(format!("{name}.log")))?;
        let mut command = Command::new(&bench.server);
        // The server must not inherit settings from the shell, where DATABASE_URL is often set.
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin");
        command.env("ACONTEXTD_DATA_DIR", &data).env("API_EXPORT_PORT", address.port().to_string());
        command.env("ADMIN_API_TOKEN", ADMIN_TOKEN).envs(settings.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Ok(Self { process: Process::spawn(&mut command)?, address, data })
    }

    /// Waits for the first response with status 200 from a route that needs no key.
    pub async fn wait_for(&mut self, path: &str) -> anyhow::Result<()> {
        let request = Request::get("wait for the server", path);
        let deadline = Instant::now() + PROCESS_TIMEOUT;
        while Instant::now() < deadline {
            if let Ok(mut client) = Client::connect(self.address).await
                && client.send(&request).await.is_ok_and(|response| response.status == 200)
            {
                return Ok(());
            }
            if self.process.has_ended() {
                bail!("the server exited during startup; its log is next to {}", self.data.display());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        bail!("the server does not respond with 200 to {path}")
    }

    pub async fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(self.address).await?)
    }

    /// Shuts the server down gracefully.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.process.stop(Signal::TERM)
    }
}

/// Returns a loopback address with an unused port.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Polls the memory of a process until `done` completes. Returns the sample with the most resident memory.
pub async fn watch_memory(process: &Process, done: impl Future<Output = ()>) -> anyhow::Result<Memory> {
    let mut highest = process.memory()?;
    tokio::pin!(done);
    loop {
        tokio::select! {
            () = &mut done => return Ok(highest),
            () = tokio::time::sleep(Duration::from_millis(5)) => {
                let now = process.memory()?;
                if now.resident > highest.resident {
                    highest = now;
                }
            }
        }
    }
}

/// Creates an empty directory in `parent`, and deletes an existing one first.
pub fn new_dir(parent: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let dir = parent.join(name);
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
    Ok(dir)
}
