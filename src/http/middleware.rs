//! The middleware of all routes: request ids, spans, metrics and the access log, limits of headers and of time, responses to
//! panics, the draining of rejected bodies, and writes that run to completion even if the client disconnects.
//!
//! Bodies and keys are not logged. Paths that contain a secret are not logged either.

use std::any::Any;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, Response as HttpResponse, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use opentelemetry::global;
use opentelemetry::propagation::Extractor;
use opentelemetry::trace::TraceContextExt;
use tokio::sync::watch;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use uuid::Uuid;

use super::context::RequestContext;
use super::memory::Reservations;
use super::prometheus::HttpMetrics;
use super::request_headers::media_type;
use super::response::ErrorCause;
use super::{response_memory, server};
use crate::error::Error;
use crate::ids::ProjectId;
use crate::process::Process;
use crate::telemetry;

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static TRACE_ID: HeaderName = HeaderName::from_static("x-trace-id");

/// The maximum number of bytes to read from a rejected body.
const MAX_DRAIN_BYTES: usize = 64 << 20;
/// The maximum time to read from a rejected body.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// The project of a request, for the access log. The authentication sets it in this shared cell and not in the response, because
/// a request whose client disconnects is logged without a response.
#[derive(Clone, Default)]
pub struct LoggedProject(pub Arc<OnceLock<ProjectId>>);

/// The id of a request: `X-Request-Id`, or a new id.
#[derive(Clone, Debug)]
pub struct RequestId(HeaderValue);

impl RequestId {
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

/// Assigns the request id, opens the span, counts the request and writes the access log.
pub async fn record_telemetry(
    State(http_metrics): State<Arc<HttpMetrics>>,
    mut request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let method = request.method().clone();
    let id = request_id(&request);
    let path = loggable_path(&request, route.as_deref());
    let span = if telemetry::spans_enabled() { new_span(&method, route.as_deref(), &id) } else { Span::none() };
    if global::get_text_map_propagator(|propagator| propagator.fields().next().is_some()) {
        let parent = global::get_text_map_propagator(|propagator| propagator.extract(&HeaderExtractor(&request)));
        // If this fails, the span only lacks its parent.
        let _ = span.set_parent(parent);
    }

    let project = LoggedProject::default();
    request.extensions_mut().insert(project.clone());
    request.extensions_mut().insert(RequestId(id.clone()));
    let mut log_entry = AccessLogEntry {
        http_metrics,
        id: id.clone(),
        method,
        route,
        path,
        project,
        started,
        span: span.clone(),
        outcome: None,
    };

    let mut response = next.run(request).instrument(span.clone()).await;

    if let Some(trace) = trace_id(&span) {
        response.headers_mut().insert(TRACE_ID.clone(), trace);
    }
    response.headers_mut().insert(REQUEST_ID.clone(), id);
    log_entry.outcome = Some((response.status(), response.extensions().get::<ErrorCause>().cloned()));
    response
}

fn new_span(method: &Method, route: Option<&str>, id: &HeaderValue) -> Span {
    tracing::info_span!(
        "request",
        otel.name = format!("{method} {}", route.unwrap_or("(no route)")),
        otel.kind = "server",
        http.request.method = %method,
        http.route = route,
        request.id = id.to_str().unwrap_or_default(),
        project.id = tracing::field::Empty,
        http.response.status_code = tracing::field::Empty,
    )
}

/// The line in the access log and the metrics of a request. They are recorded when this value is dropped, which happens even if
/// the client disconnects before the response.
struct AccessLogEntry {
    http_metrics: Arc<HttpMetrics>,
    id: HeaderValue,
    method: Method,
    route: Option<String>,
    path: String,
    project: LoggedProject,
    started: Instant,
    span: Span,
    /// The status of the response and the cause of a server error. `None` if the client disconnected before the response.
    outcome: Option<(StatusCode, Option<ErrorCause>)>,
}

/// The status that nginx logs if the client disconnects before the response.
const CLIENT_CLOSED_REQUEST: u16 = 499;

impl Drop for AccessLogEntry {
    fn drop(&mut self) {
        let seconds = self.started.elapsed().as_secs_f64();
        let duration_ms = (seconds * 1_000_000.0).round() / 1000.0;
        let status = self.outcome.as_ref().map_or(CLIENT_CLOSED_REQUEST, |(status, _)| status.as_u16());
        self.http_metrics.record_request(&self.method, self.route.as_deref(), status, seconds);
        let error = self.outcome.as_ref().and_then(|(_, cause)| Some(format!("{:#}", cause.as_ref()?.0)));
        let project = self.project.0.get().map(ToString::to_string);
        self.span.record("http.response.status_code", status);
        if let Some(project) = &project {
            self.span.record("project.id", project);
        }
        let _entered = self.span.enter();
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(
                    request.id = self.id.to_str().unwrap_or_default(),
                    project.id = project,
                    method = %self.method,
                    path = self.path,
                    status,
                    duration_ms,
                    error,
                    "request"
                )
            };
        }
        if status >= 500 { log!(error) } else { log!(info) }
    }
}

