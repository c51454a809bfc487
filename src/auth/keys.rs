//! Verifies project keys.
//!
//! Verified keys are cached for up to a minute, so that a warm request needs no query. A change of a project's row notifies every
//! process (the trigger `projects_changed` in the migrations), which removes that project's keys at once; a process that loses the connection for
//! notifications removes all. A key that is not valid is never cached.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::http::{HeaderMap, header};
use moka::sync::Cache;
use tokio::sync::Semaphore;

use super::{Caller, store};
use crate::crypto::{KEY_PREFIX, ProjectKey};
use crate::db::notify::NotificationHandler;
use crate::encryption::{Check, Kek, ProjectEncryption, StorageFormat};
use crate::error::{Error, Result, UNAUTHORIZED};
use crate::ids::ProjectId;
use crate::platform::{Platform, platform_context};

/// The channel of changes of projects, on which the function `notify_project_changed` in the migrations notifies.
const PROJECTS_CHANNEL: &str = "acontextd_projects";

/// How many hashes are checked at one time: each takes 16 MiB for some milliseconds.
const HASH_PERMITS: usize = 4;

platform_context! {
    /// Finds the project of a request.
    Authenticator, AuthenticatorInner
}

pub struct AuthenticatorInner {
    platform: Platform,
    cache: KeyCache,
    hash_permits: Semaphore,
}

impl Authenticator {
    pub fn new(platform: Platform) -> Self {
        let (cache, hash_permits) = (KeyCache::default(), Semaphore::new(HASH_PERMITS));
        Self(Arc::new(AuthenticatorInner { platform, cache, hash_permits }))
    }

    /// Returns the project that the key in these headers belongs to.
    ///
    /// # Errors
    /// 401 if there is no valid key; 503 if the database does not respond.
    pub async fn authenticate(&self, headers: &HeaderMap) -> Result<Caller> {
        let body =
            bearer_token(headers).and_then(|token| token.strip_prefix(KEY_PREFIX)).filter(|body| !body.is_empty());
        let key = ProjectKey::parse(body.ok_or(UNAUTHORIZED)?);
        let pepper = self.config.keys.pepper();
        let lookup = key.lookup(pepper);
        let verified = match self.cache.get(&lookup) {
            Some(verified) => verified,
            None => self.verify(&key, &lookup).await?,
        };
        let Verified { project, format, buffer_turns, check } = verified;
        let kek = unwrap_kek(&key, pepper, project)?;
        if check.is_some_and(|check| kek.as_ref().is_some_and(|kek| kek.check() != check)) {
            return Err(Error::Unauthorized("invalid API key: its master key is not the one of this project"));
        }
        let encryption = ProjectEncryption { project, format, kek };
        Ok(Caller { project, lookup: lookup.into(), is_rotated: false, buffer_turns, encryption })
    }

    /// Returns the project that the key in these headers belonged to until it was rotated, for [`store::ROTATED_KEY_RETENTION`].
    ///
    /// # Errors
    /// 401 if the key is malformed; 503 if the database does not respond.
    pub async fn authenticate_rotated_key(&self, headers: &HeaderMap) -> Result<Option<Caller>> {
        let Some(body) = bearer_token(headers).and_then(|token| token.strip_prefix(KEY_PREFIX)) else {
            return Ok(None);
        };
        let key = ProjectKey::parse(body);
        let pepper = self.config.keys.pepper();
        let lookup = key.lookup(pepper);
        let mut conn = self.db.acquire().await?;
        let Some((project, format)) = store::get_by_rotated_key(&mut conn, &lookup).await? else { return Ok(None) };
        let encryption = ProjectEncryption { project, format, kek: unwrap_kek(&key, pepper, project)? };
        Ok(Some(Caller { project, lookup: lookup.into(), is_rotated: true, buffer_turns: None, encryption }))
    }

    async fn verify(&self, key: &ProjectKey, lookup: &str) -> Result<Verified> {
        let generation = self.cache.generation();
        let mut conn = self.db.acquire().await?;
        let found = store::get_by_key_hmac(&mut conn, lookup).await?.ok_or(UNAUTHORIZED)?;
        drop(conn);
        if self.config.keys.argon2 && !self.check_hash(key, found.secret_key_hash_phc).await? {
            return Err(UNAUTHORIZED);
        }
        // A value of another type is as if it were not there.
        let buffer_turns = found.buffer_turns.and_then(|turns| turns.as_i64());
        // One of another length fits no key.
        let check = found.master_key_check_value.map(|check| check.try_into().unwrap_or_default());
        let verified = Verified { project: found.id, format: found.format, buffer_turns, check };
        self.cache.insert_if_current(lookup, verified, generation);
        Ok(verified)
    }

    async fn check_hash(&self, key: &ProjectKey, phc: String) -> Result<bool> {
        let _permit = self.hash_permits.acquire().await.map_err(Error::internal)?;
        let (key, authenticator) = (key.clone(), self.clone());
        tokio::task::spawn_blocking(move || key.matches(authenticator.config.keys.pepper(), &phc))
            .await
            .map_err(Error::internal)
    }

    /// Removes the cached keys of one project.
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

    fn on_reconnect(&self) {
        self.cache.invalidate_all();
    }
}

/// Returns the key-encryption key in a compact key; `None` for a legacy key.
fn unwrap_kek(key: &ProjectKey, pepper: &str, project: ProjectId) -> Result<Option<Arc<Kek>>> {
    let master = key.master_key(pepper);
    let master = master.map_err(|_| Error::Unauthorized("invalid API key: failed to unwrap compact token"))?;
    Ok(master.map(|master| Kek::new(project, master)).transpose()?.map(Arc::new))
}

/// Returns the token of the `Authorization` header.
pub(super) fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

/// The project of a verified key.
#[derive(Clone, Copy)]
struct Verified {
    project: ProjectId,
    format: StorageFormat,
    buffer_turns: Option<i64>,
    /// Of the master key that the project's content is sealed with, if any is.
    check: Option<Check>,
}

/// The verified keys, by their lookup hash.
struct KeyCache {
    verified: Cache<String, Verified>,
    /// Counts the invalidations: what was read before one must not be cached after it.
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
    /// Removes the keys of one project.
    fn invalidate_project(&self, project: ProjectId) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        if self.verified.invalidate_entries_if(move |_, verified| verified.project == project).is_err() {
            self.verified.invalidate_all();
        }
    }

    /// Removes every key, because a change may have been missed.
    fn invalidate_all(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.verified.invalidate_all();
    }

    fn get(&self, lookup: &str) -> Option<Verified> {
        self.verified.get(lookup)
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    fn insert_if_current(&self, lookup: &str, verified: Verified, generation: u64) {
        if self.generation() == generation {
            self.verified.insert(lookup.to_owned(), verified);
            // An invalidation came between the check and the insert.
            if self.generation() != generation {
                self.verified.invalidate(lookup);
            }
        }
    }
}
