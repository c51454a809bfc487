//! The settings of the language model.

use std::fmt::{Debug, Formatter};
use std::time::Duration;

use clap::Args;
use reqwest::Url;
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value};

use super::values::{self, parse_count, parse_nonzero_duration};
use crate::json;

/// The base URLs of the providers themselves.
const OPENAI_URL: &str = "https://api.openai.com/v1";
const ANTHROPIC_URL: &str = "https://api.anthropic.com";

/// The model that is used with `OpenAI` itself if `LLM_SIMPLE_MODEL` is not set.
const DEFAULT_OPENAI_MODEL: &str = "gpt-4.1";

#[derive(Args, Clone, Debug)]
pub struct Model {
    /// API of the language model: openai (OpenAI, and every other server with this API), anthropic, mock (for tests; extracts
    /// no tasks) or none (messages stay pending) [default: openai if LLM_API_KEY or LLM_BASE_URL is set, otherwise none]
    #[arg(
        long = "llm-sdk",
        env = "LLM_SDK",
        value_name = "NAME",
        value_parser = values::choice(&["none", "mock", "openai", "anthropic"])
    )]
    sdk: Option<String>,
    /// API key for the language model. OpenAI and Anthropic require one; another server may not
    #[arg(
        long = "llm-api-key",
        env = "LLM_API_KEY",
        value_name = "KEY",
        hide_env_values = true,
        value_parser = parse_api_key
    )]
    pub api_key: Option<SecretString>,
    /// Base URL of the API, e.g. http://localhost:11434/v1 for Ollama. With the API of OpenAI, it usually ends with /v1
    /// [default: the URL of the provider itself]
    // The text of an invalid URL is not printed, because it may contain a password.
    #[arg(
        long = "llm-base-url",
        env = "LLM_BASE_URL",
        value_name = "URL",
        hide_env_values = true,
        value_parser = parse_base_url
    )]
    base_url: Option<Url>,
    /// Name of the language model; required for Anthropic and with LLM_BASE_URL [default: gpt-4.1 for OpenAI itself]
    #[arg(long = "llm-model", env = "LLM_SIMPLE_MODEL", value_name = "NAME")]
    configured_name: Option<String>,
    /// How long to wait for a response of the language model before the request is canceled and repeated
    #[arg(
        long = "llm-timeout",
        env = "LLM_RESPONSE_TIMEOUT",
        value_name = "SECONDS",
        default_value = "60",
        value_parser = parse_nonzero_duration
    )]
    pub response_timeout: Duration,
    /// Query parameters for requests to the API of OpenAI, as a JSON object of strings
    #[arg(
        long = "llm-openai-query",
        env = "LLM_OPENAI_DEFAULT_QUERY",
        value_name = "JSON",
        hide_env_values = true,
        value_parser = parse_query
    )]
    openai_query: Option<Query>,
    /// Headers for requests to the API of OpenAI, as a JSON object of strings
    #[arg(
        long = "llm-openai-header",
        env = "LLM_OPENAI_DEFAULT_HEADER",
        value_name = "JSON",
        hide_env_values = true,
        value_parser = parse_headers
    )]
    openai_headers: Option<HeaderMap>,
    /// Fields to add to the body of requests to the API of OpenAI, as a JSON object, e.g. {"reasoning_effort": "low"}
    #[arg(
        long = "llm-openai-kwargs",
        env = "LLM_OPENAI_COMPLETION_KWARGS",
        value_name = "JSON",
        value_parser = parse_completion_kwargs
    )]
    openai_kwargs: Option<JsonObject>,
    /// Maximum length of a response of the language model, in tokens
    #[arg(
        long = "llm-max-tokens",
        env = "ACONTEXTD_LLM_MAX_TOKENS",
        value_name = "N",
        default_value = "4096",
        value_parser = parse_max_tokens
    )]
    pub max_tokens: u32,
    /// Maximum number of concurrent requests of this process to the language model
    #[arg(
        long = "llm-concurrency",
        env = "ACONTEXTD_LLM_CONCURRENCY",
        value_name = "N",
        default_value = "16",
        value_parser = parse_count
    )]
    pub max_requests: usize,
    /// Maximum number of concurrent requests of this process to the language model for one project
    #[arg(
        long = "llm-project-concurrency",
        env = "ACONTEXTD_LLM_PROJECT_CONCURRENCY",
        value_name = "N",
        default_value = "4",
        value_parser = parse_count
    )]
    pub max_project_requests: usize,
}

