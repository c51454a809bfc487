//! Values of request headers.

use axum::http::{HeaderMap, HeaderName, header};

/// Returns `Content-Type` as the client sent it, or an empty string if the header is missing or is not ASCII.
pub fn content_type(headers: &HeaderMap) -> &str {
    header_text(headers, header::CONTENT_TYPE).unwrap_or_default()
}

/// Returns the media type in `Content-Type`, without parameters and in lower case, or an empty string if [`content_type`] is
/// empty.
pub fn media_type(headers: &HeaderMap) -> String {
    content_type(headers).split([';', ' ']).next().unwrap_or_default().to_ascii_lowercase()
}

/// Returns `Content-Length` in bytes, or `None` if the header is missing or is not a number.
pub fn content_length(headers: &HeaderMap) -> Option<u64> {
    header_text(headers, header::CONTENT_LENGTH)?.parse().ok()
}

fn header_text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}
