//! Metrics of the requests of this process, for Prometheus.

use axum::http::Method;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// In seconds: from what a short request takes to what a long one may.
const BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 25.0, 60.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    /// As it is spelled in the router, so that there are as many as routes.
    route: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResponseLabels {
    method: &'static str,
    route: String,
    status: u16,
}

/// Counts what this process does.
pub struct HttpMetrics {
    registry: Registry,
    requests: Family<ResponseLabels, Counter>,
    durations: Family<RequestLabels, Histogram, fn() -> Histogram>,
}

impl Default for HttpMetrics {
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

impl HttpMetrics {
    /// Writes the metrics in the text format of Prometheus.
    ///
    /// # Errors
    /// Never in practice: text is written to memory.
    pub fn encode(&self, text: &mut String) -> std::fmt::Result {
        encode_registry(text, &self.registry)
    }

    /// Counts a request that was answered, or whose client has disconnected. `seconds` is the time until the response began.
    pub fn record_request(&self, method: &Method, route: Option<&str>, status: u16, seconds: f64) {
        let (method, route) = (method_label(method), route.unwrap_or("none"));
        self.requests.get_or_create(&ResponseLabels { method, route: route.into(), status }).inc();
        self.durations.get_or_create(&RequestLabels { method, route: route.into() }).observe(seconds);
    }
}

/// Anybody can send a method of any name.
fn method_label(method: &Method) -> &'static str {
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
