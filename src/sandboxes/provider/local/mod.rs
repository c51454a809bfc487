//! The local provider: runs commands on this machine, each in new processes over the same directories.
//!
//! A sandbox is a directory. Its processes exist only while a command runs, so a sandbox survives a restart of the server.
//! `docs/security.md` describes the layers of the isolation.
//!
//! `prepare` finds out which isolation works on this machine. `program` starts a program: `bubblewrap` or Landlock has what it can
//! see, [`confine`](crate::confine) (a subcommand of the server) what it can do, and `process` what it can use, which `disk`,
//! `memory` and `inspection` measure. `transfer` copies files, and `dirs` creates and deletes the directories.

mod bubblewrap;
mod dirs;
mod disk;
mod inspection;
mod isolation;
mod memory;
mod prepare;
mod process;
mod program;
mod spawner;
mod transfer;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;
use uuid::Uuid;

use self::dirs::SandboxesDir;
use self::disk::DiskUsage;
use self::isolation::Isolation;
use self::prepare::{LocalSandbox, Machine, Prepared};
use self::process::{KILLED_EXIT_CODE, KillReason};
use super::output::{append_kill_reason, describe_timeout};
use super::{
    CommandEnd, CommandOutput, FileToWrite, ProviderError, ProviderName, ProviderStatus, SandboxFile, SandboxProvider,
};
use crate::blob::spool::SpoolDir;
use crate::config::{Config, SandboxIsolation};
use crate::ids::SandboxId;

/// The part of the output of file transfers and of the self-test that is kept.
const MAX_MESSAGE_LEN: usize = 4096;
/// The number of commands that run concurrently in a sandbox. Others wait.
const MAX_CONCURRENT_COMMANDS: usize = 8;
/// The free space on the file system below which commands must not use more of it.
const MIN_FREE_BYTES: u64 = 512 << 20;
/// The settings of the local provider.
#[derive(Clone, Debug)]
pub struct LocalSettings {
    /// The directory of all sandboxes.
    pub dir: PathBuf,
    /// The program with the subcommand `confine`: the server's own executable.
    pub executable: PathBuf,
    /// The only isolation to use. `None` selects the best one that works.
    pub isolation: Option<SandboxIsolation>,
    pub allows_network: bool,
    pub command_timeout: Duration,
    pub max_output_bytes: usize,
    /// The maximum memory of a process, and of all processes of a sandbox together.
    pub max_memory_bytes: u64,
    /// The maximum size of a file, and of all files of a sandbox together.
    pub max_disk_bytes: u64,
    /// The free space on the file system below which commands must not use more of it.
    pub min_free_bytes: u64,
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
            isolation: sandbox.isolation,
            allows_network: sandbox.allows_network,
            command_timeout: sandbox.command_timeout,
            max_output_bytes: usize::try_from(sandbox.max_output_bytes).unwrap_or(usize::MAX),
            max_memory_bytes: sandbox.max_memory_bytes,
            max_disk_bytes: sandbox.max_disk_bytes,
            min_free_bytes: MIN_FREE_BYTES,
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
    isolation: OnceCell<Isolation>,
    /// The last reason why no sandbox could be created.
    logged_problem: Mutex<Option<String>>,
}

impl LocalProvider {
    /// Creates the provider. `abort` is canceled when running commands must end.
    pub fn new(settings: LocalSettings, spool: SpoolDir, abort: CancellationToken) -> Self {
        let dir = SandboxesDir(settings.dir.clone());
        let (prepared, isolation) = (OnceCell::new(), OnceCell::new());
        Self { settings, spool, abort, dir, prepared, isolation, logged_problem: Mutex::new(None) }
    }

