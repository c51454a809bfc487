//! HTTP requests with JSON to the services of remote providers.

use std::time::Duration;

use futures_util::StreamExt;
use reqwest::header::HeaderMap;
use reqwest::{Client, Method, StatusCode};
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
    /// The setting with the key.
    pub(super) key_setting: &'static str,
}

impl JsonApi {
    /// Sends a request, and returns the status and the JSON of the response. An empty response counts as `null`.
    ///
    /// # Errors
    /// Returns [`ProviderError::Unavailable`] if the service cannot be reached, does not respond in time, rejects the key, or reports
    /// an error of its own, and [`ProviderError::BadResponse`] if the response is not JSON.
    pub(super) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        timeout: Duration,
    ) -> Result<(StatusCode, Value), ProviderError> {
        let mut request = self.client.request(method, format!("{}{path}", self.base_url)).headers(self.headers.clone());
        if let Some(body) = body {
            request = request.header("Content-Type", "application/json").body(body.to_string());
        }
        let response = async {
            let response = request.send().await.map_err(|err| self.unreachable(&err))?;
            Ok::<_, ProviderError>((response.status(), self.read(response).await?))
        };
        let Ok(response) = tokio::time::timeout(timeout, response).await else {
            return Err(self.unavailable(&format!("does not respond within {} s", timeout.as_secs()), None));
        };
        let (status, bytes) = response?;
        let parsed = if bytes.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(&bytes) };
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Err(self.unavailable(&format!("rejects the key; check {}", self.key_setting), None));
        }
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            let message = message(parsed.as_ref().unwrap_or(&Value::Null));
            return Err(self.unavailable(&format!("responds with status {}{message}", status.as_u16()), None));
        }
        parsed.map(|body| (status, body)).map_err(|err| self.bad_response("is not JSON", Some(err.into())))
    }

    async fn read(&self, response: reqwest::Response) -> Result<Vec<u8>, ProviderError> {
        let (mut body, mut bytes) = (response.bytes_stream(), Vec::new());
        while let Some(chunk) = body.next().await {
            bytes.extend_from_slice(&chunk.map_err(|err| self.unreachable(&err))?);
            if bytes.len() > MAX_RESPONSE_BYTES {
                return Err(self.bad_response("is too large", None));
            }
        }
        Ok(bytes)
    }

    /// Returns the error for a response with an unexpected status.
    pub(super) fn unexpected_status(&self, status: StatusCode, body: &Value) -> ProviderError {
        self.bad_response(&format!("has the unexpected status {}{}", status.as_u16(), message(body)), None)
    }

    /// Returns the error for a response that is not usable. `what` completes the sentence `The response …`.
    pub(super) fn bad_response(&self, what: &str, cause: Option<anyhow::Error>) -> ProviderError {
        ProviderError::BadResponse { msg: format!("the response of {} {what}", self.provider), cause }
    }

    fn unreachable(&self, err: &reqwest::Error) -> ProviderError {
        let cause = anyhow::anyhow!("{err:?}");
        self.unavailable("cannot be reached", Some(cause))
    }

    fn unavailable(&self, what: &str, cause: Option<anyhow::Error>) -> ProviderError {
        ProviderError::Unavailable { msg: format!("{} {what}", self.provider), cause }
    }
}

/// Returns the message in an error response, with a separator.
fn message(body: &Value) -> String {
    let text = ["error", "message"].iter().find_map(|key| body[*key].as_str());
    text.map_or_else(String::new, |text| format!(": {}", text.chars().take(MAX_MESSAGE_CHARS).collect::<String>()))
}
