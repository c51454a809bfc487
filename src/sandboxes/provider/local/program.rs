//! Starts a program in a sandbox, and runs it to its end.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

use super::LocalProvider;
use super::isolation::IsolatedProgram;
use super::prepare::{LocalSandbox, Machine};
use super::process::{ProgramEnd, Supervision};
use crate::config::SandboxIsolation;
use crate::confine::{self, Confinement, ProcessLimit, ResourceLimits};
use crate::sandboxes::provider::output::read_excerpt;
use crate::sandboxes::provider::{CommandStream, ProviderError};

/// What every script does when it starts: it writes a character that separates its own messages from those of the isolation. Without
/// it, a program that could not be started would look like one that has failed.
macro_rules! start_script {
    () => {
        "printf '\\0' >&2\n"
    };
}
pub(super) use start_script;

/// The script that runs a shell command. It reads the command from its standard input, because a command line is limited to 128
/// KiB, and other users of the machine could read it. `$1` is the maximum number of processes, or empty if it is set already.
/// Without the signal `XFSZ`, a program that writes more than it may gets an error.
const RUN_COMMAND: &str = concat!(
    r#"
    trap '' XFSZ
    [ -z "$1" ] || ulimit -u "$1" || exit
    "#,
    start_script!(),
    r#"
    # The command runs in another process, because the kernel protects this one, the first of its namespace, from its own signals.
    # Without a standard error, this shell does not report how the other one has ended.
    exec 3>&2 2>/dev/null
    /bin/bash -c 'eval -- "$(/bin/cat)" </dev/null' bash 2>&3 3>&-
    exit $?"#
);

/// The maximum length of what the isolation writes before a program starts.
const MAX_PREFACE_LEN: u64 = 4096;

/// A shell script that runs in a sandbox, with its arguments. It contains [`start_script`].
pub(super) struct Program<'a> {
    pub(super) script: &'a str,
    pub(super) arguments: &'a [&'a str],
    pub(super) timeout: Duration,
}

/// A program that was started.
pub(super) struct RunningProgram {
    child: Child,
    stderr: ChildStderr,
    pub(super) supervision: Supervision,
}

/// A program that has ended.
pub(super) struct FinishedProgram {
    pub(super) end: ProgramEnd,
    pub(super) stderr: CommandStream,
}

impl LocalProvider {
    /// Starts a program in a sandbox. Returns it with its standard input and output.
    ///
    /// # Errors
    /// Returns the errors of [`Spawner::spawn`](super::spawner::Spawner::spawn).
    pub(super) async fn start(
        &self,
        Machine { prepared, isolation }: Machine<'_>,
        sandbox: &LocalSandbox,
        program: Program<'_>,
    ) -> Result<(RunningProgram, ChildStdin, ChildStdout), ProviderError> {
        let shell = ["/bin/bash", "-c", program.script, "bash"];
        let line: Vec<String> = shell.iter().chain(program.arguments).map(|argument| (*argument).to_owned()).collect();
        let isolated = isolation.isolate(&self.dir.sandbox(sandbox.id), &line);
        let mut command = self.command(sandbox, isolation.kind(), isolated)?;
        // In a process group of its own, because a terminal sends the signal of Ctrl+C to the whole group of the server, which waits
        // for commands when it is shut down.
        let has_supervisor = isolation.kind() == SandboxIsolation::Landlock;
        command.current_dir("/").process_group(0).kill_on_drop(!has_supervisor);
        let mut child = prepared.spawner.spawn(command).await?;
        let stdin = child.stdin.take().context("no standard input")?;
        let stdout = child.stdout.take().context("no standard output")?;
        let stderr = child.stderr.take().context("no standard error")?;
        let supervision = Supervision {
            timeout: program.timeout,
            max_memory_bytes: self.settings.max_memory_bytes,
            max_disk: self.max_disk(),
            min_free_bytes: self.settings.min_free_bytes,
            disk: Arc::clone(&sandbox.disk),
            memory: Arc::clone(&sandbox.memory),
            cancel: sandbox.cancel.clone(),
            has_supervisor,
        };
        Ok((RunningProgram { child, stderr, supervision }, stdin, stdout))
    }

