//! Who is calling. Default-deny: [`require_key`] stands before every route, and only the constant list [`OPEN`] passes without
//! a key. A test walks the OpenAPI document and wants 401 everywhere else.
//!
//! Verified keys are remembered for up to a minute, so that a warm request asks the database nothing. A change of a
//! project's row is told to every process (see `migrations/0001_projects.sql`) and forgets that project's keys at once; a
//! process that loses the connection it hears this on forgets all. A key that opens nothing is never remembered.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use moka::sync::Cache;
use secrecy::ExposeSecret;
use tokio::sync::Semaphore;

use crate::app::App;
use crate::crypto::{KEY_PREFIX, ProjectKey, same};
use crate::error::{Error, Result, UNAUTHORIZED};
use crate::http::{NO_ROUTE, idempotency, openapi};
use crate::ids::ProjectId;
use crate::projects;
use crate::seal::{Check, Kek, Owner};

/// Routes without a key, as they are spelled in the router.
pub const OPEN: [&str; 7] = [
    "/health",
    "/ready",
    "/openapi.json",
    "/swagger",
    "/swagger/doc.json",
    "/swagger/{*file}",
    "/api/v1/material/{token}",
];
/// This route, and those under [`ADMIN`], are the operator's and want `ADMIN_API_TOKEN`,
const WATCHED: &str = "/metrics";
const ADMIN: &str = "/admin/v1/";
/// but for these: a project's own key opens them.
pub const OF_PROJECTS: [&str; 3] = [REPLACE_KEY, "/admin/v1/project/encrypt", "/admin/v1/project/decrypt"];
/// Routes under here are those of whoever bills: the root token without its prefix opens them, and `ADMIN_API_TOKEN`.
const METRICS: &str = "/metrics/v1";
/// The route that replaces the key it is called with.
const REPLACE_KEY: &str = "/admin/v1/project/secret_key";

/// The project that a request's key opened.
#[derive(Clone)]
pub struct Caller {
    pub project: ProjectId,
    /// What the key is found by.
    pub lookup: Arc<str>,
    /// The key was replaced lately: it opens nothing but the answer that told the new one.
    pub is_replaced: bool,
    /// So many messages of a session need not wait longer to be observed, if the project has set it.
    pub buffer_turns: Option<i64>,
    /// The project with what seals its content, which is inside of the key if it is a compact one.
    pub owner: Owner,
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or_else(|| Error::internal(anyhow::anyhow!("an open route asks for a project")))
    }
}

/// Where the project of a request is noted for its log line, which is written even if there is no response.
#[derive(Clone, Default)]
pub struct ProjectNote(pub Arc<OnceLock<ProjectId>>);

