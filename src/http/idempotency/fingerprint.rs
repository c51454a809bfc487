//! Request fingerprints, which detect an idempotency key that is reused for a different request.

use std::sync::{Arc, OnceLock};

use aws_lc_rs::digest::{self, SHA256};
use axum::extract::Request;
use axum::http::request::Parts;

use crate::http::request_headers::media_type;

/// A SHA-256 hash.
pub type Hash = [u8; 32];

/// The number of bytes that are hashed before the tokio task yields to other tokio tasks.
const CHUNK_SIZE: usize = 64 * 1024;

/// The fingerprint of a request: the SHA-256 of its query, media type and body. The extractor of the idempotency key adds it to
/// the extensions of the request. The code that reads the body adds the hash of the body. Requests without a key have no
/// fingerprint.
#[derive(Clone)]
pub struct Fingerprint {
    query_and_media_type: Hash,
    body: Arc<OnceLock<Hash>>,
}

impl Fingerprint {
    /// Returns the fingerprint of a request whose body has not been read.
    pub(super) fn from_parts(parts: &Parts) -> Self {
        let mut hasher = RequestHasher::default();
        hasher.add(parts.uri.query().unwrap_or_default().as_bytes());
        hasher.add(media_type(&parts.headers).as_bytes());
        Self { query_and_media_type: hasher.finish(), body: Arc::default() }
    }

    /// Returns the fingerprint in the request's extensions, or `None` if the request has no idempotency key.
    pub fn from_request(request: &Request) -> Option<Self> {
        request.extensions().get().cloned()
    }

    /// Adds the hash of the body.
    pub async fn add_body(&self, body: &[u8]) {
        let mut hasher = RequestHasher::default();
        hasher.add_large(body).await;
        self.set_body_hash(hasher.finish());
    }

    /// Sets the hash of the body. For a multipart form, this is the hash of the fields and files, not of the bytes.
    pub fn set_body_hash(&self, hash: Hash) {
        // A body is read only once, so the hash is not set yet.
        let _ = self.body.set(hash);
    }

    /// Returns the hash of the request. If the body has not been read, the hash does not depend on it.
    pub(super) fn hash(&self) -> Hash {
        let mut hasher = RequestHasher::default();
        hasher.add(&self.query_and_media_type);
        hasher.add(self.body.get().map_or(&[][..], Hash::as_slice));
        hasher.finish()
    }
}

/// The SHA-256 of a sequence of values. The length of each value is hashed, too, so that the hash depends on where each value
/// ends.
pub struct RequestHasher(digest::Context);

impl Default for RequestHasher {
    fn default() -> Self {
        Self(digest::Context::new(&SHA256))
    }
}

impl RequestHasher {
    pub fn add(&mut self, value: &[u8]) {
        self.0.update(&(value.len() as u64).to_be_bytes());
        self.0.update(value);
    }

    /// Adds a value that may be large. Yields to other tokio tasks after each chunk of `CHUNK_SIZE`.
    pub async fn add_large(&mut self, value: &[u8]) {
        self.0.update(&(value.len() as u64).to_be_bytes());
        for (i, chunk) in value.chunks(CHUNK_SIZE).enumerate() {
            if i > 0 {
                tokio::task::yield_now().await;
            }
            self.0.update(chunk);
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
        Fingerprint::from_parts(&request.into_parts().0)
    }

    #[tokio::test]
    async fn query_media_type_and_body_affect_the_hash() {
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
        assert_ne!(head("/a", "").hash(), with_body("/a", "", b"").await, "a missing body differs from an empty one");
        let long = vec![7; 3 * CHUNK_SIZE + 1];
        assert_eq!(with_body("/", "", &long).await, with_body("/", "", &long).await);
        assert_ne!(with_body("/", "", &long).await, with_body("/", "", &long[1..]).await);
    }

    #[test]
    fn boundaries_of_values_affect_the_hash() {
        let hash = |texts: &[&str]| {
            let mut hasher = RequestHasher::default();
            for text in texts {
                hasher.add(text.as_bytes());
            }
            hasher.finish()
        };
        assert_ne!(hash(&["ab", "c"]), hash(&["a", "bc"]));
        assert_ne!(hash(&["a", ""]), hash(&["a"]));
    }
}
