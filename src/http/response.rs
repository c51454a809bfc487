//! The envelope of every JSON response: `{"code":0,"data":…,"msg":""}`, or `{"code":<status>,"msg":…,"error":…}`.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;

use crate::error::Error;

/// Marks the replay of a stored response.
static REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// The response of a successful request.
#[derive(Serialize, utoipa::ToSchema)]
pub struct Envelope<T> {
    /// 0 on every success.
    #[schema(example = 0)]
    code: u16,
    data: T,
    msg: &'static str,
}

/// The response of a successful request without data.
#[derive(Serialize, utoipa::ToSchema)]
pub struct EmptyResponse {
    /// 0 on every success.
    #[schema(example = 0)]
    code: u16,
    msg: &'static str,
}

/// The response of a failed request.
#[derive(Serialize, utoipa::ToSchema)]
pub struct ErrorResponse<'a> {
    /// The HTTP status.
    #[schema(example = 400)]
    code: u16,
    /// What is wrong, naming the field.
    msg: &'a str,
    /// A constant that clients can look for.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

/// Returns 200 with data.
pub fn ok<T: Serialize>(data: T) -> Response {
    json(StatusCode::OK, &Envelope { code: 0, data, msg: "" })
}

/// Returns 200 with data and a text in `msg`.
pub fn ok_with_message<T: Serialize>(msg: &'static str, data: T) -> Response {
    json(StatusCode::OK, &Envelope { code: 0, data, msg })
}

/// Returns 201 with data.
pub fn created<T: Serialize>(data: T) -> Response {
    json(StatusCode::CREATED, &Envelope { code: 0, data, msg: "" })
}

/// Returns 200 without data.
pub fn ok_empty() -> Response {
    message("")
}

/// Returns 200 without data and with a text in `msg`.
pub fn message(msg: &'static str) -> Response {
    json(StatusCode::OK, &EmptyResponse { code: 0, msg })
}

/// Returns an error response; [`Error`] chooses its status and text.
pub fn error(status: StatusCode, msg: &str, error: Option<&str>) -> Response {
    json(status, &ErrorResponse { code: status.as_u16(), msg, error })
}

/// Returns a stored response, byte for byte.
pub fn replay(status: StatusCode, body: Bytes) -> Response {
    let mut response = json_response(status, Body::from(body));
    response.headers_mut().insert(REPLAYED.clone(), HeaderValue::from_static("true"));
    response
}

fn json(status: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(bytes) => json_response(status, Body::from(bytes)),
        // Only a `Serialize` that fails by itself gets here, and none of this program does.
        Err(err) => Error::internal(err).into_response(),
    }
}

fn json_response(status: StatusCode, body: Body) -> Response {
    let mut response = (status, body).into_response();
    let kind = HeaderValue::from_static("application/json; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// The cause of a server error, for the log line of the request. It travels in the response's extensions and never reaches the
/// client.
#[derive(Clone)]
pub struct ErrorCause(pub Arc<anyhow::Error>);

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        if let Self::Replay { status, body } = self {
            return replay(status, body);
        }
        let status = self.status();
        let mut response = error(status, &self.public(), self.constant());
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
        }
        if let Some(cause) = self.into_cause() {
            response.extensions_mut().insert(ErrorCause(Arc::new(cause)));
        }
        response
    }
}
