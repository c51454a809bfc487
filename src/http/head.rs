//! Values of request headers.

use axum::http::{HeaderMap, HeaderName, header};

/// Returns the content type as it was sent; empty if there is none.
pub fn content_type(headers: &HeaderMap) -> &str {
    text(headers, header::CONTENT_TYPE).unwrap_or_default()
}

/// Returns the content type without its parameters, in lower case; empty if there is none.
pub fn media_type(headers: &HeaderMap) -> String {
    content_type(headers).split([';', ' ']).next().unwrap_or_default().to_ascii_lowercase()
}

/// Returns the length of the body in bytes; `None` if it was not announced.
pub fn content_length(headers: &HeaderMap) -> Option<u64> {
    text(headers, header::CONTENT_LENGTH)?.parse().ok()
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}
