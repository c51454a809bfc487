//! The cache of verified keys, and the checks in progress.
//!
//! A key has at most one check at a time, for which all its requests wait. A cached key is checked again before it expires, while
//! requests still use the cached result.

use std::collections::HashMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::anyhow;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use moka::sync::Cache;

use crate::encryption::{KeyCheckValue, StorageFormat};
use crate::error::{Error, UNAUTHORIZED};
use crate::ids::ProjectId;
use crate::process::Process;

/// The maximum number of cached keys.
const MAX_KEYS: u64 = 100_000;
/// How long the invalidation of a project is remembered, which must be longer than a check takes.
const INVALIDATION_AGE: Duration = Duration::from_mins(10);

/// A verified key, with the properties of its project.
#[derive(Clone, Copy)]
pub(super) struct VerifiedKey {
    pub(super) project: ProjectId,
    pub(super) format: StorageFormat,
    pub(super) max_buffer_turns: Option<i64>,
    /// The key check value of the project's master key, if the project has encrypted content.
    pub(super) key_check_value: Option<KeyCheckValue>,
    /// `true` if only the compact form of the key is accepted.
    pub(super) must_be_compact: bool,
}

/// How long a verified key is cached.
#[derive(Clone, Copy, Debug)]
pub struct KeyCacheTimes {
    /// The age at which the key is checked again in the background.
    pub refresh_after: Duration,
    /// The age at which the cached result is no longer used.
    pub max_age: Duration,
}

impl Default for KeyCacheTimes {
    fn default() -> Self {
        Self { refresh_after: Duration::from_secs(45), max_age: Duration::from_mins(1) }
    }
}

/// The reason why a check failed. All requests that wait for the check get it.
#[derive(Clone, Debug)]
pub(super) enum KeyCheckError {
    Unauthorized,
    Unavailable { msg: String, cause: String },
    Internal(String),
}

impl From<Error> for KeyCheckError {
    fn from(err: Error) -> Self {
        let (status, msg) = (err.status(), err.public_message().into_owned());
        let cause = || err.into_cause().map(|cause| format!("{cause:#}")).unwrap_or_default();
        match status.as_u16() {
            401 => Self::Unauthorized,
            503 => Self::Unavailable { msg, cause: cause() },
            _ => Self::Internal(cause()),
        }
    }
}

impl From<KeyCheckError> for Error {
    fn from(err: KeyCheckError) -> Self {
        match err {
            KeyCheckError::Unauthorized => UNAUTHORIZED,
            KeyCheckError::Unavailable { msg, cause } => {
                Self::Unavailable { msg: msg.into(), cause: Some(anyhow!(cause)) }
            }
            KeyCheckError::Internal(cause) => Self::Internal(anyhow!(cause)),
        }
    }
}

pub(super) type KeyCheckResult = Result<VerifiedKey, KeyCheckError>;

#[derive(Clone)]
struct CachedKey {
    key: VerifiedKey,
    checked_at: Instant,
}

/// A check in progress.
#[derive(Clone)]
struct Check {
    /// The generation of the cache in which the check began.
    generation: u64,
    result: Shared<BoxFuture<'static, KeyCheckResult>>,
}

/// The cache of verified keys and the checks in progress, by lookup hash.
pub(super) struct KeyCache {
    refresh_after: Duration,
    verified: Cache<String, CachedKey>,
    checks: Mutex<HashMap<String, Check>>,
    started_checks: AtomicU64,
    /// The number of invalidations. A row that was read before the invalidation of its project must not be used by a request that
    /// began after it.
    generation: AtomicU64,
    /// The generation of the last invalidation of all keys.
    all_invalidated_in: AtomicU64,
    /// The generation of the last invalidation of each project. An entry can be removed when all checks have ended that began
    /// before it.
    projects_invalidated_in: Cache<ProjectId, u64>,
}

impl KeyCache {
    pub(super) fn new(times: KeyCacheTimes) -> Arc<Self> {
        let verified =
            Cache::builder().max_capacity(MAX_KEYS).time_to_live(times.max_age).support_invalidation_closures().build();
        Arc::new(Self {
            refresh_after: times.refresh_after,
            verified,
            checks: Mutex::default(),
            started_checks: AtomicU64::default(),
            generation: AtomicU64::default(),
            all_invalidated_in: AtomicU64::default(),
            projects_invalidated_in: Cache::builder().time_to_live(INVALIDATION_AGE).build(),
        })
    }

