//! Messages that answer calls of Gemini functions, which are told by name and seldom by id.

use serde::Deserialize;
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use super::incoming::Draft;
use super::new_message::InsertOutcome;
use super::store::{self, Calling};
use super::storing::{CHANGING, FORM_TRIES};
use super::{Written, sealed};
use crate::auth::Caller;
use crate::blob::rows;
use crate::conversation::format::{FunctionCall, FunctionResponse};
use crate::encryption::{Damaged, Owner};
use crate::error::{Error, Result};
use crate::http::idempotency::Idempotency;
use crate::ids::{MessageId, SessionId};
use crate::messages::Messages;
use crate::sessions;

/// Stores a message that answers calls: each answer takes the id of its call, which then waits no longer.
///
/// # Errors
/// 400 for an answer to a call that does not wait.
pub async fn store(
    ctx: &Messages,
    idempotency: &Idempotency,
    caller: &Caller,
    session: SessionId,
    draft: Draft,
) -> Result<Written> {
    let project = caller.project;
    // What takes long is done before the session is locked; the ids of calls change no tokens.
    let ready = draft.finish(ctx, caller, session).await?;
    let buffer = (&ctx.config.learning).into();
    let mut sealed = caller.owner.encrypted;
    for _ in 0..FORM_TRIES {
        let mut tx = idempotency.begin().await?;
        // First, as all do who want both.
        if rows::encryption_enabled_for_share(&mut tx, project).await?.is_some_and(|wanted| wanted != sealed) {
            tx.rollback().await?;
            sealed = !sealed;
            continue;
        }
        if !store::lock_session(&mut tx, project, session).await? {
            return Err(sessions::NOT_FOUND);
        }
        let mut waiting = list_waiting(&mut tx, &caller.owner, session).await?;
        let ids = ready.answers.iter().map(|answer| {
            let call = take_call(&mut waiting, answer).ok_or_else(|| unasked(answer))?;
            Ok((answer.part, call.id))
        });
        let ids = ids.collect::<Result<_>>()?;
        let ready = ready.clone().with_answer_ids(ctx, ids).await?;
        for one in waiting.iter().filter(|one| one.is_answered) {
            store::set_open_calls(&mut tx, one.id, one.column(&caller.owner)?).await?;
        }
        let message = ready.in_form(ctx, &caller.owner, sealed).await?;
        match store::insert_one(&mut tx, &message, buffer).await? {
            InsertOutcome::Inserted(stored) => {
                return Ok(Written { ready, stored, tx: tx.commit_if_unkeyed().await? });
            }
            InsertOutcome::SessionNotFound => return Err(sessions::NOT_FOUND),
            InsertOutcome::EncryptionChanged => sealed = !sealed,
        }
        tx.rollback().await?;
    }
    Err(CHANGING)
}

/// A message with calls that wait.
struct Waiting {
    id: MessageId,
    encrypted_as: Option<Uuid>,
    calls: Vec<FunctionCall>,
    is_answered: bool,
}

impl Waiting {
    /// The calls as they are stored, in the form that the message has.
    fn column(&self, owner: &Owner) -> Result<Option<Value>> {
        let calls = store::shown_calls(&self.calls);
        match self.encrypted_as {
            Some(id) => calls.map(|calls| sealed::seal_calls(owner.opening()?, id, &calls)).transpose(),
            None => Ok(calls),
        }
    }
}

async fn list_waiting(conn: &mut PgConnection, owner: &Owner, session: SessionId) -> Result<Vec<Waiting>> {
    #[derive(Deserialize)]
    struct Open {
        id: String,
        name: String,
    }
    let mut waiting = Vec::new();
    for Calling { id, encrypted_as, pending_calls } in store::list_calling(conn, session).await? {
        let calls = match encrypted_as {
            Some(of) => {
                sealed::pending_calls(owner.opening()?, of, &pending_calls).map_err(|fault| damaged(id, fault))?
            }
            None => pending_calls,
        };
        let calls: Vec<Open> = serde_json::from_value(calls).map_err(Error::internal)?;
        let calls = calls.into_iter().map(|call| FunctionCall { id: call.id, name: call.name }).collect();
        waiting.push(Waiting { id, encrypted_as, calls, is_answered: false });
    }
    Ok(waiting)
}

fn damaged(message: MessageId, fault: Damaged) -> Error {
    Error::Damaged { what: format!("what is stored of the calls in message {message}"), cause: fault.into() }
}

/// The oldest waiting call that an answer fits: of the same name, and of the same id if it tells one.
fn take_call(waiting: &mut [Waiting], answer: &FunctionResponse) -> Option<FunctionCall> {
    let fits = |call: &FunctionCall| call.name == answer.name && answer.id.as_ref().is_none_or(|id| *id == call.id);
    waiting.iter_mut().find_map(|one| {
        let at = one.calls.iter().position(fits)?;
        one.is_answered = true;
        Some(one.calls.remove(at))
    })
}

fn unasked(answer: &FunctionResponse) -> Error {
    let FunctionResponse { part, name, id } = answer;
    let id = id.as_ref().map(|id| format!(" and the id '{id}'")).unwrap_or_default();
    let why = format_args!("no call of a function with the name '{name}'{id} waits in this session").to_string();
    Error::field(&format!("parts[{part}].functionResponse"), why)
}
