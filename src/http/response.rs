//! The envelope of every JSON response, `{"code":0,"data":…,"msg":""}` or `{"code":<status>,"msg":…,"error":…}`, and the types that bind
//! a handler's response to its description in the API's document.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::BodyExt;
use serde::Serialize;
use utoipa::openapi::schema::{Array, Schema};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{IntoResponses, PartialSchema, ToSchema};

use super::describe::{self, BodySchema};
use super::page::Page;
use crate::error::Error;

/// Marks the replay of a stored response.
static REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// A JSON response that is written, and in its type the description that the API's document has of it: [`Data`], [`Created`],
/// [`CreatedOrExisting`],
/// [`PageBody`], [`ListOf`] or [`Empty`]. The functions of this module are the only source, so a response cannot differ from its
/// description.
pub struct ApiResponse<R> {
    response: Response,
    description: PhantomData<fn() -> R>,
}

/// The result of a handler that reads.
pub type QueryResult<R> = Result<ApiResponse<R>, Error>;
/// The result of a handler that changes something.
pub type CommandResult<R> = Result<ApiResponse<R>, HandlerError>;

/// Describes 200 with data.
pub struct Data<T>(PhantomData<T>);
/// Describes 201 with data.
pub struct Created<T>(PhantomData<T>);
/// Describes 201 with new data, or 200 with data that existed already.
pub struct CreatedOrExisting<T>(PhantomData<T>);
/// Describes 200 with a page of a list.
pub struct PageBody<T>(PhantomData<T>);
/// Describes 200 with a whole list.
pub struct ListOf<T>(PhantomData<T>);
/// Describes 200 without data.
pub struct Empty;

/// A response that is no envelope, such as a file. The attribute of the handler describes it.
pub struct RawResponse(Response);

/// Why a handler ends before its work is done.
#[derive(Debug)]
pub enum HandlerError {
    Error(Error),
    /// The request was completed before, and this is its stored response.
    Replayed(StoredResponse),
}

/// The response of a request that was completed before.
#[derive(Debug)]
pub struct StoredResponse {
    pub status: StatusCode,
    pub body: Bytes,
}

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
pub fn ok<T: Serialize>(data: T) -> ApiResponse<Data<T>> {
    ok_with_message("", data)
}

/// Returns 200 with data and a text in `msg`.
pub fn ok_with_message<T: Serialize>(msg: &'static str, data: T) -> ApiResponse<Data<T>> {
    ApiResponse::new(json(StatusCode::OK, &Envelope { code: 0, data, msg }))
}

/// Returns 200 with a page of a list.
pub fn page<T: Serialize>(page: Page<T>) -> ApiResponse<PageBody<T>> {
    ApiResponse::new(json(StatusCode::OK, &Envelope { code: 0, data: page, msg: "" }))
}

/// Returns 200 with a whole list.
pub fn list<T: Serialize>(list: Vec<T>) -> ApiResponse<ListOf<T>> {
    ApiResponse::new(json(StatusCode::OK, &Envelope { code: 0, data: list, msg: "" }))
}

/// Returns 200 with data of no fixed shape and a text in `msg`; `D` describes the data.
pub fn ok_described_as<D>(msg: &'static str, data: impl Serialize) -> ApiResponse<Data<D>> {
    ApiResponse::new(json(StatusCode::OK, &Envelope { code: 0, data, msg }))
}

/// Returns 200 with a body of this length in bytes, in which the caller has written the whole envelope.
pub fn ok_written<T>(body: Body, length: usize) -> ApiResponse<Data<T>> {
    let mut response = json_response(StatusCode::OK, body);
    response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    ApiResponse::new(response)
}

/// Returns 201 with data.
pub fn created<T: Serialize>(data: T) -> ApiResponse<Created<T>> {
    ApiResponse::new(json(StatusCode::CREATED, &Envelope { code: 0, data, msg: "" }))
}

/// Returns 200 without data.
pub fn ok_empty() -> ApiResponse<Empty> {
    message("")
}

/// Returns 200 without data and with a text in `msg`.
pub fn message(msg: &'static str) -> ApiResponse<Empty> {
    ApiResponse::new(json(StatusCode::OK, &EmptyResponse { code: 0, msg }))
}

