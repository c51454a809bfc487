//! Verifies and caches project keys.
//!
//! Verified keys are cached for up to a minute, so that most requests need no query for authentication. A change of a
//! project's row notifies every process (the trigger `projects_changed` in the migrations), which then removes that
//! project's keys from its cache. A process that loses its notification connection clears the cache. Invalid keys are never
//! cached.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::http::{HeaderMap, header};
use moka::sync::Cache;
use tokio::sync::Semaphore;

use super::{Caller, store};
use crate::crypto::{KEY_PREFIX, ProjectKey};
use crate::db::notify::NotificationHandler;
use crate::encryption::{Kek, KeyCheckValue, ProjectEncryption, StorageFormat};
use crate::error::{Error, Result, UNAUTHORIZED};
use crate::ids::ProjectId;
use crate::platform::{Platform, platform_context};

/// The notification channel for changes to projects. The SQL function `notify_project_changed` sends the notifications.
const PROJECTS_CHANNEL: &str = "acontextd_projects";

/// The maximum number of hashes that are verified concurrently. A verification takes 16 MiB of memory for some milliseconds.
const MAX_CONCURRENT_HASHES: usize = 4;

platform_context! {
    /// The context of authentication, which finds the project of a project key.
    Authenticator, AuthenticatorInner
}

pub struct AuthenticatorInner {
    platform: Platform,
    cache: KeyCache,
    hash_permits: Semaphore,
}

impl Authenticator {
    pub fn new(platform: Platform) -> Self {
        let (cache, hash_permits) = (KeyCache::default(), Semaphore::new(MAX_CONCURRENT_HASHES));
        Self(Arc::new(AuthenticatorInner { platform, cache, hash_permits }))
    }

    /// Authenticates a request by the project key in its headers.
    ///
    /// # Errors
    /// Returns 401 if there is no valid key, and 503 if the database is unavailable.
    pub async fn authenticate(&self, headers: &HeaderMap) -> Result<Caller> {
        let unprefixed = unprefixed_key(headers).filter(|unprefixed| !unprefixed.is_empty());
        let key = ProjectKey::parse(unprefixed.ok_or(UNAUTHORIZED)?);
        let pepper = self.config.keys.pepper();
        let lookup_hash = key.lookup_hash(pepper);
        let verified = match self.cache.get(&lookup_hash) {
            Some(verified) => verified,
            None => self.verify(&key, &lookup_hash).await?,
        };
        let VerifiedKey { project, format, max_buffer_turns, key_check_value } = verified;
        let kek = unwrap_kek(&key, pepper, project)?;
        let is_mismatch = |expected: KeyCheckValue| kek.as_ref().is_some_and(|kek| kek.check_value() != expected);
        if key_check_value.is_some_and(is_mismatch) {
            return Err(Error::Unauthorized("invalid API key: wrong master key for this project"));
        }
        let encryption = ProjectEncryption { project, format, kek };
        Ok(Caller { project, key_lookup_hash: lookup_hash.into(), is_rotated: false, max_buffer_turns, encryption })
    }

    /// Authenticates a request by a key that was rotated less than [`store::ROTATED_KEY_RETENTION`] ago. Returns `None` if the
    /// headers contain no such key.
    ///
    /// # Errors
    /// Returns 401 if the key's master key cannot be unwrapped, and 503 if the database is unavailable.
    pub async fn authenticate_rotated_key(&self, headers: &HeaderMap) -> Result<Option<Caller>> {
        let Some(unprefixed) = unprefixed_key(headers) else { return Ok(None) };
        let key = ProjectKey::parse(unprefixed);
        let pepper = self.config.keys.pepper();
        let lookup_hash = key.lookup_hash(pepper);
        let mut conn = self.db.acquire().await?;
        let found = store::get_by_rotated_key(&mut conn, &lookup_hash).await?;
        let Some((project, format)) = found else { return Ok(None) };
        let encryption = ProjectEncryption { project, format, kek: unwrap_kek(&key, pepper, project)? };
        let key_lookup_hash = lookup_hash.into();
        Ok(Some(Caller { project, key_lookup_hash, is_rotated: true, max_buffer_turns: None, encryption }))
    }

