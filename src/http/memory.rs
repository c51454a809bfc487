//! Bounds the memory that request bodies, and the JSON values parsed from them or from stored messages, take in all requests
//! together.
//!
//! A long body reserves its announced length before it is read, and the estimated size of its values before it is parsed. A request
//! waits for both, and keeps them until it ends. Values are always reserved after the body and nothing is reserved after them, so
//! requests cannot wait for each other in a circle.

use std::sync::{Arc, Mutex, PoisonError};

use axum::http::Extensions;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Result};
use crate::json;

/// Shorter bodies are read without a reservation and parsed on the thread that serves the request, in bytes.
pub const SHORT: usize = 16 * 1024;

/// How much bodies may take at one time, in KiB.
const BODIES_KIB: usize = 256 * 1024;
/// How much parsed values may take at one time, in KiB.
const VALUES_KIB: usize = 384 * 1024;

/// The memory for bodies and their values, shared by all requests.
#[derive(Clone)]
pub struct BodyMemory {
    bodies: Arc<Semaphore>,
    values: Arc<Semaphore>,
}

impl Default for BodyMemory {
    fn default() -> Self {
        Self { bodies: Arc::new(Semaphore::new(BODIES_KIB)), values: Arc::new(Semaphore::new(VALUES_KIB)) }
    }
}

/// What one request has reserved; released when its last clone is dropped. A middleware keeps one until the request has ended.
#[derive(Clone, Default)]
pub struct Reservations(Arc<Mutex<Vec<OwnedSemaphorePermit>>>);

impl Reservations {
    /// Returns the reservations of the request with these extensions.
    pub fn of(extensions: &Extensions) -> Self {
        extensions.get::<Self>().cloned().unwrap_or_default()
    }

    async fn reserve(&self, memory: &Arc<Semaphore>, total_kib: usize, bytes: usize) -> Result<()> {
        let kib = u32::try_from(bytes.div_ceil(1024).min(total_kib)).unwrap_or(u32::MAX);
        let permit = Arc::clone(memory).acquire_many_owned(kib).await.map_err(Error::internal)?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(permit);
        Ok(())
    }
}

impl BodyMemory {
    /// Waits until there is room for a body, or stored contents, of `bytes`.
    ///
    /// # Errors
    /// Never in practice; the semaphores are not closed.
    pub async fn reserve_body(&self, reservations: &Reservations, bytes: u64) -> Result<()> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        reservations.reserve(&self.bodies, BODIES_KIB, bytes).await
    }

    /// Waits until there is room for parsed values of `bytes`. The request must reserve nothing else after that.
    ///
    /// # Errors
    /// Never in practice; the semaphores are not closed.
    pub async fn reserve_values(&self, reservations: &Reservations, bytes: usize) -> Result<()> {
        reservations.reserve(&self.values, VALUES_KIB, bytes).await
    }

    /// Parses a JSON text with `parse`: a long one on a thread where it delays no other request, and when there is room for its
    /// values.
    ///
    /// # Errors
    /// Returns 400 for `field` if the text may have more than `max_values` values, or the error of `parse`.
    pub async fn parse<T: Send + 'static>(
        &self,
        reservations: &Reservations,
        field: &str,
        text: Bytes,
        max_values: usize,
        parse: impl FnOnce(Bytes) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if text.len() <= SHORT {
            return parse(text);
        }
        let counted = text.clone();
        let estimate = tokio::task::spawn_blocking(move || json::estimate(&counted)).await.map_err(Error::internal)?;
        if estimate.values > max_values {
            return Err(Error::invalid_field(field, format_args!("must not have more than {max_values} JSON values")));
        }
        self.reserve_values(reservations, estimate.bytes).await?;
        tokio::task::spawn_blocking(move || parse(text)).await.map_err(Error::internal)?
    }
}
