//! Matches the responses of Gemini messages with their calls. A response contains the name of the function, but rarely the id of
//! the call.

use std::collections::HashSet;

use super::call_references::{self, CallReference, ReferencingMessage};
use super::request::PreparedMessage;
use crate::conversation::format::FunctionResponse;
use crate::conversation::history::{all_ids, generate_call_id};
use crate::encryption::ProjectEncryption;
use crate::error::Result;
use crate::messages::Messages;
use crate::sessions::lock::LockedSession;

/// Matches each response in a message that names no call with a call of the session that has no result yet. The session must be
/// locked, so that two responses cannot match the same call. Returns the message with the ids of these calls, or `None` if
/// nothing changes. A response that matches no call stays without an id.
pub(super) async fn match_calls(
    session: &mut LockedSession<'_>,
    ctx: &Messages,
    encryption: &ProjectEncryption,
    prepared: &PreparedMessage,
) -> Result<Option<PreparedMessage>> {
    if !prepared.needs_call_ids() {
        return Ok(None);
    }
    let id = session.id;
    let messages = call_references::list(session, encryption, id, None, None).await?;
    let ids = assign_ids(&mut unanswered_turns(&messages), &prepared.function_responses);
    if ids.is_empty() {
        return Ok(None);
    }
    // The number of tokens does not change, because call ids are not counted.
    Ok(Some(prepared.with_call_ids(ctx, ids).await?))
}

/// A call that has no result yet.
#[derive(Clone, Debug, PartialEq, Eq)]
struct OpenCall {
    id: String,
    name: String,
}

/// Returns the index of a part and the id of its call for each response that has no id and matches a call. Removes the answered
/// calls from `turns`, which are the unanswered calls of each turn, oldest first.
///
/// A response belongs to the newest turn that has an unanswered call of its function, and to the first such call of this turn.
/// Older turns were interrupted.
fn assign_ids(turns: &mut [Vec<OpenCall>], responses: &[FunctionResponse]) -> Vec<(usize, String)> {
    // A response without an id must not match the call of a response that has one.
    for response in responses.iter().filter(|response| !response.will_continue) {
        if let Some(id) = &response.id {
            for turn in turns.iter_mut() {
                turn.retain(|call| !all_ids(&call.id).any(|call_id| call_id == *id));
            }
        }
    }
    let mut ids = Vec::new();
    for response in responses.iter().filter(|response| response.id.is_none()) {
        let call = turns.iter_mut().rev().find_map(|turn| {
            let index = turn.iter().position(|call| call.name == response.name)?;
            // A response that announces further ones does not answer the call.
            Some(if response.will_continue { turn[index].clone() } else { turn.remove(index) })
        });
        ids.extend(call.map(|call| (response.part_index, call.id)));
    }
    ids
}

