//! Objects in a folder: `<root>/<project>/<two last hex digits>/<blob id>`.
//!
//! An object is complete or not there: it is written to the side, synced, renamed into its place, and the folder is synced,
//! in this order. Every call does its file work in one piece on a blocking thread.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;

use super::spool::{Body, Spool, SpoolDir, TempPath};
use super::{BlobError, BlobStore, ByteStream, Result, ScanCallback, unavailable};

/// Up to here an object is read in one piece instead of as a stream.
const ONE_PIECE: u64 = 256 * 1024;
/// How many threads a scan reads with.
const SCAN_THREADS: usize = 4;

pub struct LocalBlobStore {
    root: Arc<Path>,
    spool: SpoolDir,
}

impl LocalBlobStore {
    /// Opens the folder, making it on first use. `spool` must be on the same file system.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(root: &Path, spool: SpoolDir) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        if let Some(parent) = root.parent() {
            sync_folder(parent)?;
        }
        Ok(Self { root: root.into(), spool })
    }

    /// Runs `work` with the object's path on a thread that may block.
    async fn on_disk<T: Send + 'static>(
        &self,
        key: &str,
        work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let path = self.path(key);
        let key = key.to_owned();
        tokio::task::spawn_blocking(move || work(&path).map_err(|err| named(err, &key))).await.map_err(unavailable)?
    }

    fn path(&self, key: &str) -> PathBuf {
        object_path(&self.root, key)
    }
}

fn object_path(root: &Path, key: &str) -> PathBuf {
    let (project, id) = key.split_once('/').unwrap_or(("", key));
    let shelf = id.get(id.len().saturating_sub(2)..).unwrap_or(id);
    root.join(project).join(shelf).join(id)
}

fn named(err: io::Error, key: &str) -> BlobError {
    match err.kind() {
        io::ErrorKind::NotFound => BlobError::Missing(key.to_owned()),
        io::ErrorKind::UnexpectedEof => BlobError::Short(key.to_owned()),
        _ => BlobError::Unavailable(anyhow::Error::new(err).context(format!("object {key}"))),
    }
}

#[async_trait]
impl BlobStore for LocalBlobStore {
    async fn put(&self, key: &str, content: &Spool) -> Result<()> {
        let source = match content.body() {
            Body::Memory(bytes) => Source::Memory(bytes.clone()),
            Body::File(path) => Source::File(path.0.clone()),
        };
        let (root, beside) = (Arc::clone(&self.root), self.spool.temp_path());
        self.on_disk(key, move |path| place(&root, &beside, &source, path))
            .await
            // The folder was just made: that it is missing is no missing object.
            .map_err(|err| match err {
                BlobError::Missing(key) => unavailable(anyhow::anyhow!("cannot place object {key}")),
                err => err,
            })
    }

    async fn open(&self, key: &str, range: Range<u64>) -> Result<ByteStream> {
        let length = range.end.saturating_sub(range.start);
        if length <= ONE_PIECE {
            let bytes = self
                .on_disk(key, move |path| {
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
            .on_disk(key, move |path| {
                let mut file = File::open(path)?;
                file.seek(SeekFrom::Start(range.start))?;
                Ok(file)
            })
            .await?;
        let reader = tokio::fs::File::from_std(file).take(length);
        Ok(ReaderStream::with_capacity(reader, 256 * 1024).boxed())
    }

    async fn read(&self, key: &str) -> Result<Bytes> {
        self.on_disk(key, |path| fs::read(path).map(Bytes::from)).await
    }

    async fn scan(&self, keys: Vec<String>, visit: ScanCallback) -> Result<Vec<usize>> {
        let keys = Arc::new(keys);
        let next = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let threads: Vec<_> = (0..SCAN_THREADS.min(keys.len()))
            .map(|_| {
                let (keys, next, visit, root) = (keys.clone(), next.clone(), visit.clone(), self.root.clone());
                tokio::task::spawn_blocking(move || scan_some(&root, &keys, &next, &visit))
            })
            .collect();
        let mut missing = Vec::new();
        for thread in threads {
            missing.extend(thread.await.map_err(unavailable)??);
        }
        Ok(missing)
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.on_disk(key, |path| match fs::remove_file(path) {
            // The row goes next; the object must not come back after a loss of power.
            Ok(()) => sync_folder(path.parent().unwrap_or(path)),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(err) => Err(err),
        })
        .await
    }

    async fn check(&self) -> Result<()> {
        let (root, probe) = (Arc::clone(&self.root), self.spool.temp_path());
        let check = move || {
            File::create(&probe.0)?.write_all(b"ok")?;
            fs::metadata(&root).map(drop)
        };
        tokio::task::spawn_blocking(check)
            .await
            .map_err(unavailable)?
            .context("the folder of objects cannot be written")
            .map_err(unavailable)
    }
}

enum Source {
    Memory(Bytes),
    File(PathBuf),
}

/// Writes to the side, syncs, puts in place, syncs the folder. A key is used once, so nothing is ever replaced.
fn place(root: &Path, beside: &TempPath, source: &Source, path: &Path) -> io::Result<()> {
    let folder = path.parent().unwrap_or(root);
    make_folder(root, folder)?;
    match source {
        Source::Memory(bytes) => {
            let mut file = File::create(&beside.0)?;
            file.write_all(bytes)?;
            file.sync_data()?;
        }
        Source::File(spooled) => {
            // A second name for the same bytes, or a copy where there is no such thing: who lost a race stores them again.
            if fs::hard_link(spooled, &beside.0).is_err() {
                fs::copy(spooled, &beside.0)?;
            }
            File::open(&beside.0)?.sync_data()?;
        }
    }
    fs::rename(&beside.0, path)?;
    sync_folder(folder)
}

/// Makes a folder below `root` and sees to it that it stays made.
fn make_folder(root: &Path, folder: &Path) -> io::Result<()> {
    if folder == root || folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().unwrap_or(root);
    make_folder(root, parent)?;
    match fs::create_dir(folder) {
        Err(err) if err.kind() != io::ErrorKind::AlreadyExists => Err(err),
        _ => sync_folder(parent),
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Reads objects into one buffer, one after the other, until none is left or `visit` has seen enough. Answers with those that are
/// not there.
fn scan_some(
    root: &Path,
    keys: &[String],
    next: &std::sync::atomic::AtomicUsize,
    visit: &ScanCallback,
) -> Result<Vec<usize>> {
    let (mut buffer, mut missing) = (Vec::new(), Vec::new());
    loop {
        let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let Some(key) = keys.get(at) else { return Ok(missing) };
        buffer.clear();
        let read = File::open(object_path(root, key)).and_then(|mut file| file.read_to_end(&mut buffer));
        match read.map_err(|err| named(err, key)) {
            Err(BlobError::Missing(_)) => missing.push(at),
            Err(err) => return Err(err),
            Ok(_) => {
                if visit(at, &mut buffer).is_break() {
                    next.store(keys.len(), std::sync::atomic::Ordering::Relaxed);
                    return Ok(missing);
                }
            }
        }
    }
}
