//! Logs and traces. A line goes to standard error for each request and each failure: text on a terminal, else JSON. Traces
//! leave by OTLP over HTTP, only if an endpoint is configured.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use opentelemetry::global;
use opentelemetry::trace::{TraceContextExt, TracerProvider as _};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config;

/// Sends what is left when the process ends.
#[must_use]
pub struct Guard {
    provider: Option<SdkTracerProvider>,
}

impl Guard {
    /// Sends the last traces. Blocks for up to five seconds: not for an async thread.
    pub fn flush(self) {
        if let Some(provider) = self.provider {
            // The process ends; there is nobody left to tell.
            let _ = provider.shutdown();
        }
    }
}

/// Whether anybody sees spans. A JSON line does not show them.
static SPANS_ENABLED: AtomicBool = AtomicBool::new(true);

/// Whether it is worth while to make a span: that, and entering it at each poll, is a tenth of a short request.
pub fn spans_enabled() -> bool {
    SPANS_ENABLED.load(Ordering::Relaxed)
}

/// Sets logs and traces up for the whole process.
///
/// # Errors
/// The filter or the endpoint cannot be understood.
pub fn init(settings: &config::Telemetry) -> anyhow::Result<Guard> {
    // Notices of the database are no news at this level; `LOG_LEVEL=info,sqlx=info` shows them.
    // (`EnvFilter` knows spans as well, and looks at them each time a request is polled.)
    let filter: Targets =
        format!("sqlx=warn,{}", settings.log_level).parse().context("LOG_LEVEL is not a log filter")?;
    let json = match settings.log_format.as_str() {
        "json" => true,
        "text" => false,
        _ => !std::io::stderr().is_terminal(),
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    let lines = if json {
        lines.json().flatten_event(true).with_current_span(false).with_span_list(false).fmt_fields(NoFields).boxed()
    } else {
        lines.with_ansi(std::io::stderr().is_terminal()).boxed()
    };
    let provider = settings.otlp_endpoint.as_deref().map(|endpoint| provider(endpoint, settings)).transpose()?;
    let traces = provider.as_ref().map(|provider| {
        global::set_text_map_propagator(TraceContextPropagator::new());
        tracing_opentelemetry::layer().with_tracer(provider.tracer("acontextd"))
    });
    SPANS_ENABLED.store(!json || traces.is_some(), Ordering::Relaxed);
    tracing_subscriber::registry().with(filter).with(lines).with(traces).init();
    Ok(Guard { provider })
}

/// A JSON line shows no fields of spans, so none are written out for it: that alone cost a short request a tenth of its time.
struct NoFields;

impl<'w> FormatFields<'w> for NoFields {
    fn format_fields<R: RecordFields>(&self, _: Writer<'w>, _: R) -> std::fmt::Result {
        Ok(())
    }
}

fn provider(endpoint: &str, settings: &config::Telemetry) -> anyhow::Result<SdkTracerProvider> {
    let endpoint = endpoint.trim_end_matches('/');
    let endpoint = if endpoint.ends_with("/v1/traces") { endpoint.to_owned() } else { format!("{endpoint}/v1/traces") };
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_endpoint(endpoint)
        .build()
        .context("OTEL_EXPORTER_OTLP_ENDPOINT cannot be used")?;
    let resource = Resource::builder().with_service_name("acontextd").build();
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(settings.sample_ratio))))
        .with_resource(resource)
        .build())
}

/// Where the current work comes from, as a W3C traceparent, if traces are on.
pub fn current_traceparent() -> Option<String> {
    let mut carrier = HashMap::new();
    let context = tracing::Span::current().context();
    global::get_text_map_propagator(|propagator| propagator.inject_context(&context, &mut carrier));
    carrier.remove("traceparent")
}

/// Links a span to where its work came from.
pub fn link(span: &tracing::Span, traceparent: &str) {
    let carrier = HashMap::from([("traceparent".to_owned(), traceparent.to_owned())]);
    let context = global::get_text_map_propagator(|propagator| propagator.extract(&carrier));
    span.add_link(context.span().span_context().clone());
}
