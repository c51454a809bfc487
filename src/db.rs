//! The connection pool and the migrations.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sqlx::postgres::types::PgInterval;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgPool, Postgres, Transaction};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

/// One for the program and all its tests: each use of the macro would embed another copy.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!();

/// For so long a connection is taken to be as it was.
const FRESH: Duration = Duration::from_secs(1);

/// Opens the pool. Connections are made when they are needed.
pub fn pool(options: PgConnectOptions, connections: u32) -> PgPool {
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(5))
        .max_lifetime(Duration::from_hours(1))
        .idle_timeout(Duration::from_mins(5))
        // A connection gives a sign of life when it comes back; one that was used a moment ago need not give another.
        .test_before_acquire(false)
        .before_acquire(|conn, about| {
            Box::pin(async move {
                if about.idle_for > FRESH {
                    conn.ping().await?;
                }
                Ok(true)
            })
        })
        .connect_lazy_with(options.options([("TimeZone", "UTC")]).application_name("acontextd"))
}

/// Opens a pool for pages of messages alone: one statement, which goes along one index whatever the session, so it is planned
/// once for each connection. Planning it takes longer than running it, and with a limit that it does not know yet Postgres
/// plans it anew each time, or reads all of a session and sorts it.
pub fn page_pool(options: PgConnectOptions, connections: u32) -> PgPool {
    let settings = ["enable_bitmapscan", "enable_hashjoin", "enable_mergejoin", "enable_seqscan", "enable_sort"];
    let options = options.options(settings.map(|setting| (setting, "off")));
    pool(options.options([("plan_cache_mode", "force_generic_plan")]), connections)
}

/// Begins a transaction. Whoever stops waiting for it leaves it to `tasks`, where it is begun to the end and rolled back: the driver
/// (sqlx 0.9.0) would put the connection back while the server has begun a transaction that nobody knows of, and what others then
/// write on it is lost. To be removed with a release that has <https://github.com/transact-rs/sqlx/pull/4394>.
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
