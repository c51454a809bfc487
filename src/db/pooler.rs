//! Refuses connection poolers that run the statements of several connections in one server session.
//!
//! sqlx numbers its prepared statements on each connection (`sqlx_s_1`, `sqlx_s_2`, ...). A pooler in transaction or statement
//! mode lets connections share server sessions, where the same name belongs to the statement of another connection: a `select`
//! can execute a `delete`. sqlx 0.8 has no way to choose other names, so such a pooler must be detected.
//!
//! Each new connection writes the same random text into two settings of its session. `acontextd.session` stays with the server
//! session and also records that session's process id. `application_name` follows the connection: poolers that share sessions
//! restore it whenever they assign another one. If the two differ, or the process id does, the session belongs to another
//! connection. Nothing else is executed then, and the process closes its pools.
//!
//! The checks use the simple query protocol (what sqlx executes as a bare `&str`), which needs no prepared statements.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection, Executor, Row};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The reason for a refusal, and the remedy, for logs, `/ready` and the error of a refused start.
pub const SHARED_SESSIONS: &str = "the database connections go through a pooler that shares server sessions between them (transaction or statement mode), \
     which would execute wrong statements: set the pooler to session mode, or connect to the direct port of Postgres; then \
     restart acontextd";

/// How often a process checks one of its connections while none of them is ever idle.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long the check at startup may take.
const STARTUP_TIMEOUT: Duration = Duration::from_secs(10);

const VERIFY: &str = "select current_setting('acontextd.session', true) \
                      = current_setting('application_name') || ' ' || pg_backend_pid()";

/// Marks and checks the sessions of all connections of a process.
#[derive(Clone)]
pub struct PoolerCheck(Arc<State>);

struct State {
    created: Instant,
    /// When a session was last verified, in milliseconds after `created`.
    verified: AtomicU64,
    shared: CancellationToken,
}

impl Default for PoolerCheck {
    fn default() -> Self {
        Self(Arc::new(State { created: Instant::now(), verified: AtomicU64::new(0), shared: CancellationToken::new() }))
    }
}

impl PoolerCheck {
    /// Returns `true` once a shared session was found. This never changes back.
    pub fn found_shared_session(&self) -> bool {
        self.0.shared.is_cancelled()
    }

    /// Waits until a shared session is found.
    pub async fn wait_for_shared_session(&self) {
        self.0.shared.cancelled().await;
    }

    /// Returns `true` if no connection was verified in the last second.
    pub fn is_due(&self) -> bool {
        self.elapsed().saturating_sub(self.0.verified.load(Ordering::Relaxed)) > duration_ms(INTERVAL)
    }

    /// Opens a connection outside of the pools, with settings that hold for its whole session.
    ///
    /// # Errors
    /// Returns the error of connecting, or one of [`PoolerCheck::mark`].
    pub async fn connect(&self, options: &PgConnectOptions, settings: &[(&str, &str)]) -> sqlx::Result<PgConnection> {
        let mut conn = options.connect().await?;
        self.mark(&mut conn, settings).await?;
        Ok(conn)
    }

    /// Marks the session of a new connection, and applies settings to it. They are not sent as startup parameters, because
    /// `PgBouncer` refuses or ignores those. Names and values must not come from users.
    ///
    /// # Errors
    /// Returns [`sqlx::Error::PoolClosed`] if the session carries the mark of another connection, or such a session was found
    /// before.
    pub async fn mark(&self, conn: &mut PgConnection, settings: &[(&str, &str)]) -> sqlx::Result<()> {
        self.ensure_dedicated()?;
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
            return Err(self.report());
        }
        Ok(())
    }

    /// Checks that the session still is the one that was marked by this connection.
    ///
    /// # Errors
    /// Returns [`sqlx::Error::PoolClosed`] if it is not, or if such a session was found before.
    pub async fn verify(&self, conn: &mut PgConnection) -> sqlx::Result<()> {
        self.ensure_dedicated()?;
        let row = conn.fetch_one(VERIFY).await?;
        let is_own: Option<bool> = row.try_get(0)?;
        if is_own != Some(true) {
            return Err(self.report());
        }
        self.0.verified.store(self.elapsed(), Ordering::Relaxed);
        Ok(())
    }

    fn ensure_dedicated(&self) -> sqlx::Result<()> {
        if self.found_shared_session() { Err(sqlx::Error::PoolClosed) } else { Ok(()) }
    }

    fn report(&self) -> sqlx::Error {
        if !self.found_shared_session() {
            tracing::error!("{SHARED_SESSIONS}");
            self.0.shared.cancel();
        }
        sqlx::Error::PoolClosed
    }

    fn elapsed(&self) -> u64 {
        duration_ms(self.0.created.elapsed())
    }

    /// Checks at startup, with two connections at once, that each has a session of its own.
    ///
    /// # Errors
    /// Returns [`SHARED_SESSIONS`] if they share one, or says that the pooler allows too few connections.
    pub async fn verify_at_startup(&self, options: &PgConnectOptions) -> anyhow::Result<()> {
        let checked = tokio::time::timeout(STARTUP_TIMEOUT, self.try_two_connections(options)).await;
        if self.found_shared_session() {
            bail!(SHARED_SESSIONS);
        }
        checked.context(
            "the database answers one connection but not a second one at the same time: allow more connections in Postgres or \
             in the pooler in front of it, at least ACONTEXTD_DATABASE_CONNECTIONS + 3",
        )??;
        Ok(())
    }

    async fn try_two_connections(&self, options: &PgConnectOptions) -> sqlx::Result<()> {
        let mut first = self.connect(options, &[]).await?;
        let mut second = self.connect(options, &[]).await?;
        // Both orders, because a pooler may assign sessions by turns or take the one that was used last.
        self.verify_both(&mut first, &mut second).await?;
        self.verify_both(&mut second, &mut first).await?;
        first.close().await?;
        second.close().await
    }

    /// Verifies two connections while both are inside a transaction, so that they cannot share one session now.
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

fn duration_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