    /// Finds the project of a key in the database, verifies the key's hash if that is enabled, and caches the key.
    async fn verify(&self, key: &ProjectKey, lookup_hash: &str) -> Result<VerifiedKey> {
        let generation = self.cache.generation();
        let mut conn = self.db.acquire().await?;
        let found = store::get_by_lookup_hash(&mut conn, lookup_hash).await?.ok_or(UNAUTHORIZED)?;
        drop(conn);
        if self.config.keys.verify_argon2 && !self.verify_hash(key, found.secret_key_hash_phc).await? {
            return Err(UNAUTHORIZED);
        }
        // A value that is not an integer is ignored.
        let max_buffer_turns = found.max_buffer_turns.and_then(|turns| turns.as_i64());
        // A stored value that does not have 16 bytes is replaced by zeros, which match no key.
        let key_check_value = found.master_key_check_value.map(|value| value.try_into().unwrap_or_default());
        let verified = VerifiedKey { project: found.id, format: found.format, max_buffer_turns, key_check_value };
        self.cache.insert_if_current(lookup_hash, verified, generation);
        Ok(verified)
    }

    async fn verify_hash(&self, key: &ProjectKey, phc: String) -> Result<bool> {
        let _permit = self.hash_permits.acquire().await.map_err(Error::internal)?;
        let (key, authenticator) = (key.clone(), self.clone());
        tokio::task::spawn_blocking(move || key.verify_hash(authenticator.config.keys.pepper(), &phc))
            .await
            .map_err(Error::internal)
    }

    /// Removes the keys of a project from the cache.
    pub fn invalidate_project(&self, project: ProjectId) {
        self.cache.invalidate_project(project);
    }
}

impl NotificationHandler for Authenticator {
    fn channel(&self) -> &'static str {
        PROJECTS_CHANNEL
    }

    fn on_notification(&self, payload: &str) {
        match payload.parse() {
            Ok(project) => self.cache.invalidate_project(project),
            Err(_) => self.cache.invalidate_all(),
        }
    }

    fn on_connection_change(&self) {
        self.cache.invalidate_all();
    }
}

/// Unwraps the master key in a compact key. Returns `None` for a legacy key.
fn unwrap_kek(key: &ProjectKey, pepper: &str, project: ProjectId) -> Result<Option<Arc<Kek>>> {
    let master = key.master_key(pepper);
    let master = master.map_err(|_| Error::Unauthorized("invalid API key: failed to unwrap compact token"))?;
    Ok(master.map(|master| Kek::new(project, master)).transpose()?.map(Arc::new))
}

/// Returns the project key in the `Authorization` header, without the prefix.
fn unprefixed_key(headers: &HeaderMap) -> Option<&str> {
    bearer_token(headers)?.strip_prefix(KEY_PREFIX)
}

/// Returns the bearer token in the `Authorization` header.
pub(super) fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

/// A verified key, with the properties of its project.
#[derive(Clone, Copy)]
struct VerifiedKey {
    project: ProjectId,
    format: StorageFormat,
    max_buffer_turns: Option<i64>,
    /// The key check value of the project's master key, if the project has encrypted content.
    key_check_value: Option<KeyCheckValue>,
}

/// The cache of verified keys, by their lookup hash.
struct KeyCache {
    verified: Cache<String, VerifiedKey>,
    /// The number of invalidations. A row that was read before an invalidation must not be cached after it.
    generation: AtomicU64,
}

impl Default for KeyCache {
    fn default() -> Self {
        let verified = Cache::builder()
            .max_capacity(100_000)
            .time_to_live(Duration::from_mins(1))
            .support_invalidation_closures()
            .build();
        Self { verified, generation: AtomicU64::new(0) }
    }
}

impl KeyCache {
    /// Removes the keys of a project.
    fn invalidate_project(&self, project: ProjectId) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        if self.verified.invalidate_entries_if(move |_, verified| verified.project == project).is_err() {
            self.verified.invalidate_all();
        }
    }

    /// Removes all keys, because a change of a project may have been missed.
    fn invalidate_all(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.verified.invalidate_all();
    }

    fn get(&self, lookup_hash: &str) -> Option<VerifiedKey> {
        self.verified.get(lookup_hash)
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Inserts a key unless the cache was invalidated since `generation` was read.
    fn insert_if_current(&self, lookup_hash: &str, verified: VerifiedKey, generation: u64) {
        if self.generation() == generation {
            self.verified.insert(lookup_hash.to_owned(), verified);
            // An invalidation may have happened between the check and the insert.
            if self.generation() != generation {
                self.verified.invalidate(lookup_hash);
            }
        }
    }
}
