//! The connection pools and the migrations. [`pooler`] refuses external poolers that would mix statements, [`page`] has the cursors of
//! lists.

pub mod page;
pub mod pooler;

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sqlx::postgres::types::PgInterval;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{PgPool, Postgres, Transaction};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use pooler::PoolerCheck;

/// One for the program and all its tests: each use of the macro would embed another copy.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!();

/// Connections that were idle for longer are checked before they are used again.
const CHECK_AFTER_IDLE: Duration = Duration::from_secs(1);

/// Planner settings for reading pages of messages. That statement uses one index whatever the session, so it is planned once for
/// each connection: planning takes longer than running it, and without these settings Postgres plans it again for each limit,
/// or reads the whole session and sorts it.
const PAGE_SETTINGS: &[(&str, &str)] = &[
    ("enable_bitmapscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("enable_seqscan", "off"),
    ("enable_sort", "off"),
    ("plan_cache_mode", "force_generic_plan"),
];

/// Opens a pool of at most `size` connections, which are established on demand.
pub fn pool(options: PgConnectOptions, size: u32, pooler: &PoolerCheck) -> PgPool {
    pool_with(options, size, pooler, &[])
}

/// Opens a pool for reading pages of messages and nothing else.
pub fn page_pool(options: PgConnectOptions, size: u32, pooler: &PoolerCheck) -> PgPool {
    pool_with(options, size, pooler, PAGE_SETTINGS)
}

fn pool_with(
    options: PgConnectOptions,
    size: u32,
    pooler: &PoolerCheck,
    settings: &'static [(&'static str, &'static str)],
) -> PgPool {
    let (connecting, acquiring) = (pooler.clone(), pooler.clone());
    PgPoolOptions::new()
        .max_connections(size)
        .acquire_timeout(Duration::from_secs(5))
        .max_lifetime(Duration::from_hours(1))
        .idle_timeout(Duration::from_mins(5))
        // `verify` below also shows that the connection is alive.
        .test_before_acquire(false)
        .after_connect(move |conn, _| {
            let pooler = connecting.clone();
            Box::pin(async move { pooler.mark(conn, settings).await })
        })
        .before_acquire(move |conn, state| {
            let pooler = acquiring.clone();
            Box::pin(async move {
                if state.idle_for > CHECK_AFTER_IDLE || pooler.is_due() {
                    pooler.verify(conn).await?;
                }
                Ok(true)
            })
        })
        .connect_lazy_with(options)
}

/// Begins a transaction in a cancel-safe way. If the returned future is dropped, a task of `tasks` finishes `BEGIN` and rolls back.
/// Otherwise sqlx (0.8.6 and 0.9.0) returns a connection with an open transaction to the pool, and the next user's writes are
/// lost. Remove it with a release that has <https://github.com/transact-rs/sqlx/pull/4394>.
pub fn begin(pool: &PgPool, tasks: &TaskTracker) -> Begin {
    let (pool, tasks) = (pool.clone(), tasks.clone());
    let beginning = async move {
        #[expect(clippy::disallowed_methods, reason = "this is what makes it right")]
        pool.begin().await
    };
    Begin { beginning: Some(beginning.boxed()), tasks }
}

/// A transaction that is begun.
pub struct Begin {
    beginning: Option<BoxFuture<'static, sqlx::Result<Transaction<'static, Postgres>>>>,
    tasks: TaskTracker,
}

impl Future for Begin {
    type Output = sqlx::Result<Transaction<'static, Postgres>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(beginning) = &mut self.beginning else { return Poll::Pending };
        let begun = ready!(beginning.poll_unpin(context));
        self.beginning = None;
        Poll::Ready(begun)
    }
}

impl Drop for Begin {
    fn drop(&mut self) {
        if let (Some(beginning), Ok(runtime)) = (self.beginning.take(), Handle::try_current()) {
            self.tasks.spawn_on(beginning.map(drop), &runtime);
        }
    }
}

/// A length of time as Postgres takes it.
pub fn interval(duration: Duration) -> PgInterval {
    let microseconds = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    PgInterval { months: 0, days: 0, microseconds }
}

/// Brings the database up to date. Takes an advisory lock, so two processes may do this at once.
///
/// # Errors
/// The database does not answer, or has migrations that this program does not know.
pub async fn migrate(pool: &PgPool) -> anyhow::Result<()> {
    MIGRATOR.run(pool).await.context("the database could not be brought up to date")
}
