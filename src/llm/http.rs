//! HTTP requests to model providers: attempts, delays, timeouts and limits.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::anyhow;
use bytes::Bytes;
use chrono::Utc;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, USER_AGENT};
use reqwest::{Client, Response, Url};
use secrecy::ExposeSecret;
use serde_json::Value;
use tokio::time::Instant;

use super::api_error::{Failure, ProviderInfo, ReportedError};
use super::retry;
use super::{LlmError, RetryAfter};
use crate::config::Model;
use crate::json;

/// The maximum size of a response. The following requests of the conversation repeat it.
const MAX_RESPONSE_BYTES: usize = 2 << 20;

/// The maximum number of characters of a content type in an error text.
const MAX_CONTENT_TYPE_CHARS: usize = 100;

/// The minimum interval between two log lines about wrong settings, because every job that uses the model fails with them.
const LOG_INTERVAL: Duration = Duration::from_mins(1);

/// A response with a success status that is not usable.
pub(super) enum InvalidResponse {
    /// The response contains an error.
    Error(ReportedError),
    /// A part of the response is missing. The text completes the sentence `The response …`.
    Incomplete(&'static str),
}

/// The API of a model provider.
pub(super) struct ProviderApi {
    client: Client,
    url: Url,
    headers: HeaderMap,
    /// The timeout of an attempt.
    timeout: Duration,
    info: ProviderInfo,
    /// The time of the last log line about wrong settings.
    logged_at: Mutex<Option<Instant>>,
}

impl ProviderApi {
    /// Creates the API at `url`, which includes the path of the requests. `headers` includes the API key. `secrets` are the texts
    /// that error messages must not contain, in addition to the API key.
    ///
    /// `client` must follow no redirects, so that the key is not sent to another host.
    pub(super) fn new(
        settings: &Model,
        client: Client,
        url: Url,
        mut headers: HeaderMap,
        secrets: Vec<String>,
    ) -> Self {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.entry(USER_AGENT).or_insert(HeaderValue::from_static(concat!("acontextd/", env!("CARGO_PKG_VERSION"))));
        let key = settings.api_key.as_ref().map(|key| key.expose_secret().to_owned());
        let info = ProviderInfo {
            host: host_and_port(&url),
            path: url.path().to_owned(),
            model: settings.name().unwrap_or_default().to_owned(),
            key_setting: settings.key_setting(),
            secrets: secrets.into_iter().chain(key).collect(),
        };
        Self { client, url, headers, timeout: settings.response_timeout, info, logged_at: Mutex::default() }
    }

    /// Sends a request and returns the response that `parse` reads from the JSON of the body. Repeats the request after a failure
    /// that may be transient, unless the next attempt would have less than half of its timeout until `deadline`.
    pub(super) async fn post<T>(
        &self,
        body: &Value,
        deadline: Instant,
        parse: impl Fn(Value) -> Result<T, Failure> + Send + Sync,
    ) -> Result<T, LlmError> {
        let body = Bytes::from(json::to_vec(body));
        let mut attempt = 1;
        if !self.has_time(Duration::ZERO, deadline) {
            return Err(LlmError::Unavailable(anyhow!(
                "no request was sent to {}, because the time of the job is used up",
                self.info.host
            )));
        }
        loop {
            let Failure { error, is_transient, retry_after } = match self.attempt(body.clone(), deadline, &parse).await
            {
                Ok(response) => return Ok(response),
                Err(failure) => failure,
            };
            let delay = retry_after.unwrap_or_else(|| retry::backoff(attempt));
            let may_repeat = is_transient && attempt < retry::MAX_ATTEMPTS && delay <= retry::MAX_DELAY;
            if !may_repeat || !self.has_time(delay, deadline) {
                self.log_misconfiguration(&error);
                return Err(match (error, retry_after) {
                    (LlmError::Unavailable(error), Some(delay)) => {
                        LlmError::Unavailable(RetryAfter { error, delay }.into())
                    }
                    (error, _) => error,
                });
            }
            tracing::debug!(attempt, ?delay, error = %error, "repeating a request to the language model");
            tokio::time::sleep(delay).await;
            attempt += 1;
        }
    }

    /// Returns `true` if an attempt that begins after `delay` has at least half of its timeout until `deadline`.
    fn has_time(&self, delay: Duration, deadline: Instant) -> bool {
        deadline.saturating_duration_since(Instant::now() + delay) >= self.timeout / 2
    }

    /// Returns the failure for a response that is not usable.
    pub(super) fn failure(&self, response: InvalidResponse) -> Failure {
        match response {
            InvalidResponse::Error(reported) => self.info.failure_in_success(&reported),
            InvalidResponse::Incomplete(problem) => {
                Failure::transient(anyhow!("{} returned a response that {problem}", self.info.host))
            }
        }
    }

    /// Sends a request once.
    async fn attempt<T>(
        &self,
        body: Bytes,
        deadline: Instant,
        parse: impl Fn(Value) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let host = &self.info.host;
        let timeout = self.timeout.min(deadline.saturating_duration_since(Instant::now()));
        let response = tokio::time::timeout(timeout, self.send(body)).await;
        let (body, content_type) = response.unwrap_or_else(|_| {
            Err(Failure::transient(anyhow!("{host} did not respond within {:.1} s", timeout.as_secs_f64())))
        })?;
        match json::parse(&body) {
            Ok(value) => parse(value),
            Err(err) => Err(Failure::transient(anyhow!(
                "{host} returned an invalid response of the content type {content_type}, which must be JSON ({err}): if this \
                 persists, LLM_BASE_URL may be wrong"
            ))),
        }
    }

