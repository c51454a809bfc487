//! The object store in an S3 bucket, through `aws-sdk-s3`. No other file uses the SDK.

mod client;
mod errors;
mod progress;

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream as S3Body;
use aws_sdk_s3::types::ServerSideEncryption;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::spool::{Spool, SpoolStorage};
use super::{ByteStream, ObjectStore, ObjectStoreError, Result, ScanCallback, map_disk_error, map_join_error};
use crate::config::S3;
use crate::error::storage::StorageOutage;
use errors::{classify, map_body_error, map_object_error};
pub use progress::S3Timeouts;
use progress::{StallError, UploadProgress};

/// The number of objects that a scan reads concurrently: enough to hide network latency, few enough to bound memory.
const SCAN_CONCURRENCY: usize = 8;

/// An object store in an S3 bucket.
pub struct S3ObjectStore {
    client: Client,
    bucket: String,
    sse: Option<ServerSideEncryption>,
    timeouts: S3Timeouts,
}

impl S3ObjectStore {
    /// Creates a client for the configured bucket. Sends no request to S3.
    ///
    /// # Errors
    /// Returns an error if the server uses AWS and nothing names the region.
    pub async fn new(settings: &S3, timeouts: S3Timeouts) -> anyhow::Result<Self> {
        Ok(Self {
            client: client::build(settings).await?,
            bucket: settings.bucket.clone().unwrap_or_default(),
            sse: settings.sse.as_deref().filter(|sse| !sse.is_empty()).map(ServerSideEncryption::from),
            timeouts,
        })
    }

    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<S3Body> {
        let range = range.map(|range| format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
        let get = self.client.get_object().bucket(&self.bucket).key(key).set_range(range);
        Ok(self.wait_for_response(key, get.send()).await?.body)
    }

    /// Waits for the response to a request without a body for the object `key`.
    async fn wait_for_response<T, E>(
        &self,
        key: &str,
        response: impl Future<Output = std::result::Result<T, SdkError<E>>>,
    ) -> Result<T>
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        match tokio::time::timeout(self.timeouts.first_byte, response).await {
            Ok(response) => response.map_err(|err| map_object_error(err, key)),
            Err(_) => Err(stall_error(StallError(self.timeouts.first_byte), key)),
        }
    }
}

fn stall_error(err: StallError, key: &str) -> ObjectStoreError {
    let cause = anyhow::Error::new(err).context(format!("cannot access the object {key}"));
    ObjectStoreError::Unavailable(StorageOutage::Unresponsive, cause)
}

/// Returns the next chunk of a body, or `None` at its end.
async fn next_chunk(body: &mut S3Body, stall: Duration, key: &str) -> Result<Option<Bytes>> {
    match tokio::time::timeout(stall, body.next()).await {
        Ok(chunk) => chunk.transpose().map_err(|err| map_body_error(err, key)),
        Err(_) => Err(stall_error(StallError(stall), key)),
    }
}

#[async_trait]
impl ObjectStore for S3ObjectStore {
    async fn put(&self, key: &str, content: &Spool) -> Result<()> {
        let body = match content.storage() {
            SpoolStorage::Memory(bytes) => S3Body::from(bytes.clone()),
            // The SDK can read the file again if it retries the request.
            SpoolStorage::File(path) => {
                S3Body::from_path(&path.0).await.map_err(|err| map_disk_error(io::Error::other(err)))?
            }
        };
        let progress = UploadProgress::start();
        let put = self.client.put_object().bucket(&self.bucket).key(key);
        let put = put.set_server_side_encryption(self.sse.clone()).body(progress.track(body));
        let response =
            progress.watch(self.timeouts.stall, Box::pin(put.send())).await.map_err(|err| stall_error(err, key))?;
        response.map(drop).map_err(|err| match map_object_error(err, key) {
            // The object does not exist yet, so the bucket is missing.
            ObjectStoreError::NotFound(_) => ObjectStoreError::Unavailable(
                StorageOutage::BucketMissing,
                anyhow::anyhow!("cannot store the object {key} in the bucket {}", self.bucket),
            ),
            err => err,
        })
    }

