//! The limit of open files of this process, which also limits its connections.

use rustix::process::{Resource, getrlimit, setrlimit};

/// The number of open files that are not client connections: connections to the database and to S3, and files.
const RESERVED_FILES: usize = 256;

/// Raises the limit of open files as far as the system allows. Returns the number of client connections that it permits, which is
/// at most `max_connections`.
pub(super) fn raise_file_limit(max_connections: usize) -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "cannot raise the limit of open files");
        }
    }
    let Some(files) = getrlimit(Resource::Nofile).current else { return max_connections };
    let available = usize::try_from(files).unwrap_or(usize::MAX).saturating_sub(RESERVED_FILES).max(1);
    if available < max_connections {
        tracing::warn!(
            "the server accepts only {available} instead of {max_connections} connections, because it may open only {files} \
             files: raise the limit (ulimit -n), or lower ACONTEXTD_MAX_CONNECTIONS"
        );
    }
    available.min(max_connections)
}
