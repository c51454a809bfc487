//! `Idempotency-Key`: a request that a client sends twice acts once.
//!
//! A handler that acts takes [`Once`], begins its transaction with [`Once::begin`] before it looks whether what it is about
//! is there, and ends it with [`Act::commit`], which is handed the answer. With a key the answer is kept in that same
//! transaction, so that whatever crashes, either both are there or neither; a request that finds one gets it and acts no
//! more. Without a key this is a plain transaction. A test wants every acting operation of the API to do so.
//!
//! [`fingerprint`] tells another request with the same key from the same one, [`store`] is the SQL.

pub mod fingerprint;
pub mod store;

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use bytes::Bytes;
use http_body_util::BodyExt;
use sqlx::pool::PoolConnection;
use sqlx::{PgConnection, Postgres, Transaction};
use tokio::time::Instant;

use crate::app::App;
use crate::auth::Caller;
use crate::crypto::AnswerKey;
use crate::error::{Error, OnConstraint, Result, UNAUTHORIZED};
use crate::ids::ProjectId;
use fingerprint::{Fingerprint, Hash, Hasher};
use store::Kept;

pub const HEADER: &str = "Idempotency-Key";

const MAX_KEY: usize = 255;
/// How soon to look again whether a twin has ended; the pause doubles up to the second one.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LAST_PAUSE: Duration = Duration::from_millis(250);
/// Longer answers are sealed and opened where that keeps no request waiting, in bytes.
const LONG: usize = 256 * 1024;

const IN_FLIGHT: &str = "Idempotency-Key: a request with this key is still being worked on; try again in a moment";
const ANOTHER: &str = "Idempotency-Key: was sent with another request before; a new request wants a new key";

/// Sees to it that a request acts once. Comes before the extractor that reads the body.
pub struct Once(Option<Arc<Sent>>);

/// What came with a key.
struct Sent {
    /// Of whose request it is, its method, its path and its key.
    id: Hash,
    /// `None` for the operator.
    project: Option<ProjectId>,
    fingerprint: Fingerprint,
    /// Seals the answer.
    seal: AnswerKey,
    /// Seals it so that the project's own key is needed too, if that is at hand.
    seal_with_key: Option<AnswerKey>,
    /// Whether the project is encrypted.
    encrypted: bool,
}

impl FromRequestParts<App> for Once {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        let mut sent = parts.headers.get_all(HEADER).iter();
        let Some(key) = sent.next() else { return Ok(Self(None)) };
        let fits = |key: &&str| (1..=MAX_KEY).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
        let (Some(key), None) = (key.to_str().ok().filter(fits), sent.next()) else {
            let wrong = format_args!("must be 1 to {MAX_KEY} visible ASCII characters, and stand once");
            return Err(Error::field(HEADER, wrong));
        };
        let owner = parts.extensions.get::<Caller>().map(|caller| &caller.owner);
        let project = owner.map(|owner| owner.project);
        let mut hasher = Hasher::default();
        hasher.add(project.as_ref().map_or(&[][..], |project| project.0.as_bytes()));
        for text in [parts.method.as_str(), parts.uri.path(), key] {
            hasher.add(text.as_bytes());
        }
        let id = hasher.finish();
        let seal = AnswerKey::derive(&id, key, app.config.keys.pepper(), None)?;
        let kek = owner.and_then(|owner| owner.kek.as_ref());
        let with_key = kek.map(|kek| AnswerKey::derive(&id, key, app.config.keys.pepper(), Some(kek.master())));
        let (seal_with_key, encrypted) = (with_key.transpose()?, owner.is_some_and(|owner| owner.encrypted));
        let fingerprint = Fingerprint::of_head(parts);
        parts.extensions.insert(fingerprint.clone());
        Ok(Self(Some(Arc::new(Sent { id, project, fingerprint, seal, seal_with_key, encrypted }))))
    }
}

impl Once {
    /// Whether the request has a key.
    pub fn has_key(&self) -> bool {
        self.0.is_some()
    }

    /// Begins the transaction of the effect, after the body was read. A twin in flight is waited for, without a connection.
    ///
    /// # Errors
    /// [`Error::Replay`] if the request was answered before, 422 if another one was, 409 if a twin takes too long.
    pub async fn begin(&self, app: &App) -> Result<Act> {
        let Some(sent) = &self.0 else {
            return Ok(Act { held: Held::Transaction(app.begin().await?), sent: None });
        };
        let deadline = Instant::now() + app.config.limits.idempotency_wait;
        let mut pause = FIRST_PAUSE;
        loop {
            let mut tx = app.begin().await?;
            if sent.take(&mut tx).await? {
                return Ok(Act { held: Held::Transaction(tx), sent: Some(Arc::clone(sent)) });
            }
            let kept = store::get(&mut tx, &sent.id).await?;
            tx.rollback().await?;
            if let Some(kept) = kept {
                return Err(sent.replay(kept).await?);
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(Error::Conflict(IN_FLIGHT.into()));
            }
            tokio::time::sleep_until(deadline.min(now + pause)).await;
            pause = LAST_PAUSE.min(pause * 2);
        }
    }

    /// As [`Once::begin`], for an effect of one statement: without a key it needs no transaction around it.
    ///
    /// # Errors
    /// As for [`Once::begin`].
    pub async fn begin_statement(&self, app: &App) -> Result<Act> {
        match &self.0 {
            Some(_) => self.begin(app).await,
            None => Ok(Act { held: Held::Connection(app.db.acquire().await?), sent: None }),
        }
    }

