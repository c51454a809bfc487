//! What can go wrong in a request, with a variant for each status. The public text is chosen here and nowhere else. How an error
//! becomes a response is in `http::response`.

use std::borrow::Cow;

use axum::http::StatusCode;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// 400: the request cannot be understood. `detail` names the field and what would do.
    #[error("{msg}")]
    BadRequest { msg: Cow<'static, str>, detail: Option<String> },
    /// 401: no key, or not one that opens anything.
    #[error("{0}")]
    Unauthorized(&'static str),
    /// 403: known, but not allowed.
    #[error("{0}")]
    Forbidden(&'static str),
    /// 403 with a constant that clients look for: the request needs a key that carries the project's master key.
    #[error("encryption enabled, API key required")]
    KeyRequired,
    /// 404: says what is not there.
    #[error("{0}")]
    NotFound(&'static str),
    /// 409.
    #[error("{0}")]
    Conflict(Cow<'static, str>),
    /// 413: says what is too large and what the limit is.
    #[error("{0}")]
    PayloadTooLarge(String),
    /// 421: the request is for a host that this server does not answer for.
    #[error("{0}")]
    Misdirected(&'static str),
    /// 422: understood, but it contradicts what was sent before.
    #[error("{0}")]
    Unprocessable(&'static str),
    /// 429: somebody else is at it, or it comes too often.
    #[error("{0}")]
    TooManyRequests(&'static str),
    /// 502: a service that this one asks does not answer, or not as it should.
    #[error("{msg}")]
    Upstream { msg: Cow<'static, str>, cause: Option<anyhow::Error> },
    /// 503: a dependency or a deadline; the same request may work in a moment.
    #[error("{msg}")]
    Unavailable { msg: Cow<'static, str>, cause: Option<anyhow::Error> },
    /// 500: what is stored was changed, or lost a part, and does not open.
    #[error("{what} is damaged")]
    Corrupt { what: String, cause: anyhow::Error },
    /// 500: a bug.
    #[error("internal error")]
    Internal(#[source] anyhow::Error),
}

/// The key opens nothing: it never did, or its project is deleted just now.
pub const UNAUTHORIZED: Error = Error::Unauthorized("Unauthorized");

impl Error {
    /// What clients can look for where stored content does not open.
    pub const CONTENT_CORRUPT: &str = "CONTENT_CORRUPT";

    /// A refusal with the text that clients know for it.
    pub fn bad_request(msg: impl Into<Cow<'static, str>>) -> Self {
        Self::BadRequest { msg: msg.into(), detail: None }
    }

    /// A refusal of one field: which, and what is wrong with it.
    pub fn invalid_field(name: &str, wrong: impl std::fmt::Display) -> Self {
        Self::BadRequest { msg: "parameter error".into(), detail: Some(format!("{name}: {wrong}")) }
    }

    /// A refusal with a known text and the reason.
    pub fn bad_request_with_reason(msg: &'static str, why: impl std::fmt::Display) -> Self {
        Self::BadRequest { msg: msg.into(), detail: Some(why.to_string()) }
    }

    pub fn unavailable(msg: impl Into<Cow<'static, str>>) -> Self {
        Self::Unavailable { msg: msg.into(), cause: None }
    }

    pub fn internal(cause: impl Into<anyhow::Error>) -> Self {
        Self::Internal(cause.into())
    }

    /// Whether two transactions waited for each other, and this one was ended for it: begin it again.
    pub fn is_deadlock(&self) -> bool {
        let Self::Unavailable { cause: Some(cause), .. } = self else { return false };
        let database = cause.downcast_ref::<sqlx::Error>().and_then(sqlx::Error::as_database_error);
        database.and_then(sqlx::error::DatabaseError::code).is_some_and(|code| code == "40P01")
    }

    /// Returns the HTTP status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest { .. } => StatusCode::BAD_REQUEST,
            Self::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) | Self::KeyRequired => StatusCode::FORBIDDEN,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::PayloadTooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Misdirected(_) => StatusCode::MISDIRECTED_REQUEST,
            Self::Unprocessable(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::TooManyRequests(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Upstream { .. } => StatusCode::BAD_GATEWAY,
            Self::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Corrupt { .. } | Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Returns the text in `msg`.
    pub fn public_message(&self) -> Cow<'_, str> {
        match self {
            Self::BadRequest { msg, detail: Some(detail) } => format!("{msg}: {detail}").into(),
            Self::BadRequest { msg, detail: None }
            | Self::Unavailable { msg, .. }
            | Self::Upstream { msg, .. }
            | Self::Conflict(msg) => msg.as_ref().into(),
            Self::Unauthorized(msg)
            | Self::Forbidden(msg)
            | Self::NotFound(msg)
            | Self::Misdirected(msg)
            | Self::Unprocessable(msg)
            | Self::TooManyRequests(msg) => (*msg).into(),
            Self::KeyRequired => "encryption enabled, API key required".into(),
            Self::PayloadTooLarge(msg) => msg.as_str().into(),
            Self::Corrupt { what, .. } => format!("{what} is damaged").into(),
            Self::Internal(_) => "internal error; the request id names it in the server's log".into(),
        }
    }

    /// Returns the `error` key: only constants, never the text of an inner error.
    pub fn error_code(&self) -> Option<&'static str> {
        match self {
            Self::KeyRequired => Some("ENCRYPTION_KEY_REQUIRED"),
            Self::Corrupt { .. } => Some(Self::CONTENT_CORRUPT),
            _ => None,
        }
    }

    /// Returns the cause of a server error.
    pub fn into_cause(self) -> Option<anyhow::Error> {
        match self {
            Self::Internal(cause) | Self::Corrupt { cause, .. } => Some(cause),
            Self::Unavailable { cause, .. } | Self::Upstream { cause, .. } => cause,
            _ => None,
        }
    }
}

impl From<anyhow::Error> for Error {
    fn from(cause: anyhow::Error) -> Self {
        Self::Internal(cause)
    }
}

impl From<sqlx::Error> for Error {
    fn from(cause: sqlx::Error) -> Self {
        if matches!(cause, sqlx::Error::PoolClosed) {
            let msg = "the server has closed its database connections; GET /ready says why".into();
            return Self::Unavailable { msg, cause: Some(cause.into()) };
        }
        if is_transient(&cause) {
            let msg = "the database does not answer; try again in a moment".into();
            return Self::Unavailable { msg, cause: Some(cause.into()) };
        }
        Self::Internal(cause.into())
    }
}

/// Whether a database error is a matter of the moment (it is down, full, restarting, or two writers met) and not of the
/// statement. Codes: <https://www.postgresql.org/docs/15/errcodes-appendix.html>.
pub fn is_transient(error: &sqlx::Error) -> bool {
    use sqlx::Error as E;
    match error {
        E::Io(_) | E::Tls(_) | E::PoolTimedOut | E::PoolClosed | E::WorkerCrashed | E::Protocol(_) => true,
        E::Database(err) => err.code().is_some_and(|code| {
            let class = code.get(..2).unwrap_or_default();
            matches!(class, "08" | "53" | "57" | "58") || matches!(&*code, "40001" | "40P01" | "55P03" | "25006")
        }),
        _ => false,
    }
}

/// Turns the violation of a named constraint into an answer of its own.
pub trait MapConstraint<T> {
    fn map_constraint_err(self, name: &str, answer: impl FnOnce() -> Error) -> Result<T>;
}

impl<T> MapConstraint<T> for Result<T, sqlx::Error> {
    fn map_constraint_err(self, name: &str, answer: impl FnOnce() -> Error) -> Result<T> {
        self.map_err(|err| match &err {
            sqlx::Error::Database(inner) if inner.constraint() == Some(name) => answer(),
            _ => err.into(),
        })
    }
}
