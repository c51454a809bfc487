//! The arguments and results of the statement that inserts messages.

use bytes::Bytes;
use serde_json::{Map, Value};

use super::ProcessStatus;
use crate::conversation::format::Format;
use crate::conversation::parts::Role;
use crate::encryption::StorageFormat;
use crate::ids::{MessageId, ProjectId, SessionId};
use crate::time::Timestamp;

/// A message to insert.
#[derive(Clone, Debug)]
pub struct NewMessage {
    pub id: MessageId,
    pub project: ProjectId,
    pub session: SessionId,
    pub role: Role,
    pub format: Format,
    /// The body as JSON text; encrypted if there is an [`encrypted_kek`](Self::encrypted_kek).
    pub content: Bytes,
    pub tokens: i32,
    pub meta: Map<String, Value>,
    pub user_meta: Map<String, Value>,
    /// The references to tool calls, as stored in the column `call_references`.
    pub call_references: Option<Value>,
    /// The project's setting that replaces [`ObservationBuffer::max_turns`](super::store::ObservationBuffer::max_turns).
    pub max_buffer_turns: Option<i64>,
    /// If the message is encrypted, the project's master key for its observe job, encrypted for the queue.
    pub encrypted_kek: Option<Bytes>,
}

impl NewMessage {
    /// Returns the storage format of the content.
    pub fn storage_format(&self) -> StorageFormat {
        StorageFormat::from_flag(self.encrypted_kek.is_some())
    }
}

/// The values that the database assigns to an inserted message.
#[derive(Clone, Debug)]
pub struct InsertedMessage {
    pub parent: Option<MessageId>,
    pub status: ProcessStatus,
    pub created_at: Timestamp,
    /// `true` if the statement that inserted the message has made an observe job due, for this message or another one. The job
    /// runners must then be woken after the commit. Always `false` if the message was found instead of inserted; polling finds
    /// such a job.
    pub is_job_due: bool,
}
