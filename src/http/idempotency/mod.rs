//! `Idempotency-Key`: a request that a client repeats takes effect once.
//!
//! A handler that changes something extracts [`Idempotency`], begins its transaction with [`Idempotency::begin`], and commits
//! with [`IdempotentTx::commit`], which takes the response. If the request has a key, this transaction also stores the response.
//! After a crash, either the change and the response are stored, or neither is. If the response is already stored, the client
//! gets it and nothing changes. Without a key, the transaction is an ordinary one. A test checks that every operation that
//! changes something supports the header.
//!
//! A handler begins the transaction before it checks whether the entity exists. Otherwise a repeated deletion would return 404
//! instead of the stored response. A handler that must check first uses [`Idempotency::has_stored_response`].
//!
//! [`fingerprint`] detects a key that is reused for a different request. [`store`] contains the SQL statements.

pub mod context;
pub mod fingerprint;
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
use context::IdempotencyContext;
use fingerprint::{Fingerprint, Hash, RequestHasher};
use store::IdempotencyRecord;

/// The name of the request header.
pub const HEADER: &str = "Idempotency-Key";

/// The maximum length of an idempotency key in bytes.
const MAX_KEY_LEN: usize = 255;
/// The first interval between two checks whether a concurrent request with the same key has finished. Each interval is twice the
/// previous one, up to [`MAX_POLL_INTERVAL`].
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(5);
const MAX_POLL_INTERVAL: Duration = Duration::from_millis(250);
/// The maximum length in bytes of a response that is encrypted or decrypted on the thread that serves the request.
const MAX_INLINE_RESPONSE_BYTES: usize = 256 * 1024;

/// The maximum number of transactions for one request. A request begins another one after a conflict with a concurrent change.
const MAX_TX_ATTEMPTS: usize = 5;

const KEY_IN_USE: &str = "Idempotency-Key: a request with this key is in progress; retry shortly";
const KEY_REUSED: &str = "Idempotency-Key: already used for a different request; use a new key";

/// The extractor of the `Idempotency-Key`. In the arguments of a handler, it must precede the extractor that reads the body.
pub struct Idempotency {
    ctx: RequestContext,
    /// `None` for a request without a key.
    request: Option<Arc<IdempotentRequest>>,
}

/// A request with an idempotency key.
struct IdempotentRequest {
    /// The hash of the project, the method, the path and the key, which identifies the record.
    record_id: Hash,
    /// `None` for a request with the admin token or the root token.
    project: Option<ProjectId>,
    fingerprint: Fingerprint,
    /// Encrypts and decrypts the response.
    cipher: ResponseCipher,
    /// A cipher whose key is also derived from the project's master key. `None` if the request does not provide the master key.
    master_key_cipher: Option<ResponseCipher>,
    is_project_encrypted: bool,
}

impl<S: Send + Sync> FromRequestParts<S> for Idempotency
where
    RequestContext: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        let ctx = RequestContext::from_ref(state);
        let mut keys = parts.headers.get_all(HEADER).iter();
        let Some(key) = keys.next() else { return Ok(Self { ctx, request: None }) };
        let is_valid =
            |key: &&str| (1..=MAX_KEY_LEN).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
        let (Some(key), None) = (key.to_str().ok().filter(is_valid), keys.next()) else {
            let reason = format_args!("must be sent once and consist of 1 to {MAX_KEY_LEN} visible ASCII characters");
            return Err(Error::invalid_field(HEADER, reason));
        };
        let encryption = parts.extensions.get::<ProjectEncryption>();
        let project = encryption.map(|encryption| encryption.project);
        let mut hasher = RequestHasher::default();
        hasher.add(project.as_ref().map_or(&[][..], |project| project.0.as_bytes()));
        for value in [parts.method.as_str(), parts.uri.path(), key] {
            hasher.add(value.as_bytes());
        }
        let record_id = hasher.finish();
        let pepper = &ctx.idempotency.pepper;
        let cipher = ResponseCipher::derive(&record_id, key, pepper, None)?;
        let kek = encryption.and_then(|encryption| encryption.kek.as_ref());
        let master_key_cipher = kek.map(|kek| ResponseCipher::derive(&record_id, key, pepper, Some(kek.master())));
        let master_key_cipher = master_key_cipher.transpose()?;
        let is_project_encrypted = encryption.is_some_and(|encryption| encryption.format.is_encrypted());
        let fingerprint = Fingerprint::from_parts(parts);
        parts.extensions.insert(fingerprint.clone());
        let request =
            IdempotentRequest { record_id, project, fingerprint, cipher, master_key_cipher, is_project_encrypted };
        Ok(Self { ctx, request: Some(Arc::new(request)) })
    }
}

impl Idempotency {
    /// Returns the hash of the project, the method, the path and the key, which identifies requests with the same key. `None` for
    /// a request without a key.
    pub fn request_hash(&self) -> Option<&[u8]> {
        self.request.as_ref().map(|request| &request.record_id[..])
    }

