//! Log lines at startup: warnings about settings with which the server works, but probably not as intended, and the model that
//! it uses.

use crate::config::{Config, Provider};
use crate::llm::{LlmError, check};

/// Logs the warnings about the settings. `public_url` is the base URL of public links.
pub(super) fn log_warnings(config: &Config, public_url: &str) {
    let server = &config.server;
    if server.is_exposed() && server.external_url.is_none() {
        tracing::warn!(
            "public links begin with {public_url}, which other machines cannot reach, although the server listens on \
             {}: set APP_EXTERNALURL to the URL under which clients reach this server",
            server.host
        );
    }
    let unused = config.model.unused_settings();
    if !unused.is_empty() {
        tracing::warn!(
            "LLM_SDK is {}, so these settings have no effect: {}; remove LLM_SDK to use them",
            config.model.provider().name(),
            unused.join(", ")
        );
    }
}

/// Logs which model the server uses.
pub(super) fn log_model(config: &Config) {
    let model = &config.model;
    match model.provider() {
        Provider::None => {
            tracing::info!("messages stay pending: {}", LlmError::NotConfigured);
        }
        Provider::Mock => tracing::info!("messages are observed with a mock model, which extracts no tasks"),
        Provider::OpenAi | Provider::Anthropic => {
            tracing::info!("messages are observed with a language model: {}", check::describe_provider(model));
        }
    }
}
