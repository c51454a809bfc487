//! Accepts and serves connections. Limits the size of request headers and the time to receive them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower::{Layer, ServiceExt};
use tower_http::normalize_path::{NormalizePath, NormalizePathLayer};

use crate::process::Process;

/// The maximum length of the request line and all headers in bytes.
pub const MAX_HEADER_BYTES: usize = 64 * 1024;
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Serves connections until the process shuts down. Then it accepts no more connections, and returns when the requests in flight
/// have finished.
///
/// # Errors
/// Never returns an error; the signature is that of all components.
pub async fn serve(process: Process, listener: TcpListener, router: Router) -> anyhow::Result<()> {
    let service = trim_trailing_slashes(router);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_READ_TIMEOUT).max_buf_size(MAX_HEADER_BYTES);
    let graceful = GracefulShutdown::new();
    loop {
        let stream = tokio::select! {
            () = process.shutdown.cancelled() => break,
            stream = accept(&listener) => stream,
        };
        // Most responses are written in one call, so Nagle's algorithm would only delay them.
        let _ = stream.set_nodelay(true);
        let service = service.clone().map_request(|request: Request<Incoming>| request.map(Body::new));
        let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
        let connection = graceful.watch(connection);
        process.background_tasks.spawn(async move {
            if let Err(err) = connection.await {
                tracing::debug!(error = %err, "a connection ended with an error");
            }
        });
    }
    drop(listener);
    graceful.shutdown().await;
    Ok(())
}

/// Returns a service that ignores trailing slashes of paths. It wraps the router, because a layer of the router would run after
/// the route has been found.
pub fn trim_trailing_slashes(router: Router) -> NormalizePath<Router> {
    NormalizePathLayer::trim_trailing_slash().layer(router)
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
