//! What tells one request from another: hashes of what was sent, so that a key which comes with another request is noticed.

use std::sync::{Arc, OnceLock};

use aws_lc_rs::digest::{self, SHA256};
use axum::extract::Request;
use axum::http::request::Parts;

use crate::http::head::media_type;

pub type Hash = [u8; 32];

/// How much is hashed before others get their turn.
const PIECE: usize = 64 * 1024;

/// SHA-256 of a request's query, kind and body. Whoever reads the body adds it: it is in the request's extensions, and only
/// there if the request has a key, so that nothing else is hashed.
#[derive(Clone)]
pub struct Fingerprint {
    head: Hash,
    body: Arc<OnceLock<Hash>>,
}

impl Fingerprint {
    pub(super) fn of_head(parts: &Parts) -> Self {
        let mut hasher = Hasher::default();
        hasher.add(parts.uri.query().unwrap_or_default().as_bytes());
        hasher.add(media_type(&parts.headers).as_bytes());
        Self { head: hasher.finish(), body: Arc::default() }
    }

    /// The fingerprint that a request's body is to be added to.
    pub fn wanted_by(request: &Request) -> Option<Self> {
        request.extensions().get().cloned()
    }

    /// Adds a body as it came.
    pub async fn add_body(&self, body: &[u8]) {
        let mut hasher = Hasher::default();
        hasher.add_long(body).await;
        self.set_body(hasher.finish());
    }

    /// Sets the hash of a body that is not hashed byte for byte.
    pub fn set_body(&self, hash: Hash) {
        // A body is read once.
        let _ = self.body.set(hash);
    }

    /// Of all that was read so far.
    pub(super) fn hash(&self) -> Hash {
        let mut hasher = Hasher::default();
        hasher.add(&self.head);
        hasher.add(self.body.get().map_or(&[][..], Hash::as_slice));
        hasher.finish()
    }
}

/// Hashes texts so that where one ends and the next begins counts too.
pub struct Hasher(digest::Context);

impl Default for Hasher {
    fn default() -> Self {
        Self(digest::Context::new(&SHA256))
    }
}

impl Hasher {
    pub fn add(&mut self, text: &[u8]) {
        self.0.update(&(text.len() as u64).to_be_bytes());
        self.0.update(text);
    }

    pub async fn add_long(&mut self, text: &[u8]) {
        self.0.update(&(text.len() as u64).to_be_bytes());
        for (n, piece) in text.chunks(PIECE).enumerate() {
            if n > 0 {
                tokio::task::yield_now().await;
            }
            self.0.update(piece);
        }
    }

    pub fn finish(self) -> Hash {
        let mut hash = [0; 32];
        hash.copy_from_slice(self.0.finish().as_ref());
        hash
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn head(uri: &str, kind: &str) -> Fingerprint {
        let request = Request::builder().uri(uri).header("content-type", kind).body(Body::empty()).unwrap();
        Fingerprint::of_head(&request.into_parts().0)
    }

    #[tokio::test]
    async fn query_kind_and_body_count() {
        let with_body = async |uri, kind, body: &[u8]| {
            let fingerprint = head(uri, kind);
            fingerprint.add_body(body).await;
            fingerprint.hash()
        };
        let one = with_body("/a?b=1", "application/json", b"{}").await;
        assert_eq!(one, with_body("/a?b=1", "application/json; charset=utf-8", b"{}").await);
        assert_ne!(one, with_body("/a?b=2", "application/json", b"{}").await);
        assert_ne!(one, with_body("/a?b=1", "text/plain", b"{}").await);
        assert_ne!(one, with_body("/a?b=1", "application/json", b"{ }").await);
        assert_ne!(head("/a", "").hash(), with_body("/a", "", b"").await, "no body is no empty body");
        let long = vec![7; 3 * PIECE + 1];
        assert_eq!(with_body("/", "", &long).await, with_body("/", "", &long).await);
        assert_ne!(with_body("/", "", &long).await, with_body("/", "", &long[1..]).await);
    }

    #[test]
    fn where_a_text_ends_counts() {
        let of = |texts: &[&str]| {
            let mut hasher = Hasher::default();
            for text in texts {
                hasher.add(text.as_bytes());
            }
            hasher.finish()
        };
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert_ne!(of(&["a", ""]), of(&["a"]));
    }
}
