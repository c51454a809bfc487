//! Connection pools and transactions. [`migrations`] creates the tables, [`pooler`] rejects connection poolers that share
//! sessions, [`privileges`] explains missing privileges, [`page`] has the cursors of lists, [`notify`] dispatches Postgres
//! notifications, [`job_waker`] notifies job runners, and [`server_state`] stores named values, such as the digest of the pepper.

pub mod job_waker;
pub mod migrations;
pub mod notify;
pub mod page;
pub mod pooler;
pub mod privileges;
pub mod server_state;
mod tx;

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use sqlx::postgres::types::PgInterval;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgPool};

use tokio::time::timeout;

use crate::process::Process;
use job_waker::JobWaker;
use pooler::PoolerCheck;
pub use tx::{BeginTransaction, Tx};

/// The idle time after which a connection is checked before it is used again.
const CHECK_AFTER_IDLE: Duration = Duration::from_secs(1);

/// How long the database may take to accept a connection of [`Db::probe`].
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// A handle to the database. It dereferences to the main pool. A clone is cheap.
#[derive(Clone)]
pub struct Db(Arc<DbInner>);

struct DbInner {
    pool: PgPool,
    /// Additional pools, by name.
    other_pools: Mutex<Vec<(&'static str, PgPool)>>,
    options: PgConnectOptions,
    pooler_check: PoolerCheck,
    process: Process,
    job_waker: Arc<JobWaker>,
}

impl Db {
    /// Creates the main pool. Connections are opened on demand.
    pub fn new(options: PgConnectOptions, max_connections: u32, pooler_check: PoolerCheck, process: Process) -> Self {
        let pool = create_pool(options.clone(), max_connections, &pooler_check, &[]);
        Self(Arc::new(DbInner {
            pool,
            other_pools: Mutex::default(),
            options,
            pooler_check,
            process,
            job_waker: Arc::default(),
        }))
    }

    /// Creates an additional pool that applies `settings` to its sessions. The names and values of the settings become part of a
    /// statement without being escaped.
    pub fn open_pool(
        &self,
        name: &'static str,
        max_connections: u32,
        settings: &'static [(&'static str, &'static str)],
    ) -> PgPool {
        let pool = create_pool(self.0.options.clone(), max_connections, &self.0.pooler_check, settings);
        self.0.other_pools.lock().unwrap_or_else(PoisonError::into_inner).push((name, pool.clone()));
        pool
    }

    /// Creates a pool with one connection, which is not listed in [`Db::pools`].
    fn single_connection_pool(&self) -> PgPool {
        create_pool(self.0.options.clone(), 1, &self.0.pooler_check, &[])
    }

    /// Opens a connection outside of the pools and closes it.
    ///
    /// # Errors
    /// Returns the reason if no connection can be opened. The pools cannot return it: they try again until their timeout if
    /// Postgres is not running, is starting, or has too many connections.
    pub async fn probe(&self) -> sqlx::Result<()> {
        let connect = self.0.pooler_check.connect(&self.0.options, &[]);
        let conn = timeout(PROBE_TIMEOUT, connect).await.map_err(|_| pooler::no_response_error())??;
        conn.close_hard().await
    }

    /// Returns all pools with their names.
    pub fn pools(&self) -> Vec<(&'static str, PgPool)> {
        let mut pools = vec![("main", self.0.pool.clone())];
        pools.extend(self.0.other_pools.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
        pools
    }

    /// Closes all pools. Waits until connections in use are returned and closed.
    pub async fn close(&self) {
        join_all(self.pools().iter().map(|(_, pool)| pool.close())).await;
    }

    pub fn pooler_check(&self) -> &PoolerCheck {
        &self.0.pooler_check
    }

    pub fn job_waker(&self) -> &Arc<JobWaker> {
        &self.0.job_waker
    }

    pub(crate) fn process(&self) -> &Process {
        &self.0.process
    }
}

impl Deref for Db {
    type Target = PgPool;

    fn deref(&self) -> &PgPool {
        &self.0.pool
    }
}

/// Creates a pool that opens connections on demand. It marks the session of each new connection, and verifies the mark before it
/// uses a connection that was idle (see [`pooler`]).
fn create_pool(
    options: PgConnectOptions,
    max_connections: u32,
    pooler_check: &PoolerCheck,
    settings: &'static [(&'static str, &'static str)],
) -> PgPool {
    let (check_on_connect, check_on_acquire) = (pooler_check.clone(), pooler_check.clone());
    PgPoolOptions::new()
        .max_connections(max_connections)
        .acquire_timeout(Duration::from_secs(5))
        .max_lifetime(Duration::from_hours(1))
        .idle_timeout(Duration::from_mins(5))
        // `verify` below also detects broken connections.
        .test_before_acquire(false)
        .after_connect(move |conn, _| {
            let pooler_check = check_on_connect.clone();
            Box::pin(async move { pooler_check.mark(conn, settings).await })
        })
        .before_acquire(move |conn, state| {
            let pooler_check = check_on_acquire.clone();
            Box::pin(async move {
                if state.idle_for > CHECK_AFTER_IDLE || pooler_check.is_verification_due() {
                    pooler_check.verify(conn).await?;
                }
                Ok(true)
            })
        })
        .connect_lazy_with(options)
}

/// Converts a duration to a Postgres interval.
pub fn interval(duration: Duration) -> PgInterval {
    let microseconds = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    PgInterval { months: 0, days: 0, microseconds }
}
