//! A long JSON answer, put together from pieces so that a long message is not copied once more.

use axum::body::Body;
use bytes::Bytes;
use serde::Serialize;

use crate::error::{Error, Result};

/// Longer texts are passed on as a piece of their own, in bytes.
pub const PIECE: usize = 64 * 1024;

/// A JSON text in pieces.
pub struct Pieces {
    done: Vec<Bytes>,
    last: Vec<u8>,
}

impl Pieces {
    /// With room for so many bytes that are no pieces of their own.
    pub fn with_room(bytes: usize) -> Self {
        Self { done: Vec::new(), last: Vec::with_capacity(bytes) }
    }

    /// Where more text can be written.
    pub fn end(&mut self) -> &mut Vec<u8> {
        &mut self.last
    }

    pub fn text(&mut self, text: &str) {
        self.last.extend_from_slice(text.as_bytes());
    }

    pub fn piece(&mut self, json: Bytes) {
        if json.len() < PIECE {
            self.last.extend_from_slice(&json);
        } else {
            self.done.push(std::mem::take(&mut self.last).into());
            self.done.push(json);
        }
    }

    pub fn json(&mut self, value: &impl Serialize) -> Result<()> {
        serde_json::to_writer(&mut self.last, value).map_err(Error::internal)
    }

    /// The fields of an object, and its closing brace.
    pub fn fields(&mut self, object: &impl Serialize) -> Result<()> {
        let json = serde_json::to_vec(object).map_err(Error::internal)?;
        self.last.extend_from_slice(&json[1..]);
        Ok(())
    }
}

impl Pieces {
    /// Returns the body and its length in bytes.
    pub fn into_body(mut self) -> (Body, usize) {
        self.done.push(self.last.into());
        let length = self.done.iter().map(Bytes::len).sum();
        let body = match self.done.len() {
            1 => Body::from(self.done.remove(0)),
            _ => Body::from_stream(futures_util::stream::iter(
                self.done.into_iter().map(Ok::<_, std::convert::Infallible>),
            )),
        };
        (body, length)
    }
}
