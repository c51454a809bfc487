//! The settings of the language model.

mod parse;

use std::time::Duration;

use clap::Args;
use reqwest::Url;
use reqwest::header::{self, HeaderMap};
use secrecy::SecretString;
use serde_json::{Map, Value};

use self::parse::{
    JsonObject, Query, parse_api_key, parse_base_url, parse_completion_kwargs, parse_headers, parse_max_tokens,
    parse_query, parse_response_timeout,
};
use super::values::{self, parse_count};

/// The base URLs of the providers themselves.
const OPENAI_URL: &str = "https://api.openai.com/v1";
const ANTHROPIC_URL: &str = "https://api.anthropic.com";

/// The headers that contain a key for the provider: those of `OpenAI`, Azure and Anthropic.
const KEY_HEADERS: [&str; 3] = ["authorization", "api-key", "x-api-key"];

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
    /// How long to wait for a response of the language model before the request is canceled and repeated, at most 600 s
    #[arg(
        long = "llm-timeout",
        env = "LLM_RESPONSE_TIMEOUT",
        value_name = "SECONDS",
        default_value = "60",
        value_parser = parse_response_timeout
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
        hide_env_values = true,
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
    pub fn uses_host_of_provider(&self) -> bool {
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

    /// Returns the name of the setting with the key for the provider; `None` if no setting contains one.
    pub fn key_setting(&self) -> Option<&'static str> {
        if self.api_key.is_some() {
            return Some("LLM_API_KEY");
        }
        let headers = self.openai_headers.as_ref()?;
        KEY_HEADERS.iter().any(|name| headers.contains_key(*name)).then_some("LLM_OPENAI_DEFAULT_HEADER")
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
        if self.uses_host_of_provider() && self.api_key.is_none() && !has_auth_header {
            return Err(
                "LLM_API_KEY is not set, but OpenAI requires a key: set it, or set LLM_BASE_URL to the URL of \
                        another server with this API"
                    .into(),
            );
        }
        if !self.uses_host_of_provider() && self.configured_name.is_none() {
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
        if self.uses_host_of_provider() && self.api_key.is_none() {
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

#[cfg(test)]
mod tests;