    /// Returns `true` if the request has a key.
    pub fn has_key(&self) -> bool {
        self.request.is_some()
    }

    /// Begins the transaction of the request, whose body must have been read. Waits until no concurrent request uses the key, and
    /// holds no database connection while it waits.
    ///
    /// # Errors
    /// Returns [`HandlerError::Replayed`] if a response is stored, 403 if the master key is required to decrypt it but not
    /// provided, 422 if the key was used for a different request, 409 if a concurrent request with the key takes too long, and
    /// 401 if the project has been deleted.
    pub async fn begin(&self) -> Result<IdempotentTx, HandlerError> {
        self.begin_with_permits(None).await
    }

    /// Begins the transaction like [`Idempotency::begin`]. If there are `permits`, the transaction holds a permit until it ends.
    /// The number of permits limits the number of connections in use.
    async fn begin_with_permits(&self, permits: Option<&Arc<Semaphore>>) -> Result<IdempotentTx, HandlerError> {
        let IdempotencyContext { db, wait_timeout, .. } = &self.ctx.idempotency;
        let deadline = Instant::now() + *wait_timeout;
        let mut interval = MIN_POLL_INTERVAL;
        loop {
            let permit = match permits {
                Some(permits) => Some(Arc::clone(permits).acquire_owned().await.map_err(Error::internal)?),
                None => None,
            };
            let mut tx = db.begin().await?;
            let Some(request) = &self.request else {
                return Ok(IdempotentTx { tx, request: None, _permit: permit });
            };
            if request.try_acquire(&mut tx).await? {
                return Ok(IdempotentTx { tx, request: Some(Arc::clone(request)), _permit: permit });
            }
            let record = store::get(&mut tx, &request.record_id).await?;
            tx.rollback().await?;
            drop(permit);
            if let Some(record) = record {
                return Err(HandlerError::Replayed(request.decrypt_response(record).await?));
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(Error::Conflict(KEY_IN_USE.into()).into());
            }
            tokio::time::sleep_until(deadline.min(now + interval)).await;
            interval = MAX_POLL_INTERVAL.min(interval * 2);
        }
    }

    /// Returns the successive transactions of a request, which begins another one after a conflict with a concurrent change.
    pub fn tx_attempts(&self) -> TxAttempts<'_> {
        TxAttempts { idempotency: self, permits: None, started: 0 }
    }

    /// Begins the transaction of a request that executes a single statement. Without a key, the statement runs in
    /// autocommit mode.
    ///
    /// # Errors
    /// Returns the errors of [`Idempotency::begin`].
    pub async fn begin_autocommit(&self) -> Result<IdempotentTx, HandlerError> {
        if self.request.is_some() {
            return self.begin().await;
        }
        let tx = self.ctx.idempotency.db.begin_autocommit().await?;
        Ok(IdempotentTx { tx, request: None, _permit: None })
    }

    /// Returns the stored response as an error, if there is one. With this check, a handler avoids expensive work before its
    /// transaction. The body must have been read.
    ///
    /// # Errors
    /// Returns [`HandlerError::Replayed`] if a response is stored, 403 if the master key is required to decrypt it but not
    /// provided, and 422 if the key was used for a different request.
    pub async fn replay_if_completed(&self) -> Result<(), HandlerError> {
        let Some(request) = &self.request else { return Ok(()) };
        let mut conn = self.ctx.idempotency.db.acquire().await?;
        let record = store::get(&mut conn, &request.record_id).await?;
        drop(conn);
        match record {
            Some(record) => Err(HandlerError::Replayed(request.decrypt_response(record).await?)),
            None => Ok(()),
        }
    }

    /// Returns `true` if a response is stored. Unlike [`Idempotency::replay_if_completed`], this function can be called before
    /// the body has been read.
    pub async fn has_stored_response(&self, conn: &mut PgConnection) -> Result<bool> {
        match &self.request {
            Some(request) => Ok(store::exists(conn, &request.record_id).await?),
            None => Ok(false),
        }
    }

    /// Stores the response in a transaction of its own, after a long request has committed its changes. If the process dies in
    /// between, the client repeats the request, which must be harmless.
    ///
    /// # Errors
    /// Returns the errors of [`Idempotency::begin`]. If a concurrent request with the same key has already stored its response,
    /// this is [`HandlerError::Replayed`].
    pub async fn store_response<R>(&self, response: ApiResponse<R>) -> CommandResult<R> {
        match &self.request {
            Some(_) => self.begin().await?.commit(response).await,
            None => Ok(response),
        }
    }
}

/// The successive transactions of one request, at most `MAX_TX_ATTEMPTS`. Before the handler begins the next transaction, it
/// must roll the previous one back, which holds the idempotency key.
pub struct TxAttempts<'a> {
    idempotency: &'a Idempotency,
    permits: Option<&'a Arc<Semaphore>>,
    started: usize,
}

impl<'a> TxAttempts<'a> {
    /// Limits the number of concurrent transactions of all requests that have the same `permits`. Each transaction that begins
    /// after this call holds a permit until it ends.
    pub fn limit_concurrency(&mut self, permits: &'a Arc<Semaphore>) {
        self.permits = Some(permits);
    }

