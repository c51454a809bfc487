//! Converts error responses of model providers to [`LlmError`].

use std::time::Duration;

use anyhow::anyhow;
use serde_json::Value;

use super::LlmError;
use crate::json;

/// The maximum number of characters of a provider's message in an error text.
const MAX_MESSAGE_CHARS: usize = 500;

/// The minimum length of a secret that is removed from messages. A shorter text may be part of ordinary words.
const MIN_SECRET_LEN: usize = 6;

/// Texts in error responses about requests that exceed the context length, in lower case: codes and messages of `OpenAI`,
/// Anthropic, Gemini, Bedrock, vLLM, llama.cpp, Ollama, `LiteLLM` and Groq.
const CONTEXT_LENGTH_TEXTS: &[&str] = &[
    "context_length_exceeded",
    "exceed_context_size",
    "request_too_large",
    "string_above_max_length",
    "contextwindowexceeded",
    "maximum context length",
    "maximum model length",
    "exceeds the available context size",
    "exceed context limit",
    "context length",
    "context window",
    "prompt is too long",
    "input is too long",
    "too many tokens",
    "exceeds the maximum number of tokens",
    "reduce the length of the",
    "request too large",
];

/// A failed attempt of a request.
#[derive(Debug)]
pub(super) struct Failure {
    pub error: LlmError,
    /// `true` if another attempt may succeed within seconds.
    pub is_transient: bool,
    /// The delay that the provider requests before the next attempt.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// Returns the failure of an attempt that may be repeated.
    pub(super) fn transient(error: anyhow::Error) -> Self {
        Self { error: LlmError::Unavailable(error), is_transient: true, retry_after: None }
    }

    /// Returns the failure of an attempt that would fail again.
    pub(super) fn permanent(error: LlmError) -> Self {
        Self { error, is_transient: false, retry_after: None }
    }
}

/// The facts about a provider that error texts contain, and the secrets that they must not contain.
pub(super) struct ProviderInfo {
    /// The host and port of the base URL.
    pub host: String,
    /// The path of the URL that requests are sent to.
    pub path: String,
    /// The name of the configured model.
    pub model: String,
    pub has_key: bool,
    /// The key, and the values of the configured headers and query parameters.
    pub secrets: Vec<String>,
}

impl ProviderInfo {
    /// Converts a response with an error status, or with an error in its body, to a failure.
    pub(super) fn failure_for(&self, status: u16, body: &[u8]) -> Failure {
        let reported = json::parse(body).ok().map(|body| ReportedError::from_body(&body)).unwrap_or_default();
        self.failure_for_error(status, &reported)
    }

    /// Converts an error in the body of a response with status 200 to a failure.
    pub(super) fn failure_in_success(&self, reported: &ReportedError) -> Failure {
        match reported.status {
            Some(status) => self.failure_for_error(status, reported),
            None if reported.is_about_context_length() => self.failure_for_error(400, reported),
            None => Failure::transient(anyhow!(
                "{} returned an error: {}",
                self.host,
                self.clean_message(&reported.message)
            )),
        }
    }

    /// Converts an error that a provider has reported with a status to a failure.
    fn failure_for_error(&self, status: u16, reported: &ReportedError) -> Failure {
        let message = self.clean_message(&reported.message);
        let separator = if message.is_empty() { "" } else { ": " };
        let response = format!("{status}{separator}{message}");
        let Self { host, path, model, .. } = self;
        let misconfigured = |text: String| Failure::permanent(LlmError::Misconfigured(anyhow!(text)));
        match status {
            408 | 409 | 429 | 500.. => Failure::transient(anyhow!("{host} returned {response}")),
            401 if self.has_key => {
                misconfigured(format!("{host} rejected the API key ({response}): set LLM_API_KEY to a valid key"))
            }
            401 => misconfigured(format!("{host} requires an API key ({response}): set LLM_API_KEY")),
            402 => misconfigured(format!(
                "{host} requires payment ({response}): check the balance of the account of LLM_API_KEY"
            )),
            403 => misconfigured(format!(
                "{host} denied access to the model {model} ({response}): check the permissions of LLM_API_KEY, and \
                 LLM_SIMPLE_MODEL"
            )),
            404 if reported.is_about_model(model) => misconfigured(format!(
                "{host} does not have the model {model} ({response}): set LLM_SIMPLE_MODEL to the name of a model that \
                 this provider has"
            )),
            300..=399 | 404 | 405 => {
                let hint = if path.contains("/v1/") { "" } else { ", which usually ends with /v1" };
                misconfigured(format!(
                    "{host} does not accept requests to {path} ({response}): check LLM_BASE_URL{hint}"
                ))
            }
            413 => Failure::permanent(LlmError::ContextTooLong(anyhow!("{host} rejected the request ({response})"))),
            400 | 422 if reported.is_about_context_length() => Failure::permanent(LlmError::ContextTooLong(anyhow!(
                "the request exceeds the context length of the model {model} ({host} returned {response})"
            ))),
            _ => Failure::permanent(LlmError::Rejected(anyhow!("{host} rejected the request ({response})"))),
        }
    }