/// Returns the request id that the client or a proxy sent, or a new one if that id is missing or invalid.
fn request_id(request: &Request) -> HeaderValue {
    let sent = request.headers().get(&REQUEST_ID);
    let is_valid =
        |value: &&HeaderValue| (1..=128).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic);
    sent.filter(is_valid).cloned().unwrap_or_else(|| {
        let id = Uuid::now_v7().to_string();
        HeaderValue::from_str(&id).unwrap_or_else(|_| HeaderValue::from_static("none"))
    })
}

/// Returns the path for the log, or the route if the path contains a token. Only the beginning of an unknown path is returned.
fn loggable_path(request: &Request, route: Option<&str>) -> String {
    match route {
        Some(route) if route.contains("{token}") => route.to_owned(),
        Some(_) => request.uri().path().to_owned(),
        // The path may be a mistyped public link, whose end is secret.
        None => request.uri().path().chars().take(32).collect(),
    }
}

fn trace_id(span: &Span) -> Option<HeaderValue> {
    let ctx = span.context();
    let ctx = ctx.span().span_context().clone();
    ctx.is_valid().then(|| HeaderValue::from_str(&ctx.trace_id().to_string()).ok())?
}

/// The headers of a request, from which the trace of the client is read.
struct HeaderExtractor<'a>(&'a Request);

impl Extractor for HeaderExtractor<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.headers().get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.headers().keys().map(HeaderName::as_str).collect()
    }
}

/// Rejects a request whose request line and headers together exceed [`server::MAX_HEADER_BYTES`]. The limit in hyper is that of
/// its read buffer and is not exact.
pub async fn limit_headers(request: Request, next: Next) -> Response {
    let line = request.method().as_str().len() + request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    let headers = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>();
    if line + headers > server::MAX_HEADER_BYTES {
        let limit = server::MAX_HEADER_BYTES;
        let msg = format!("the request line and headers exceed the maximum of {limit} bytes");
        return Error::PayloadTooLarge(msg).into_response();
    }
    next.run(request).await
}

/// Runs each request that may change something to completion, even if the client disconnects. For this purpose, the request runs
/// in a background task, and shutdown waits for these tasks. This is the outermost layer of the router.
pub async fn run_writes_to_completion(State(process): State<Process>, request: Request, next: Next) -> Response {
    if matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) {
        return next.run(request).await;
    }
    match process.background_tasks.spawn(next.run(request)).await {
        Ok(response) => response,
        Err(err) => Error::internal(err).into_response(),
    }
}

/// The maximum duration of a request. A handler whose work has a limit of its own can extend it.
#[derive(Clone)]
pub struct TimeLimit {
    started_at: tokio::time::Instant,
    limit: Arc<watch::Sender<Duration>>,
}

