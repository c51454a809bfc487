//! Limits the memory of the responses that clients have not read yet.
//!
//! A large response reserves its size before it is sent, and releases the memory when the client has read it, or when its
//! connection is closed. Otherwise clients that read slowly could use all memory of the server.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Result};

/// The length in bytes up to which a response needs no reservation.
pub const MAX_UNRESERVED_BYTES: u64 = 64 * 1024;
/// How long a response waits for memory.
const RESERVATION_TIMEOUT: Duration = Duration::from_secs(10);

/// The memory for responses, shared by all requests.
#[derive(Clone)]
pub struct ResponseMemory {
    /// The free memory in KiB.
    free: Arc<Semaphore>,
    total_kib: u32,
    /// The memory in KiB for responses that are complete and wait for a reservation.
    waiting: Arc<Semaphore>,
}

/// The maximum total size of the complete responses that wait for a reservation, in KiB.
const MAX_WAITING_KIB: u32 = 128 * 1024;

impl ResponseMemory {
    pub fn new(total_bytes: u64) -> Self {
        let limit = u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX);
        let total_kib = u32::try_from(total_bytes / 1024).unwrap_or(u32::MAX).clamp(1, limit);
        let semaphore = |kib: u32| Arc::new(Semaphore::new(kib as usize));
        Self { free: semaphore(total_kib), total_kib, waiting: semaphore(MAX_WAITING_KIB) }
    }

    /// Returns the number of permits for a response. A response that is larger than the whole memory reserves all of it, because
    /// otherwise it would wait forever.
    fn permits(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).min(self.total_kib)
    }

    /// Reserves memory if it is available now.
    pub fn try_reserve(&self, bytes: u64) -> Option<ResponseReservation> {
        let permit = Arc::clone(&self.free).try_acquire_many_owned(self.permits(bytes)).ok()?;
        Some(ResponseReservation { memory: self.clone(), permit })
    }

    /// Waits until memory is available, and reserves it.
    ///
    /// # Errors
    /// Returns 503 if the memory does not become available in time.
    pub async fn reserve(&self, bytes: u64) -> Result<ResponseReservation> {
        let acquire = Arc::clone(&self.free).acquire_many_owned(self.permits(bytes));
        match tokio::time::timeout(RESERVATION_TIMEOUT, acquire).await {
            Ok(permit) => Ok(ResponseReservation { memory: self.clone(), permit: permit.map_err(Error::internal)? }),
            Err(_) => Err(too_many_responses()),
        }
    }

    /// Reserves memory for a response that is complete, and therefore uses memory while it waits.
    ///
    /// # Errors
    /// Returns 503 if the memory does not become available in time, or if too many complete responses wait for memory.
    pub async fn reserve_complete(&self, bytes: u64) -> Result<ResponseReservation> {
        if let Some(reservation) = self.try_reserve(bytes) {
            return Ok(reservation);
        }
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).min(MAX_WAITING_KIB);
        let _waiting = self.waiting.try_acquire_many(kib).map_err(|_| too_many_responses())?;
        self.reserve(bytes).await
    }
}

fn too_many_responses() -> Error {
    Error::unavailable(
        "the server is sending too many large responses at the moment; retry shortly, or use a smaller limit",
    )
}

/// Memory that is reserved for a response.
pub struct ResponseReservation {
    memory: ResponseMemory,
    permit: OwnedSemaphorePermit,
}

impl ResponseReservation {
    /// Changes the reservation to the size of the response. If the response is larger and no more memory is available, the
    /// reservation stays too small: a response that waits while it has a reservation could block the others that wait.
    #[must_use]
    pub fn resize(mut self, bytes: u64) -> Self {
        let (reserved, needed) = (self.permit.num_permits(), self.memory.permits(bytes) as usize);
        if needed < reserved {
            drop(self.permit.split(reserved - needed));
        } else if needed > reserved {
            let missing = u64::try_from(needed - reserved).unwrap_or(u64::MAX).saturating_mul(1024);
            if let Some(more) = self.memory.try_reserve(missing) {
                self.permit.merge(more.permit);
            }
        }
        self
    }

