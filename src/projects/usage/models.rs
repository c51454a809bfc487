//! The route for a project's usage of language models.

use axum::extract::State;
use serde::{Deserialize, Serialize};

use crate::auth::Caller;
use crate::error::{Error, Result};
use crate::http::extract::{LenientInt, Query};
use crate::http::response::{self, Data, QueryResult};
use crate::llm::usage::{self, DailyModelUsage};
use crate::projects::Projects;

/// The number of reported days if the request specifies none.
const DEFAULT_DAYS: i32 = 30;
const MAX_DAYS: i32 = 366;

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ModelUsageQuery {
    /// Number of days to report, up to and including today (UTC).
    #[serde(default)]
    #[param(value_type = Option<u16>, minimum = 1, maximum = 366, default = 30)]
    days: Option<LenientInt>,
}

impl ModelUsageQuery {
    fn days(&self) -> Result<i32> {
        let Some(days) = self.days.and_then(LenientInt::get) else { return Ok(DEFAULT_DAYS) };
        let days = i32::try_from(days).ok().filter(|days| (1..=MAX_DAYS).contains(days));
        days.ok_or_else(|| Error::invalid_field("days", format_args!("must be from 1 to {MAX_DAYS}")))
    }
}

/// The usage of language models.
#[derive(Serialize, utoipa::ToSchema)]
pub struct ModelUsage {
    /// The usage by day, purpose and model, newest day first. Days without a call have no entry.
    items: Vec<DailyModelUsage>,
}

/// Get the project's usage of language models
///
/// Sums up the calls and tokens of background jobs by day (UTC), purpose and model.
#[utoipa::path(get, path = "/api/v1/project/model_usage", tag = "project", params(ModelUsageQuery))]
pub async fn get_model_usage(
    State(ctx): State<Projects>,
    caller: Caller,
    Query(query): Query<ModelUsageQuery>,
) -> QueryResult<Data<ModelUsage>> {
    let days = query.days()?;
    let mut conn = ctx.db.acquire().await?;
    Ok(response::ok(ModelUsage { items: usage::list_by_day(&mut conn, caller.project, days).await? }))
}
