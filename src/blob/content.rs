//! Reads and writes the content of objects, and decrypts and encrypts it if necessary.
//!
//! An encryption conversion may replace an object while it is being read. A reader that does not find an object therefore reads
//! the row of the blob again.

use std::borrow::Cow;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::SemaphorePermit;

use super::rows::{self, EncryptionFormat, StoredBlob};
use super::service::{BlobService, READ_BUDGET_KIB};
use super::spool::Spool;
use super::{ByteStream, ObjectStoreError, ScanCallback, map_stream_error};
use crate::encryption::object::{EncryptingReader, ObjectDecryptor, decrypt_acontext_object};
use crate::encryption::{DecryptError, Dek, Kek};
use crate::error::storage::temp_file_error;
use crate::error::{Error, Result};

/// The maximum number of passes of a scan. Each pass after the first one reads the objects that a conversion has replaced during
/// the previous pass.
const MAX_SCAN_PASSES: usize = 3;

/// The key for reading content that may be encrypted.
#[derive(Clone, Copy)]
pub enum ContentKey<'a> {
    /// The KEK of the project, if the request or job has it.
    Kek(Option<&'a Kek>),
    /// The data key of this content.
    Dek(&'a Dek),
}

/// Wraps the data key of content and binds it to the hash of the content.
pub fn wrap_dek(kek: &Kek, dek: &Dek, sha256: &str) -> Result<Vec<u8>> {
    Ok(kek.wrap(dek, &decode_sha256(sha256)?)?)
}

fn decode_sha256(sha256: &str) -> Result<Vec<u8>> {
    hex::decode(sha256).map_err(Error::internal)
}

/// Returns the data key of a blob, or `None` if the blob is not encrypted.
///
/// # Errors
/// Returns 403 if the blob is encrypted and the key is missing, and 500 if the wrapped data key is corrupt.
pub fn unwrap_dek(blob: &StoredBlob, key: ContentKey<'_>) -> Result<Option<Dek>> {
    let Some(format) = blob.encryption_format else { return Ok(None) };
    let kek = match key {
        ContentKey::Dek(dek) => return Ok(Some(Dek::from_bytes(*dek.bytes()))),
        ContentKey::Kek(kek) => kek.ok_or(Error::KeyRequired)?,
    };
    let wrapped = blob.wrapped_key.as_deref().unwrap_or_default();
    let unwrapped = match format {
        EncryptionFormat::Chunked => kek.unwrap(wrapped, &decode_sha256(&blob.sha256)?),
        EncryptionFormat::Acontext => kek.unwrap_without_aad(wrapped),
    };
    unwrapped.map(Some).map_err(|err| corrupt_error(blob, err))
}

fn corrupt_error(blob: &StoredBlob, err: impl Into<anyhow::Error>) -> Error {
    Error::Corrupt { what: format!("the stored content with SHA-256 {}", blob.sha256), cause: err.into() }
}

/// How an object is decrypted, with the key.
enum ObjectDecryption {
    NotEncrypted,
    Chunked(ObjectDecryptor),
    Acontext(Dek),
}

impl ObjectDecryption {
    fn for_blob(blob: &StoredBlob, key: ContentKey<'_>) -> Result<Self> {
        let Some(dek) = unwrap_dek(blob, key)? else { return Ok(Self::NotEncrypted) };
        if blob.encryption_format == Some(EncryptionFormat::Acontext) {
            return Ok(Self::Acontext(dek));
        }
        Ok(Self::Chunked(ObjectDecryptor::new(&dek, blob.size.cast_unsigned())?))
    }

    /// Decrypts a whole object in place.
    fn decrypt(&self, object: &mut Vec<u8>) -> Result<(), DecryptError> {
        match self {
            Self::NotEncrypted => Ok(()),
            Self::Chunked(decryptor) => decryptor.decrypt(object),
            Self::Acontext(dek) => decrypt_acontext_object(dek, object),
        }
    }
}

impl BlobService {
    /// Writes content to the object store, encrypted if `dek` is given.
    ///
    /// # Errors
    /// Returns 503 if the object store fails or the disk is full.
    pub(super) async fn put_content(&self, object_key: &str, content: &Spool, dek: Option<&Dek>) -> Result<()> {
        let Some(dek) = dek else { return Ok(self.store.put(object_key, content).await?) };
        let (spool_dir, source) = (self.spool_dir.clone(), content.reader().map_err(temp_file_error)?);
        let mut reader = EncryptingReader::new(dek, source)?;
        let encrypted = tokio::task::spawn_blocking(move || spool_dir.spool_from_reader(&mut reader))
            .await
            .map_err(Error::internal)?;
        Ok(self.store.put(object_key, &encrypted.map_err(temp_file_error)?).await?)
    }

    /// Reads the row of a blob again after its object was not found, because a conversion may have replaced the object.
    ///
    /// # Errors
    /// Returns 500 if the row still has the same object key or was deleted.
    async fn reload_replaced(&self, blob: &StoredBlob) -> Result<StoredBlob> {
        let mut conn = self.db.acquire().await?;
        let current = rows::get(&mut conn, blob.id).await?.filter(|row| row.object_key != blob.object_key);
        current.ok_or_else(|| ObjectStoreError::NotFound(blob.object_key.clone()).into())
    }

    /// Returns the bytes of `range`, which must lie within the content. The first chunk of encrypted content is decrypted before
    /// the call returns.
    ///
    /// # Errors
    /// Returns 403 if the content is encrypted and the key is missing, 500 if it is corrupt, and 503 if the object store fails.
    pub async fn open(&self, key: ContentKey<'_>, blob: &StoredBlob, range: Range<u64>) -> Result<ByteStream> {
        if blob.encryption_format == Some(EncryptionFormat::Acontext) {
            let to_index = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
            let bytes = self.read(key, blob).await?;
            let end = to_index(range.end).min(bytes.len());
            let part = bytes.slice(to_index(range.start).min(end)..end);
            return Ok(stream::once(async { Ok(part) }).boxed());
        }
        let mut current = Cow::Borrowed(blob);
        let (bytes, decryption) = loop {
            let decryption = ObjectDecryption::for_blob(&current, key)?;
            let object_range = if let ObjectDecryption::Chunked(decryptor) = &decryption {
                decryptor.encrypted_range(&range)
            } else {
                range.clone()
            };
            match self.store.open(&current.object_key, object_range).await {
                Err(ObjectStoreError::NotFound(_)) => current = Cow::Owned(self.reload_replaced(&current).await?),
                Err(err @ ObjectStoreError::Truncated(_)) => return Err(corrupt_error(&current, err)),
                result => break (result?, decryption),
            }
        };
        let ObjectDecryption::Chunked(decryptor) = decryption else { return Ok(bytes) };
        // The first chunk is decrypted here, so that corrupt content is reported before the response begins.
        let mut content = decryptor.decrypt_stream(range, bytes);
        let first = match content.next().await {
            Some(Err(err)) => return Err(read_error(&current, err)),
            first => first,
        };
        Ok(stream::iter(first).chain(content).boxed())
    }

    /// Reads the whole content into memory.
    ///
    /// # Errors
    /// Returns the same errors as [`BlobService::open`].
    pub async fn read(&self, key: ContentKey<'_>, blob: &StoredBlob) -> Result<Bytes> {
        let mut current = Cow::Borrowed(blob);
        let bytes = loop {
            match self.store.read(&current.object_key).await {
                Err(ObjectStoreError::NotFound(_)) => current = Cow::Owned(self.reload_replaced(&current).await?),
                result => break result?,
            }
        };
        let decryption = ObjectDecryption::for_blob(&current, key)?;
        if matches!(decryption, ObjectDecryption::NotEncrypted) {
            return Ok(bytes);
        }
        let mut object = Vec::from(bytes);
        let decrypt = move || decryption.decrypt(&mut object).map(|()| object.into());
        tokio::task::spawn_blocking(decrypt).await.map_err(Error::internal)?.map_err(|err| corrupt_error(&current, err))
    }

    /// Reads the whole content into memory, within a memory budget that all calls of this function share. Waits until the budget
    /// has enough free memory for the content, and reserves this memory until the permit is dropped.
    ///
    /// # Errors
    /// Returns the same errors as [`BlobService::read`].
    pub async fn read_within_budget(
        &self,
        key: ContentKey<'_>,
        blob: &StoredBlob,
    ) -> Result<(SemaphorePermit<'_>, Bytes)> {
        let kib = u32::try_from(blob.size / 1024).unwrap_or(u32::MAX).clamp(1, READ_BUDGET_KIB);
        let permit = self.read_budget.acquire_many(kib).await.map_err(Error::internal)?;
        Ok((permit, self.read(key, blob).await?))
    }

    /// Copies the content to a spool and verifies its SHA-256.
    ///
    /// # Errors
    /// Returns the same errors as [`BlobService::open`], and also 500 if the hash differs, and 503 if the disk is full.
    pub async fn copy_to_spool(&self, key: ContentKey<'_>, blob: &StoredBlob) -> Result<Spool> {
        let mut bytes = self.open(key, blob, 0..blob.size.cast_unsigned()).await?;
        let mut copy = self.spool_dir.writer();
        while let Some(chunk) = bytes.try_next().await.map_err(|err| read_error(blob, err))? {
            copy.write(&chunk).await.map_err(temp_file_error)?;
        }
        let copy = copy.finish().await.map_err(temp_file_error)?;
        if copy.sha256 != blob.sha256 {
            return Err(corrupt_error(blob, anyhow::anyhow!("the content has the SHA-256 {}", copy.sha256)));
        }
        Ok(copy)
    }

    /// Reads many whole contents concurrently, in any order. Contents that are corrupt or missing are logged and skipped.
    ///
    /// # Errors
    /// Returns 403 if a content is encrypted and the key is missing, and 503 if the object store fails or objects are replaced
    /// repeatedly during the scan.
    pub async fn scan(&self, key: ContentKey<'_>, mut contents: Vec<StoredBlob>, visit: ScanCallback) -> Result<()> {
        let mut indices: Vec<usize> = (0..contents.len()).collect();
        for _ in 0..MAX_SCAN_PASSES {
            let decryptions: Vec<Option<ObjectDecryption>> =
                contents.iter().map(|blob| decryption_or_skip(blob, key)).collect::<Result<_>>()?;
            let keys = contents.iter().map(|blob| blob.object_key.clone()).collect();
            let hashes: Vec<String> = contents.iter().map(|blob| blob.sha256.clone()).collect();
            let (visit, original_indices) = (Arc::clone(&visit), indices.clone());
            let decrypt_and_visit = move |i: usize, object: &mut Vec<u8>| {
                let Some(decryption) = &decryptions[i] else { return ControlFlow::Continue(()) };
                match decryption.decrypt(object) {
                    Ok(()) => visit(original_indices[i], object),
                    Err(err) => {
                        log_skipped(&hashes[i], &err);
                        ControlFlow::Continue(())
                    }
                }
            };
            let missing = self.store.scan(keys, Arc::new(decrypt_and_visit)).await?;
            if missing.is_empty() {
                return Ok(());
            }
            let (mut replaced, mut replaced_indices) = (Vec::new(), Vec::new());
            for i in missing {
                let blob = &contents[i];
                match self.reload_replaced(blob).await {
                    Ok(current) => {
                        replaced.push(current);
                        replaced_indices.push(indices[i]);
                    }
                    Err(Error::Internal(err)) => log_skipped(&blob.sha256, &err),
                    Err(err) => return Err(err),
                }
            }
            (contents, indices) = (replaced, replaced_indices);
        }
        Err(Error::unavailable("the files of the project are being encrypted or decrypted; retry shortly"))
    }
}

fn read_error(blob: &StoredBlob, err: std::io::Error) -> Error {
    match err.get_ref().and_then(|inner| inner.downcast_ref::<DecryptError>()) {
        Some(inner) => corrupt_error(blob, *inner),
        None => map_stream_error(err).into(),
    }
}

/// Returns how the object of a blob is decrypted. If the wrapped key of the blob is corrupt, logs the error and returns `None`.
fn decryption_or_skip(blob: &StoredBlob, key: ContentKey<'_>) -> Result<Option<ObjectDecryption>> {
    match ObjectDecryption::for_blob(blob, key) {
        Ok(decryption) => Ok(Some(decryption)),
        Err(Error::Corrupt { cause, .. }) => {
            log_skipped(&blob.sha256, &cause);
            Ok(None)
        }
        Err(err) => Err(err),
    }
}

fn log_skipped(sha256: &str, reason: &dyn std::fmt::Display) {
    tracing::error!(content.sha256 = sha256, error = %reason, "cannot read this content; the search skips it");
}
