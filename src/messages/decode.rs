//! Decodes the messages of a page for a response, and applies edit strategies to them.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::page::MessageRow;
use crate::conversation::edit::{self, EditedMessage, Strategy};
use crate::conversation::format::{self, Format};
use crate::conversation::history::{CallResolver, EarlierCalls};
use crate::conversation::parts::Part;
use crate::error::{Error, Result};
use crate::json;

/// A message to render.
pub struct DecodedMessage {
    pub(super) row: MessageRow,
    pub(super) body: DecodedBody,
    /// If both the stored and the requested format are `acontext`: the other fields of the message.
    pub(super) acontext_fields: Option<AcontextFields>,
    /// `true` if an edit strategy has removed the message before this one.
    pub(super) follows_gap: bool,
}

/// The fields of an `acontext` message other than `role` and `parts`.
#[derive(Default)]
pub(super) struct AcontextFields {
    /// The meta as the client sent it.
    pub meta: Map<String, Value>,
    /// The fields that the format does not define.
    pub extra: Map<String, Value>,
}

pub(super) enum DecodedBody {
    /// JSON text that is already in the requested format.
    Raw(Vec<u8>),
    Parts(Vec<Part>),
}

impl DecodedMessage {
    /// Returns the parts; none if the message is already in the requested format.
    pub fn parts(&self) -> &[Part] {
        match &self.body {
            DecodedBody::Raw(_) => &[],
            DecodedBody::Parts(parts) => parts,
        }
    }
}

/// Applies edit strategies to a page, and decodes the remaining messages.
pub fn edit_and_decode(
    rows: Vec<MessageRow>,
    target: Format,
    strategies: &[Strategy],
    pin: Option<usize>,
    earlier_calls: &Arc<EarlierCalls>,
) -> Result<Vec<DecodedMessage>> {
    let mut messages = Vec::with_capacity(rows.len());
    let mut memory = ValueMemory::default();
    // In one format, each result names its call as the call is stored.
    let is_mixed = target != Format::Acontext && rows.iter().any(|row| row.format != target);
    let mut resolver = is_mixed.then(|| CallResolver::new(Arc::clone(earlier_calls)));
    for row in &rows {
        let body = json::parse_trusted(&row.content).map_err(|err| unreadable_message_error(row, &err))?;
        let tokens = usize::try_from(row.tokens).unwrap_or_default();
        let mut parts = format::to_parts(row.format, body);
        memory.add(&parts)?;
        if let Some(resolver) = &mut resolver {
            resolver.resolve(row.id.0, row.role, &mut parts);
        }
        messages.push(edit::Message { role: row.role, is_system: is_system_message(row)?, parts, tokens });
    }
    let mut rows: Vec<_> = rows.into_iter().map(Some).collect();
    let mut decoded: Vec<DecodedMessage> = Vec::with_capacity(rows.len());
    let mut next_index = 0;
    for EditedMessage { index, parts, tokens, changes } in edit::apply(strategies, messages, pin) {
        let Some(mut row) = rows[index].take() else { continue };
        let follows_gap = index != next_index;
        next_index = index + 1;
        row.tokens = i32::try_from(tokens).unwrap_or(i32::MAX);
        let format = row.format;
        if format != target {
            let body = DecodedBody::Parts(parts);
            decoded.push(DecodedMessage { row, body, acontext_fields: None, follows_gap });
            continue;
        }
        // Apply only the changes, so that everything else stays as it was stored.
        if !changes.is_empty() {
            let mut body = json::parse_trusted(&row.content).map_err(|err| unreadable_message_error(&row, &err))?;
            format::apply_changes(format, &mut body, &changes);
            row.content = json::to_vec(&body);
        }
        decoded.push(DecodedMessage { follows_gap, ..decode_row(row, target)? });
    }
    Ok(decoded)
}

/// Returns `true` if the message was stored with the role of a system message.
fn is_system_message(row: &MessageRow) -> Result<bool> {
    // Most messages have a meta without this key, which need not be parsed.
    if !row.meta.contains("\"original_role\"") {
        return Ok(false);
    }
    let meta: Map<String, Value> = serde_json::from_str(&row.meta).map_err(Error::internal)?;
    Ok(meta.get("original_role").is_some_and(|role| role == "system" || role == "developer"))
}

/// Converts messages to parts, except those that are already in the requested format.
pub fn decode(rows: Vec<MessageRow>, target: Format) -> Result<Vec<DecodedMessage>> {
    let mut memory = ValueMemory::default();
    let decoded = rows.into_iter().map(|row| {
        let message = decode_row(row, target)?;
        memory.add(message.parts())?;
        Ok(message)
    });
    decoded.collect()
}

/// The estimated memory of the JSON values in decoded messages.
#[derive(Default)]
struct ValueMemory(json::Estimate);

impl ValueMemory {
    /// Maximum for one response, in bytes. Typical messages are mostly text and need much less.
    const MAX_BYTES: usize = 192 << 20;

    fn add(&mut self, parts: &[Part]) -> Result<()> {
        for part in parts {
            self.0.add_object(&part.meta);
            self.0.add_object(&part.extra);
        }
        if self.0.bytes > Self::MAX_BYTES {
            return Err(Error::PayloadTooLarge(
                "these messages have too many JSON values to be converted in one response; use a smaller limit".into(),
            ));
        }
        Ok(())
    }
}

/// Converts a message to parts, unless it is already in the requested format.
pub(super) fn decode_row(mut row: MessageRow, target: Format) -> Result<DecodedMessage> {
    let content = std::mem::take(&mut row.content);
    let format = row.format;
    if format == target && target != Format::Acontext {
        return Ok(DecodedMessage { row, body: DecodedBody::Raw(content), acontext_fields: None, follows_gap: false });
    }
    let mut body: Value = json::parse_trusted(&content).map_err(|err| unreadable_message_error(&row, &err))?;
    drop(content);
    let acontext_fields = if format == target { body.as_object_mut().map(take_acontext_fields) } else { None };
    Ok(DecodedMessage {
        row,
        body: DecodedBody::Parts(format::to_parts(format, body)),
        acontext_fields,
        follows_gap: false,
    })
}

/// Removes all fields but `role` and `parts` from an `acontext` message and returns them, without those that the server sets.
fn take_acontext_fields(body: &mut Map<String, Value>) -> AcontextFields {
    let (message, mut extra): (Map<_, _>, Map<_, _>) =
        std::mem::take(body).into_iter().partition(|(key, _)| matches!(key.as_str(), "role" | "parts"));
    *body = message;
    let meta = match extra.remove("meta") {
        Some(Value::Object(meta)) => meta,
        _ => Map::new(),
    };
    for key in ["id", "session_id", "parent_id", "session_task_process_status", "task_id", "created_at", "updated_at"] {
        extra.remove(key);
    }
    AcontextFields { meta, extra }
}

pub(super) fn unreadable_message_error(row: &MessageRow, err: &dyn std::fmt::Display) -> Error {
    Error::internal(anyhow::anyhow!("message {} cannot be read: {err}", row.id))
}
