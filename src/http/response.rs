//! The response envelope, `{"code":0,"data":…,"msg":""}` or `{"code":<status>,"msg":…,"error":…}`, and the types
//! that connect a handler's response with its description in the OpenAPI document.

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

/// The response header that marks the replay of a stored response.
static REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// A serialized JSON response. The type argument describes it in the OpenAPI document: [`Data`], [`Created`],
/// [`CreatedOrExisting`], [`PageBody`], [`ListOf`] or [`Empty`]. Only the functions of this module create responses, so that each
/// response has the status and the envelope of its description.
pub struct ApiResponse<R> {
    response: Response,
    description: PhantomData<fn() -> R>,
}

/// The result of a handler that only reads.
pub type QueryResult<R> = Result<ApiResponse<R>, Error>;
/// The result of a handler that changes something.
pub type CommandResult<R> = Result<ApiResponse<R>, HandlerError>;

/// The description of a 200 response with data.
pub struct Data<T>(PhantomData<T>);
/// The description of a 201 response with data.
pub struct Created<T>(PhantomData<T>);
/// The description of a response with data: 201 if the request created the entity, 200 if the entity already existed.
pub struct CreatedOrExisting<T>(PhantomData<T>);
/// The description of a 200 response with a page of a list.
pub struct PageBody<T>(PhantomData<T>);
/// The description of a 200 response with a complete list.
pub struct ListOf<T>(PhantomData<T>);
/// The description of a 200 response without data.
pub struct Empty;

/// A response without the envelope, such as a file. The `utoipa::path` attribute of the handler describes it.
pub struct RawResponse(Response);

/// The reason why a handler returns early: an error, or a stored response.
#[derive(Debug)]
pub enum HandlerError {
    Error(Error),
    /// The stored response of an earlier request with the same idempotency key.
    Replayed(StoredResponse),
}

/// The stored response of a completed request.
#[derive(Debug)]
pub struct StoredResponse {
    pub status: StatusCode,
    pub body: Bytes,
}

/// A successful response.
#[derive(Serialize, utoipa::ToSchema)]
pub struct Envelope<T> {
    /// Always 0 for a successful response.
    #[schema(example = 0)]
    code: u16,
    data: T,
    msg: &'static str,
}

/// A successful response without data.
#[derive(Serialize, utoipa::ToSchema)]
pub struct EmptyResponse {
    /// Always 0 for a successful response.
    #[schema(example = 0)]
    code: u16,
    msg: &'static str,
}

/// An error response.
#[derive(Serialize, utoipa::ToSchema)]
pub struct ErrorResponse<'a> {
    /// The HTTP status.
    #[schema(example = 400)]
    code: u16,
    /// Human-readable description of the error. For an invalid field, it contains the name of the field.
    msg: &'a str,
    /// Machine-readable error code, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

/// Returns 200 with data.
pub fn ok<T: Serialize>(data: T) -> ApiResponse<Data<T>> {
    ok_with_message("", data)
}

/// Returns 200 with data and a message.
pub fn ok_with_message<T: Serialize>(msg: &'static str, data: T) -> ApiResponse<Data<T>> {
    ApiResponse::new(json(StatusCode::OK, &Envelope { code: 0, data, msg }))
}

/// Returns 200 with a page of a list.
pub fn page<T: Serialize>(page: &Page<T>) -> ApiResponse<PageBody<T>> {
    ApiResponse::new(serialized(StatusCode::OK, page.to_json()))
}

/// Returns 200 with a complete list.
pub fn list<T: Serialize>(list: Vec<T>) -> ApiResponse<ListOf<T>> {
    ApiResponse::new(json(StatusCode::OK, &Envelope { code: 0, data: list, msg: "" }))
}

/// Returns 200 with data and a message. In the OpenAPI document, the data has the type `D`.
pub fn ok_described_as<D>(msg: &'static str, data: impl Serialize) -> ApiResponse<Data<D>> {
    ApiResponse::new(json(StatusCode::OK, &Envelope { code: 0, data, msg }))
}

/// Returns 200 with a response envelope that the caller has serialized. `length` is the length of `body` in bytes. In the OpenAPI
/// document, the data has the type `T`.
pub fn ok_serialized<T>(body: Body, length: usize) -> ApiResponse<Data<T>> {
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
    ok_message("")
}

/// Returns 200 with a message and without data.
pub fn ok_message(msg: &'static str) -> ApiResponse<Empty> {
    ApiResponse::new(json(StatusCode::OK, &EmptyResponse { code: 0, msg }))
}

/// Returns an error response.
pub(super) fn error(status: StatusCode, msg: &str, error: Option<&str>) -> Response {
    json(status, &ErrorResponse { code: status.as_u16(), msg, error })
}

fn json(status: StatusCode, body: &impl Serialize) -> Response {
    serialized(status, serde_json::to_vec(body))
}

fn serialized(status: StatusCode, body: serde_json::Result<Vec<u8>>) -> Response {
    match body {
        Ok(bytes) => json_response(status, Body::from(bytes)),
        // Never happens: no `Serialize` implementation of this program fails.
        Err(err) => Error::internal(err).into_response(),
    }
}

fn json_response(status: StatusCode, body: Body) -> Response {
    let mut response = (status, body).into_response();
    let content_type = HeaderValue::from_static("application/json; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

impl<R> ApiResponse<R> {
    fn new(response: Response) -> Self {
        Self { response, description: PhantomData }
    }

    /// Returns `false` if the response is an error, because the data could not be serialized.
    pub(super) fn is_success(&self) -> bool {
        self.response.status().is_success()
    }

    /// Reads the whole body into memory. Returns the status, the body, and a response that is equal to this one.
    ///
    /// # Errors
    /// Returns 500 if the body cannot be read.
    pub(super) async fn into_buffered(self) -> Result<(StatusCode, Bytes, Self), Error> {
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

/// Implements [`IntoResponses`] for a type such as [`Data`]. The arguments are the type, the schema of the body, and each status
/// with its description.
macro_rules! impl_into_responses {
    ($Description:ty $(, $T:ident)?: $body:expr, $($status:literal $description:literal),+) => {
        impl$(<$T: ToSchema>)? IntoResponses for $Description {
            fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
                BTreeMap::from([$(describe::describe_response($status, $description, $body)),+])
            }
        }
    };
}

impl_into_responses!(Data<T>, T: data_schema::<T>(), "200" "Success");
impl_into_responses!(Created<T>, T: data_schema::<T>(), "201" "Created");
impl_into_responses!(CreatedOrExisting<T>, T: data_schema::<T>(), "201" "Created", "200" "Already exists");
impl_into_responses!(PageBody<T>, T: page_schema::<T>(), "200" "Success");
impl_into_responses!(ListOf<T>, T: list_schema::<T>(), "200" "Success");
impl_into_responses!(Empty: BodySchema::for_type::<EmptyResponse>(), "200" "Success");

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
            // The stored body is returned unchanged.
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
        let client = "Client error; `code` is the HTTP status, `msg` describes the problem";
        let server = "Server error; a request that failed with 503 can be retried";
        BTreeMap::from([
            ("4XX".to_owned(), describe::describe_inline_response::<ErrorResponse<'_>>(client)),
            ("5XX".to_owned(), describe::describe_inline_response::<ErrorResponse<'_>>(server)),
        ])
    }
}

/// The cause of a server error, for the access log. It is in the extensions of the response and is not sent to the client.
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
