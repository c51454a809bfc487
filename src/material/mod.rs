//! Signed URLs of stored content, which need no key: [`signed_urls`] creates and verifies them, [`api`] serves the content.

pub mod api;
pub mod signed_urls;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::platform::Platform;

pub fn router() -> OpenApiRouter<Platform> {
    OpenApiRouter::new().routes(routes!(api::get_material))
}
