//! What operators watch, as Prometheus reads it: the requests of this process, and what waits in the queue of all of them.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, Method, header};
use axum::response::Response;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::openapi::Refusals;
use crate::app::App;
use crate::error::{Error, Result};
use crate::jobs;

/// In seconds: from what a short request takes to what a long one may.
const BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 25.0, 60.0];
const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Asked {
    method: &'static str,
    /// As it is spelled in the router, so that there are as many as routes.
    route: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Answered {
    method: &'static str,
    route: String,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Queued {
    kind: String,
    state: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Pool {
    pool: &'static str,
    state: &'static str,
}

/// Counts what this process does.
pub struct Meters {
    registry: Registry,
    requests: Family<Answered, Counter>,
    durations: Family<Asked, Histogram, fn() -> Histogram>,
}

impl Default for Meters {
    fn default() -> Self {
        let requests = Family::default();
        let durations: Family<_, _, fn() -> Histogram> = Family::new_with_constructor(|| Histogram::new(BUCKETS));
        let mut registry = Registry::with_prefix("acontextd");
        registry.register("http_requests", "Requests that were answered", requests.clone());
        let help = "How long it took until an answer began";
        registry.register_with_unit("http_request_duration", help, Unit::Seconds, durations.clone());
        Self { registry, requests, durations }
    }
}

impl Meters {
    /// A request was answered, or its client has hung up.
    pub fn count(&self, method: &Method, route: Option<&str>, status: u16, seconds: f64) {
        let (method, route) = (known(method), route.unwrap_or("none"));
        self.requests.get_or_create(&Answered { method, route: route.into(), status }).inc();
        self.durations.get_or_create(&Asked { method, route: route.into() }).observe(seconds);
    }
}

/// Anybody can send a method of any name.
fn known(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        _ => "other",
    }
}

/// Show what operators watch
///
/// In the text form that Prometheus reads.
#[utoipa::path(get, path = "/metrics", tag = "status", security(("AdminToken" = [])),
    responses((status = 200, description = "The metrics", content_type = "application/openmetrics-text"), Refusals))]
pub async fn show_metrics(State(app): State<App>) -> Result<Response> {
    let mut conn = app.db.acquire().await?;
    let waiting = jobs::store::count(&mut conn).await?;
    drop(conn);
    let now = now(&app, waiting);
    let mut text = String::new();
    let written = encode_registry(&mut text, &app.meters.registry)
        .and_then(|()| encode_registry(&mut text, &now))
        .and_then(|()| encode_eof(&mut text));
    written.map_err(Error::internal)?;
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(TEXT));
    Ok(response)
}

/// What is so at this moment.
fn now(app: &App, waiting: Vec<jobs::store::Waiting>) -> Registry {
    let (count, late) = (Family::<Queued, Gauge>::default(), Family::<Queued, Gauge>::default());
    let pools = Family::<Pool, Gauge>::default();
    for jobs::store::Waiting { kind, state, count: jobs, late_seconds } in waiting {
        let queued = Queued { kind, state };
        count.get_or_create(&queued).set(jobs);
        late.get_or_create(&queued).set(late_seconds);
    }
    for (pool, connections) in [("main", &app.db), ("pages", &app.pages)] {
        let idle = i64::try_from(connections.num_idle()).unwrap_or(i64::MAX);
        let open = i64::from(connections.size());
        for (state, connections) in [("idle", idle), ("used", open.saturating_sub(idle))] {
            pools.get_or_create(&Pool { pool, state }).set(connections);
        }
    }
    let mut registry = Registry::with_prefix("acontextd");
    registry.register("jobs", "Jobs in the queue of all processes", count);
    let help = "How long the oldest of them is due";
    registry.register_with_unit("jobs_late", help, Unit::Seconds, late);
    registry.register("database_connections", "Connections of this process", pools);
    registry
}
