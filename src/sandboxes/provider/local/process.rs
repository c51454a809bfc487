//! Runs a program in a sandbox to its end, and enforces the limits that the kernel does not: the duration, the memory of all
//! processes of the sandbox together, and its disk space.

use std::collections::HashSet;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Child;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::disk::{DiskMeter, DiskUsage};
use super::inspection::Inspection;
use super::memory::MemoryMeter;
use crate::confine::process_tree::kill_descendants;
use crate::sandboxes::provider::CommandEnd;
use crate::sandboxes::provider::output::TIMED_OUT_EXIT_CODE;

/// How often the usage is checked. A command that ends earlier is never checked.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// By how many bytes the files of a sandbox must grow before a program is killed because of them.
const MIN_GROWTH_BYTES: u64 = 1 << 20;
/// How long to wait until a supervisor has killed all processes.
const SUPERVISOR_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait for the end of the output of a process that was killed.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(5);

/// The exit code of a command that was killed for another reason.
pub(super) const KILLED_EXIT_CODE: i32 = 128 + 9;

/// What a program may use.
pub(super) struct Supervision {
    pub(super) timeout: Duration,
    pub(super) max_memory_bytes: u64,
    pub(super) max_disk: DiskUsage,
    /// If less is free on the file system, a program must not use more of it.
    pub(super) min_free_bytes: u64,
    pub(super) disk: Arc<DiskMeter>,
    pub(super) memory: Arc<MemoryMeter>,
    /// Canceled when the sandbox ends, or the server is shut down.
    pub(super) cancel: CancellationToken,
    /// `true` if the first process is a supervisor, which kills the others, and not the one of a namespace.
    pub(super) has_supervisor: bool,
}

/// How a program has ended.
pub(super) struct ProgramEnd {
    pub(super) exit_code: i32,
    /// Why it was killed. `None` if it has ended by itself.
    pub(super) kill_reason: Option<KillReason>,
}

/// Why a program was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KillReason {
    Timeout,
    Memory,
    /// The sandbox has too many or too large files.
    Disk,
    /// Too little is free on the file system of the machine.
    MachineDisk,
    /// A process cannot be inspected.
    Hidden,
    /// The sandbox was ended, or the server is shut down.
    Canceled,
}

impl ProgramEnd {
    pub(super) fn command_end(&self) -> CommandEnd {
        self.kill_reason.map_or(CommandEnd::Exited, |reason| match reason {
            KillReason::Timeout => CommandEnd::TimedOut,
            KillReason::Memory => CommandEnd::OutOfMemory,
            KillReason::Disk | KillReason::MachineDisk => CommandEnd::OutOfDisk,
            KillReason::Canceled | KillReason::Hidden => CommandEnd::Killed,
        })
    }
}

impl Supervision {
    /// Waits until the program ends while it runs `io`, which must read the output. If the program exceeds a limit, kills it
    /// and all its descendants.
    ///
    /// # Errors
    /// Returns an error if the program cannot be waited for, or if its output does not end with it.
    pub(super) async fn wait<T>(
        self,
        child: &mut Child,
        io: impl Future<Output = T>,
    ) -> anyhow::Result<(ProgramEnd, T)> {
        let disk = Arc::clone(&self.disk);
        tokio::pin!(io);
        let supervised = self.supervise(child);
        tokio::pin!(supervised);
        let (end, output) = tokio::select! {
            end = &mut supervised => (end?, None),
            output = &mut io => (supervised.await?, Some(output)),
        };
        // The output ends when no process of the sandbox is left.
        let output = match output {
            Some(output) => output,
            None => tokio::time::timeout(OUTPUT_TIMEOUT, io).await.context("the output of a sandbox does not end")?,
        };
        let is_out_of_disk = end.command_end() == CommandEnd::OutOfDisk;
        // Short programs, one after the other, must not fill the disk unnoticed. After a violation, the next program is compared with
        // what this one has written until it was killed.
        let measure = move || if is_out_of_disk { disk.measure() } else { disk.measure_if_due() };
        tokio::task::spawn_blocking(measure).await?;
        Ok((end, output))
    }

