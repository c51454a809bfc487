//! Whose content it is.

use std::sync::Arc;

use super::{Kek, StorageFormat};
use crate::error::{Error, Result};
use crate::ids::ProjectId;

/// A project, and what seals and opens its content, if that is at hand.
#[derive(Clone)]
pub struct ProjectEncryption {
    pub project: ProjectId,
    /// How content is stored, as far as is known: that may change at any moment, see [`StorageFormat::lock_for_share`].
    pub format: StorageFormat,
    pub kek: Option<Arc<Kek>>,
}

impl ProjectEncryption {
    /// A project that is not encrypted.
    pub fn unencrypted(project: ProjectId) -> Self {
        Self { project, format: StorageFormat::Plaintext, kek: None }
    }

    /// Returns the key to encrypt content with; `None` if it is stored as plaintext.
    ///
    /// # Errors
    /// 403 if content is to be encrypted and the request has not brought the key.
    pub fn encryption_key(&self, format: StorageFormat) -> Result<Option<&Kek>> {
        match (format, &self.kek) {
            (StorageFormat::Plaintext, _) => Ok(None),
            (StorageFormat::Encrypted, Some(kek)) => Ok(Some(kek)),
            (StorageFormat::Encrypted, None) => Err(Error::KeyRequired),
        }
    }

    /// Rejects content that could not be stored, before it is read.
    ///
    /// # Errors
    /// As for [`ProjectEncryption::encryption_key`].
    pub fn ensure_can_store(&self) -> Result<()> {
        self.encryption_key(self.format).map(drop)
    }

    /// Returns the key to decrypt content with.
    ///
    /// # Errors
    /// 403 if the request has not brought the key.
    pub fn decryption_key(&self) -> Result<&Kek> {
        self.kek.as_deref().ok_or(Error::KeyRequired)
    }
}
