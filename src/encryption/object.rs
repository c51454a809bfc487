//! Sealed objects: chunks of 64 KiB, each sealed for itself, so that a part can be read alone and memory does not grow with the
//! object. The nonce of a chunk is its number and whether it is the last one (the STREAM construction of Hoang, Reyhanitabar,
//! Rogaway and Vizár, 2015): chunks that change places, are missing at the end, or come from another object do not open. No
//! nonce is used twice, because each object has a key of its own.

use std::io::{self, Read};
use std::ops::Range;

use aws_lc_rs::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};
use bytes::{Bytes, BytesMut};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, stream};

use super::{DecryptError, Dek, TAG, open as open_with};

/// The bytes of an object as they arrive.
pub type ByteStream = BoxStream<'static, io::Result<Bytes>>;

/// How much of the content is in a chunk, in bytes.
pub const CHUNK: usize = 64 * 1024;
const SEALED_CHUNK: usize = CHUNK + TAG;

/// Opens an object, or parts of it.
pub struct Opener {
    key: LessSafeKey,
    /// Of the whole content, in bytes.
    size: u64,
}

impl Opener {
    /// # Errors
    /// None that can be helped.
    pub fn new(dek: &Dek, size: u64) -> anyhow::Result<Self> {
        Ok(Self { key: dek.aes()?, size })
    }

    /// The bytes of the object in which these bytes of the content are.
    pub fn sealed_range(&self, range: &Range<u64>) -> Range<u64> {
        let chunks = self.chunks_of(range);
        let at = |chunk: u64| (chunk * SEALED_CHUNK as u64).min(self.sealed_size());
        at(chunks.start)..at(chunks.end)
    }

    fn chunks_of(&self, range: &Range<u64>) -> Range<u64> {
        let first = range.start / CHUNK as u64;
        // Nothing at all is in no chunk, unless it is all there is.
        let end = if range.is_empty() && self.size > 0 { first } else { range.end.div_ceil(CHUNK as u64).max(1) };
        first..end
    }

    fn sealed_size(&self) -> u64 {
        self.size + self.chunks() * TAG as u64
    }

    /// Nothing is a chunk too: that it is nothing is sealed.
    fn chunks(&self) -> u64 {
        self.size.div_ceil(CHUNK as u64).max(1)
    }

    /// Opens a whole object where it lies.
    ///
    /// # Errors
    /// [`DecryptError`]
    pub fn open(&self, object: &mut Vec<u8>) -> Result<(), DecryptError> {
        if object.len() as u64 != self.sealed_size() {
            return Err(DecryptError);
        }
        let (mut from, mut to) = (0, 0);
        for number in 0..self.chunks() {
            let end = object.len().min(from + SEALED_CHUNK);
            let length = self.open_chunk(number, &mut object[from..end])?;
            object.copy_within(from..from + length, to);
            (from, to) = (end, to + length);
        }
        object.truncate(to);
        Ok(())
    }

    /// Opens one chunk where it lies; answers with the length of what was in it.
    fn open_chunk(&self, number: u64, sealed: &mut [u8]) -> Result<usize, DecryptError> {
        let nonce = nonce(number, number + 1 == self.chunks()).ok_or(DecryptError)?;
        Ok(self.key.open_in_place(nonce, Aad::empty(), sealed).map_err(|_| DecryptError)?.len())
    }

    /// Opens what comes of [`Opener::sealed_range`], and gives the bytes of the range. What does not open ends the stream with
    /// [`DecryptError`] inside of the error.
    pub fn open_stream(self, range: Range<u64>, sealed: ByteStream) -> ByteStream {
        let chunks = self.chunks_of(&range);
        let reading = Reading { opener: self, range, chunks, sealed, buffer: BytesMut::new() };
        stream::unfold(Some(reading), |reading| async {
            let mut reading = reading?;
            match reading.next().await {
                Ok(Some(bytes)) => Some((Ok(bytes), Some(reading))),
                Ok(None) => None,
                Err(err) => Some((Err(err), None)),
            }
        })
        .boxed()
    }
}

/// An object that is read.
struct Reading {
    opener: Opener,
    /// Of the content, in bytes.
    range: Range<u64>,
    /// Those that are still to come.
    chunks: Range<u64>,
    sealed: ByteStream,
    buffer: BytesMut,
}

