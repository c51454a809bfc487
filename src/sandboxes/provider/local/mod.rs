//! The local provider: runs commands on this machine, each in a new bubblewrap sandbox over the same directories.
//!
//! A sandbox is a directory. Its processes exist only while a command runs, so a sandbox survives a restart of the server.
//! `docs/security.md` describes the layers of the isolation.
//!
//! `bubblewrap` has what a program can see, `confine` (a subcommand of the server) what it can do, and `process` what it can use.
//! `transfer` copies files, and `dirs` creates and deletes the directories.

mod bubblewrap;
mod dirs;
mod prepare;
mod process;
mod spawner;
mod transfer;
mod usage;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::sync::{OnceCell, Semaphore};
use tokio_util::io::SyncIoBridge;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use uuid::Uuid;

use self::bubblewrap::{Bubblewrap, ENVIRONMENT};
use self::dirs::SandboxesDir;
use self::prepare::Prepared;
use self::process::{KILLED_EXIT_CODE, ProgramEnd, Supervision};
use self::transfer::{ArchiveError, EXISTS, EXTRACT, NO_INPUT, READ_FILE, read_content, write_archive};
use self::usage::{DiskMeter, DiskUsage};
use super::output::read_excerpt;
use super::{
    CommandEnd, CommandOutput, CommandStream, FileToWrite, ProviderError, ProviderName, ProviderStatus, SandboxFile,
    SandboxProvider,
};
use crate::blob::spool::SpoolDir;
use crate::config::Config;
use crate::confine::{self, Confinement, ResourceLimits};
use crate::ids::SandboxId;

/// The part of the output of file transfers and of the self-test that is kept.
const MAX_MESSAGE_LEN: usize = 4096;
/// The number of commands that run concurrently in a sandbox. Others wait.
const MAX_CONCURRENT_COMMANDS: usize = 8;
/// How long the transfer of a file may take.
const TRANSFER_TIMEOUT: Duration = Duration::from_mins(5);
/// The script that runs a shell command. It reads the command from its standard input, because a command line is limited to 128
/// KiB, and other users of the machine could read it. `$1` is the maximum number of processes. Without the signal `XFSZ`, a program
/// that writes more than it may gets an error.
const RUN_COMMAND: &str = r#"
    trap '' XFSZ
    ulimit -u "$1" || exit
    # The command runs in another process, because the kernel protects this one, the first of its namespace, from its own signals.
    # Without a standard error, this shell does not report how the other one has ended.
    exec 3>&2 2>/dev/null
    /bin/bash -c 'eval -- "$(/bin/cat)" </dev/null' bash 2>&3 3>&-
    exit $?"#;
/// What separates a sandbox from the machine.
const ISOLATION: &str = "bubblewrap: namespaces for files, processes, users, IPC, host name and, unless it is allowed, the \
    network; no capabilities, no new privileges, and a filter of system calls";
/// What enforces each limit.
const LIMITS: [(&str, &str); 8] = [
    ("command_timeout", "the server"),
    ("cpu_time", "the kernel, for each process"),
    ("disk", "the server, which measures the files of a sandbox while and after commands run"),
    ("file_size", "the kernel"),
    ("files", "the server, which counts the files of a sandbox while and after commands run"),
    ("memory", "the kernel for each process, and the server for all processes of a command"),
    ("open_files", "the kernel, for each process"),
    ("processes", "the kernel"),
];

/// The settings of the local provider.
#[derive(Clone, Debug)]
pub struct LocalSettings {
    /// The directory of all sandboxes.
    pub dir: PathBuf,
    /// The program with the subcommand `confine`: the server's own executable.
    pub executable: PathBuf,
    pub allows_network: bool,
    pub command_timeout: Duration,
    pub max_output_bytes: usize,
    /// The maximum memory of a process, and of all processes of a command together.
    pub max_memory_bytes: u64,
    /// The maximum size of a file, and of all files of a sandbox together.
    pub max_disk_bytes: u64,
    pub max_files: u64,
    pub max_processes: u64,
    pub max_open_files: u64,
}