    fn max_disk(&self) -> DiskUsage {
        DiskUsage { bytes: self.settings.max_disk_bytes, files: self.settings.max_files }
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
    async fn find(&self, id: &str) -> Result<(Machine<'_>, LocalSandbox, TaskTrackerToken), ProviderError> {
        let machine = self.find_isolation().await?;
        let id: SandboxId = id.parse().map_err(|_| ProviderError::Ended)?;
        let sandboxes = machine.prepared.sandboxes();
        let sandbox = sandboxes.get(&id).filter(|sandbox| !sandbox.cancel.is_cancelled());
        let sandbox = sandbox.cloned().ok_or(ProviderError::Ended)?;
        // Under the lock, so that the end of the sandbox waits for the program.
        let running = sandbox.running.token();
        Ok((machine, sandbox, running))
    }

    /// Describes why a command was killed.
    fn describe_kill(&self, reason: KillReason) -> String {
        let settings = &self.settings;
        match reason {
            KillReason::Timeout => describe_timeout(settings.command_timeout),
            KillReason::Memory => {
                format!("the sandbox used more than {} MiB of memory", settings.max_memory_bytes >> 20)
            }
            KillReason::Disk => {
                let (mib, files) = (settings.max_disk_bytes >> 20, settings.max_files);
                format!("the sandbox has more than {mib} MiB or {files} files; delete some of them")
            }
            KillReason::Hidden => {
                "it executes a file that it cannot read, so the server cannot measure what it uses".to_owned()
            }
            KillReason::MachineDisk => {
                "the disk of the server is nearly full, so commands must not write more files".to_owned()
            }
            KillReason::Canceled if self.abort.is_cancelled() => {
                "the server was shut down; the sandbox can be used again when it has started".to_owned()
            }
            KillReason::Canceled => "the sandbox was ended".to_owned(),
        }
    }
}

/// Kills all processes of a sandbox's user.
async fn kill_processes_of(user: u32) -> anyhow::Result<()> {
    // The kernel kills all of them in one step, so that none can create another one.
    let mut kill = tokio::process::Command::new("/bin/bash");
    kill.args(["-c", "kill -KILL -1"]).uid(user).gid(user).env_clear().stderr(Stdio::null());
    // It fails if there are none.
    kill.status().await.context("cannot run bash").map(drop)
}

#[async_trait]
impl SandboxProvider for LocalProvider {
    fn name(&self) -> ProviderName {
        ProviderName::Local
    }

    async fn status(&self) -> ProviderStatus {
        let provider = self.name();
        match self.find_isolation().await {
            Ok(Machine { prepared, isolation }) => ProviderStatus {
                provider,
                problem: None,
                isolation: isolation.description(),
                warning: isolation.warning(),
                limits: isolation.limits(prepared.has_own_users),
            },
            Err(err) => ProviderStatus {
                provider,
                problem: Some(err.to_string()),
                isolation: "none works, so no command runs",
                warning: None,
                limits: BTreeMap::new(),
            },
        }
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
        let prepared = self.find_isolation().await?.prepared;
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
        let (timeout, max_output_bytes) = (self.settings.command_timeout, self.settings.max_output_bytes);
        let (finished, stdout) = self.run_shell_command(machine, &sandbox, command, timeout, max_output_bytes).await?;
        let (program_end, mut stderr) = (finished.end, finished.stderr);
        let (mut end, mut exit_code) = (program_end.command_end(), program_end.exit_code);
        if self.end_if_far_over_limit(machine.prepared, &sandbox)? {
            (end, exit_code) = (CommandEnd::OutOfDisk, KILLED_EXIT_CODE);
            stderr.text.push_str("The sandbox was ended, because it has used twice the disk that it may use.\n");
        } else if let Some(reason) = program_end.kill_reason {
            append_kill_reason(&mut stderr, &self.describe_kill(reason));
        }
        Ok(CommandOutput { stdout, stderr, exit_code, end })
    }

    async fn read_file(&self, id: &str, path: &str, max_bytes: u64) -> Result<SandboxFile, ProviderError> {
        self.copy_out(id, path, max_bytes).await
    }

    async fn write_file(&self, id: &str, dir: &str, file: FileToWrite) -> Result<(), ProviderError> {
        let name = file.path.clone();
        self.extract(id, [dir, &name, "replace"], vec![file]).await.map(drop)
    }

    async fn write_dir(
        &self,
        id: &str,
        dir: &str,
        name: &str,
        files: Vec<FileToWrite>,
    ) -> Result<String, ProviderError> {
        let below_name = |file: FileToWrite| FileToWrite { path: format!("{name}/{}", file.path), ..file };
        let dir = self.extract(id, [dir, name, "new"], files.into_iter().map(below_name).collect()).await?;
        Ok(format!("{dir}/{name}"))
    }

    async fn end(&self, id: &str) -> Result<(), ProviderError> {
        let Ok(id) = id.parse::<SandboxId>() else { return Ok(()) };
        let prepared = self.prepare().await?;
        let sandbox = prepared.sandboxes().get(&id).cloned();
        if let Some(sandbox) = sandbox {
            sandbox.cancel.cancel();
            sandbox.running.close();
            sandbox.running.wait().await;
            // bubblewrap leaves none.
            if let (Some(user), Some(Isolation::Landlock(_))) = (sandbox.user, self.isolation.get()) {
                kill_processes_of(user).await?;
            }
        }
        self.dir.remove(id).await?;
        // Not earlier, so that a concurrent call waits, too.
        prepared.sandboxes().remove(&id);
        Ok(())
    }
}
