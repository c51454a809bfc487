//! Writes a long JSON response as a list of chunks, so that long messages are not copied into one buffer.

use axum::body::Body;
use bytes::Bytes;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::http::response_memory::ResponseReservation;

/// Minimum length in bytes of a JSON text that becomes a separate chunk.
pub const CHUNK_THRESHOLD: usize = 64 * 1024;

/// A JSON text in chunks.
pub struct ChunkedJson {
    chunks: Vec<Bytes>,
    /// The text after the last chunk.
    buffer: Vec<u8>,
}

impl ChunkedJson {
    /// Returns an empty text with a buffer of `bytes` bytes. Texts that become separate chunks need no space in it.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { chunks: Vec::new(), buffer: Vec::with_capacity(bytes) }
    }

    /// Returns the buffer, to append text to it.
    pub fn buffer_mut(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    pub fn push_str(&mut self, text: &str) {
        self.buffer.extend_from_slice(text.as_bytes());
    }

    /// Appends JSON text. A text of [`CHUNK_THRESHOLD`] or more is not copied.
    pub fn push_json_bytes(&mut self, json: Bytes) {
        if json.len() < CHUNK_THRESHOLD {
            self.buffer.extend_from_slice(&json);
        } else {
            self.chunks.push(std::mem::take(&mut self.buffer).into());
            self.chunks.push(json);
        }
    }

    pub fn push_value(&mut self, value: &impl Serialize) -> Result<()> {
        serde_json::to_writer(&mut self.buffer, value).map_err(Error::internal)
    }

    /// Appends the fields of a non-empty object and its closing brace.
    pub fn push_fields(&mut self, object: &impl Serialize) -> Result<()> {
        let json = serde_json::to_vec(object).map_err(Error::internal)?;
        self.buffer.extend_from_slice(&json[1..]);
        Ok(())
    }
}

impl ChunkedJson {
    /// Returns the length in bytes.
    pub fn length(&self) -> usize {
        self.chunks.iter().map(Bytes::len).sum::<usize>() + self.buffer.len()
    }

    /// Returns the body. The reservation is released when the body has been written to the connection or dropped.
    pub fn into_body(mut self, reservation: Option<ResponseReservation>) -> Body {
        self.chunks.push(self.buffer.into());
        // A body with a reservation is always a stream. Its size hint is not exact, so the middleware reserves no memory again.
        let has_reservation = reservation.is_some();
        let mut chunks = match reservation {
            Some(reservation) => reservation.attach(self.chunks),
            None => self.chunks,
        };
        match chunks.len() {
            1 if !has_reservation => Body::from(chunks.remove(0)),
            _ => {
                Body::from_stream(futures_util::stream::iter(chunks.into_iter().map(Ok::<_, std::convert::Infallible>)))
            }
        }
    }
}
