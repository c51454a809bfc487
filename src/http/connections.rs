//! The open connections: their maximum number, and their timeouts.
//!
//! A connection is closed if its client does not read the response, or takes too long to send the headers of a request. If more
//! than half of the maximum number of connections are open, unused connections are closed too, so that connections that are
//! opened and not used do not occupy the whole server. The server calls [`Connections::close_overdue`] every second.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

/// The times after which connections are closed.
struct Timeouts {
    /// The time in which the client must send the first byte.
    new: Option<Duration>,
    /// The time for the headers of a request.
    headers: Duration,
    /// The time until the next request.
    idle: Option<Duration>,
    /// The time in which the client must read a part of the response.
    write: Duration,
}

/// The timeouts while at most half of the maximum number of connections are open.
const NORMAL: Timeouts =
    Timeouts { new: None, headers: Duration::from_secs(30), idle: None, write: Duration::from_secs(30) };
/// The timeouts while more connections are open.
const CROWDED: Timeouts = Timeouts {
    new: Some(Duration::from_secs(10)),
    headers: Duration::from_secs(10),
    idle: Some(Duration::from_mins(2)),
    write: Duration::from_secs(30),
};
/// The timeouts during shutdown. They are much shorter than the default deadline of shutdown.
const SHUTDOWN: Timeouts = Timeouts {
    new: Some(Duration::from_secs(1)),
    headers: Duration::from_secs(1),
    idle: Some(Duration::from_secs(1)),
    write: Duration::from_secs(5),
};

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
    /// Canceled to close the connection.
    pub close: CancellationToken,
}

/// The phase of a connection.
struct Activity {
    phase: Phase,
    /// When the phase began, or when the client last read a part of a response in it.
    since: Instant,
    /// The time at which a write began to wait for the client to read. `None` if no write waits.
    write_blocked_since: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// The client has sent nothing yet.
    New,
    /// The client has sent a part of the headers of a request.
    Headers,
    /// A request is being processed.
    Request,
    /// No request is being processed. The end of the last response may still be in the write buffer.
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
    fn is_overdue(&self, now: Instant, timeouts: &Timeouts) -> bool {
        if let Some(since) = self.write_blocked_since {
            return now.duration_since(since) >= timeouts.write;
        }
        let timeout = match self.phase {
            Phase::New => timeouts.new,
            Phase::Headers => Some(timeouts.headers),
            Phase::Idle => timeouts.idle,
            Phase::Request => None,
        };
        timeout.is_some_and(|timeout| now.duration_since(self.since) >= timeout)
    }
}

impl Connections {
    /// Creates an empty set of at most `max` connections.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, next_id: AtomicU64::new(0), open: Mutex::default() })
    }

    /// Adds a connection. Returns `None` if the maximum number is open.
    pub fn add(self: &Arc<Self>) -> Option<ConnectionGuard> {
        let mut open = self.lock();
        if open.len() >= self.max {
            return None;
        }
        let (id, connection) = (self.next_id.fetch_add(1, Ordering::Relaxed), Arc::<Connection>::default());
        open.insert(id, Arc::clone(&connection));
        drop(open);
        Some(ConnectionGuard { connections: Arc::clone(self), id, connection })
    }

    /// Closes the connections whose timeouts have passed. During shutdown, the timeouts are shorter.
    pub fn close_overdue(&self, is_shutting_down: bool) {
        let (open, now) = (self.lock(), Instant::now());
        let timeouts = match (is_shutting_down, open.len() > self.max / 2) {
            (true, _) => SHUTDOWN,
            (false, true) => CROWDED,
            (false, false) => NORMAL,
        };
        for connection in open.values() {
            if connection.lock().is_overdue(now, &timeouts) {
                connection.close.cancel();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a connection in [`Connections`]. Dropping it removes the connection.
pub struct ConnectionGuard {
    connections: Arc<Connections>,
    id: u64,
    pub connection: Arc<Connection>,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.connections.lock().remove(&self.id);
    }
}

impl Connection {
    fn lock(&self) -> MutexGuard<'_, Activity> {
        self.activity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that the headers of a request are complete. The request ends when the last clone of the returned value is dropped.
    pub fn begin_request(self: &Arc<Self>) -> Arc<ActiveRequest> {
        self.lock().enter(Phase::Request);
        Arc::new(ActiveRequest(Arc::clone(self)))
    }

    fn record_received(&self) {
        let mut activity = self.lock();
        if matches!(activity.phase, Phase::New | Phase::Idle) {
            activity.enter(Phase::Headers);
        }
    }

    fn record_write(&self, is_blocked: bool) {
        let (mut activity, now) = (self.lock(), Instant::now());
        if is_blocked {
            activity.write_blocked_since.get_or_insert(now);
        } else {
            (activity.write_blocked_since, activity.since) = (None, now);
        }
    }
}

/// A request of a connection. It ends when neither its body nor the body of its response exists anymore.
pub struct ActiveRequest(Arc<Connection>);

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.lock().enter(Phase::Idle);
    }
}

