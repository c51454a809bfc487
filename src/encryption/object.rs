//! Encrypted objects. The content is encrypted in chunks of 64 KiB, so that a range can be read without the rest of the object,
//! and the required memory does not depend on the size of the object. The nonce of a chunk consists of its number and a flag for
//! the last chunk (the STREAM construction of Hoang, Reyhanitabar, Rogaway and Vizár, 2015). Decryption fails if chunks are
//! reordered, missing, or taken from another object. Each object has its own key, so no nonce is used twice with a key.

use std::io::{self, Read};
use std::ops::Range;

use aws_lc_rs::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};
use bytes::{Bytes, BytesMut};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, stream};

use super::{DecryptError, Dek, TAG_LEN, open};

/// The bytes of an object or of its content.
pub type ByteStream = BoxStream<'static, io::Result<Bytes>>;

/// The size of a chunk of plaintext in bytes. The last chunk may be shorter.
pub const CHUNK_SIZE: usize = 64 * 1024;
const ENCRYPTED_CHUNK_SIZE: usize = CHUNK_SIZE + TAG_LEN;

/// Decrypts an object or a range of it.
pub struct ObjectDecryptor {
    key: LessSafeKey,
    /// The size of the whole content in bytes.
    size: u64,
}

impl ObjectDecryptor {
    /// Creates a decryptor for an object with `size` bytes of content.
    ///
    /// # Errors
    /// Returns an error if the cryptographic library rejects the key.
    pub fn new(dek: &Dek, size: u64) -> anyhow::Result<Self> {
        Ok(Self { key: dek.aes_key()?, size })
    }

    /// Returns the range of the object that contains a range of the content.
    pub fn encrypted_range(&self, range: &Range<u64>) -> Range<u64> {
        let chunks = self.chunk_range(range);
        let offset = |chunk: u64| (chunk * ENCRYPTED_CHUNK_SIZE as u64).min(self.encrypted_len());
        offset(chunks.start)..offset(chunks.end)
    }

    fn chunk_range(&self, range: &Range<u64>) -> Range<u64> {
        let first = range.start / CHUNK_SIZE as u64;
        // An empty range needs no chunk. Empty content has one chunk, which must be read to authenticate that it is empty.
        let end = if range.is_empty() && self.size > 0 { first } else { range.end.div_ceil(CHUNK_SIZE as u64).max(1) };
        first..end
    }

    fn encrypted_len(&self) -> u64 {
        self.size + self.chunk_count() * TAG_LEN as u64
    }

    /// Returns the number of chunks. Empty content has one, which authenticates that it is empty.
    fn chunk_count(&self) -> u64 {
        self.size.div_ceil(CHUNK_SIZE as u64).max(1)
    }

    /// Decrypts a whole object in place.
    ///
    /// # Errors
    /// Returns [`DecryptError`] if the object was modified or has a different size or key.
    pub fn decrypt(&self, object: &mut Vec<u8>) -> Result<(), DecryptError> {
        if object.len() as u64 != self.encrypted_len() {
            return Err(DecryptError);
        }
        let (mut read, mut written) = (0, 0);
        for number in 0..self.chunk_count() {
            let end = object.len().min(read + ENCRYPTED_CHUNK_SIZE);
            let length = self.decrypt_chunk(number, &mut object[read..end])?;
            object.copy_within(read..read + length, written);
            (read, written) = (end, written + length);
        }
        object.truncate(written);
        Ok(())
    }

    /// Decrypts one chunk in place and returns the length of its plaintext.
    fn decrypt_chunk(&self, number: u64, chunk: &mut [u8]) -> Result<usize, DecryptError> {
        let nonce = chunk_nonce(number, number + 1 == self.chunk_count()).ok_or(DecryptError)?;
        Ok(self.key.open_in_place(nonce, Aad::empty(), chunk).map_err(|_| DecryptError)?.len())
    }

    /// Decrypts a range of the content. `encrypted` has the bytes of [`ObjectDecryptor::encrypted_range`]. If decryption fails,
    /// the stream ends with an error that contains [`DecryptError`].
    pub fn decrypt_stream(self, range: Range<u64>, encrypted: ByteStream) -> ByteStream {
        let chunks = self.chunk_range(&range);
        let state = DecryptionState { decryptor: self, range, chunks, encrypted, buffer: BytesMut::new() };
        stream::unfold(Some(state), |state| async {
            let mut state = state?;
            match state.next().await {
                Ok(Some(bytes)) => Some((Ok(bytes), Some(state))),
                Ok(None) => None,
                Err(err) => Some((Err(err), None)),
            }
        })
        .boxed()
    }
}

/// The state of the stream that [`ObjectDecryptor::decrypt_stream`] returns.
struct DecryptionState {
    decryptor: ObjectDecryptor,
    /// The range of the content to return.
    range: Range<u64>,
    /// The numbers of the remaining chunks.
    chunks: Range<u64>,
    encrypted: ByteStream,
    buffer: BytesMut,
}