/// The middleware before every route.
pub async fn require_key(State(app): State<App>, mut request: Request, next: Next) -> Response {
    // Without a match the router answers 404.
    let Some(route) = request.extensions().get::<MatchedPath>() else {
        return next.run(request).await;
    };
    if OPEN.contains(&route.as_str()) {
        return next.run(request).await;
    }
    let is_operators = route.as_str() == WATCHED || route.as_str().starts_with(ADMIN);
    if is_operators && !OF_PROJECTS.contains(&route.as_str()) {
        return match admin(&app, request.headers()) {
            Ok(()) => next.run(request).await,
            Err(refusal) => refusal.into_response(),
        };
    }
    if route.as_str().starts_with(METRICS) {
        return match metrics(&app, request.headers()) {
            Ok(()) => next.run(request).await,
            Err(refusal) => refusal.into_response(),
        };
    }
    let found = match caller(&app, request.headers()).await {
        Err(refusal) if route.as_str() == REPLACE_KEY && request.headers().contains_key(idempotency::HEADER) => {
            replaced(&app, request.headers()).await.and_then(|caller| caller.ok_or(refusal))
        }
        found => found,
    };
    match found {
        Ok(caller) => {
            if let Some(note) = request.extensions().get::<ProjectNote>() {
                let _ = note.0.set(caller.project);
            }
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        // What no key would open is not there, with or without one.
        Err(_) if !openapi::has_operation(route.as_str(), request.method()) => NO_ROUTE.into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

fn admin(app: &App, headers: &HeaderMap) -> Result<()> {
    let Some(token) = &app.config.keys.admin_token else {
        return Err(Error::Forbidden("administration is off: the server was started without ADMIN_API_TOKEN"));
    };
    let access_token = headers.get("x-access-token").and_then(|value| value.to_str().ok());
    let sent = access_token.or_else(|| bearer(headers));
    if sent.is_some_and(|sent| same(sent, token.expose_secret())) { Ok(()) } else { Err(UNAUTHORIZED) }
}

fn metrics(app: &App, headers: &HeaderMap) -> Result<()> {
    let root = app.config.keys.root_token.expose_secret();
    if bearer(headers).is_some_and(|sent| same(sent, root)) || admin(app, headers).is_ok() {
        Ok(())
    } else {
        Err(UNAUTHORIZED)
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

async fn caller(app: &App, headers: &HeaderMap) -> Result<Caller> {
    let body = bearer(headers).and_then(|token| token.strip_prefix(KEY_PREFIX)).filter(|body| !body.is_empty());
    let key = ProjectKey::parse(body.ok_or(UNAUTHORIZED)?);
    let pepper = app.config.keys.pepper();
    let lookup = key.lookup(pepper);
    let verified = match app.keys.get(&lookup) {
        Some(verified) => verified,
        None => verify(app, &key, &lookup).await?,
    };
    let Verified { project, encrypted, buffer_turns, check } = verified;
    let kek = kek(&key, pepper, project)?;
    if check.is_some_and(|check| kek.as_ref().is_some_and(|kek| kek.check() != check)) {
        return Err(Error::Unauthorized("invalid API key: its master key is not the one of this project"));
    }
    let owner = Owner { project, encrypted, kek };
    Ok(Caller { project, lookup: lookup.into(), is_replaced: false, buffer_turns, owner })
}

/// What is inside of a compact key.
fn kek(key: &ProjectKey, pepper: &str, project: ProjectId) -> Result<Option<Arc<Kek>>> {
    let master = key.master_key(pepper);
    let master = master.map_err(|_| Error::Unauthorized("invalid API key: failed to unwrap compact token"))?;
    Ok(master.map(|master| Kek::new(project, master)).transpose()?.map(Arc::new))
}

/// Whose key this was until it was replaced lately.
async fn replaced(app: &App, headers: &HeaderMap) -> Result<Option<Caller>> {
    let Some(body) = bearer(headers).and_then(|token| token.strip_prefix(KEY_PREFIX)) else { return Ok(None) };
    let key = ProjectKey::parse(body);
    let pepper = app.config.keys.pepper();
    let lookup = key.lookup(pepper);
    let mut conn = app.db.acquire().await?;
    let Some((project, encrypted)) = projects::store::get_replaced(&mut conn, &lookup).await? else { return Ok(None) };
    let owner = Owner { project, encrypted, kek: kek(&key, pepper, project)? };
    Ok(Some(Caller { project, lookup: lookup.into(), is_replaced: true, buffer_turns: None, owner }))
}

async fn verify(app: &App, key: &ProjectKey, lookup: &str) -> Result<Verified> {
    let generation = app.keys.generation();
    let mut conn = app.db.acquire().await?;
    let found = projects::store::get_by_lookup(&mut conn, lookup).await?.ok_or(UNAUTHORIZED)?;
    drop(conn);
    if app.config.keys.argon2 && !app.keys.check_hash(app, key, found.secret_key_hash_phc).await? {
        return Err(UNAUTHORIZED);
    }
    // A value of another type is as if it were not there.
    let buffer_turns = found.buffer_turns.and_then(|turns| turns.as_i64());
    // One of another length fits no key.
    let check = found.seal_check.map(|check| check.try_into().unwrap_or_default());
    let verified = Verified { project: found.id, encrypted: found.encryption_enabled, buffer_turns, check };
    app.keys.remember(lookup, verified, generation);
    Ok(verified)
}

/// What a verified key opens.
#[derive(Clone, Copy)]
struct Verified {
    project: ProjectId,
    encrypted: bool,
    buffer_turns: Option<i64>,
    /// Of the master key that the project's content is sealed with, if any is.
    check: Option<Check>,
}

/// The keys that were verified lately, by their look-up value.
pub struct KeyCache {
    verified: Cache<String, Verified>,
    /// Counts the times something was forgotten: what was read before must not be remembered after.
    generation: AtomicU64,
    /// Each check of a hash takes 16 MiB for some milliseconds.
    hashing: Semaphore,
}

impl Default for KeyCache {
    fn default() -> Self {
        let verified = Cache::builder()
            .max_capacity(100_000)
            .time_to_live(Duration::from_mins(1))
            .support_invalidation_closures()
            .build();
        Self { verified, generation: AtomicU64::new(0), hashing: Semaphore::new(4) }
    }
}

impl KeyCache {
    /// Forgets the keys of one project.
    pub fn forget(&self, project: ProjectId) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        if self.verified.invalidate_entries_if(move |_, verified| verified.project == project).is_err() {
            self.verified.invalidate_all();
        }
    }

    /// Forgets every key: what may have changed was not heard.
    pub fn forget_all(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.verified.invalidate_all();
    }

    fn get(&self, lookup: &str) -> Option<Verified> {
        self.verified.get(lookup)
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    fn remember(&self, lookup: &str, verified: Verified, read_at: u64) {
        if self.generation() == read_at {
            self.verified.insert(lookup.to_owned(), verified);
            // Something was forgotten between the check and the insert.
            if self.generation() != read_at {
                self.verified.invalidate(lookup);
            }
        }
    }

    async fn check_hash(&self, app: &App, key: &ProjectKey, phc: String) -> Result<bool> {
        let _permit = self.hashing.acquire().await.map_err(Error::internal)?;
        let (key, app) = (key.clone(), app.clone());
        tokio::task::spawn_blocking(move || key.matches(app.config.keys.pepper(), &phc)).await.map_err(Error::internal)
    }
}
