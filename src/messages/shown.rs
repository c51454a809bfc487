//! The answer of a list of messages, in one of the four formats.
//!
//! A message that is asked for in the format it was stored in is passed on as it lies in the database. Otherwise it is taken
//! apart and written anew. The answer is put together from pieces, so that a long message is not copied once more.

use std::collections::HashMap;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::edit::{self, Edited, Strategy};
use super::files::PublicUrl;
use super::format::{self, Format, Surroundings};
use super::page::Row;
use super::parts::{Kind, Part, Role};
use crate::error::{Error, Result};
use crate::http::time::Timestamp;
use crate::ids::{MessageId, SessionId};
use crate::sessions::events::Event;

/// Longer ones are passed on as a piece of their own, in bytes.
const PIECE: usize = 64 * 1024;

/// Where the format `acontext` shows what the client keeps with a message.
pub const USER_META: &str = "__user_meta__";
/// Where it shows calls of Gemini functions that wait for their answers.
pub const OPEN_CALLS: &str = "__gemini_call_info__";

/// A message on its way into the answer.
pub struct Opened {
    row: Row,
    said: Said,
    /// Of a message in the format `acontext` that is shown in it: its meta, and keys that nobody knows.
    own: Option<(Map<String, Value>, Map<String, Value>)>,
}

enum Said {
    /// In the format that is asked for, as JSON text.
    Whole(Vec<u8>),
    Parts(Vec<Part>),
}

/// Makes a conversation shorter; the page's messages before were `rows`.
pub fn edit(rows: Vec<Row>, target: Format, strategies: &[Strategy], pin: Option<usize>) -> Result<Vec<Opened>> {
    let mut messages = Vec::with_capacity(rows.len());
    for row in &rows {
        let body = serde_json::from_slice(&row.content).map_err(|why| unreadable(row, &why))?;
        let tokens = usize::try_from(row.tokens).unwrap_or_default();
        messages.push(edit::Message { parts: format::parts(format_of(row)?, body), tokens });
    }
    let mut rows: Vec<_> = rows.into_iter().map(Some).collect();
    let mut opened = Vec::with_capacity(rows.len());
    for Edited { index, parts, tokens, changes } in edit::apply(strategies, messages, pin) {
        let Some(mut row) = rows[index].take() else { continue };
        row.tokens = i32::try_from(tokens).unwrap_or(i32::MAX);
        let format = format_of(&row)?;
        if format != target {
            opened.push(Opened { row, said: Said::Parts(parts), own: None });
            continue;
        }
        // Shown as it was stored, but for what was changed.
        if !changes.is_empty() {
            let mut body = serde_json::from_slice(&row.content).map_err(|why| unreadable(&row, &why))?;
            format::edit(format, &mut body, &changes);
            row.content = serde_json::to_vec(&body).map_err(Error::internal)?;
        }
        opened.extend(open(vec![row], target)?);
    }
    Ok(opened)
}

fn format_of(row: &Row) -> Result<Format> {
    row.format.parse().map_err(|()| unreadable(row, &"an unknown format"))
}

/// Takes those messages apart that are not in the format that is asked for.
pub fn open(rows: Vec<Row>, target: Format) -> Result<Vec<Opened>> {
    let mut opened = Vec::with_capacity(rows.len());
    for mut row in rows {
        let content = std::mem::take(&mut row.content);
        let mut own = None;
        let format = format_of(&row)?;
        let said = if format == target && target != Format::Acontext {
            Said::Whole(content)
        } else {
            let mut body: Value = serde_json::from_slice(&content).map_err(|why| unreadable(&row, &why))?;
            drop(content);
            if format == target {
                own = body.as_object_mut().map(take_own);
            }
            Said::Parts(format::parts(format, body))
        };
        opened.push(Opened { row, said, own });
    }
    Ok(opened)
}