    /// Runs a shell command to its end. Keeps `max_output_bytes` of each of its outputs. Returns the standard output separately.
    ///
    /// # Errors
    /// Returns the errors of [`Self::start`] and [`RunningProgram::finish`].
    pub(super) async fn run_shell_command(
        &self,
        machine: Machine<'_>,
        sandbox: &LocalSandbox,
        command: &str,
        timeout: Duration,
        max_output_bytes: usize,
    ) -> Result<(FinishedProgram, CommandStream), ProviderError> {
        let max_processes = match machine.isolation.kind() {
            SandboxIsolation::Bubblewrap => self.settings.max_processes.to_string(),
            SandboxIsolation::Landlock => String::new(),
        };
        let program = Program { script: RUN_COMMAND, arguments: &[&max_processes], timeout };
        let (program, mut stdin, stdout) = self.start(machine, sandbox, program).await?;
        let write = async move {
            // A program may end before it has read its input.
            let _ = stdin.write_all(command.as_bytes()).await;
        };
        let io = async { tokio::join!(write, read_excerpt(stdout, max_output_bytes)) };
        let (finished, ((), stdout)) = program.finish(max_output_bytes, io).await?;
        Ok((finished, stdout.context("cannot read the standard output")?))
    }

    /// Returns the command that limits itself and then executes a program.
    fn command(
        &self,
        sandbox: &LocalSandbox,
        isolation: SandboxIsolation,
        program: IsolatedProgram,
    ) -> anyhow::Result<Command> {
        let settings = &self.settings;
        let processes = match (sandbox.user, isolation) {
            (Some(_), _) => Some(ProcessLimit::Total(settings.max_processes)),
            // In a user namespace, other processes of the user do not count. A script sets the limit there.
            (None, SandboxIsolation::Bubblewrap) => None,
            (None, SandboxIsolation::Landlock) => Some(ProcessLimit::Additional(settings.max_processes)),
        };
        let confinement = Confinement {
            user: sandbox.user,
            parent: std::process::id(),
            limits: ResourceLimits {
                cpu_seconds: settings.command_timeout.as_secs().max(1),
                memory_bytes: settings.max_memory_bytes,
                file_bytes: settings.max_disk_bytes,
                open_files: settings.max_open_files,
                processes,
            },
            restriction: program.restriction,
            is_supervised: false,
            program: program.command_line,
        };
        let json = serde_json::to_string(&confinement).context("cannot encode a confinement")?;
        let mut command = Command::new(&settings.executable);
        command.arg(confine::SUBCOMMAND).arg(json).env_clear().envs(program.environment);
        Ok(command)
    }
}

impl RunningProgram {
    /// Waits until the program ends while it runs `io`, which must read the standard output. Keeps `max_stderr_bytes` of the standard
    /// error.
    ///
    /// # Errors
    /// Returns [`ProviderError::Unavailable`] if the program could not be started, and other errors if it cannot be waited for.
    pub(super) async fn finish<T>(
        mut self,
        max_stderr_bytes: usize,
        io: impl Future<Output = T>,
    ) -> Result<(FinishedProgram, T), ProviderError> {
        let stderr = self.stderr;
        let io = async { tokio::join!(io, read_stderr(stderr, max_stderr_bytes)) };
        let (end, (output, stderr)) = self.supervision.wait(&mut self.child, io).await?;
        let (preface, stderr) = stderr.context("cannot read the standard error")?;
        match stderr {
            Some(stderr) => Ok((FinishedProgram { end, stderr }, output)),
            None if end.kill_reason.is_none() => {
                let reason =
                    preface.lines().next().map_or_else(|| format!("exit code {}", end.exit_code), str::to_owned);
                let msg = format!("the sandbox could not start a program: {reason}");
                Err(ProviderError::Unavailable { msg, cause: None })
            }
            None => Ok((FinishedProgram { end, stderr: CommandStream::default() }, output)),
        }
    }
}

/// Reads a standard error. Returns what was written before the script has started, and, if it has started, the rest.
async fn read_stderr(stderr: ChildStderr, max_len: usize) -> std::io::Result<(String, Option<CommandStream>)> {
    let mut stderr = BufReader::new(stderr);
    let mut preface = Vec::new();
    (&mut stderr).take(MAX_PREFACE_LEN).read_until(0, &mut preface).await?;
    let has_started = preface.pop_if(|byte| *byte == 0).is_some();
    let rest = read_excerpt(stderr, max_len).await?;
    Ok((String::from_utf8_lossy(&preface).trim().to_owned(), has_started.then_some(rest)))
}
