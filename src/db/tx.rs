//! Transactions that wake the job runners when they are committed.

use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sqlx::pool::PoolConnection;
use sqlx::{PgConnection, Postgres, Transaction};
use tokio::runtime::Handle;

use super::Db;
use super::job_waker::JobWaker;

/// A transaction that is rolled back when it is dropped. `JobQueue::enqueue` requires a `Tx`, whose commit wakes the job runners.
/// So its callers cannot forget to wake them, or wake them before the job is visible.
pub struct Tx {
    inner: TxInner,
    job_waker: Arc<JobWaker>,
    wakes_runners: bool,
}

enum TxInner {
    Transaction(Transaction<'static, Postgres>),
    /// A connection without a transaction; each statement is committed immediately.
    Autocommit(PoolConnection<Postgres>),
}

impl Tx {
    fn new(inner: TxInner, db: &Db) -> Self {
        Self { inner, job_waker: Arc::clone(db.job_waker()), wakes_runners: false }
    }

    /// Wakes the job runners of all processes when this transaction is committed.
    pub fn wake_on_commit(&mut self) {
        self.wakes_runners = true;
    }

    /// Commits the transaction, and wakes the job runners if [`Tx::wake_on_commit`] was called.
    ///
    /// # Errors
    /// Returns an error if the database fails. It is then unknown whether the transaction was committed.
    pub async fn commit(self) -> sqlx::Result<()> {
        if let TxInner::Transaction(tx) = self.inner {
            tx.commit().await?;
        }
        if self.wakes_runners {
            self.job_waker.wake_all();
        }
        Ok(())
    }

    /// Rolls back the transaction. Has no effect on a `Tx` of [`Db::begin_autocommit`], whose statements are committed already.
    ///
    /// # Errors
    /// Returns an error if the database fails. The transaction is then rolled back when its connection is closed.
    pub async fn rollback(self) -> sqlx::Result<()> {
        match self.inner {
            TxInner::Transaction(tx) => tx.rollback().await,
            TxInner::Autocommit(_) => Ok(()),
        }
    }
}

impl Deref for Tx {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        match &self.inner {
            TxInner::Transaction(tx) => tx,
            TxInner::Autocommit(conn) => conn,
        }
    }
}

impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut PgConnection {
        match &mut self.inner {
            TxInner::Transaction(tx) => tx,
            TxInner::Autocommit(conn) => conn,
        }
    }
}

impl Db {
    /// Begins a transaction in a cancel-safe way. If the returned future is dropped, a background task finishes `BEGIN` and
    /// rolls back. Otherwise sqlx (0.8.6 and 0.9.0) would return a connection with an open transaction to the pool, and later
    /// writes on that connection would be lost. The background task can be removed with an sqlx release that contains
    /// <https://github.com/transact-rs/sqlx/pull/4394>.
    pub fn begin(&self) -> BeginTransaction {
        let db = self.clone();
        let future = async move {
            #[expect(clippy::disallowed_methods, reason = "this function is the cancel-safe wrapper")]
            let transaction = (*db).begin().await?;
            Ok(Tx::new(TxInner::Transaction(transaction), &db))
        };
        BeginTransaction { future: Some(future.boxed()), db: self.clone() }
    }

    /// Returns a `Tx` without a transaction, for work that consists of one statement. This saves two round trips.
    ///
    /// # Errors
    /// Returns an error if no connection can be acquired.
    pub async fn begin_autocommit(&self) -> sqlx::Result<Tx> {
        Ok(Tx::new(TxInner::Autocommit(self.acquire().await?), self))
    }
}

/// The future of [`Db::begin`].
pub struct BeginTransaction {
    future: Option<BoxFuture<'static, sqlx::Result<Tx>>>,
    db: Db,
}

impl Future for BeginTransaction {
    type Output = sqlx::Result<Tx>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(future) = &mut self.future else { return Poll::Pending };
        let result = ready!(future.poll_unpin(context));
        self.future = None;
        Poll::Ready(result)
    }
}

impl Drop for BeginTransaction {
    fn drop(&mut self) {
        if let (Some(future), Ok(runtime)) = (self.future.take(), Handle::try_current()) {
            self.db.process().background_tasks.spawn_on(future.map(drop), &runtime);
        }
    }
}
