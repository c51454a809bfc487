//! The message writer commits messages in batches. One thread with one connection takes the queued messages, commits them
//! together, and then reports the results. There is no timer: the messages that arrive during a commit become the next batch.
//!
//! If Postgres rejects a batch, its messages are stored one by one, so that an invalid message fails alone. If the connection is
//! lost during a commit, the messages are looked up by id on a new connection, because the commit may have succeeded.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::new_message::{InsertedMessage, NewMessage};
use super::store::{self, ObservationBuffer};
use crate::db::job_waker::JobWaker;
use crate::db::pooler::{PoolerCheck, no_response_error};
use crate::error::{Error, Result, is_transient};
use crate::messages::Messages;

/// Maximum number of messages in a batch.
const MAX_BATCH_MESSAGES: usize = 256;
/// Maximum number of queued messages; further requests wait until there is room in the queue.
const QUEUE_CAPACITY: usize = 1024;
/// Maximum size of a message that may be stored in a batch, in bytes. Larger messages use other connections, so that they do not
/// delay small ones.
pub const MAX_BATCHED_MESSAGE_BYTES: usize = 256 * 1024;
/// Timeout of one attempt to store a batch. An attempt usually takes milliseconds.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum age of the last verification of the connection. If it is older, the connection is verified before use.
const VERIFY_INTERVAL: Duration = Duration::from_secs(1);

/// Settings of the connection. A generic plan suits every batch, because rows are looked up by id. The lock timeout bounds the
/// wait for rows of `jobs`; locked sessions are skipped.
const CONNECTION_SETTINGS: &[(&str, &str)] = &[("plan_cache_mode", "force_generic_plan"), ("lock_timeout", "5s")];
/// Maximum number of attempts to store a batch if the database fails transiently.
const MAX_ATTEMPTS: usize = 3;

/// The result for one message; see [`MessageWriter::store`].
type WriteResult = Result<Option<InsertedMessage>>;

struct QueuedMessage {
    message: NewMessage,
    result_tx: oneshot::Sender<WriteResult>,
}

/// The handle of the message writer.
pub struct MessageWriter {
    /// `None` after [`MessageWriter::close`].
    queue_tx: Mutex<Option<mpsc::Sender<QueuedMessage>>>,
    /// `None` after [`run`] has taken it.
    queue_rx: Mutex<Option<mpsc::Receiver<QueuedMessage>>>,
}

impl Default for MessageWriter {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE_CAPACITY);
        Self { queue_tx: Mutex::new(Some(sender)), queue_rx: Mutex::new(Some(receiver)) }
    }
}

impl MessageWriter {
    /// Stores a message, and returns after it is committed to disk. Returns `None`, and stores nothing, if the project has no
    /// such session, if the project's storage format is not that of the message, or if another transaction has locked the session
    /// or the format. The writer does not wait for these locks, because that would delay all other messages.
    ///
    /// # Errors
    /// Returns 503 if the database is unavailable or the server is shutting down. The message may be stored nevertheless.
    pub async fn store(&self, message: NewMessage) -> WriteResult {
        let closed = || Error::unavailable("the server is shutting down; retry shortly");
        let queue = self.queue_tx.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(closed)?;
        let (result_tx, result_rx) = oneshot::channel();
        queue.send(QueuedMessage { message, result_tx }).await.map_err(|_| closed())?;
        result_rx.await.map_err(|_| closed())?
    }

