//! New messages as arrays, which is how one statement takes many.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value};
use sqlx::types::Json;
use uuid::Uuid;

use super::new_message::NewMessage;
use crate::encryption::StorageFormat;
use crate::ids::{ProjectId, SessionId};

/// The sessions of new messages, each once, and where in its session each message stands, as arrays.
#[derive(Default)]
pub(super) struct Places {
    pub(super) sessions: Vec<Uuid>,
    pub(super) projects: Vec<Uuid>,
    /// See [`NewMessage::buffer_turns`].
    pub(super) turns: Vec<Option<i64>>,
    /// See [`NewMessage::job_key`].
    pub(super) job_keys: Vec<Option<Vec<u8>>>,
    /// How many messages are new.
    pub(super) counts: Vec<i64>,
    pub(super) newest: Vec<Uuid>,
    /// Of each message: which session it is for, counted from 1.
    pub(super) of: Vec<i64>,
    /// How many come before it in its session.
    pub(super) nth: Vec<i64>,
    /// The last one of them.
    pub(super) previous: Vec<Option<Uuid>>,
}

impl Places {
    pub(super) fn of(new: &[NewMessage]) -> Self {
        let mut places = Self::default();
        // Of a session that is another project's nothing is stored, so it counts apart.
        let mut known: HashMap<(SessionId, ProjectId), usize> = HashMap::new();
        for message in new {
            let at = *known.entry((message.session, message.project)).or_insert_with(|| {
                places.sessions.push(message.session.0);
                places.projects.push(message.project.0);
                places.turns.push(message.buffer_turns);
                places.job_keys.push(message.job_key.as_ref().map(|key| key.to_vec()));
                places.counts.push(0);
                places.newest.push(message.id.0);
                places.sessions.len() - 1
            });
            let before = places.counts[at];
            places.of.push(i64::try_from(at + 1).unwrap_or(i64::MAX));
            places.nth.push(before);
            places.previous.push((before > 0).then_some(places.newest[at]));
            places.counts[at] += 1;
            places.newest[at] = message.id.0;
        }
        places
    }
}

/// Returns the projects of new messages, each once, and how their messages are stored. The order is the same for all transactions, so
/// that two transactions that lock the formats of several projects do not wait for each other. The messages of a project are all of one format.
pub(super) fn storage_formats(new: &[NewMessage]) -> (Vec<Uuid>, Vec<StorageFormat>) {
    let formats: BTreeMap<_, _> = new.iter().map(|message| (message.project.0, message.storage_format())).collect();
    formats.into_iter().unzip()
}

/// New messages as arrays, one for each column.
pub(super) struct Columns<'a> {
    pub(super) ids: Vec<Uuid>,
    pub(super) roles: Vec<&'static str>,
    pub(super) formats: Vec<&'static str>,
    pub(super) contents: Vec<&'a [u8]>,
    /// An encrypted message is encrypted as itself.
    pub(super) encrypted_as: Vec<Option<Uuid>>,
    pub(super) tokens: Vec<i32>,
    pub(super) metas: Vec<Json<&'a Map<String, Value>>>,
    pub(super) user_metas: Vec<Json<&'a Map<String, Value>>>,
    pub(super) pending_calls: Vec<Option<&'a Value>>,
}

impl<'a> Columns<'a> {
    pub(super) fn of(new: &'a [NewMessage]) -> Self {
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
            pending_calls: new.iter().map(|message| message.pending_calls.as_ref()).collect(),
        }
    }
}
