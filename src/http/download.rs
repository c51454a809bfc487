//! Serves stored bytes: ranges, conditional requests, names, and the headers that keep a stored page from running on our
//! origin.

use std::collections::BTreeMap;
use std::ops::Range;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use utoipa::IntoResponses;
use utoipa::openapi::{ContentBuilder, RefOr, ResponseBuilder};

use super::response;
use crate::blob::content::Key;
use crate::blob::rows::StoredBlob;
use crate::blob::service::BlobService;
use crate::error::Result;
use crate::media;
use crate::percent;

/// How stored bytes are described to the client.
pub struct DownloadMeta<'a> {
    pub mime: &'a str,
    pub filename: &'a str,
    /// Of the content, in lower-case hex: the ETag.
    pub sha256: &'a str,
    /// For `Cache-Control`.
    pub public: bool,
}

/// The bytes of a file, or of a range of it.
pub struct FileResponse(Response);

impl IntoResponse for FileResponse {
    fn into_response(self) -> Response {
        self.0
    }
}

impl IntoResponses for FileResponse {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        let bytes = |description: &str| {
            let content = ContentBuilder::new().build();
            ResponseBuilder::new().description(description).content("application/octet-stream", content).build().into()
        };
        let unchanged = ResponseBuilder::new().description("`If-None-Match` names these bytes").build().into();
        BTreeMap::from([
            ("200".to_owned(), bytes("The bytes")),
            ("206".to_owned(), bytes("The bytes of `Range`")),
            ("304".to_owned(), unchanged),
        ])
    }
}

/// Answers a GET or HEAD with the bytes, a range of them, or the word that the client has them already.
pub async fn serve(
    blobs: &BlobService,
    stored: &StoredBlob,
    key: Key<'_>,
    meta: &DownloadMeta<'_>,
    method: &Method,
    headers: &HeaderMap,
) -> Result<FileResponse> {
    let size = stored.size.cast_unsigned();
    let etag = format!("\"{}\"", meta.sha256);
    let asked = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    if asked(header::IF_NONE_MATCH).is_some_and(|tags| matches(tags, &etag)) {
        let mut response = StatusCode::NOT_MODIFIED.into_response();
        describe(response.headers_mut(), meta, &etag);
        return Ok(FileResponse(response));
    }
    let unchanged = asked(header::IF_RANGE).is_none_or(|tag| tag == etag);
    let range = match asked(header::RANGE).filter(|_| unchanged) {
        Some(range) => parse_range(range, size),
        None => ByteRange::Full,
    };
    let (status, range) = match range {
        ByteRange::Full => (StatusCode::OK, 0..size),
        ByteRange::Partial(range) => (StatusCode::PARTIAL_CONTENT, range),
        ByteRange::NotSatisfiable => {
            let mut response =
                response::error(StatusCode::RANGE_NOT_SATISFIABLE, "the range lies outside of the file", None);
            insert(response.headers_mut(), header::CONTENT_RANGE, &format!("bytes */{size}"));
            return Ok(FileResponse(response));
        }
    };
    let is_head = *method == Method::HEAD;
    // Whether a sealed content opens is known when it is tried.
    let is_looked_into = !is_head || stored.encryption_format.is_some();
    let bytes = if is_looked_into { Some(blobs.open(key, stored, range.clone()).await?) } else { None };
    let body = bytes.filter(|_| !is_head).map_or_else(Body::empty, Body::from_stream);
    let mut response = (status, body).into_response();
    describe(response.headers_mut(), meta, &etag);
    insert(response.headers_mut(), header::CONTENT_LENGTH, &(range.end - range.start).to_string());
    if status == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {}-{}/{size}", range.start, range.end - 1);
        insert(response.headers_mut(), header::CONTENT_RANGE, &range);
    }
    Ok(FileResponse(response))
}

