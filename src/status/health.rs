//! The liveness and readiness probes, and `/api/v1/ping`, which verifies a project key.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use axum::extract::State;
use serde::Serialize;

use crate::auth::Caller;
use crate::blob::ObjectStoreError;
use crate::db::pooler::SHARED_SESSIONS;
use crate::error::Error;
use crate::error::database::DatabaseOutage;
use crate::http::response::{self, ApiResponse, Data, Empty, QueryResult};
use crate::platform::Platform;
use crate::sandboxes::provider::ProviderStatus;
use crate::status::Status;

/// How long a dependency may take to respond.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the result of a readiness check is returned. The route requires no key, so its checks must not load the database and
/// the object store.
const MAX_CHECK_AGE: Duration = Duration::from_secs(1);

/// Liveness probe
///
/// Does not access the database or the object store.
#[utoipa::path(get, path = "/health", tag = "status", security(()))]
pub async fn health() -> ApiResponse<Empty> {
    response::ok_message("ok")
}

/// A completed readiness check.
pub struct ReadinessCheck {
    checked_at: Instant,
    /// The reason if the server is not ready.
    result: Result<Readiness, String>,
}

/// What a server that is ready can do.
#[derive(Clone, Serialize, utoipa::ToSchema)]
pub struct Readiness {
    /// Absent if sandboxes are disabled.
    #[serde(skip_serializing_if = "Option::is_none")]
    sandboxes: Option<ProviderStatus>,
}

/// Readiness probe
///
/// Returns 200 if the database and the object store respond. Returns 503 with the reason if one of them does not respond, or if
/// a connection pooler shares server sessions. The data says what enforces the limits of sandboxes; a server that cannot run
/// sandboxes is ready nevertheless. The result can be a second old.
#[utoipa::path(get, path = "/ready", tag = "status", security(()))]
pub async fn ready(State(status): State<Status>) -> QueryResult<Data<Readiness>> {
    let mut last_check = status.last_check.lock().await;
    if let Some(check) = last_check.as_ref().filter(|check| check.checked_at.elapsed() < MAX_CHECK_AGE) {
        return match &check.result {
            Ok(readiness) => Ok(response::ok_with_message("ready", readiness.clone())),
            Err(reason) => Err(Error::unavailable(reason.clone())),
        };
    }
    let result = match check_readiness(&status).await {
        Ok(()) => Ok(Readiness { sandboxes: status.sandboxes.status().await }),
        Err(err) => Err(err),
    };
    let stored = result.as_ref().map(Readiness::clone).map_err(|err| err.public_message().into_owned());
    *last_check = Some(ReadinessCheck { checked_at: Instant::now(), result: stored });
    Ok(response::ok_with_message("ready", result?))
}

async fn check_readiness(platform: &Platform) -> Result<(), Error> {
    if platform.db.pooler_check().found_shared_session() {
        return Err(Error::unavailable(SHARED_SESSIONS));
    }
    let query = async { sqlx::query_scalar!("select 1 as one").fetch_one(&*platform.db).await };
    match tokio::time::timeout(CHECK_TIMEOUT, query).await {
        Ok(Ok(_)) => {}
        Ok(Err(err)) => return Err(database_not_ready(platform, err).await),
        Err(_) => return Err(database_not_ready(platform, sqlx::Error::PoolTimedOut).await),
    }
    match tokio::time::timeout(CHECK_TIMEOUT, platform.blobs.check()).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(err)) => Err(object_store_not_ready(err)),
        Err(timeout) => Err(not_ready("the object store does not respond", timeout.into())),
    }
}

/// Returns the error for a failed query. If no connection can be opened, it names the reason for that.
async fn database_not_ready(platform: &Platform, err: sqlx::Error) -> Error {
    let err = platform.db.probe().await.err().unwrap_or(err);
    let outage = DatabaseOutage::classify(&err);
    not_ready(outage.map_or("the database cannot execute a query", DatabaseOutage::description), err.into())
}

fn object_store_not_ready(err: ObjectStoreError) -> Error {
    let msg = format!("object store: {err}");
    not_ready(msg, err.into())
}

fn not_ready(msg: impl Into<Cow<'static, str>>, cause: anyhow::Error) -> Error {
    Error::Unavailable { msg: msg.into(), cause: Some(cause) }
}

/// Verify the API key
#[utoipa::path(get, path = "/api/v1/ping", tag = "status", responses(Error))]
pub async fn ping(_: Caller) -> ApiResponse<Empty> {
    response::ok_message("pong")
}
