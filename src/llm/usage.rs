//! SQL of the usage of language models: a row for each model call, and its sums by day.

use chrono::NaiveDate;
use serde::Serialize;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{CallOrigin, Purpose, TokenUsage};
use crate::db::{Db, interval};
use crate::error::Result;
use crate::ids::ProjectId;
use crate::text_enum::text_enum;

/// How long a row is kept. The longest period of a report is 366 days.
const RETENTION: std::time::Duration = std::time::Duration::from_hours(400 * 24);
/// The maximum number of rows that one statement deletes, which bounds the time for which it holds locks.
const PURGE_BATCH: i64 = 10_000;

text_enum! {
    /// The outcome of a model call (column `model_calls.outcome`).
    pub enum CallOutcome {
        Ok = "ok",
        /// The provider is overloaded, does not respond, or returned an invalid response.
        Unavailable = "unavailable",
        /// The API key, the base URL or the model name is wrong.
        Misconfigured = "misconfigured",
        /// The request exceeds the context length of the model.
        ContextTooLong = "context_too_long",
        /// The provider rejected the request.
        Rejected = "rejected",
        /// The call was abandoned before its response arrived: its job timed out, was reclaimed, or the server shut down.
        Canceled = "canceled",
    }
}

/// A model call that has ended.
pub struct ModelCall {
    pub origin: CallOrigin,
    pub model: String,
    pub outcome: CallOutcome,
    pub usage: TokenUsage,
    pub duration_ms: i64,
}

/// Inserts the row of a model call. Does nothing if the project was deleted in the meantime.
pub async fn insert(conn: &mut PgConnection, call: &ModelCall) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into model_calls (id, project_id, purpose, learning_space_id, model, outcome, input_tokens, cached_tokens,
                                  output_tokens, duration_ms)
         select $1, id, $3, $4, $5, $6, $7, $8, $9, $10 from projects where id = $2",
        Uuid::now_v7(),
        call.origin.project as _,
        call.origin.purpose as _,
        call.origin.learning_space as _,
        call.model,
        call.outcome as _,
        i64::from(call.usage.input_tokens),
        i64::from(call.usage.cached_tokens),
        i64::from(call.usage.output_tokens),
        call.duration_ms
    )
    .execute(conn)
    .await
    .map(drop)
}

/// The model calls of a project on one day, with one purpose and model.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct DailyModelUsage {
    /// The day in UTC.
    pub day: NaiveDate,
    pub purpose: Purpose,
    /// The name that the provider reported, or the configured name if the call failed.
    pub model: String,
    /// Number of model calls: requests to the model, each with its repeated attempts.
    pub calls: i64,
    /// Number of calls without a response that could be used, including canceled ones.
    pub failed: i64,
    /// Tokens of the requests.
    pub input_tokens: i64,
    /// Tokens of the responses.
    pub output_tokens: i64,
    /// Tokens of the requests that the provider read from its cache; included in `input_tokens`.
    pub cached_tokens: i64,
    /// Total duration of the calls in milliseconds.
    pub ms: i64,
}

/// Sums up the model calls of a project on the last `days` days up to and including today (UTC), newest day first.
pub async fn list_by_day(conn: &mut PgConnection, project: ProjectId, days: i32) -> sqlx::Result<Vec<DailyModelUsage>> {
    sqlx::query_as!(
        DailyModelUsage,
        r#"select (created_at at time zone 'utc')::date as "day!", purpose as "purpose: Purpose", model,
                  count(*) as "calls!", count(*) filter (where outcome <> 'ok') as "failed!",
                  sum(input_tokens)::bigint as "input_tokens!", sum(output_tokens)::bigint as "output_tokens!",
                  sum(cached_tokens)::bigint as "cached_tokens!", sum(duration_ms)::bigint as "ms!"
           from model_calls
           where project_id = $1
             and created_at >= (((now() at time zone 'utc')::date - ($2::int - 1))::timestamp at time zone 'utc')
           group by 1, 2, 3 order by 1 desc, 2, 3"#,
        project as _,
        days
    )
    .fetch_all(conn)
    .await
}

/// Deletes old rows. A periodic task calls this function.
///
/// # Errors
/// Returns an error if the database fails.
pub async fn purge_old_calls(db: Db) -> Result<()> {
    let mut conn = db.acquire().await?;
    loop {
        let delete = sqlx::query!(
            "delete from model_calls where id in (
                 select id from model_calls where created_at < now() - $1::interval order by created_at limit $2)",
            interval(RETENTION) as _,
            PURGE_BATCH
        );
        if delete.execute(&mut *conn).await?.rows_affected() < PURGE_BATCH.unsigned_abs() {
            return Ok(());
        }
    }
}
