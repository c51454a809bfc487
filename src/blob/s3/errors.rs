//! Classifies errors of the SDK.

use std::error::Error as StdError;
use std::io;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::error::{ConnectorError, ProvideErrorMetadata, SdkError};

use super::super::{ObjectStoreError, StorageOutage};
use super::progress::StallError;

/// Converts an error of a request for the object `key`. Stores report a missing object as `NoSuchKey`, or as a 404 without a
/// code.
pub(super) fn map_object_error<E>(err: SdkError<E>, key: &str) -> ObjectStoreError
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
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
    let outage = classify(&err);
    ObjectStoreError::Unavailable(outage, anyhow::Error::new(err).context(format!("cannot access the object {key}")))
}

/// Converts an error that occurred while the body of a response was read.
pub(super) fn map_body_error(err: impl StdError + Send + Sync + 'static, key: &str) -> ObjectStoreError {
    let outage = classify_sources(&err).unwrap_or(StorageOutage::ConnectionLost);
    ObjectStoreError::Unavailable(outage, anyhow::Error::new(err).context(format!("cannot read the object {key}")))
}

/// Returns the outage that caused the error. Codes: <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>.
pub(super) fn classify<E>(err: &SdkError<E>) -> StorageOutage
where
    E: ProvideErrorMetadata + StdError + 'static,
{
    let status = err.raw_response().map_or(0, |response| response.status().as_u16());
    match err {
        SdkError::TimeoutError(_) => StorageOutage::Unresponsive,
        SdkError::ServiceError(_) => classify_response(err.code(), status),
        // A proxy in front of S3 may send an error page that is not XML.
        SdkError::ResponseError(_) if status >= 500 => StorageOutage::ServerError,
        SdkError::ResponseError(_) => StorageOutage::InvalidResponse,
        err => classify_sources(err).unwrap_or(StorageOutage::ConnectionLost),
    }
}

fn classify_response(code: Option<&str>, status: u16) -> StorageOutage {
    match (code.unwrap_or_default(), status) {
        ("NoSuchBucket", _) | ("" | "NotFound", 404) => StorageOutage::BucketMissing,
        (
            "InvalidAccessKeyId"
            | "SignatureDoesNotMatch"
            | "ExpiredToken"
            | "InvalidToken"
            | "TokenRefreshRequired"
            | "AuthFailure",
            _,
        ) => StorageOutage::CredentialsRejected,
        ("RequestTimeTooSkewed", _) => StorageOutage::ClockSkewed,
        ("RequestTimeout", _) => StorageOutage::Unresponsive,
        (
            "PermanentRedirect"
            | "TemporaryRedirect"
            | "AuthorizationHeaderMalformed"
            | "IllegalLocationConstraintException",
            _,
        )
        | ("", 301 | 307) => StorageOutage::WrongRegion,
        ("SlowDown" | "TooManyRequests" | "RequestLimitExceeded", _) | (_, 429) => StorageOutage::Throttled,
        ("QuotaExceeded" | "XMinioStorageFull" | "XMinioAdminBucketQuotaExceeded", _) | (_, 507) => {
            StorageOutage::BucketFull
        }
        (_, 401 | 403) => StorageOutage::AccessDenied,
        (_, 500..) => StorageOutage::ServerError,
        _ => StorageOutage::InvalidResponse,
    }
}

/// Returns the outage that the innermost recognized cause of an error names.
fn classify_sources(err: &(dyn StdError + 'static)) -> Option<StorageOutage> {
    let inner = err.source().and_then(classify_sources);
    inner.or_else(|| classify_source(err))
}

fn classify_source(err: &(dyn StdError + 'static)) -> Option<StorageOutage> {
    if err.is::<StallError>() {
        return Some(StorageOutage::Unresponsive);
    }
    if err.is::<CredentialsError>() {
        return Some(StorageOutage::CredentialsMissing);
    }
    if let Some(err) = err.downcast_ref::<ConnectorError>() {
        return err.is_timeout().then_some(StorageOutage::Unresponsive);
    }
    if let Some(err) = err.downcast_ref::<hyper::Error>() {
        return err.is_parse().then_some(StorageOutage::InvalidResponse);
    }
    err.downcast_ref::<io::Error>().map(classify_io)
}

fn classify_io(err: &io::Error) -> StorageOutage {
    use io::ErrorKind as K;
    // `source` skips the inner error of an `io::Error`.
    if let Some(inner) = err.get_ref().and_then(|inner| inner.downcast_ref::<io::Error>()) {
        return classify_io(inner);
    }
    match err.kind() {
        K::ConnectionRefused => StorageOutage::ConnectionRefused,
        K::TimedOut => StorageOutage::Unresponsive,
        K::HostUnreachable | K::NetworkUnreachable => StorageOutage::HostNotFound,
        // The TLS library reports its errors with this kind.
        K::InvalidData => StorageOutage::TlsFailed,
        K::UnexpectedEof | K::ConnectionReset | K::ConnectionAborted | K::BrokenPipe => StorageOutage::ConnectionLost,
        // The resolver reports an unknown host name without an OS error.
        _ if err.raw_os_error().is_none() => StorageOutage::HostNotFound,
        _ => StorageOutage::ConnectionLost,
    }
}
