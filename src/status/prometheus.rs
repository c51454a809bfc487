//! `/metrics`: the requests and connections of this process, and the queue of all processes, as Prometheus reads them.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::db::Db;
use crate::error::{Error, Result};
use crate::http::response::RawResponse;
use crate::jobs;
use crate::platform::Platform;

const OPENMETRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct JobLabels {
    kind: String,
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PoolLabels {
    pool: &'static str,
    state: &'static str,
}

/// Show what operators watch
///
/// In the text form that Prometheus reads.
#[utoipa::path(get, path = "/metrics", tag = "status", security(("AdminToken" = [])),
    responses((status = 200, description = "The metrics", content_type = "application/openmetrics-text")))]
pub async fn get_metrics(State(platform): State<Platform>) -> Result<RawResponse> {
    let mut conn = platform.db.acquire().await?;
    let waiting = jobs::store::count(&mut conn).await?;
    drop(conn);
    let gauges = current_gauges(&platform.db, waiting);
    let mut text = String::new();
    let written = platform
        .http_metrics
        .encode(&mut text)
        .and_then(|()| encode_registry(&mut text, &gauges))
        .and_then(|()| encode_eof(&mut text));
    written.map_err(Error::internal)?;
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(OPENMETRICS_CONTENT_TYPE));
    Ok(response.into())
}

/// Returns the gauges as they are now.
fn current_gauges(db: &Db, waiting: Vec<jobs::store::Waiting>) -> Registry {
    let (count, late) = (Family::<JobLabels, Gauge>::default(), Family::<JobLabels, Gauge>::default());
    let pools = Family::<PoolLabels, Gauge>::default();
    for jobs::store::Waiting { kind, state, count: jobs, late_seconds } in waiting {
        let queued = JobLabels { kind, state: state.as_str() };
        count.get_or_create(&queued).set(jobs);
        late.get_or_create(&queued).set(late_seconds);
    }
    for (pool, connections) in db.pools() {
        let idle = i64::try_from(connections.num_idle()).unwrap_or(i64::MAX);
        let open = i64::from(connections.size());
        for (state, connections) in [("idle", idle), ("used", open.saturating_sub(idle))] {
            pools.get_or_create(&PoolLabels { pool, state }).set(connections);
        }
    }
    let mut registry = Registry::with_prefix("acontextd");
    registry.register("jobs", "Jobs in the queue of all processes", count);
    let help = "How long the oldest of them is due";
    registry.register_with_unit("jobs_late", help, Unit::Seconds, late);
    registry.register("database_connections", "Connections of this process", pools);
    registry
}
