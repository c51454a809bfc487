//! Signed URLs, which grant access to stored content without an API key. [`signed_urls`] creates and verifies signed URLs, and
//! [`api`] serves the content. The module has the name of the route, `/api/v1/material`.

pub mod api;
pub mod signed_urls;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::platform::Platform;

pub fn router() -> OpenApiRouter<Platform> {
    OpenApiRouter::new().routes(routes!(api::get_material))
}
