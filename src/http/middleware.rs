//! What stands around every route: the request's id, its span and its one log line; the time it may take; and that a write
//! runs to its end even if the client hangs up.
//!
//! Neither bodies nor keys are logged, and no path of a route whose path is a secret.

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
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use uuid::Uuid;

use super::context::RequestContext;
use super::head::media_type;
use super::memory::Reservations;
use super::prometheus::HttpMetrics;
use super::response::ErrorCause;
use super::server;
use crate::error::Error;
use crate::ids::ProjectId;
use crate::process::Process;
use crate::telemetry;

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static TRACE_ID: HeaderName = HeaderName::from_static("x-trace-id");

/// How much of a refused body is read away, and for how long.
const DRAIN_BYTES: usize = 64 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(10);

/// The project of a request, for its log line, which is written even if there is no response.
#[derive(Clone, Default)]
pub struct LoggedProject(pub Arc<OnceLock<ProjectId>>);

/// Ids in and out, the span, the log line.
pub async fn observe(State(http_metrics): State<Arc<HttpMetrics>>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let method = request.method().clone();
    let id = request_id(&request);
    let path = shown_path(&request, route.as_deref());
    let span = if telemetry::spans_enabled() { new_span(&method, route.as_deref(), &id) } else { Span::none() };
    if global::get_text_map_propagator(|propagator| propagator.fields().next().is_some()) {
        let parent = global::get_text_map_propagator(|propagator| propagator.extract(&Headers(&request)));
        // Without a trace of the client's there is nothing to follow.
        let _ = span.set_parent(parent);
    }

    let project = LoggedProject::default();
    request.extensions_mut().insert(project.clone());
    let mut line =
        Line { http_metrics, id: id.clone(), method, route, path, project, started, span: span.clone(), answer: None };

    let mut response = next.run(request).instrument(span.clone()).await;

    if let Some(trace) = trace_id(&span) {
        response.headers_mut().insert(TRACE_ID.clone(), trace);
    }
    response.headers_mut().insert(REQUEST_ID.clone(), id);
    line.answer = Some((response.status(), response.extensions().get::<ErrorCause>().cloned()));
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

/// The log line of a request, and its count. It is written when this is dropped, so also for one whose client has hung up.
struct Line {
    http_metrics: Arc<HttpMetrics>,
    id: HeaderValue,
    method: Method,
    route: Option<String>,
    path: String,
    project: LoggedProject,
    started: Instant,
    span: Span,
    answer: Option<(StatusCode, Option<ErrorCause>)>,
}

/// What proxies write down for a client that did not wait for its answer.
const CLIENT_CLOSED_REQUEST: u16 = 499;

impl Drop for Line {
    fn drop(&mut self) {
        let seconds = self.started.elapsed().as_secs_f64();
        let duration_ms = (seconds * 1_000_000.0).round() / 1000.0;
        let status = self.answer.as_ref().map_or(CLIENT_CLOSED_REQUEST, |(status, _)| status.as_u16());
        self.http_metrics.record_request(&self.method, self.route.as_deref(), status, seconds);
        let error = self.answer.as_ref().and_then(|(_, cause)| Some(format!("{:#}", cause.as_ref()?.0)));
        let project = self.project.0.get().map(ToString::to_string);
        self.span.record("http.response.status_code", status);
        if let Some(project) = &project {
            self.span.record("project.id", project);
        }
        let _entered = self.span.enter();
        macro_rules! line {
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
        if status >= 500 { line!(error) } else { line!(info) }
    }
}

/// The id sent by the client or a proxy, if it is one, else a new one.
fn request_id(request: &Request) -> HeaderValue {
    let sent = request.headers().get(&REQUEST_ID);
    let fit =
        |value: &&HeaderValue| (1..=128).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic);
    sent.filter(fit).cloned().unwrap_or_else(|| {
        let id = Uuid::now_v7().to_string();
        HeaderValue::from_str(&id).unwrap_or_else(|_| HeaderValue::from_static("none"))
    })
}

/// The path for the log: the route where a segment of the path is itself a key.
fn shown_path(request: &Request, route: Option<&str>) -> String {
    match route {
        Some(route) if route.contains("{token}") => route.to_owned(),
        Some(_) => request.uri().path().to_owned(),
        // May be anything, a mistyped link among it.
        None => request.uri().path().chars().take(32).collect(),
    }
}

fn trace_id(span: &Span) -> Option<HeaderValue> {
    let ctx = span.context();
    let ctx = ctx.span().span_context().clone();
    ctx.is_valid().then(|| HeaderValue::from_str(&ctx.trace_id().to_string()).ok())?
}

struct Headers<'a>(&'a Request);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.headers().get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.headers().keys().map(HeaderName::as_str).collect()
    }
}

