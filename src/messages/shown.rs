//! The answer of a list of messages, in one of the four formats.
//!
//! A message that is asked for in the format it was stored in is passed on as it lies in the database. Otherwise it is taken
//! apart and written anew. The answer is put together from pieces, so that a long message is not copied once more.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::page::Row;
use super::pieces::{PIECE, Pieces};
use super::{ProcessStatus, PublicUrl};
use crate::conversation::edit::{self, Edited, Strategy};
use crate::conversation::format::{self, Format, RenderContext};
use crate::conversation::parts::{Kind, OPEN_CALLS, Part, Role, USER_META};
use crate::error::{Error, Result};
use crate::ids::{MessageId, SessionId};
use crate::json;
use crate::sessions::events::Event;
use crate::time::Timestamp;

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
    let mut held = Held::default();
    for row in &rows {
        let body = json::parse_own(&row.content).map_err(|why| unreadable(row, &why))?;
        let tokens = usize::try_from(row.tokens).unwrap_or_default();
        let parts = format::parts(row.format, body);
        held.add(&parts)?;
        messages.push(edit::Message { parts, tokens });
    }
    let mut rows: Vec<_> = rows.into_iter().map(Some).collect();
    let mut opened = Vec::with_capacity(rows.len());
    for Edited { index, parts, tokens, changes } in edit::apply(strategies, messages, pin) {
        let Some(mut row) = rows[index].take() else { continue };
        row.tokens = i32::try_from(tokens).unwrap_or(i32::MAX);
        let format = row.format;
        if format != target {
            opened.push(Opened { row, said: Said::Parts(parts), own: None });
            continue;
        }
        // Shown as it was stored, but for what was changed.
        if !changes.is_empty() {
            let mut body = json::parse_own(&row.content).map_err(|why| unreadable(&row, &why))?;
            format::edit(format, &mut body, &changes);
            row.content = json::to_vec(&body);
        }
        opened.extend(open(vec![row], target)?);
    }
    Ok(opened)
}

/// Takes those messages apart that are not in the format that is asked for.
pub fn open(rows: Vec<Row>, target: Format) -> Result<Vec<Opened>> {
    let mut held = Held::default();
    let opened = rows.into_iter().map(|row| {
        let message = open_one(row, target)?;
        held.add(message.parts())?;
        Ok(message)
    });
    opened.collect()
}

/// The JSON values of the messages that are held in memory together.
#[derive(Default)]
struct Held(json::Estimate);

impl Held {
    /// How much they may take, in bytes. Usual messages are mostly text and stay far below.
    const MAX_BYTES: usize = 192 << 20;

    fn add(&mut self, parts: &[Part]) -> Result<()> {
        for part in parts {
            self.0.add_object(&part.meta);
            self.0.add_object(&part.extra);
        }
        if self.0.bytes > Self::MAX_BYTES {
            return Err(Error::PayloadTooLarge(
                "these messages have too many JSON values to be converted together: request fewer with a smaller limit"
                    .into(),
            ));
        }
        Ok(())
    }
}

fn open_one(mut row: Row, target: Format) -> Result<Opened> {
    let content = std::mem::take(&mut row.content);
    let format = row.format;
    if format == target && target != Format::Acontext {
        return Ok(Opened { row, said: Said::Whole(content), own: None });
    }
    let mut body: Value = json::parse_own(&content).map_err(|why| unreadable(&row, &why))?;
    drop(content);
    let own = if format == target { body.as_object_mut().map(take_own) } else { None };
    Ok(Opened { row, said: Said::Parts(format::parts(format, body)), own })
}

/// Whether all messages lie in the database as they are shown.
pub fn is_passed_on(rows: &[Row], target: Format) -> bool {
    target != Format::Acontext && rows.iter().all(|row| row.format == target)
}

/// Whether messages can be shown one after the other: none has files, and what one needs to know of others (the name of a
/// function whose result it is) stands before it.
pub fn is_plain(rows: &[Row], target: Format) -> bool {
    let alone = |row: &Row| {
        // Only this format has files; and of two that are passed on, only Gemini's have calls that others need to know.
        row.format != Format::Acontext && (target != Format::Gemini || row.format != target)
    };
    rows.iter().all(alone) || is_passed_on(rows, target)
}

/// Writes the answer to messages that [are plain](is_plain). Each is done with before the next is looked at, so the memory of
/// one serves them all.
pub fn write_plain(rows: Vec<Row>, target: Format, rest: &Rest) -> Result<Pieces> {
    let room = rows.iter().map(|row| room(row, row.content.len())).sum();
    let opened = rows.into_iter().map(|row| open_one(row, target));
    write_all(opened, room, target, &mut RenderContext::default(), rest)
}

