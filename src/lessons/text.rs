//! The stored form of the text of a lesson, which is encrypted in an encrypted project.

use crate::encryption::{ProjectEncryption, StorageFormat, value};
use crate::error::{Error, Result};
use crate::ids::LessonId;

/// The text of a lesson as it is stored.
#[derive(Clone, Debug)]
pub struct StoredText {
    pub content: Vec<u8>,
    /// The id in the associated data; `None` if the text is not encrypted.
    pub encrypted_as: Option<LessonId>,
}

impl StoredText {
    /// Encrypts the text of a lesson if `format` is the encrypted one. The transaction must have locked the format.
    ///
    /// # Errors
    /// Returns 403 if the text must be encrypted and the key is missing, and an error if the system's random number generator
    /// fails.
    pub fn new(encryption: &ProjectEncryption, format: StorageFormat, lesson: LessonId, text: &str) -> Result<Self> {
        match encryption.encryption_key(format)? {
            Some(kek) => {
                Ok(Self { content: value::encrypt(kek, lesson.0, text.as_bytes())?, encrypted_as: Some(lesson) })
            }
            None => Ok(Self { content: text.as_bytes().to_vec(), encrypted_as: None }),
        }
    }

    /// Returns the text.
    ///
    /// # Errors
    /// Returns 403 if the text is encrypted and the key is missing, and an error if the text was modified.
    pub fn decrypt(self, encryption: &ProjectEncryption) -> Result<String> {
        let content = match self.encrypted_as {
            Some(id) => value::decrypt(encryption.decryption_key()?, id.0, self.content).map_err(Error::internal)?,
            None => self.content,
        };
        String::from_utf8(content).map_err(Error::internal)
    }
}