    /// Ends the request here if it was answered before: for where much is done before the transaction begins. After the body
    /// was read.
    ///
    /// # Errors
    /// [`Error::Replay`], or 422 if it was another request.
    pub async fn look(&self, app: &App) -> Result<()> {
        let Some(sent) = &self.0 else { return Ok(()) };
        let mut conn = app.db.acquire().await?;
        let kept = store::get(&mut conn, &sent.id).await?;
        drop(conn);
        match kept {
            Some(kept) => Err(sent.replay(kept).await?),
            None => Ok(()),
        }
    }

    /// Whether an answer is kept, for where the body has not been read yet.
    pub async fn is_answered(&self, conn: &mut PgConnection) -> Result<bool> {
        match &self.0 {
            Some(sent) => Ok(store::exists(conn, &sent.id).await?),
            None => Ok(false),
        }
    }

    /// Keeps the answer to a request that takes long and may act again without harm, after the effect. A twin that was
    /// faster has the say.
    ///
    /// # Errors
    /// As for [`Once::begin`].
    pub async fn keep(&self, app: &App, answer: Response) -> Result<Response> {
        match &self.0 {
            Some(_) => self.begin(app).await?.commit(answer).await,
            None => Ok(answer),
        }
    }
}

impl Sent {
    async fn take(&self, conn: &mut PgConnection) -> Result<bool> {
        let taken = store::take(conn, &self.id, self.project, &self.fingerprint.hash()).await;
        // The project may be deleted just now.
        taken.on_constraint("kept_answers_project_id_fkey", || UNAUTHORIZED)
    }

    async fn replay(self: &Arc<Self>, kept: Kept) -> Result<Error> {
        if kept.fingerprint != self.fingerprint.hash() {
            return Ok(Error::Unprocessable(ANOTHER));
        }
        let status = u16::try_from(kept.status).map_err(Error::internal)?;
        let status = StatusCode::from_u16(status).map_err(Error::internal)?;
        let sent = Arc::clone(self);
        if kept.with_key && sent.seal_with_key.is_none() {
            return Err(Error::KeyRequired);
        }
        let body = aside(kept.body.len(), move || sent.seal(kept.with_key).open(kept.body)).await?;
        Ok(Error::Replay { status, body: body.into() })
    }

    async fn keep(self: &Arc<Self>, conn: &mut PgConnection, status: StatusCode, body: &Bytes) -> Result<()> {
        let status = i16::try_from(status.as_u16()).map_err(Error::internal)?;
        let (sent, plain) = (Arc::clone(self), body.clone());
        let with_key = self.encrypted && self.seal_with_key.is_some();
        let sealed = aside(body.len(), move || sent.seal(with_key).seal(&plain)).await?;
        store::keep(conn, &self.id, status, &sealed, with_key).await?;
        Ok(())
    }

    fn seal(&self, with_key: bool) -> &AnswerKey {
        self.seal_with_key.as_ref().filter(|_| with_key).unwrap_or(&self.seal)
    }
}

async fn aside<T: Send + 'static>(
    length: usize,
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> Result<T> {
    if length <= LONG {
        return Ok(work()?);
    }
    Ok(tokio::task::spawn_blocking(work).await.map_err(Error::internal)??)
}

/// The transaction of an effect, and of its answer if the request has a key. Dropped, it is rolled back.
pub struct Act {
    held: Held,
    sent: Option<Arc<Sent>>,
}

enum Held {
    Transaction(Transaction<'static, Postgres>),
    /// Each statement is a transaction of its own.
    Connection(PoolConnection<Postgres>),
}

impl Act {
    /// Commits the effect together with its answer. An answer that is no success commits nothing.
    ///
    /// # Errors
    /// The database fails; as at every commit, nobody knows then whether it was done. The client asks again with its key.
    pub async fn commit(mut self, answer: Response) -> Result<Response> {
        if !answer.status().is_success() {
            self.rollback().await?;
            return Ok(answer);
        }
        let Some(sent) = self.sent.take() else {
            self.end().await?;
            return Ok(answer);
        };
        let (parts, body) = answer.into_parts();
        // It lies in memory.
        let body = body.collect().await.map_err(Error::internal)?.to_bytes();
        sent.keep(&mut self, parts.status, &body).await?;
        self.end().await?;
        Ok(Response::from_parts(parts, Body::from(body)))
    }

    /// Commits now if the request has no key, for where making the answer takes long; else the answer comes first.
    pub async fn commit_without_key(self) -> Result<Option<Self>> {
        if self.sent.is_some() {
            return Ok(Some(self));
        }
        self.end().await?;
        Ok(None)
    }

    /// Ends it without an effect, so that it can be begun again.
    pub async fn rollback(self) -> Result<()> {
        match self.held {
            Held::Transaction(tx) => Ok(tx.rollback().await?),
            Held::Connection(_) => Ok(()),
        }
    }

    async fn end(self) -> Result<()> {
        match self.held {
            Held::Transaction(tx) => Ok(tx.commit().await?),
            Held::Connection(_) => Ok(()),
        }
    }
}

impl Deref for Act {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        match &self.held {
            Held::Transaction(tx) => tx,
            Held::Connection(conn) => conn,
        }
    }
}

impl DerefMut for Act {
    fn deref_mut(&mut self) -> &mut PgConnection {
        match &mut self.held {
            Held::Transaction(tx) => tx,
            Held::Connection(conn) => conn,
        }
    }
}
