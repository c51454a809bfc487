//! The middleware that authenticates requests. A route requires a project key unless the [`AccessRules`] list it. A test sends
//! a request without a key to every operation of the OpenAPI document.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use secrecy::ExposeSecret;

use super::keys::{Authenticator, bearer_token};
use crate::crypto::constant_time_eq;
use crate::error::{Error, Result, UNAUTHORIZED};
use crate::http::middleware::{LoggedProject, RequestId};
use crate::http::openapi::ApiDocument;
use crate::http::{ROUTE_NOT_FOUND, idempotency};

/// Which key or token each route requires. A route that is not listed requires a project key. Routes are written as in the
/// router, such as `/api/v1/material/{token}`.
pub struct AccessRules {
    /// Routes that require no key.
    pub public: &'static [&'static str],
    /// Routes that require the admin token.
    pub admin: &'static [&'static str],
    /// The prefix of routes that require the admin token, except `project_admin`.
    pub admin_prefix: &'static str,
    /// Routes below `admin_prefix` that require a project key.
    pub project_admin: &'static [&'static str],
    /// The prefix of routes that require the root token (without `sk-ac-`) or the admin token.
    pub usage_metrics_prefix: &'static str,
    /// The route that rotates the project key. With an `Idempotency-Key` it also accepts the rotated key, to replay the
    /// response.
    pub rotate_key: &'static str,
}

/// The state of the middleware [`authenticate_request`].
pub struct AccessControl {
    pub authenticator: Authenticator,
    pub rules: &'static AccessRules,
    pub document: Arc<ApiDocument>,
}

/// Authenticates a request according to the access rules, and adds its [`Caller`](super::Caller) to its extensions.
pub async fn authenticate_request(
    State(access_control): State<Arc<AccessControl>>,
    mut request: Request,
    next: Next,
) -> Response {
    // Without a matching route the router responds with 404.
    let Some(route) = request.extensions().get::<MatchedPath>().cloned() else {
        return next.run(request).await;
    };
    let (route, rules) = (route.as_str(), access_control.rules);
    if rules.public.contains(&route) {
        return next.run(request).await;
    }
    let is_admin_route = rules.admin.contains(&route) || route.starts_with(rules.admin_prefix);
    if is_admin_route && !rules.project_admin.contains(&route) {
        return match access_control.authorize_admin(request.headers()) {
            Ok(()) => next.run(request).await,
            Err(error) => error.into_response(),
        };
    }
    if route.starts_with(rules.usage_metrics_prefix) {
        return match access_control.authorize_usage_metrics(request.headers()) {
            Ok(()) => next.run(request).await,
            Err(error) => error.into_response(),
        };
    }
    let authenticator = &access_control.authenticator;
    let caller = match authenticator.authenticate(request.headers()).await {
        Err(error) if route == rules.rotate_key && request.headers().contains_key(idempotency::HEADER) => {
            let caller = authenticator.authenticate_rotated_key(request.headers()).await;
            caller.and_then(|caller| caller.ok_or(error))
        }
        caller => caller,
    };
    match caller {
        Ok(mut caller) => {
            caller.request_id = request.extensions().get::<RequestId>().cloned();
            if let Some(logged) = request.extensions().get::<LoggedProject>() {
                let _ = logged.0.set(caller.project);
            }
            request.extensions_mut().insert(caller.encryption.clone());
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        // The response for an operation that does not exist is 404, also without a valid key.
        Err(_) if !access_control.document.has_operation(route, request.method()) => ROUTE_NOT_FOUND.into_response(),
        Err(error) => error.into_response(),
    }
}

impl AccessControl {
    /// Checks that the headers contain the admin token.
    fn authorize_admin(&self, headers: &HeaderMap) -> Result<()> {
        let Some(admin_token) = &self.authenticator.config.keys.admin_token else {
            return Err(Error::Forbidden("the admin API is disabled: ADMIN_API_TOKEN is not set"));
        };
        let header_token = headers.get("x-access-token").and_then(|value| value.to_str().ok());
        let token = header_token.or_else(|| bearer_token(headers));
        let is_valid = token.is_some_and(|token| constant_time_eq(token, admin_token.expose_secret()));
        if is_valid { Ok(()) } else { Err(UNAUTHORIZED) }
    }

    /// Checks that the headers contain the root token or the admin token.
    fn authorize_usage_metrics(&self, headers: &HeaderMap) -> Result<()> {
        let root_token = self.authenticator.config.keys.root_token.expose_secret();
        let has_root_token = bearer_token(headers).is_some_and(|token| constant_time_eq(token, root_token));
        if has_root_token || self.authorize_admin(headers).is_ok() { Ok(()) } else { Err(UNAUTHORIZED) }
    }
}
