//! What every route shares: reading requests ([`extract`], [`multipart`]) within the memory that there is ([`memory`]), writing responses
//! ([`response`], [`download`]), idempotency keys ([`idempotency`]), the layers around the routes ([`middleware`], [`host`],
//! [`server`]), metrics ([`meters`]), and the API's description ([`openapi`]).

pub mod download;
pub mod extract;
pub mod head;
pub mod host;
pub mod idempotency;
pub mod json;
pub mod memory;
pub mod meters;
pub mod middleware;
pub mod multipart;
pub mod openapi;
pub mod page;
pub mod response;
pub mod server;
pub mod status;

use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::get;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::auth;
use crate::error::{Error, Result};

/// The routes that belong to no feature.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(status::health))
        .routes(routes!(status::ready))
        .routes(routes!(status::ping))
        .routes(routes!(meters::show_metrics))
        .routes(routes!(download::get_material))
}

/// The whole surface, from the features' routes.
pub fn surface(app: &App, routes: OpenApiRouter<App>) -> Router {
    let (surface, _) = routes.split_for_parts();
    let surface = surface
        .route("/openapi.json", get(openapi::serve))
        .route("/swagger", get(openapi::to_swagger))
        .route("/swagger/doc.json", get(openapi::serve))
        .route("/swagger/{*file}", get(openapi::swagger))
        .fallback(not_found)
        .method_not_allowed_fallback(not_found)
        .layer(from_fn_with_state(app.clone(), auth::require_key));
    let surface = match host::AllowedHosts::of(&app.config) {
        Some(hosts) => surface.layer(from_fn_with_state(hosts, host::check_host)),
        None => surface,
    };
    surface
        .layer(from_fn(middleware::head_limit))
        .layer(CatchPanicLayer::custom(middleware::panicked))
        .layer(from_fn_with_state(app.clone(), middleware::bound))
        .layer(from_fn_with_state(app.clone(), middleware::drain))
        .layer(from_fn_with_state(Arc::clone(&app.meters), middleware::observe))
        .layer(from_fn_with_state(app.clone(), middleware::detach))
        .with_state(app.clone())
}

/// The answer to unknown paths, and to known ones with another method.
pub const NO_ROUTE: Error = Error::NotFound("no such route");

async fn not_found() -> Result<()> {
    Err(NO_ROUTE)
}
