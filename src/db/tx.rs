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

/// A transaction; dropped, it is rolled back. Enqueuing a job requires one, and its commit wakes the runners: no caller can forget
/// that, or wake them before there is something to find.
pub struct Tx {
    inner: Inner,
    job_waker: Arc<JobWaker>,
    wakes_jobs: bool,
}

enum Inner {
    Transaction(Transaction<'static, Postgres>),
    /// Each statement is a transaction of its own.
    Autocommit(PoolConnection<Postgres>),
}

impl Tx {
    fn new(inner: Inner, db: &Db) -> Self {
        Self { inner, job_waker: Arc::clone(db.job_waker()), wakes_jobs: false }
    }

    /// Wakes the job runners of all processes when this transaction is committed.
    pub fn wake_on_commit(&mut self) {
        self.wakes_jobs = true;
    }

    /// Commits, and wakes the job runners if there is work for them.
    ///
    /// # Errors
    /// The database fails; whether the transaction was committed is unknown then.
    pub async fn commit(self) -> sqlx::Result<()> {
        if let Inner::Transaction(tx) = self.inner {
            tx.commit().await?;
        }
        if self.wakes_jobs {
            self.job_waker.wake_all();
        }
        Ok(())
    }

    /// Rolls back. Statements of [`Db::begin_statement`] were committed already.
    ///
    /// # Errors
    /// The database fails; the transaction is rolled back with its connection.
    pub async fn rollback(self) -> sqlx::Result<()> {
        match self.inner {
            Inner::Transaction(tx) => tx.rollback().await,
            Inner::Autocommit(_) => Ok(()),
        }
    }
}

impl Deref for Tx {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        match &self.inner {
            Inner::Transaction(tx) => tx,
            Inner::Autocommit(conn) => conn,
        }
    }
}

impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut PgConnection {
        match &mut self.inner {
            Inner::Transaction(tx) => tx,
            Inner::Autocommit(conn) => conn,
        }
    }
}

impl Db {
    /// Begins a transaction in a cancel-safe way. If the returned future is dropped, a background task finishes `BEGIN` and rolls
    /// back. Otherwise sqlx (0.8.6 and 0.9.0) returns a connection with an open transaction to the pool, and the next user's writes
    /// are lost. Remove it with a release that has <https://github.com/transact-rs/sqlx/pull/4394>.
    pub fn begin(&self) -> BeginTransaction {
        let db = self.clone();
        let beginning = async move {
            #[expect(clippy::disallowed_methods, reason = "this is what makes it right")]
            let transaction = (*db).begin().await?;
            Ok(Tx::new(Inner::Transaction(transaction), &db))
        };
        BeginTransaction { beginning: Some(beginning.boxed()), db: self.clone() }
    }

    /// Returns a connection without a transaction around its statements, for an effect of one statement: it saves two round trips.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn begin_statement(&self) -> sqlx::Result<Tx> {
        Ok(Tx::new(Inner::Autocommit(self.acquire().await?), self))
    }
}

/// The future of [`Db::begin`].
pub struct BeginTransaction {
    beginning: Option<BoxFuture<'static, sqlx::Result<Tx>>>,
    db: Db,
}

impl Future for BeginTransaction {
    type Output = sqlx::Result<Tx>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(beginning) = &mut self.beginning else { return Poll::Pending };
        let result = ready!(beginning.poll_unpin(context));
        self.beginning = None;
        Poll::Ready(result)
    }
}

impl Drop for BeginTransaction {
    fn drop(&mut self) {
        if let (Some(beginning), Ok(runtime)) = (self.beginning.take(), Handle::try_current()) {
            self.db.process().background_tasks.spawn_on(beginning.map(drop), &runtime);
        }
    }
}