/// Returns the unanswered calls of each turn, oldest first. Consecutive messages with calls are one turn.
fn unanswered_turns(messages: &[ReferencingMessage]) -> Vec<Vec<OpenCall>> {
    let mut turns: Vec<Vec<OpenCall>> = Vec::new();
    let mut answered: HashSet<&str> = HashSet::new();
    // The parent of the message with calls that was visited last.
    let mut parent = None;
    for message in messages.iter().rev() {
        let mut calls = Vec::new();
        for (index, reference) in message.references.iter().enumerate() {
            match reference {
                CallReference::Result { result_of, continues: false } => {
                    answered.insert(result_of);
                }
                CallReference::Result { .. } => {}
                CallReference::Call { id, name } => {
                    let id = if id.is_empty() { generate_call_id(message.id.0, index) } else { id.clone() };
                    calls.push(OpenCall { id, name: name.clone() });
                }
            }
        }
        if calls.is_empty() {
            continue;
        }
        // An id may occur in several turns. A result answers the last call before it.
        calls.retain(|call| !all_ids(&call.id).any(|id| answered.remove(id.as_ref())));
        let continues_turn = parent == Some(message.id);
        parent = message.parent;
        match turns.last_mut().filter(|_| continues_turn) {
            Some(turn) => {
                turn.splice(0..0, calls);
            }
            None => turns.push(calls),
        }
    }
    turns.reverse();
    turns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::MessageId;

    /// Builds messages with references. Each follows the previous one directly, unless its references are empty.
    fn messages(references: Vec<Vec<CallReference>>) -> Vec<ReferencingMessage> {
        let mut parent = None;
        let messages = references.into_iter().map(|references| {
            let id = MessageId::new();
            ReferencingMessage { id, parent: parent.replace(id), references }
        });
        messages.filter(|message| !message.references.is_empty()).collect()
    }

    fn call(id: &str, name: &str) -> CallReference {
        CallReference::Call { id: id.into(), name: name.into() }
    }

    fn result(id: &str) -> CallReference {
        CallReference::Result { result_of: id.into(), continues: false }
    }

    fn response(id: Option<&str>, name: &str) -> FunctionResponse {
        FunctionResponse { part_index: 0, name: name.into(), id: id.map(str::to_owned), will_continue: false }
    }

    fn assign(history: Vec<Vec<CallReference>>, responses: &[FunctionResponse]) -> Vec<String> {
        let turns = &mut unanswered_turns(&messages(history));
        assign_ids(turns, responses).into_iter().map(|(_, id)| id).collect()
    }

    #[test]
    fn a_response_belongs_to_the_newest_turn() {
        let history = vec![vec![call("old", "f")], vec![], vec![call("1", "f"), call("2", "f")]];
        assert_eq!(
            assign(history, &[response(None, "f"), response(None, "f"), response(None, "f")]),
            ["1", "2", "old"]
        );
    }

    #[test]
    fn consecutive_messages_with_calls_are_one_turn() {
        let history = vec![vec![call("1", "f")], vec![call("2", "f")]];
        assert_eq!(assign(history, &[response(None, "f"), response(None, "f")]), ["1", "2"]);
    }

    #[test]
    fn results_of_every_format_answer_calls() {
        let history = vec![vec![call("1", "f"), call("2", "f")], vec![result("1")]];
        assert_eq!(assign(history.clone(), &[response(None, "f")]), ["2"]);
        assert_eq!(assign(history.clone(), &[response(Some("2"), "f"), response(None, "f")]), [""; 0]);
        assert_eq!(assign(history, &[response(None, "f"), response(Some("2"), "f")]), [""; 0]);
    }

    #[test]
    fn a_result_answers_the_last_call_with_its_id() {
        let history = vec![vec![call("1", "f")], vec![result("1")], vec![call("1", "f")]];
        assert_eq!(assign(history, &[response(None, "f")]), ["1"]);
        let history = vec![vec![call("1", "f")], vec![], vec![call("1", "f")], vec![result("1")]];
        assert_eq!(assign(history, &[response(None, "f")]), ["1"]);
    }

    #[test]
    fn a_response_that_announces_others_does_not_answer_its_call() {
        let partial = FunctionResponse { will_continue: true, ..response(None, "f") };
        let responses = [partial.clone(), partial, response(None, "f"), response(None, "f")];
        assert_eq!(assign(vec![vec![call("1", "f"), call("2", "f")]], &responses), ["1", "1", "1", "2"]);
        let continued = CallReference::Result { result_of: "1".into(), continues: true };
        assert_eq!(assign(vec![vec![call("1", "f")], vec![continued]], &[response(None, "f")]), ["1"]);
    }

    #[test]
    fn a_call_without_an_id_gets_its_generated_id() {
        let history = messages(vec![vec![call("", "f")]]);
        let expected = generate_call_id(history[0].id.0, 0);
        assert_eq!(assign_ids(&mut unanswered_turns(&history), &[response(None, "f")]), [(0, expected)]);
    }
}
