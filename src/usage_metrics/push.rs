//! Pushes usage metrics to a billing service, whose response marks projects as over a quota or clears the marks. A project that
//! the response does not contain keeps its marks.
//!
//! A counter is one row, which the service identifies by its id. If the counter has changed, the row is pushed again with its
//! full value. The time of a push is stored only after the service has responded, so a failed push loses nothing.

use std::time::Duration;

use axum::extract::State;
use chrono::{DateTime, TimeDelta, Utc};
use secrecy::ExposeSecret;
use serde::Deserialize;
use sqlx::Connection;

use super::{Metric, QuotaState, store};
use crate::db::server_state;
use crate::error::{Error, Result};
use crate::http::idempotency::Idempotency;
use crate::http::response::{self, CommandResult, Empty};
use crate::platform::Platform;

/// The name of the entry in `server_state` that stores the time until which changes have been pushed.
const PUSHED_UNTIL_NAME: &str = "metrics_told_until";
/// The first push sends the changes of this period.
const INITIAL_LOOKBACK: TimeDelta = TimeDelta::hours(1);
/// The minimum age of the changes that are pushed. Younger changes are left to the next push, because a transaction that is
/// still open may commit a change with an earlier time.
const MIN_CHANGE_AGE: TimeDelta = TimeDelta::seconds(10);
/// The maximum duration of the request to the service.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The maximum size of the service's response in bytes.
const MAX_RESPONSE_BYTES: usize = 16 << 20;

/// The response of the billing service.
#[derive(Deserialize)]
struct PushResponse {
    #[serde(default)]
    quota: Vec<QuotaState>,
}

/// Push usage metrics
///
/// Sends all changes since the last push to the billing service at `METRICS_PUSH_URL`. Each entry in the `quota` of the service's
/// response marks a project as over a quota (`excess` is `true`) or clears the mark (`false`). Other marks are unchanged.
#[utoipa::path(post, path = "/metrics/v1", tag = "metrics", security(("AdminToken" = [])))]
pub async fn push_metrics(State(platform): State<Platform>, idempotency: Idempotency) -> CommandResult<Empty> {
    idempotency.replay_if_completed().await?;
    let Some(url) = platform.config.server.metrics_push_url.as_deref() else {
        return Err(Error::unavailable("usage metrics push is disabled: METRICS_PUSH_URL is not set").into());
    };
    // The lock belongs to a connection outside of the pool. If this request is aborted, the connection is closed, which releases
    // the lock.
    let mut lock_conn = platform.db.acquire().await?.detach();
    if !store::try_lock_push(&mut lock_conn).await? {
        return Err(Error::TooManyRequests("another push is in progress, please try again later").into());
    }
    let msg = push_changes(&platform, url).await;
    lock_conn.close().await?;
    idempotency.store_response(response::ok_message(msg?)).await
}

/// Pushes the changed rows and stores the quota states of the response. Returns the message for the client.
async fn push_changes(platform: &Platform, url: &str) -> Result<&'static str> {
    let mut conn = platform.db.acquire().await?;
    let until = store::now(&mut conn).await? - MIN_CHANGE_AGE;
    let from = server_state::get_state(&mut conn, PUSHED_UNTIL_NAME).await?;
    let from = from.and_then(|time| time.parse::<DateTime<Utc>>().ok()).unwrap_or(until - INITIAL_LOOKBACK);
    store::refresh_storage_usage(&mut conn).await?;
    let metrics = store::list_changed(&mut conn, from, until).await?;
    drop(conn);
    let quotas = if metrics.is_empty() { Vec::new() } else { send(platform, url, &metrics).await? };
    let mut tx = platform.db.begin().await?;
    for quota in &quotas {
        store::set_over_quota(&mut tx, quota.project_id, &format!("excess.{}", quota.tag), quota.excess).await?;
    }
    server_state::set_state(&mut tx, PUSHED_UNTIL_NAME, &until.to_rfc3339()).await?;
    tx.commit().await?;
    Ok(if metrics.is_empty() { "no metrics to push" } else { "metrics pushed successfully" })
}

/// Sends metrics to the billing service and returns the quota states of its response.
async fn send(platform: &Platform, url: &str, metrics: &[Metric]) -> Result<Vec<QuotaState>> {
    let failed = |what: &str, err: reqwest::Error| Error::BadGateway {
        msg: format!("failed to {what}").into(),
        cause: Some(err.without_url().into()),
    };
    let token = platform.config.keys.root_token.expose_secret();
    let body = serde_json::json!({ "metrics": metrics }).to_string();
    let request = platform.http_client.post(url).timeout(TIMEOUT).bearer_auth(token);
    let request = request.header("Content-Type", "application/json").body(body);
    let mut response = request.send().await.map_err(|err| failed("call external API", err))?;
    if response.status() != reqwest::StatusCode::OK {
        let msg = format!("external API returned status {}", response.status().as_u16());
        return Err(Error::BadGateway { msg: msg.into(), cause: None });
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|err| failed("read response", err))? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_RESPONSE_BYTES {
            return Err(Error::BadGateway { msg: "failed to read response: larger than 16 MiB".into(), cause: None });
        }
    }
    let response: PushResponse = serde_json::from_slice(&bytes)
        .map_err(|err| Error::BadGateway { msg: "failed to unmarshal response".into(), cause: Some(err.into()) })?;
    Ok(response.quota)
}