impl DecryptionState {
    /// Returns the bytes of the range that are in the next chunk; `None` after the last chunk.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let Some(number) = self.chunks.next() else { return Ok(None) };
        let start = number * CHUNK_SIZE as u64;
        let length = (self.decryptor.size - start.min(self.decryptor.size)).min(CHUNK_SIZE as u64);
        let chunk_len = usize::try_from(length).map_err(io::Error::other)? + TAG_LEN;
        while self.buffer.len() < chunk_len {
            match self.encrypted.next().await {
                Some(bytes) => self.buffer.extend_from_slice(&bytes?),
                None => return Err(io::Error::new(io::ErrorKind::InvalidData, DecryptError)),
            }
        }
        let mut chunk = self.buffer.split_to(chunk_len);
        let corrupt = |err| io::Error::new(io::ErrorKind::InvalidData, err);
        let length = self.decryptor.decrypt_chunk(number, &mut chunk).map_err(corrupt)?;
        let clamp = |offset: u64| usize::try_from(offset.saturating_sub(start)).unwrap_or(length).min(length);
        Ok(Some(chunk.freeze().slice(clamp(self.range.start)..clamp(self.range.end))))
    }
}

/// Returns the nonce of a chunk, or `None` if its number has more than 32 bits.
fn chunk_nonce(number: u64, is_last: bool) -> Option<Nonce> {
    let mut nonce = [0; NONCE_LEN];
    nonce[7..11].copy_from_slice(&u32::try_from(number).ok()?.to_be_bytes());
    nonce[11] = u8::from(is_last);
    Some(Nonce::assume_unique_for_key(nonce))
}

/// A reader that encrypts the content of `source`. It reads one byte more than a chunk to determine whether the chunk is the
/// last one.
pub struct EncryptingReader<R> {
    key: LessSafeKey,
    source: R,
    /// The number of the next chunk.
    number: u64,
    /// Content that is not encrypted yet.
    plaintext: Vec<u8>,
    /// The current encrypted chunk. The bytes before the cursor have been returned.
    encrypted: io::Cursor<Vec<u8>>,
    /// `true` after the last chunk was encrypted. Its bytes may not have been returned yet.
    is_last_encrypted: bool,
}

impl<R: Read> EncryptingReader<R> {
    /// Creates a reader that encrypts the content of `source`.
    ///
    /// # Errors
    /// Returns an error if the cryptographic library rejects the key.
    pub fn new(dek: &Dek, source: R) -> anyhow::Result<Self> {
        let (plaintext, encrypted) = (Vec::new(), io::Cursor::default());
        Ok(Self { key: dek.aes_key()?, source, number: 0, plaintext, encrypted, is_last_encrypted: false })
    }

    fn encrypt_next_chunk(&mut self) -> io::Result<()> {
        let missing = (CHUNK_SIZE + 1 - self.plaintext.len()) as u64;
        self.source.by_ref().take(missing).read_to_end(&mut self.plaintext)?;
        self.is_last_encrypted = self.plaintext.len() <= CHUNK_SIZE;
        let rest = if self.is_last_encrypted { Vec::new() } else { self.plaintext.split_off(CHUNK_SIZE) };
        let mut chunk = std::mem::replace(&mut self.plaintext, rest);
        let nonce = chunk_nonce(self.number, self.is_last_encrypted)
            .ok_or_else(|| io::Error::other("the content is too large to encrypt"))?;
        self.key.seal_in_place_append_tag(nonce, Aad::empty(), &mut chunk).map_err(io::Error::other)?;
        self.number += 1;
        self.encrypted = io::Cursor::new(chunk);
        Ok(())
    }
}

impl<R: Read> Read for EncryptingReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.encrypted.read(buf)?;
            if read > 0 || buf.is_empty() || self.is_last_encrypted {
                return Ok(read);
            }
            self.encrypt_next_chunk()?;
        }
    }
}

