//! Glob and grep over the files of a disk. Glob reads the paths of files, and grep also reads the contents of text files. Both
//! read batches in the order of directory and file name, until they have found enough files.
//!
//! So that one request cannot monopolize the server, the time of a match is linear in the length of the text, searches have a
//! deadline, and only a few searches run concurrently.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use regex_automata::util::syntax;
use tokio::sync::OwnedSemaphorePermit;

use super::files::{self, ArtifactPath, ArtifactRow, GrepCandidate};
use super::path::Directory;
use super::pattern::{NOT_CANCELED, Pattern, compile_blocking, glob_to_regex};
use super::text_kind::TextKind;
use crate::blob::content::ContentKey;
use crate::disks::Disks;
use crate::encryption::ProjectEncryption;
use crate::error::{Error, Result};
use crate::ids::DiskId;

/// The number of paths that glob reads per query.
const PATH_BATCH_SIZE: i64 = 5_000;
/// The number of files in the first batch of a grep. It is small, because the first batch often contains enough matches.
const FIRST_FILE_BATCH_SIZE: i64 = 500;
/// The number of files in the other batches of a grep.
const FILE_BATCH_SIZE: i64 = 4_000;
/// The maximum number of greps that run concurrently in this process.
pub(super) const MAX_CONCURRENT_GREPS: usize = 4;
/// The maximum number of globs that run concurrently in this process. They have a limit of their own, because they take
/// milliseconds, and a grep can take until its deadline.
pub(super) const MAX_CONCURRENT_GLOBS: usize = 8;

/// Returns the first `limit` files whose full path matches a glob pattern.
pub async fn glob(ctx: &Disks, disk: DiskId, pattern: &str, limit: usize) -> Result<Vec<ArtifactRow>> {
    let syntax = syntax::Config::new().dot_matches_new_line(true).utf8(false);
    // Only files below the literal prefix of the pattern can match.
    let dir = Directory::containing(pattern.split(['*', '?', '[', '\\']).next().unwrap_or_default());
    let deadline = Instant::now() + ctx.config.limits.grep_timeout;
    let permit = tokio::time::timeout_at(deadline.into(), Arc::clone(&ctx.glob_limiter).acquire_owned()).await;
    let permit = permit.map_err(|_| timeout_error())?.map_err(Error::internal)?;
    let (pattern, _permit) = compile_blocking(ctx, glob_to_regex(pattern), syntax, permit).await?;
    let mut conn = ctx.db.acquire().await?;
    let mut matches = Vec::new();
    let mut after = ArtifactPath { path: dir.as_str().to_owned(), filename: String::new() };
    let end = dir.upper_bound();
    loop {
        let paths = files::list_paths(&mut conn, disk, &after, &end, PATH_BATCH_SIZE).await?;
        let Some(last) = paths.last() else { break };
        after = last.clone();
        for path in paths {
            let full_path = format!("{}{}", path.path, path.filename);
            if pattern.is_match(full_path.as_bytes(), deadline, &NOT_CANCELED).ok_or_else(timeout_error)? {
                matches.push(path);
            }
        }
        if matches.len() >= limit {
            matches.truncate(limit);
            break;
        }
        if Instant::now() > deadline {
            return Err(timeout_error());
        }
    }
    Ok(files::get_many(&mut conn, disk, &matches).await?)
}