fn describe(headers: &mut HeaderMap, meta: &DownloadMeta<'_>, etag: &str) {
    insert(headers, header::CONTENT_TYPE, meta.mime);
    insert(headers, header::ETAG, etag);
    insert(headers, header::ACCEPT_RANGES, "bytes");
    insert(headers, header::CONTENT_DISPOSITION, &disposition(meta));
    insert(headers, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    insert(headers, header::CONTENT_SECURITY_POLICY, "sandbox");
    insert(headers, header::CACHE_CONTROL, if meta.public { "public, max-age=60" } else { "private, no-cache" });
}

fn insert(headers: &mut HeaderMap, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// Types that browsers execute are saved and not shown.
fn disposition(meta: &DownloadMeta<'_>) -> String {
    let kind = if media::is_active_content(meta.mime) { "attachment" } else { "inline" };
    let plain = |c: char| {
        if c.is_ascii_graphic() && !matches!(c, '"' | '\\' | '%') || c == ' ' { c } else { '_' }
    };
    let plain: String = meta.filename.chars().map(plain).collect();
    format!("{kind}; filename=\"{plain}\"; filename*=UTF-8''{}", percent::encode(meta.filename.as_bytes(), b""))
}

/// Whether `If-None-Match` names this ETag; the weak form counts too.
fn matches(tags: &str, etag: &str) -> bool {
    tags.split(',').map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

#[derive(Debug, PartialEq)]
enum ByteRange {
    Full,
    Partial(Range<u64>),
    NotSatisfiable,
}

/// One range of bytes. Other units, several ranges and what cannot be read are ignored, as RFC 9110 allows.
fn parse_range(text: &str, size: u64) -> ByteRange {
    let Some((first, last)) = text.trim().strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return ByteRange::Full;
    };
    let (first, last) = (first.trim(), last.trim());
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => first..last.saturating_add(1).min(size),
        (Ok(first), Err(_)) if last.is_empty() => first..size,
        (Err(_), Ok(count)) if first.is_empty() => size.saturating_sub(count)..size,
        _ => return ByteRange::Full,
    };
    if range.is_empty() { ByteRange::NotSatisfiable } else { ByteRange::Partial(range) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_rfc_9110_wants() {
        for (text, wanted) in [
            ("bytes=2-5", ByteRange::Partial(2..6)),
            ("bytes=2-", ByteRange::Partial(2..10)),
            ("bytes=-3", ByteRange::Partial(7..10)),
            ("bytes=-30", ByteRange::Partial(0..10)),
            ("bytes=0-99", ByteRange::Partial(0..10)),
            ("bytes=10-", ByteRange::NotSatisfiable),
            ("bytes=-0", ByteRange::NotSatisfiable),
            ("bytes=5-2", ByteRange::Full),
            ("bytes=0-1,4-5", ByteRange::Full),
            ("lines=1-2", ByteRange::Full),
            ("bytes=x-", ByteRange::Full),
        ] {
            assert_eq!(parse_range(text, 10), wanted, "{text}");
        }
        assert_eq!(parse_range("bytes=0-", 0), ByteRange::NotSatisfiable);
    }

    #[test]
    fn a_name_cannot_leave_its_header() {
        let meta = DownloadMeta { mime: "text/plain", filename: "a\"b\r\n;ü.txt", sha256: "", public: true };
        assert_eq!(disposition(&meta), "inline; filename=\"a_b__;_.txt\"; filename*=UTF-8''a%22b%0D%0A%3B%C3%BC.txt");
        assert!(disposition(&DownloadMeta { mime: "text/html; charset=utf-8", ..meta }).starts_with("attachment; "));
    }

    #[test]
    fn etags_match_in_lists_and_weakly() {
        assert!(matches("\"a\", \"b\"", "\"b\""));
        assert!(matches("W/\"b\"", "\"b\""));
        assert!(matches("*", "\"b\""));
        assert!(!matches("\"a\"", "\"b\""));
    }
}
