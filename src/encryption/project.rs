//! The storage format and the master key of a project, for a request or a job.

use std::sync::Arc;

use super::{Kek, StorageFormat};
use crate::error::{Error, Result};
use crate::ids::ProjectId;

/// A project with the storage format of its content and, if the request or job has it, its master key.
#[derive(Clone)]
pub struct ProjectEncryption {
    pub project: ProjectId,
    /// The storage format at the time when the project was loaded. It may have changed since then; see
    /// [`StorageFormat::lock_for_share`].
    pub format: StorageFormat,
    pub kek: Option<Arc<Kek>>,
}

impl ProjectEncryption {
    /// Creates a [`ProjectEncryption`] for a project that is not encrypted.
    pub fn unencrypted(project: ProjectId) -> Self {
        Self { project, format: StorageFormat::Plaintext, kek: None }
    }

    /// Returns the master key that encrypts content in `format`, or `None` for plaintext.
    ///
    /// # Errors
    /// Returns 403 if the content must be encrypted and the master key is missing.
    pub fn encryption_key(&self, format: StorageFormat) -> Result<Option<&Kek>> {
        match (format, &self.kek) {
            (StorageFormat::Plaintext, _) => Ok(None),
            (StorageFormat::Encrypted, Some(kek)) => Ok(Some(kek)),
            (StorageFormat::Encrypted, None) => Err(Error::KeyRequired),
        }
    }

    /// Checks that content can be stored. Handlers call this to reject a request before they read its body.
    ///
    /// # Errors
    /// Returns the same errors as [`ProjectEncryption::encryption_key`].
    pub fn ensure_can_store(&self) -> Result<()> {
        self.encryption_key(self.format).map(drop)
    }

    /// Returns the master key that decrypts content.
    ///
    /// # Errors
    /// Returns 403 if the master key is missing.
    pub fn decryption_key(&self) -> Result<&Kek> {
        self.kek.as_deref().ok_or(Error::KeyRequired)
    }
}