impl LocalSettings {
    pub fn from_config(config: &Config) -> Self {
        let (sandbox, data_dir) = (&config.sandbox, config.server.data_dir().join("sandboxes"));
        Self {
            // The processes of sandboxes have other working directories.
            dir: std::path::absolute(&data_dir).unwrap_or(data_dir),
            // The program that is running, even if an upgrade has replaced the file.
            executable: "/proc/self/exe".into(),
            allows_network: sandbox.allows_network,
            command_timeout: sandbox.command_timeout,
            max_output_bytes: usize::try_from(sandbox.max_output_bytes).unwrap_or(usize::MAX),
            max_memory_bytes: sandbox.max_memory_bytes,
            max_disk_bytes: sandbox.max_disk_bytes,
            max_files: sandbox.max_files as u64,
            max_processes: sandbox.max_processes as u64,
            max_open_files: sandbox.max_open_files as u64,
        }
    }
}

/// See the [module](self).
pub struct LocalProvider {
    settings: LocalSettings,
    spool: SpoolDir,
    /// Canceled when running commands must end, because the server is shutting down.
    abort: CancellationToken,
    dir: SandboxesDir,
    prepared: OnceCell<Prepared>,
    bubblewrap: OnceCell<Bubblewrap>,
    /// The last reason why no sandbox could be created.
    logged_problem: Mutex<Option<String>>,
}

/// What this process knows about a sandbox.
#[derive(Clone)]
struct LocalSandbox {
    id: SandboxId,
    /// The user of its processes, if the server runs as root.
    user: Option<u32>,
    /// Canceled when the sandbox ends.
    cancel: CancellationToken,
    /// The programs that run in the sandbox.
    running: TaskTracker,
    /// Has one permit for each command that may run concurrently.
    permits: Arc<Semaphore>,
    disk: Arc<DiskMeter>,
}

impl LocalProvider {
    /// Creates the provider. `abort` is canceled when running commands must end.
    pub fn new(settings: LocalSettings, spool: SpoolDir, abort: CancellationToken) -> Self {
        let dir = SandboxesDir(settings.dir.clone());
        let (prepared, bubblewrap) = (OnceCell::new(), OnceCell::new());
        Self { settings, spool, abort, dir, prepared, bubblewrap, logged_problem: Mutex::new(None) }
    }

    fn new_sandbox(&self, id: SandboxId, user: Option<u32>) -> LocalSandbox {
        let (cancel, running) = (self.abort.child_token(), TaskTracker::new());
        let dirs = self.dir.sandbox(id).writable().map(|(path, _)| path).collect();
        let permits = Arc::new(Semaphore::new(MAX_CONCURRENT_COMMANDS));
        LocalSandbox {
            id,
            user,
            cancel,
            running,
            permits,
            disk: Arc::new(DiskMeter::new(dirs, self.max_disk().twice())),
        }
    }

    /// Creates the directories of a sandbox.
    fn create_sandbox(&self, prepared: &Prepared, id: SandboxId) -> anyhow::Result<LocalSandbox> {
        let sandbox = self.new_sandbox(id, prepared.is_root.then(|| prepared.choose_user()));
        let dir = self.dir.sandbox(id);
        dir.create(sandbox.user).with_context(|| format!("cannot create the directory {}", dir.0.display()))?;
        Ok(sandbox)
    }

    /// Returns the program that runs a shell command.
    fn command_program(&self) -> [String; 5] {
        let max_processes = self.settings.max_processes.to_string();
        ["/bin/bash", "-c", RUN_COMMAND, "bash", &max_processes].map(str::to_owned)
    }

