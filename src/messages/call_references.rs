//! The references of messages to tool calls: which calls a message makes, and which calls it answers. They are stored next to
//! the content, so that calls can be found without reading the contents of a session.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sqlx::PgConnection;
use uuid::Uuid;

use super::encryption;
use super::page::MessageRow;
use crate::conversation::format::Format;
use crate::conversation::history::all_ids;
use crate::conversation::parts::{Part, PartKind, Role};
use crate::encryption::ProjectEncryption;
use crate::error::{Error, Result};
use crate::ids::{MessageId, SessionId};
use crate::messages::Messages;
use crate::time::Timestamp;

/// Maximum number of messages whose references one query returns. A session rarely has more messages with calls.
const MAX_LISTED_MESSAGES: i64 = 10_000;

/// A reference of a message to a tool call, as stored in the column `call_references`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum CallReference {
    /// A call. The id may be empty.
    Call { id: String, name: String },
    /// A result. The id of its call may be empty. A result that announces further results of the same call has `continues`.
    Result {
        result_of: String,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        continues: bool,
    },
}

/// Returns the references of a message with these parts.
pub fn references_of(role: Role, parts: &[Part]) -> Vec<CallReference> {
    // Postgres cannot store NUL in the type `jsonb`.
    let string = |meta: &Map<String, Value>, key: &str| {
        meta.get(key).and_then(Value::as_str).unwrap_or_default().replace('\0', "\u{fffd}")
    };
    let reference = |part: &Part| match (part.kind, role) {
        (PartKind::ToolCall, Role::Assistant) => {
            Some(CallReference::Call { id: string(&part.meta, "id"), name: string(&part.meta, "name") })
        }
        (PartKind::ToolResult, Role::User) => {
            let continues = part.meta.get("will_continue").and_then(Value::as_bool).unwrap_or_default();
            Some(CallReference::Result { result_of: string(&part.meta, "tool_call_id"), continues })
        }
        _ => None,
    };
    parts.iter().filter_map(reference).collect()
}

/// Returns the value of the column `call_references`, before encryption. `None` if there are no references.
pub fn to_column(references: &[CallReference]) -> Option<Value> {
    if references.is_empty() { None } else { serde_json::to_value(references).ok() }
}

/// The references of a stored message.
#[derive(Debug)]
pub struct ReferencingMessage {
    pub id: MessageId,
    pub parent: Option<MessageId>,
    pub references: Vec<CallReference>,
}

/// Lists the messages of a session that have references, from the time `from` until before the time `before`; the newest ones if
/// there are too many. Returns them oldest first.
///
/// # Errors
/// Returns an error if the references of a message are corrupt, and 403 if a message is encrypted and `encryption` has no master
/// key.
pub async fn list(
    conn: &mut PgConnection,
    encryption: &ProjectEncryption,
    session: SessionId,
    from: Option<Timestamp>,
    before: Option<Timestamp>,
) -> Result<Vec<ReferencingMessage>> {
    list_decoded(conn, encryption, session, from, before).await?.into_iter().collect()
}

/// Lists messages like [`list`], but leaves out those whose references are corrupt, so that the other messages can still be read.
pub(super) async fn list_readable(
    conn: &mut PgConnection,
    encryption: &ProjectEncryption,
    session: SessionId,
    from: Option<Timestamp>,
    before: Option<Timestamp>,
) -> Result<Vec<ReferencingMessage>> {
    let decoded = list_decoded(conn, encryption, session, from, before).await?.into_iter();
    let readable = decoded.filter_map(|message| match message {
        Err(err @ Error::Corrupt { .. }) => {
            tracing::error!(session.id = %session, error = %err, "left out the tool calls of a corrupt message");
            None
        }
        message => Some(message),
    });
    readable.collect()
}

