//! What is made of conversations in the background. So far: stored messages are observed in batches, by a job for each session.
//!
//! [`api`] has the routes that tell and hurry it, [`observe`] is the job. [`distill`] is the job of each ended task of a session
//! that a space learns, [`conclude`] ends what is open in such a session. [`store`] is the SQL.

pub mod api;
pub mod conclude;
pub mod distill;
pub mod observe;
pub mod store;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(api::get_observing_status)).routes(routes!(api::flush_session))
}
