//! A process and its descendants.

use std::collections::HashSet;
use std::fs;

use rustix::process::{Pid, Signal, kill_process};

/// Returns a process and all its descendants. Processes that end in the meantime are left out.
pub fn descendants(pid: u32) -> HashSet<u32> {
    let (mut found, mut pending) = (HashSet::new(), vec![pid]);
    while let Some(pid) = pending.pop() {
        if !found.insert(pid) {
            continue;
        }
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for thread in threads.flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            pending.extend(children.split_ascii_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    found
}

/// Kills the descendants of a process, also those that they create in the meantime.
pub fn kill_descendants(pid: u32) {
    // Stopped processes create no others, so each round finds fewer new ones.
    let mut stopped = HashSet::from([pid]);
    loop {
        let new: Vec<u32> = descendants(pid).difference(&stopped).copied().collect();
        if new.is_empty() {
            break;
        }
        for descendant in new {
            send_signal(descendant, Signal::STOP);
            stopped.insert(descendant);
        }
    }
    stopped.remove(&pid);
    for descendant in stopped {
        send_signal(descendant, Signal::KILL);
    }
}

fn send_signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // An error means that the process has ended.
        let _ = kill_process(pid, signal);
    }
}
