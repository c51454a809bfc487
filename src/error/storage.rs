//! Classifies errors of the object store and of the disk that are not caused by the request.

use std::fmt;
use std::io;

use super::Error;

/// A reason why objects or temporary files cannot be read or written now. The same operation may succeed later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageOutage {
    ConnectionRefused,
    HostNotFound,
    Unresponsive,
    ConnectionLost,
    TlsFailed,
    CredentialsMissing,
    CredentialsRejected,
    AccessDenied,
    ClockSkewed,
    BucketMissing,
    WrongRegion,
    Throttled,
    BucketFull,
    ServerError,
    InvalidResponse,
    DiskFull,
    PermissionDenied,
    ReadOnly,
    FileMissing,
    DiskError,
    /// A part of the server itself failed.
    InternalError,
}

impl StorageOutage {
    /// Returns the outage that caused an error of the local disk.
    pub fn classify_disk_error(err: &io::Error) -> Self {
        use io::ErrorKind as K;
        match err.kind() {
            K::StorageFull | K::QuotaExceeded => Self::DiskFull,
            K::PermissionDenied => Self::PermissionDenied,
            K::ReadOnlyFilesystem => Self::ReadOnly,
            K::NotFound | K::NotADirectory => Self::FileMissing,
            _ => Self::DiskError,
        }
    }

    /// Returns what is wrong and what to check.
    pub fn description(self) -> &'static str {
        match self {
            Self::ConnectionRefused => "S3 connection refused: check S3_ENDPOINT, and whether the S3 server is running",
            Self::HostNotFound => {
                "the host of S3 cannot be reached: check S3_ENDPOINT, S3_REGION, S3_USE_PATH_STYLE and the network"
            }
            Self::Unresponsive => "S3 does not respond: check its load, and the network between it and this server",
            Self::ConnectionLost => "the connection to S3 was lost: check the network",
            Self::TlsFailed => {
                "the TLS connection to S3 failed: check the scheme of S3_ENDPOINT and the server's certificate"
            }
            Self::CredentialsMissing => {
                "no credentials for S3 can be loaded: set S3_ACCESS_KEY and S3_SECRET_KEY, or check the role of this \
                 instance, container or service account"
            }
            Self::CredentialsRejected => {
                "S3 rejects the credentials: check S3_ACCESS_KEY and S3_SECRET_KEY, or the role that provides them"
            }
            Self::AccessDenied => {
                "S3 denies access to the bucket: check S3_BUCKET and the permissions of the credentials"
            }
            Self::ClockSkewed => "S3 rejects the time of this server: check the clocks of both",
            Self::BucketMissing => "the bucket does not exist: create it, or check S3_BUCKET and S3_ENDPOINT",
            Self::WrongRegion => "the bucket is in another region: check S3_REGION and S3_ENDPOINT",
            Self::Throttled => {
                "S3 rejects requests because it receives too many: reduce the load, or raise the limit of the S3 server"
            }
            Self::BucketFull => "S3 stores no more objects: check its disks and the quota of the bucket",
            Self::ServerError => "S3 failed to process a request: check the logs of the S3 server",
            Self::InvalidResponse => {
                "S3 returned an unexpected response: check S3_ENDPOINT, S3_BUCKET and the error in the log"
            }
            Self::DiskFull => "the disk of the data directory is full: free disk space",
            Self::PermissionDenied => {
                "the server has no permission to access its data directory: check the owner and the permissions of the \
                 files in it"
            }
            Self::ReadOnly => "the file system of the data directory is read-only: remount it",
            Self::FileMissing => {
                "a directory or file in the data directory was removed: restore it, or restart the server"
            }
            Self::InternalError => "the server failed to access an object because of an internal error: check the log",
            Self::DiskError => {
                "a file in the data directory cannot be accessed, for example because of an I/O error or too many open files: \
                 check the log"
            }
        }
    }
}

impl fmt::Display for StorageOutage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.description())
    }
}

/// Returns the 503 for an access to a temporary file that failed. The log names the reason.
pub fn temp_file_error(err: io::Error) -> Error {
    let outage = StorageOutage::classify_disk_error(&err);
    let msg = match outage {
        StorageOutage::DiskFull => "not enough disk space for a temporary file; retry later",
        _ => "a temporary file cannot be read or written; retry later",
    };
    Error::Unavailable { msg: msg.into(), cause: Some(anyhow::Error::new(err).context(outage)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_errors_are_classified_by_the_error_of_the_system() {
        use rustix::io::Errno;
        for (errno, expected) in [
            (Errno::NOSPC, StorageOutage::DiskFull),
            (Errno::DQUOT, StorageOutage::DiskFull),
            (Errno::ACCESS, StorageOutage::PermissionDenied),
            (Errno::PERM, StorageOutage::PermissionDenied),
            (Errno::ROFS, StorageOutage::ReadOnly),
            (Errno::NOENT, StorageOutage::FileMissing),
            (Errno::IO, StorageOutage::DiskError),
        ] {
            assert_eq!(StorageOutage::classify_disk_error(&errno.into()), expected, "{errno}");
        }
    }
}
