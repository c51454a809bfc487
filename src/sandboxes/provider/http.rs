//! HTTP requests to the services of remote providers, most of them with JSON.

use std::time::Duration;

use futures_util::StreamExt;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::Value;

use super::ProviderError;

/// The maximum size of a response.
const MAX_RESPONSE_BYTES: usize = 64 << 20;
/// The maximum number of characters of a provider's message in an error.
const MAX_MESSAGE_CHARS: usize = 300;

/// The API of a provider.
pub(super) struct JsonApi {
    /// Must follow no redirects, so that the key is not sent to another host.
    pub(super) client: Client,
    /// Without a slash at the end.
    pub(super) base_url: String,
    /// Contains the key.
    pub(super) headers: HeaderMap,
    /// The name of the provider in errors.
    pub(super) provider: &'static str,
    /// The setting with the key. `None` if the key is not a setting: then the caller handles a response that rejects it.
    pub(super) key_setting: Option<&'static str>,
}

impl JsonApi {
    /// Sends a request, and returns the status and the JSON of the response. An empty response counts as `null`.
    ///
    /// # Errors
    /// Returns the errors of [`Self::send`] and [`Self::read_json`], and [`ProviderError::Unavailable`] if the service does not
    /// respond in time.
    pub(super) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        timeout: Duration,
    ) -> Result<(StatusCode, Value), ProviderError> {
        let mut request = self.request(method, path);
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body.to_string());
        }
        self.within(timeout, async { self.read_json(self.send(request).await?).await }).await
    }

    /// Returns a request without a body.
    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base_url)).headers(self.headers.clone())
    }

    /// Waits for the result of requests.
    ///
    /// # Errors
    /// Returns [`ProviderError::Unavailable`] if they take longer than `timeout`.
    pub(super) async fn within<T>(
        &self,
        timeout: Duration,
        requests: impl Future<Output = Result<T, ProviderError>>,
    ) -> Result<T, ProviderError> {
        match tokio::time::timeout(timeout, requests).await {
            Ok(result) => result,
            Err(_) => Err(self.unavailable(&format!("does not respond within {} s", timeout.as_secs()), None)),
        }
    }

    /// Sends a request, and returns the response before its body is read.
    ///
    /// # Errors
    /// Returns [`ProviderError::Unavailable`] if the service cannot be reached.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response, ProviderError> {
        request.send().await.map_err(|err| self.unreachable(&err))
    }

    /// Reads the JSON of a response.
    ///
    /// # Errors
    /// Returns the errors of [`Self::read`] and [`Self::check`].
    pub(super) async fn read_json(&self, response: Response) -> Result<(StatusCode, Value), ProviderError> {
        let (status, body) = self.read(response).await?;
        self.check(status, body)
    }

    /// Reads a response, and returns its status and its JSON, if it is JSON. An empty response counts as `null`.
    ///
    /// # Errors
    /// Returns [`ProviderError::Unavailable`] if the connection fails, and [`ProviderError::BadResponse`] if the response is too
    /// large.
    pub(super) async fn read(
        &self,
        response: Response,
    ) -> Result<(StatusCode, serde_json::Result<Value>), ProviderError> {
        let status = response.status();
        let (mut body, mut bytes) = (response.bytes_stream(), Vec::new());
        while let Some(chunk) = body.next().await {
            bytes.extend_from_slice(&chunk.map_err(|err| self.unreachable(&err))?);
            if bytes.len() > MAX_RESPONSE_BYTES {
                return Err(self.bad_response("is too large", None));
            }
        }
        Ok((status, if bytes.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(&bytes) }))
    }

    /// Checks a response.
    ///
    /// # Errors
    /// Returns [`ProviderError::Unavailable`] if the service rejects the key or reports an error of its own, and
    /// [`ProviderError::BadResponse`] if the response is not JSON.
    pub(super) fn check(
        &self,
        status: StatusCode,
        body: serde_json::Result<Value>,
    ) -> Result<(StatusCode, Value), ProviderError> {
        if let Some(setting) = self.key_setting
            && matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
        {
            return Err(self.unavailable(&format!("rejects the key; check {setting}"), None));
        }
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            let message = message(body.as_ref().unwrap_or(&Value::Null));
            return Err(self.unavailable(&format!("responds with status {}{message}", status.as_u16()), None));
        }
        body.map(|body| (status, body)).map_err(|err| self.bad_response("is not JSON", Some(err.into())))
    }

    /// Returns the error for a response with an unexpected status.
    pub(super) fn unexpected_status(&self, status: StatusCode, body: &Value) -> ProviderError {
        self.bad_response(&format!("has the unexpected status {}{}", status.as_u16(), message(body)), None)
    }

    /// Returns the error for a response that is not usable. `what` completes the sentence `The response …`.
    pub(super) fn bad_response(&self, what: &str, cause: Option<anyhow::Error>) -> ProviderError {
        ProviderError::BadResponse { msg: format!("the response of {} {what}", self.provider), cause }
    }

    /// Returns the error for a connection that fails.
    pub(super) fn unreachable(&self, err: &reqwest::Error) -> ProviderError {
        let cause = anyhow::anyhow!("{err:?}");
        self.unavailable("cannot be reached", Some(cause))
    }

    /// Returns the error for a service that does not do its work. `what` completes a sentence that begins with its name.
    pub(super) fn unavailable(&self, what: &str, cause: Option<anyhow::Error>) -> ProviderError {
        ProviderError::Unavailable { msg: format!("{} {what}", self.provider), cause }
    }
}

/// Returns the message in an error response, with a separator.
pub(super) fn message(body: &Value) -> String {
    let text = ["error", "message"].iter().find_map(|key| body[*key].as_str());
    text.map_or_else(String::new, |text| format!(": {}", text.chars().take(MAX_MESSAGE_CHARS).collect::<String>()))
}
