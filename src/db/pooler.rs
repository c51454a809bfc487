//! Detects and rejects connection poolers that run the statements of several connections in one server session.
//!
//! sqlx numbers its prepared statements on each connection (`sqlx_s_1`, `sqlx_s_2`, ...). A pooler in transaction or
//! statement mode lets connections share server sessions, in which the same name can denote the statement of another
//! connection: a `select` can execute a `delete`. sqlx 0.8 offers no way to choose other names, so such a pooler must be
//! detected.
//!
//! Each new connection writes the same random text to two settings of its session. `acontextd.session` stays with the server
//! session and also contains that session's process id. `application_name` follows the connection: poolers that share sessions
//! restore it whenever they assign another session. If the two texts or the process ids differ, the session belongs to another
//! connection. The process then executes no more statements and closes its pools.
//!
//! The checks use the simple query protocol (which sqlx uses for a bare `&str`), because it needs no prepared statements.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection, Executor, Row};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The error message, with a remedy, that is logged, returned by `/ready`, and printed if startup fails.
pub const SHARED_SESSIONS: &str = "the database connections go through a pooler that shares server sessions \
     between them (transaction or statement mode), which would execute wrong statements: set the pooler to session \
     mode, or connect to the direct port of Postgres; then restart acontextd";

/// If no connection was verified for this time, the next connection is verified before its use, even if it was not idle.
const VERIFY_INTERVAL: Duration = Duration::from_secs(1);

/// The time limit of the check at startup.
const STARTUP_TIMEOUT: Duration = Duration::from_secs(10);

/// How long Postgres may take to respond to a verification. After that, the connection counts as lost, because a firewall may
/// have dropped it without a TCP reset.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(2);

/// The query that returns `true` if the session has the mark of the connection that executes it.
const VERIFY_QUERY: &str = "select current_setting('acontextd.session', true) \
                      = current_setting('application_name') || ' ' || pg_backend_pid()";

/// The check that each connection of this process has a session of its own. All clones share their state.
#[derive(Clone)]
pub struct PoolerCheck(Arc<PoolerState>);

struct PoolerState {
    created_at: Instant,
    /// The time of the last verification, in milliseconds after `created_at`.
    last_verified_ms: AtomicU64,
    /// Canceled when a shared session is found.
    shared_session_found: CancellationToken,
}

impl Default for PoolerCheck {
    fn default() -> Self {
        let (created_at, shared_session_found) = (Instant::now(), CancellationToken::new());
        Self(Arc::new(PoolerState { created_at, last_verified_ms: AtomicU64::new(0), shared_session_found }))
    }
}

impl PoolerCheck {
    /// Returns `true` if a shared session was found at any time.
    pub fn found_shared_session(&self) -> bool {
        self.0.shared_session_found.is_cancelled()
    }

    /// Waits until a shared session is found.
    pub async fn wait_for_shared_session(&self) {
        self.0.shared_session_found.cancelled().await;
    }

    /// Returns `true` if no connection was verified in the last `VERIFY_INTERVAL`.
    pub fn is_verification_due(&self) -> bool {
        let last_verified_ms = self.0.last_verified_ms.load(Ordering::Relaxed);
        self.elapsed_ms().saturating_sub(last_verified_ms) > duration_ms(VERIFY_INTERVAL)
    }

    /// Opens a connection outside of the pools and applies `settings` to its session.
    ///
    /// # Errors
    /// Returns an error if the connection fails, or an error of [`PoolerCheck::mark`].
    pub async fn connect(&self, options: &PgConnectOptions, settings: &[(&str, &str)]) -> sqlx::Result<PgConnection> {
        let mut conn = options.connect().await?;
        self.mark(&mut conn, settings).await?;
        Ok(conn)
    }

