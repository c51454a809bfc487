//! The open connections: their maximum number, and their timeouts.
//!
//! A connection is closed if its client does not read the response, or takes too long to send the headers of a request. More than
//! half of the maximum number is crowded: then unused connections are closed too, so that clients without a key cannot keep
//! others out. [`Connections::close_overdue`] enforces all this every second.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

/// How long the headers of a request may take.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the client may read nothing of a response.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a new connection may send nothing if the server is crowded.
const CROWDED_NEW_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may wait for its next request if the server is crowded.
const CROWDED_IDLE_TIMEOUT: Duration = Duration::from_mins(2);

/// The open connections of the server.
pub struct Connections {
    max: usize,
    next_id: AtomicU64,
    open: Mutex<HashMap<u64, Arc<Connection>>>,
}

/// An open connection.
#[derive(Default)]
pub struct Connection {
    activity: Mutex<Activity>,
    /// Canceled when the connection is overdue.
    pub closed: CancellationToken,
}

/// What a connection does, and since when.
struct Activity {
    phase: Phase,
    since: Instant,
    /// When the connection began to wait until the client reads, if it waits.
    write_blocked_since: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// The client has sent nothing yet.
    New,
    /// The client has sent a part of the headers of a request.
    Headers,
    /// A request is being processed, or its response is being sent.
    Request,
    /// The last response has been sent.
    Idle,
}

impl Default for Activity {
    fn default() -> Self {
        Self { phase: Phase::New, since: Instant::now(), write_blocked_since: None }
    }
}

impl Activity {
    fn enter(&mut self, phase: Phase) {
        (self.phase, self.since) = (phase, Instant::now());
    }

    /// Returns `true` if a timeout has passed.
    fn is_overdue(&self, now: Instant, is_crowded: bool) -> bool {
        if self.write_blocked_since.is_some_and(|since| now.duration_since(since) >= WRITE_TIMEOUT) {
            return true;
        }
        let timeout = match self.phase {
            Phase::New if is_crowded => CROWDED_NEW_TIMEOUT,
            Phase::Idle if is_crowded => CROWDED_IDLE_TIMEOUT,
            Phase::Headers => HEADER_TIMEOUT,
            Phase::New | Phase::Idle | Phase::Request => return false,
        };
        now.duration_since(self.since) >= timeout
    }
}

impl Connections {
    /// Creates an empty set of at most `max` connections.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, next_id: AtomicU64::new(0), open: Mutex::default() })
    }

    /// Adds a connection. Returns `None` if the maximum number is open.
    pub fn open(self: &Arc<Self>) -> Option<OpenConnection> {
        let mut open = self.lock();
        if open.len() >= self.max {
            return None;
        }
        let (id, connection) = (self.next_id.fetch_add(1, Ordering::Relaxed), Arc::<Connection>::default());
        open.insert(id, Arc::clone(&connection));
        drop(open);
        Some(OpenConnection { connections: Arc::clone(self), id, connection })
    }

    /// Closes the connections whose timeouts have passed.
    pub fn close_overdue(&self) {
        let (open, now) = (self.lock(), Instant::now());
        let is_crowded = open.len() > self.max / 2;
        for connection in open.values() {
            if connection.lock().is_overdue(now, is_crowded) {
                connection.closed.cancel();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An element of [`Connections`]. It is removed on drop.
pub struct OpenConnection {
    connections: Arc<Connections>,
    id: u64,
    pub connection: Arc<Connection>,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.connections.lock().remove(&self.id);
    }
}

impl Connection {
    fn lock(&self) -> MutexGuard<'_, Activity> {
        self.activity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that the headers of a request are complete. The request ends when the returned value is dropped.
    pub fn begin_request(self: &Arc<Self>) -> ActiveRequest {
        self.lock().enter(Phase::Request);
        ActiveRequest(Arc::clone(self))
    }

    fn record_received(&self) {
        let mut activity = self.lock();
        if matches!(activity.phase, Phase::New | Phase::Idle) {
            activity.enter(Phase::Headers);
        }
    }

    fn record_write(&self, is_blocked: bool) {
        let mut activity = self.lock();
        activity.write_blocked_since =
            if is_blocked { activity.write_blocked_since.or_else(|| Some(Instant::now())) } else { None };
    }
}

/// A request of a connection that is being processed, or whose response is being sent.
pub struct ActiveRequest(Arc<Connection>);

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.lock().enter(Phase::Idle);
    }
}

/// The body of a response. The request ends when the body was sent.
pub struct ResponseBody {
    body: Body,
    _request: ActiveRequest,
}

impl ResponseBody {
    pub fn new(body: Body, request: ActiveRequest) -> Self {
        Self { body, _request: request }
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The socket of a connection, which records what the client sends and whether it reads.
pub struct TrackedIo<T> {
    pub io: T,
    pub connection: Arc<Connection>,
}

impl<T: AsyncRead + Unpin> AsyncRead for TrackedIo<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let length = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        if buf.filled().len() > length {
            self.connection.record_received();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for TrackedIo<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.connection.record_write(written.is_pending());
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.connection.record_write(written.is_pending());
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    fn is_overdue(connection: &Connection, after: Duration, is_crowded: bool) -> bool {
        connection.lock().is_overdue(Instant::now() + after, is_crowded)
    }

    #[test]
    fn unused_connections_are_closed_only_if_the_server_is_crowded() {
        let connections = Connections::new(2);
        let open = connections.open().unwrap();
        let connection = &open.connection;
        let (second, minute, hour) = (Duration::from_secs(1), Duration::from_mins(1), Duration::from_hours(1));
        assert!(!is_overdue(connection, hour, false));
        assert!(!is_overdue(connection, second, true));
        assert!(is_overdue(connection, CROWDED_NEW_TIMEOUT, true));
        // The headers of a request have a timeout in any case.
        connection.record_received();
        assert!(is_overdue(connection, HEADER_TIMEOUT, false) && !is_overdue(connection, second, true));
        // A request has its own timeout.
        let request = connection.begin_request();
        connection.record_received();
        assert!(!is_overdue(connection, hour, true));
        drop(request);
        assert!(!is_overdue(connection, hour, false) && !is_overdue(connection, minute, true));
        assert!(is_overdue(connection, CROWDED_IDLE_TIMEOUT, true));
    }

    #[test]
    fn the_number_of_connections_is_limited() {
        let connections = Connections::new(2);
        let (first, second) = (connections.open().unwrap(), connections.open().unwrap());
        assert!(connections.open().is_none());
        drop(first);
        assert!(connections.open().is_some());
        // Nothing is overdue yet.
        connections.close_overdue();
        assert!(!second.connection.closed.is_cancelled());
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_overdue() {
        let (server, mut client) = tokio::io::duplex(10);
        let connection = Arc::<Connection>::default();
        let mut io = TrackedIo { io: server, connection: Arc::clone(&connection) };
        let _request = connection.begin_request();
        io.write_all(&[0; 10]).await.unwrap();
        assert!(!is_overdue(&connection, WRITE_TIMEOUT, false));
        assert!(futures_util::poll!(std::pin::pin!(io.write_all(&[0; 10]))).is_pending());
        assert!(is_overdue(&connection, WRITE_TIMEOUT, false));
        // Any progress counts.
        tokio::io::AsyncReadExt::read_exact(&mut client, &mut [0; 1]).await.unwrap();
        assert_eq!(io.write(&[0; 10]).await.unwrap(), 1);
        assert!(!is_overdue(&connection, WRITE_TIMEOUT, false));
    }
}
