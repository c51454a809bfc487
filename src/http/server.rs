//! Accepts connections and serves them, with the limits that a server on the open net needs: on the time and the size of a
//! request's headers, and on how long a stop waits.

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

/// The request line and all headers.
pub const MAX_HEAD: usize = 64 * 1024;
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Serves until the process stops; then takes no more connections and lets those that work finish.
///
/// # Errors
/// None so far; the signature is that of every part of the program.
pub async fn serve(process: Process, listener: TcpListener, router: Router) -> anyhow::Result<()> {
    let service = service(router);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_READ_TIMEOUT).max_buf_size(MAX_HEAD);
    let graceful = GracefulShutdown::new();
    loop {
        let stream = tokio::select! {
            () = process.shutdown.cancelled() => break,
            stream = accept(&listener) => stream,
        };
        // Answers are written in one piece; waiting for more to send would only add delay.
        let _ = stream.set_nodelay(true);
        let service = service.clone().map_request(|request: Request<Incoming>| request.map(Body::new));
        let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
        let connection = graceful.watch(connection);
        process.background_tasks.spawn(async move {
            if let Err(err) = connection.await {
                tracing::debug!(error = %err, "a connection ended early");
            }
        });
    }
    drop(listener);
    graceful.shutdown().await;
    Ok(())
}

/// The surface as connections see it: a path with a slash at its end is the one without.
pub fn service(router: Router) -> NormalizePath<Router> {
    NormalizePathLayer::trim_trailing_slash().layer(router)
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(err) => {
                // Out of file descriptors, most likely: those in use come free.
                tracing::warn!(error = %err, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Whether a server answers `/health` at this address.
pub async fn check_health(address: SocketAddr) -> bool {
    let ask = async {
        let ip = match address.ip() {
            // Listening everywhere includes this machine.
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
    matches!(tokio::time::timeout(Duration::from_secs(3), ask).await, Ok(Ok(true)))
}