impl Reading {
    /// What the next chunk has of the range.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let Some(number) = self.chunks.next() else { return Ok(None) };
        let start = number * CHUNK as u64;
        let length = (self.opener.size - start.min(self.opener.size)).min(CHUNK as u64);
        let wanted = usize::try_from(length).map_err(io::Error::other)? + TAG;
        while self.buffer.len() < wanted {
            match self.sealed.next().await {
                Some(bytes) => self.buffer.extend_from_slice(&bytes?),
                None => return Err(io::Error::new(io::ErrorKind::InvalidData, DecryptError)),
            }
        }
        let mut chunk = self.buffer.split_to(wanted);
        let damaged = |err| io::Error::new(io::ErrorKind::InvalidData, err);
        let length = self.opener.open_chunk(number, &mut chunk).map_err(damaged)?;
        let within = |at: u64| usize::try_from(at.saturating_sub(start)).unwrap_or(length).min(length);
        Ok(Some(chunk.freeze().slice(within(self.range.start)..within(self.range.end))))
    }
}

fn nonce(number: u64, is_last: bool) -> Option<Nonce> {
    let mut nonce = [0; NONCE_LEN];
    nonce[7..11].copy_from_slice(&u32::try_from(number).ok()?.to_be_bytes());
    nonce[11] = u8::from(is_last);
    Some(Nonce::assume_unique_for_key(nonce))
}

/// Seals what it reads. A chunk is held back until it is known whether another one comes.
pub struct Sealing<R> {
    key: LessSafeKey,
    source: R,
    number: u64,
    /// Of the content, and what was sealed of it and not given away yet.
    plain: Vec<u8>,
    sealed: io::Cursor<Vec<u8>>,
    ended: bool,
}

impl<R: Read> Sealing<R> {
    /// # Errors
    /// None that can be helped.
    pub fn new(dek: &Dek, source: R) -> anyhow::Result<Self> {
        let (plain, sealed) = (Vec::new(), io::Cursor::default());
        Ok(Self { key: dek.aes()?, source, number: 0, plain, sealed, ended: false })
    }

    fn seal_next(&mut self) -> io::Result<()> {
        let wanted = (CHUNK + 1 - self.plain.len()) as u64;
        self.source.by_ref().take(wanted).read_to_end(&mut self.plain)?;
        self.ended = self.plain.len() <= CHUNK;
        let rest = if self.ended { Vec::new() } else { self.plain.split_off(CHUNK) };
        let mut chunk = std::mem::replace(&mut self.plain, rest);
        let nonce = nonce(self.number, self.ended).ok_or_else(|| io::Error::other("it is too large to be sealed"))?;
        self.key.seal_in_place_append_tag(nonce, Aad::empty(), &mut chunk).map_err(io::Error::other)?;
        self.number += 1;
        self.sealed = io::Cursor::new(chunk);
        Ok(())
    }
}

impl<R: Read> Read for Sealing<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.sealed.read(into)?;
            if read > 0 || into.is_empty() || self.ended {
                return Ok(read);
            }
            self.seal_next()?;
        }
    }
}