/// Returns an error response; [`Error`] chooses its status and text.
pub(super) fn error(status: StatusCode, msg: &str, error: Option<&str>) -> Response {
    json(status, &ErrorResponse { code: status.as_u16(), msg, error })
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

impl<R> ApiResponse<R> {
    fn new(response: Response) -> Self {
        Self { response, description: PhantomData }
    }

    /// Returns `false` for data that could not be serialized.
    pub(super) fn is_success(&self) -> bool {
        self.response.status().is_success()
    }

    /// Returns the status and the bytes of the response besides the response itself. The body lies in memory.
    ///
    /// # Errors
    /// 500 if the body cannot be read.
    pub(super) async fn into_bytes(self) -> Result<(StatusCode, Bytes, Self), Error> {
        let (parts, body) = self.response.into_parts();
        let body = body.collect().await.map_err(Error::internal)?.to_bytes();
        let status = parts.status;
        Ok((status, body.clone(), Self::new(Response::from_parts(parts, Body::from(body)))))
    }
}

impl<T> From<ApiResponse<Data<T>>> for ApiResponse<CreatedOrExisting<T>> {
    fn from(existing: ApiResponse<Data<T>>) -> Self {
        Self::new(existing.response)
    }
}

impl<T> From<ApiResponse<Created<T>>> for ApiResponse<CreatedOrExisting<T>> {
    fn from(created: ApiResponse<Created<T>>) -> Self {
        Self::new(created.response)
    }
}

impl<R> IntoResponse for ApiResponse<R> {
    fn into_response(self) -> Response {
        self.response
    }
}

impl<R: IntoResponses> IntoResponses for ApiResponse<R> {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        R::responses()
    }
}

/// Defines what a type describes: the responses by their status, with a text.
macro_rules! describe {
    ($Description:ty $(, $T:ident)?: $body:expr, $($status:literal $text:literal),+) => {
        impl$(<$T: ToSchema>)? IntoResponses for $Description {
            fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
                BTreeMap::from([$(describe::describe_response($status, $text, $body)),+])
            }
        }
    };
}

describe!(Data<T>, T: data_schema::<T>(), "200" "");
describe!(Created<T>, T: data_schema::<T>(), "201" "");
describe!(CreatedOrExisting<T>, T: data_schema::<T>(), "201" "", "200" "It was there already");
describe!(PageBody<T>, T: page_schema::<T>(), "200" "");
describe!(ListOf<T>, T: list_schema::<T>(), "200" "");
describe!(Empty: BodySchema::of::<EmptyResponse>(), "200" "");

fn data_schema<T: ToSchema>() -> BodySchema {
    BodySchema::with_data::<Envelope<T>, T>(format!("Envelope_{}", T::name()), Ref::from_schema_name(T::name()).into())
}

fn page_schema<T: ToSchema>() -> BodySchema {
    BodySchema::with_data::<Envelope<T>, T>(format!("Envelope_Page_{}", T::name()), Page::<T>::schema())
}

fn list_schema<T: ToSchema>() -> BodySchema {
    let list = Array::new(Ref::from_schema_name(T::name()));
    BodySchema::with_data::<Envelope<T>, T>(format!("Envelope_Vec_{}", T::name()), Schema::Array(list).into())
}

impl From<Response> for RawResponse {
    fn from(response: Response) -> Self {
        Self(response)
    }
}

impl IntoResponse for RawResponse {
    fn into_response(self) -> Response {
        self.0
    }
}

impl IntoResponses for RawResponse {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        BTreeMap::new()
    }
}

impl<E> From<E> for HandlerError
where
    Error: From<E>,
{
    fn from(err: E) -> Self {
        Self::Error(err.into())
    }
}

impl IntoResponse for HandlerError {
    fn into_response(self) -> Response {
        match self {
            Self::Error(error) => error.into_response(),
            // Byte for byte.
            Self::Replayed(StoredResponse { status, body }) => {
                let mut response = json_response(status, Body::from(body));
                response.headers_mut().insert(REPLAYED.clone(), HeaderValue::from_static("true"));
                response
            }
        }
    }
}

impl IntoResponses for HandlerError {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        Error::responses()
    }
}

impl IntoResponses for Error {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        let client = "Refused; `code` is the status, `msg` names the field or what is missing";
        let server = "A fault of the server; 503 may work in a moment";
        BTreeMap::from([
            ("4XX".to_owned(), describe::inline_response::<ErrorResponse<'_>>(client)),
            ("5XX".to_owned(), describe::inline_response::<ErrorResponse<'_>>(server)),
        ])
    }
}

/// The cause of a server error, for the log line of the request. It travels in the response's extensions and never reaches the
/// client.
#[derive(Clone)]
pub struct ErrorCause(pub Arc<anyhow::Error>);

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut response = error(status, &self.public_message(), self.error_code());
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
        }
        if let Some(cause) = self.into_cause() {
            response.extensions_mut().insert(ErrorCause(Arc::new(cause)));
        }
        response
    }
}
