//! The stored form of a text, such as a lesson, which is encrypted in an encrypted project.

use uuid::Uuid;

use super::{ProjectEncryption, StorageFormat, value};
use crate::error::{Error, Result};

/// A text as it is stored.
#[derive(Clone, Debug)]
pub struct StoredText {
    pub content: Vec<u8>,
    /// The id in the associated data; `None` if the text is not encrypted.
    pub encrypted_as: Option<Uuid>,
}

/// A text that is not stored in the storage format of its project.
pub struct StaleText {
    /// The id of its row.
    pub id: Uuid,
    pub text: StoredText,
}

impl StoredText {
    /// Encrypts the text of the row with this id if `format` is the encrypted one. The transaction must have locked the format.
    ///
    /// # Errors
    /// Returns 403 if the text must be encrypted and the key is missing, and an error if the system's random number generator
    /// fails.
    pub fn new(encryption: &ProjectEncryption, format: StorageFormat, id: Uuid, text: &str) -> Result<Self> {
        match encryption.encryption_key(format)? {
            Some(kek) => Ok(Self { content: value::encrypt(kek, id, text.as_bytes())?, encrypted_as: Some(id) }),
            None => Ok(Self { content: text.as_bytes().to_vec(), encrypted_as: None }),
        }
    }

    /// Returns the text.
    ///
    /// # Errors
    /// Returns 403 if the text is encrypted and the key is missing, and an error if the text was modified.
    pub fn decrypt(self, encryption: &ProjectEncryption) -> Result<String> {
        let content = match self.encrypted_as {
            Some(id) => value::decrypt(encryption.decryption_key()?, id, self.content).map_err(Error::internal)?,
            None => self.content,
        };
        String::from_utf8(content).map_err(Error::internal)
    }
}