    /// Sends a request and returns the body of a successful response, and its content type.
    async fn send(&self, body: Bytes) -> Result<(Vec<u8>, String), Failure> {
        let request = self.client.post(self.url.clone()).headers(self.headers.clone()).body(body);
        let response = request.send().await.map_err(|err| self.connection_failure(err))?;
        let status = response.status();
        if status.is_success() {
            let content_type = self.describe_content_type(response.headers());
            return Ok((self.read_body(response).await?, content_type));
        }
        let retry_after = retry::retry_after(response.headers(), Utc::now());
        if status.is_redirection() {
            let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
            // Without the query, which may contain a key.
            let location = location.and_then(|text| text.split('?').next()).unwrap_or_default();
            let reported = ReportedError { message: format!("redirect to {location}"), ..ReportedError::default() };
            return Err(self.info.failure_for_error(status.as_u16(), &reported));
        }
        // A body that cannot be read counts as empty, because the status determines most kinds of errors.
        let body = self.read_body(response).await.unwrap_or_default();
        Err(Failure { retry_after, ..self.info.failure_for(status.as_u16(), &body) })
    }

    fn describe_content_type(&self, headers: &HeaderMap) -> String {
        let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("(none)");
        let encoding = headers.get(CONTENT_ENCODING).and_then(|value| value.to_str().ok());
        let encoding = encoding.map(|encoding| format!(" with the encoding {encoding}")).unwrap_or_default();
        self.info.clean_message(&format!("{content_type}{encoding}")).chars().take(MAX_CONTENT_TYPE_CHARS).collect()
    }

    async fn read_body(&self, mut response: Response) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|err| self.connection_failure(err))? {
            if body.len() + chunk.len() > MAX_RESPONSE_BYTES {
                return Err(Failure::permanent(LlmError::Unavailable(anyhow!(
                    "{} returned a response of more than {} MiB: reduce ACONTEXTD_LLM_MAX_TOKENS",
                    self.info.host,
                    MAX_RESPONSE_BYTES >> 20
                ))));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// Returns the failure for a connection that cannot be established or was lost. The text is that of the innermost error,
    /// such as "Connection refused", and never contains the URL.
    fn connection_failure(&self, err: reqwest::Error) -> Failure {
        let err = err.without_url();
        let chain = std::iter::successors(Some(&err as &dyn std::error::Error), |err| err.source());
        let cause = chain.last().map(ToString::to_string).unwrap_or_default();
        let host = &self.info.host;
        Failure::transient(if err.is_connect() {
            anyhow!("failed to connect to {host}: {cause}")
        } else {
            anyhow!("the connection to {host} was lost: {cause}")
        })
    }

    /// Logs an error about wrong settings, at most once per [`LOG_INTERVAL`].
    fn log_misconfiguration(&self, error: &LlmError) {
        if !matches!(error, LlmError::Misconfigured(_)) {
            return;
        }
        let mut logged_at = self.logged_at.lock().unwrap_or_else(PoisonError::into_inner);
        if logged_at.is_none_or(|time| time.elapsed() >= LOG_INTERVAL) {
            *logged_at = Some(Instant::now());
            tracing::error!(error = %error, "the language model cannot be used with these settings");
        }
    }
}

/// Returns the host of a URL, with the port unless it is the default of the scheme.
pub(super) fn host_and_port(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Appends segments to the path of a base URL, without those with which the base URL ends already. A trailing slash of the base
/// URL is ignored.
pub(super) fn join_path(base: &Url, segments: &[&str]) -> Url {
    let path: Vec<&str> = base.path().split('/').filter(|segment| !segment.is_empty()).collect();
    let existing = (0..=segments.len()).rev().find(|count| path.ends_with(&segments[..*count])).unwrap_or(0);
    let mut url = base.clone();
    url.set_path(&[&path[..], &segments[existing..]].concat().join("/"));
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls_may_have_a_trailing_slash_or_the_whole_path() {
        let join = |base: &str, segments: &[&str]| join_path(&Url::parse(base).unwrap(), segments).to_string();
        for (base, url) in [
            ("https://api.openai.com/v1", "https://api.openai.com/v1/chat/completions"),
            ("https://api.openai.com/v1/", "https://api.openai.com/v1/chat/completions"),
            ("http://localhost:4000", "http://localhost:4000/chat/completions"),
            ("http://localhost/v1/chat/completions", "http://localhost/v1/chat/completions"),
            ("http://localhost/openai//v1", "http://localhost/openai/v1/chat/completions"),
        ] {
            assert_eq!(join(base, &["chat", "completions"]), url);
        }
        for base in ["https://h", "https://h/", "https://h/v1", "https://h/v1/", "https://h/v1/messages"] {
            assert_eq!(join(base, &["v1", "messages"]), "https://h/v1/messages", "{base}");
        }
    }
}
