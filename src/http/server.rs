//! Accepts and serves connections. Limits the size of request headers and the number of connections.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::Uri;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::ServiceExt;
use tower::util::MapRequest;

use super::connections::{Connections, TrackedBody, TrackedIo};
use crate::process::Process;

/// The maximum length of the request line and all headers in bytes.
pub const MAX_HEADER_BYTES: usize = 64 * 1024;

/// The response to a connection that exceeds the maximum number of connections.
const TOO_MANY_CONNECTIONS: &str = "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 2\r\n\
    content-type: application/json; charset=utf-8\r\ncontent-length: 85\r\n\r\n\
    {\"code\":503,\"msg\":\"the server has too many open connections; retry in a few seconds\"}";
/// The number of bytes in the send buffer of a socket that the system has not sent yet, above which a write waits.
const MAX_UNSENT_BYTES: u32 = 128 * 1024;
/// The maximum number of rejected connections that wait until their client has read the response.
const MAX_REJECTIONS: usize = 128;
const REJECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves up to `max_connections` connections until the process shuts down. Then it accepts no more connections, and returns when
/// the requests in flight have finished.
///
/// # Errors
/// Never returns an error; the signature is that of all components.
pub async fn serve(
    process: Process,
    listener: TcpListener,
    router: Router,
    max_connections: usize,
) -> anyhow::Result<()> {
    let service = trim_trailing_slashes(router);
    let mut http = http1::Builder::new();
    // `Connections` has the timeouts. That of hyper would also close idle connections.
    http.timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(MAX_HEADER_BYTES);
    let (graceful, connections) = (GracefulShutdown::new(), Connections::new(max_connections));
    let rejections = Arc::new(Semaphore::new(MAX_REJECTIONS));
    let mut close_overdue = tokio::time::interval(Duration::from_secs(1));
    loop {
        let stream = tokio::select! {
            () = process.shutdown.cancelled() => break,
            _ = close_overdue.tick() => {
                connections.close_overdue(false);
                continue;
            }
            stream = accept(&listener) => stream,
        };
        configure_socket(&stream);
        let Some(guard) = connections.add() else {
            if let Ok(permit) = Arc::clone(&rejections).try_acquire_owned() {
                process.background_tasks.spawn(reject(stream, permit));
            }
            continue;
        };
        let io = TrackedIo { io: stream, connection: Arc::clone(&guard.connection) };
        let (service, connection) = (service.clone(), Arc::clone(&guard.connection));
        let respond = tower::service_fn(move |request: Request<Incoming>| {
            let (service, active) = (service.clone(), connection.begin_request());
            async move {
                let request = request.map(|body| Body::new(TrackedBody::new(body, Arc::clone(&active))));
                let response = service.oneshot(request).await?;
                Ok::<_, Infallible>(response.map(|body| TrackedBody::new(body, active)))
            }
        });
        let serving = graceful.watch(http.serve_connection(TokioIo::new(io), TowerToHyperService::new(respond)));
        process.background_tasks.spawn(async move {
            tokio::select! {
                result = serving => {
                    if let Err(err) = result {
                        tracing::debug!(error = %err, "a connection ended with an error");
                    }
                }
                () = guard.connection.close.cancelled() => {
                    tracing::debug!(
                        "closed a connection: its client did not read the response, sent headers too slowly, or was idle \
                         while many connections were open"
                    );
                }
            }
        });
    }
    drop(listener);
    tokio::select! {
        () = graceful.shutdown() => {}
        // Clients that send or read nothing must not delay the shutdown.
        () = close_overdue_until_dropped(&connections, close_overdue) => {}
    }
    Ok(())
}

async fn close_overdue_until_dropped(connections: &Connections, mut interval: tokio::time::Interval) {
    loop {
        interval.tick().await;
        connections.close_overdue(true);
    }
}

/// Sets the options of a client's socket.
pub fn configure_socket(stream: &TcpStream) {
    // Most responses are written in one call, so Nagle's algorithm would only delay them.
    let _ = stream.set_nodelay(true);
    // By default the system reports that the client has read something only when a third of the send buffer is free, which can be
    // megabytes. A client that reads slowly would look like one that does not read.
    let _ = SockRef::from(stream).set_tcp_notsent_lowat(MAX_UNSENT_BYTES);
}

/// Responds that too many connections are open. Then reads what the client has sent, because otherwise the system resets the
/// connection, and the client may lose the response.
async fn reject(mut stream: TcpStream, _permit: OwnedSemaphorePermit) {
    let respond = async {
        stream.write_all(TOO_MANY_CONNECTIONS.as_bytes()).await?;
        stream.shutdown().await?;
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
    };
    let _ = tokio::time::timeout(REJECTION_TIMEOUT, respond).await;
}

/// Returns a service that ignores trailing slashes of paths. It wraps the router, because a layer of the router would run after
/// the route has been found. Leading slashes are left as they are.
pub fn trim_trailing_slashes(router: Router) -> MapRequest<Router, fn(Request) -> Request> {
    router.map_request(trim_trailing_slash)
}

fn trim_trailing_slash(mut request: Request) -> Request {
    let path = request.uri().path();
    if path.len() <= 1 || !path.ends_with('/') {
        return request;
    }
    let trimmed = path.trim_end_matches('/');
    let trimmed = if trimmed.is_empty() { "/" } else { trimmed };
    let path_and_query = match request.uri().query() {
        Some(query) => format!("{trimmed}?{query}"),
        None => trimmed.to_owned(),
    };
    let mut parts = request.uri().clone().into_parts();
    // Never fails, because path and query were parts of a valid URI.
    if let Ok(path_and_query) = path_and_query.parse() {
        parts.path_and_query = Some(path_and_query);
    }
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
    request
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(err) => {
                // Most likely the process is out of file descriptors. Without a pause, this loop would use a whole core.
                tracing::warn!(
                    error = %err,
                    "failed to accept a connection; if there are too many open files, raise the limit (ulimit -n)"
                );
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Returns `true` if the server at this address responds to `GET /health` with 200 within 3 seconds.
pub async fn check_health(address: SocketAddr) -> bool {
    let probe = async {
        let ip = match address.ip() {
            // A server that listens on all addresses can be reached on loopback.
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from(Ipv4Addr::LOCALHOST),
            IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::from(Ipv6Addr::LOCALHOST),
            ip => ip,
        };
        let mut stream = TcpStream::connect((ip, address.port())).await?;
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
        let mut status = [0; 12];
        stream.read_exact(&mut status).await?;
        std::io::Result::Ok(status == *b"HTTP/1.1 200")
    };
    matches!(tokio::time::timeout(Duration::from_secs(3), probe).await, Ok(Ok(true)))
}