/// About how much of the answer a message takes, in bytes, if its text is so long.
fn room(row: &Row, text: usize) -> usize {
    // Longer ones are a piece of their own. Its id and meta stand beside it.
    let text = if text < PIECE { text } else { 0 };
    text + text / 32 + row.user_meta.len() + 128
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
    for message in messages {
        match &message.said {
            Said::Parts(parts) => note_calls(parts, &mut names),
            // One that is passed on as it is may still have made the call.
            Said::Whole(content) => {
                let body = json::parse_own(content).unwrap_or_default();
                note_calls(&format::parts(target, body), &mut names);
            }
        }
    }
    names
}

fn note_calls(parts: &[Part], names: &mut HashMap<String, String>) {
    let text = |part: &Part, key: &str| part.meta.get(key).and_then(Value::as_str).map(ToOwned::to_owned);
    let calls = parts.iter().filter(|part| part.kind == Kind::ToolCall);
    names.extend(calls.filter_map(|part| Some((text(part, "id")?, text(part, "name")?))));
}

/// What the answer says besides the messages.
pub struct Rest {
    pub session: SessionId,
    pub next_cursor: Option<String>,
    /// The last message that was or would be edited.
    pub edited_at: Option<MessageId>,
    pub events: Vec<Event>,
    pub public_urls: BTreeMap<String, PublicUrl>,
}

/// Writes the answer.
pub fn write(messages: Vec<Opened>, target: Format, around: &mut RenderContext, rest: &Rest) -> Result<Pieces> {
    let text = |message: &Opened| message.parts().iter().map(|part| part.text.len()).sum();
    let room = messages.iter().map(|message| room(&message.row, text(message))).sum();
    write_all(messages.into_iter().map(Ok), room, target, around, rest)
}

fn write_all(
    messages: impl Iterator<Item = Result<Opened>>,
    room: usize,
    target: Format,
    around: &mut RenderContext,
    rest: &Rest,
) -> Result<Pieces> {
    let mut out = Pieces::with_room(room + 1024);
    let mut ids: Vec<MessageId> = Vec::new();
    let mut metas: Vec<Bytes> = Vec::new();
    let mut tokens = 0;
    out.text("{\"code\":0,\"data\":{\"items\":[");
    for message in messages {
        let Opened { mut row, said, own } = message?;
        tokens += i64::from(row.tokens);
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
                write_item(&mut out, &row, &meta_text, rest.session, &parts, own)?;
            }
            Said::Parts(parts) => {
                // The others have no place for it.
                let meta = if target == Format::OpenAi { row.meta.as_str() } else { "{}" };
                let meta: Map<String, Value> = serde_json::from_str(meta).map_err(Error::internal)?;
                if target == Format::Gemini {
                    note_calls(&parts, &mut around.call_names);
                }
                around.values.reset();
                for item in format::write(target, row.role, &meta, parts, around) {
                    say(&mut out);
                    json::write(&item, out.end());
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
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes what is written in pieces")]
pub struct Item<'a> {
    #[serde(flatten)]
    about: About,
    parts: &'a [Part],
}

/// All of a message but its parts.
#[derive(Serialize, utoipa::ToSchema)]
struct About {
    id: MessageId,
    session_id: SessionId,
    parent_id: Option<MessageId>,
    role: Role,
    session_task_process_status: ProcessStatus,
    #[schema(value_type = Object)]
    #[serde(skip_serializing_if = "Map::is_empty")]
    meta: Map<String, Value>,
    task_id: Option<Uuid>,
    created_at: Timestamp,
    updated_at: Timestamp,
}

fn write_item(
    out: &mut Pieces,
    row: &Row,
    user_meta: &[u8],
    session: SessionId,
    parts: &[Part],
    own: Option<(Map<String, Value>, Map<String, Value>)>,
) -> Result<()> {
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
    if let Some(calls) = &row.pending_calls {
        meta.insert(OPEN_CALLS.into(), serde_json::from_str(calls).map_err(Error::internal)?);
    }
    let about = About {
        id: row.id,
        session_id: session,
        parent_id: row.parent_id,
        role: row.role,
        session_task_process_status: row.status,
        meta,
        task_id: row.task_id,
        created_at: row.created_at,
        updated_at: row.updated_at,
    };
    out.text("{\"parts\":[");
    for (at, part) in parts.iter().enumerate() {
        out.text(if at == 0 { "" } else { "," });
        part.write(out.end()).map_err(Error::internal)?;
    }
    out.text("]");
    // Keys that nobody knows, as they were stored.
    json::write_fields(&extra, out.end());
    out.text(",");
    out.fields(&about)
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
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    public_urls: &'a BTreeMap<String, PublicUrl>,
}
