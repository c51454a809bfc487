//! The memory of all programs of a sandbox together.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::inspection::Inspection;

/// Measures the memory of the programs that run in a sandbox at the same time.
#[derive(Debug, Default)]
pub(super) struct MemoryMeter {
    /// The memory of each program in bytes when it was last measured. The key is its first process.
    programs: Mutex<HashMap<u32, u64>>,
}

impl MemoryMeter {
    /// Records the memory of a program. Returns `true` if it must be killed: all programs together need more than `max` bytes, and
    /// none more than this one.
    pub(super) fn must_be_killed(&self, pid: u32, inspection: &Inspection, max: u64) -> bool {
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        programs.insert(pid, inspection.memory());
        if programs.values().sum::<u64>() <= max {
            return false;
        }
        // This contains the pages of files that several processes map several times.
        for (pid, memory) in programs.iter_mut() {
            *memory = Inspection::new(*pid).proportional_memory();
        }
        let largest = programs.iter().max_by_key(|(pid, memory)| (**memory, **pid)).map(|(pid, _)| *pid);
        programs.values().sum::<u64>() > max && largest == Some(pid)
    }

    /// Forgets a program that has ended.
    pub(super) fn remove(&self, pid: u32) {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
    }
}
