//! Stores messages many at a time: one task with one connection takes whatever waits, commits it together, and only then
//! answers. There is no timer: while one commit is on its way to the disk, the next batch gathers.
//!
//! A batch that is refused is done again one by one, so that a bad message fails alone. If the connection is lost while a
//! commit is under way, the messages are looked for by their ids on a new one: what is found is stored.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::new_message::{InsertedMessage, NewMessage};
use super::store::{self, Buffer};
use crate::db::pooler::PoolerCheck;
use crate::error::{Error, Result, is_transient};
use crate::messages::Messages;

/// How many messages are committed together at most.
const BATCH: usize = 256;
/// How many may wait; more stand in line before the queue.
const WAITING: usize = 1024;
/// Larger ones are stored on a connection of their own, so that small ones need not wait for them, in bytes.
pub const LARGE: usize = 256 * 1024;
/// How long one try may take. A batch takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// The connection is verified when the last time is longer ago than this.
const VERIFY_EVERY: Duration = Duration::from_secs(1);

/// Each batch is planned alike, because it is looked up by ids; a locked session is not waited for.
const SETTINGS: &[(&str, &str)] = &[("plan_cache_mode", "force_generic_plan"), ("lock_timeout", "5s")];
/// How often a batch is tried while the database comes and goes.
const TRIES: usize = 3;

type Answer = Result<Option<InsertedMessage>>;

struct Waiting {
    message: NewMessage,
    answer: oneshot::Sender<Answer>,
}

/// The way to the task that stores messages.
pub struct Writer {
    queue: Mutex<Option<mpsc::Sender<Waiting>>>,
    /// The task's end of it, until [`run`] takes it.
    inbox: Mutex<Option<mpsc::Receiver<Waiting>>>,
}

impl Default for Writer {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        Self { queue: Mutex::new(Some(sender)), inbox: Mutex::new(Some(receiver)) }
    }
}

impl Writer {
    /// Stores a message. When this answers, it is on disk. `None` if the project has no such session or wants its content in
    /// another form, or another transaction holds one of them: nobody else shall wait for that.
    ///
    /// # Errors
    /// 503 if the database does not answer; the message may be stored or not.
    pub async fn store(&self, message: NewMessage) -> Answer {
        let gone = || Error::unavailable("the server is stopping; try again in a moment");
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(gone)?;
        let (answer, answered) = oneshot::channel();
        queue.send(Waiting { message, answer }).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// Nothing more will come; the task ends when it has stored what waits.
    pub fn close(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Stores what comes until the queue is closed, or this is dropped. It is done once in a process; a second call ends at once.
///
/// It has a thread of its own: the next batch must not wait until all who were answered have had their turn.
///
/// # Errors
/// There is no thread to be had, or it has panicked.
pub async fn run(ctx: Messages) -> anyhow::Result<()> {
    let inbox = ctx.writer.inbox.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(inbox) = inbox else { return Ok(()) };
    let cut_off = CancellationToken::new();
    let _cut_off_when_dropped = cut_off.clone().drop_guard();
    let (done, ended) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("message-writer".into()).spawn(move || {
        runtime.block_on(cut_off.run_until_cancelled(serve(ctx, inbox)));
        // Nobody listens any more if this was cut off.
        let _ = done.send(());
    })?;
    ended.await.context("it panicked")
}

async fn serve(ctx: Messages, mut inbox: mpsc::Receiver<Waiting>) {
    let mut line = Line {
        options: ctx.db.connect_options().as_ref().clone(),
        pooler: ctx.db.pooler().clone(),
        buffer: (&ctx.config.learning).into(),
        verified: Instant::now(),
        conn: None,
    };
    let mut batch = Vec::new();
    while inbox.recv_many(&mut batch, BATCH).await > 0 {
        set_apart(&mut batch);
        let (messages, answers): (Vec<_>, Vec<_>) = batch.drain(..).map(|one| (one.message, one.answer)).unzip();
        let outcomes = line.store(&messages).await;
        for (answer, outcome) in answers.into_iter().zip(outcomes) {
            // A request that was cut off meanwhile hears nothing any more.
            let _ = answer.send(outcome);
        }
    }
}

/// While a project's storage format changes, some of its messages come in the old one and some in the new one. A batch contains those of
/// one format only; the others are stored in transactions of their own.
fn set_apart(batch: &mut Vec<Waiting>) {
    let mut formats = HashMap::new();
    for other in batch.extract_if(.., |one| {
        let format = one.message.storage_format();
        *formats.entry(one.message.project.0).or_insert(format) != format
    }) {
        // It may have been cut off meanwhile.
        let _ = other.answer.send(Ok(None));
    }
}

/// The connection, made anew when it is lost.
struct Line {
    options: PgConnectOptions,
    pooler: PoolerCheck,
    buffer: Buffer,
    verified: Instant,
    conn: Option<PgConnection>,
}

impl Line {
    async fn store(&mut self, messages: &[NewMessage]) -> Vec<Answer> {
        match self.try_store(messages).await {
            Ok(stored) => stored.into_iter().map(Ok).collect(),
            Err(err) if messages.len() == 1 || is_transient(&err) => {
                let mut first = Some(err);
                messages.iter().map(|_| Err(first.take().map_or_else(outage, Error::from))).collect()
            }
            Err(_) => {
                let mut outcomes = Vec::with_capacity(messages.len());
                for message in messages {
                    let one = self.try_store(std::slice::from_ref(message)).await;
                    outcomes.push(one.map(|mut one| one.pop().flatten()).map_err(Error::from));
                }
                outcomes
            }
        }
    }

    /// Stores all of them or none. After a lost connection it first looks for what is there already.
    async fn try_store(&mut self, messages: &[NewMessage]) -> sqlx::Result<Vec<Option<InsertedMessage>>> {
        let mut unsure = false;
        let mut tries = 0;
        loop {
            tries += 1;
            // A silent network must not keep all who wait for good.
            let attempt = tokio::time::timeout(PATIENCE, self.attempt(messages, unsure)).await;
            match attempt.unwrap_or_else(|_| Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into()))) {
                Err(err) if is_transient(&err) && tries < TRIES => {
                    unsure = true;
                    self.conn = None;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(err) => {
                    self.conn = self.conn.take().filter(|_| !is_transient(&err));
                    return Err(err);
                }
                done => return done,
            }
        }
    }

    async fn attempt(&mut self, messages: &[NewMessage], unsure: bool) -> sqlx::Result<Vec<Option<InsertedMessage>>> {
        let mut conn = self.conn.take();
        if let Some(unverified) = &mut conn
            && self.verified.elapsed() > VERIFY_EVERY
        {
            match self.pooler.verify(unverified).await {
                Ok(()) => self.verified = Instant::now(),
                Err(error @ sqlx::Error::PoolClosed) => return Err(error),
                // It was lost while it was idle.
                Err(_) => conn = None,
            }
        }
        let conn = if let Some(conn) = conn {
            self.conn.insert(conn)
        } else {
            let conn = self.pooler.connect(&self.options, SETTINGS).await?;
            self.verified = Instant::now();
            self.conn.insert(conn)
        };
        if unsure {
            let ids: Vec<_> = messages.iter().map(|message| message.id).collect();
            let found = store::find_inserted(conn, &ids).await?;
            if found.iter().any(Option::is_some) {
                return Ok(found);
            }
        }
        store::insert_or_find(conn, messages, self.buffer).await
    }
}

fn outage() -> Error {
    Error::unavailable("the database does not answer; try again in a moment")
}
