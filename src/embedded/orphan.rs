//! Stops an orphan: the Postgres that a killed server left running.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::bail;
use rustix::process::{Pid, Signal, kill_process};

/// Waits until an orphan exits. If it does not exit, sends it stronger and
/// stronger signals.
pub(super) fn stop_orphan(cluster_dir: &Path, stop_timeout: Duration) -> anyhow::Result<()> {
    for signal in [None, Some(Signal::INT), Some(Signal::QUIT), Some(Signal::KILL)] {
        let Some(pid) = find_orphan(cluster_dir) else { return Ok(()) };
        if let Some(signal) = signal {
            tracing::warn!(
                pid = pid.as_raw_nonzero(),
                ?signal,
                "stopping the Postgres that a killed server left running"
            );
            let _ = kill_process(pid, signal);
        }
        let deadline = Instant::now() + stop_timeout;
        while Instant::now() < deadline {
            if find_orphan(cluster_dir).is_none() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    match find_orphan(cluster_dir) {
        None => Ok(()),
        Some(pid) => bail!(
            "cannot stop the Postgres that a killed server left running (pid {}): end that process, then start \
             acontextd again",
            pid.as_raw_nonzero()
        ),
    }
}

/// Returns a Postgres process that uses this cluster directory. The lock file contains the id of the main process, but that id
/// may belong to a different program by now. So a process counts only if it executes Postgres with the cluster directory as its
/// working directory. The child processes of Postgres outlive a killed main process for a moment. They are not in the lock
/// file, so they are searched for among all processes.
fn find_orphan(cluster_dir: &Path) -> Option<Pid> {
    let link = |pid: &Pid, name| fs::read_link(format!("/proc/{}/{name}", pid.as_raw_nonzero())).unwrap_or_default();
    // If an update has replaced the binary, the link ends with " (deleted)".
    let is_postgres =
        |exe: PathBuf| exe.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"postgres"));
    let uses_cluster_dir = |pid: &Pid| link(pid, "cwd") == cluster_dir && is_postgres(link(pid, "exe"));
    let lock = fs::read_to_string(cluster_dir.join("postmaster.pid")).ok()?;
    let lock_holder = lock.lines().next().and_then(|pid| Pid::from_raw(pid.trim().parse().ok()?));
    lock_holder.filter(uses_cluster_dir).or_else(|| {
        let processes = fs::read_dir("/proc").ok()?.flatten();
        let pids = processes.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
        pids.into_iter().find(uses_cluster_dir)
    })
}
