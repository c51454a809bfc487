//! The object store in a directory. The object with the key `<project id>/<UUID>` is the file
//! `<root>/<project id>/<last two hex digits of the UUID>/<UUID>`.
//!
//! An object either exists completely or not at all: it is written to a temporary file, which is synced and renamed, and then the
//! directory is synced. File operations run on blocking threads. Except for scans and large ranges, a call runs all its file
//! operations in one closure on one blocking thread.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;

use super::spool::{Spool, SpoolDir, SpoolStorage, TempPath};
use super::{ByteStream, ObjectStore, ObjectStoreError, Result, ScanCallback, map_join_error};
use crate::error::storage::StorageOutage;

/// The maximum size in bytes of a range that is read with a single call instead of as a stream.
const MAX_SINGLE_READ: u64 = 256 * 1024;
/// The number of threads of a scan.
const SCAN_THREADS: usize = 4;

/// An object store in a local directory.
pub struct LocalObjectStore {
    root: Arc<Path>,
    spool_dir: SpoolDir,
}

impl LocalObjectStore {
    /// Opens the object store, and creates its directory if it does not exist. `spool_dir` must be on the same file system.
    ///
    /// # Errors
    /// Returns an error if the directory cannot be created.
    pub fn open(root: &Path, spool_dir: SpoolDir) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        if let Some(parent) = root.parent() {
            fsync_dir(parent)?;
        }
        Ok(Self { root: root.into(), spool_dir })
    }

    /// Runs `work` with the path of the object on a blocking thread.
    async fn with_path_blocking<T: Send + 'static>(
        &self,
        key: &str,
        work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let path = self.path(key);
        let key = key.to_owned();
        tokio::task::spawn_blocking(move || work(&path).map_err(|err| map_io_error(err, &key)))
            .await
            .map_err(map_join_error)?
    }

    fn path(&self, key: &str) -> PathBuf {
        object_path(&self.root, key)
    }
}

fn object_path(root: &Path, key: &str) -> PathBuf {
    let (project, id) = key.split_once('/').unwrap_or(("", key));
    let shard = id.get(id.len().saturating_sub(2)..).unwrap_or(id);
    root.join(project).join(shard).join(id)
}

fn map_io_error(err: io::Error, key: &str) -> ObjectStoreError {
    match err.kind() {
        io::ErrorKind::NotFound => ObjectStoreError::NotFound(key.to_owned()),
        io::ErrorKind::UnexpectedEof => ObjectStoreError::Truncated(key.to_owned()),
        _ => {
            let outage = StorageOutage::classify_disk_error(&err);
            ObjectStoreError::Unavailable(
                outage,
                anyhow::Error::new(err).context(format!("cannot access the object {key}")),
            )
        }
    }
}

#[async_trait]
impl ObjectStore for LocalObjectStore {
    async fn put(&self, key: &str, content: &Spool) -> Result<()> {
        let (root, tmp, source) = (Arc::clone(&self.root), self.spool_dir.temp_path(), content.storage().clone());
        self.with_path_blocking(key, move |path| write_atomically(&root, &tmp, &source, path))
            .await
            // A missing file does not mean here that the object does not exist.
            .map_err(|err| match err {
                ObjectStoreError::NotFound(key) => ObjectStoreError::Unavailable(
                    StorageOutage::FileMissing,
                    anyhow::anyhow!("cannot store the object {key}: its directory or the spooled file was removed"),
                ),
                err => err,
            })
    }

    async fn open(&self, key: &str, range: Range<u64>) -> Result<ByteStream> {
        let length = range.end.saturating_sub(range.start);
        if length <= MAX_SINGLE_READ {
            let bytes = self
                .with_path_blocking(key, move |path| {
                    let mut file = File::open(path)?;
                    file.seek(SeekFrom::Start(range.start))?;
                    let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
                    file.read_exact(&mut bytes)?;
                    Ok(Bytes::from(bytes))
                })
                .await?;
            return Ok(futures_util::stream::once(async { Ok(bytes) }).boxed());
        }
        let file = self
            .with_path_blocking(key, move |path| {
                let mut file = File::open(path)?;
                file.seek(SeekFrom::Start(range.start))?;
                Ok(file)
            })
            .await?;
        let reader = tokio::fs::File::from_std(file).take(length);
        Ok(ReaderStream::with_capacity(reader, 256 * 1024).boxed())
    }

