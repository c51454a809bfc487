//! Verifies and caches project keys.
//!
//! Verified keys are cached for up to a minute ([`super::cache`]), so that most requests need no query for authentication. A
//! change of a project's row notifies every process (the trigger `projects_changed` in the migrations), which then removes that
//! project's keys from its cache. A process that loses its notification connection clears the cache. Invalid keys are never
//! cached.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, header};
use tokio::sync::Semaphore;

use super::cache::{KeyCache, KeyCacheTimes, VerifiedKey};
use super::{Caller, store};
use crate::crypto::{KEY_PREFIX, ProjectKey};
use crate::db::notify::NotificationHandler;
use crate::db::pooler::no_response_error;
use crate::encryption::{Kek, KeyCheckValue, ProjectEncryption};
use crate::error::{Error, Result, UNAUTHORIZED};
use crate::ids::ProjectId;
use crate::platform::{Platform, platform_context};

/// The notification channel for changes to projects. The SQL function `notify_project_changed` sends the notifications.
const PROJECTS_CHANNEL: &str = "acontextd_projects";

/// The maximum number of hashes that are verified concurrently. A verification takes 16 MiB of memory for some milliseconds.
const MAX_CONCURRENT_HASHES: usize = 4;

/// How long the database may take to find a key.
const FIND_TIMEOUT: Duration = Duration::from_secs(10);

platform_context! {
    /// The context of authentication, which finds the project of a project key.
    Authenticator, AuthenticatorInner
}

pub struct AuthenticatorInner {
    platform: Platform,
    cache: Arc<KeyCache>,
    hash_permits: Semaphore,
}

impl Authenticator {
    pub fn new(platform: Platform, times: KeyCacheTimes) -> Self {
        let (cache, hash_permits) = (KeyCache::new(times), Semaphore::new(MAX_CONCURRENT_HASHES));
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
        let check = || {
            let (authenticator, key, lookup_hash) = (self.clone(), key.clone(), lookup_hash.clone());
            async move { Ok(authenticator.verify(&key, &lookup_hash).await?) }
        };
        let verified = self.cache.get_or_check(&self.process, &lookup_hash, check).await?;
        let VerifiedKey { project, format, max_buffer_turns, key_check_value, must_be_compact } = verified;
        if must_be_compact && !key.is_compact() {
            return Err(UNAUTHORIZED);
        }
        let kek = unwrap_kek(&key, pepper, project)?;
        let is_mismatch = |expected: KeyCheckValue| kek.as_ref().is_some_and(|kek| kek.check_value() != expected);
        if key_check_value.is_some_and(is_mismatch) {
            return Err(Error::Unauthorized("invalid API key: wrong master key for this project"));
        }
        let encryption = ProjectEncryption { project, format, kek };
        Ok(Caller {
            project,
            key_lookup_hash: lookup_hash.into(),
            is_rotated: false,
            max_buffer_turns,
            request_id: None,
            encryption,
        })
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
        let found = store::get_rotated_key(&mut conn, &lookup_hash).await?;
        let Some(store::RotatedKey { project, format, is_compact }) = found else { return Ok(None) };
        if is_compact == Some(true) && !key.is_compact() {
            return Ok(None);
        }
        let encryption = ProjectEncryption { project, format, kek: unwrap_kek(&key, pepper, project)? };
        let key_lookup_hash = lookup_hash.into();
        Ok(Some(Caller {
            project,
            key_lookup_hash,
            is_rotated: true,
            max_buffer_turns: None,
            request_id: None,
            encryption,
        }))
    }

    /// Finds the project of a key in the database, and verifies the key's hash if that is enabled.
    async fn verify(&self, key: &ProjectKey, lookup_hash: &str) -> Result<VerifiedKey> {
        let find = async {
            let mut conn = self.db.acquire().await?;
            store::get_by_lookup_hash(&mut conn, lookup_hash).await
        };
        // Without the timeout, a lost connection would block the key, because all its requests wait for the same check.
        let found = tokio::time::timeout(FIND_TIMEOUT, find).await;
        let found = found.unwrap_or_else(|_| Err(no_response_error()))?.ok_or(UNAUTHORIZED)?;
        if self.config.keys.verify_argon2 && !self.verify_hash(key, found.secret_key_hash_phc).await? {
            return Err(UNAUTHORIZED);
        }
        // A value that is not an integer is ignored.
        let max_buffer_turns = found.max_buffer_turns.and_then(|turns| turns.as_i64());
        // A stored value that does not have 16 bytes is replaced by zeros, which match no key.
        let key_check_value = found.master_key_check_value.map(|value| value.try_into().unwrap_or_default());
        let must_be_compact = found.key_is_compact == Some(true);
        Ok(VerifiedKey { project: found.id, format: found.format, max_buffer_turns, key_check_value, must_be_compact })
    }

    async fn verify_hash(&self, key: &ProjectKey, phc: String) -> Result<bool> {
        let _permit = self.hash_permits.acquire().await.map_err(Error::internal)?;
        let (key, authenticator) = (key.clone(), self.clone());
        tokio::task::spawn_blocking(move || key.verify_hash(authenticator.config.keys.pepper(), &phc))
            .await
            .map_err(Error::internal)
    }

    /// Returns the number of checks of keys that were started.
    pub fn started_checks(&self) -> u64 {
        self.cache.started_checks()
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
