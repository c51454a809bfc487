//! Reads request bodies. Each body has a size limit, and all bodies share the memory limit in [`super::memory`].

use axum::extract::Request;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;

use super::context::RequestContext;
use super::idempotency::fingerprint::Fingerprint;
use super::memory::{self, Reservations};
use super::request_headers::content_length;
use crate::error::{Error, Result};

/// Reads the body with [`read_body`] and parses it with [`BodyMemory::parse`](super::memory::BodyMemory::parse).
pub(super) async fn parse_body<T: Send + 'static>(
    request: Request,
    ctx: &RequestContext,
    limit: u64,
    parse: impl FnOnce(Bytes) -> Result<T> + Send + 'static,
) -> Result<T> {
    let reservations = Reservations::from_extensions(request.extensions());
    let body = read_body(request, ctx, limit).await?;
    ctx.body_memory.parse(&reservations, "body", body, ctx.limits.max_json_values, parse).await
}

/// Reads a body of at most `limit` bytes. A body whose `Content-Length` exceeds the limit is rejected without reading it.
///
/// # Errors
/// Returns 413 if the body exceeds the limit, and 400 if it is incomplete.
pub async fn read_body(request: Request, ctx: &RequestContext, limit: u64) -> Result<Bytes> {
    let too_large = || Error::PayloadTooLarge(format!("the body exceeds the maximum of {limit} bytes"));
    let content_length = content_length(request.headers());
    if content_length.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let fingerprint = Fingerprint::from_request(&request);
    let bytes = read_frames(request, ctx, content_length, limit).await?.ok_or_else(too_large)?;
    if let Some(fingerprint) = fingerprint {
        fingerprint.add_body(&bytes).await;
    }
    Ok(bytes)
}

/// Reads the body. Returns `None` if it exceeds `limit`.
async fn read_frames(
    request: Request,
    ctx: &RequestContext,
    content_length: Option<u64>,
    limit: u64,
) -> Result<Option<Bytes>> {
    let reservations = Reservations::from_extensions(request.extensions());
    let bytes_to_reserve = content_length.unwrap_or(limit);
    let mut body = request.into_body();
    let mut bytes = BytesMut::new();
    let mut is_reserved = false;
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|_| Error::invalid_field("body", "ended before it was complete; send the request again"))?;
        let Ok(data) = frame.into_data() else { continue };
        let length = bytes.len() + data.len();
        if length as u64 > limit {
            return Ok(None);
        }
        if length > memory::MAX_INLINE_WORK_BYTES && !is_reserved {
            ctx.body_memory.reserve_body(&reservations, bytes_to_reserve).await?;
            is_reserved = true;
            // Allocate memory for the whole body, because a buffer that grows may get twice the capacity that it needs.
            let total = usize::try_from(content_length.unwrap_or_default()).unwrap_or_default();
            bytes.reserve(total.saturating_sub(bytes.len()));
        }
        if bytes.is_empty() && content_length == Some(data.len() as u64) {
            return Ok(Some(data));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(Some(bytes.freeze()))
}
