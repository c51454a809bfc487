//! The cache of verified keys, and the checks in progress.
//!
//! A key has at most one check at a time, for which all its requests wait. A cached key is checked again before it expires, while
//! requests still use the cached result.

use std::collections::HashMap;
use std::future::Future;
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

/// A lookup hash, and the generation of the cache in which the check began.
type CheckId = (String, u64);
/// A check in progress.
type SharedCheck = Shared<BoxFuture<'static, KeyCheckResult>>;

#[derive(Clone)]
struct CachedKey {
    key: VerifiedKey,
    checked_at: Instant,
}

/// The cache of verified keys and the checks in progress, by lookup hash.
pub(super) struct KeyCache {
    refresh_after: Duration,
    verified: Cache<String, CachedKey>,
    /// The number of invalidations. A row that was read before an invalidation must not be used by a request that began after it.
    generation: AtomicU64,
    checks: Mutex<HashMap<CheckId, SharedCheck>>,
    started_checks: AtomicU64,
}

impl KeyCache {
    pub(super) fn new(times: KeyCacheTimes) -> Arc<Self> {
        let verified =
            Cache::builder().max_capacity(MAX_KEYS).time_to_live(times.max_age).support_invalidation_closures().build();
        Arc::new(Self {
            refresh_after: times.refresh_after,
            verified,
            generation: AtomicU64::default(),
            checks: Mutex::default(),
            started_checks: AtomicU64::default(),
        })
    }

    /// Returns the cached key. If it is not cached, runs `check`, or waits for the check of the same key that is in progress. If it
    /// must be refreshed, starts `check` in the background.
    pub(super) async fn get_or_check<F>(
        self: &Arc<Self>,
        process: &Process,
        lookup_hash: &str,
        check: impl FnOnce() -> F,
    ) -> KeyCheckResult
    where
        F: Future<Output = KeyCheckResult> + Send + 'static,
    {
        match self.verified.get(lookup_hash) {
            Some(cached) => {
                if cached.checked_at.elapsed() >= self.refresh_after {
                    drop(self.start_check(process, lookup_hash, check));
                }
                Ok(cached.key)
            }
            None => self.start_check(process, lookup_hash, check).await,
        }
    }

    /// Starts a check, unless one of the same key is in progress. The check runs in a task, so that it ends even if the client that
    /// has caused it disconnects.
    fn start_check<F>(self: &Arc<Self>, process: &Process, lookup_hash: &str, check: impl FnOnce() -> F) -> SharedCheck
    where
        F: Future<Output = KeyCheckResult> + Send + 'static,
    {
        let id = (lookup_hash.to_owned(), self.generation.load(Ordering::SeqCst));
        // Held until the check is inserted, so that the task cannot remove it before.
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(check) = checks.get(&id) {
            return check.clone();
        }
        self.started_checks.fetch_add(1, Ordering::Relaxed);
        let (cache, task_id, check) = (Arc::clone(self), id.clone(), check());
        let task = process.background_tasks.spawn(async move {
            let result = std::panic::AssertUnwindSafe(check).catch_unwind().await;
            let result = result.unwrap_or_else(|_| Err(KeyCheckError::Internal("the check of a key panicked".into())));
            cache.complete_check(&task_id, &result);
            result
        });
        let check = async move { task.await.unwrap_or_else(|err| Err(KeyCheckError::Internal(err.to_string()))) };
        let check = check.boxed().shared();
        checks.insert(id, check.clone());
        check
    }

    /// Stores the result of a check, unless the cache was invalidated since the check began.
    fn complete_check(&self, id: &CheckId, result: &KeyCheckResult) {
        let (lookup_hash, generation) = id;
        match result {
            Ok(key) if self.generation.load(Ordering::SeqCst) == *generation => {
                self.verified.insert(lookup_hash.clone(), CachedKey { key: *key, checked_at: Instant::now() });
                // An invalidation may have happened between the comparison and the insert.
                if self.generation.load(Ordering::SeqCst) != *generation {
                    self.verified.invalidate(lookup_hash);
                }
            }
            Err(KeyCheckError::Unauthorized) => self.verified.invalidate(lookup_hash),
            // The cached result of a key that cannot be checked now expires at its maximum age.
            Ok(_) | Err(_) => {}
        }
        self.checks.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// Removes the keys of a project.
    pub(super) fn invalidate_project(&self, project: ProjectId) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        if self.verified.invalidate_entries_if(move |_, cached| cached.key.project == project).is_err() {
            self.verified.invalidate_all();
        }
    }

    /// Removes all keys, because a change of a project may have been missed.
    pub(super) fn invalidate_all(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.verified.invalidate_all();
    }

    /// Returns the number of checks that were started.
    pub(super) fn started_checks(&self) -> u64 {
        self.started_checks.load(Ordering::Relaxed)
    }
}
