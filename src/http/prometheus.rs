//! The Prometheus metrics of HTTP requests: their number and their duration.

use axum::http::Method;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// The buckets of the request duration in seconds.
const DURATION_BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 25.0, 60.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DurationLabels {
    method: &'static str,
    /// The route with its parameter names, so that the number of label values is limited.
    route: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CountLabels {
    method: &'static str,
    route: String,
    status: u16,
}

/// The metrics of HTTP requests and the registry that encodes them.
pub struct HttpMetrics {
    registry: Registry,
    requests: Family<CountLabels, Counter>,
    durations: Family<DurationLabels, Histogram, fn() -> Histogram>,
}

impl Default for HttpMetrics {
    fn default() -> Self {
        let requests = Family::default();
        let durations: Family<_, _, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(DURATION_BUCKETS));
        let mut registry = Registry::with_prefix("acontextd");
        registry.register("http_requests", "Total number of HTTP requests", requests.clone());
        let help = "Time to response headers in seconds";
        registry.register_with_unit("http_request_duration", help, Unit::Seconds, durations.clone());
        Self { registry, requests, durations }
    }
}

impl HttpMetrics {
    /// Appends the metrics in the Prometheus text format.
    ///
    /// # Errors
    /// Never returns an error, because the text is written to memory.
    pub fn encode(&self, text: &mut String) -> std::fmt::Result {
        encode_registry(text, &self.registry)
    }

    /// Records a request that has ended. `seconds` is the time until the response headers were ready, or until the client
    /// disconnected.
    pub fn record_request(&self, method: &Method, route: Option<&str>, status: u16, seconds: f64) {
        let (method, route) = (method_label(method), route.unwrap_or("none"));
        self.requests.get_or_create(&CountLabels { method, route: route.into(), status }).inc();
        self.durations.get_or_create(&DurationLabels { method, route: route.into() }).observe(seconds);
    }
}

/// Returns the label of a method. Clients can send any method name, so unknown ones have the same label.
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