/// Refuses a request line and headers over their limit. The server's own bound is for its buffer and not exact.
pub async fn head_limit(request: Request, next: Next) -> Response {
    let line = request.method().as_str().len() + request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    let headers = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>();
    if line + headers > server::MAX_HEAD {
        let limit = server::MAX_HEAD;
        let msg = format!("the request line and headers are larger than the maximum of {limit} bytes");
        return Error::PayloadTooLarge(msg).into_response();
    }
    next.run(request).await
}

/// The outermost layer: what may write runs on a task of its own, which the stop of the process waits for, so that a client
/// that hangs up cannot end it between two steps.
pub async fn detach(State(process): State<Process>, request: Request, next: Next) -> Response {
    if matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) {
        return next.run(request).await;
    }
    match process.background_tasks.spawn(next.run(request)).await {
        Ok(response) => response,
        Err(err) => Error::internal(err).into_response(),
    }
}

/// The time a request may take, and the memory that it has reserved until it ends.
pub async fn bound(State(ctx): State<RequestContext>, mut request: Request, next: Next) -> Response {
    let reservations = Reservations::default();
    request.extensions_mut().insert(reservations.clone());
    let upload = media_type(request.headers()) == "multipart/form-data";
    let limit = if upload { ctx.limits.upload } else { ctx.limits.request };
    let response = tokio::time::timeout(limit, next.run(request)).await.unwrap_or_else(|_| {
        Error::unavailable(format!("the request took longer than {} seconds", limit.as_secs())).into_response()
    });
    drop(reservations);
    response
}

/// Reads away what is left of a refused request's body, beside the answer and within limits. A client that is still sending
/// would otherwise find its connection reset before it could read why.
pub async fn drain(State(process): State<Process>, request: Request, next: Next) -> Response {
    // A client that asks first has sent nothing yet, and reading would tell it to.
    if request.body().is_end_stream() || request.headers().contains_key(header::EXPECT) {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let body = SharedBody(Arc::new(Mutex::new(body)));
    let mut rest = body.clone();
    let response = next.run(Request::from_parts(parts, Body::new(body))).await;
    if response.status().as_u16() >= 400 && !rest.is_end_stream() {
        process.clone().background_tasks.spawn(async move {
            let away = async {
                let mut left = DRAIN_BYTES;
                while let Some(Ok(frame)) = rest.frame().await {
                    let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) else {
                        break;
                    };
                    left = rest;
                }
            };
            // What is late is cut off.
            tokio::select! {
                () = process.shutdown.cancelled() => {}
                () = tokio::time::sleep(DRAIN_TIME) => {}
                () = away => {}
            }
        });
    }
    response
}

/// A request's body that two may read, one after the other.
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

/// The answer of a request whose handler panicked.
#[expect(clippy::needless_pass_by_value, reason = "the layer hands the panic over")]
pub fn panicked(panic: Box<dyn Any + Send>) -> HttpResponse<Body> {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default();
    Error::internal(anyhow::anyhow!("the handler panicked: {text}")).into_response()
}
