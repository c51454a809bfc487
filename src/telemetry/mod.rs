//! Logs and traces. Logs are written to standard error, one line per request and per failure: text on a terminal, otherwise
//! JSON. Traces are exported by OTLP over HTTP if an endpoint is configured.

mod text_format;

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
use text_format::{SpanFields, TextFormat};
use tracing::Subscriber;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config;

/// The handle by which the process exports the remaining traces before it ends.
#[must_use]
pub struct TelemetryHandle {
    provider: Option<SdkTracerProvider>,
}

impl TelemetryHandle {
    /// Exports the remaining traces. Blocks for up to five seconds: do not call it on an async thread.
    pub fn flush(self) {
        if let Some(provider) = self.provider {
            // The process is about to end, so an error has no consequence.
            let _ = provider.shutdown();
        }
    }
}

/// `true` if spans are exported or logged. JSON lines do not contain them.
static SPANS_ENABLED: AtomicBool = AtomicBool::new(true);

/// Returns `true` if spans are exported or logged. If they are not, callers should create none: creating a span and entering
/// it at each poll takes a tenth of the time of a short request.
pub fn spans_enabled() -> bool {
    SPANS_ENABLED.load(Ordering::Relaxed)
}

/// Initializes logs and traces for the whole process.
///
/// # Errors
/// Returns an error if the log filter or the endpoint is invalid.
pub fn init(settings: &config::Telemetry) -> anyhow::Result<TelemetryHandle> {
    // sqlx logs the notices of Postgres at the level `info`; `LOG_LEVEL=info,sqlx=info` shows them.
    // aws_config logs the whole responses of credential sources; the error of the request has the reason.
    // `EnvFilter` is not used because it also filters by span, which costs time whenever a request is polled.
    let filter: Targets = format!("sqlx=warn,aws_config=error,{}", settings.log_level).parse().context(
        "LOG_LEVEL is not a log filter: set it to a level such as info, or to directives such as info,sqlx=debug",
    )?;
    let is_json = match settings.log_format.as_str() {
        "json" => true,
        "text" => false,
        _ => !std::io::stderr().is_terminal(),
    };
    let fmt_layer = if is_json {
        let json_layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false).json();
        let json_layer = json_layer.flatten_event(true).with_current_span(false).with_span_list(false);
        json_layer.fmt_fields(DiscardFields).boxed()
    } else {
        text_layer(std::io::stderr().is_terminal(), std::io::stderr).boxed()
    };
    let endpoint = settings.otlp_endpoint.as_deref();
    let provider = endpoint.map(|endpoint| build_tracer_provider(endpoint, settings)).transpose()?;
    let otel_layer = provider.as_ref().map(|provider| {
        global::set_text_map_propagator(TraceContextPropagator::new());
        tracing_opentelemetry::layer().with_tracer(provider.tracer("acontextd"))
    });
    SPANS_ENABLED.store(!is_json || otel_layer.is_some(), Ordering::Relaxed);
    tracing_subscriber::registry().with(filter).with(fmt_layer).with(otel_layer).init();
    Ok(TelemetryHandle { provider })
}

/// Returns the layer that writes text. With `ansi`, the text is colored.
fn text_layer<S, W>(ansi: bool, writer: W) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    tracing_subscriber::fmt::layer().with_ansi(ansi).with_writer(writer).fmt_fields(SpanFields).event_format(TextFormat)
}

/// A formatter that discards the fields of spans. JSON lines do not contain them, and formatting them takes a tenth of the
/// time of a short request.
struct DiscardFields;

impl<'w> FormatFields<'w> for DiscardFields {
    fn format_fields<R: RecordFields>(&self, _: Writer<'w>, _: R) -> std::fmt::Result {
        Ok(())
    }
}

fn build_tracer_provider(endpoint: &str, settings: &config::Telemetry) -> anyhow::Result<SdkTracerProvider> {
    let endpoint = endpoint.trim_end_matches('/');
    let endpoint = if endpoint.ends_with("/v1/traces") { endpoint.to_owned() } else { format!("{endpoint}/v1/traces") };
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_endpoint(endpoint)
        .build()
        .context("OTEL_EXPORTER_OTLP_ENDPOINT is invalid: set it to a URL such as http://localhost:4318")?;
    let resource = Resource::builder().with_service_name("acontextd").build();
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(settings.sample_ratio))))
        .with_resource(resource)
        .build())
}

/// Returns the W3C traceparent of the current span; `None` if traces are not exported.
pub fn current_traceparent() -> Option<String> {
    let mut carrier = HashMap::new();
    let context = tracing::Span::current().context();
    global::get_text_map_propagator(|propagator| propagator.inject_context(&context, &mut carrier));
    carrier.remove("traceparent")
}

/// Links a span to the span that `traceparent` names.
pub fn add_span_link(span: &tracing::Span, traceparent: &str) {
    let carrier = HashMap::from([("traceparent".to_owned(), traceparent.to_owned())]);
    let context = global::get_text_map_propagator(|propagator| propagator.extract(&carrier));
    span.add_link(context.span().span_context().clone());
}