    /// Attaches the reservation to the chunks of a response. It is released when the last of their bytes is dropped.
    pub fn attach(self, chunks: Vec<Bytes>) -> Vec<Bytes> {
        let permit = Arc::new(self.permit);
        chunks.into_iter().map(|bytes| attach(bytes, &permit)).collect()
    }
}

fn attach(bytes: Bytes, permit: &Arc<OwnedSemaphorePermit>) -> Bytes {
    Bytes::from_owner(ReservedBytes { bytes, _permit: Arc::clone(permit) })
}

/// Bytes of a response, with its reservation.
struct ReservedBytes {
    bytes: Bytes,
    _permit: Arc<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for ReservedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The body of a response whose memory is reserved.
struct ReservedBody {
    body: Body,
    permit: Arc<OwnedSemaphorePermit>,
}

impl HttpBody for ReservedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        frame.map_ok(|frame| frame.map_data(|bytes| attach(bytes, &self.permit)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Reserves memory for every large response that is in memory. Streams, such as downloads, have at most a few chunks in memory; a
/// handler that creates a larger stream reserves its memory itself.
///
/// `is_read_only` is `true` if the request changes nothing. If there is no memory, the response to such a request is replaced by
/// a 503.
pub(super) async fn reserve_memory(memory: &ResponseMemory, response: Response, is_read_only: bool) -> Response {
    let length = response.body().size_hint().exact().unwrap_or_default();
    if length <= MAX_UNRESERVED_BYTES {
        return response;
    }
    match memory.reserve_complete(length).await {
        Ok(reservation) => response.map(|body| Body::new(ReservedBody { body, permit: Arc::new(reservation.permit) })),
        Err(err) if is_read_only => err.into_response(),
        // The request has changed something, so the client must get the response.
        Err(_) => response,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;

    #[tokio::test]
    async fn a_reservation_is_released_with_the_last_bytes_of_the_response() {
        let memory = ResponseMemory::new(100 * KIB);
        let reservation = memory.try_reserve(60 * KIB).unwrap();
        assert!(memory.try_reserve(41 * KIB).is_none());
        let mut chunks = reservation.attach(vec![Bytes::from(vec![0; 100]), Bytes::from(vec![0; 100])]);
        let rest = chunks[1].split_off(90);
        drop(chunks);
        assert!(memory.try_reserve(41 * KIB).is_none(), "bytes of the response are still in memory");
        drop(rest);
        assert!(memory.try_reserve(100 * KIB).is_some());
    }

    #[tokio::test]
    async fn a_reservation_can_be_resized() {
        let memory = ResponseMemory::new(100 * KIB);
        let smaller = memory.try_reserve(60 * KIB).unwrap().resize(10 * KIB);
        let other = memory.try_reserve(90 * KIB).unwrap();
        drop(other);
        let larger = smaller.resize(100 * KIB);
        assert!(memory.try_reserve(1).is_none());
        drop(larger);
        // A response that is larger than expected does not wait for the memory of others.
        let (small, _other) = (memory.try_reserve(10 * KIB).unwrap(), memory.try_reserve(90 * KIB).unwrap());
        drop(small.resize(50 * KIB));
        assert!(memory.try_reserve(10 * KIB).is_some() && memory.try_reserve(11 * KIB).is_none());
    }

    #[tokio::test]
    async fn complete_responses_that_wait_use_a_limited_amount_of_memory() {
        let memory = ResponseMemory::new(200 << 20);
        let _all = memory.try_reserve(200 << 20).unwrap();
        let mut first = std::pin::pin!(memory.reserve_complete(100 << 20));
        assert!(futures_util::poll!(&mut first).is_pending());
        let second = memory.reserve_complete(50 << 20);
        assert!(matches!(futures_util::FutureExt::now_or_never(second), Some(Err(Error::Unavailable { .. }))));
    }

    #[tokio::test]
    async fn a_response_may_be_larger_than_the_whole_memory() {
        let memory = ResponseMemory::new(100 * KIB);
        let reservation = memory.reserve(1000 * KIB).await.unwrap();
        assert!(memory.try_reserve(1).is_none());
        drop(reservation);
        assert!(memory.try_reserve(100 * KIB).is_some());
    }
}
