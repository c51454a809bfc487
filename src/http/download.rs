//! Serves stored bytes: ranges, conditional requests, names, and the headers that keep a stored page from running on our
//! origin.

use std::ops::Range;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::Utc;

use super::extract::{Path, PathParam};
use super::openapi::Refusals;
use super::response;
use crate::app::App;
use crate::blob::content::{self, Key};
use crate::blob::links::Link;
use crate::blob::rows::{self, StoredBlob};
use crate::error::{Error, Result};
use crate::media;
use crate::percent;
use crate::seal::Dek;

/// How stored bytes are presented.
pub struct Presented<'a> {
    pub mime: &'a str,
    pub filename: &'a str,
    /// Of the content, in lower-case hex: the ETag.
    pub sha256: &'a str,
    /// For `Cache-Control`.
    pub public: bool,
}

/// Answers a GET or HEAD with the bytes, a range of them, or the word that the client has them already.
pub async fn serve(
    app: &App,
    stored: &StoredBlob,
    key: Key<'_>,
    as_: &Presented<'_>,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Response> {
    let size = stored.size.cast_unsigned();
    let etag = format!("\"{}\"", as_.sha256);
    let asked = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    if asked(header::IF_NONE_MATCH).is_some_and(|tags| matches(tags, &etag)) {
        let mut response = StatusCode::NOT_MODIFIED.into_response();
        describe(response.headers_mut(), as_, &etag);
        return Ok(response);
    }
    let unchanged = asked(header::IF_RANGE).is_none_or(|tag| tag == etag);
    let range = match asked(header::RANGE).filter(|_| unchanged) {
        Some(range) => parse_range(range, size),
        None => Wanted::All,
    };
    let (status, range) = match range {
        Wanted::All => (StatusCode::OK, 0..size),
        Wanted::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Wanted::None => {
            let mut response =
                response::error(StatusCode::RANGE_NOT_SATISFIABLE, "the range lies outside of the file", None);
            insert(response.headers_mut(), header::CONTENT_RANGE, &format!("bytes */{size}"));
            return Ok(response);
        }
    };
    let is_head = *method == Method::HEAD;
    // Whether a sealed content opens is known when it is tried.
    let is_looked_into = !is_head || stored.seal.is_some();
    let bytes = if is_looked_into { Some(content::open(app, key, stored, range.clone()).await?) } else { None };
    let body = bytes.filter(|_| !is_head).map_or_else(Body::empty, Body::from_stream);
    let mut response = (status, body).into_response();
    describe(response.headers_mut(), as_, &etag);
    insert(response.headers_mut(), header::CONTENT_LENGTH, &(range.end - range.start).to_string());
    if status == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {}-{}/{size}", range.start, range.end - 1);
        insert(response.headers_mut(), header::CONTENT_RANGE, &range);
    }
    Ok(response)
}

fn describe(headers: &mut HeaderMap, as_: &Presented<'_>, etag: &str) {
    insert(headers, header::CONTENT_TYPE, as_.mime);
    insert(headers, header::ETAG, etag);
    insert(headers, header::ACCEPT_RANGES, "bytes");
    insert(headers, header::CONTENT_DISPOSITION, &disposition(as_));
    insert(headers, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    insert(headers, header::CONTENT_SECURITY_POLICY, "sandbox");
    insert(headers, header::CACHE_CONTROL, if as_.public { "public, max-age=60" } else { "private, no-cache" });
}

fn insert(headers: &mut HeaderMap, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// Types that browsers execute are saved and not shown.
fn disposition(as_: &Presented<'_>) -> String {
    let kind = if media::runs_in_browser(as_.mime) { "attachment" } else { "inline" };
    let plain = |c: char| {
        if c.is_ascii_graphic() && !matches!(c, '"' | '\\' | '%') || c == ' ' { c } else { '_' }
    };
    let plain: String = as_.filename.chars().map(plain).collect();
    format!("{kind}; filename=\"{plain}\"; filename*=UTF-8''{}", percent::encode(as_.filename.as_bytes(), b""))
}

/// Whether `If-None-Match` names this ETag; the weak form counts too.
fn matches(tags: &str, etag: &str) -> bool {
    tags.split(',').map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

#[derive(Debug, PartialEq)]
enum Wanted {
    All,
    Part(Range<u64>),
    None,
}

/// One range of bytes. Other units, several ranges and what cannot be read are ignored, as RFC 9110 allows.
fn parse_range(text: &str, size: u64) -> Wanted {
    let Some((first, last)) = text.trim().strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Wanted::All;
    };
    let (first, last) = (first.trim(), last.trim());
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => first..last.saturating_add(1).min(size),
        (Ok(first), Err(_)) if last.is_empty() => first..size,
        (Err(_), Ok(count)) if first.is_empty() => size.saturating_sub(count)..size,
        _ => return Wanted::All,
    };
    if range.is_empty() { Wanted::None } else { Wanted::Part(range) }
}

/// The token of a public link.
pub struct Token(String);

impl PathParam for Token {
    const NAME: &'static str = "token";

    fn read(text: &str) -> Result<Self, &'static str> {
        Ok(Self(text.to_owned()))
    }
}

