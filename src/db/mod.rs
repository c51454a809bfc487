//! The database: connection pools and transactions. [`migrations`] creates the tables, [`pooler`] refuses external poolers that would
//! mix statements, [`page`] has the cursors of lists, [`notify`] passes Postgres notifications on, [`job_waker`] notifies job runners,
//! [`server_state`] stores facts about the installation.

pub mod job_waker;
pub mod migrations;
pub mod notify;
pub mod page;
pub mod pooler;
pub mod server_state;
mod tx;

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use sqlx::PgPool;
use sqlx::postgres::types::PgInterval;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use crate::process::Process;
use job_waker::JobWaker;
use pooler::PoolerCheck;
pub use tx::{BeginTransaction, Tx};

/// Connections that were idle for longer are checked before they are used again.
const CHECK_AFTER_IDLE: Duration = Duration::from_secs(1);

/// The database; cheap to clone. Dereferences to its main pool, whose connections are opened on demand.
#[derive(Clone)]
pub struct Db(Arc<Inner>);

struct Inner {
    pool: PgPool,
    /// Pools for special purposes, by name.
    other_pools: Mutex<Vec<(&'static str, PgPool)>>,
    options: PgConnectOptions,
    pooler: PoolerCheck,
    process: Process,
    job_waker: Arc<JobWaker>,
}

impl Db {
    /// Connects on demand, with at most `connections` connections in the main pool.
    pub fn new(options: PgConnectOptions, connections: u32, pooler: PoolerCheck, process: Process) -> Self {
        let pool = pool_with(options.clone(), connections, &pooler, &[]);
        Self(Arc::new(Inner {
            pool,
            other_pools: Mutex::default(),
            options,
            pooler,
            process,
            job_waker: Arc::default(),
        }))
    }

    /// Opens another pool, whose sessions have settings of their own. Names and values must not come from users.
    pub fn open_pool(
        &self,
        name: &'static str,
        connections: u32,
        settings: &'static [(&'static str, &'static str)],
    ) -> PgPool {
        let pool = pool_with(self.0.options.clone(), connections, &self.0.pooler, settings);
        self.0.other_pools.lock().unwrap_or_else(PoisonError::into_inner).push((name, pool.clone()));
        pool
    }

    /// Returns all pools by name.
    pub fn pools(&self) -> Vec<(&'static str, PgPool)> {
        let mut pools = vec![("main", self.0.pool.clone())];
        pools.extend(self.0.other_pools.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
        pools
    }

    /// Closes all pools. Connections that are in use are closed when they are returned; this waits for them.
    pub async fn close(&self) {
        join_all(self.pools().iter().map(|(_, pool)| pool.close())).await;
    }

    pub fn pooler(&self) -> &PoolerCheck {
        &self.0.pooler
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

/// A length of time as Postgres takes it.
pub fn interval(duration: Duration) -> PgInterval {
    let microseconds = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    PgInterval { months: 0, days: 0, microseconds }
}
