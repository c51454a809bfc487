//! Serves stored files with ranges, conditional requests and file names. Response headers prevent browsers from running stored
//! content as a page of this server.

use std::collections::BTreeMap;
use std::ops::Range;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use utoipa::IntoResponses;
use utoipa::openapi::{ContentBuilder, RefOr, ResponseBuilder};

use super::response;
use crate::blob::content::ContentKey;
use crate::blob::rows::StoredBlob;
use crate::blob::service::BlobService;
use crate::error::Result;
use crate::mime;
use crate::percent;

/// The properties of a file that the response headers contain.
pub struct FileInfo<'a> {
    pub mime: &'a str,
    pub filename: &'a str,
    /// The SHA-256 of the content in lower-case hex, which is the ETag.
    pub sha256: &'a str,
    /// `true` if shared caches may store the response.
    pub is_public: bool,
}

/// A response with a file, or with a range of it.
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
        let description = "Not modified; `If-None-Match` contains the ETag of the file";
        let not_modified = ResponseBuilder::new().description(description).build().into();
        BTreeMap::from([
            ("200".to_owned(), bytes("The file")),
            ("206".to_owned(), bytes("The range of the file that `Range` requests")),
            ("304".to_owned(), not_modified),
        ])
    }
}

/// Returns the response to a GET or HEAD request: the file, a range of the file, 304 if the client has the current content, or
/// 416 if the requested range contains no byte of the file.
///
/// # Errors
/// Returns an error if the file cannot be read or decrypted.
pub async fn serve(
    blobs: &BlobService,
    stored: &StoredBlob,
    key: ContentKey<'_>,
    info: &FileInfo<'_>,
    method: &Method,
    headers: &HeaderMap,
) -> Result<FileResponse> {
    let size = stored.size.cast_unsigned();
    let etag = format!("\"{}\"", info.sha256);
    let request_header = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    if request_header(header::IF_NONE_MATCH).is_some_and(|tags| etag_matches(tags, &etag)) {
        let mut response = StatusCode::NOT_MODIFIED.into_response();
        set_content_headers(response.headers_mut(), info, &etag);
        return Ok(FileResponse(response));
    }
    let if_range_matches = request_header(header::IF_RANGE).is_none_or(|tag| tag == etag);
    let range = match request_header(header::RANGE).filter(|_| if_range_matches) {
        Some(range) => parse_range(range, size),
        None => ByteRange::Full,
    };
    let (status, range) = match range {
        ByteRange::Full => (StatusCode::OK, 0..size),
        ByteRange::Partial(range) => (StatusCode::PARTIAL_CONTENT, range),
        ByteRange::NotSatisfiable => {
            let msg = format!("Range: contains no byte of the file, which has {size} bytes");
            let mut response = response::error(StatusCode::RANGE_NOT_SATISFIABLE, &msg, None);
            set_header(response.headers_mut(), header::CONTENT_RANGE, &format!("bytes */{size}"));
            return Ok(FileResponse(response));
        }
    };
    let is_head = *method == Method::HEAD;
    // A HEAD request opens an encrypted file, too. Otherwise it would succeed for a file that cannot be decrypted.
    let must_open = !is_head || stored.encryption_format.is_some();
    let bytes = if must_open { Some(blobs.open(key, stored, range.clone()).await?) } else { None };
    let body = bytes.filter(|_| !is_head).map_or_else(Body::empty, Body::from_stream);
    let mut response = (status, body).into_response();
    set_content_headers(response.headers_mut(), info, &etag);
    set_header(response.headers_mut(), header::CONTENT_LENGTH, &(range.end - range.start).to_string());
    if status == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {}-{}/{size}", range.start, range.end - 1);
        set_header(response.headers_mut(), header::CONTENT_RANGE, &range);
    }
    Ok(FileResponse(response))
}

fn set_content_headers(headers: &mut HeaderMap, info: &FileInfo<'_>, etag: &str) {
    set_header(headers, header::CONTENT_TYPE, info.mime);
    set_header(headers, header::ETAG, etag);
    set_header(headers, header::ACCEPT_RANGES, "bytes");
    set_header(headers, header::CONTENT_DISPOSITION, &content_disposition(info));
    set_header(headers, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set_header(headers, header::CONTENT_SECURITY_POLICY, "sandbox");
    set_header(headers, header::CACHE_CONTROL, if info.is_public { "public, max-age=60" } else { "private, no-cache" });
}

fn set_header(headers: &mut HeaderMap, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// Returns the value of `Content-Disposition`. If browsers would execute a file of this type, it is an attachment, which they
/// save and do not display.
fn content_disposition(info: &FileInfo<'_>) -> String {
    let disposition = if mime::is_active_content(info.mime) { "attachment" } else { "inline" };
    let to_ascii = |c: char| {
        if c.is_ascii_graphic() && !matches!(c, '"' | '\\' | '%') || c == ' ' { c } else { '_' }
    };
    let ascii_name: String = info.filename.chars().map(to_ascii).collect();
    let encoded_name = percent::encode(info.filename.as_bytes(), b"");
    format!("{disposition}; filename=\"{ascii_name}\"; filename*=UTF-8''{encoded_name}")
}

/// Returns `true` if `If-None-Match` contains this ETag. The comparison is weak (RFC 9110, section 13.1.2).
fn etag_matches(tags: &str, etag: &str) -> bool {
    tags.split(',').map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// The range of a file that a request selects.
#[derive(Debug, PartialEq)]
enum ByteRange {
    Full,
    Partial(Range<u64>),
    NotSatisfiable,
}

/// Parses a `Range` header with one range of bytes. Other units, multiple ranges and invalid values are ignored, as RFC 9110
/// allows.
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
    fn ranges_are_parsed_as_rfc_9110_requires() {
        for (text, expected) in [
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
            assert_eq!(parse_range(text, 10), expected, "{text}");
        }
        assert_eq!(parse_range("bytes=0-", 0), ByteRange::NotSatisfiable);
    }

    #[test]
    fn file_names_are_escaped_in_the_header() {
        let info = FileInfo { mime: "text/plain", filename: "a\"b\r\n;ü.txt", sha256: "", is_public: true };
        let expected = "inline; filename=\"a_b__;_.txt\"; filename*=UTF-8''a%22b%0D%0A%3B%C3%BC.txt";
        assert_eq!(content_disposition(&info), expected);
        let info = FileInfo { mime: "text/html; charset=utf-8", ..info };
        assert!(content_disposition(&info).starts_with("attachment; "));
    }

    #[test]
    fn etags_match_in_lists_and_weakly() {
        assert!(etag_matches("\"a\", \"b\"", "\"b\""));
        assert!(etag_matches("W/\"b\"", "\"b\""));
        assert!(etag_matches("*", "\"b\""));
        assert!(!etag_matches("\"a\"", "\"b\""));
    }
}