/// What a message in the format `acontext` has besides its role and parts.
fn take_own(body: &mut Map<String, Value>) -> (Map<String, Value>, Map<String, Value>) {
    let (message, mut extra): (Map<_, _>, Map<_, _>) =
        std::mem::take(body).into_iter().partition(|(key, _)| matches!(key.as_str(), "role" | "parts"));
    *body = message;
    let meta = match extra.remove("meta") {
        Some(Value::Object(meta)) => meta,
        _ => Map::new(),
    };
    // These are told by the server.
    for key in ["id", "session_id", "parent_id", "session_task_process_status", "task_id", "created_at", "updated_at"] {
        extra.remove(key);
    }
    (meta, extra)
}

fn unreadable(row: &Row, why: &dyn std::fmt::Display) -> Error {
    Error::internal(anyhow::anyhow!("message {} cannot be read: {why}", row.id))
}

impl Opened {
    /// The parts, where it had to be taken apart.
    pub fn parts(&self) -> &[Part] {
        match &self.said {
            Said::Whole(_) => &[],
            Said::Parts(parts) => parts,
        }
    }
}

/// The names of functions by the ids of their calls, for results that are told by name.
pub fn call_names(messages: &[Opened], target: Format) -> HashMap<String, String> {
    let is_result = |part: &Part| part.kind == Kind::ToolResult;
    let mut names = HashMap::new();
    if target != Format::Gemini || !messages.iter().flat_map(Opened::parts).any(is_result) {
        return names;
    }
    let text = |part: &Part, key: &str| part.meta.get(key).and_then(Value::as_str).map(ToOwned::to_owned);
    let mut note = |parts: &[Part]| {
        let calls = parts.iter().filter(|part| part.kind == Kind::ToolCall);
        names.extend(calls.filter_map(|part| Some((text(part, "id")?, text(part, "name")?))));
    };
    for message in messages {
        match &message.said {
            Said::Parts(parts) => note(parts),
            // One that is passed on as it is may still have made the call.
            Said::Whole(content) => {
                let body = serde_json::from_slice(content).unwrap_or_default();
                note(&format::parts(target, body));
            }
        }
    }
    names
}

/// What the answer says besides the messages.
pub struct Rest {
    pub session: SessionId,
    pub next_cursor: Option<String>,
    /// The last message that was or would be edited.
    pub edited_at: Option<MessageId>,
    pub events: Vec<Event>,
    pub public_urls: HashMap<String, PublicUrl>,
}

/// Writes the answer.
pub fn write(messages: Vec<Opened>, target: Format, around: &Surroundings, rest: &Rest) -> Result<Pieces> {
    let mut out = Pieces::default();
    let mut ids: Vec<MessageId> = Vec::with_capacity(messages.len());
    let mut metas: Vec<Bytes> = Vec::with_capacity(messages.len());
    let tokens: i64 = messages.iter().map(|message| i64::from(message.row.tokens)).sum();
    out.text("{\"code\":0,\"data\":{\"items\":[");
    for Opened { mut row, said, own } in messages {
        let meta = Bytes::from(std::mem::take(&mut row.user_meta));
        let meta_text = meta.clone();
        let mut say = |out: &mut Pieces| {
            if !ids.is_empty() {
                out.text(",");
            }
            ids.push(row.id);
            metas.push(meta.clone());
        };
        match said {
            Said::Whole(content) => {
                say(&mut out);
                out.piece(content.into());
            }
            Said::Parts(parts) if target == Format::Acontext => {
                say(&mut out);
                out.json(&Item::new(&row, &meta_text, rest.session, &parts, own)?)?;
            }
            Said::Parts(parts) => {
                let meta: Map<String, Value> = serde_json::from_str(&row.meta).map_err(Error::internal)?;
                let role = if row.role == Role::Assistant.as_str() { Role::Assistant } else { Role::User };
                for item in format::write(target, role, &meta, parts, around) {
                    say(&mut out);
                    out.json(&item)?;
                }
            }
        }
    }
    out.text("],\"ids\":");
    out.json(&ids)?;
    out.text(",\"metas\":[");
    for (at, meta) in metas.into_iter().enumerate() {
        out.text(if at == 0 { "" } else { "," });
        out.piece(meta);
    }
    let tail = Tail {
        next_cursor: rest.next_cursor.as_deref(),
        has_more: rest.next_cursor.is_some(),
        this_time_tokens: tokens,
        edit_at_message_id: rest.edited_at,
        events: &rest.events,
        public_urls: &rest.public_urls,
    };
    out.text("],");
    out.fields(&tail)?;
    out.text(",\"msg\":\"\"}");
    Ok(out)
}

