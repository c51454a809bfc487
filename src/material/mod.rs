//! Public links to stored content, which need no key: [`links`] makes and verifies them, [`api`] serves the content.

pub mod api;
pub mod links;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::platform::Platform;

pub fn router() -> OpenApiRouter<Platform> {
    OpenApiRouter::new().routes(routes!(api::get_material))
}