    /// Returns the cached key. If it is not cached, runs `check`, or waits for the check of the same key that is in progress. If
    /// it must be refreshed, starts `check` in the background.
    pub(super) async fn get_or_check<F>(
        self: &Arc<Self>,
        process: &Process,
        lookup_hash: &str,
        check: impl Fn() -> F,
    ) -> KeyCheckResult
    where
        F: Future<Output = KeyCheckResult> + Send + 'static,
    {
        if let Some(cached) = self.verified.get(lookup_hash) {
            if cached.checked_at.elapsed() >= self.refresh_after {
                drop(self.start_check(process, lookup_hash, &check));
            }
            return Ok(cached.key);
        }
        let arrived_in = self.generation.load(Ordering::SeqCst);
        loop {
            let Check { generation, result } = self.start_check(process, lookup_hash, &check);
            let result = result.await;
            // The result of a check that began before this request may be outdated.
            let is_current = match &result {
                Ok(key) => self.last_invalidation(key.project) <= generation,
                Err(_) => false,
            };
            if is_current || generation >= arrived_in {
                return result;
            }
        }
    }

    /// Starts a check, unless one of the same key is in progress. The check runs in a task, so that it ends even if the client
    /// that has caused it disconnects.
    fn start_check<F>(self: &Arc<Self>, process: &Process, lookup_hash: &str, check: impl FnOnce() -> F) -> Check
    where
        F: Future<Output = KeyCheckResult> + Send + 'static,
    {
        // Held until the check is inserted, so that the task cannot remove it before.
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(check) = checks.get(lookup_hash) {
            return check.clone();
        }
        self.started_checks.fetch_add(1, Ordering::Relaxed);
        let generation = self.generation.load(Ordering::SeqCst);
        let (cache, task_hash) = (Arc::clone(self), lookup_hash.to_owned());
        let check = AssertUnwindSafe(check());
        let task = process.background_tasks.spawn(async move {
            let result = check.catch_unwind().await;
            let result = result.unwrap_or_else(|_| Err(KeyCheckError::Internal("the check of a key panicked".into())));
            cache.complete_check(&task_hash, generation, &result);
            result
        });
        let result = async move { task.await.unwrap_or_else(|err| Err(KeyCheckError::Internal(err.to_string()))) };
        let check = Check { generation, result: result.boxed().shared() };
        checks.insert(lookup_hash.to_owned(), check.clone());
        check
    }

    /// Caches the key if the check has succeeded and the project was not invalidated since the check began. Removes the key from
    /// the cache if it was rejected. The check is then no longer in progress.
    fn complete_check(&self, lookup_hash: &str, generation: u64, result: &KeyCheckResult) {
        match result {
            Ok(key) => {
                let is_current = || self.last_invalidation(key.project) <= generation;
                if is_current() {
                    self.verified.insert(lookup_hash.to_owned(), CachedKey { key: *key, checked_at: Instant::now() });
                    // An invalidation may have happened between the comparison and the insert.
                    if !is_current() {
                        self.verified.invalidate(lookup_hash);
                    }
                }
            }
            Err(KeyCheckError::Unauthorized) => self.verified.invalidate(lookup_hash),
            // If a key cannot be checked at the moment, its cached result stays until its maximum age.
            Err(_) => {}
        }
        self.checks.lock().unwrap_or_else(PoisonError::into_inner).remove(lookup_hash);
    }

    /// Returns the generation of the last invalidation of a project's keys.
    fn last_invalidation(&self, project: ProjectId) -> u64 {
        let of_all = self.all_invalidated_in.load(Ordering::SeqCst);
        self.projects_invalidated_in.get(&project).unwrap_or_default().max(of_all)
    }

    /// Removes the keys of a project.
    pub(super) fn invalidate_project(&self, project: ProjectId) {
        // Before the generation changes, so that a request of the new generation finds the entry.
        self.projects_invalidated_in.insert(project, self.generation.load(Ordering::SeqCst) + 1);
        self.generation.fetch_add(1, Ordering::SeqCst);
        if self.verified.invalidate_entries_if(move |_, cached| cached.key.project == project).is_err() {
            self.verified.invalidate_all();
        }
    }

    /// Removes all keys, because a change of a project may have been missed.
    pub(super) fn invalidate_all(&self) {
        self.all_invalidated_in.fetch_max(self.generation.load(Ordering::SeqCst) + 1, Ordering::SeqCst);
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.verified.invalidate_all();
    }

    /// Returns the number of checks that were started.
    pub(super) fn started_checks(&self) -> u64 {
        self.started_checks.load(Ordering::Relaxed)
    }
}