/// The API that a model is used with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// No model is used.
    None,
    /// A mock model without network.
    Mock,
    /// The chat completions of `OpenAI`, which many other servers have too.
    OpenAi,
    /// The messages of Anthropic.
    Anthropic,
}

impl Provider {
    /// Returns the value of `LLM_SDK` for this provider.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Mock => "mock",
            Self::OpenAi => "openai",
            Self::Anthropic => "anthropic",
        }
    }
}

/// Query parameters. Their values may be secret.
#[derive(Clone)]
struct Query(Vec<(String, SecretString)>);

impl Query {
    /// Returns the names and values.
    fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
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
struct JsonObject(Map<String, Value>);

impl Model {
    /// Returns the configured API.
    pub fn provider(&self) -> Provider {
        match self.sdk.as_deref() {
            Some("openai") => Provider::OpenAi,
            Some("anthropic") => Provider::Anthropic,
            Some("mock") => Provider::Mock,
            None if self.api_key.is_some() || self.base_url.is_some() => Provider::OpenAi,
            _ => Provider::None,
        }
    }

    /// Returns the name of the model, or `None` if the provider has no models.
    pub fn name(&self) -> Option<&str> {
        let default = (self.provider() == Provider::OpenAi).then_some(DEFAULT_OPENAI_MODEL);
        let uses_network = matches!(self.provider(), Provider::OpenAi | Provider::Anthropic);
        self.configured_name.as_deref().or(default).filter(|_| uses_network)
    }

    /// Returns the base URL of the API: the configured one, or that of the provider itself. Returns `None` if the provider uses
    /// no network.
    pub fn base_url(&self) -> Option<Url> {
        let default = match self.provider() {
            Provider::OpenAi => OPENAI_URL,
            Provider::Anthropic => ANTHROPIC_URL,
            Provider::None | Provider::Mock => return None,
        };
        Some(self.base_url.clone().unwrap_or_else(|| Url::parse(default).expect("the default is a URL")))
    }

    /// Returns `true` if requests are sent to the provider itself, and not to another server with the same API.
    pub fn is_provider_itself(&self) -> bool {
        let own_host = match self.provider() {
            Provider::OpenAi => "api.openai.com",
            Provider::Anthropic => "api.anthropic.com",
            Provider::None | Provider::Mock => return false,
        };
        self.base_url.as_ref().is_none_or(|url| url.host_str() == Some(own_host))
    }

    /// Returns the query parameters for requests to the API of `OpenAI`.
    pub fn openai_query(&self) -> impl Iterator<Item = (&str, &str)> {
        self.openai_query.iter().flat_map(Query::pairs)
    }

    /// Returns the headers for requests to the API of `OpenAI`.
    pub fn openai_headers(&self) -> HeaderMap {
        self.openai_headers.clone().unwrap_or_default()
    }

    /// Returns the fields to add to the body of requests to the API of `OpenAI`.
    pub fn openai_kwargs(&self) -> Map<String, Value> {
        self.openai_kwargs.as_ref().map(|object| object.0.clone()).unwrap_or_default()
    }

    /// Returns the names of the settings that are set although the provider is `none` or `mock`, so that they have no effect.
    pub fn unused_settings(&self) -> Vec<&'static str> {
        if !matches!(self.provider(), Provider::None | Provider::Mock) {
            return Vec::new();
        }
        let settings = [
            ("LLM_API_KEY", self.api_key.is_some()),
            ("LLM_BASE_URL", self.base_url.is_some()),
            ("LLM_SIMPLE_MODEL", self.configured_name.is_some()),
        ];
        let settings = settings.into_iter().chain(self.openai_settings());
        settings.filter(|(_, is_set)| *is_set).map(|(name, _)| name).collect()
    }

