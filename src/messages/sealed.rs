//! Messages of encrypted projects: what is sealed in their rows, and how it is opened.
//!
//! The content is sealed, and with it the calls that wait for their answers. Bound in is the id of the message that it was first
//! sealed as ([`Row::encrypted_as`]), so that copies of a session need not be sealed anew.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};
use uuid::Uuid;

use super::new_message::NewMessage;
use super::page::Row;
use crate::conversation::format::Format;
use crate::encryption::{DecryptError, Kek, ProjectEncryption, frame};
use crate::error::{Error, Result};
use crate::json;

/// Shown in the place of a message that does not open.
const UNREADABLE: &str = "This message cannot be shown: what is stored of it was damaged.";

/// Seals a message that is about to be stored; `job_key` is for the work that it gives.
///
/// # Errors
/// The system gives no random bytes.
pub fn seal(kek: &Kek, message: NewMessage, job_key: Vec<u8>) -> Result<NewMessage> {
    let id = message.id.0;
    let content = Bytes::from(frame::seal(kek, id, &message.content)?);
    let pending_calls = message.pending_calls.as_ref().map(|calls| seal_calls(kek, id, calls)).transpose()?;
    Ok(NewMessage { content, pending_calls, job_key: Some(job_key.into()), ..message })
}

/// Calls that wait for their answers, as the column has them.
pub fn seal_calls(kek: &Kek, id: Uuid, calls: &Value) -> Result<Value> {
    Ok(Value::String(STANDARD.encode(frame::seal(kek, id, &json::to_vec(calls))?)))
}

pub fn pending_calls(kek: &Kek, id: Uuid, calls: &Value) -> Result<Value, DecryptError> {
    let sealed = calls.as_str().and_then(|text| STANDARD.decode(text).ok()).ok_or(DecryptError)?;
    json::parse_own(&frame::open(kek, id, sealed)?).map_err(|_| DecryptError)
}

/// How much work it is to open these, in bytes of what takes as long to be converted.
pub fn work(rows: &[Row]) -> usize {
    rows.iter().filter(|row| row.encrypted_as.is_some()).map(|row| row.content.len() / 16).sum()
}

/// Refuses to show messages that are sealed, if there is nothing to open them with.
///
/// # Errors
/// 403
pub fn ensure_can_decrypt(encryption: &ProjectEncryption, rows: &[Row]) -> Result<()> {
    if rows.iter().any(|row| row.encrypted_as.is_some()) { encryption.decryption_key().map(drop) } else { Ok(()) }
}

/// Opens what is sealed. In the place of what does not open stands a message that says so: the others are still worth reading.
///
/// # Errors
/// 403 if there is nothing to open it with.
pub fn open(encryption: &ProjectEncryption, rows: &mut [Row]) -> Result<()> {
    for row in rows {
        let Some(encrypted_as) = row.encrypted_as else { continue };
        if let Err(err) = open_row(encryption.decryption_key()?, encrypted_as, row) {
            tracing::error!(message.id = %row.id, error = %err, "a message does not open");
            replace(row);
        }
    }
    Ok(())
}

fn open_row(kek: &Kek, encrypted_as: Uuid, row: &mut Row) -> Result<(), DecryptError> {
    row.content = frame::open(kek, encrypted_as, std::mem::take(&mut row.content))?;
    if let Some(calls) = &row.pending_calls {
        let sealed = serde_json::from_str(calls).map_err(|_| DecryptError)?;
        row.pending_calls = Some(pending_calls(kek, encrypted_as, &sealed)?.to_string());
    }
    Ok(())
}

fn replace(row: &mut Row) {
    let part = json!({"type": "text", "text": UNREADABLE, "meta": {"error": Error::CONTENT_CORRUPT}});
    row.content = json::to_vec(&json!({"role": row.role, "parts": [part]}));
    row.format = Format::Acontext;
    row.pending_calls = None;
}
