//! Quotas: how much a project may have is said by whoever bills for it, as flags among the project's metrics.
//!
//! [`api`] has the route that a gateway asks, [`store`] the SQL.

pub mod api;
pub mod store;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(api::get_quota))
}