/// Returns the first `limit` text files that contain a match of a regular expression. Skips files whose content is corrupt or
/// missing in the object store.
///
/// # Errors
/// Returns 400 if the pattern is invalid, 403 if a file is encrypted and the request has no key, and 503 if the object store
/// fails or the deadline has passed.
pub async fn grep(
    ctx: &Disks,
    encryption: &ProjectEncryption,
    disk: DiskId,
    pattern: &str,
    limit: usize,
) -> Result<Vec<ArtifactRow>> {
    let deadline = Instant::now() + ctx.config.limits.grep_timeout;
    let syntax = syntax::Config::new().case_insensitive(true).multi_line(true).utf8(false);
    let search = async {
        let permit = Arc::clone(&ctx.grep_limiter).acquire_owned().await.map_err(Error::internal)?;
        let (pattern, permit) = compile_blocking(ctx, pattern.to_owned(), syntax, permit).await?;
        let pattern = Arc::new(pattern);
        let run = GrepRun { pattern, deadline, canceled: CancelOnDrop::default(), permit: Arc::new(permit) };
        let mut matches = Vec::new();
        let mut after = ArtifactPath::default();
        let mut batch_size = FIRST_FILE_BATCH_SIZE;
        loop {
            let mut conn = ctx.db.acquire().await?;
            let files = files::list_grep_candidates(&mut conn, disk, &after, batch_size).await?;
            drop(conn);
            batch_size = FILE_BATCH_SIZE;
            let Some(last) = files.last() else { break };
            after = last.path.clone();
            let is_text = |file: &GrepCandidate| TextKind::detect(&file.path.filename, &file.mime).is_some();
            matches.extend(scan_batch(ctx, encryption, files.into_iter().filter(is_text).collect(), &run).await?);
            if matches.len() >= limit {
                matches.truncate(limit);
                break;
            }
        }
        Ok::<_, Error>(matches)
    };
    let matches = tokio::time::timeout_at(deadline.into(), search).await.map_err(|_| timeout_error())??;
    let mut conn = ctx.db.acquire().await?;
    Ok(files::get_many(&mut conn, disk, &matches).await?)
}

/// A running grep. If it is dropped before it has finished, for instance because the client disconnects, its threads are
/// canceled. Each thread holds the permit until it ends.
struct GrepRun {
    pattern: Arc<Pattern>,
    deadline: Instant,
    canceled: CancelOnDrop,
    permit: Arc<OwnedSemaphorePermit>,
}

/// A cancellation flag that is set when this value is dropped.
#[derive(Default)]
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Searches the contents of files. Returns the paths of the files that contain a match, in the order of `files`.
async fn scan_batch(
    ctx: &Disks,
    encryption: &ProjectEncryption,
    files: Vec<GrepCandidate>,
    run: &GrepRun,
) -> Result<Vec<ArtifactPath>> {
    let (mut paths, blobs): (Vec<Option<ArtifactPath>>, Vec<_>) =
        files.into_iter().map(|file| (Some(file.path), file.blob)).unzip();
    let matches = Arc::new(Mutex::new(Vec::new()));
    let timed_out = Arc::new(AtomicBool::new(false));
    let visit = {
        let (matches, timed_out, pattern) = (Arc::clone(&matches), Arc::clone(&timed_out), Arc::clone(&run.pattern));
        let (canceled, permit, deadline) = (Arc::clone(&run.canceled.0), Arc::clone(&run.permit), run.deadline);
        move |index: usize, text: &mut Vec<u8>| {
            // Because the closure captures the permit, each thread that runs the closure holds the permit.
            let _permit = &permit;
            match pattern.is_match(text, deadline, &canceled) {
                Some(true) => matches.lock().unwrap_or_else(PoisonError::into_inner).push(index),
                Some(false) if Instant::now() <= deadline && !canceled.load(Ordering::Relaxed) => {}
                Some(false) | None => {
                    timed_out.store(true, Ordering::Relaxed);
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        }
    };
    ctx.blobs.scan(ContentKey::Kek(encryption.kek.as_deref()), blobs, Arc::new(visit)).await?;
    if timed_out.load(Ordering::Relaxed) {
        return Err(timeout_error());
    }
    let mut matches = std::mem::take(&mut *matches.lock().unwrap_or_else(PoisonError::into_inner));
    matches.sort_unstable();
    Ok(matches.into_iter().filter_map(|index| paths[index].take()).collect())
}

fn timeout_error() -> Error {
    Error::unavailable("search timed out; use a more specific pattern")
}