    async fn supervise(self, child: &mut Child) -> anyhow::Result<ProgramEnd> {
        let deadline = Instant::now() + self.timeout;
        let (cancel, has_supervisor) = (self.cancel.clone(), self.has_supervisor);
        // A program may run, and free space, although the sandbox exceeds its limit.
        let (pid, initial_disk, hidden) = (child.id(), self.disk.usage(), Mutex::default());
        let watcher = Arc::new(Watcher { pid, initial_disk, hidden, supervision: self });
        let mut checks = tokio::time::interval_at(Instant::now() + CHECK_INTERVAL, CHECK_INTERVAL);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut check = None;
        let reason = loop {
            let is_checking = check.is_some();
            let checked = async {
                match &mut check {
                    Some(check) => check.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                status = child.wait() => {
                    return Ok(ProgramEnd { exit_code: exit_code(status?), kill_reason: None });
                }
                () = cancel.cancelled() => break KillReason::Canceled,
                () = tokio::time::sleep_until(deadline) => break KillReason::Timeout,
                violation = checked => match violation? {
                    Some(reason) => break reason,
                    None => check = None,
                },
                // A check can take longer than the interval.
                _ = checks.tick(), if !is_checking => {
                    let watcher = Arc::clone(&watcher);
                    check = Some(tokio::task::spawn_blocking(move || watcher.check()));
                }
            }
        };
        kill(child, has_supervisor).await?;
        let exit_code = if reason == KillReason::Timeout { TIMED_OUT_EXIT_CODE } else { KILLED_EXIT_CODE };
        Ok(ProgramEnd { exit_code, kill_reason: Some(reason) })
    }
}

/// Kills a program with all its processes.
async fn kill(child: &mut Child, has_supervisor: bool) -> anyhow::Result<()> {
    let Some(pid) = child.id() else { return Ok(()) };
    if !has_supervisor {
        // The end of the first process of the namespace ends all others. bubblewrap is its parent.
        tokio::task::spawn_blocking(move || kill_descendants(pid)).await?;
        return Ok(child.kill().await?);
    }
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // An error means that it has ended.
        let _ = kill_process(pid, Signal::TERM);
    }
    // A supervisor that is killed would leave processes behind.
    if tokio::time::timeout(SUPERVISOR_TIMEOUT, child.wait()).await.is_err() {
        tracing::warn!(pid, "the processes of a command do not end; their supervisor continues to kill them");
    }
    Ok(())
}

/// Checks the usage of a running program.
struct Watcher {
    /// The process of bubblewrap.
    pid: Option<u32>,
    initial_disk: DiskUsage,
    /// The processes that the last check could not inspect.
    hidden: Mutex<HashSet<u32>>,
    supervision: Supervision,
}

impl Watcher {
    /// Returns the reason why the program must be killed, if there is one.
    fn check(&self) -> Option<KillReason> {
        let Supervision { max_memory_bytes, max_disk, min_free_bytes, disk, memory, .. } = &self.supervision;
        let pid = self.pid?;
        let inspection = Inspection::new(pid);
        if memory.must_be_killed(pid, &inspection, *max_memory_bytes) {
            return Some(KillReason::Memory);
        }
        // A process that is starting may be hidden for a moment.
        let hidden = std::mem::replace(
            &mut *self.hidden.lock().unwrap_or_else(PoisonError::into_inner),
            inspection.hidden.clone(),
        );
        if !hidden.is_disjoint(&inspection.hidden) {
            return Some(KillReason::Hidden);
        }
        let free = disk.free_bytes().unwrap_or(u64::MAX);
        let is_nearly_full = free < *min_free_bytes;
        // Not all that a program keeps can be attributed to it, so the last part of the reserve is protected against all programs.
        if is_nearly_full && (inspection.has_file_of_unknown_size || free < *min_free_bytes / 2) {
            return Some(KillReason::MachineDisk);
        }
        let mut usage = if is_nearly_full { disk.measure() } else { disk.measure_if_due() };
        // Files that are open, but have no name any more, need space, too.
        usage.bytes = usage.bytes.saturating_add(inspection.unlinked());
        if usage.exceeds(max_disk.twice()) {
            return Some(KillReason::Disk);
        }
        // A program that frees space, or only reads, may run. The file system may need some blocks for files that do not grow.
        let has_grown = usage.exceeds(DiskUsage {
            bytes: self.initial_disk.bytes.saturating_add(MIN_GROWTH_BYTES),
            files: self.initial_disk.files,
        });
        match usage.exceeds(*max_disk) {
            true if has_grown => Some(KillReason::Disk),
            false if has_grown && is_nearly_full => Some(KillReason::MachineDisk),
            _ => None,
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Some(pid) = self.pid {
            self.supervision.memory.remove(pid);
        }
    }
}

/// Returns the exit code of a shell: that of the program, or 128 and the number of the signal that has killed it.
fn exit_code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(KILLED_EXIT_CODE)
}
