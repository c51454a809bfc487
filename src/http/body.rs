//! Reads request bodies, within their limit and the memory that there is.

use axum::extract::Request;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;

use super::context::RequestContext;
use super::head::content_length;
use super::idempotency::fingerprint::Fingerprint;
use super::memory::{self, Reservations};
use crate::error::{Error, Result};

/// Reads the body and parses it, see [`BodyMemory::parse`](super::memory::BodyMemory::parse).
pub(super) async fn parse_body<T: Send + 'static>(
    request: Request,
    ctx: &RequestContext,
    limit: u64,
    parse: impl FnOnce(Bytes) -> Result<T> + Send + 'static,
) -> Result<T> {
    let reservations = Reservations::of(request.extensions());
    let body = body_bytes(request, ctx, limit).await?;
    ctx.body_memory.parse(&reservations, "body", body, ctx.limits.json_values, parse).await
}

/// Reads a body of at most `limit` bytes. If a longer one is announced, it is refused unread.
///
/// # Errors
/// Returns 413 for a longer body and 400 for one that ends early.
pub async fn body_bytes(request: Request, ctx: &RequestContext, limit: u64) -> Result<Bytes> {
    let too_large = || Error::PayloadTooLarge(format!("the body is larger than the maximum of {limit} bytes"));
    let announced = content_length(request.headers());
    if announced.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let fingerprint = Fingerprint::wanted_by(&request);
    let bytes = read_body(request, ctx, announced, limit).await?.ok_or_else(too_large)?;
    if let Some(fingerprint) = fingerprint {
        fingerprint.add_body(&bytes).await;
    }
    Ok(bytes)
}

/// Returns `None` for a body longer than `limit`.
async fn read_body(
    request: Request,
    ctx: &RequestContext,
    announced: Option<u64>,
    limit: u64,
) -> Result<Option<Bytes>> {
    let reservations = Reservations::of(request.extensions());
    let expected = announced.unwrap_or(limit);
    let mut body = request.into_body();
    let mut bytes = BytesMut::new();
    let mut is_reserved = false;
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|_| Error::bad_request_with_reason("parameter error", "body: ended before it was whole"))?;
        let Ok(data) = frame.into_data() else { continue };
        let length = bytes.len() + data.len();
        if length as u64 > limit {
            return Ok(None);
        }
        if length > memory::SHORT && !is_reserved {
            ctx.body_memory.reserve_body(&reservations, expected).await?;
            is_reserved = true;
            // Room for all of it, so that the buffer does not grow by doubling.
            let announced = usize::try_from(announced.unwrap_or_default()).unwrap_or_default();
            bytes.reserve(announced.saturating_sub(bytes.len()));
        }
        if bytes.is_empty() && announced == Some(data.len() as u64) {
            return Ok(Some(data));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(Some(bytes.freeze()))
}
