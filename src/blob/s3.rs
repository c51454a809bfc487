//! The object store in an S3 bucket, through `aws-sdk-s3`. No other file uses the SDK.

use std::ops::Range;
use std::sync::Arc;

use anyhow::Context;
use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Builder, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream as S3Body;
use aws_sdk_s3::types::ServerSideEncryption;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio_util::io::ReaderStream;

use super::spool::{Spool, SpoolStorage};
use super::{ByteStream, ObjectStore, ObjectStoreError, Result, ScanCallback, unavailable};
use crate::config::S3;

/// The number of objects that a scan reads concurrently: enough to hide network latency, few enough to bound memory.
const SCAN_CONCURRENCY: usize = 8;

/// An object store in an S3 bucket.
pub struct S3ObjectStore {
    client: Client,
    bucket: String,
    sse: Option<ServerSideEncryption>,
}

impl S3ObjectStore {
    /// Creates a client for the configured bucket. Sends no request.
    pub fn new(settings: &S3) -> Self {
        use secrecy::ExposeSecret;
        let credentials = Credentials::new(
            settings.access_key.clone().unwrap_or_default(),
            settings.secret_key.as_ref().map(|key| key.expose_secret().to_owned()).unwrap_or_default(),
            None,
            None,
            "settings",
        );
        let mut config = Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(settings.region.clone()))
            .credentials_provider(credentials)
            .force_path_style(settings.use_path_style)
            // Many S3-compatible stores reject checksums that they do not support.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .retry_config(RetryConfig::standard().with_max_attempts(3))
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(std::time::Duration::from_secs(5))
                    .read_timeout(std::time::Duration::from_secs(30))
                    .build(),
            );
        if let Some(endpoint) = settings.endpoint() {
            config = config.endpoint_url(endpoint);
        }
        let sse = settings.sse.as_deref().filter(|sse| !sse.is_empty()).map(ServerSideEncryption::from);
        Self { client: Client::from_conf(config.build()), bucket: settings.bucket.clone().unwrap_or_default(), sse }
    }

    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<S3Body> {
        let range = range.map(|range| format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
        let response = self.client.get_object().bucket(&self.bucket).key(key).set_range(range).send().await;
        Ok(response.map_err(|err| map_sdk_error(err, key))?.body)
    }
}

/// Converts an error of the SDK. Stores report a missing object as `NoSuchKey`, or as a 404 without a code.
fn map_sdk_error<E>(err: SdkError<E>, key: &str) -> ObjectStoreError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let status = err.raw_response().map(|response| response.status().as_u16());
    let is_missing =
        matches!(err.code(), Some("NoSuchKey" | "NotFound")) || (status == Some(404) && err.code().is_none());
    if is_missing {
        return ObjectStoreError::NotFound(key.to_owned());
    }
    // The requested range begins after the end of the object.
    if status == Some(416) {
        return ObjectStoreError::Truncated(key.to_owned());
    }
    unavailable(anyhow::Error::new(err).context(format!("cannot access the object {key}")))
}

#[async_trait]
impl ObjectStore for S3ObjectStore {
    async fn put(&self, key: &str, content: &Spool) -> Result<()> {
        let body = match content.storage() {
            SpoolStorage::Memory(bytes) => S3Body::from(bytes.clone()),
            // The SDK can read the file again if it retries the request.
            SpoolStorage::File(path) => S3Body::from_path(&path.0).await.map_err(unavailable)?,
        };
        let put = self.client.put_object().bucket(&self.bucket).key(key);
        let put = put.set_server_side_encryption(self.sse.clone()).body(body);
        put.send().await.map(drop).map_err(|err| match map_sdk_error(err, key) {
            ObjectStoreError::NotFound(_) => unavailable(anyhow::anyhow!("bucket {} does not exist", self.bucket)),
            err => err,
        })
    }

    async fn open(&self, key: &str, range: Range<u64>) -> Result<ByteStream> {
        if range.is_empty() {
            return Ok(stream::empty().boxed());
        }
        let body = self.get(key, Some(range)).await?;
        Ok(ReaderStream::with_capacity(body.into_async_read(), 64 * 1024).boxed())
    }

    async fn read(&self, key: &str) -> Result<Bytes> {
        let body = self.get(key, None).await?;
        Ok(body.collect().await.map_err(unavailable)?.into_bytes())
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
                    tokio::task::spawn_blocking(move || Ok(visit(index, &mut bytes))).await.map_err(unavailable)
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
        match self.client.delete_object().bucket(&self.bucket).key(key).send().await {
            Ok(_) => Ok(()),
            Err(err) => match map_sdk_error(err, key) {
                ObjectStoreError::NotFound(_) => Ok(()),
                err => Err(err),
            },
        }
    }

    async fn check(&self) -> Result<()> {
        let head = self.client.head_bucket().bucket(&self.bucket).send().await;
        head.with_context(|| format!("cannot access the bucket {}", self.bucket)).map(drop).map_err(unavailable)
    }
}
