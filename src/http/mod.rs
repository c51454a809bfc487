//! What every route shares: reading requests ([`extract`], [`body`], [`multipart`]) within the memory that there is ([`memory`]), writing responses
//! ([`response`], [`download`]), idempotency keys ([`idempotency`]), the layers around the routes ([`middleware`], [`host`],
//! [`server`]), metrics ([`prometheus`]), and the API's document ([`openapi`]).

pub mod body;
pub mod context;
mod describe;
pub mod download;
pub mod extract;
pub mod head;
pub mod host;
pub mod idempotency;
pub mod json;
pub mod memory;
pub mod middleware;
pub mod multipart;
pub mod openapi;
pub mod page;
pub mod prometheus;
pub mod response;
pub mod server;

use crate::error::{Error, Result};

/// The response to unknown paths, and to known ones with another method.
pub const ROUTE_NOT_FOUND: Error = Error::NotFound("no such route");

/// Handles requests that match no route.
///
/// # Errors
/// Always [`ROUTE_NOT_FOUND`].
pub async fn not_found() -> Result<()> {
    Err(ROUTE_NOT_FOUND)
}