    async fn open(&self, key: &str, range: Range<u64>) -> Result<ByteStream> {
        if range.is_empty() {
            return Ok(stream::empty().boxed());
        }
        let body = self.get(key, Some(range)).await?;
        let (stall, key) = (self.timeouts.stall, key.to_owned());
        let chunks = stream::try_unfold((body, key), move |(mut body, key)| async move {
            let chunk = next_chunk(&mut body, stall, &key).await.map_err(io::Error::other)?;
            Ok(chunk.map(|chunk| (chunk, (body, key))))
        });
        Ok(chunks.boxed())
    }

    async fn read(&self, key: &str) -> Result<Bytes> {
        let mut body = self.get(key, None).await?;
        let mut object = BytesMut::with_capacity(usize::try_from(body.size_hint().0).unwrap_or_default());
        while let Some(chunk) = next_chunk(&mut body, self.timeouts.stall, key).await? {
            object.extend_from_slice(&chunk);
        }
        Ok(object.freeze())
    }

    async fn scan(&self, keys: Vec<String>, visit: ScanCallback) -> Result<Vec<usize>> {
        let mut objects = stream::iter(keys.into_iter().enumerate())
            .map(|(index, key)| {
                let visit = Arc::clone(&visit);
                async move {
                    let mut bytes = match self.read(&key).await {
                        Ok(bytes) => Vec::from(bytes),
                        // The inner `Err` is the index of a missing object.
                        Err(ObjectStoreError::NotFound(_)) => return Ok(Err(index)),
                        Err(err) => return Err(err),
                    };
                    // The callback may take long and would block an async thread.
                    tokio::task::spawn_blocking(move || Ok(visit(index, &mut bytes))).await.map_err(map_join_error)
                }
            })
            .buffer_unordered(SCAN_CONCURRENCY);
        let mut missing = Vec::new();
        while let Some(result) = objects.try_next().await? {
            match result {
                Err(index) => missing.push(index),
                Ok(flow) if flow.is_break() => break,
                Ok(_) => {}
            }
        }
        Ok(missing)
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let delete = self.client.delete_object().bucket(&self.bucket).key(key);
        match self.wait_for_response(key, delete.send()).await {
            Ok(_) | Err(ObjectStoreError::NotFound(_)) => Ok(()),
            Err(err) => Err(err),
        }
    }

    async fn check(&self) -> Result<()> {
        // The caller repeats the check, and a retry would only delay the reason.
        let no_retry = aws_sdk_s3::config::Builder::new().retry_config(RetryConfig::disabled());
        let head = self.client.head_bucket().bucket(&self.bucket).customize().config_override(no_retry);
        let unavailable = |outage, cause: anyhow::Error| {
            ObjectStoreError::Unavailable(outage, cause.context(format!("cannot access the bucket {}", self.bucket)))
        };
        let err = match tokio::time::timeout(self.timeouts.first_byte, head.send()).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(err)) => err,
            Err(timeout) => return Err(unavailable(StorageOutage::Unresponsive, timeout.into())),
        };
        let outage = match classify(&err) {
            // The response to a HEAD request has no body, which would name the reason.
            StorageOutage::AccessDenied | StorageOutage::InvalidResponse => {
                self.find_outage_by_listing().await.unwrap_or(classify(&err))
            }
            outage => outage,
        };
        Err(unavailable(outage, err.into()))
    }
}

impl S3ObjectStore {
    /// Lists the bucket, which requires the same permission as a HEAD request for it, to find out why S3 rejected that request.
    async fn find_outage_by_listing(&self) -> Option<StorageOutage> {
        let list = self.client.list_objects_v2().bucket(&self.bucket).max_keys(1).send();
        match tokio::time::timeout(self.timeouts.first_byte, list).await {
            Ok(Err(err)) => Some(classify(&err)),
            Ok(Ok(_)) | Err(_) => None,
        }
    }
}