    /// Starts a program in a sandbox.
    async fn spawn(
        &self,
        (prepared, bubblewrap): (&Prepared, &Bubblewrap),
        sandbox: &LocalSandbox,
        program: &[String],
    ) -> Result<Child, ProviderError> {
        let settings = &self.settings;
        let confinement = Confinement {
            user: sandbox.user,
            parent: std::process::id(),
            limits: ResourceLimits {
                cpu_seconds: settings.command_timeout.as_secs().max(1),
                memory_bytes: settings.max_memory_bytes,
                file_bytes: settings.max_disk_bytes,
                open_files: settings.max_open_files,
                // If the server does not run as root, its own processes count for this limit, so only `RUN_COMMAND` sets it.
                processes: sandbox.user.map(|_| settings.max_processes),
            },
            program: bubblewrap.command_line(&self.dir.sandbox(sandbox.id), program),
        };
        let mut command = Command::new(&settings.executable);
        command
            .arg(confine::SUBCOMMAND)
            .arg(serde_json::to_string(&confinement).context("cannot encode a confinement")?);
        // In a process group of its own, because a terminal sends the signal of Ctrl+C to the whole group of the server, which waits
        // for commands when it is shut down.
        command.env_clear().envs(ENVIRONMENT).current_dir("/").process_group(0);
        prepared.spawner.spawn(command).await
    }

    fn max_disk(&self) -> DiskUsage {
        DiskUsage { bytes: self.settings.max_disk_bytes, files: self.settings.max_files }
    }

    fn supervision(&self, sandbox: &LocalSandbox) -> Supervision {
        let settings = &self.settings;
        Supervision {
            timeout: settings.command_timeout,
            max_memory_bytes: settings.max_memory_bytes,
            max_disk: self.max_disk(),
            disk: Arc::clone(&sandbox.disk),
            cancel: sandbox.cancel.clone(),
        }
    }

    /// Copies files into a sandbox. All are below the entry `name` of the directory `dir`, which appears when they are complete.
    async fn extract(
        &self,
        id: &str,
        [dir, name, mode]: [&str; 3],
        files: Vec<FileToWrite>,
    ) -> Result<(), ProviderError> {
        let (machine, sandbox, _running) = self.find(id).await?;
        let size: u64 = files.iter().map(|file| file.size).sum();
        let usage = sandbox.disk.usage();
        if (DiskUsage { bytes: usage.bytes.saturating_add(size), ..usage }).exceeds(self.max_disk()) {
            return Err(ProviderError::FileRejected("the disk of the sandbox is full".into()));
        }
        let program = ["/bin/bash", "-c", EXTRACT, "bash", dir, name, mode].map(str::to_owned);
        let mut child = self.spawn(machine, &sandbox, &program).await?;
        let (stdin, (stdout, stderr)) = (child.stdin.take().context("no standard input")?, take_output(&mut child)?);
        let supervision = Supervision { timeout: TRANSFER_TIMEOUT, ..self.supervision(&sandbox) };
        let write = tokio::task::spawn_blocking(move || write_archive(SyncIoBridge::new(stdin), files));
        let io = async {
            let stdout = read_excerpt(stdout, MAX_MESSAGE_LEN);
            tokio::join!(write, stdout, read_excerpt(stderr, MAX_MESSAGE_LEN))
        };
        let (end, (written, _, stderr)) = supervision.wait(&mut child, io).await?;
        self.end_if_far_over_limit(machine.0, &sandbox)?;
        match (end.exit_code, written.context("cannot write an archive")?) {
            (_, Err(ArchiveError::Content(err))) => Err(ProviderError::Content(err)),
            (0, Ok(())) => Ok(()),
            (EXISTS, _) => Err(ProviderError::AlreadyExists),
            _ => Err(self.rejected(&end, &stderr.context("cannot read the standard error")?)),
        }
    }

    /// Ends a sandbox that has used twice its disk, because its commands are killed only after they have used it. Returns whether it
    /// has done so.
    fn end_if_far_over_limit(&self, prepared: &Prepared, sandbox: &LocalSandbox) -> anyhow::Result<bool> {
        if !sandbox.disk.usage().exceeds(self.max_disk().twice()) {
            return Ok(false);
        }
        if prepared.sandboxes().remove(&sandbox.id).is_some() {
            tracing::warn!(sandbox.id = %sandbox.id, "a sandbox has used twice the disk that it may use, and was ended");
            sandbox.cancel.cancel();
            // The deletion of its files can take longer than this request may wait.
            self.dir.move_to_trash(sandbox.id)?;
        }
        Ok(true)
    }

