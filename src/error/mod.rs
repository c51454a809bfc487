//! The errors of requests, with a variant for each HTTP status. [`Error::public_message`] returns the text that clients see.
//! `http::response` converts an error to a response.

pub mod data_dir;
pub mod database;
pub mod storage;

use std::borrow::Cow;

use axum::http::StatusCode;

use database::DatabaseOutage;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The reason why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// 400: the request is malformed or invalid. `detail` names the field and the reason.
    #[error("{msg}")]
    BadRequest { msg: Cow<'static, str>, detail: Option<String> },
    /// 401: the key is missing or invalid.
    #[error("{0}")]
    Unauthorized(&'static str),
    /// 403: the request is not allowed, such as access to an entity of another project.
    #[error("{0}")]
    Forbidden(&'static str),
    /// 403 with an error code that clients match: the request requires a key that contains the project's master key.
    #[error("encryption enabled, API key required")]
    KeyRequired,
    /// 404: the named entity does not exist.
    #[error("{0}")]
    NotFound(&'static str),
    /// 409: the request conflicts with the current state.
    #[error("{0}")]
    Conflict(Cow<'static, str>),
    /// 413: the message names what is too large, and the limit.
    #[error("{0}")]
    PayloadTooLarge(String),
    /// 421: the request is for a host that this server does not serve.
    #[error("{0}")]
    Misdirected(&'static str),
    /// 422: the `Idempotency-Key` was already used for a different request.
    #[error("{0}")]
    Unprocessable(&'static str),
    /// 429: the operation is already in progress.
    #[error("{0}")]
    TooManyRequests(&'static str),
    /// 502: another service does not respond, or responds with an error.
    #[error("{msg}")]
    BadGateway { msg: Cow<'static, str>, cause: Option<anyhow::Error> },
    /// 503: a dependency is unavailable, or a deadline has passed. The same request may succeed later.
    #[error("{msg}")]
    Unavailable { msg: Cow<'static, str>, cause: Option<anyhow::Error> },
    /// 500: stored data fails its integrity check.
    #[error("{what} is corrupt")]
    Corrupt { what: String, cause: anyhow::Error },
    /// 500: any other failure. Clients do not see the cause.
    #[error("internal error")]
    Internal(#[source] anyhow::Error),
}

/// The error for a missing or unknown project key, admin token or root token, and for a project that has just been deleted.
pub const UNAUTHORIZED: Error = Error::Unauthorized("Unauthorized");

impl Error {
    /// The error code of [`Error::Corrupt`].
    pub const CONTENT_CORRUPT: &str = "CONTENT_CORRUPT";

    /// Returns a 400 with this message.
    pub fn bad_request(msg: impl Into<Cow<'static, str>>) -> Self {
        Self::BadRequest { msg: msg.into(), detail: None }
    }

    /// Returns a 400 with the name of a field and the reason why it is invalid.
    pub fn invalid_field(name: &str, reason: impl std::fmt::Display) -> Self {
        Self::BadRequest { msg: "parameter error".into(), detail: Some(format!("{name}: {reason}")) }
    }

    /// Returns a 400 with a message that clients match, and the reason.
    pub fn bad_request_with_reason(msg: &'static str, reason: impl std::fmt::Display) -> Self {
        Self::BadRequest { msg: msg.into(), detail: Some(reason.to_string()) }
    }

    /// Returns a 503 with this message.
    pub fn unavailable(msg: impl Into<Cow<'static, str>>) -> Self {
        Self::Unavailable { msg: msg.into(), cause: None }
    }

    /// Returns a 500 whose cause is only logged.
    pub fn internal(cause: impl Into<anyhow::Error>) -> Self {
        Self::Internal(cause.into())
    }

    /// Returns `true` if Postgres aborted the transaction because of a deadlock. The transaction can be retried.
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
            Self::BadGateway { .. } => StatusCode::BAD_GATEWAY,
            Self::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Corrupt { .. } | Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Returns the message that clients see, the field `msg` of the response.
    pub fn public_message(&self) -> Cow<'_, str> {
        match self {
            Self::BadRequest { msg, detail: Some(detail) } => format!("{msg}: {detail}").into(),
            Self::BadRequest { msg, detail: None }
            | Self::Unavailable { msg, .. }
            | Self::BadGateway { msg, .. }
            | Self::Conflict(msg) => msg.as_ref().into(),
            Self::Unauthorized(msg)
            | Self::Forbidden(msg)
            | Self::NotFound(msg)
            | Self::Misdirected(msg)
            | Self::Unprocessable(msg)
            | Self::TooManyRequests(msg) => (*msg).into(),
            Self::KeyRequired => "encryption enabled, API key required".into(),
            Self::PayloadTooLarge(msg) => msg.as_str().into(),
            Self::Corrupt { what, .. } => format!("{what} is corrupt").into(),
            Self::Internal(_) => "internal error; see the server log for this request id".into(),
        }
    }

    /// Returns the field `error` of the response, a constant that clients match.
    pub fn error_code(&self) -> Option<&'static str> {
        match self {
            Self::KeyRequired => Some("ENCRYPTION_KEY_REQUIRED"),
            Self::Corrupt { .. } => Some(Self::CONTENT_CORRUPT),
            _ => None,
        }
    }

    /// Returns the cause of a server error, for the log.
    pub fn into_cause(self) -> Option<anyhow::Error> {
        match self {
            Self::Internal(cause) | Self::Corrupt { cause, .. } => Some(cause),
            Self::Unavailable { cause, .. } | Self::BadGateway { cause, .. } => cause,
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
            let msg = "the server has closed its database connections; see GET /ready for the reason".into();
            return Self::Unavailable { msg, cause: Some(cause.into()) };
        }
        match DatabaseOutage::classify(&cause) {
            Some(outage) => {
                let msg = match outage {
                    DatabaseOutage::Conflict => "conflict with a concurrent change; retry shortly",
                    _ => "the database is unavailable; retry shortly",
                };
                let cause = anyhow::Error::from(cause).context(outage.description());
                Self::Unavailable { msg: msg.into(), cause: Some(cause) }
            }
            None => Self::Internal(cause.into()),
        }
    }
}

/// Returns `true` if a database error is not caused by the statement, so that the same statement may succeed later.
pub fn is_transient(error: &sqlx::Error) -> bool {
    DatabaseOutage::classify(error).is_some()
}

/// A conversion of the violation of one constraint to a specific error.
pub trait MapConstraint<T> {
    /// Returns `error()` if the statement violated the constraint `name`.
    fn map_constraint_err(self, name: &str, error: impl FnOnce() -> Error) -> Result<T>;
}

impl<T> MapConstraint<T> for Result<T, sqlx::Error> {
    fn map_constraint_err(self, name: &str, error: impl FnOnce() -> Error) -> Result<T> {
        self.map_err(|err| match &err {
            sqlx::Error::Database(inner) if inner.constraint() == Some(name) => error(),
            _ => err.into(),
        })
    }
}
