//! Limits the memory that all requests together use for bodies and for parsed JSON values. The values may also come from stored
//! messages.
//!
//! A request with a large body reserves memory for the body when it has read the first [`MAX_INLINE_WORK_BYTES`], and for the
//! values before it parses them. It waits for both reservations and holds them until it ends. Requests that reserve memory for
//! their body first and for their values last, each at most once at a time, cannot deadlock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::Extensions;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Result};
use crate::json;

/// The maximum length of a body that is read without a reservation and parsed on the thread that serves the request.
pub const MAX_INLINE_WORK_BYTES: usize = 16 * 1024;

/// The maximum memory for bodies at a time, in KiB.
const MAX_BODIES_KIB: usize = 256 * 1024;
/// The maximum memory for parsed values at a time, in KiB.
const MAX_VALUES_KIB: usize = 384 * 1024;

/// The memory limits for bodies and their values, shared by all requests.
#[derive(Clone)]
pub struct BodyMemory {
    bodies: Arc<Semaphore>,
    values: Arc<Semaphore>,
}

impl Default for BodyMemory {
    fn default() -> Self {
        Self { bodies: Arc::new(Semaphore::new(MAX_BODIES_KIB)), values: Arc::new(Semaphore::new(MAX_VALUES_KIB)) }
    }
}

/// The reservations of one request. They are released when the last clone is dropped.
/// [`limit_time_and_memory`](super::middleware::limit_time_and_memory) holds a clone until the response is ready.
#[derive(Clone, Default)]
pub struct Reservations(Arc<Mutex<Permits>>);

/// The permits of a request for bodies and for values.
#[derive(Default)]
struct Permits {
    bodies: Vec<OwnedSemaphorePermit>,
    values: Vec<OwnedSemaphorePermit>,
}

impl Reservations {
    /// Returns the reservations in the extensions of a request, or new ones if there are none.
    pub fn from_extensions(extensions: &Extensions) -> Self {
        extensions.get::<Self>().cloned().unwrap_or_default()
    }

    /// Releases the memory for the values of a body, which must no longer exist. A request that parses another text after its
    /// body must call this before, because a request that holds a reservation must not wait for another one of the same kind.
    pub fn release_values(&self) {
        self.lock().values.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Permits> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for `bytes` of a semaphore with `total_kib` permits. A request for more bytes waits for all permits, because otherwise
/// it would wait forever.
async fn acquire(semaphore: &Arc<Semaphore>, total_kib: usize, bytes: usize) -> Result<OwnedSemaphorePermit> {
    let kib = u32::try_from(bytes.div_ceil(1024).min(total_kib)).unwrap_or(u32::MAX);
    Arc::clone(semaphore).acquire_many_owned(kib).await.map_err(Error::internal)
}

impl BodyMemory {
    /// Waits until `bytes` of memory are available for a body or for stored content, and reserves them.
    ///
    /// # Errors
    /// Returns an error if the semaphores are closed, which never happens.
    pub async fn reserve_body(&self, reservations: &Reservations, bytes: u64) -> Result<()> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let permit = acquire(&self.bodies, MAX_BODIES_KIB, bytes).await?;
        reservations.lock().bodies.push(permit);
        Ok(())
    }

    /// Waits until `bytes` of memory are available for parsed values, and reserves them. This must be the last reservation of the
    /// request.
    ///
    /// # Errors
    /// Returns an error if the semaphores are closed, which never happens.
    pub async fn reserve_values(&self, reservations: &Reservations, bytes: usize) -> Result<()> {
        let permit = acquire(&self.values, MAX_VALUES_KIB, bytes).await?;
        reservations.lock().values.push(permit);
        Ok(())
    }

    /// Parses a JSON text with `parse`. If the text is longer than [`MAX_INLINE_WORK_BYTES`], this function first reserves memory
    /// for the estimated size of the values, and then parses on a blocking thread.
    ///
    /// # Errors
    /// Returns the errors of `parse`. Returns 400 with the name `field` if a text that is longer than [`MAX_INLINE_WORK_BYTES`]
    /// has more than `max_values` values according to the estimate.
    pub async fn parse<T: Send + 'static>(
        &self,
        reservations: &Reservations,
        field: &str,
        text: Bytes,
        max_values: usize,
        parse: impl FnOnce(Bytes) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if text.len() <= MAX_INLINE_WORK_BYTES {
            return parse(text);
        }
        let copy = text.clone();
        let estimate = tokio::task::spawn_blocking(move || json::estimate(&copy)).await.map_err(Error::internal)?;
        if estimate.values > max_values {
            return Err(Error::invalid_field(field, format_args!("must not have more than {max_values} JSON values")));
        }
        self.reserve_values(reservations, estimate.bytes).await?;
        tokio::task::spawn_blocking(move || parse(text)).await.map_err(Error::internal)?
    }
}
