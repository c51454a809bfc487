//! The envelope that every JSON answer has: `{"code":0,"data":…,"msg":""}`, or `{"code":<status>,"msg":…,"error":…}`.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;

/// Says that an answer was given before.
static REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// The answer of a request that worked.
#[derive(Serialize, utoipa::ToSchema)]
pub struct Envelope<T> {
    /// 0 on every success.
    #[schema(example = 0)]
    code: u16,
    data: T,
    msg: &'static str,
}

/// The answer of a request that worked and has nothing to tell.
#[derive(Serialize, utoipa::ToSchema)]
pub struct Done {
    /// 0 on every success.
    #[schema(example = 0)]
    code: u16,
    msg: &'static str,
}

/// The answer of a request that was refused or failed.
#[derive(Serialize, utoipa::ToSchema)]
pub struct Refusal<'a> {
    /// The HTTP status.
    #[schema(example = 400)]
    code: u16,
    /// What is wrong, naming the field.
    msg: &'a str,
    /// A constant that clients can look for.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

/// 200 with data.
pub fn ok<T: Serialize>(data: T) -> Response {
    json(StatusCode::OK, &Envelope { code: 0, data, msg: "" })
}

/// 200 with data and with a word in `msg`.
pub fn ok_saying<T: Serialize>(msg: &'static str, data: T) -> Response {
    json(StatusCode::OK, &Envelope { code: 0, data, msg })
}

/// 201 with data.
pub fn created<T: Serialize>(data: T) -> Response {
    json(StatusCode::CREATED, &Envelope { code: 0, data, msg: "" })
}

/// 200 without data.
pub fn done() -> Response {
    said("")
}

/// 200 without data and with a word in `msg`.
pub fn said(msg: &'static str) -> Response {
    json(StatusCode::OK, &Done { code: 0, msg })
}

/// An error's answer; [`crate::error::Error`] chooses status and text.
pub fn refusal(status: StatusCode, msg: &str, error: Option<&str>) -> Response {
    json(status, &Refusal { code: status.as_u16(), msg, error })
}

/// An answer that was given before, byte for byte.
pub fn again(status: StatusCode, body: Bytes) -> Response {
    let mut response = written(status, Body::from(body));
    response.headers_mut().insert(REPLAYED.clone(), HeaderValue::from_static("true"));
    response
}

fn json(status: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(bytes) => written(status, Body::from(bytes)),
        // Only a `Serialize` that fails by itself gets here; none of ours does.
        Err(fault) => crate::error::Error::internal(fault).into_response(),
    }
}

fn written(status: StatusCode, body: Body) -> Response {
    let mut response = (status, body).into_response();
    let kind = HeaderValue::from_static("application/json; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
