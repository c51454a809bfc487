//! `Idempotency-Key`: a request that a client sends twice takes effect once.
//!
//! A handler that changes something takes [`Idempotency`], begins its transaction with [`Idempotency::begin`] before it checks whether
//! what it changes exists, and ends it with [`IdempotentTx::commit`], which is given the response. With a key the response is stored
//! in that same transaction, so that after a crash either both are there or neither; a request that finds a stored response returns
//! it and changes nothing. Without a key this is a plain transaction. A test requires this of every operation that changes something.
//!
//! [`fingerprint`] tells another request with the same key from the same one, [`store`] is the SQL.

pub mod fingerprint;
pub mod settings;
pub mod store;

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRef, FromRequestParts};
use axum::http::StatusCode;
use axum::http::request::Parts;
use bytes::Bytes;
use sqlx::PgConnection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::context::RequestContext;
use super::response::{ApiResponse, CommandResult, HandlerError, StoredResponse};
use crate::crypto::ResponseCipher;
use crate::db::Tx;
use crate::encryption::ProjectEncryption;
use crate::error::{Error, MapConstraint, Result, UNAUTHORIZED};
use crate::ids::ProjectId;
use fingerprint::{Fingerprint, Hash, Hasher};
use settings::IdempotencySettings;
use store::IdempotencyRecord;

pub const HEADER: &str = "Idempotency-Key";

const MAX_KEY: usize = 255;
/// How soon to check again whether a concurrent request with the same key has ended; the delay doubles up to the second one.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LAST_PAUSE: Duration = Duration::from_millis(250);
/// Longer answers are sealed and opened where that keeps no request waiting, in bytes.
const LONG: usize = 256 * 1024;

/// How often an effect is tried that concurrent requests force to start again.
const MAX_ATTEMPTS: usize = 5;

const IN_FLIGHT: &str = "Idempotency-Key: a request with this key is still being worked on; try again in a moment";
const ANOTHER: &str = "Idempotency-Key: was sent with another request before; a new request wants a new key";

/// Ensures that a request takes effect once. Comes before the extractor that reads the body.
pub struct Idempotency {
    context: RequestContext,
    /// `None` for a request without a key.
    request: Option<Arc<IdempotentRequest>>,
}

/// What came with a key.
struct IdempotentRequest {
    /// Of whose request it is, its method, its path and its key.
    id: Hash,
    /// `None` for the operator.
    project: Option<ProjectId>,
    fingerprint: Fingerprint,
    /// Seals the answer.
    seal: ResponseCipher,
    /// Seals it so that the project's own key is needed too, if that is at hand.
    seal_with_key: Option<ResponseCipher>,
    /// Whether the project is encrypted.
    encrypted: bool,
}

impl<S: Send + Sync> FromRequestParts<S> for Idempotency
where
    RequestContext: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        let context = RequestContext::from_ref(state);
        let mut sent = parts.headers.get_all(HEADER).iter();
        let Some(key) = sent.next() else { return Ok(Self { context, request: None }) };
        let fits = |key: &&str| (1..=MAX_KEY).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
        let (Some(key), None) = (key.to_str().ok().filter(fits), sent.next()) else {
            let wrong = format_args!("must be 1 to {MAX_KEY} visible ASCII characters, and stand once");
            return Err(Error::invalid_field(HEADER, wrong));
        };
        let encryption = parts.extensions.get::<ProjectEncryption>();
        let project = encryption.map(|encryption| encryption.project);
        let mut hasher = Hasher::default();
        hasher.add(project.as_ref().map_or(&[][..], |project| project.0.as_bytes()));
        for text in [parts.method.as_str(), parts.uri.path(), key] {
            hasher.add(text.as_bytes());
        }
        let id = hasher.finish();
        let pepper = &context.idempotency.pepper;
        let seal = ResponseCipher::derive(&id, key, pepper, None)?;
        let kek = encryption.and_then(|encryption| encryption.kek.as_ref());
        let with_key = kek.map(|kek| ResponseCipher::derive(&id, key, pepper, Some(kek.master())));
        let (seal_with_key, encrypted) =
            (with_key.transpose()?, encryption.is_some_and(|encryption| encryption.format.is_encrypted()));
        let fingerprint = Fingerprint::of_head(parts);
        parts.extensions.insert(fingerprint.clone());
        let request = IdempotentRequest { id, project, fingerprint, seal, seal_with_key, encrypted };
        Ok(Self { context, request: Some(Arc::new(request)) })
    }
}

