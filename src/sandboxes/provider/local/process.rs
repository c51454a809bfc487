//! Runs a program in a sandbox to its end, and enforces the limits that the kernel does not: the duration, the memory of all
//! processes together, and the disk space of the sandbox.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::process::Child;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::disk::{DiskMeter, DiskUsage, measure_unlinked};
use super::memory::MemoryMeter;
use crate::confine::process_tree::kill_descendants;
use crate::sandboxes::provider::CommandEnd;
use crate::sandboxes::provider::output::TIMED_OUT_EXIT_CODE;

/// How often the usage is checked. A command that ends earlier is never checked.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
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
}

/// How a program has ended.
pub(super) struct ProgramEnd {
    pub(super) end: CommandEnd,
    pub(super) exit_code: i32,
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
        let is_out_of_disk = end.end == CommandEnd::OutOfDisk;
        // Short programs, one after the other, must not fill the disk unnoticed. After a violation, the next program is compared with
        // what this one has written until it was killed.
        let measure = move || if is_out_of_disk { disk.measure() } else { disk.measure_if_due() };
        tokio::task::spawn_blocking(measure).await?;
        Ok((end, output))
    }

    async fn supervise(self, child: &mut Child) -> anyhow::Result<ProgramEnd> {
        let deadline = Instant::now() + self.timeout;
        let cancel = self.cancel.clone();
        // A program may run, and free space, although the sandbox exceeds its limit.
        let watcher = Arc::new(Watcher { pid: child.id(), initial_disk: self.disk.usage(), supervision: self });
        let mut checks = tokio::time::interval_at(Instant::now() + CHECK_INTERVAL, CHECK_INTERVAL);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut check = None;
        let end = loop {
            let is_checking = check.is_some();
            let checked = async {
                match &mut check {
                    Some(check) => check.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                status = child.wait() => {
                    return Ok(ProgramEnd { end: CommandEnd::Exited, exit_code: exit_code(status?) });
                }
                () = cancel.cancelled() => break CommandEnd::Killed,
                () = tokio::time::sleep_until(deadline) => break CommandEnd::TimedOut,
                violation = checked => match violation? {
                    Some(end) => break end,
                    None => check = None,
                },
                // A check can take longer than the interval.
                _ = checks.tick(), if !is_checking => {
                    let watcher = Arc::clone(&watcher);
                    check = Some(tokio::task::spawn_blocking(move || watcher.check()));
                }
            }
        };
        // The end of the first process of the sandbox ends all others. bubblewrap is its parent.
        if let Some(pid) = child.id() {
            kill_descendants(pid);
        }
        child.kill().await?;
        let exit_code = if end == CommandEnd::TimedOut { TIMED_OUT_EXIT_CODE } else { KILLED_EXIT_CODE };
        Ok(ProgramEnd { end, exit_code })
    }
}

/// Checks the usage of a running program.
struct Watcher {
    /// The process of bubblewrap.
    pid: Option<u32>,
    initial_disk: DiskUsage,
    supervision: Supervision,
}

impl Watcher {
    /// Returns the reason why the program must be killed, if there is one.
    fn check(&self) -> Option<CommandEnd> {
        let Supervision { max_memory_bytes, max_disk, min_free_bytes, disk, memory, .. } = &self.supervision;
        if self.pid.is_some_and(|pid| memory.must_be_killed(pid, *max_memory_bytes)) {
            return Some(CommandEnd::OutOfMemory);
        }
        let is_nearly_full = disk.free_bytes().is_some_and(|free| free < *min_free_bytes);
        let mut usage = if is_nearly_full { disk.measure() } else { disk.measure_if_due() };
        // Files that are open, but have no name any more, need space, too.
        usage.bytes = usage.bytes.saturating_add(self.pid.map_or(0, measure_unlinked));
        let is_violation = (is_nearly_full || usage.exceeds(*max_disk)) && usage.exceeds(self.initial_disk);
        (is_violation || usage.exceeds(max_disk.twice())).then_some(CommandEnd::OutOfDisk)
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