/// Decrypts an object that Acontext has encrypted: nonce, ciphertext and tag of the whole content.
///
/// # Errors
/// Returns [`DecryptError`] if the object was modified or has a different key.
pub fn decrypt_acontext_object(dek: &Dek, object: &mut Vec<u8>) -> Result<(), DecryptError> {
    let key = dek.aes_key().map_err(|_| DecryptError)?;
    let length = open(&key, &[], object)?.len();
    object.drain(..NONCE_LEN);
    object.truncate(length);
    Ok(())
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt;
    use proptest::prelude::*;

    use super::*;

    fn dek() -> Dek {
        Dek::from_bytes([0x11; 32])
    }

    fn content(size: usize) -> Vec<u8> {
        (0..size).map(|i| u8::try_from(i * 31 % 251).unwrap()).collect()
    }

    fn encrypt(content: &[u8]) -> Vec<u8> {
        let mut object = Vec::new();
        EncryptingReader::new(&dek(), content).unwrap().read_to_end(&mut object).unwrap();
        object
    }

    fn decrypt(size: usize, mut object: Vec<u8>) -> Result<Vec<u8>, DecryptError> {
        ObjectDecryptor::new(&dek(), size as u64).unwrap().decrypt(&mut object).map(|()| object)
    }

    /// Decrypts a range of the content. The stream of the object yields `step` bytes at a time.
    async fn read(size: usize, object: &[u8], range: Range<u64>, step: usize) -> io::Result<Vec<u8>> {
        let decryptor = ObjectDecryptor::new(&dek(), size as u64).unwrap();
        let encrypted = decryptor.encrypted_range(&range);
        let clamp = |offset: u64| usize::try_from(offset).unwrap().min(object.len());
        let bytes: Vec<_> = object[clamp(encrypted.start)..clamp(encrypted.end)]
            .chunks(step)
            .map(|bytes| Ok(Bytes::copy_from_slice(bytes)))
            .collect();
        let content = decryptor.decrypt_stream(range, stream::iter(bytes).boxed());
        content.try_fold(Vec::new(), async |all, bytes| Ok([all, bytes.to_vec()].concat())).await
    }

    #[test]
    fn object_of_acontext_is_decrypted() {
        let mut object = hex::decode("000102030405060708090a0b7b86da7f149b2df6f001f922f211f02f27864bd48b").unwrap();
        let mut modified = object.clone();
        decrypt_acontext_object(&dek(), &mut object).unwrap();
        assert_eq!(object, b"hello");
        modified[13] ^= 1;
        assert_eq!(decrypt_acontext_object(&dek(), &mut modified), Err(DecryptError));
        assert_eq!(decrypt_acontext_object(&dek(), &mut Vec::new()), Err(DecryptError));
    }

    #[test]
    fn sizes_around_a_chunk_are_encrypted_and_decrypted() {
        for size in [0, 1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 2 * CHUNK_SIZE, 2 * CHUNK_SIZE + 5] {
            let (content, object) = (content(size), encrypt(&content(size)));
            let expected = ObjectDecryptor::new(&dek(), size as u64).unwrap().encrypted_len();
            assert_eq!(object.len() as u64, expected, "{size}");
            assert_eq!(decrypt(size, object).unwrap(), content, "{size}");
        }
    }

    #[test]
    fn truncated_reordered_or_added_chunks_are_detected() {
        let size = 3 * CHUNK_SIZE;
        let object = encrypt(&content(size));
        let chunk = |n: usize| &object[n * ENCRYPTED_CHUNK_SIZE..(n + 1) * ENCRYPTED_CHUNK_SIZE];
        for (what, modified, size) in [
            ("truncated at a chunk", [chunk(0), chunk(1)].concat(), 2 * CHUNK_SIZE),
            ("truncated, with the original size", [chunk(0), chunk(1)].concat(), size),
            ("truncated within a chunk", object[..object.len() - 1].to_vec(), size),
            ("two chunks exchanged", [chunk(1), chunk(0), chunk(2)].concat(), size),
            ("one chunk repeated", [chunk(0), chunk(0), chunk(2)].concat(), size),
            ("one chunk added", [chunk(0), chunk(1), chunk(2), chunk(2)].concat(), 4 * CHUNK_SIZE),
            ("empty", Vec::new(), 0),
        ] {
            assert_eq!(decrypt(size, modified), Err(DecryptError), "{what}");
        }
        let other = ObjectDecryptor::new(&Dek::from_bytes([0x12; 32]), size as u64).unwrap();
        assert_eq!(other.decrypt(&mut object.clone()), Err(DecryptError), "another key");
    }

    #[tokio::test]
    async fn intact_ranges_of_a_corrupt_object_can_be_read() {
        let size = 3 * CHUNK_SIZE;
        let mut object = encrypt(&content(size));
        object[ENCRYPTED_CHUNK_SIZE + 9] ^= 1;
        let chunk = CHUNK_SIZE as u64;
        assert_eq!(read(size, &object, 5..chunk, 1000).await.unwrap(), content(size)[5..CHUNK_SIZE]);
        assert_eq!(read(size, &object, 2 * chunk..3 * chunk, 1000).await.unwrap(), content(size)[2 * CHUNK_SIZE..]);
        let err = read(size, &object, 5..chunk + 1, 1000).await.unwrap_err();
        assert!(err.get_ref().and_then(|inner| inner.downcast_ref()) == Some(&DecryptError), "{err}");
        object.truncate(2 * ENCRYPTED_CHUNK_SIZE + 10);
        assert!(read(size, &object, 2 * chunk..3 * chunk, 1000).await.is_err(), "truncated");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_range_can_be_read(
            size in 0..4 * CHUNK_SIZE,
            start in any::<prop::sample::Index>(),
            length in 0..3 * CHUNK_SIZE,
            step in 1..100_000_usize,
        ) {
            let content = content(size);
            let start = start.index(size + 1);
            let end = size.min(start + length);
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let part = runtime.block_on(read(size, &encrypt(&content), start as u64..end as u64, step)).unwrap();
            prop_assert_eq!(&part, &content[start..end]);
        }
    }
}
