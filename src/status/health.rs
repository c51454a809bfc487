//! The liveness and readiness probes, and `/api/v1/ping`, which verifies a project key.

use std::time::Duration;

use axum::extract::State;

use crate::auth::Caller;
use crate::db::pooler::SHARED_SESSIONS;
use crate::error::Error;
use crate::error::database::DatabaseOutage;
use crate::http::response::{self, ApiResponse, Empty, QueryResult};
use crate::platform::Platform;

/// How long a dependency may take to respond.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// Liveness probe
///
/// Does not access the database or the object store.
#[utoipa::path(get, path = "/health", tag = "status", security(()))]
pub async fn health() -> ApiResponse<Empty> {
    response::ok_message("ok")
}

/// Readiness probe
///
/// Returns 200 if the database and the object store respond. Returns 503 with the reason if one of them does not respond, or if
/// a connection pooler shares server sessions.
#[utoipa::path(get, path = "/ready", tag = "status", security(()))]
pub async fn ready(State(platform): State<Platform>) -> QueryResult<Empty> {
    if platform.db.pooler_check().found_shared_session() {
        return Err(Error::unavailable(SHARED_SESSIONS));
    }
    let query = async { sqlx::query_scalar!("select 1 as one").fetch_one(&*platform.db).await };
    match tokio::time::timeout(CHECK_TIMEOUT, query).await {
        Ok(Ok(_)) => {}
        Ok(Err(err)) => return Err(database_not_ready(&platform, err).await),
        Err(_) => return Err(database_not_ready(&platform, sqlx::Error::PoolTimedOut).await),
    }
    match tokio::time::timeout(CHECK_TIMEOUT, platform.blobs.check()).await {
        Ok(Ok(())) => Ok(response::ok_message("ready")),
        Ok(Err(err)) => Err(not_ready("the object store does not respond", err.into())),
        Err(timeout) => Err(not_ready("the object store does not respond", timeout.into())),
    }
}

/// Returns the error for a failed query. If no connection can be opened, it names the reason for that.
async fn database_not_ready(platform: &Platform, err: sqlx::Error) -> Error {
    let err = platform.db.probe().await.err().unwrap_or(err);
    let outage = DatabaseOutage::classify(&err);
    not_ready(outage.map_or("the database cannot execute a query", DatabaseOutage::description), err.into())
}

fn not_ready(msg: &'static str, cause: anyhow::Error) -> Error {
    Error::Unavailable { msg: msg.into(), cause: Some(cause) }
}

/// Verify the API key
#[utoipa::path(get, path = "/api/v1/ping", tag = "status", responses(Error))]
pub async fn ping(_: Caller) -> ApiResponse<Empty> {
    response::ok_message("pong")
}
