//! Messages with results of Gemini function calls, which name the function and seldom the id of the call.

use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use super::incoming::Ready;
use super::sealed;
use super::store::{self, Calling};
use crate::conversation::format::{FunctionCall, FunctionResponse};
use crate::encryption::{DecryptError, ProjectEncryption};
use crate::error::{Error, Result};
use crate::ids::MessageId;
use crate::messages::Messages;
use crate::sessions::lock::LockedSession;

/// Finds the pending call of each result in a message, which is no longer pending then. Returns the message with the ids of the calls;
/// `None` if it has no results.
///
/// # Errors
/// 400 for a result without a pending call.
pub(super) async fn match_calls(
    session: &mut LockedSession<'_>,
    ctx: &Messages,
    encryption: &ProjectEncryption,
    ready: &Ready,
) -> Result<Option<Ready>> {
    if ready.results.is_empty() {
        return Ok(None);
    }
    let mut pending = load_pending_calls(session, encryption).await?;
    let ids = ready.results.iter().map(|result| {
        let call = match_pending_call(&mut pending, result).ok_or_else(|| no_pending_call_error(result))?;
        Ok((result.part, call.id))
    });
    let ids = ids.collect::<Result<_>>()?;
    for message in pending.iter().filter(|message| message.is_changed) {
        store::set_pending_calls(session, message.id, message.to_column(encryption)?).await?;
    }
    // The ids of calls do not count as tokens.
    Ok(Some(ready.with_call_ids(ctx, ids).await?))
}

/// A message with pending calls.
struct PendingCallMessage {
    id: MessageId,
    encrypted_as: Option<Uuid>,
    calls: Vec<FunctionCall>,
    is_changed: bool,
}

impl PendingCallMessage {
    /// Returns the calls as they are stored, in the format of the message.
    fn to_column(&self, encryption: &ProjectEncryption) -> Result<Option<Value>> {
        let calls = store::shown_calls(&self.calls);
        match self.encrypted_as {
            Some(id) => calls.map(|calls| sealed::seal_calls(encryption.decryption_key()?, id, &calls)).transpose(),
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
    for Calling { id, encrypted_as, pending_calls } in store::list_calling(session).await? {
        let calls = match encrypted_as {
            Some(of) => sealed::pending_calls(encryption.decryption_key()?, of, &pending_calls)
                .map_err(|err| damaged(id, err))?,
            None => pending_calls,
        };
        let calls: Vec<PendingCall> = serde_json::from_value(calls).map_err(Error::internal)?;
        let calls = calls.into_iter().map(|call| FunctionCall { id: call.id, name: call.name }).collect();
        pending.push(PendingCallMessage { id, encrypted_as, calls, is_changed: false });
    }
    Ok(pending)
}

fn damaged(message: MessageId, err: DecryptError) -> Error {
    Error::Corrupt { what: format!("what is stored of the calls in message {message}"), cause: err.into() }
}

/// Takes the oldest pending call of the same name, and of the same id if the result names one.
fn match_pending_call(pending: &mut [PendingCallMessage], result: &FunctionResponse) -> Option<FunctionCall> {
    let fits = |call: &FunctionCall| call.name == result.name && result.id.as_ref().is_none_or(|id| *id == call.id);
    pending.iter_mut().find_map(|one| {
        let at = one.calls.iter().position(fits)?;
        one.is_changed = true;
        Some(one.calls.remove(at))
    })
}

fn no_pending_call_error(result: &FunctionResponse) -> Error {
    let FunctionResponse { part, name, id } = result;
    let id = id.as_ref().map(|id| format!(" and the id '{id}'")).unwrap_or_default();
    let why = format_args!("no call of a function with the name '{name}'{id} waits in this session").to_string();
    Error::invalid_field(&format!("parts[{part}].functionResponse"), why)
}