/// The body of a request or of its response.
pub struct TrackedBody<B> {
    body: B,
    _request: Arc<ActiveRequest>,
}

impl<B> TrackedBody<B> {
    pub fn new(body: B, request: Arc<ActiveRequest>) -> Self {
        Self { body, _request: request }
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for TrackedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn is_overdue(connection: &Connection, after: Duration, timeouts: &Timeouts) -> bool {
        connection.lock().is_overdue(Instant::now() + after, timeouts)
    }

    const SECOND: Duration = Duration::from_secs(1);
    const HOUR: Duration = Duration::from_hours(1);

    #[test]
    fn unused_connections_are_closed_only_if_many_are_open() {
        let connections = Connections::new(2);
        let guard = connections.add().unwrap();
        let connection = &guard.connection;
        assert!(!is_overdue(connection, HOUR, &NORMAL));
        assert!(!is_overdue(connection, SECOND, &CROWDED));
        assert!(is_overdue(connection, CROWDED.new.unwrap(), &CROWDED));
        // The headers of a request have a timeout in any case.
        connection.record_received();
        assert!(is_overdue(connection, NORMAL.headers, &NORMAL) && !is_overdue(connection, SECOND, &CROWDED));
        assert!(is_overdue(connection, CROWDED.headers, &CROWDED));
        // A request has its own timeout.
        let request = connection.begin_request();
        connection.record_received();
        assert!(!is_overdue(connection, HOUR, &CROWDED) && !is_overdue(connection, HOUR, &SHUTDOWN));
        drop(request);
        assert!(!is_overdue(connection, HOUR, &NORMAL) && !is_overdue(connection, SECOND, &CROWDED));
        assert!(is_overdue(connection, CROWDED.idle.unwrap(), &CROWDED));
        assert!(is_overdue(connection, SECOND, &SHUTDOWN));
    }

    #[test]
    fn a_request_lasts_as_long_as_its_bodies() {
        let connection = Arc::<Connection>::default();
        let request = connection.begin_request();
        let (request_body, response_body) = (TrackedBody::new((), Arc::clone(&request)), TrackedBody::new((), request));
        drop(response_body);
        // The rest of a rejected body is not the beginning of another request.
        connection.record_received();
        assert!(!is_overdue(&connection, HOUR, &CROWDED));
        drop(request_body);
        assert!(is_overdue(&connection, HOUR, &CROWDED));
    }

    /// The last bytes of a response can be in the write buffer for long after its body was dropped.
    #[test]
    fn a_client_that_reads_the_end_of_a_response_slowly_is_not_idle() {
        let connection = Arc::<Connection>::default();
        drop(connection.begin_request());
        connection.lock().since -= HOUR;
        assert!(is_overdue(&connection, SECOND, &CROWDED));
        connection.record_write(true);
        connection.record_write(false);
        assert!(!is_overdue(&connection, SECOND, &CROWDED));
    }

    #[test]
    fn the_number_of_connections_is_limited() {
        let connections = Connections::new(2);
        let (first, second) = (connections.add().unwrap(), connections.add().unwrap());
        assert!(connections.add().is_none());
        drop(first);
        assert!(connections.add().is_some());
        // Nothing is overdue yet.
        connections.close_overdue(false);
        assert!(!second.connection.close.is_cancelled());
        second.connection.lock().since -= HOUR;
        connections.close_overdue(true);
        assert!(second.connection.close.is_cancelled());
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_overdue() {
        let (server, mut client) = tokio::io::duplex(10);
        let connection = Arc::<Connection>::default();
        let mut io = TrackedIo { io: server, connection: Arc::clone(&connection) };
        let _request = connection.begin_request();
        io.write_all(&[0; 10]).await.unwrap();
        assert!(!is_overdue(&connection, NORMAL.write, &NORMAL));
        assert!(futures_util::poll!(std::pin::pin!(io.write_all(&[0; 10]))).is_pending());
        assert!(is_overdue(&connection, NORMAL.write, &NORMAL) && is_overdue(&connection, SHUTDOWN.write, &SHUTDOWN));
        // Any progress counts.
        client.read_exact(&mut [0; 1]).await.unwrap();
        assert_eq!(io.write(&[0; 10]).await.unwrap(), 1);
        assert!(!is_overdue(&connection, NORMAL.write, &NORMAL));
    }
}