impl Idempotency {
    /// Whether the request has a key.
    pub fn has_key(&self) -> bool {
        self.request.is_some()
    }

    /// Begins the transaction of the effect, after the body was read. Waits for a concurrent request with the same key, without
    /// holding a connection.
    ///
    /// # Errors
    /// [`HandlerError::Replayed`] if a response is stored, 422 if it is that of another request, 409 if a concurrent request takes too long.
    pub async fn begin(&self) -> Result<IdempotentTx, HandlerError> {
        self.begin_within(None).await
    }

    /// As [`Idempotency::begin`]; the connection is used only together with one of these permits.
    async fn begin_within(&self, permits: Option<&Arc<Semaphore>>) -> Result<IdempotentTx, HandlerError> {
        let IdempotencySettings { db, wait, .. } = &self.context.idempotency;
        let deadline = Instant::now() + *wait;
        let mut pause = FIRST_PAUSE;
        loop {
            let permit = match permits {
                Some(permits) => Some(Arc::clone(permits).acquire_owned().await.map_err(Error::internal)?),
                None => None,
            };
            let mut tx = db.begin().await?;
            let Some(request) = &self.request else {
                return Ok(IdempotentTx { tx, request: None, _permit: permit });
            };
            if request.take(&mut tx).await? {
                return Ok(IdempotentTx { tx, request: Some(Arc::clone(request)), _permit: permit });
            }
            let record = store::get(&mut tx, &request.id).await?;
            tx.rollback().await?;
            drop(permit);
            if let Some(record) = record {
                return Err(HandlerError::Replayed(request.open_record(record).await?));
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(Error::Conflict(IN_FLIGHT.into()).into());
            }
            tokio::time::sleep_until(deadline.min(now + pause)).await;
            pause = LAST_PAUSE.min(pause * 2);
        }
    }

    /// Returns the attempts of an effect that concurrent requests can force to start again.
    pub fn attempts(&self) -> Attempts<'_> {
        Attempts { idempotency: self, permits: None, begun: 0 }
    }

    /// As [`Idempotency::begin`], for an effect of one statement: without a key it needs no transaction around it.
    ///
    /// # Errors
    /// As for [`Idempotency::begin`].
    pub async fn begin_statement(&self) -> Result<IdempotentTx, HandlerError> {
        if self.request.is_some() {
            return self.begin().await;
        }
        let tx = self.context.idempotency.db.begin_statement().await?;
        Ok(IdempotentTx { tx, request: None, _permit: None })
    }

    /// Ends the request here if its response is stored: for handlers that do much before the transaction begins. Comes after the
    /// body was read.
    ///
    /// # Errors
    /// [`HandlerError::Replayed`], or 422 if it was another request.
    pub async fn replay_if_completed(&self) -> Result<(), HandlerError> {
        let Some(request) = &self.request else { return Ok(()) };
        let mut conn = self.context.idempotency.db.acquire().await?;
        let record = store::get(&mut conn, &request.id).await?;
        drop(conn);
        match record {
            Some(record) => Err(HandlerError::Replayed(request.open_record(record).await?)),
            None => Ok(()),
        }
    }

    /// Returns `true` if a response is stored, for handlers that have not read the body yet.
    pub async fn has_stored_response(&self, conn: &mut PgConnection) -> Result<bool> {
        match &self.request {
            Some(request) => Ok(store::exists(conn, &request.id).await?),
            None => Ok(false),
        }
    }

    /// Stores the response of a request that takes long and can be repeated without harm, after its effect. If a concurrent request
    /// with the same key was faster, its response counts.
    ///
    /// # Errors
    /// As for [`Idempotency::begin`].
    pub async fn store_response<R>(&self, response: ApiResponse<R>) -> CommandResult<R> {
        match &self.request {
            Some(_) => self.begin().await?.commit(response).await,
            None => Ok(response),
        }
    }
}

/// A bounded number of transactions for one effect. The handler rolls one back to begin the next.
pub struct Attempts<'a> {
    idempotency: &'a Idempotency,
    permits: Option<&'a Arc<Semaphore>>,
    begun: usize,
}

