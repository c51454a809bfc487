//! Renders the response of a list of messages, in one of the four formats.
//!
//! A message that is requested in its stored format is passed through unchanged, except that `acontext` messages get their fields
//! from the database. Any other message is converted to parts and from them to the requested format.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::call_references::UnansweredCall;
use super::decode::{AcontextFields, DecodedBody, DecodedMessage, decode_row, unreadable_message_error};
use super::json_writer::{CHUNK_THRESHOLD, ChunkedJson};
use super::page::MessageRow;
use super::{ProcessStatus, PublicUrl};
use crate::conversation::format::{Format, RenderContext, RenderOptions};
use crate::conversation::history::{EarlierCalls, HistoryBody, HistoryConverter, HistoryMessage, Item};
use crate::conversation::parts::{PENDING_CALLS_KEY, Part, Role, USER_META_KEY};
use crate::error::{Error, Result};
use crate::ids::{MessageId, SessionId};
use crate::json;
use crate::sessions::events::Event;
use crate::time::Timestamp;

/// Returns `true` if all messages are stored exactly as they are returned in the requested format.
pub fn is_passthrough(rows: &[MessageRow], target: Format, options: RenderOptions) -> bool {
    target != Format::Acontext && !options.changes_own_format(target) && rows.iter().all(|row| row.format == target)
}

/// Returns `true` if messages can be converted one at a time, because no message has files.
pub fn is_streamable(rows: &[MessageRow]) -> bool {
    // Only `acontext` messages have files.
    rows.iter().all(|row| row.format != Format::Acontext)
}

/// Writes the response of messages that [are streamable](is_streamable). They are converted one at a time, so peak memory is that
/// of a single tool turn.
pub fn write_streamed(
    rows: Vec<MessageRow>,
    target: Format,
    ctx: &RenderContext,
    page_fields: &PageFields,
) -> Result<ChunkedJson> {
    let capacity = rows.iter().map(|row| estimate_len(row, row.content.len())).sum();
    let is_passthrough = is_passthrough(&rows, target, ctx.options);
    let decoded = rows.into_iter().map(|row| decode_row(row, target));
    write_messages(decoded, capacity, target, is_passthrough, ctx, page_fields)
}

/// Estimates the buffer size that a message needs in the response, given the length of its text. Both are in bytes.
fn estimate_len(row: &MessageRow, text_len: usize) -> usize {
    // A longer text becomes a chunk of its own.
    let text_len = if text_len < CHUNK_THRESHOLD { text_len } else { 0 };
    text_len + text_len / 32 + row.user_meta.len() + 128
}

/// The fields of the response that follow the messages, and the calls to which the messages refer.
pub struct PageFields {
    /// The session of the messages. It is not a field of its own: each `acontext` message contains it.
    pub session: SessionId,
    pub next_cursor: Option<String>,
    /// The last message that the edit strategies could change.
    pub edit_at_message_id: Option<MessageId>,
    pub events: Vec<Event>,
    pub public_urls: BTreeMap<String, PublicUrl>,
    /// The calls that precede the page; empty if no message of the page may refer to them.
    pub earlier_calls: Arc<EarlierCalls>,
    /// In the format `acontext`: the calls of Gemini messages that no message has answered.
    pub unanswered_calls: HashMap<MessageId, Vec<UnansweredCall>>,
}

/// Writes the response of messages that are decoded already.
pub fn write_response(
    messages: Vec<DecodedMessage>,
    target: Format,
    ctx: &RenderContext,
    page_fields: &PageFields,
) -> Result<ChunkedJson> {
    let text_len = |message: &DecodedMessage| message.parts().iter().map(|part| part.text.len()).sum();
    let capacity = messages.iter().map(|message| estimate_len(&message.row, text_len(message))).sum();
    let is_raw = |message: &DecodedMessage| matches!(message.body, DecodedBody::Raw(_));
    let has_gap = messages.iter().any(|message| message.follows_gap);
    let is_passthrough = !ctx.options.changes_own_format(target) && !has_gap && messages.iter().all(is_raw);
    write_messages(messages.into_iter().map(Ok), capacity, target, is_passthrough, ctx, page_fields)
}

/// The items of a response, and the messages from which they come.
struct ItemWriter {
    out: ChunkedJson,
    /// For each item, the index of its message.
    item_messages: Vec<usize>,
    /// For each message, its id and its user metadata as JSON text.
    messages: Vec<(MessageId, Bytes)>,
}

impl ItemWriter {
    fn begin_item(&mut self, message: usize) -> &mut ChunkedJson {
        if !self.item_messages.is_empty() {
            self.out.push_str(",");
        }
        self.item_messages.push(message);
        &mut self.out
    }

    fn write_items(&mut self, items: Vec<Item>) {
        for item in items {
            json::write(&item.value, self.begin_item(item.message).buffer_mut());
        }
    }
}

/// Parses the metas of messages. Most messages of a session have the same one, which is parsed only once.
#[derive(Default)]
struct MetaParser {
    text: String,
    meta: Map<String, Value>,
}

impl MetaParser {
    fn parse(&mut self, text: String) -> Result<&Map<String, Value>> {
        if text != self.text {
            self.meta = serde_json::from_str(&text).map_err(Error::internal)?;
            self.text = text;
        }
        Ok(&self.meta)
    }
}