impl TimeLimit {
    fn new(limit: Duration) -> Self {
        Self { started_at: tokio::time::Instant::now(), limit: Arc::new(watch::Sender::new(limit)) }
    }

    /// Extends the limit by a duration.
    pub fn extend(&self, by: Duration) {
        self.limit.send_modify(|limit| *limit = limit.saturating_add(by));
    }

    /// Waits until the limit has passed, and returns it.
    async fn wait(&self) -> Duration {
        let mut changes = self.limit.subscribe();
        loop {
            let limit = *changes.borrow_and_update();
            tokio::select! {
                () = tokio::time::sleep_until(self.started_at + limit) => return limit,
                _ = changes.changed() => {}
            }
        }
    }
}

/// Limits the duration of a request, holds the memory reservations of the request until the response is ready, and then reserves
/// memory for the response.
pub async fn limit_time_and_memory(State(ctx): State<RequestContext>, mut request: Request, next: Next) -> Response {
    let reservations = Reservations::default();
    let is_read_only = matches!(*request.method(), Method::GET | Method::HEAD);
    request.extensions_mut().insert(reservations.clone());
    let is_upload = media_type(request.headers()) == "multipart/form-data";
    let limit = if is_upload { ctx.limits.upload_timeout } else { ctx.limits.request_timeout };
    let time_limit = TimeLimit::new(limit);
    request.extensions_mut().insert(time_limit.clone());
    let response = tokio::select! {
        response = next.run(request) => response,
        limit = time_limit.wait() => {
            let msg = format!("the request took longer than {} seconds; retry later", limit.as_secs());
            Error::unavailable(msg).into_response()
        }
    };
    drop(reservations);
    response_memory::reserve_memory(&ctx.response_memory, response, is_read_only).await
}

/// Reads the rest of a rejected request's body in the background and discards it, up to `MAX_DRAIN_BYTES` and
/// `DRAIN_TIMEOUT`. Otherwise the connection of a client that is still sending would be reset before the client can read the
/// response.
pub async fn drain_rejected_body(State(process): State<Process>, request: Request, next: Next) -> Response {
    // A client that sends `Expect: 100-continue` waits before it sends the body. An attempt to read the body would tell the
    // client to send it.
    if request.body().is_end_stream() || request.headers().contains_key(header::EXPECT) {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let body = SharedBody(Arc::new(Mutex::new(body)));
    let mut rest = body.clone();
    let response = next.run(Request::from_parts(parts, Body::new(body))).await;
    if response.status().as_u16() >= 400 && !rest.is_end_stream() {
        process.clone().background_tasks.spawn(async move {
            let drain_body = async {
                let mut remaining = MAX_DRAIN_BYTES;
                while let Some(Ok(frame)) = rest.frame().await {
                    let Some(difference) = remaining.checked_sub(frame.data_ref().map_or(0, Bytes::len)) else {
                        break;
                    };
                    remaining = difference;
                }
            };
            tokio::select! {
                () = process.shutdown.cancelled() => {}
                () = tokio::time::sleep(DRAIN_TIMEOUT) => {}
                () = drain_body => {}
            }
        });
    }
    response
}

/// A request body that the handler reads, and whose rest can be read afterwards.
#[derive(Clone)]
struct SharedBody(Arc<Mutex<Body>>);

impl SharedBody {
    fn lock(&self) -> std::sync::MutexGuard<'_, Body> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HttpBody for SharedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut *self.lock()).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.lock().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.lock().size_hint()
    }
}

/// Returns the response to a request whose handler panicked.
#[expect(clippy::needless_pass_by_value, reason = "the layer passes the panic by value")]
pub fn handle_panic(panic: Box<dyn Any + Send>) -> HttpResponse<Body> {
    let message = panic.downcast_ref::<String>().cloned();
    let message = message.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default();
    Error::internal(anyhow::anyhow!("the handler panicked: {message}")).into_response()
}
