//! Tells a billing service how much projects use, and takes in which of them have too much.
//!
//! A day's count is one row that grows, so the service knows rows by their ids: a row that has changed is told again, whole. What
//! was told is remembered only when the service has answered, so nothing is left out if it fails.

use std::time::Duration;

use axum::extract::State;
use chrono::{DateTime, TimeDelta, Utc};
use secrecy::ExposeSecret;
use serde::Deserialize;
use sqlx::Connection;

use super::{Metric, Quota, store};
use crate::db::server_state;
use crate::error::{Error, Result};
use crate::http::idempotency::Idempotency;
use crate::http::response::{self, CommandResult, Empty};
use crate::platform::Platform;

/// Until when rows were told.
const TOLD: &str = "metrics_told_until";
/// How far the first push looks back.
const FIRST: TimeDelta = TimeDelta::hours(1);
/// Younger rows are left to the next push: what is being written may be older than what can be read already.
const SETTLED: TimeDelta = TimeDelta::seconds(10);
const TIMEOUT: Duration = Duration::from_secs(30);
/// The longest answer, in bytes.
const MAX_ANSWER: usize = 16 << 20;

#[derive(Deserialize)]
struct Told {
    #[serde(default)]
    quota: Vec<Quota>,
}

/// Tell a billing service what projects use
///
/// What has changed since the last time goes to `METRICS_PUSH_URL`, whose answer says which projects have too much.
#[utoipa::path(post, path = "/metrics/v1", tag = "metrics", security(("AdminToken" = [])))]
pub async fn push_metrics(State(platform): State<Platform>, idempotency: Idempotency) -> CommandResult<Empty> {
    idempotency.replay_if_completed().await?;
    let Some(url) = platform.config.server.metrics_push_url.as_deref() else {
        return Err(
            Error::unavailable("there is nobody to tell: the server was started without METRICS_PUSH_URL").into()
        );
    };
    // Held by a connection of its own, so that it goes with this process.
    let mut lock = platform.db.acquire().await?.detach();
    if !store::try_lock_push(&mut lock).await? {
        return Err(Error::TooManyRequests("another push is in progress, please try again later").into());
    }
    let pushed = push(&platform, url).await;
    lock.close().await?;
    idempotency.store_response(response::message(pushed?)).await
}

async fn push(platform: &Platform, url: &str) -> Result<&'static str> {
    let mut conn = platform.db.acquire().await?;
    let until = store::now(&mut conn).await? - SETTLED;
    let last = server_state::get_state(&mut conn, TOLD).await?;
    let last = last.and_then(|last| last.parse::<DateTime<Utc>>().ok()).unwrap_or(until - FIRST);
    store::measure_storage(&mut conn).await?;
    let metrics = store::list_changed(&mut conn, last, until).await?;
    drop(conn);
    let quota = if metrics.is_empty() { Vec::new() } else { tell(platform, url, &metrics).await? };
    let mut tx = platform.db.begin().await?;
    for one in &quota {
        store::set_excess(&mut tx, one.project_id, &format!("excess.{}", one.tag), one.excess).await?;
    }
    server_state::set_state(&mut tx, TOLD, &until.to_rfc3339()).await?;
    tx.commit().await?;
    Ok(if metrics.is_empty() { "no metrics to push" } else { "metrics pushed successfully" })
}

async fn tell(platform: &Platform, url: &str, metrics: &[Metric]) -> Result<Vec<Quota>> {
    let failed = |what: &str, err: reqwest::Error| Error::Upstream {
        msg: format!("failed to {what}").into(),
        cause: Some(err.without_url().into()),
    };
    let token = platform.config.keys.root_token.expose_secret();
    let body = serde_json::json!({ "metrics": metrics }).to_string();
    let request = platform.http_client.post(url).timeout(TIMEOUT).bearer_auth(token);
    let request = request.header("Content-Type", "application/json").body(body);
    let mut answer = request.send().await.map_err(|err| failed("call external API", err))?;
    if answer.status() != reqwest::StatusCode::OK {
        let msg = format!("external API returned status {}", answer.status().as_u16());
        return Err(Error::Upstream { msg: msg.into(), cause: None });
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|err| failed("read response", err))? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_ANSWER {
            return Err(Error::Upstream { msg: "failed to read response: it is too long".into(), cause: None });
        }
    }
    let told: Told = serde_json::from_slice(&bytes)
        .map_err(|err| Error::Upstream { msg: "failed to unmarshal response".into(), cause: Some(err.into()) })?;
    Ok(told.quota)
}
