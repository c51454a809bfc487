//! Code that all routes share:
//!
//! - what handlers need for requests: [`context`]
//! - reading requests: [`extract`], [`body`], [`multipart`], [`json_fields`], [`request_headers`], [`page`]
//! - the memory limit of request bodies: [`memory`]
//! - writing responses: [`response`], [`download`]
//! - idempotency keys: [`idempotency`]
//! - the server and its layers: [`server`], [`middleware`], [`host`], [`prometheus`]
//! - the OpenAPI document: [`openapi`], `describe`

pub mod body;
pub mod connections;
pub mod context;
mod describe;
pub mod download;
pub mod extract;
mod file_name;
pub mod host;
pub mod idempotency;
pub mod json_fields;
pub mod memory;
pub mod middleware;
pub mod multipart;
pub mod openapi;
pub mod page;
pub mod prometheus;
pub mod request_headers;
pub mod response;
pub mod response_memory;
pub mod server;

use crate::error::{Error, Result};

/// The error for an unknown path, and for a known path with a method that it does not support.
pub const ROUTE_NOT_FOUND: Error = Error::NotFound("route not found");

/// Handles requests that match no route, and requests with a method that their route does not support.
///
/// # Errors
/// Always returns [`ROUTE_NOT_FOUND`].
pub async fn route_not_found() -> Result<()> {
    Err(ROUTE_NOT_FOUND)
}
