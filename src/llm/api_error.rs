//! Converts error responses of model providers to [`LlmError`].

use std::time::Duration;

use anyhow::anyhow;
use serde_json::Value;

use super::LlmError;
use crate::json;

/// The maximum number of characters of a provider's message in an error text.
const MAX_MESSAGE_CHARS: usize = 500;

/// The minimum length of a secret that is removed from messages wherever it occurs. A shorter text may be part of ordinary words.
const MIN_SECRET_LEN: usize = 7;
/// The minimum length of a secret that is removed from messages where it is a word.
const MIN_SECRET_WORD_LEN: usize = 3;

/// Texts in error responses about requests that exceed the context length, in lower case: codes and messages of `OpenAI`,
/// Anthropic, Gemini, Bedrock, vLLM, llama.cpp, Ollama, `LiteLLM` and Groq.
const CONTEXT_LENGTH_TEXTS: &[&str] = &[
    "context_length_exceeded",
    "exceed_context_size",
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
];

/// A text in the message of a 429 about a request that is longer than the limit of tokens per minute, in lower case. The same
/// request would always be rejected. Other errors with this status are about the requests of the last minute.
const LONGER_THAN_RATE_LIMIT_TEXT: &str = "request too large";

/// Texts in error responses about an account without credit, in lower case: the code of `OpenAI`, which has the status 429, and
/// the message of Anthropic, which has the status 400.
const NO_CREDIT_TEXTS: &[&str] = &["insufficient_quota", "credit balance is too low"];

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
    /// The name of the setting with the key for the provider; `None` if no setting contains one.
    pub key_setting: Option<&'static str>,
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
            None if reported.is_about_context_length() || reported.is_about_credit() => {
                self.failure_for_error(400, reported)
            }
            None => Failure::transient(anyhow!(
                "{} returned an error: {}",
                self.host,
                self.clean_message(&reported.message)
            )),
        }
    }

    /// Converts an error that a provider has reported with a status to a failure.
    pub(super) fn failure_for_error(&self, status: u16, reported: &ReportedError) -> Failure {
        let message = self.clean_message(&reported.message);
        let separator = if message.is_empty() { "" } else { ": " };
        let response = format!("{status}{separator}{message}");
        let Self { host, path, model, .. } = self;
        match status {
            401..=403 => self.access_failure(status, &response),
            400 | 429 if reported.is_about_credit() => self.access_failure(402, &response),
            429 if reported.message.to_lowercase().contains(LONGER_THAN_RATE_LIMIT_TEXT) => self.too_long(&response),
            408 | 409 | 429 | 500.. => Failure::transient(anyhow!("{host} returned {response}")),
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
            413 => self.too_long(&response),
            400 | 422 if reported.is_about_context_length() => self.too_long(&response),
            _ => Failure::permanent(LlmError::Rejected(anyhow!("{host} rejected the request ({response})"))),
        }
    }

    /// Returns the failure for a status about the key or the account: 401, 402 or 403. `response` is the status and the message
    /// of the response, which may have another status.
    fn access_failure(&self, status: u16, response: &str) -> Failure {
        let Self { host, model, .. } = self;
        let setting = self.key_setting.unwrap_or("LLM_API_KEY");
        misconfigured(match status {
            401 if self.key_setting.is_some() => {
                format!("{host} rejected the API key ({response}): set a valid key in {setting}")
            }
            401 => format!("{host} requires an API key ({response}): set {setting}"),
            402 => format!(
                "{host} requires payment ({response}): check the balance of the account of the key in {setting}"
            ),
            _ => format!(
                "{host} denied access to the model {model} ({response}): check the permissions of the key in \
                 {setting}, and LLM_SIMPLE_MODEL"
            ),
        })
    }

    fn too_long(&self, response: &str) -> Failure {
        Failure::permanent(LlmError::ContextTooLong(anyhow!(
            "the request is too long for the model {} ({} returned {response}): set LLM_SIMPLE_MODEL to a model that accepts \
             longer requests",
            self.model,
            self.host
        )))
    }

    /// Returns a message of the provider without control characters (also those of the text direction) and secrets, and not longer
    /// than [`MAX_MESSAGE_CHARS`].
    /// `OpenAI` repeats the beginning and the end of a wrong key, with asterisks in between; such words are removed too.
    pub(super) fn clean_message(&self, message: &str) -> String {
        let mut message: String = message.chars().filter(|c| !is_direction_control(*c)).collect();
        for secret in &self.secrets {
            if secret.len() >= MIN_SECRET_LEN {
                message = message.replace(secret.as_str(), "[secret]");
            } else if secret.len() >= MIN_SECRET_WORD_LEN {
                message = replace_word(&message, secret, "[secret]");
            }
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

/// Returns `true` for the characters that change the direction of the text after them, which would hide parts of a log line.
fn is_direction_control(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Replaces a text where no letter or digit precedes or follows it.
fn replace_word(message: &str, word: &str, replacement: &str) -> String {
    let (mut replaced, mut copied) = (String::new(), 0);
    for (start, _) in message.match_indices(word) {
        let end = start + word.len();
        let is_inside =
            message[..start].ends_with(char::is_alphanumeric) || message[end..].starts_with(char::is_alphanumeric);
        if !is_inside {
            replaced.push_str(&message[copied..start]);
            replaced.push_str(replacement);
            copied = end;
        }
    }
    replaced.push_str(&message[copied..]);
    replaced
}

fn misconfigured(text: String) -> Failure {
    Failure::permanent(LlmError::Misconfigured(anyhow!(text)))
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
        self.contains_any(CONTEXT_LENGTH_TEXTS)
    }

    fn is_about_credit(&self) -> bool {
        self.contains_any(NO_CREDIT_TEXTS)
    }

    /// Returns `true` if the message or a code contains one of these texts, which are in lower case.
    fn contains_any(&self, texts: &[&str]) -> bool {
        let message = self.message.to_lowercase();
        texts.iter().any(|text| message.contains(text) || self.codes.contains(text))
    }

    /// Returns `true` if a 404 is about the model and not about the URL.
    fn is_about_model(&self, model: &str) -> bool {
        self.codes.contains("model") || self.message.to_lowercase().contains("model") || self.message.contains(model)
    }
}

#[cfg(test)]
mod tests;
