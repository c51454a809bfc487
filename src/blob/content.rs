//! The content of stored objects, sealed or not: whoever reads or writes goes through here, and sees the content alone.
//!
//! What is read may be turned into another form just then, and lies somewhere else afterwards: its row is looked at again.

use std::borrow::Cow;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::SemaphorePermit;

use super::rows::{self, EncryptionFormat, StoredBlob};
use super::service::{BlobService, PREVIEW_BUDGET_KIB};
use super::spool::Spool;
use super::{BlobError, ByteStream, ScanCallback};
use crate::encryption::object::{Opener, Sealing, open_whole};
use crate::encryption::{DecryptError, Dek, Kek};
use crate::error::{Error, Result};

/// How often a scan looks for objects that have moved.
const TRIES: usize = 3;

/// What opens sealed content.
#[derive(Clone, Copy)]
pub enum Key<'a> {
    /// That of the project, if it is at hand.
    Project(Option<&'a Kek>),
    /// That of this one content.
    Object(&'a Dek),
}

/// Wraps the key of a content, bound to what the content is.
pub fn wrap(kek: &Kek, dek: &Dek, sha256: &str) -> Result<Vec<u8>> {
    Ok(kek.wrap(dek, &hash(sha256)?)?)
}

fn hash(sha256: &str) -> Result<Vec<u8>> {
    hex::decode(sha256).map_err(Error::internal)
}

/// The key of a content; `None` if it is not sealed.
///
/// # Errors
/// 403 if it is sealed and there is nothing to open it with; 500 if its key is damaged.
pub fn dek(stored: &StoredBlob, key: Key<'_>) -> Result<Option<Dek>> {
    let Some(format) = stored.encryption_format else { return Ok(None) };
    let kek = match key {
        Key::Object(dek) => return Ok(Some(Dek::from_bytes(*dek.bytes()))),
        Key::Project(kek) => kek.ok_or(Error::KeyRequired)?,
    };
    let wrapped = stored.wrapped_key.as_deref().unwrap_or_default();
    let unwrapped = match format {
        EncryptionFormat::Chunked => kek.unwrap(wrapped, &hash(&stored.sha256)?),
        EncryptionFormat::Acontext => kek.unwrap_unbound(wrapped),
    };
    unwrapped.map(Some).map_err(|err| damaged(stored, err))
}

fn damaged(stored: &StoredBlob, err: impl Into<anyhow::Error>) -> Error {
    Error::Corrupt { what: format!("the stored content with SHA-256 {}", stored.sha256), cause: err.into() }
}

/// How the bytes of an object become its content.
enum ObjectEncoding {
    Plain,
    Chunked(Opener),
    Acontext(Dek),
}

impl ObjectEncoding {
    fn for_blob(stored: &StoredBlob, key: Key<'_>) -> Result<Self> {
        let Some(dek) = dek(stored, key)? else { return Ok(Self::Plain) };
        if stored.encryption_format == Some(EncryptionFormat::Acontext) {
            return Ok(Self::Acontext(dek));
        }
        Ok(Self::Chunked(Opener::new(&dek, stored.size.cast_unsigned())?))
    }

    /// Decrypts an object that was read whole.
    fn decode(&self, object: &mut Vec<u8>) -> Result<(), DecryptError> {
        match self {
            Self::Plain => Ok(()),
            Self::Chunked(opener) => opener.open(object),
            Self::Acontext(dek) => open_whole(dek, object),
        }
    }
}

impl BlobService {
    /// Puts a content into the store, sealed if there is a key for it.
    ///
    /// # Errors
    /// 503 if the object store fails or there is no room.
    pub(super) async fn put_content(&self, object_key: &str, content: &Spool, dek: Option<&Dek>) -> Result<()> {
        let Some(dek) = dek else { return Ok(self.store.put(object_key, content).await?) };
        let (dir, source) = (self.spool.clone(), content.reader().map_err(Error::internal)?);
        let mut sealing = Sealing::new(dek, source)?;
        let sealed =
            tokio::task::spawn_blocking(move || dir.spool_from_reader(&mut sealing)).await.map_err(Error::internal)?;
        Ok(self.store.put(object_key, &sealed.map_err(no_room)?).await?)
    }

    /// Where an object that was not found is now: it may have moved.
    async fn find_relocated<'a>(&self, stored: &StoredBlob, missing: String) -> Result<Cow<'a, StoredBlob>> {
        let mut conn = self.db.acquire().await?;
        let now = rows::get(&mut conn, stored.id).await?.filter(|now| now.object_key != stored.object_key);
        now.map(Cow::Owned).ok_or_else(|| BlobError::Missing(missing).into())
    }

    /// Reads the bytes of `range`, which lies within the content. Its first bytes are at hand when this returns.
    ///
    /// # Errors
    /// 403 and 500 as for [`dek`]; 503 if the object store fails.
    pub async fn open(&self, key: Key<'_>, stored: &StoredBlob, range: Range<u64>) -> Result<ByteStream> {
        if stored.encryption_format == Some(EncryptionFormat::Acontext) {
            let within = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
            let bytes = self.read(key, stored).await?;
            let end = within(range.end).min(bytes.len());
            let part = bytes.slice(within(range.start).min(end)..end);
            return Ok(stream::once(async { Ok(part) }).boxed());
        }
        let mut now = Cow::Borrowed(stored);
        let (bytes, encoding) = loop {
            let encoding = ObjectEncoding::for_blob(&now, key)?;
            let within = if let ObjectEncoding::Chunked(opener) = &encoding {
                opener.sealed_range(&range)
            } else {
                range.clone()
            };
            match self.store.open(&now.object_key, within).await {
                Err(BlobError::Missing(name)) => now = self.find_relocated(&now, name).await?,
                Err(err @ BlobError::Short(_)) => return Err(damaged(&now, err)),
                done => break (done?, encoding),
            }
        };
        let ObjectEncoding::Chunked(opener) = encoding else { return Ok(bytes) };
        // Whether it opens at all is known before anything is promised.
        let mut content = opener.open_stream(range, bytes);
        let first = match content.next().await {
            Some(Err(err)) => return Err(unreadable(&now, err)),
            first => first,
        };
        Ok(stream::iter(first).chain(content).boxed())
    }

    /// Reads a whole content into memory.
    ///
    /// # Errors
    /// As for [`BlobService::open`].
    pub async fn read(&self, key: Key<'_>, stored: &StoredBlob) -> Result<Bytes> {
        let mut now = Cow::Borrowed(stored);
        let bytes = loop {
            match self.store.read(&now.object_key).await {
                Err(BlobError::Missing(name)) => now = self.find_relocated(&now, name).await?,
                done => break done?,
            }
        };
        let encoding = ObjectEncoding::for_blob(&now, key)?;
        if matches!(encoding, ObjectEncoding::Plain) {
            return Ok(bytes);
        }
        let mut object = Vec::from(bytes);
        let decode = move || encoding.decode(&mut object).map(|()| object.into());
        tokio::task::spawn_blocking(decode).await.map_err(Error::internal)?.map_err(|err| damaged(&now, err))
    }

    /// Reads a whole content as [`BlobService::read`] does, when the contents that are read this way leave room for it in memory. The
    /// room is taken until the permit is dropped.
    ///
    /// # Errors
    /// As for [`BlobService::read`].
    pub async fn read_within_budget(&self, key: Key<'_>, stored: &StoredBlob) -> Result<(SemaphorePermit<'_>, Bytes)> {
        let kib = u32::try_from(stored.size / 1024).unwrap_or(u32::MAX).clamp(1, PREVIEW_BUDGET_KIB);
        let permit = self.preview_budget.acquire_many(kib).await.map_err(Error::internal)?;
        Ok((permit, self.read(key, stored).await?))
    }

    /// Reads a whole content and hands it on piece by piece; whether it is what it should be is known at the end.
    ///
    /// # Errors
    /// As for [`BlobService::open`], and 500 if it is another content.
    pub async fn copy_to_spool(&self, key: Key<'_>, stored: &StoredBlob) -> Result<Spool> {
        let mut bytes = self.open(key, stored, 0..stored.size.cast_unsigned()).await?;
        let mut copy = self.spool.writer();
        while let Some(piece) = bytes.try_next().await.map_err(|err| unreadable(stored, err))? {
            copy.write(&piece).await.map_err(no_room)?;
        }
        let copy = copy.finish().await.map_err(no_room)?;
        if copy.sha256 == stored.sha256 { Ok(copy) } else { Err(damaged(stored, DecryptError)) }
    }

    /// Reads many whole contents, several at a time and in no order. One that is damaged or missing is passed over, and the log says
    /// so.
    ///
    /// # Errors
    /// 403 if one is sealed and there is nothing to open it with; 503 if the object store fails.
    pub async fn scan(&self, key: Key<'_>, mut contents: Vec<StoredBlob>, visit: ScanCallback) -> Result<()> {
        let mut places: Vec<usize> = (0..contents.len()).collect();
        for _ in 0..TRIES {
            let encodings: Vec<Option<ObjectEncoding>> =
                contents.iter().map(|stored| encoding_or_skip(stored, key)).collect::<Result<_>>()?;
            let keys = contents.iter().map(|stored| stored.object_key.clone()).collect();
            let names: Vec<String> = contents.iter().map(|stored| stored.sha256.clone()).collect();
            let (visit, at) = (Arc::clone(&visit), places.clone());
            let decode = move |n: usize, object: &mut Vec<u8>| match encodings[n].as_ref().map(|one| one.decode(object))
            {
                Some(Ok(())) => visit(at[n], object),
                Some(Err(err)) => {
                    passed_over(&names[n], &err);
                    ControlFlow::Continue(())
                }
                None => ControlFlow::Continue(()),
            };
            let missing = self.store.scan(keys, Arc::new(decode)).await?;
            if missing.is_empty() {
                return Ok(());
            }
            let (mut moved_to, mut moved_at) = (Vec::new(), Vec::new());
            for at in missing {
                let stored = &contents[at];
                match self.find_relocated(stored, stored.object_key.clone()).await {
                    Ok(now) => {
                        moved_to.push(now.into_owned());
                        moved_at.push(places[at]);
                    }
                    Err(Error::Internal(err)) => passed_over(&stored.sha256, &err),
                    Err(err) => return Err(err),
                }
            }
            (contents, places) = (moved_to, moved_at);
        }
        Err(Error::unavailable("the project's files are moving; try again in a moment"))
    }
}

fn no_room(err: std::io::Error) -> Error {
    let msg = "there is no room to seal the upload; try again later".into();
    Error::Unavailable { msg, cause: Some(err.into()) }
}

fn unreadable(stored: &StoredBlob, err: std::io::Error) -> Error {
    match err.get_ref().and_then(|inner| inner.downcast_ref::<DecryptError>()) {
        Some(inner) => damaged(stored, *inner),
        None => BlobError::Unavailable(err.into()).into(),
    }
}

/// How a content is read; `None` if its key is damaged.
fn encoding_or_skip(stored: &StoredBlob, key: Key<'_>) -> Result<Option<ObjectEncoding>> {
    match ObjectEncoding::for_blob(stored, key) {
        Ok(encoding) => Ok(Some(encoding)),
        Err(Error::Corrupt { cause, .. }) => {
            passed_over(&stored.sha256, &cause);
            Ok(None)
        }
        Err(err) => Err(err),
    }
}

fn passed_over(sha256: &str, why: &dyn std::fmt::Display) {
    tracing::error!(content.sha256 = sha256, error = %why, "a content was not searched");
}
