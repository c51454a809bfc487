//! Warnings about settings with which the server works, but probably not as intended. Each is logged once, at startup.

use crate::config::Config;
use crate::llm;

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
    if llm::is_provider_unimplemented(&config.learning) {
        tracing::warn!(
            "LLM_SDK is {}, but this version has no client for that provider, so messages stay pending until a \
             version with a client runs: set LLM_SDK to none to avoid this warning",
            config.learning.llm_sdk
        );
    }
}
