//! A message on its way into the database.

use bytes::Bytes;
use serde_json::{Map, Value};

use super::ProcessStatus;
use crate::conversation::format::Format;
use crate::conversation::parts::Role;
use crate::encryption::StorageFormat;
use crate::ids::{MessageId, ProjectId, SessionId};
use crate::time::Timestamp;

/// A message to store.
#[derive(Clone, Debug)]
pub struct NewMessage {
    pub id: MessageId,
    pub project: ProjectId,
    pub session: SessionId,
    pub role: Role,
    pub format: Format,
    /// The message in its format, as JSON text; sealed if there is a [`job_key`](Self::job_key).
    pub content: Bytes,
    pub tokens: i32,
    pub meta: Map<String, Value>,
    pub user_meta: Map<String, Value>,
    /// Calls of Gemini functions that wait for their answers, as the column has them.
    pub pending_calls: Option<Value>,
    /// The project's own setting of [`Buffer::turns`](super::store::Buffer::turns).
    pub buffer_turns: Option<i64>,
    /// Of a sealed message: the project's key for the work that it gives, sealed for the queue.
    pub job_key: Option<Bytes>,
}

impl NewMessage {
    /// How the content is stored.
    pub fn storage_format(&self) -> StorageFormat {
        StorageFormat::from_flag(self.job_key.is_some())
    }
}

/// What the database adds to a message when it inserts it.
#[derive(Clone, Debug)]
pub struct InsertedMessage {
    pub parent: Option<MessageId>,
    pub status: ProcessStatus,
    pub created_at: Timestamp,
}