/// A message in the format `acontext`.
#[derive(Serialize, utoipa::ToSchema)]
pub struct Item<'a> {
    id: MessageId,
    session_id: SessionId,
    parent_id: Option<MessageId>,
    /// `user` or `assistant`.
    role: &'a str,
    parts: &'a [Part],
    /// `pending`, `running`, `success`, `failed`, `disable_tracking` or `limit_exceed`.
    session_task_process_status: &'a str,
    #[schema(value_type = Object)]
    #[serde(skip_serializing_if = "Map::is_empty")]
    meta: Map<String, Value>,
    task_id: Option<Uuid>,
    created_at: Timestamp,
    updated_at: Timestamp,
    /// Keys that nobody knows, as they were stored.
    #[serde(flatten)]
    #[schema(ignore)]
    extra: Map<String, Value>,
}

impl<'a> Item<'a> {
    fn new(
        row: &'a Row,
        user_meta: &[u8],
        session: SessionId,
        parts: &'a [Part],
        own: Option<(Map<String, Value>, Map<String, Value>)>,
    ) -> Result<Self> {
        let mut meta: Map<String, Value> = serde_json::from_str(&row.meta).map_err(Error::internal)?;
        // As the client wrote it, where that is known.
        let (written, extra) = own.unwrap_or_default();
        meta.extend(written);
        meta.remove(USER_META);
        meta.remove(OPEN_CALLS);
        let user: Map<String, Value> = serde_json::from_slice(user_meta).map_err(Error::internal)?;
        if !user.is_empty() {
            meta.insert(USER_META.into(), Value::Object(user));
        }
        if let Some(calls) = &row.open_calls {
            meta.insert(OPEN_CALLS.into(), serde_json::from_str(calls).map_err(Error::internal)?);
        }
        Ok(Self {
            id: row.id,
            session_id: session,
            parent_id: row.parent_id,
            role: &row.role,
            parts,
            session_task_process_status: &row.status,
            meta,
            task_id: row.task_id,
            created_at: row.created_at,
            updated_at: row.updated_at,
            extra,
        })
    }
}

/// What follows the messages.
#[derive(Serialize)]
struct Tail<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<&'a str>,
    has_more: bool,
    this_time_tokens: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    edit_at_message_id: Option<MessageId>,
    #[serde(skip_serializing_if = "<[Event]>::is_empty")]
    events: &'a [Event],
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    public_urls: &'a HashMap<String, PublicUrl>,
}

/// A JSON text in pieces.
#[derive(Default)]
pub struct Pieces {
    done: Vec<Bytes>,
    last: Vec<u8>,
}

impl Pieces {
    fn text(&mut self, text: &str) {
        self.last.extend_from_slice(text.as_bytes());
    }

    fn piece(&mut self, json: Bytes) {
        if json.len() < PIECE {
            self.last.extend_from_slice(&json);
        } else {
            self.done.push(std::mem::take(&mut self.last).into());
            self.done.push(json);
        }
    }

    fn json(&mut self, value: &impl Serialize) -> Result<()> {
        serde_json::to_writer(&mut self.last, value).map_err(Error::internal)
    }

    /// The fields of an object, and its closing brace.
    fn fields(&mut self, object: &impl Serialize) -> Result<()> {
        let json = serde_json::to_vec(object).map_err(Error::internal)?;
        self.last.extend_from_slice(&json[1..]);
        Ok(())
    }
}

impl IntoResponse for Pieces {
    fn into_response(mut self) -> Response {
        self.done.push(self.last.into());
        let length: usize = self.done.iter().map(Bytes::len).sum();
        let chunks = self.done.into_iter().map(Ok::<_, std::convert::Infallible>);
        let mut response = (StatusCode::OK, Body::from_stream(futures_util::stream::iter(chunks))).into_response();
        let kind = HeaderValue::from_static("application/json; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
        response
    }
}
