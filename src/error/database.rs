//! Classifies database errors that are not caused by the statement.

use std::io;

use sqlx::error::DatabaseError;

/// A reason why the database cannot execute a statement now. The same statement may succeed later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatabaseOutage {
    ConnectionRefused,
    HostNotFound,
    Unresponsive,
    ConnectionLost,
    TlsFailed,
    LoginRejected,
    DatabaseMissing,
    TooManyConnections,
    PoolExhausted,
    DiskFull,
    OutOfMemory,
    OutOfResources,
    Restarting,
    ReadOnly,
    /// A concurrent transaction conflicts with this one.
    Conflict,
    SystemError,
    InvalidResponse,
}

impl DatabaseOutage {
    /// Returns the outage that caused the error. Returns `None` if the statement caused it. Codes:
    /// <https://www.postgresql.org/docs/15/errcodes-appendix.html>.
    pub fn classify(error: &sqlx::Error) -> Option<Self> {
        use sqlx::Error as E;
        match error {
            E::Io(err) => Some(Self::classify_io(err)),
            E::Tls(_) => Some(Self::TlsFailed),
            E::PoolTimedOut => Some(Self::PoolExhausted),
            E::PoolClosed | E::WorkerCrashed => Some(Self::ConnectionLost),
            E::Protocol(_) => Some(Self::InvalidResponse),
            E::Database(err) => Self::classify_database(&**err),
            _ => None,
        }
    }

    fn classify_io(err: &io::Error) -> Self {
        use io::ErrorKind as K;
        match err.kind() {
            // A missing socket file is `NotFound`.
            K::ConnectionRefused | K::NotFound | K::PermissionDenied => Self::ConnectionRefused,
            K::TimedOut => Self::Unresponsive,
            K::HostUnreachable | K::NetworkUnreachable => Self::HostNotFound,
            K::UnexpectedEof | K::ConnectionReset | K::ConnectionAborted | K::BrokenPipe => Self::ConnectionLost,
            // The resolver reports an unknown host name without an OS error.
            _ if err.raw_os_error().is_none() => Self::HostNotFound,
            _ => Self::ConnectionLost,
        }
    }

    fn classify_database(err: &dyn DatabaseError) -> Option<Self> {
        let code = err.code()?;
        Some(match (code.get(..2).unwrap_or_default(), &*code) {
            ("28", _) => Self::LoginRejected,
            (_, "3D000") => Self::DatabaseMissing,
            (_, "53300") => Self::TooManyConnections,
            (_, "53100") => Self::DiskFull,
            (_, "53200") => Self::OutOfMemory,
            ("53", _) => Self::OutOfResources,
            ("57", _) => Self::Restarting,
            ("58", _) => Self::SystemError,
            ("08", _) => Self::ConnectionLost,
            (_, "25006") => Self::ReadOnly,
            (_, "40001" | "40P01" | "55P03") => Self::Conflict,
            _ => return None,
        })
    }

    /// Returns `true` if connections fail until the operator changes a setting or the database.
    pub fn requires_change(self) -> bool {
        matches!(self, Self::LoginRejected | Self::DatabaseMissing)
    }

    /// Returns what is wrong and what to check.
    pub fn description(self) -> &'static str {
        match self {
            Self::ConnectionRefused => {
                "database connection refused: check host and port, and whether Postgres is running"
            }
            Self::HostNotFound => "the host of the database cannot be reached: check its name and the network",
            Self::Unresponsive => {
                "the database does not respond: check its load, and the network between it and this server"
            }
            Self::ConnectionLost => "the connection to the database was lost",
            Self::TlsFailed => "the TLS connection to the database failed: check sslmode and the server's certificate",
            Self::LoginRejected => "the database rejects the login: check the user, the password and pg_hba.conf",
            Self::DatabaseMissing => "the database does not exist: check its name",
            Self::TooManyConnections => {
                "the database has too many connections: raise max_connections, or lower ACONTEXTD_DATABASE_CONNECTIONS"
            }
            Self::PoolExhausted => {
                "no database connection was available in time: all are in use, or the database accepts no new ones"
            }
            Self::DiskFull => "the disk of the database is full",
            Self::OutOfMemory => "the database is out of memory",
            Self::OutOfResources => "the database has reached a limit of its resources",
            Self::Restarting => "the database is starting, shutting down or canceling statements",
            Self::ReadOnly => "the database is read-only: connect to the primary server instead of a standby",
            Self::Conflict => "a concurrent transaction conflicts with this one",
            Self::SystemError => "the system of the database failed, for example with an I/O error",
            Self::InvalidResponse => "the server at the database's address does not speak the protocol of Postgres",
        }
    }
}