    /// Returns the sandbox with this id, and what is necessary to run a program in it.
    async fn find(
        &self,
        id: &str,
    ) -> Result<((&Prepared, &Bubblewrap), LocalSandbox, TaskTrackerToken), ProviderError> {
        let (prepared, bubblewrap) = (self.prepare().await?, self.find_bubblewrap().await?);
        let id: SandboxId = id.parse().map_err(|_| ProviderError::Ended)?;
        let sandboxes = prepared.sandboxes();
        let sandbox = sandboxes.get(&id).filter(|sandbox| !sandbox.cancel.is_cancelled());
        let sandbox = sandbox.cloned().ok_or(ProviderError::Ended)?;
        // Under the lock, so that the end of the sandbox waits for the program.
        let running = sandbox.running.token();
        Ok(((prepared, bubblewrap), sandbox, running))
    }

    /// Returns the reason why a command was killed; `None` if it has ended by itself.
    fn describe_end(&self, end: CommandEnd) -> Option<String> {
        let settings = &self.settings;
        Some(match end {
            CommandEnd::Exited | CommandEnd::Interrupted => return None,
            CommandEnd::TimedOut => format!("it took longer than {} s", settings.command_timeout.as_secs()),
            CommandEnd::OutOfMemory => format!("it used more than {} MiB of memory", settings.max_memory_bytes >> 20),
            CommandEnd::OutOfDisk => {
                let (mib, files) = (settings.max_disk_bytes >> 20, settings.max_files);
                format!("the sandbox has more than {mib} MiB or {files} files")
            }
            CommandEnd::Killed => "the sandbox was ended, or the server was shut down".to_owned(),
        })
    }

    /// Returns the error for a failed file transfer.
    fn rejected(&self, end: &ProgramEnd, stderr: &CommandStream) -> ProviderError {
        let reason = self.describe_end(end.end).unwrap_or_else(|| stderr.text.trim().to_owned());
        ProviderError::FileRejected(reason)
    }
}

#[async_trait]
impl SandboxProvider for LocalProvider {
    fn name(&self) -> ProviderName {
        ProviderName::Local
    }

    async fn status(&self) -> ProviderStatus {
        let problem = self.find_bubblewrap().await.err().map(|err| err.to_string());
        let limits = BTreeMap::from(LIMITS);
        ProviderStatus { provider: self.name(), problem, isolation: ISOLATION, limits }
    }

    async fn host(&self) -> Result<Option<Uuid>, ProviderError> {
        Ok(Some(self.prepare().await?.host))
    }

    async fn sweep(&self) -> Result<Vec<SandboxId>, ProviderError> {
        let prepared = self.prepare().await?;
        self.dir.delete_trash().await?;
        Ok(prepared.sandboxes().keys().copied().collect())
    }

    async fn create(&self, id: SandboxId, _: Duration) -> Result<String, ProviderError> {
        self.find_bubblewrap().await?;
        let prepared = self.prepare().await?;
        let sandbox = self.create_sandbox(prepared, id)?;
        prepared.sandboxes().insert(id, sandbox);
        Ok(id.to_string())
    }

    async fn run_command(&self, id: &str, command: &str, _: Duration) -> Result<CommandOutput, ProviderError> {
        let (machine, sandbox, _running) = self.find(id).await?;
        let _permit = tokio::select! {
            permit = sandbox.permits.acquire() => permit.context("the permits of a sandbox are closed")?,
            () = sandbox.cancel.cancelled() => return Err(ProviderError::Ended),
        };
        let mut child = self.spawn(machine, &sandbox, &self.command_program()).await?;
        let (end, stdout, mut stderr) =
            run_to_end(&mut child, self.supervision(&sandbox), command, self.settings.max_output_bytes).await?;
        let has_ended = self.end_if_far_over_limit(machine.0, &sandbox)?;
        let (end, exit_code) =
            if has_ended { (CommandEnd::OutOfDisk, KILLED_EXIT_CODE) } else { (end.end, end.exit_code) };
        if has_ended {
            stderr.text.push_str("The sandbox was ended, because it has used twice the disk that it may use.\n");
        } else if let Some(reason) = self.describe_end(end) {
            let separator = if stderr.text.is_empty() || stderr.text.ends_with('\n') { "" } else { "\n" };
            stderr.text = format!("{}{separator}The command was killed: {reason}.\n", stderr.text);
        }
        Ok(CommandOutput { stdout, stderr, exit_code, end })
    }

