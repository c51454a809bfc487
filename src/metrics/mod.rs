//! What is counted of projects, for whoever bills or watches them.
//!
//! [`push`] tells a billing service and takes in which projects have too much, [`api`] is what a gateway asks about that before it
//! lets a request through. [`traces`] asks Jaeger. [`store`] is the SQL.

pub mod api;
pub mod push;
pub mod store;
pub mod traces;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(api::get_quota))
        .routes(routes!(push::push_metrics))
        .routes(routes!(traces::find_traces))
}
