//! The values of the settings of the language model: their types and parsers. The error of a parser completes a sentence about
//! the setting, and never contains a secret.

use std::fmt::{Debug, Formatter};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value};

use crate::config::values::parse_nonzero_duration;
use crate::json;

/// Query parameters. Their values may be secret.
#[derive(Clone)]
pub(super) struct Query(Vec<(String, SecretString)>);

impl Query {
    /// Returns the names and values.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.expose_secret()))
    }
}

impl Debug for Query {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// A JSON object. A type of its own, because clap cannot parse into a map.
#[derive(Clone, Debug)]
pub(super) struct JsonObject(pub Map<String, Value>);

pub(super) fn parse_api_key(text: &str) -> Result<SecretString, String> {
    let key = text.trim();
    let is_valid = !key.is_empty() && key.chars().all(|c| c.is_ascii_graphic());
    if is_valid { Ok(key.into()) } else { Err("must consist of visible ASCII characters without spaces".into()) }
}

pub(super) fn parse_base_url(text: &str) -> Result<Url, String> {
    const EXAMPLE: &str = "such as http://localhost:11434/v1";
    let url = Url::parse(text.trim()).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    let url = url.ok_or_else(|| format!("must be a URL that begins with http:// or https://, {EXAMPLE}"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not contain a user or a password: set LLM_API_KEY, or LLM_OPENAI_DEFAULT_HEADER".into());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("must not contain ? or #: set query parameters in LLM_OPENAI_DEFAULT_QUERY".into());
    }
    Ok(url)
}

pub(super) fn parse_max_tokens(text: &str) -> Result<u32, String> {
    let number = text.trim().parse().ok().filter(|n| (16..=1_000_000).contains(n));
    number.ok_or_else(|| "must be a whole number from 16 to 1000000, such as 4096".into())
}

/// The maximum time to wait for a response. An attempt of a job is long enough for a response that takes this time.
const MAX_RESPONSE_TIMEOUT: Duration = Duration::from_mins(10);

pub(super) fn parse_response_timeout(text: &str) -> Result<Duration, String> {
    match parse_nonzero_duration(text)? {
        timeout if timeout > MAX_RESPONSE_TIMEOUT => {
            Err("must be at most 600s, because a job cannot wait longer".into())
        }
        timeout => Ok(timeout),
    }
}

fn parse_object(text: &str, example: &str) -> Result<Map<String, Value>, String> {
    match json::parse(text.as_bytes()) {
        Ok(Value::Object(object)) => Ok(object),
        _ => Err(format!("must be a JSON object, such as {example}")),
    }
}

/// Parses a JSON object whose values are strings.
fn parse_strings(text: &str, example: &str) -> Result<Vec<(String, SecretString)>, String> {
    let pairs = parse_object(text, example)?.into_iter().map(|(name, value)| match value {
        Value::String(text) => Ok((name, text.into())),
        _ => Err(format!("must be a JSON object of strings, such as {example}, but {name} is not a string")),
    });
    pairs.collect()
}

pub(super) fn parse_query(text: &str) -> Result<Query, String> {
    parse_strings(text, r#"{"api-version": "2024-10-21"}"#).map(Query)
}

/// Headers that the client determines itself.
const RESERVED_HEADERS: &[&str] = &["connection", "content-length", "content-type", "host", "transfer-encoding"];

pub(super) fn parse_headers(text: &str) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in parse_strings(text, r#"{"HTTP-Referer": "https://example.org"}"#)? {
        if RESERVED_HEADERS.contains(&name.to_ascii_lowercase().as_str()) {
            return Err(format!("must not contain the header {name}, which the server sets itself"));
        }
        let header =
            HeaderName::try_from(&name).map_err(|_| format!("contains {name:?}, which is no valid header name"))?;
        let mut value = HeaderValue::from_str(value.expose_secret())
            .map_err(|_| format!("must not contain control characters, but the value of {name} does"))?;
        value.set_sensitive(true);
        headers.insert(header, value);
    }
    Ok(headers)
}

/// Keys of `LLM_OPENAI_COMPLETION_KWARGS` that would have no effect or break requests, each with what to do.
const RESERVED_KWARGS: &[(&str, &str)] = &[
    ("model", "set LLM_SIMPLE_MODEL"),
    ("messages", "remove it"),
    ("tools", "remove it"),
    ("tool_choice", "remove it"),
    ("stream", "remove it, because responses are not streamed"),
    ("timeout", "set LLM_RESPONSE_TIMEOUT"),
    ("extra_headers", "set LLM_OPENAI_DEFAULT_HEADER"),
    ("extra_query", "set LLM_OPENAI_DEFAULT_QUERY"),
    ("extra_body", "move its fields out of it"),
];

pub(super) fn parse_completion_kwargs(text: &str) -> Result<JsonObject, String> {
    let object = parse_object(text, r#"{"reasoning_effort": "low"}"#)?;
    match RESERVED_KWARGS.iter().find(|(name, _)| object.contains_key(*name)) {
        Some((name, remedy)) => Err(format!("must not contain {name}: {remedy}")),
        None => Ok(JsonObject(object)),
    }
}
