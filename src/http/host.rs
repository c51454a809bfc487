//! Protects a server that uses the published quickstart key from web pages.
//!
//! Such a server listens on loopback only, but a browser on the same machine can reach it. A page whose domain resolves to
//! 127.0.0.1 (DNS rebinding) has the same origin as the server, and the key is public. Therefore `Host` and `Origin` must contain
//! a name of this machine or the host in `APP_EXTERNALURL`. If the operator has configured another key, any name is accepted.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderValue, Uri, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::config::Config;
use crate::error::{Error, Result};

const HOST_NOT_ALLOWED: &str = "this server uses the published quickstart key and accepts only requests for localhost: \
     connect to localhost, set APP_EXTERNALURL to the base URL that clients use, or set ROOT_API_BEARER_TOKEN to a \
     long random text";
const ORIGIN_NOT_ALLOWED: &str = "this server uses the published quickstart key and rejects requests from web pages of \
     other hosts: set APP_EXTERNALURL to the base URL that clients use, or set ROOT_API_BEARER_TOKEN to a long \
     random text";

/// The name of the machine in containers that run on it.
const HOST_NAME_IN_CONTAINERS: &str = "host.docker.internal";

/// The host names that clients may use for the server.
pub struct AllowedHosts {
    /// The host in `APP_EXTERNALURL`.
    external: Option<String>,
}

impl AllowedHosts {
    /// Returns the allowed names, or `None` if any name is allowed because the root token is not published.
    pub fn from_config(config: &Config) -> Option<Arc<Self>> {
        let external = || config.server.external_url.as_ref()?.parse::<Uri>().ok()?.host().map(ToOwned::to_owned);
        config.keys.has_published_root_token().then(|| Arc::new(Self { external: external() }))
    }

    /// Returns `true` if `host` is allowed. `host` is a name or an IP address without a port. An IPv6 address may be in brackets.
    fn contains(&self, host: &str) -> bool {
        let is_same = |name: &str| host.eq_ignore_ascii_case(name);
        if is_same(HOST_NAME_IN_CONTAINERS) || self.external.as_deref().is_some_and(is_same) {
            return true;
        }
        let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if let Ok(address) = address.parse::<IpAddr>() {
            return address.to_canonical().is_loopback();
        }
        // Browsers resolve these names themselves, never by DNS (RFC 6761, section 6.3).
        let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        name == "localhost" || name.ends_with(".localhost")
    }

    /// Checks the hosts in `Host`, in the request line and in `Origin`.
    ///
    /// # Errors
    /// Returns 400 if `Host` is missing or repeated, 421 if the request is for a host that is not allowed, and 403 if `Origin` is
    /// not that of an allowed host. The origin `null`, which sandboxed pages send, is not allowed either.
    fn check(&self, request: &Request) -> Result<()> {
        let mut hosts = request.headers().get_all(header::HOST).iter();
        let host = hosts.next();
        if hosts.next().is_some() {
            return Err(Error::invalid_field("Host", "must not appear more than once"));
        }
        if host.is_none() && request.uri().host().is_none() && request.version() > Version::HTTP_10 {
            return Err(Error::invalid_field("Host", "is required"));
        }
        let host_is_allowed = |host: &HeaderValue| {
            let authority = Authority::try_from(host.as_bytes());
            authority.is_ok_and(|authority| self.contains(authority.host()))
        };
        // A request line with an absolute URL contains a host too.
        if !host.is_none_or(host_is_allowed) || !request.uri().host().is_none_or(|host| self.contains(host)) {
            return Err(Error::Misdirected(HOST_NOT_ALLOWED));
        }
        let origin_is_allowed = |origin: &HeaderValue| {
            let origin = Uri::try_from(origin.as_bytes());
            origin
                .is_ok_and(|origin| origin.scheme().is_some() && origin.host().is_some_and(|host| self.contains(host)))
        };
        if request.headers().get_all(header::ORIGIN).iter().all(origin_is_allowed) {
            Ok(())
        } else {
            Err(Error::Forbidden(ORIGIN_NOT_ALLOWED))
        }
    }
}

/// Rejects requests for hosts that are not allowed, and requests from web pages of such hosts.
pub async fn check_host(State(hosts): State<Arc<AllowedHosts>>, request: Request, next: Next) -> Response {
    match hosts.check(&request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_allowed() {
        let hosts = AllowedHosts { external: Some("agents.example".into()) };
        for host in [
            "localhost",
            "LocalHost",
            "localhost.",
            "app.localhost",
            "127.0.0.1",
            "127.8.9.1",
            "[::1]",
            "::1",
            "[::ffff:127.0.0.1]",
            "host.docker.internal",
            "agents.example",
            "AGENTS.example",
        ] {
            assert!(hosts.contains(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "notlocalhost",
            "127.0.0.1.evil.example",
            "0.0.0.0",
            "[::]",
            "10.0.0.1",
            "192.168.0.1",
            "[::ffff:10.0.0.1]",
            "docker.internal",
            "x.agents.example",
        ] {
            assert!(!hosts.contains(host), "{host}");
        }
    }
}
