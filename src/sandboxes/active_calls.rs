//! The calls that use sandboxes at the moment, so that the end of one does not let a sandbox expire during another one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::ids::SandboxId;

/// The calls of this process.
#[derive(Clone, Default)]
pub struct ActiveCalls(Arc<Mutex<Calls>>);

#[derive(Default)]
struct Calls {
    /// When each call must have ended. The keys of the calls of a sandbox differ.
    deadlines: HashMap<SandboxId, HashMap<u64, Instant>>,
    next_key: u64,
}

/// A call, until this is dropped.
pub struct ActiveCall {
    calls: ActiveCalls,
    sandbox: SandboxId,
    key: u64,
}

impl ActiveCalls {
    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a call that takes at most `duration`.
    pub fn begin(&self, sandbox: SandboxId, duration: Duration) -> ActiveCall {
        let mut calls = self.lock();
        calls.next_key += 1;
        let key = calls.next_key;
        calls.deadlines.entry(sandbox).or_default().insert(key, Instant::now() + duration);
        ActiveCall { calls: self.clone(), sandbox, key }
    }

    /// Returns how long the calls of a sandbox may still take.
    pub fn remaining(&self, sandbox: SandboxId) -> Duration {
        let calls = self.lock();
        let last = calls.deadlines.get(&sandbox).and_then(|deadlines| deadlines.values().max());
        last.map_or(Duration::ZERO, |deadline| deadline.saturating_duration_since(Instant::now()))
    }
}

impl Drop for ActiveCall {
    fn drop(&mut self) {
        let mut calls = self.calls.lock();
        if let Some(deadlines) = calls.deadlines.get_mut(&self.sandbox) {
            deadlines.remove(&self.key);
            if deadlines.is_empty() {
                calls.deadlines.remove(&self.sandbox);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_call_of_a_sandbox_counts() {
        let calls = ActiveCalls::default();
        let (sandbox, other) = (SandboxId::new(), SandboxId::new());
        let (short, long) = (Duration::from_mins(1), Duration::from_mins(5));
        let first = calls.begin(sandbox, long);
        let second = calls.begin(sandbox, short);
        assert!(calls.remaining(sandbox) > short && calls.remaining(sandbox) <= long);
        assert_eq!(calls.remaining(other), Duration::ZERO);
        drop(first);
        assert!(calls.remaining(sandbox) <= short && calls.remaining(sandbox) > Duration::ZERO);
        drop(second);
        assert_eq!(calls.remaining(sandbox), Duration::ZERO);
        assert!(calls.lock().deadlines.is_empty());
    }
}
