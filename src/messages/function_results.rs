//! Matches the results of Gemini function calls with their calls. A result contains the name of the function, but rarely the
//! id of the call.

use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use super::encryption;
use super::request::PreparedMessage;
use super::store::{self, PendingCallRow};
use crate::conversation::format::{FunctionCall, FunctionResponse};
use crate::encryption::{DecryptError, ProjectEncryption};
use crate::error::{Error, Result};
use crate::ids::MessageId;
use crate::messages::Messages;
use crate::sessions::lock::LockedSession;

/// Matches each result in a message with a pending call of the session, and removes the call from the session's pending calls.
/// Returns the message with the ids of the calls in its results, or `None` if it has no results.
///
/// # Errors
/// Returns 400 if a result matches no pending call.
pub(super) async fn match_calls(
    session: &mut LockedSession<'_>,
    ctx: &Messages,
    encryption: &ProjectEncryption,
    prepared: &PreparedMessage,
) -> Result<Option<PreparedMessage>> {
    if prepared.function_results.is_empty() {
        return Ok(None);
    }
    let mut pending = load_pending_calls(session, encryption).await?;
    let ids = prepared.function_results.iter().map(|result| {
        let call = match_pending_call(&mut pending, result).ok_or_else(|| no_pending_call_error(result))?;
        Ok((result.part_index, call.id))
    });
    let ids = ids.collect::<Result<_>>()?;
    for message in pending.iter().filter(|message| message.is_changed) {
        store::set_pending_calls(session, message.id, message.to_column(encryption)?).await?;
    }
    // The number of tokens does not change, because call ids are not counted.
    Ok(Some(prepared.with_call_ids(ctx, ids).await?))
}

/// A message with pending calls.
struct PendingCallMessage {
    id: MessageId,
    encrypted_as: Option<Uuid>,
    calls: Vec<FunctionCall>,
    is_changed: bool,
}

impl PendingCallMessage {
    /// Returns the value of the column `pending_calls`, encrypted if the message is.
    fn to_column(&self, encryption: &ProjectEncryption) -> Result<Option<Value>> {
        let calls = store::calls_to_json(&self.calls);
        match self.encrypted_as {
            Some(id) => {
                calls.map(|calls| encryption::encrypt_calls(encryption.decryption_key()?, id, &calls)).transpose()
            }
            None => Ok(calls),
        }
    }
}

async fn load_pending_calls(
    session: &mut LockedSession<'_>,
    encryption: &ProjectEncryption,
) -> Result<Vec<PendingCallMessage>> {
    #[derive(Deserialize)]
    struct PendingCall {
        id: String,
        name: String,
    }
    let mut pending = Vec::new();
    for PendingCallRow { id, encrypted_as, pending_calls } in store::list_with_pending_calls(session).await? {
        let calls = match encrypted_as {
            Some(encrypted_as) => encryption::decrypt_calls(encryption.decryption_key()?, encrypted_as, &pending_calls)
                .map_err(|err| corrupt_calls_error(id, err))?,
            None => pending_calls,
        };
        let calls: Vec<PendingCall> = serde_json::from_value(calls).map_err(Error::internal)?;
        let calls = calls.into_iter().map(|call| FunctionCall { id: call.id, name: call.name }).collect();
        pending.push(PendingCallMessage { id, encrypted_as, calls, is_changed: false });
    }
    Ok(pending)
}

fn corrupt_calls_error(message: MessageId, err: DecryptError) -> Error {
    Error::Corrupt { what: format!("the list of pending calls of message {message}"), cause: err.into() }
}

/// Removes and returns the oldest pending call with the result's function name, and with its id if it has one.
fn match_pending_call(pending: &mut [PendingCallMessage], result: &FunctionResponse) -> Option<FunctionCall> {
    let matches = |call: &FunctionCall| call.name == result.name && result.id.as_ref().is_none_or(|id| *id == call.id);
    pending.iter_mut().find_map(|message| {
        let index = message.calls.iter().position(matches)?;
        message.is_changed = true;
        Some(message.calls.remove(index))
    })
}

fn no_pending_call_error(result: &FunctionResponse) -> Error {
    let FunctionResponse { part_index, name, id } = result;
    let id = id.as_ref().map(|id| format!(" with id '{id}'")).unwrap_or_default();
    let reason = format_args!("no pending call of function '{name}'{id} in this session").to_string();
    Error::invalid_field(&format!("parts[{part_index}].functionResponse"), reason)
}
