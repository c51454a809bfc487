//! `/metrics`: the requests and database connections of this process, and the jobs of all processes, in OpenMetrics format.

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
use crate::status::Status;

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

/// Get Prometheus metrics
///
/// Returns the metrics in OpenMetrics text format.
#[utoipa::path(get, path = "/metrics", tag = "status", security(("AdminToken" = [])),
    responses((status = 200, description = "The metrics", content_type = "application/openmetrics-text")))]
pub async fn get_metrics(State(platform): State<Status>) -> Result<RawResponse> {
    let mut conn = platform.db.acquire().await?;
    let job_counts = jobs::store::count_by_kind_and_state(&mut conn).await?;
    drop(conn);
    let gauges = current_gauges(&platform.db, job_counts);
    let mut text = String::new();
    let encoded = platform
        .http_metrics
        .encode(&mut text)
        .and_then(|()| platform.model_metrics.encode(&mut text))
        .and_then(|()| encode_registry(&mut text, &gauges))
        .and_then(|()| encode_eof(&mut text));
    encoded.map_err(Error::internal)?;
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(OPENMETRICS_CONTENT_TYPE));
    Ok(response.into())
}

/// Returns the current values of the gauges.
fn current_gauges(db: &Db, job_counts: Vec<jobs::store::JobCount>) -> Registry {
    let (count, oldest_due_age) = (Family::<JobLabels, Gauge>::default(), Family::<JobLabels, Gauge>::default());
    let connections = Family::<PoolLabels, Gauge>::default();
    for jobs::store::JobCount { kind, state, count: jobs, oldest_due_seconds } in job_counts {
        let labels = JobLabels { kind, state: state.as_str() };
        count.get_or_create(&labels).set(jobs);
        oldest_due_age.get_or_create(&labels).set(oldest_due_seconds);
    }
    for (name, pool) in db.pools() {
        let idle = i64::try_from(pool.num_idle()).unwrap_or(i64::MAX);
        let open = i64::from(pool.size());
        for (state, count) in [("idle", idle), ("in_use", open.saturating_sub(idle))] {
            connections.get_or_create(&PoolLabels { pool: name, state }).set(count);
        }
    }
    let mut registry = Registry::with_prefix("acontextd");
    registry.register("jobs", "Number of jobs by kind and state, across all processes", count);
    let help = "Time since the oldest job of this kind and state was due";
    registry.register_with_unit("jobs_oldest_due_age", help, Unit::Seconds, oldest_due_age);
    let help = "Database connections of this process by pool and state";
    registry.register("database_connections", help, connections);
    registry
}