    /// Closes the queue. The writer stores the queued messages and ends.
    pub fn close(&self) {
        self.queue_tx.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Runs the message writer until the queue is closed or the returned future is dropped. A second call for the same queue returns
/// immediately.
///
/// The writer runs on a thread of its own, so that the requests it has just completed do not delay the next batch.
///
/// # Errors
/// Returns an error if the thread cannot be created or has panicked.
pub async fn run(ctx: Messages) -> anyhow::Result<()> {
    let queue = ctx.writer.queue_rx.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(queue) = queue else { return Ok(()) };
    let abort = CancellationToken::new();
    let _abort_on_drop = abort.clone().drop_guard();
    let (done_tx, done_rx) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("message-writer".into()).spawn(move || {
        runtime.block_on(abort.run_until_cancelled(write_batches(ctx, queue)));
        // The receiver is gone if the writer was aborted.
        let _ = done_tx.send(());
    })?;
    done_rx.await.context("the message writer panicked")
}

async fn write_batches(ctx: Messages, mut queue: mpsc::Receiver<QueuedMessage>) {
    let mut conn = WriterConnection {
        options: ctx.db.connect_options().as_ref().clone(),
        pooler_check: ctx.db.pooler_check().clone(),
        job_waker: Arc::clone(ctx.db.job_waker()),
        buffer: (&ctx.config.learning).into(),
        verified_at: Instant::now(),
        conn: None,
    };
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, MAX_BATCH_MESSAGES).await > 0 {
        reject_mixed_formats(&mut batch);
        let (messages, senders): (Vec<_>, Vec<_>) =
            batch.drain(..).map(|queued| (queued.message, queued.result_tx)).unzip();
        let results = conn.store(&messages).await;
        for (result_tx, result) in senders.into_iter().zip(results) {
            // The request may have been aborted in the meantime.
            let _ = result_tx.send(result);
        }
    }
}

/// Removes the messages whose storage format differs from that of their project's first message in the batch. While the format
/// changes, both formats can occur. The rejected messages are then stored in separate transactions.
fn reject_mixed_formats(batch: &mut Vec<QueuedMessage>) {
    let mut formats = HashMap::new();
    for rejected in batch.extract_if(.., |queued| {
        let format = queued.message.storage_format();
        *formats.entry(queued.message.project.0).or_insert(format) != format
    }) {
        // The request may have been aborted in the meantime.
        let _ = rejected.result_tx.send(Ok(None));
    }
}

/// The writer's connection, which is reopened after it was lost.
struct WriterConnection {
    options: PgConnectOptions,
    pooler_check: PoolerCheck,
    job_waker: Arc<JobWaker>,
    buffer: ObservationBuffer,
    verified_at: Instant,
    conn: Option<PgConnection>,
}

impl WriterConnection {
    async fn store(&mut self, messages: &[NewMessage]) -> Vec<WriteResult> {
        match self.try_store(messages).await {
            Ok(inserted) => inserted.into_iter().map(Ok).collect(),
            Err(err) if messages.len() == 1 || is_transient(&err) => {
                let mut first = Some(err);
                messages.iter().map(|_| Err(first.take().map_or_else(database_unavailable, Error::from))).collect()
            }
            Err(_) => {
                let mut results = Vec::with_capacity(messages.len());
                for message in messages {
                    let inserted = self.try_store(std::slice::from_ref(message)).await;
                    results.push(inserted.map(|mut inserted| inserted.pop().flatten()).map_err(Error::from));
                }
                results
            }
        }
    }

    /// Stores the messages in one statement. Retries transient errors; a retry first looks up which messages are stored already.
    async fn try_store(&mut self, messages: &[NewMessage]) -> sqlx::Result<Vec<Option<InsertedMessage>>> {
        let mut may_be_committed = false;
        let mut attempts = 0;
        loop {
            attempts += 1;
            // Without the timeout, a network that drops packets would block all messages.
            let attempt = tokio::time::timeout(WRITE_TIMEOUT, self.store_once(messages, may_be_committed)).await;
            match attempt.unwrap_or_else(|_| Err(no_response_error())) {
                Err(err) if is_transient(&err) && attempts < MAX_ATTEMPTS => {
                    may_be_committed = true;
                    self.conn = None;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(err) => {
                    self.conn = self.conn.take().filter(|_| !is_transient(&err));
                    return Err(err);
                }
                result => return result,
            }
        }
    }

    async fn store_once(
        &mut self,
        messages: &[NewMessage],
        may_be_committed: bool,
    ) -> sqlx::Result<Vec<Option<InsertedMessage>>> {
        let mut conn = self.conn.take();
        if let Some(unverified) = &mut conn
            && self.verified_at.elapsed() > VERIFY_INTERVAL
        {
            match self.pooler_check.verify(unverified).await {
                Ok(()) => self.verified_at = Instant::now(),
                // The check has detected a pooler that shares server sessions. No more statements may be executed.
                Err(err @ sqlx::Error::PoolClosed) => return Err(err),
                // The connection was lost while it was idle.
                Err(_) => conn = None,
            }
        }
        let conn = if let Some(conn) = conn {
            self.conn.insert(conn)
        } else {
            let conn = self.pooler_check.connect(&self.options, CONNECTION_SETTINGS).await?;
            self.verified_at = Instant::now();
            self.conn.insert(conn)
        };
        if may_be_committed {
            let ids: Vec<_> = messages.iter().map(|message| message.id).collect();
            let found = store::find_inserted(conn, &ids).await?;
            if found.iter().any(Option::is_some) {
                return Ok(found);
            }
        }
        let inserted = store::insert_or_find(conn, messages, self.buffer).await?;
        // The statement is committed.
        if inserted.iter().flatten().any(|message| message.is_job_due) {
            self.job_waker.wake_all();
        }
        Ok(inserted)
    }
}

fn database_unavailable() -> Error {
    Error::unavailable("the database is unavailable; retry shortly")
}