impl<'a> Attempts<'a> {
    /// Limits how many transactions like the next ones are open at a time: each holds a permit until it ends.
    pub fn limit(&mut self, permits: &'a Arc<Semaphore>) {
        self.permits = Some(permits);
    }

    /// Begins the transaction of the next attempt.
    ///
    /// # Errors
    /// As for [`Idempotency::begin`], and 503 if there were too many attempts.
    pub async fn begin(&mut self) -> Result<IdempotentTx, HandlerError> {
        if self.begun == MAX_ATTEMPTS {
            let msg = "concurrent requests store and delete equal content, or change the project's encryption; try again in a moment";
            return Err(Error::unavailable(msg).into());
        }
        self.begun += 1;
        self.idempotency.begin_within(self.permits).await
    }
}

impl IdempotentRequest {
    async fn take(&self, conn: &mut PgConnection) -> Result<bool> {
        let taken = store::take(conn, &self.id, self.project, &self.fingerprint.hash()).await;
        // The project may be deleted just now.
        taken.map_constraint_err("idempotency_records_project_id_fkey", || UNAUTHORIZED)
    }

    /// Decrypts the response of a completed request, which must be this one.
    async fn open_record(self: &Arc<Self>, record: IdempotencyRecord) -> Result<StoredResponse> {
        if record.fingerprint != self.fingerprint.hash() {
            return Err(Error::Unprocessable(ANOTHER));
        }
        let status = u16::try_from(record.status).map_err(Error::internal)?;
        let status = StatusCode::from_u16(status).map_err(Error::internal)?;
        let request = Arc::clone(self);
        if record.encrypted_with_master_key && request.seal_with_key.is_none() {
            return Err(Error::KeyRequired);
        }
        let body =
            aside(record.body.len(), move || request.seal(record.encrypted_with_master_key).open(record.body)).await?;
        Ok(StoredResponse { status, body: body.into() })
    }

    async fn keep(self: &Arc<Self>, conn: &mut PgConnection, status: StatusCode, body: &Bytes) -> Result<()> {
        let status = i16::try_from(status.as_u16()).map_err(Error::internal)?;
        let (request, plain) = (Arc::clone(self), body.clone());
        let with_key = self.encrypted && self.seal_with_key.is_some();
        let sealed = aside(body.len(), move || request.seal(with_key).seal(&plain)).await?;
        store::keep(conn, &self.id, status, &sealed, with_key).await?;
        Ok(())
    }

    fn seal(&self, with_key: bool) -> &ResponseCipher {
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

/// The transaction of an effect, and of its response if the request has a key. Dropped, it is rolled back.
pub struct IdempotentTx {
    tx: Tx,
    request: Option<Arc<IdempotentRequest>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl IdempotentTx {
    /// Commits the effect together with its response. A response that could not be written, and is an error for that reason, commits
    /// nothing.
    ///
    /// # Errors
    /// The database fails; as at every commit, nobody knows then whether it was done. The client sends the request again with its key.
    pub async fn commit<R>(mut self, response: ApiResponse<R>) -> CommandResult<R> {
        if !response.is_success() {
            self.rollback().await?;
            return Ok(response);
        }
        let Some(request) = self.request.take() else {
            self.tx.commit().await?;
            return Ok(response);
        };
        let (status, body, response) = response.into_bytes().await?;
        request.keep(&mut self.tx, status, &body).await?;
        self.tx.commit().await?;
        Ok(response)
    }

    /// Commits now if the request has no key, for where making the response takes long; otherwise the response comes first.
    ///
    /// # Errors
    /// The database fails.
    pub async fn commit_if_unkeyed(self) -> Result<Option<Self>> {
        if self.request.is_some() {
            return Ok(Some(self));
        }
        self.tx.commit().await?;
        Ok(None)
    }

    /// Ends it without an effect, so that it can be begun again.
    ///
    /// # Errors
    /// The database fails.
    pub async fn rollback(self) -> Result<()> {
        Ok(self.tx.rollback().await?)
    }
}

impl Deref for IdempotentTx {
    type Target = Tx;

    fn deref(&self) -> &Tx {
        &self.tx
    }
}

impl DerefMut for IdempotentTx {
    fn deref_mut(&mut self) -> &mut Tx {
        &mut self.tx
    }
}
