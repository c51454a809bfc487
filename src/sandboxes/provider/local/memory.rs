//! The memory of all programs of a sandbox together.

use std::collections::HashMap;
use std::fs;
use std::sync::{Mutex, PoisonError};

use crate::confine::process_tree::descendants;

/// Measures the memory of the programs that run in a sandbox at the same time.
#[derive(Debug, Default)]
pub(super) struct MemoryMeter {
    /// The memory of each program in bytes when it was last measured. The key is its first process.
    programs: Mutex<HashMap<u32, u64>>,
}

impl MemoryMeter {
    /// Measures a program. Returns `true` if it must be killed: all programs together need more than `max` bytes, and none more than
    /// this one.
    pub(super) fn must_be_killed(&self, pid: u32, max: u64) -> bool {
        let resident = measure_resident(pid);
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        programs.insert(pid, resident);
        if programs.values().sum::<u64>() <= max {
            return false;
        }
        // Processes share memory, which the resident memory contains several times.
        for (pid, memory) in programs.iter_mut() {
            *memory = measure_proportional(*pid);
        }
        let largest = programs.iter().max_by_key(|(pid, memory)| (**memory, **pid)).map(|(pid, _)| *pid);
        programs.values().sum::<u64>() > max && largest == Some(pid)
    }

    /// Forgets a program that has ended.
    pub(super) fn remove(&self, pid: u32) {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
    }
}

/// Returns the resident memory in bytes of a process and all its descendants. Memory that processes share is counted for each of
/// them.
fn measure_resident(pid: u32) -> u64 {
    let pids = descendants(pid).into_iter();
    pids.map(|pid| resident_kib(pid) + page_table_kib(pid)).sum::<u64>() * 1024
}

/// Returns the memory in bytes of a process and all its descendants, in which shared memory is divided between those that share it.
fn measure_proportional(pid: u32) -> u64 {
    let pids = descendants(pid).into_iter();
    // A server without the privilege to trace processes cannot read how the memory is divided.
    let memory = |pid: u32| read_kib(pid, "smaps_rollup", "Pss:").unwrap_or_else(|| resident_kib(pid));
    pids.map(|pid| memory(pid) + page_table_kib(pid)).sum::<u64>() * 1024
}

fn resident_kib(pid: u32) -> u64 {
    read_kib(pid, "status", "VmRSS:").unwrap_or_default()
}

/// Returns the size of the page tables, which can be larger than the memory that they map.
fn page_table_kib(pid: u32) -> u64 {
    read_kib(pid, "status", "VmPTE:").unwrap_or_default()
}

/// Reads a value in KiB from a file of `/proc/<pid>`. Returns `None` if the process has ended.
fn read_kib(pid: u32, file: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}
