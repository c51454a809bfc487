//! An upload while it comes in: hashed as it flows, kept in memory while it is small and in a file beyond that, so that
//! memory does not grow with what is uploaded.
//!
//! Each process has a folder of its own under `<data folder>/tmp`, and holds a lock in it. The next process that starts there
//! removes everything that no living process holds a lock of. A file is removed when its [`Spool`] is dropped.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest;
use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

use crate::media;

/// Up to here an upload stays in memory.
const MEMORY: usize = 128 * 1024;
/// How much of the beginning is kept at hand, to tell what kind of content it is.
pub const HEAD: usize = 3072;

/// The folder that uploads of this process go through.
#[derive(Clone)]
pub struct SpoolDir {
    path: Arc<PathBuf>,
    _lock: Arc<File>,
}

impl SpoolDir {
    /// Creates a folder for this process and removes what processes that have ended left behind. Several processes may do this
    /// at the same time.
    ///
    /// # Errors
    /// Returns an error if the folder cannot be created or locked.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let root = data_dir.join("tmp");
        std::fs::create_dir_all(&root)?;
        remove_orphaned(&root)?;
        let mut attempts = 1;
        loop {
            match create_locked(&root) {
                Ok((path, lock)) => return Ok(Self { path: Arc::new(path), _lock: Arc::new(lock) }),
                // Another process that starts now found the folder before it was locked.
                Err(_) if attempts < MAX_ATTEMPTS => attempts += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Begins an upload.
    pub fn writer(&self) -> SpoolWriter {
        SpoolWriter {
            dir: self.clone(),
            hash: digest::Context::new(&digest::SHA256),
            size: 0,
            head: Vec::new(),
            memory: BytesMut::new(),
            file: None,
        }
    }

    /// Takes in all that `source` gives, as [`SpoolWriter`] does. Blocks: not for an async thread.
    ///
    /// # Errors
    /// The source cannot be read, or the file not be written.
    pub fn spool_from_reader(&self, source: &mut dyn Read) -> io::Result<Spool> {
        let mut hash = digest::Context::new(&digest::SHA256);
        let (mut memory, mut file) = (Vec::new(), None);
        let (mut head, mut size) = (Vec::new(), 0);
        let mut chunk = vec![0; MEMORY / 2];
        loop {
            let read = match source.read(&mut chunk) {
                Ok(0) => break,
                Ok(read) => &chunk[..read],
                Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
                Err(err) => return Err(err),
            };
            hash.update(read);
            size += read.len() as u64;
            head.extend_from_slice(&read[..HEAD.saturating_sub(head.len()).min(read.len())]);
            if let Some((file, _)) = &mut file {
                std::io::Write::write_all(file, read)?;
                continue;
            }
            memory.extend_from_slice(read);
            if memory.len() > MEMORY {
                let path = self.temp_path();
                let mut begun = File::create(&path.0)?;
                std::io::Write::write_all(&mut begun, &std::mem::take(&mut memory))?;
                file = Some((begun, path));
            }
        }
        let body = file.map_or_else(|| Body::Memory(memory.into()), |(_, path)| Body::File(Arc::new(path)));
        Ok(Spool { sha256: hex::encode(hash.finish()), size, head: head.into(), body })
    }

    /// A name for a file of the moment; what is made there goes when this is dropped.
    pub(super) fn temp_path(&self) -> TempPath {
        TempPath(self.path.join(Uuid::now_v7().simple().to_string()))
    }

    /// A spool of bytes that are at hand.
    pub fn from_bytes(bytes: Bytes) -> Spool {
        Spool {
            sha256: hex::encode(digest::digest(&digest::SHA256, &bytes)),
            size: bytes.len() as u64,
            head: bytes.slice(..bytes.len().min(HEAD)),
            body: Body::Memory(bytes),
        }
    }
}

/// Returns the media type of a file, by its content and its name.
pub fn media_type_of(content: &Spool, filename: &str) -> String {
    let is_whole = content.head.len() as u64 == content.size;
    media::detect(&content.head, is_whole, filename)
}

/// How often a process tries to create its folder while others remove it.
const MAX_ATTEMPTS: usize = 100;

/// The prefix of a folder that its process has not locked yet. Nothing is stored there before it is renamed.
const UNLOCKED: &str = "new-";

/// Creates a folder under a preliminary name, locks it, and only then gives it its name: without the prefix, a folder has a lock
/// that its process holds until it ends.
fn create_locked(root: &Path) -> io::Result<(PathBuf, File)> {
    let name = Uuid::now_v7().simple().to_string();
    let (preliminary, path) = (root.join(format!("{UNLOCKED}{name}")), root.join(name));
    std::fs::create_dir(&preliminary)?;
    let lock = File::create_new(preliminary.join("lock"))?;
    lock.try_lock().map_err(io::Error::from)?;
    std::fs::rename(&preliminary, &path)?;
    Ok((path, lock))
}

/// Removes everything below `root` that no living process has locked.
fn remove_orphaned(root: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        match remove_unlocked(&entry) {
            // Another process that starts now removes it too.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

fn remove_unlocked(entry: &std::fs::DirEntry) -> io::Result<()> {
    let path = entry.path();
    if !entry.file_type()?.is_dir() {
        return std::fs::remove_file(path);
    }
    match File::open(path.join("lock")) {
        // The lock is held until the folder is gone.
        Ok(lock) => match lock.try_lock() {
            Ok(()) => std::fs::remove_dir_all(path),
            Err(std::fs::TryLockError::WouldBlock) => Ok(()),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        },
        // Its process may be about to lock it. If not, it is empty.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound && entry.file_name().to_string_lossy().starts_with(UNLOCKED) =>
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

/// An upload that is still coming in.
pub struct SpoolWriter {
    dir: SpoolDir,
    hash: digest::Context,
    size: u64,
    head: Vec<u8>,
    memory: BytesMut,
    file: Option<(tokio::fs::File, TempPath)>,
}

impl SpoolWriter {
    /// Bytes so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Takes the next bytes in.
    ///
    /// # Errors
    /// The file cannot be written, for instance because the disk is full.
    pub async fn write(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.hash.update(chunk);
        self.size += chunk.len() as u64;
        let wanted = HEAD.saturating_sub(self.head.len()).min(chunk.len());
        self.head.extend_from_slice(&chunk[..wanted]);
        if let Some((file, _)) = &mut self.file {
            return file.write_all(chunk).await;
        }
        self.memory.extend_from_slice(chunk);
        if self.memory.len() > MEMORY {
            let path = self.dir.temp_path();
            let mut file = tokio::fs::File::create(&path.0).await?;
            file.set_max_buf_size(MEMORY);
            file.write_all(&std::mem::take(&mut self.memory)).await?;
            self.file = Some((file, path));
        }
        Ok(())
    }

    /// The upload is whole.
    ///
    /// # Errors
    /// As for [`SpoolWriter::write`].
    pub async fn finish(self) -> io::Result<Spool> {
        let body = match self.file {
            None => Body::Memory(self.memory.freeze()),
            Some((mut file, path)) => {
                file.flush().await?;
                Body::File(Arc::new(path))
            }
        };
        Ok(Spool { sha256: hex::encode(self.hash.finish()), size: self.size, head: self.head.into(), body })
    }
}

/// An upload that is whole.
#[derive(Clone)]
pub struct Spool {
    /// Of the content, in lower-case hex.
    pub sha256: String,
    /// In bytes.
    pub size: u64,
    /// The first bytes, [`HEAD`] at most.
    pub head: Bytes,
    body: Body,
}

#[derive(Clone)]
pub(super) enum Body {
    Memory(Bytes),
    File(Arc<TempPath>),
}

impl Spool {
    /// The content, read into memory.
    ///
    /// # Errors
    /// The file cannot be read.
    pub async fn bytes(&self) -> io::Result<Bytes> {
        match &self.body {
            Body::Memory(bytes) => Ok(bytes.clone()),
            Body::File(path) => tokio::fs::read(&path.0).await.map(Bytes::from),
        }
    }

    /// The content, to be read from any place of it. Blocks: not for an async thread.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn reader(&self) -> io::Result<Reader> {
        match &self.body {
            Body::Memory(bytes) => Ok(Reader::Memory(io::Cursor::new(bytes.clone()))),
            Body::File(path) => File::open(&path.0).map(io::BufReader::new).map(Reader::File),
        }
    }

    pub(super) fn body(&self) -> &Body {
        &self.body
    }
}

/// Reads a [`Spool`].
pub enum Reader {
    Memory(io::Cursor<Bytes>),
    File(io::BufReader<File>),
}

impl Read for Reader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Memory(bytes) => bytes.read(into),
            Self::File(file) => file.read(into),
        }
    }
}

impl Seek for Reader {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        match self {
            Self::Memory(bytes) => bytes.seek(to),
            Self::File(file) => file.seek(to),
        }
    }
}

/// A file that is removed when this is dropped.
pub(super) struct TempPath(pub(super) PathBuf);

impl Drop for TempPath {
    fn drop(&mut self) {
        // If it stays, the next start removes it.
        let _ = std::fs::remove_file(&self.0);
    }
}
