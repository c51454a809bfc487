//! The changes of files: the rows of `changes`, which name the cause, and of `change_files`, which name what was done to each
//! file.

use sqlx::PgConnection;

use crate::http::middleware::RequestId;
use crate::ids::{ChangeId, DiskId, JobId, LearningSpaceId, LessonId, MessageId, ProjectId, SessionId, TaskId};
use crate::text_enum::text_enum;

/// The maximum number of messages that a change names.
pub const MAX_MESSAGES: usize = 200;
/// The maximum length of a note in characters.
pub const MAX_NOTE_CHARS: usize = 500;

text_enum! {
    /// What has made a change: `key` is a request with a project key, and `learner` a job that learns from sessions. `import` and
    /// `operator` are reserved.
    pub enum Actor {
        Key = "key",
        Learner = "learner",
        Import = "import",
        Operator = "operator",
    }
}

text_enum! {
    /// What a change has done to a file.
    pub enum FileOperation {
        Create = "create",
        Replace = "replace",
        Move = "move",
        Delete = "delete",
    }
}

/// The cause of a change. It is stored as plaintext, also in an encrypted project.
#[derive(Clone, Copy, Debug)]
pub struct Cause<'a> {
    pub actor: Actor,
    pub request_id: Option<&'a str>,
    pub job: Option<JobId>,
    /// The language model that has decided on the change.
    pub model: Option<&'a str>,
    /// The learning space for which the learner has made the change.
    pub learning_space: Option<LearningSpaceId>,
    pub session: Option<SessionId>,
    pub task: Option<TaskId>,
    pub lesson: Option<LessonId>,
    /// The messages on which the change is based. Only the first [`MAX_MESSAGES`] are stored.
    pub messages: &'a [MessageId],
    /// Cut after [`MAX_NOTE_CHARS`] characters.
    pub note: Option<&'a str>,
}

impl<'a> Cause<'a> {
    /// Returns the cause of a change that a request with a project key makes.
    pub fn request(request_id: Option<&'a RequestId>) -> Self {
        Self { request_id: request_id.map(RequestId::as_str), ..Self::REQUEST }
    }

    /// The cause of a change that a request without an id makes.
    pub const REQUEST: Self = Self {
        actor: Actor::Key,
        request_id: None,
        job: None,
        model: None,
        learning_space: None,
        session: None,
        task: None,
        lesson: None,
        messages: &[],
        note: None,
    };
}

/// A disk that is locked until the transaction ends.
pub(super) struct LockedDisk {
    /// `true` if the time of the last change is recorded in `disks.changed_at`.
    pub is_tracked: bool,
}

/// Locks the disk `for key share`: concurrent changes do not block each other, but no other transaction can delete the disk or
/// lock it `for update`. Also inserts a change, if `change` is not `None`. Returns `None` if the project has no such disk.
pub(super) async fn lock_disk_and_insert(
    conn: &mut PgConnection,
    project: ProjectId,
    disk: DiskId,
    change: Option<ChangeId>,
    cause: &Cause<'_>,
) -> sqlx::Result<Option<LockedDisk>> {
    let messages = &cause.messages[..cause.messages.len().min(MAX_MESSAGES)];
    let note = cause.note.map(|note| note.chars().take(MAX_NOTE_CHARS).collect::<String>());
    sqlx::query_as!(
        LockedDisk,
        r#"with disk as (
               select id, project_id, changed_at is not null as is_tracked
               from disks where id = $1 and project_id = $2 for key share
           ), change as (
               insert into changes (id, project_id, disk_id, actor, request_id, job_id, model, learning_space_id, session_id,
                                    task_id, lesson_id, message_ids, note)
               select $3::uuid, project_id, id, $4::text, $5::text, $6::uuid, $7::text, $8::uuid, $9::uuid, $10::uuid,
                      $11::uuid, $12::uuid[], $13::text
               from disk where $3::uuid is not null
           )
           select is_tracked as "is_tracked!" from disk"#,
        disk as _,
        project as _,
        change as _,
        cause.actor as _,
        cause.request_id,
        cause.job as _,
        cause.model,
        cause.learning_space as _,
        cause.session as _,
        cause.task as _,
        cause.lesson as _,
        messages as _,
        note,
    )
    .fetch_optional(conn)
    .await
}

/// Deletes a change that has no effect.
pub(super) async fn delete(conn: &mut PgConnection, change: ChangeId) -> sqlx::Result<()> {
    sqlx::query!("delete from changes where id = $1", change as _).execute(conn).await.map(drop)
}