    /// Begins the next transaction.
    ///
    /// # Errors
    /// Returns the errors of [`Idempotency::begin`], and 503 if the request has had too many transactions.
    pub async fn begin(&mut self) -> Result<IdempotentTx, HandlerError> {
        if self.started == MAX_TX_ATTEMPTS {
            let msg =
                "conflict with concurrent changes to identical files or to the project's encryption; retry shortly";
            return Err(Error::unavailable(msg).into());
        }
        self.started += 1;
        self.idempotency.begin_with_permits(self.permits).await
    }
}

impl IdempotentRequest {
    /// Tries to acquire the key, see [`store::try_acquire`].
    async fn try_acquire(&self, conn: &mut PgConnection) -> Result<bool> {
        let acquired = store::try_acquire(conn, &self.record_id, self.project, &self.fingerprint.hash()).await;
        // The project may have been deleted after the request was authenticated.
        acquired.map_constraint_err("idempotency_records_project_id_fkey", || UNAUTHORIZED)
    }

    /// Decrypts the stored response.
    ///
    /// # Errors
    /// Returns 422 if the key was used for a different request, and 403 if the master key is required but not provided.
    async fn decrypt_response(self: &Arc<Self>, record: IdempotencyRecord) -> Result<StoredResponse> {
        if record.fingerprint != self.fingerprint.hash() {
            return Err(Error::Unprocessable(KEY_REUSED));
        }
        let status = u16::try_from(record.status).map_err(Error::internal)?;
        let status = StatusCode::from_u16(status).map_err(Error::internal)?;
        let request = Arc::clone(self);
        if record.encrypted_with_master_key && request.master_key_cipher.is_none() {
            return Err(Error::KeyRequired);
        }
        let length = record.encrypted_body.len();
        let decrypt = move || request.cipher(record.encrypted_with_master_key).decrypt(record.encrypted_body);
        let body = run_blocking_if_large(length, decrypt).await?;
        Ok(StoredResponse { status, body: body.into() })
    }

    /// Encrypts and stores the response.
    async fn store_response(self: &Arc<Self>, conn: &mut PgConnection, status: StatusCode, body: &Bytes) -> Result<()> {
        let status = i16::try_from(status.as_u16()).map_err(Error::internal)?;
        let (request, plaintext) = (Arc::clone(self), body.clone());
        let with_master_key = self.is_project_encrypted && self.master_key_cipher.is_some();
        let encrypt = move || request.cipher(with_master_key).encrypt(&plaintext);
        let encrypted = run_blocking_if_large(body.len(), encrypt).await?;
        store::store_response(conn, &self.record_id, status, &encrypted, with_master_key).await?;
        Ok(())
    }

    fn cipher(&self, with_master_key: bool) -> &ResponseCipher {
        self.master_key_cipher.as_ref().filter(|_| with_master_key).unwrap_or(&self.cipher)
    }
}

/// Runs `work` for a body of `length` bytes, on a blocking thread if it is large.
async fn run_blocking_if_large<T: Send + 'static>(
    length: usize,
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> Result<T> {
    if length <= MAX_INLINE_RESPONSE_BYTES {
        return Ok(work()?);
    }
    Ok(tokio::task::spawn_blocking(work).await.map_err(Error::internal)??)
}

/// A transaction that also stores the response if the request has an idempotency key. If it is dropped without a commit, it is
/// rolled back.
pub struct IdempotentTx {
    tx: Tx,
    request: Option<Arc<IdempotentRequest>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl IdempotentTx {
    /// Stores the response in the transaction if the request has a key, and commits. If the data could not be serialized, the
    /// response is an error, and the transaction is rolled back.
    ///
    /// # Errors
    /// Returns an error if the database fails. The transaction may have been committed nevertheless. If the request has a key,
    /// the client can repeat it.
    pub async fn commit<R>(mut self, response: ApiResponse<R>) -> CommandResult<R> {
        if !response.is_success() {
            self.rollback().await?;
            return Ok(response);
        }
        let Some(request) = self.request.take() else {
            self.tx.commit().await?;
            return Ok(response);
        };
        let (status, body, response) = response.into_buffered().await?;
        request.store_response(&mut self.tx, status, &body).await?;
        self.tx.commit().await?;
        Ok(response)
    }

    /// Commits and returns `None` if the request has no key. Otherwise returns the open transaction, which must be committed with
    /// the response. With this function, a handler does not hold the transaction open while it builds a response that will not be
    /// stored.
    ///
    /// # Errors
    /// Returns an error if the database fails.
    pub async fn commit_if_no_key(self) -> Result<Option<Self>> {
        if self.request.is_some() {
            return Ok(Some(self));
        }
        self.tx.commit().await?;
        Ok(None)
    }

    /// Rolls the transaction back, so that the handler can begin another one.
    ///
    /// # Errors
    /// Returns an error if the database fails.
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
