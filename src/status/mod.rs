//! The status of the server: [`health`] has the probes, [`prometheus`] the metrics.

pub mod health;
pub mod prometheus;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::platform::Platform;

pub fn router() -> OpenApiRouter<Platform> {
    OpenApiRouter::new()
        .routes(routes!(health::health))
        .routes(routes!(health::ready))
        .routes(routes!(health::ping))
        .routes(routes!(prometheus::get_metrics))
}