    /// Marks the session of a new connection and applies `settings` to it. The settings are not sent as startup parameters,
    /// because `PgBouncer` rejects or ignores startup parameters. The names and values of the settings become part of a statement
    /// without being escaped.
    ///
    /// # Errors
    /// Returns [`sqlx::Error::PoolClosed`] if the session has the mark of another connection, or if a shared session was
    /// found before.
    pub async fn mark(&self, conn: &mut PgConnection, settings: &[(&str, &str)]) -> sqlx::Result<()> {
        self.ensure_no_shared_session()?;
        let name = format!("acontextd-{}", &Uuid::new_v4().simple().to_string()[..16]);
        let mark = format!(
            "select current_setting('acontextd.session', true), set_config('application_name', '{name}', false), \
             set_config('acontextd.session', '{name} ' || pg_backend_pid(), false)"
        );
        let settings = settings.iter().map(|(setting, value)| format!("set_config('{setting}', '{value}', false)"));
        let sql = std::iter::once(mark).chain(settings).collect::<Vec<_>>().join(", ");
        let row = conn.fetch_one(&*sql).await?;
        let previous: Option<String> = row.try_get(0)?;
        if previous.is_some_and(|mark| !mark.is_empty()) {
            return Err(self.report_shared_session());
        }
        Ok(())
    }

    /// Verifies that this connection still has the session that it marked, and that it responds. After an error, the connection
    /// must be dropped.
    ///
    /// # Errors
    /// Returns [`sqlx::Error::PoolClosed`] if the session is another one, or if a shared session was found before, and
    /// [`sqlx::Error::Io`] if there is no response within `VERIFY_TIMEOUT`.
    pub async fn verify(&self, conn: &mut PgConnection) -> sqlx::Result<()> {
        self.ensure_no_shared_session()?;
        let row = tokio::time::timeout(VERIFY_TIMEOUT, conn.fetch_one(VERIFY_QUERY))
            .await
            .map_err(|_| no_response_error())??;
        let is_own: Option<bool> = row.try_get(0)?;
        if is_own != Some(true) {
            return Err(self.report_shared_session());
        }
        self.0.last_verified_ms.store(self.elapsed_ms(), Ordering::Relaxed);
        Ok(())
    }

    fn ensure_no_shared_session(&self) -> sqlx::Result<()> {
        if self.found_shared_session() { Err(sqlx::Error::PoolClosed) } else { Ok(()) }
    }

    /// Logs the first shared session, and returns the error for it.
    fn report_shared_session(&self) -> sqlx::Error {
        if !self.found_shared_session() {
            tracing::error!("{SHARED_SESSIONS}");
            self.0.shared_session_found.cancel();
        }
        sqlx::Error::PoolClosed
    }

    fn elapsed_ms(&self) -> u64 {
        duration_ms(self.0.created_at.elapsed())
    }

    /// Checks at startup, with two concurrent connections, that each has its own session.
    ///
    /// # Errors
    /// Returns [`SHARED_SESSIONS`] if they share a session, or an error with a remedy if the check takes too long.
    pub async fn verify_at_startup(&self, options: &PgConnectOptions) -> anyhow::Result<()> {
        let result = tokio::time::timeout(STARTUP_TIMEOUT, self.verify_two_connections(options)).await;
        if self.found_shared_session() {
            bail!(SHARED_SESSIONS);
        }
        result.context(
            "the database accepts one connection, but not a second one at the same time: allow more connections in \
             Postgres or in the pooler in front of it, at least ACONTEXTD_DATABASE_CONNECTIONS + 3",
        )??;
        Ok(())
    }

    async fn verify_two_connections(&self, options: &PgConnectOptions) -> sqlx::Result<()> {
        let mut first = self.connect(options, &[]).await?;
        let mut second = self.connect(options, &[]).await?;
        // Both orders, because a pooler may assign sessions alternately or reuse the last one.
        self.verify_both(&mut first, &mut second).await?;
        self.verify_both(&mut second, &mut first).await?;
        first.close().await?;
        second.close().await
    }

    /// Verifies two connections while both are in a transaction, so that a pooler must assign them different sessions.
    async fn verify_both(&self, first: &mut PgConnection, second: &mut PgConnection) -> sqlx::Result<()> {
        for conn in [&mut *first, &mut *second] {
            conn.execute("begin").await?;
            self.verify(conn).await?;
        }
        for conn in [first, second] {
            conn.execute("rollback").await?;
        }
        Ok(())
    }
}

/// Returns the error for a connection on which the database does not respond.
pub fn no_response_error() -> sqlx::Error {
    std::io::Error::new(std::io::ErrorKind::TimedOut, "the database does not respond").into()
}

fn duration_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