/// Open a public link
///
/// Needs no key. Serves exactly the bytes that the link was made for, as long as the project keeps them.
#[utoipa::path(get, path = "/api/v1/material/{token}", tag = "material", security(()),
    params(("token" = String, Path, description = "From a public URL")),
    responses((status = 200, description = "The bytes", content_type = "application/octet-stream"),
        (status = 206, description = "The bytes of `Range`", content_type = "application/octet-stream"),
        (status = 304, description = "`If-None-Match` names these bytes"), Refusals))]
pub async fn get_material(
    State(app): State<App>,
    token: Result<Path<Token>>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response> {
    const GONE: Error = Error::NotFound("material not found");
    let Path(Token(token)) = token.map_err(|_| GONE)?;
    let link = Link::verify(&token, &app.link_key, Utc::now().timestamp()).ok_or(GONE)?;
    let mut conn = app.db.acquire().await?;
    let stored = rows::get_by_sha256(&mut conn, link.project, &link.sha256).await?.ok_or(GONE)?;
    drop(conn);
    let as_ = Presented { mime: &link.mime, filename: &link.filename, sha256: &link.sha256, public: true };
    let dek =
        link.key.map(|key| app.link_key.unwrap(&key)).transpose().map_err(|_| GONE)?.map(|key| Dek::of_bytes(*key));
    let key = dek.as_ref().map_or(Key::Project(None), Key::Object);
    match serve(&app, &stored, key, &as_, &method, &headers).await {
        // It was sealed after the link was made, or sealed anew.
        Err(Error::KeyRequired | Error::Damaged { .. }) => Err(GONE),
        served => served,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_rfc_9110_wants() {
        for (text, wanted) in [
            ("bytes=2-5", Wanted::Part(2..6)),
            ("bytes=2-", Wanted::Part(2..10)),
            ("bytes=-3", Wanted::Part(7..10)),
            ("bytes=-30", Wanted::Part(0..10)),
            ("bytes=0-99", Wanted::Part(0..10)),
            ("bytes=10-", Wanted::None),
            ("bytes=-0", Wanted::None),
            ("bytes=5-2", Wanted::All),
            ("bytes=0-1,4-5", Wanted::All),
            ("lines=1-2", Wanted::All),
            ("bytes=x-", Wanted::All),
        ] {
            assert_eq!(parse_range(text, 10), wanted, "{text}");
        }
        assert_eq!(parse_range("bytes=0-", 0), Wanted::None);
    }

    #[test]
    fn a_name_cannot_leave_its_header() {
        let as_ = Presented { mime: "text/plain", filename: "a\"b\r\n;ü.txt", sha256: "", public: true };
        assert_eq!(disposition(&as_), "inline; filename=\"a_b__;_.txt\"; filename*=UTF-8''a%22b%0D%0A%3B%C3%BC.txt");
        assert!(disposition(&Presented { mime: "text/html; charset=utf-8", ..as_ }).starts_with("attachment; "));
    }

    #[test]
    fn etags_match_in_lists_and_weakly() {
        assert!(matches("\"a\", \"b\"", "\"b\""));
        assert!(matches("W/\"b\"", "\"b\""));
        assert!(matches("*", "\"b\""));
        assert!(!matches("\"a\"", "\"b\""));
    }
}
