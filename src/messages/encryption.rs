//! Encrypts and decrypts messages: their content and their references to tool calls.
//!
//! The associated data contains the id of the message for which the content was first encrypted ([`MessageRow::encrypted_as`]),
//! so that a copy of a session does not have to encrypt it again.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};
use uuid::Uuid;

use super::new_message::NewMessage;
use super::page::MessageRow;
use crate::conversation::format::Format;
use crate::encryption::{DecryptError, Kek, ProjectEncryption, value};
use crate::error::{Error, Result};
use crate::json;

/// The text that is returned in place of a message that cannot be decrypted.
const CORRUPT_PLACEHOLDER: &str = "This message cannot be displayed because its stored content is corrupt.";

/// Encrypts a message that is about to be stored. `encrypted_kek` becomes its [`NewMessage::encrypted_kek`].
///
/// # Errors
/// Returns an error if the system's random number generator fails.
pub fn encrypt_message(kek: &Kek, message: NewMessage, encrypted_kek: Vec<u8>) -> Result<NewMessage> {
    let id = message.id.0;
    let content = Bytes::from(value::encrypt(kek, id, &message.content)?);
    let call_references =
        message.call_references.as_ref().map(|references| encrypt_references(kek, id, references)).transpose()?;
    Ok(NewMessage { content, call_references, encrypted_kek: Some(encrypted_kek.into()), ..message })
}

/// Encrypts references to tool calls for the column `call_references`.
///
/// # Errors
/// Returns an error if the system's random number generator fails.
pub fn encrypt_references(kek: &Kek, id: Uuid, references: &Value) -> Result<Value> {
    Ok(Value::String(STANDARD.encode(value::encrypt(kek, id, &json::to_vec(references))?)))
}

/// Decrypts references to tool calls, given the value of the column `call_references`.
///
/// # Errors
/// Returns [`DecryptError`] if the value is corrupt, or was encrypted for another message or with another key.
pub fn decrypt_references(kek: &Kek, id: Uuid, references: &Value) -> Result<Value, DecryptError> {
    let ciphertext = references.as_str().and_then(|text| STANDARD.decode(text).ok()).ok_or(DecryptError)?;
    json::parse_trusted(&value::decrypt(kek, id, ciphertext)?).map_err(|_| DecryptError)
}

/// Estimates the cost of decrypting these rows: the number of bytes that could be converted to another message format in the same
/// time.
pub fn decrypt_cost(rows: &[MessageRow]) -> usize {
    rows.iter().filter(|row| row.encrypted_as.is_some()).map(|row| row.content.len() / 16).sum()
}

/// Checks that the request has the master key if one of these rows is encrypted.
///
/// # Errors
/// Returns 403 if a row is encrypted and the request has no master key.
pub fn ensure_can_decrypt(encryption: &ProjectEncryption, rows: &[MessageRow]) -> Result<()> {
    if rows.iter().any(|row| row.encrypted_as.is_some()) { encryption.decryption_key().map(drop) } else { Ok(()) }
}

/// Decrypts these rows. A message that cannot be decrypted is replaced with a placeholder, so that the other messages can
/// still be read.
///
/// # Errors
/// Returns 403 if a row is encrypted and the request has no master key.
pub fn decrypt_rows(encryption: &ProjectEncryption, rows: &mut [MessageRow]) -> Result<()> {
    for row in rows {
        let Some(encrypted_as) = row.encrypted_as else { continue };
        if let Err(err) = decrypt_row(encryption.decryption_key()?, encrypted_as, row) {
            tracing::error!(message.id = %row.id, error = %err, "failed to decrypt message; returned a placeholder");
            replace_with_placeholder(row);
        }
    }
    Ok(())
}

fn decrypt_row(kek: &Kek, encrypted_as: Uuid, row: &mut MessageRow) -> Result<(), DecryptError> {
    row.content = value::decrypt(kek, encrypted_as, std::mem::take(&mut row.content))?;
    if let Some(references) = &row.call_references {
        let references = serde_json::from_str(references).map_err(|_| DecryptError)?;
        row.call_references = Some(decrypt_references(kek, encrypted_as, &references)?.to_string());
    }
    Ok(())
}

fn replace_with_placeholder(row: &mut MessageRow) {
    let part = json!({"type": "text", "text": CORRUPT_PLACEHOLDER, "meta": {"error": Error::CONTENT_CORRUPT}});
    row.content = json::to_vec(&json!({"role": row.role, "parts": [part]}));
    row.format = Format::Acontext;
    row.call_references = None;
}