    /// Returns a message of the provider without control characters and secrets, and not longer than [`MAX_MESSAGE_CHARS`].
    /// `OpenAI` repeats the beginning and the end of a wrong key, with asterisks in between; such words are removed too.
    fn clean_message(&self, message: &str) -> String {
        let mut message = message.to_owned();
        for secret in self.secrets.iter().filter(|secret| secret.len() >= MIN_SECRET_LEN) {
            message = message.replace(secret.as_str(), "[secret]");
        }
        let words = message.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
        let words = words.map(|word| if word.contains("***") { "[secret]" } else { word });
        let message = words.collect::<Vec<_>>().join(" ");
        if message.chars().count() <= MAX_MESSAGE_CHARS {
            return message;
        }
        message.chars().take(MAX_MESSAGE_CHARS - 1).chain(['…']).collect()
    }
}

/// An error as a provider reported it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ReportedError {
    /// The message for humans; empty if the body has none.
    pub message: String,
    /// The codes and types, separated by spaces, in lower case.
    pub codes: String,
    /// The HTTP status that the body contains. `OpenRouter` returns 200 and the status of the error in the body.
    pub status: Option<u16>,
}

impl ReportedError {
    /// Reads an error from the body of a response. There are several formats: `error` is an object (`OpenAI`, Anthropic,
    /// llama.cpp), a text (Ollama), or missing, with the fields in the body itself (vLLM: `message`, `FastAPI`: `detail`).
    pub(super) fn from_body(body: &Value) -> Self {
        match body.get("error") {
            Some(Value::String(message)) => Self { message: message.clone(), ..Self::default() },
            Some(error) if error.is_object() => Self::from_object(error),
            _ => Self::from_object(body),
        }
    }

    pub(super) fn from_object(error: &Value) -> Self {
        let text = |key: &str| match error.get(key) {
            Some(Value::String(text)) => text.clone(),
            Some(value @ (Value::Array(_) | Value::Object(_))) => value.to_string(),
            _ => String::new(),
        };
        let message = [text("message"), text("detail")].into_iter().find(|text| !text.is_empty()).unwrap_or_default();
        // OpenRouter: the error of the provider that it has used.
        let upstream = error.pointer("/metadata/raw").and_then(Value::as_str).unwrap_or_default();
        let message = if upstream.is_empty() { message } else { format!("{message} ({upstream})") };
        let codes = ["code", "type"].map(&text).join(" ").trim().to_lowercase();
        let code = error.get("code").or_else(|| error.get("status"));
        let status = code.and_then(|code| code.as_u64().or_else(|| code.as_str()?.parse().ok()));
        let status = status.and_then(|status| u16::try_from(status).ok()).filter(|status| (400..600).contains(status));
        Self { message, codes, status }
    }

    fn is_about_context_length(&self) -> bool {
        let message = self.message.to_lowercase();
        CONTEXT_LENGTH_TEXTS.iter().any(|text| message.contains(text) || self.codes.contains(text))
    }

    /// Returns `true` if a 404 is about the model and not about the URL.
    fn is_about_model(&self, model: &str) -> bool {
        self.codes.contains("model") || self.message.to_lowercase().contains("model") || self.message.contains(model)
    }
}

#[cfg(test)]
mod tests;
