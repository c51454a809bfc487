//! Messages that answer calls of Gemini functions, which are told by name and seldom by id.

use super::Written;
use super::format::{Answer, Call};
use super::incoming::Draft;
use super::store;
use crate::app::App;
use crate::auth::Caller;
use crate::error::{Error, Result};
use crate::http::idempotency::Once;
use crate::ids::{MessageId, SessionId};
use crate::sessions;

/// Stores a message that answers calls: each answer takes the id of its call, which then waits no longer.
///
/// # Errors
/// 400 for an answer to a call that does not wait.
pub async fn store(app: &App, once: &Once, caller: &Caller, session: SessionId, draft: Draft) -> Result<Written> {
    let project = caller.project;
    // What takes long is done before the session is locked; the ids of calls change no tokens.
    let ready = draft.finish(app, caller, session).await?;
    let mut act = once.begin(app).await?;
    if !store::lock_session(&mut act, project, session).await? {
        return Err(sessions::NOT_FOUND);
    }
    let mut waiting = store::list_open_calls(&mut act, session).await?;
    let mut answered: Vec<MessageId> = Vec::new();
    let mut ids = Vec::new();
    for answer in &ready.answers {
        let (message, call) = take_call(&mut waiting, answer).ok_or_else(|| unasked(answer))?;
        ids.push((answer.part, call.id));
        answered.push(message);
    }
    let ready = ready.with_answer_ids(app, ids).await?;
    for (message, calls) in waiting.iter().filter(|(message, _)| answered.contains(message)) {
        store::set_open_calls(&mut act, *message, calls).await?;
    }
    let buffer = (&app.config.learning).into();
    let stored = store::insert_one(&mut act, &ready.message, buffer).await?.ok_or(sessions::NOT_FOUND)?;
    Ok(Written { ready, stored, act: act.commit_without_key().await? })
}

/// The oldest waiting call that an answer fits: of the same name, and of the same id if it tells one.
fn take_call(waiting: &mut [(MessageId, Vec<Call>)], answer: &Answer) -> Option<(MessageId, Call)> {
    let fits = |call: &Call| call.name == answer.name && answer.id.as_ref().is_none_or(|id| *id == call.id);
    waiting.iter_mut().find_map(|(message, calls)| {
        let at = calls.iter().position(fits)?;
        Some((*message, calls.remove(at)))
    })
}

fn unasked(answer: &Answer) -> Error {
    let Answer { part, name, id } = answer;
    let id = id.as_ref().map(|id| format!(" and the id '{id}'")).unwrap_or_default();
    let why = format_args!("no call of a function with the name '{name}'{id} waits in this session").to_string();
    Error::field(&format!("parts[{part}].functionResponse"), why)
}
