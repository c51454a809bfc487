//! How content of encrypted projects is sealed: envelope encryption. Each value and each object has a data key (DEK) of its own,
//! wrapped with the project's master key (KEK), which exists only inside of the project's API key and in memory.
//!
//! AES-256-GCM everywhere, with random nonces, byte by byte in Acontext's envelope. Other than there, what a seal belongs to is
//! bound in as associated data: the project, and within it the message or the content's hash. So a seal that was put in the place
//! of another one does not open. [`frame`] is for what lies in the database, [`object`] for stored objects, [`jobs`] for the keys
//! that background work is given.

pub mod frame;
pub mod jobs;
pub mod object;
mod project;
pub mod reencrypt;
mod storage_format;

pub use project::ProjectEncryption;
pub use storage_format::StorageFormat;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{hmac, rand};
use zeroize::Zeroizing;

use crate::crypto::MasterKey;
use crate::ids::ProjectId;

const TAG: usize = 16;
/// Of a wrapped data key, in bytes: nonce, key and tag.
pub const WRAPPED: usize = NONCE_LEN + 32 + TAG;

/// What was sealed does not open: it was changed, belongs somewhere else, or was sealed with another key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the seal is damaged, or is of another key")]
pub struct DecryptError;

/// What tells one key-encryption key from another.
pub type Check = [u8; 16];

/// A project's key-encryption key.
pub struct Kek {
    project: ProjectId,
    master: MasterKey,
    key: LessSafeKey,
}

/// A key that one value or one object is sealed with.
pub struct Dek(Zeroizing<[u8; 32]>);

impl Kek {
    /// # Errors
    /// None that can be helped.
    pub fn new(project: ProjectId, master: MasterKey) -> anyhow::Result<Self> {
        let key = aes(&master)?;
        Ok(Self { project, master, key })
    }

    pub fn project(&self) -> ProjectId {
        self.project
    }

    pub fn master(&self) -> &MasterKey {
        &self.master
    }

    /// What tells this key from another one, and nothing else about it.
    pub fn check(&self) -> Check {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &*self.master);
        let tag = hmac::sign(&key, &[&b"acontextd key check, first form "[..], self.project.0.as_bytes()].concat());
        let mut check = Check::default();
        check.copy_from_slice(&tag.as_ref()[..size_of::<Check>()]);
        check
    }

    /// Wraps a data key for what is named by `of` in this project.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn wrap(&self, dek: &Dek, of: &[u8]) -> anyhow::Result<Vec<u8>> {
        self.wrap_with(dek, &self.bound(of), random()?)
    }

    /// # Errors
    /// [`DecryptError`]
    pub fn unwrap(&self, wrapped: &[u8], of: &[u8]) -> Result<Dek, DecryptError> {
        self.unwrap_with(wrapped, &self.bound(of))
    }

    /// As Acontext wraps a key, which binds it to nothing.
    ///
    /// # Errors
    /// [`DecryptError`]
    pub fn unwrap_unbound(&self, wrapped: &[u8]) -> Result<Dek, DecryptError> {
        self.unwrap_with(wrapped, &[])
    }

    fn wrap_with(&self, dek: &Dek, bound: &[u8], nonce: [u8; NONCE_LEN]) -> anyhow::Result<Vec<u8>> {
        let mut wrapped = Vec::with_capacity(WRAPPED);
        seal(&self.key, nonce, bound, &*dek.0, &mut wrapped)?;
        Ok(wrapped)
    }

    fn unwrap_with(&self, wrapped: &[u8], bound: &[u8]) -> Result<Dek, DecryptError> {
        let mut wrapped: Zeroizing<[u8; WRAPPED]> = Zeroizing::new(wrapped.try_into().map_err(|_| DecryptError)?);
        let mut dek = Dek(Zeroizing::new([0; 32]));
        dek.0.copy_from_slice(open(&self.key, bound, &mut *wrapped)?);
        Ok(dek)
    }

    fn bound(&self, of: &[u8]) -> Vec<u8> {
        [self.project.0.as_bytes(), of].concat()
    }
}

impl Dek {
    /// # Errors
    /// The system gives no random bytes.
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

    fn aes(&self) -> anyhow::Result<LessSafeKey> {
        aes(&self.0)
    }
}

fn aes(key: &[u8; 32]) -> anyhow::Result<LessSafeKey> {
    Ok(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key)?))
}

fn random() -> anyhow::Result<[u8; NONCE_LEN]> {
    let mut nonce = [0; NONCE_LEN];
    rand::fill(&mut nonce)?;
    Ok(nonce)
}

/// Writes nonce, ciphertext and tag to the end of `into`.
fn seal(
    key: &LessSafeKey,
    nonce: [u8; NONCE_LEN],
    bound: &[u8],
    plain: &[u8],
    into: &mut Vec<u8>,
) -> anyhow::Result<()> {
    into.extend_from_slice(&nonce);
    let from = into.len();
    into.extend_from_slice(plain);
    let nonce = Nonce::assume_unique_for_key(nonce);
    let tag = key.seal_in_place_separate_tag(nonce, Aad::from(bound), &mut into[from..])?;
    into.extend_from_slice(tag.as_ref());
    Ok(())
}

/// Opens nonce, ciphertext and tag where they lie.
fn open<'a>(key: &LessSafeKey, bound: &[u8], sealed: &'a mut [u8]) -> Result<&'a mut [u8], DecryptError> {
    let (nonce, rest) = sealed.split_first_chunk_mut().ok_or(DecryptError)?;
    let nonce = Nonce::assume_unique_for_key(*nonce);
    key.open_in_place(nonce, Aad::from(bound), rest).map_err(|_| DecryptError)
}