    async fn read_file(&self, id: &str, path: &str, max_bytes: u64) -> Result<SandboxFile, ProviderError> {
        let (machine, sandbox, _running) = self.find(id).await?;
        let program = ["/bin/bash", "-c", READ_FILE, "bash", path].map(str::to_owned);
        let mut child = self.spawn(machine, &sandbox, &program).await?;
        let (stdout, stderr) = take_output(&mut child)?;
        let cancel = sandbox.cancel.child_token();
        let supervision =
            Supervision { timeout: TRANSFER_TIMEOUT, cancel: cancel.clone(), ..self.supervision(&sandbox) };
        // A program whose output is not read to its end would wait.
        let read = async { read_content(stdout, &self.spool, max_bytes).await.inspect_err(|_| cancel.cancel()) };
        let io = async { tokio::join!(read, read_excerpt(stderr, MAX_MESSAGE_LEN)) };
        let (end, (content, stderr)) = supervision.wait(&mut child, io).await?;
        match (end.exit_code, content?) {
            (0, Some(file)) => Ok(file),
            (NO_INPUT, _) => Err(ProviderError::FileNotFound(path.to_owned())),
            _ => Err(self.rejected(&end, &stderr.context("cannot read the standard error")?)),
        }
    }

    async fn write_file(&self, id: &str, dir: &str, file: FileToWrite) -> Result<(), ProviderError> {
        let name = file.path.clone();
        self.extract(id, [dir, &name, "replace"], vec![file]).await
    }

    async fn write_dir(&self, id: &str, dir: &str, name: &str, files: Vec<FileToWrite>) -> Result<(), ProviderError> {
        let below_name = |file: FileToWrite| FileToWrite { path: format!("{name}/{}", file.path), ..file };
        self.extract(id, [dir, name, "new"], files.into_iter().map(below_name).collect()).await
    }

    async fn end(&self, id: &str) -> Result<(), ProviderError> {
        let Ok(id) = id.parse::<SandboxId>() else { return Ok(()) };
        let prepared = self.prepare().await?;
        let sandbox = prepared.sandboxes().get(&id).cloned();
        if let Some(sandbox) = sandbox {
            sandbox.cancel.cancel();
            sandbox.running.close();
            sandbox.running.wait().await;
        }
        self.dir.remove(id).await?;
        // Not earlier, so that a concurrent call waits, too.
        prepared.sandboxes().remove(&id);
        Ok(())
    }
}

fn take_output(child: &mut Child) -> anyhow::Result<(ChildStdout, ChildStderr)> {
    let stdout = child.stdout.take().context("no standard output")?;
    Ok((stdout, child.stderr.take().context("no standard error")?))
}

/// Runs a program that reads `input`, and returns how it has ended, its standard output, and its standard error.
async fn run_to_end(
    child: &mut Child,
    supervision: Supervision,
    input: &str,
    max_output_bytes: usize,
) -> anyhow::Result<(ProgramEnd, CommandStream, CommandStream)> {
    let mut stdin = child.stdin.take().context("no standard input")?;
    let (stdout, stderr) = take_output(child)?;
    let io = async {
        let write = async move {
            // A program may end before it has read its input.
            let _ = stdin.write_all(input.as_bytes()).await;
        };
        tokio::join!(write, read_excerpt(stdout, max_output_bytes), read_excerpt(stderr, max_output_bytes))
    };
    let (end, ((), stdout, stderr)) = supervision.wait(child, io).await?;
    Ok((end, stdout.context("cannot read the output")?, stderr.context("cannot read the output")?))
}