async fn list_decoded(
    conn: &mut PgConnection,
    encryption: &ProjectEncryption,
    session: SessionId,
    from: Option<Timestamp>,
    before: Option<Timestamp>,
) -> Result<Vec<Result<ReferencingMessage>>> {
    let rows = sqlx::query!(
        r#"select id as "id: MessageId", parent_id as "parent: MessageId", encrypted_as, call_references as "references!"
           from messages
           where session_id = $1 and call_references is not null and created_at >= coalesce($2, '-infinity'::timestamptz)
             and created_at < coalesce($3, 'infinity'::timestamptz)
           order by created_at desc limit $4"#,
        session as _,
        from.map(|from| from.0),
        before.map(|before| before.0),
        MAX_LISTED_MESSAGES,
    )
    .fetch_all(conn)
    .await?;
    let decoded = rows.into_iter().rev().map(|row| {
        let references = decode(encryption, row.id, row.encrypted_as, row.references)?;
        Ok(ReferencingMessage { id: row.id, parent: row.parent, references })
    });
    Ok(decoded.collect())
}

/// Decrypts and parses the references of a message.
fn decode(
    encryption: &ProjectEncryption,
    message: MessageId,
    encrypted_as: Option<Uuid>,
    references: Value,
) -> Result<Vec<CallReference>> {
    let references = match encrypted_as {
        Some(id) => encryption::decrypt_references(encryption.decryption_key()?, id, &references).map_err(|err| {
            Error::Corrupt { what: format!("the list of tool calls of message {message}"), cause: err.into() }
        })?,
        None => references,
    };
    serde_json::from_value(references).map_err(Error::internal)
}

/// Loads the calls of Gemini messages in the page that no message of the session has answered. Only `acontext` messages list
/// them.
///
/// # Errors
/// Returns 403 if a message is encrypted and `encryption` has no master key.
pub async fn load_unanswered_calls(
    ctx: &Messages,
    encryption: &ProjectEncryption,
    session: SessionId,
    rows: &[MessageRow],
    target: Format,
) -> Result<HashMap<MessageId, Vec<UnansweredCall>>> {
    let has_calls = |row: &MessageRow| row.format == Format::Gemini && row.call_references.is_some();
    let first = match rows.first() {
        Some(first) if target == Format::Acontext && rows.iter().any(has_calls) => first.created_at,
        _ => return Ok(HashMap::new()),
    };
    let mut conn = ctx.db.acquire().await?;
    let references = list_readable(&mut conn, encryption, session, Some(first), None).await?;
    Ok(unanswered_gemini_calls(rows, &references))
}

/// Returns the calls of the Gemini messages in a page that no later message of the session has answered, by message. `session`
/// has the references of all messages from the first of these rows on, oldest first.
fn unanswered_gemini_calls(
    rows: &[MessageRow],
    session: &[ReferencingMessage],
) -> HashMap<MessageId, Vec<UnansweredCall>> {
    let mut rows: HashMap<_, _> =
        rows.iter().filter(|row| row.format == Format::Gemini).map(|row| (row.id, Vec::new())).collect();
    let mut answered = HashSet::new();
    for message in session.iter().rev() {
        for reference in &message.references {
            match reference {
                CallReference::Result { result_of, continues: false } => {
                    answered.insert(result_of.as_str());
                }
                // An id may occur in several turns. A result answers the last call before it.
                CallReference::Call { id, name } if !all_ids(id).any(|id| answered.remove(id.as_ref())) => {
                    if let Some(calls) = rows.get_mut(&message.id) {
                        calls.push(UnansweredCall { id: id.clone(), name: name.clone() });
                    }
                }
                _ => {}
            }
        }
    }
    rows.retain(|_, calls| !calls.is_empty());
    rows
}

/// A call as the meta of an `acontext` message lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnansweredCall {
    pub id: String,
    pub name: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn references_have_a_short_form() {
        for (reference, expected) in [
            (CallReference::Call { id: "a".into(), name: "f".into() }, json!({"id": "a", "name": "f"})),
            (CallReference::Result { result_of: "a".into(), continues: false }, json!({"result_of": "a"})),
            (
                CallReference::Result { result_of: "a".into(), continues: true },
                json!({"result_of": "a", "continues": true}),
            ),
        ] {
            let stored = to_column(std::slice::from_ref(&reference)).unwrap();
            assert_eq!(stored, json!([expected]));
            assert_eq!(serde_json::from_value::<Vec<CallReference>>(stored).unwrap(), [reference]);
        }
    }
}
