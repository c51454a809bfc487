//! The connection pool and the migrations.

use std::time::Duration;

use anyhow::Context;
use sqlx::postgres::types::PgInterval;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgPool};

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
