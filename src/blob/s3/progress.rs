//! Ends requests to S3 that make no progress. The timeouts of the SDK do not fit: they limit the time of a whole upload.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use aws_sdk_s3::primitives::{ByteStream as S3Body, SdkBody};
use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Instant;

/// How long S3 may take to respond.
#[derive(Clone, Copy, Debug)]
pub struct S3Timeouts {
    /// The time until the first byte of a response to a request without a body.
    pub first_byte: Duration,
    /// The time in which a transfer must make progress.
    pub stall: Duration,
}

impl Default for S3Timeouts {
    fn default() -> Self {
        Self { first_byte: Duration::from_secs(10), stall: Duration::from_secs(15) }
    }
}

/// A request or a transfer made no progress for this long.
#[derive(Debug, thiserror::Error)]
#[error("no progress for {0:?}")]
pub(super) struct StallError(pub(super) Duration);

/// The time at which an upload last made progress.
#[derive(Clone)]
pub(super) struct UploadProgress(Arc<Mutex<Instant>>);

impl UploadProgress {
    pub(super) fn start() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    fn record(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn last(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns `body`, which records progress whenever the connection takes a chunk of it. It can still be sent again if the SDK
    /// retries the request.
    pub(super) fn track(&self, body: S3Body) -> S3Body {
        let progress = self.clone();
        let track = move |inner| SdkBody::from_body_1_x(TrackedBody { inner, progress: progress.clone() });
        S3Body::new(body.into_inner().map_preserve_contents(track))
    }

    /// Runs the upload, and ends it if it makes no progress for `limit`.
    ///
    /// # Errors
    /// Returns [`StallError`] if the upload has made no progress.
    pub(super) async fn watch<T>(&self, limit: Duration, upload: impl Future<Output = T>) -> Result<T, StallError> {
        let mut upload = std::pin::pin!(upload);
        loop {
            let last = self.last();
            tokio::select! {
                result = &mut upload => return Ok(result),
                () = tokio::time::sleep_until(last + limit) => {}
            }
            if self.last() == last {
                return Err(StallError(limit));
            }
        }
    }
}

/// A request body that records progress.
struct TrackedBody {
    inner: SdkBody,
    progress: UploadProgress,
}

impl Body for TrackedBody {
    type Data = Bytes;
    type Error = aws_sdk_s3::error::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        if frame.is_ready() {
            self.progress.record();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        Body::size_hint(&self.inner)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    const LIMIT: Duration = Duration::from_millis(500);

    #[tokio::test]
    async fn an_upload_that_makes_progress_may_take_longer_than_the_limit() {
        let progress = UploadProgress::start();
        let upload = async {
            for _ in 0..8 {
                let mut body = progress.track(S3Body::from_static(b"chunk")).into_inner();
                tokio::time::sleep(LIMIT / 4).await;
                assert!(body.frame().await.is_some());
            }
        };
        progress.watch(LIMIT, upload).await.unwrap();
    }

    #[tokio::test]
    async fn an_upload_without_progress_ends() {
        assert!(UploadProgress::start().watch(LIMIT, std::future::pending::<()>()).await.is_err());
    }

    #[tokio::test]
    async fn a_tracked_body_has_a_length_and_can_be_sent_again() {
        let body = UploadProgress::start().track(S3Body::from_static(b"content")).into_inner();
        assert_eq!(body.content_length(), Some(7));
        assert!(body.try_clone().is_some());
    }
}
