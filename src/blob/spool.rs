//! Spools: uploads that are buffered until they are complete. An upload is hashed while it is received. A small upload is
//! buffered in memory. A larger upload is buffered in a temporary file, so that the required memory does not depend on its size.
//!
//! Each process has a locked directory under `<data directory>/tmp`. When a process starts, it removes the directories that no
//! running process has locked. A temporary file is deleted when its [`Spool`] is dropped.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest;
use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

use crate::mime;

/// The maximum size in bytes of an upload that is buffered in memory.
const MAX_IN_MEMORY: usize = 128 * 1024;
/// The number of leading bytes from which the media type is detected.
pub const SNIFF_LEN: usize = 3072;

/// How many attempts a process makes to create its directory. An attempt fails if another process that is starting removes the
/// directory before it is locked.
const MAX_OPEN_ATTEMPTS: usize = 100;

/// The directory for the temporary files of this process.
#[derive(Clone)]
pub struct SpoolDir {
    path: Arc<PathBuf>,
    _lock: Arc<File>,
}

impl SpoolDir {
    /// Creates and locks a directory for this process. Removes the directories of processes that have ended. Several processes
    /// may call this concurrently.
    ///
    /// # Errors
    /// Returns an error if the directory cannot be created or locked, or if another directory cannot be removed.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let root = data_dir.join("tmp");
        std::fs::create_dir_all(&root)?;
        remove_orphaned(&root)?;
        let mut attempts = 1;
        loop {
            match create_locked(&root) {
                Ok((path, lock)) => return Ok(Self { path: Arc::new(path), _lock: Arc::new(lock) }),
                Err(_) if attempts < MAX_OPEN_ATTEMPTS => attempts += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Creates a writer for a new upload.
    pub fn writer(&self) -> SpoolWriter {
        SpoolWriter {
            dir: self.clone(),
            hash: digest::Context::new(&digest::SHA256),
            size: 0,
            prefix: Vec::new(),
            memory: BytesMut::new(),
            file: None,
        }
    }

    /// Reads `source` to its end into a spool. The call blocks, so it must not be made on an async thread.
    ///
    /// # Errors
    /// Returns an error if `source` cannot be read or the temporary file cannot be written.
    pub fn spool_from_reader(&self, source: &mut dyn Read) -> io::Result<Spool> {
        let mut hash = digest::Context::new(&digest::SHA256);
        let (mut memory, mut file) = (Vec::new(), None);
        let (mut prefix, mut size) = (Vec::new(), 0);
        let mut chunk = vec![0; MAX_IN_MEMORY / 2];
        loop {
            let read = match source.read(&mut chunk) {
                Ok(0) => break,
                Ok(read) => &chunk[..read],
                Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
                Err(err) => return Err(err),
            };
            hash.update(read);
            size += read.len() as u64;
            prefix.extend_from_slice(&read[..SNIFF_LEN.saturating_sub(prefix.len()).min(read.len())]);
            if let Some((file, _)) = &mut file {
                std::io::Write::write_all(file, read)?;
                continue;
            }
            memory.extend_from_slice(read);
            if memory.len() > MAX_IN_MEMORY {
                let path = self.temp_path();
                let mut new_file = File::create(&path.0)?;
                std::io::Write::write_all(&mut new_file, &std::mem::take(&mut memory))?;
                file = Some((new_file, path));
            }
        }
        let storage =
            file.map_or_else(|| SpoolStorage::Memory(memory.into()), |(_, path)| SpoolStorage::File(Arc::new(path)));
        Ok(Spool { sha256: hex::encode(hash.finish()), size, prefix: prefix.into(), storage })
    }

    /// Returns a unique path for a temporary file, which is deleted when the returned value is dropped.
    pub(super) fn temp_path(&self) -> TempPath {
        TempPath(self.path.join(Uuid::now_v7().simple().to_string()))
    }
}

/// Detects the media type of a file from its content and its name.
pub fn detect_media_type(content: &Spool, filename: &str) -> String {
    let is_whole = content.prefix.len() as u64 == content.size;
    mime::detect(&content.prefix, is_whole, filename)
}

/// The prefix of the name of a directory that its process has not locked yet. Such a directory contains at most the lock file.
const UNLOCKED_PREFIX: &str = "new-";

/// Creates a directory under a preliminary name, locks it, and renames it. Every directory without [`UNLOCKED_PREFIX`] is
/// therefore locked as long as its process runs.
fn create_locked(root: &Path) -> io::Result<(PathBuf, File)> {
    let name = Uuid::now_v7().simple().to_string();
    let (preliminary, path) = (root.join(format!("{UNLOCKED_PREFIX}{name}")), root.join(name));
    std::fs::create_dir(&preliminary)?;
    let lock = File::create_new(preliminary.join("lock"))?;
    lock.try_lock().map_err(io::Error::from)?;
    std::fs::rename(&preliminary, &path)?;
    Ok((path, lock))
}

/// Removes everything below `root` that no running process has locked.
fn remove_orphaned(root: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        match remove_unlocked(&entry) {
            // Another process that is starting has already removed the entry.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

/// Removes a file, or a directory that no running process has locked.
fn remove_unlocked(entry: &std::fs::DirEntry) -> io::Result<()> {
    let path = entry.path();
    if !entry.file_type()?.is_dir() {
        return std::fs::remove_file(path);
    }
    match File::open(path.join("lock")) {
        // `lock` is held until the directory is removed.
        Ok(lock) => match lock.try_lock() {
            Ok(()) => std::fs::remove_dir_all(path),
            Err(std::fs::TryLockError::WouldBlock) => Ok(()),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        },
        // The process that has created this directory is about to create the lock file, or has ended. `remove_dir` removes the
        // directory only if it is empty.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                && entry.file_name().to_string_lossy().starts_with(UNLOCKED_PREFIX) =>
        {
            match std::fs::remove_dir(path) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
                other => other,
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => std::fs::remove_dir_all(path),
        Err(error) => Err(error),
    }
}

/// The writer of a spool. It hashes the content of an upload while the upload is received.
pub struct SpoolWriter {
    dir: SpoolDir,
    hash: digest::Context,
    size: u64,
    prefix: Vec<u8>,
    memory: BytesMut,
    file: Option<(tokio::fs::File, TempPath)>,
}

impl SpoolWriter {
    /// Returns the number of bytes written so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// Returns an error if the temporary file cannot be written, for example because the disk is full.
    pub async fn write(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.hash.update(chunk);
        self.size += chunk.len() as u64;
        let length = SNIFF_LEN.saturating_sub(self.prefix.len()).min(chunk.len());
        self.prefix.extend_from_slice(&chunk[..length]);
        if let Some((file, _)) = &mut self.file {
            return file.write_all(chunk).await;
        }
        self.memory.extend_from_slice(chunk);
        if self.memory.len() > MAX_IN_MEMORY {
            let path = self.dir.temp_path();
            let mut file = tokio::fs::File::create(&path.0).await?;
            file.set_max_buf_size(MAX_IN_MEMORY);
            file.write_all(&std::mem::take(&mut self.memory)).await?;
            self.file = Some((file, path));
        }
        Ok(())
    }

    /// Completes the spool.
    ///
    /// # Errors
    /// Returns the same errors as [`SpoolWriter::write`].
    pub async fn finish(self) -> io::Result<Spool> {
        let storage = match self.file {
            None => SpoolStorage::Memory(self.memory.freeze()),
            Some((mut file, path)) => {
                file.flush().await?;
                SpoolStorage::File(Arc::new(path))
            }
        };
        Ok(Spool { sha256: hex::encode(self.hash.finish()), size: self.size, prefix: self.prefix.into(), storage })
    }
}

/// Content that is complete, in memory or in a temporary file, with its hash.
#[derive(Clone)]
pub struct Spool {
    /// The SHA-256 of the content in lower-case hex.
    pub sha256: String,
    /// The size of the content in bytes.
    pub size: u64,
    /// The first bytes of the content, at most [`SNIFF_LEN`].
    pub prefix: Bytes,
    storage: SpoolStorage,
}

/// Where the content of a spool is buffered.
#[derive(Clone)]
pub(super) enum SpoolStorage {
    Memory(Bytes),
    File(Arc<TempPath>),
}

impl Spool {
    /// Creates a spool from bytes in memory.
    pub fn from_bytes(bytes: Bytes) -> Self {
        Self {
            sha256: hex::encode(digest::digest(&digest::SHA256, &bytes)),
            size: bytes.len() as u64,
            prefix: bytes.slice(..bytes.len().min(SNIFF_LEN)),
            storage: SpoolStorage::Memory(bytes),
        }
    }

    /// Reads the content into memory.
    ///
    /// # Errors
    /// Returns an error if the temporary file cannot be read.
    pub async fn bytes(&self) -> io::Result<Bytes> {
        match &self.storage {
            SpoolStorage::Memory(bytes) => Ok(bytes.clone()),
            SpoolStorage::File(path) => tokio::fs::read(&path.0).await.map(Bytes::from),
        }
    }

    /// Returns a seekable reader of the content. The reader blocks, so it must not be used on an async thread.
    ///
    /// # Errors
    /// Returns an error if the temporary file cannot be opened.
    pub fn reader(&self) -> io::Result<SpoolReader> {
        match &self.storage {
            SpoolStorage::Memory(bytes) => Ok(SpoolReader::Memory(io::Cursor::new(bytes.clone()))),
            SpoolStorage::File(path) => File::open(&path.0).map(io::BufReader::new).map(SpoolReader::File),
        }
    }

    pub(super) fn storage(&self) -> &SpoolStorage {
        &self.storage
    }
}

/// A reader of a [`Spool`].
pub enum SpoolReader {
    Memory(io::Cursor<Bytes>),
    File(io::BufReader<File>),
}

impl Read for SpoolReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Memory(bytes) => bytes.read(buf),
            Self::File(file) => file.read(buf),
        }
    }
}

impl Seek for SpoolReader {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        match self {
            Self::Memory(bytes) => bytes.seek(to),
            Self::File(file) => file.seek(to),
        }
    }
}

/// The path of a temporary file, which is deleted on drop.
pub(super) struct TempPath(pub(super) PathBuf);

impl Drop for TempPath {
    fn drop(&mut self) {
        // If this fails, a process that starts later removes the file.
        let _ = std::fs::remove_file(&self.0);
    }
}