    async fn read(&self, key: &str) -> Result<Bytes> {
        self.with_path_blocking(key, |path| fs::read(path).map(Bytes::from)).await
    }

    async fn scan(&self, keys: Vec<String>, visit: ScanCallback) -> Result<Vec<usize>> {
        let keys = Arc::new(keys);
        let next_index = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let threads: Vec<_> = (0..SCAN_THREADS.min(keys.len()))
            .map(|_| {
                let (keys, next_index, visit, root) =
                    (keys.clone(), next_index.clone(), visit.clone(), self.root.clone());
                tokio::task::spawn_blocking(move || scan_worker(&root, &keys, &next_index, &visit))
            })
            .collect();
        let mut missing = Vec::new();
        for thread in threads {
            missing.extend(thread.await.map_err(map_join_error)??);
        }
        Ok(missing)
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.with_path_blocking(key, |path| match fs::remove_file(path) {
            // The caller deletes the row next, so the object must not reappear after a power loss.
            Ok(()) => fsync_dir(path.parent().unwrap_or(path)),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(err) => Err(err),
        })
        .await
    }

    async fn check(&self) -> Result<()> {
        let (root, probe) = (Arc::clone(&self.root), self.spool_dir.temp_path());
        let check = move || {
            File::create(&probe.0)?.write_all(b"ok")?;
            fs::metadata(&root).map(drop)
        };
        tokio::task::spawn_blocking(check).await.map_err(map_join_error)?.map_err(|err| {
            let (outage, root) = (StorageOutage::classify_disk_error(&err), self.root.display());
            let context = format!("cannot write a temporary file or access the object directory {root}");
            ObjectStoreError::Unavailable(outage, anyhow::Error::new(err).context(context))
        })
    }
}

/// Writes to the temporary file `tmp`, syncs it and renames it to `path`, and syncs the directory. An object key is used only
/// once, so `path` does not exist yet.
fn write_atomically(root: &Path, tmp: &TempPath, source: &SpoolStorage, path: &Path) -> io::Result<()> {
    let dir = path.parent().unwrap_or(root);
    create_dir_durably(root, dir)?;
    match source {
        SpoolStorage::Memory(bytes) => {
            let mut file = File::create(&tmp.0)?;
            file.write_all(bytes)?;
            file.sync_data()?;
        }
        SpoolStorage::File(spooled) => {
            // The spool keeps its file, because the caller may have to store the spool again. If the file system does not support
            // hard links, the file is copied.
            if fs::hard_link(&spooled.0, &tmp.0).is_err() {
                fs::copy(&spooled.0, &tmp.0)?;
            }
            File::open(&tmp.0)?.sync_data()?;
        }
    }
    fs::rename(&tmp.0, path)?;
    fsync_dir(dir)
}

/// Creates a directory below `root` with its parents, so that it survives a power loss.
fn create_dir_durably(root: &Path, dir: &Path) -> io::Result<()> {
    if dir == root || dir.is_dir() {
        return Ok(());
    }
    let parent = dir.parent().unwrap_or(root);
    create_dir_durably(root, parent)?;
    match fs::create_dir(dir) {
        Err(err) if err.kind() != io::ErrorKind::AlreadyExists => Err(err),
        _ => fsync_dir(parent),
    }
}

fn fsync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Reads objects one after another into a single buffer, until no object is left or `visit` ends the scan. Returns the indices of
/// the objects that do not exist.
fn scan_worker(
    root: &Path,
    keys: &[String],
    next_index: &std::sync::atomic::AtomicUsize,
    visit: &ScanCallback,
) -> Result<Vec<usize>> {
    let (mut buffer, mut missing) = (Vec::new(), Vec::new());
    loop {
        let index = next_index.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let Some(key) = keys.get(index) else { return Ok(missing) };
        buffer.clear();
        let read = File::open(object_path(root, key)).and_then(|mut file| file.read_to_end(&mut buffer));
        match read.map_err(|err| map_io_error(err, key)) {
            Err(ObjectStoreError::NotFound(_)) => missing.push(index),
            Err(err) => return Err(err),
            Ok(_) => {
                if visit(index, &mut buffer).is_break() {
                    next_index.store(keys.len(), std::sync::atomic::Ordering::Relaxed);
                    return Ok(missing);
                }
            }
        }
    }
}
