//! Envelope encryption of the content of encrypted projects. Each value and each object is encrypted with its own data key
//! (DEK), which is wrapped with the project's master key (KEK). The KEK exists only in memory and, wrapped, in compact keys and
//! the rows of jobs (see [`job_keys`]).
//!
//! The algorithm is AES-256-GCM. Nonces are random, except those of the chunks of objects, which are counters. Values have the
//! byte layout of Acontext. In contrast to Acontext, data keys and values are bound to associated data (AAD): the project id with
//! the message id or the content hash. A ciphertext fails to decrypt with any other project id, message id or content hash.
//!
//! [`value`] encrypts values in the database, [`stored_text`] the texts of some tables, which [`text_converter`] converts, [`object`] objects in the object store, and [`job_keys`] the master keys that jobs
//! need. [`ProjectEncryption`] combines a project with its master key, [`StorageFormat`] distinguishes plaintext from encrypted
//! content, and [`conversion`] has the trait of content that can be converted from one storage format to the other.

pub mod conversion;
pub mod job_keys;
pub mod object;
mod project;
mod storage_format;
pub mod stored_text;
pub mod text_converter;
pub mod value;

pub use project::ProjectEncryption;
pub use storage_format::StorageFormat;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{hmac, rand};
use zeroize::Zeroizing;

use crate::crypto::MasterKey;
use crate::ids::ProjectId;

const TAG_LEN: usize = 16;
/// The size of a wrapped data key in bytes: nonce, key and tag.
pub const WRAPPED_KEY_LEN: usize = NONCE_LEN + 32 + TAG_LEN;

/// Decryption failed: the ciphertext was modified, belongs to another record, or was encrypted with a different key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("decryption failed: corrupt data or wrong key")]
pub struct DecryptError;

/// The key check value (KCV) of a master key. It identifies the key without revealing anything else about it.
pub type KeyCheckValue = [u8; 16];

/// A project's key-encryption key: the master key, also in the form that the cryptographic library uses, and its project.
pub struct Kek {
    project: ProjectId,
    master: MasterKey,
    key: LessSafeKey,
}

/// A data key, which encrypts one value or one object.
pub struct Dek(Zeroizing<[u8; 32]>);

impl Kek {
    /// Creates the KEK of a project.
    ///
    /// # Errors
    /// Returns an error if the cryptographic library rejects the key.
    pub fn new(project: ProjectId, master: MasterKey) -> anyhow::Result<Self> {
        let key = aes_key(&master)?;
        Ok(Self { project, master, key })
    }

    pub fn project(&self) -> ProjectId {
        self.project
    }

    pub fn master(&self) -> &MasterKey {
        &self.master
    }

    /// Returns the key check value: a truncated HMAC-SHA256 of the project id, keyed with the master key.
    pub fn check_value(&self) -> KeyCheckValue {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &*self.master);
        let tag = hmac::sign(&key, &[&b"acontextd key check, first form "[..], self.project.0.as_bytes()].concat());
        let mut check_value = KeyCheckValue::default();
        check_value.copy_from_slice(&tag.as_ref()[..size_of::<KeyCheckValue>()]);
        check_value
    }

    /// Wraps a data key and binds it to one record of the project. `record_id` is the id of a message or the hash of a content.
    ///
    /// # Errors
    /// Returns an error if the system's random number generator fails.
    pub fn wrap(&self, dek: &Dek, record_id: &[u8]) -> anyhow::Result<Vec<u8>> {
        self.wrap_with_aad(dek, &self.aad(record_id), random_nonce()?)
    }

    /// Unwraps a data key that [`Kek::wrap`] has wrapped for the same record.
    ///
    /// # Errors
    /// Returns [`DecryptError`] if the wrapped key was modified, or belongs to another record or KEK.
    pub fn unwrap(&self, wrapped: &[u8], record_id: &[u8]) -> Result<Dek, DecryptError> {
        self.unwrap_with_aad(wrapped, &self.aad(record_id))
    }

    /// Unwraps a data key that Acontext has wrapped, which uses no associated data.
    ///
    /// # Errors
    /// Returns [`DecryptError`] if the wrapped key was modified or belongs to another KEK.
    pub fn unwrap_without_aad(&self, wrapped: &[u8]) -> Result<Dek, DecryptError> {
        self.unwrap_with_aad(wrapped, &[])
    }

    fn wrap_with_aad(&self, dek: &Dek, aad: &[u8], nonce: [u8; NONCE_LEN]) -> anyhow::Result<Vec<u8>> {
        let mut wrapped = Vec::with_capacity(WRAPPED_KEY_LEN);
        seal(&self.key, nonce, aad, &*dek.0, &mut wrapped)?;
        Ok(wrapped)
    }

    fn unwrap_with_aad(&self, wrapped: &[u8], aad: &[u8]) -> Result<Dek, DecryptError> {
        let mut wrapped: Zeroizing<[u8; WRAPPED_KEY_LEN]> =
            Zeroizing::new(wrapped.try_into().map_err(|_| DecryptError)?);
        let mut dek = Dek(Zeroizing::new([0; 32]));
        dek.0.copy_from_slice(open(&self.key, aad, &mut *wrapped)?);
        Ok(dek)
    }

    /// Returns the associated data for a record of the project.
    fn aad(&self, record_id: &[u8]) -> Vec<u8> {
        [self.project.0.as_bytes(), record_id].concat()
    }
}

impl Dek {
    /// Generates a data key.
    ///
    /// # Errors
    /// Returns an error if the system's random number generator fails.
    pub fn random() -> anyhow::Result<Self> {
        let mut key = Self(Zeroizing::new([0; 32]));
        rand::fill(&mut *key.0)?;
        Ok(key)
    }

    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn aes_key(&self) -> anyhow::Result<LessSafeKey> {
        aes_key(&self.0)
    }
}

fn aes_key(key: &[u8; 32]) -> anyhow::Result<LessSafeKey> {
    Ok(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key)?))
}

fn random_nonce() -> anyhow::Result<[u8; NONCE_LEN]> {
    let mut nonce = [0; NONCE_LEN];
    rand::fill(&mut nonce)?;
    Ok(nonce)
}

/// Encrypts `plaintext`, and appends nonce, ciphertext and tag to `out`.
fn seal(
    key: &LessSafeKey,
    nonce: [u8; NONCE_LEN],
    aad: &[u8],
    plaintext: &[u8],
    out: &mut Vec<u8>,
) -> anyhow::Result<()> {
    out.extend_from_slice(&nonce);
    let start = out.len();
    out.extend_from_slice(plaintext);
    let nonce = Nonce::assume_unique_for_key(nonce);
    let tag = key.seal_in_place_separate_tag(nonce, Aad::from(aad), &mut out[start..])?;
    out.extend_from_slice(tag.as_ref());
    Ok(())
}

/// Decrypts nonce, ciphertext and tag in place, and returns the plaintext.
fn open<'a>(key: &LessSafeKey, aad: &[u8], encrypted: &'a mut [u8]) -> Result<&'a mut [u8], DecryptError> {
    let (nonce, rest) = encrypted.split_first_chunk_mut().ok_or(DecryptError)?;
    let nonce = Nonce::assume_unique_for_key(*nonce);
    key.open_in_place(nonce, Aad::from(aad), rest).map_err(|_| DecryptError)
}
