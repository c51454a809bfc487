//! The real program as a child process, and what the kernel knows about it.

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

/// Opens the operator's routes.
pub const ADMIN: &str = "the-operator-of-the-benchmarks";
/// How long a start or a stop may take.
const PATIENCE: Duration = Duration::from_mins(1);

/// A process that is ended when this is dropped.
pub struct Process(Child);

impl Process {
    pub fn spawn(command: &mut Command) -> anyhow::Result<Self> {
        let program = command.get_program().to_owned();
        command.spawn().map(Self).with_context(|| format!("{} cannot be run", program.display()))
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Tells it to end and waits until it has.
    pub fn stop(&mut self, signal: Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).context("a process without a number")?;
        kill_process(pid, signal)?;
        let deadline = Instant::now() + PATIENCE;
        while self.0.try_wait()?.is_none() {
            if Instant::now() > deadline {
                bail!("process {} does not end", self.pid());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    pub fn memory(&self) -> anyhow::Result<Memory> {
        Memory::of(self.pid())
    }

    /// How long it has computed, on all cores together; in steps of 10 ms.
    pub fn cpu_time(&self) -> anyhow::Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // The name, which stands in brackets, may hold anything.
        let fields = stat.rsplit_once(')').map_or("", |parts| parts.1).split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        Ok(Duration::from_millis(ticks * 10))
    }

    /// Whether it has ended.
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

/// What a process holds in memory, in KiB.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// All of it (`VmRSS`).
    pub resident: u64,
    /// The part that is its own and no file's (`RssAnon`).
    pub anonymous: u64,
    /// The most that was resident since the start, or since [`Memory::forget_peak`] (`VmHWM`).
    pub peak: u64,
}

impl Memory {
    fn of(pid: u32) -> anyhow::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
        };
        Ok(Self { resident: kib("VmRSS"), anonymous: kib("RssAnon"), peak: kib("VmHWM") })
    }

    /// Lets the peak begin anew.
    pub fn forget_peak(process: &Process) -> anyhow::Result<()> {
        fs::write(format!("/proc/{}/clear_refs", process.pid()), "5").context("the peak of memory cannot be reset")
    }
}

/// A running `acontextd` with a data folder of its own.
pub struct Server {
    pub process: Process,
    pub address: SocketAddr,
    pub data: PathBuf,
}

impl Server {
    /// Starts it and waits until it can work.
    pub async fn start(bench: &Bench, name: &str) -> anyhow::Result<Self> {
        let mut server = Self::spawn(bench, name)?;
        server.wait_for("/ready").await?;
        Ok(server)
    }

    /// Starts it with settings besides those that all have, and waits until it can work.
    pub async fn start_with(bench: &Bench, name: &str, settings: &[(&str, String)]) -> anyhow::Result<Self> {
        let mut server = Self::spawn_with(bench, name, settings)?;
        server.wait_for("/ready").await?;
        Ok(server)
    }

    /// Starts it on the data folder of that name, making the folder on first use.
    pub fn spawn(bench: &Bench, name: &str) -> anyhow::Result<Self> {
        Self::spawn_with(bench, name, &[])
    }

    fn spawn_with(bench: &Bench, name: &str, settings: &[(&str, String)]) -> anyhow::Result<Self> {
        let data = bench.folder.join(name);
        fs::create_dir_all(&data)?;
        // The private Postgres runs as another user and must get through.
        fs::set_permissions(&data, fs::Permissions::from_mode(0o711))?;
        let address = free_address()?;
        let log = File::options().create(true).append(true).open(bench.folder.join(format!("{name}.log")))?;
        let mut command = Command::new(&bench.server);
        // Settings of the shell must not get in: a DATABASE_URL is often there.
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin");
        command.env("ACONTEXTD_DATA_DIR", &data).env("API_EXPORT_PORT", address.port().to_string());
        command.env("ADMIN_API_TOKEN", ADMIN).envs(settings.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Ok(Self { process: Process::spawn(&mut command)?, address, data })
    }

    /// Waits for the first 200 of an open route.
    pub async fn wait_for(&mut self, path: &str) -> anyhow::Result<()> {
        let request = Request::get("wait for the server", path);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Ok(mut client) = Client::connect(self.address).await
                && client.send(&request).await.is_ok_and(|answer| answer.status == 200)
            {
                return Ok(());
            }
            if self.process.has_ended() {
                bail!("the server ended at its start; its log lies beside {}", self.data.display());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        bail!("the server does not answer 200 on {path}")
    }

    pub async fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(self.address).await?)
    }

    /// Stops it in order.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.process.stop(Signal::TERM)
    }
}

/// An address of this machine that nobody listens on.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Looks at a process's memory until `done` and answers with the most that was seen.
pub async fn watch_memory(process: &Process, done: impl Future<Output = ()>) -> anyhow::Result<Memory> {
    let mut most = process.memory()?;
    tokio::pin!(done);
    loop {
        tokio::select! {
            () = &mut done => return Ok(most),
            () = tokio::time::sleep(Duration::from_millis(5)) => {
                let now = process.memory()?;
                if now.resident > most.resident {
                    most = now;
                }
            }
        }
    }
}

/// A folder inside the run's folder, made new.
pub fn new_folder(parent: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let folder = parent.join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    Ok(folder)
}