/// Writes the response. `is_passthrough` means that all messages are written as they are stored.
fn write_messages(
    messages: impl Iterator<Item = Result<DecodedMessage>>,
    capacity: usize,
    target: Format,
    is_passthrough: bool,
    ctx: &RenderContext,
    page_fields: &PageFields,
) -> Result<ChunkedJson> {
    let out = ChunkedJson::with_capacity(capacity + 1024);
    let mut writer = ItemWriter { out, item_messages: Vec::new(), messages: Vec::new() };
    let mut history = HistoryConverter::new(target, ctx, Arc::clone(&page_fields.earlier_calls));
    let mut metas = MetaParser::default();
    let mut tokens = 0;
    writer.out.push_str("{\"code\":0,\"data\":{\"items\":[");
    for message in messages {
        let DecodedMessage { mut row, body, acontext_fields, follows_gap } = message?;
        tokens += i64::from(row.tokens);
        let index = writer.messages.len();
        let user_meta = Bytes::from(std::mem::take(&mut row.user_meta));
        writer.messages.push((row.id, user_meta.clone()));
        let body = match body {
            DecodedBody::Raw(content) if is_passthrough => {
                writer.begin_item(index).push_json_bytes(content.into());
                continue;
            }
            DecodedBody::Parts(parts) if target == Format::Acontext => {
                let out = writer.begin_item(index);
                write_acontext_message(out, &row, &user_meta, page_fields, &parts, acontext_fields)?;
                continue;
            }
            DecodedBody::Raw(content) => {
                HistoryBody::Own(json::parse_trusted(&content).map_err(|err| unreadable_message_error(&row, &err))?)
            }
            DecodedBody::Parts(parts) => HistoryBody::Parts(parts),
        };
        let meta = metas.parse(row.meta)?;
        writer.write_items(history.push(HistoryMessage { id: row.id.0, role: row.role, meta, body, follows_gap }));
    }
    writer.write_items(history.finish());
    let ItemWriter { mut out, item_messages, messages } = writer;
    let item_messages: Vec<_> = item_messages.into_iter().map(|index| &messages[index]).collect();
    let ids: Vec<_> = item_messages.iter().map(|(id, _)| id).collect();
    out.push_str("],\"ids\":");
    out.push_value(&ids)?;
    out.push_str(",\"metas\":[");
    for (i, (_, user_meta)) in item_messages.into_iter().enumerate() {
        out.push_str(if i == 0 { "" } else { "," });
        out.push_json_bytes(user_meta.clone());
    }
    let fields = SerializedPageFields {
        next_cursor: page_fields.next_cursor.as_deref(),
        has_more: page_fields.next_cursor.is_some(),
        this_time_tokens: tokens,
        edit_at_message_id: page_fields.edit_at_message_id,
        events: &page_fields.events,
        public_urls: &page_fields.public_urls,
    };
    out.push_str("],");
    out.push_fields(&fields)?;
    out.push_str(",\"msg\":\"\"}");
    Ok(out)
}

/// A message in the format `acontext`.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes what `write_acontext_message` writes")]
pub struct AcontextMessage<'a> {
    #[serde(flatten)]
    fields: MessageFields,
    parts: &'a [Part],
}

/// The fields of a message without its parts.
#[derive(Serialize, utoipa::ToSchema)]
struct MessageFields {
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

fn write_acontext_message(
    out: &mut ChunkedJson,
    row: &MessageRow,
    user_meta: &[u8],
    page_fields: &PageFields,
    parts: &[Part],
    acontext_fields: Option<AcontextFields>,
) -> Result<()> {
    let mut meta: Map<String, Value> = serde_json::from_str(&row.meta).map_err(Error::internal)?;
    let AcontextFields { meta: original_meta, extra } = acontext_fields.unwrap_or_default();
    meta.extend(original_meta);
    meta.remove(USER_META_KEY);
    meta.remove(PENDING_CALLS_KEY);
    let user_meta: Map<String, Value> = serde_json::from_slice(user_meta).map_err(Error::internal)?;
    if !user_meta.is_empty() {
        meta.insert(USER_META_KEY.into(), Value::Object(user_meta));
    }
    if let Some(calls) = page_fields.unanswered_calls.get(&row.id) {
        meta.insert(PENDING_CALLS_KEY.into(), serde_json::to_value(calls).map_err(Error::internal)?);
    }
    let fields = MessageFields {
        id: row.id,
        session_id: page_fields.session,
        parent_id: row.parent_id,
        role: row.role,
        session_task_process_status: row.status,
        meta,
        task_id: row.task_id,
        created_at: row.created_at,
        updated_at: row.updated_at,
    };
    out.push_str("{\"parts\":[");
    for (i, part) in parts.iter().enumerate() {
        out.push_str(if i == 0 { "" } else { "," });
        part.write(out.buffer_mut()).map_err(Error::internal)?;
    }
    out.push_str("]");
    json::write_fields(&extra, out.buffer_mut());
    out.push_str(",");
    out.push_fields(&fields)
}

/// The serialized [`PageFields`], with the number of tokens.
#[derive(Serialize)]
struct SerializedPageFields<'a> {
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