    /// Returns the settings for the API of `OpenAI`, each with whether it is set.
    fn openai_settings(&self) -> [(&'static str, bool); 3] {
        [
            ("LLM_OPENAI_DEFAULT_QUERY", self.openai_query.is_some()),
            ("LLM_OPENAI_DEFAULT_HEADER", self.openai_headers.is_some()),
            ("LLM_OPENAI_COMPLETION_KWARGS", self.openai_kwargs.is_some()),
        ]
    }

    /// Validates settings that depend on each other.
    ///
    /// # Errors
    /// Returns a text that names the setting and what to do.
    pub(super) fn validate(&self) -> Result<(), String> {
        match self.provider() {
            Provider::None if self.sdk.is_none() => match self.unused_settings().first() {
                Some(name) => Err(format!(
                    "{name} is set, but no language model is configured: set LLM_API_KEY, or LLM_BASE_URL for a server \
                     without keys, or remove {name}"
                )),
                None => Ok(()),
            },
            // `LLM_SDK` is the switch to run without the model that is otherwise configured; startup logs a warning.
            Provider::None | Provider::Mock => Ok(()),
            Provider::Anthropic => self.validate_anthropic(),
            Provider::OpenAi => self.validate_openai(),
        }
    }

    fn validate_openai(&self) -> Result<(), String> {
        let has_auth_header = self.openai_headers.as_ref().is_some_and(|map| map.contains_key(header::AUTHORIZATION));
        if has_auth_header && self.api_key.is_some() {
            return Err(
                "LLM_OPENAI_DEFAULT_HEADER contains Authorization, so LLM_API_KEY has no effect: remove one of \
                        them"
                    .into(),
            );
        }
        if self.is_provider_itself() && self.api_key.is_none() && !has_auth_header {
            return Err(
                "LLM_API_KEY is not set, but OpenAI requires a key: set it, or set LLM_BASE_URL to the URL of \
                        another server with this API"
                    .into(),
            );
        }
        if !self.is_provider_itself() && self.configured_name.is_none() {
            return Err(
                "LLM_SIMPLE_MODEL is not set, but is required with LLM_BASE_URL: set it to the name of a model \
                        of that server"
                    .into(),
            );
        }
        Ok(())
    }

    fn validate_anthropic(&self) -> Result<(), String> {
        if let Some((name, _)) = self.openai_settings().into_iter().find(|(_, is_set)| *is_set) {
            return Err(format!("{name} is set, but has no effect with LLM_SDK=anthropic: remove it"));
        }
        if self.is_provider_itself() && self.api_key.is_none() {
            return Err(
                "LLM_API_KEY is not set, but Anthropic requires a key: set it, or set LLM_BASE_URL to the URL of \
                        another server with this API"
                    .into(),
            );
        }
        if self.configured_name.is_none() {
            return Err(
                "LLM_SIMPLE_MODEL is not set, but is required with LLM_SDK=anthropic: set it to the name of a \
                        model, such as claude-sonnet-4-5"
                    .into(),
            );
        }
        Ok(())
    }
}

fn parse_api_key(text: &str) -> Result<SecretString, String> {
    let key = text.trim();
    let is_valid = !key.is_empty() && key.chars().all(|c| c.is_ascii_graphic());
    if is_valid { Ok(key.into()) } else { Err("must consist of visible ASCII characters without spaces".into()) }
}

fn parse_base_url(text: &str) -> Result<Url, String> {
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

fn parse_max_tokens(text: &str) -> Result<u32, String> {
    let number = text.trim().parse().ok().filter(|n| (16..=1_000_000).contains(n));
    number.ok_or_else(|| "must be a whole number from 16 to 1000000, such as 4096".into())
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

fn parse_query(text: &str) -> Result<Query, String> {
    parse_strings(text, r#"{"api-version": "2024-10-21"}"#).map(Query)
}

/// Headers that the client determines itself.
const RESERVED_HEADERS: &[&str] = &["connection", "content-length", "content-type", "host", "transfer-encoding"];

fn parse_headers(text: &str) -> Result<HeaderMap, String> {
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

/// Keys of [`Model::openai_kwargs`] that would have no effect or break requests, each with what to do.
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

fn parse_completion_kwargs(text: &str) -> Result<JsonObject, String> {
    let object = parse_object(text, r#"{"reasoning_effort": "low"}"#)?;
    match RESERVED_KWARGS.iter().find(|(name, _)| object.contains_key(*name)) {
        Some((name, remedy)) => Err(format!("must not contain {name}: {remedy}")),
        None => Ok(JsonObject(object)),
    }
}

#[cfg(test)]
mod tests;
