//! The middleware in front of every route. It denies by default: a route needs a project's key unless the [`AccessRules`] name it. A
//! test sends a request without a key to every operation of the API's description.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use secrecy::ExposeSecret;

use super::keys::{Authenticator, bearer_token};
use crate::crypto::same;
use crate::error::{Error, Result, UNAUTHORIZED};
use crate::http::middleware::LoggedProject;
use crate::http::openapi::ApiDocument;
use crate::http::{ROUTE_NOT_FOUND, idempotency};

/// Which routes need another token than a project's key, or none. Routes are spelled as in the router.
pub struct AccessRules {
    /// Need no key.
    pub public: &'static [&'static str],
    /// Need `ADMIN_API_TOKEN`.
    pub admin: &'static [&'static str],
    /// Routes that begin so need `ADMIN_API_TOKEN`, ...
    pub admin_prefix: &'static str,
    /// ... except these, which need a project's key.
    pub project_admin: &'static [&'static str],
    /// Routes that begin so need the root token without its prefix, or `ADMIN_API_TOKEN`.
    pub usage_metrics_prefix: &'static str,
    /// The route that rotates the key of its request. With an `Idempotency-Key` it also accepts the key that it replaced.
    pub rotate_key: &'static str,
}

/// What the middleware decides with.
pub struct Gate {
    pub authenticator: Authenticator,
    pub rules: &'static AccessRules,
    pub document: Arc<ApiDocument>,
}

/// The middleware.
pub async fn require_key(State(gate): State<Arc<Gate>>, mut request: Request, next: Next) -> Response {
    // Without a match the router answers 404.
    let Some(route) = request.extensions().get::<MatchedPath>().cloned() else {
        return next.run(request).await;
    };
    let (route, rules) = (route.as_str(), gate.rules);
    if rules.public.contains(&route) {
        return next.run(request).await;
    }
    let needs_admin_token = rules.admin.contains(&route) || route.starts_with(rules.admin_prefix);
    if needs_admin_token && !rules.project_admin.contains(&route) {
        return match gate.authorize_admin(request.headers()) {
            Ok(()) => next.run(request).await,
            Err(error) => error.into_response(),
        };
    }
    if route.starts_with(rules.usage_metrics_prefix) {
        return match gate.authorize_usage_metrics(request.headers()) {
            Ok(()) => next.run(request).await,
            Err(error) => error.into_response(),
        };
    }
    let authenticator = &gate.authenticator;
    let caller = match authenticator.authenticate(request.headers()).await {
        Err(error) if route == rules.rotate_key && request.headers().contains_key(idempotency::HEADER) => {
            let caller = authenticator.authenticate_rotated_key(request.headers()).await;
            caller.and_then(|caller| caller.ok_or(error))
        }
        caller => caller,
    };
    match caller {
        Ok(caller) => {
            if let Some(logged) = request.extensions().get::<LoggedProject>() {
                let _ = logged.0.set(caller.project);
            }
            request.extensions_mut().insert(caller.encryption.clone());
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        // An operation that does not exist is not found, with or without a key.
        Err(_) if !gate.document.has_operation(route, request.method()) => ROUTE_NOT_FOUND.into_response(),
        Err(error) => error.into_response(),
    }
}

impl Gate {
    fn authorize_admin(&self, headers: &HeaderMap) -> Result<()> {
        let Some(token) = &self.authenticator.config.keys.admin_token else {
            return Err(Error::Forbidden("administration is off: the server was started without ADMIN_API_TOKEN"));
        };
        let access_token = headers.get("x-access-token").and_then(|value| value.to_str().ok());
        let sent = access_token.or_else(|| bearer_token(headers));
        if sent.is_some_and(|sent| same(sent, token.expose_secret())) { Ok(()) } else { Err(UNAUTHORIZED) }
    }

    fn authorize_usage_metrics(&self, headers: &HeaderMap) -> Result<()> {
        let root = self.authenticator.config.keys.root_token.expose_secret();
        if bearer_token(headers).is_some_and(|sent| same(sent, root)) || self.authorize_admin(headers).is_ok() {
            Ok(())
        } else {
            Err(UNAUTHORIZED)
        }
    }
}
