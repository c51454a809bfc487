//! Converts new messages to arrays, so that one statement can insert many.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value};
use sqlx::types::Json;
use uuid::Uuid;

use super::new_message::NewMessage;
use crate::encryption::StorageFormat;
use crate::ids::{ProjectId, SessionId};

/// The distinct sessions of new messages, and the position of each message among the new ones of its session.
#[derive(Default)]
pub(super) struct SessionColumns {
    pub(super) sessions: Vec<Uuid>,
    pub(super) projects: Vec<Uuid>,
    /// See [`NewMessage::max_buffer_turns`].
    pub(super) max_turns: Vec<Option<i64>>,
    /// See [`NewMessage::encrypted_kek`].
    pub(super) encrypted_keks: Vec<Option<Vec<u8>>>,
    /// The number of new messages of each session.
    pub(super) counts: Vec<i64>,
    /// The last new message of each session.
    pub(super) last_ids: Vec<Uuid>,
    /// For each message, the index of its session in the arrays above, counted from 1.
    pub(super) session_indexes: Vec<i64>,
    /// For each message, the number of new messages before it in its session.
    pub(super) offsets: Vec<i64>,
    /// For each message, the new message before it in its session.
    pub(super) previous_ids: Vec<Option<Uuid>>,
}

impl SessionColumns {
    pub(super) fn from_messages(new: &[NewMessage]) -> Self {
        let mut columns = Self::default();
        // The key includes the project, because messages for a session of another project are not inserted.
        let mut indexes: HashMap<(SessionId, ProjectId), usize> = HashMap::new();
        for message in new {
            let index = *indexes.entry((message.session, message.project)).or_insert_with(|| {
                columns.sessions.push(message.session.0);
                columns.projects.push(message.project.0);
                columns.max_turns.push(message.max_buffer_turns);
                columns.encrypted_keks.push(message.encrypted_kek.as_ref().map(|key| key.to_vec()));
                columns.counts.push(0);
                columns.last_ids.push(message.id.0);
                columns.sessions.len() - 1
            });
            let offset = columns.counts[index];
            columns.session_indexes.push(i64::try_from(index + 1).unwrap_or(i64::MAX));
            columns.offsets.push(offset);
            columns.previous_ids.push((offset > 0).then_some(columns.last_ids[index]));
            columns.counts[index] += 1;
            columns.last_ids[index] = message.id.0;
        }
        columns
    }
}

/// Returns the distinct projects of new messages, and the storage format of their messages, which is the same for all messages of
/// a project. The projects are ordered by id, so that transactions that lock the formats of several projects cannot deadlock.
pub(super) fn project_formats(new: &[NewMessage]) -> (Vec<Uuid>, Vec<StorageFormat>) {
    let formats: BTreeMap<_, _> = new.iter().map(|message| (message.project.0, message.storage_format())).collect();
    formats.into_iter().unzip()
}

/// New messages as arrays, one per column.
pub(super) struct MessageColumns<'a> {
    pub(super) ids: Vec<Uuid>,
    pub(super) roles: Vec<&'static str>,
    pub(super) formats: Vec<&'static str>,
    pub(super) contents: Vec<&'a [u8]>,
    /// For each message, its own id if the message is encrypted.
    pub(super) encrypted_as: Vec<Option<Uuid>>,
    pub(super) tokens: Vec<i32>,
    pub(super) metas: Vec<Json<&'a Map<String, Value>>>,
    pub(super) user_metas: Vec<Json<&'a Map<String, Value>>>,
    pub(super) call_references: Vec<Option<&'a Value>>,
}

impl<'a> MessageColumns<'a> {
    pub(super) fn from_messages(new: &'a [NewMessage]) -> Self {
        Self {
            ids: new.iter().map(|message| message.id.0).collect(),
            roles: new.iter().map(|message| message.role.as_str()).collect(),
            formats: new.iter().map(|message| message.format.as_str()).collect(),
            contents: new.iter().map(|message| message.content.as_ref()).collect(),
            encrypted_as: new
                .iter()
                .map(|message| message.storage_format().is_encrypted().then_some(message.id.0))
                .collect(),
            tokens: new.iter().map(|message| message.tokens).collect(),
            metas: new.iter().map(|message| Json(&message.meta)).collect(),
            user_metas: new.iter().map(|message| Json(&message.user_meta)).collect(),
            call_references: new.iter().map(|message| message.call_references.as_ref()).collect(),
        }
    }
}
