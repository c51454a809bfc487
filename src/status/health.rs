//! Whether the server lives, is ready, and knows the caller.

use std::time::Duration;

use axum::extract::State;

use crate::auth::Caller;
use crate::db::pooler::SHARED_SESSIONS;
use crate::error::Error;
use crate::http::response::{self, ApiResponse, Empty, QueryResult};
use crate::platform::Platform;

/// A dependency that takes longer is not ready.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// Whether the server lives
///
/// Asks nothing of the database or the object store.
#[utoipa::path(get, path = "/health", tag = "status", security(()))]
pub async fn health() -> ApiResponse<Empty> {
    response::message("ok")
}

/// Whether the server can work
///
/// 200 if the database and the object store answer, else 503 that names the one that does not.
#[utoipa::path(get, path = "/ready", tag = "status", security(()))]
pub async fn ready(State(platform): State<Platform>) -> QueryResult<Empty> {
    if platform.db.pooler().found_shared_session() {
        return Err(Error::unavailable(SHARED_SESSIONS));
    }
    let database = async { sqlx::query_scalar!("select 1 as one").fetch_one(&*platform.db).await };
    match tokio::time::timeout(CHECK_TIMEOUT, database).await {
        Ok(Ok(_)) => {}
        Ok(Err(err)) => return Err(not_ready("the database does not answer", err.into())),
        Err(late) => return Err(not_ready("the database does not answer", late.into())),
    }
    match tokio::time::timeout(CHECK_TIMEOUT, platform.blobs.check()).await {
        Ok(Ok(())) => Ok(response::message("ready")),
        Ok(Err(err)) => Err(not_ready("the object store does not answer", err.into())),
        Err(late) => Err(not_ready("the object store does not answer", late.into())),
    }
}

fn not_ready(msg: &'static str, cause: anyhow::Error) -> Error {
    Error::Unavailable { msg: msg.into(), cause: Some(cause) }
}

/// Whether the key is known
#[utoipa::path(get, path = "/api/v1/ping", tag = "status", responses(Error))]
pub async fn ping(_: Caller) -> ApiResponse<Empty> {
    response::message("pong")
}