/// Opens an object as Acontext writes it: nonce, ciphertext and tag of the whole.
///
/// # Errors
/// [`DecryptError`]
pub fn open_whole(dek: &Dek, object: &mut Vec<u8>) -> Result<(), DecryptError> {
    let key = dek.aes().map_err(|_| DecryptError)?;
    let length = open_with(&key, &[], object)?.len();
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
        (0..size).map(|at| u8::try_from(at * 31 % 251).unwrap()).collect()
    }

    fn sealed(content: &[u8]) -> Vec<u8> {
        let mut object = Vec::new();
        Sealing::new(&dek(), content).unwrap().read_to_end(&mut object).unwrap();
        object
    }

    fn open(size: usize, mut object: Vec<u8>) -> Result<Vec<u8>, DecryptError> {
        Opener::new(&dek(), size as u64).unwrap().open(&mut object).map(|()| object)
    }

    /// What a store that has `object` gives of the range, in pieces of `piece` bytes.
    async fn read(size: usize, object: &[u8], range: Range<u64>, piece: usize) -> io::Result<Vec<u8>> {
        let opener = Opener::new(&dek(), size as u64).unwrap();
        let within = opener.sealed_range(&range);
        let at = |at: u64| usize::try_from(at).unwrap().min(object.len());
        let pieces: Vec<_> = object[at(within.start)..at(within.end)]
            .chunks(piece)
            .map(|piece| Ok(Bytes::copy_from_slice(piece)))
            .collect();
        let read = opener.open_stream(range, stream::iter(pieces).boxed());
        read.try_fold(Vec::new(), async |all, piece| Ok([all, piece.to_vec()].concat())).await
    }

    #[test]
    fn a_whole_object_of_acontext_opens() {
        let mut object = hex::decode("000102030405060708090a0b7b86da7f149b2df6f001f922f211f02f27864bd48b").unwrap();
        let mut changed = object.clone();
        open_whole(&dek(), &mut object).unwrap();
        assert_eq!(object, b"hello");
        changed[13] ^= 1;
        assert_eq!(open_whole(&dek(), &mut changed), Err(DecryptError));
        assert_eq!(open_whole(&dek(), &mut Vec::new()), Err(DecryptError));
    }

    #[test]
    fn every_size_around_a_chunk_is_sealed_and_opens() {
        for size in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 5] {
            let (content, object) = (content(size), sealed(&content(size)));
            assert_eq!(object.len() as u64, Opener::new(&dek(), size as u64).unwrap().sealed_size(), "{size}");
            assert_eq!(open(size, object).unwrap(), content, "{size}");
        }
    }

    #[test]
    fn what_was_cut_off_moved_or_added_is_noticed() {
        let size = 3 * CHUNK;
        let object = sealed(&content(size));
        let chunk = |n: usize| &object[n * SEALED_CHUNK..(n + 1) * SEALED_CHUNK];
        for (what, changed, claimed) in [
            ("cut off at a chunk", [chunk(0), chunk(1)].concat(), 2 * CHUNK),
            ("cut off, and its size told", [chunk(0), chunk(1)].concat(), size),
            ("cut off within", object[..object.len() - 1].to_vec(), size),
            ("two changed places", [chunk(1), chunk(0), chunk(2)].concat(), size),
            ("one twice", [chunk(0), chunk(0), chunk(2)].concat(), size),
            ("one more", [chunk(0), chunk(1), chunk(2), chunk(2)].concat(), 4 * CHUNK),
            ("nothing", Vec::new(), 0),
        ] {
            assert_eq!(open(claimed, changed), Err(DecryptError), "{what}");
        }
        let other = Opener::new(&Dek::from_bytes([0x12; 32]), size as u64).unwrap();
        assert_eq!(other.open(&mut object.clone()), Err(DecryptError), "another key");
    }

    #[tokio::test]
    async fn a_part_of_a_damaged_object_opens_where_it_is_whole() {
        let size = 3 * CHUNK;
        let mut object = sealed(&content(size));
        object[SEALED_CHUNK + 9] ^= 1;
        let chunk = CHUNK as u64;
        assert_eq!(read(size, &object, 5..chunk, 1000).await.unwrap(), content(size)[5..CHUNK]);
        assert_eq!(read(size, &object, 2 * chunk..3 * chunk, 1000).await.unwrap(), content(size)[2 * CHUNK..]);
        let err = read(size, &object, 5..chunk + 1, 1000).await.unwrap_err();
        assert!(err.get_ref().and_then(|inner| inner.downcast_ref()) == Some(&DecryptError), "{err}");
        object.truncate(2 * SEALED_CHUNK + 10);
        assert!(read(size, &object, 2 * chunk..3 * chunk, 1000).await.is_err(), "cut off");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_part_can_be_read_alone(size in 0..4 * CHUNK, from in any::<prop::sample::Index>(), length in 0..3 * CHUNK, piece in 1..100_000_usize) {
            let content = content(size);
            let from = from.index(size + 1);
            let to = size.min(from + length);
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let part = runtime.block_on(read(size, &sealed(&content), from as u64..to as u64, piece)).unwrap();
            prop_assert_eq!(&part, &content[from..to]);
        }
    }
}
