//! SQL of lessons.

use sqlx::PgConnection;
use sqlx::types::Json;
use uuid::Uuid;

use super::{LessonKind, LessonState};
use crate::encryption::stored_text::{StaleText, StoredText};
use crate::ids::{LearningSpaceId, LessonId, MessageId, ProjectId, SessionId, TaskId};
use crate::sessions::lock::LockedSession;
use crate::tasks::{TaskData, TaskStatus};
use crate::time::Timestamp;

/// Returns the learning space that learns from a session.
pub async fn find_learning_space(conn: &mut PgConnection, session: SessionId) -> sqlx::Result<Option<LearningSpaceId>> {
    sqlx::query_scalar!(
        r#"select learning_space_id as "id: LearningSpaceId" from learning_space_sessions where session_id = $1"#,
        session as _
    )
    .fetch_optional(conn)
    .await
}

/// Inserts a lesson for each of these tasks that is finished, with the task's current status and data. Skips a task if the
/// learning space has a lesson for the same end of it. Returns the lessons with their tasks, in the order of `tasks`.
pub async fn insert_for_tasks(
    session: &mut LockedSession<'_>,
    tasks: &[TaskId],
) -> sqlx::Result<Vec<(LessonId, TaskId)>> {
    let ids: Vec<Uuid> = tasks.iter().map(|_| LessonId::new().0).collect();
    let tasks: Vec<Uuid> = tasks.iter().map(|task| task.0).collect();
    let inserted = sqlx::query!(
        r#"insert into lessons (id, project_id, learning_space_id, session_id, task_id, ended_at, task_status, task_data, state)
           select n.id, t.project_id, l.learning_space_id, t.session_id, t.id, coalesce(t.ended_at, t.updated_at), t.status,
                  t.data, 'distilling'
           from unnest($3::uuid[], $4::uuid[]) with ordinality as n (id, task, ordinal)
           join tasks t on t.id = n.task and t.project_id = $1 and t.session_id = $2
           join learning_space_sessions l on l.session_id = t.session_id
           where t.status in ('success', 'failed') and not t.is_planning
           order by n.ordinal
           on conflict (learning_space_id, task_id, ended_at) do nothing
           returning id as "id: LessonId", task_id as "task!: TaskId""#,
        session.project as _,
        session.id as _,
        &ids,
        &tasks,
    );
    Ok(inserted.fetch_all(&mut ***session).await?.into_iter().map(|row| (row.id, row.task)).collect())
}

/// Inserts a pending lesson that consists of preferences.
pub async fn insert_preferences(
    session: &mut LockedSession<'_>,
    space: LearningSpaceId,
    lesson: LessonId,
    text: &StoredText,
    messages: &[MessageId],
) -> sqlx::Result<()> {
    let messages: Vec<Uuid> = messages.iter().map(|message| message.0).collect();
    sqlx::query!(
        "insert into lessons (id, project_id, learning_space_id, session_id, state, kind, content, encrypted_as, message_ids,
                              distilled_at)
         values ($1, $2, $3, $4, 'pending', 'preferences', $5, $6, $7, clock_timestamp())",
        lesson as _,
        session.project as _,
        space as _,
        session.id as _,
        text.content,
        text.encrypted_as,
        &messages,
    )
    .execute(&mut ***session)
    .await
    .map(drop)
}

/// A row of `lessons`.
#[derive(Debug)]
pub struct LessonRow {
    pub id: LessonId,
    pub learning_space: LearningSpaceId,
    pub session: SessionId,
    pub task: Option<TaskId>,
    /// The end of the task.
    pub ended_at: Option<Timestamp>,
    /// The status of the task at that end.
    pub task_status: Option<TaskStatus>,
    /// The data of the task at that end.
    pub task_data: Option<Json<TaskData>>,
    pub state: LessonState,
    pub kind: Option<LessonKind>,
    /// `None` until the lesson is distilled.
    pub text: Option<StoredText>,
    pub message_ids: Vec<Uuid>,
}

impl LessonRow {
    /// Returns `true` if the lesson has a text that is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.text.as_ref().is_some_and(|text| text.encrypted_as.is_some())
    }
}

macro_rules! select_lessons {
    ($rest:literal, $($parameter:expr),* $(,)?) => {
        sqlx::query!(
            r#"select t.id as "id: LessonId", t.learning_space_id as "learning_space: LearningSpaceId",
                      t.session_id as "session: SessionId", t.task_id as "task: TaskId",
                      t.ended_at as "ended_at: Timestamp", t.task_status as "task_status: TaskStatus",
                      t.task_data as "task_data: Json<TaskData>", t.state as "state: LessonState",
                      t.kind as "kind: LessonKind", t.content, t.encrypted_as, t.message_ids
               from lessons t "# + $rest,
            $($parameter),*
        )
        .map(|row| LessonRow {
            id: row.id,
            learning_space: row.learning_space,
            session: row.session,
            task: row.task,
            ended_at: row.ended_at,
            task_status: row.task_status,
            task_data: row.task_data,
            state: row.state,
            kind: row.kind,
            text: row.content.map(|content| StoredText { content, encrypted_as: row.encrypted_as }),
            message_ids: row.message_ids,
        })
    };
}

/// Returns a lesson of a project.
pub async fn get(conn: &mut PgConnection, project: ProjectId, lesson: LessonId) -> sqlx::Result<Option<LessonRow>> {
    select_lessons!("where t.id = $1 and t.project_id = $2", lesson as _, project as _).fetch_optional(conn).await
}

/// The maximum stored length of a lesson that continues a run of the skill agent, in bytes. The message with such a lesson has
/// room for about 4 000 tokens.
const MAX_NEXT_BYTES: i32 = 8_192;

/// Returns the oldest lesson of a learning space that waits to be written and has a job that is ready. Skips lessons that are
/// longer than `MAX_NEXT_BYTES`: their own jobs write them, in a message with more room.
pub async fn find_next_pending(
    conn: &mut PgConnection,
    project: ProjectId,
    space: LearningSpaceId,
) -> sqlx::Result<Option<LessonRow>> {
    select_lessons!(
        "where t.learning_space_id = $1 and t.project_id = $2 and t.state = 'pending' and octet_length(t.content) <= $3
           and exists (
             select 1 from jobs j
             where j.kind = 'write_lesson' and j.dedupe_key = t.id::text and j.state = 'ready' and j.attempt = 0)
         order by t.distilled_at, t.id limit 1",
        space as _,
        project as _,
        MAX_NEXT_BYTES
    )
    .fetch_optional(conn)
    .await
}

/// Stores the text of a lesson that was being distilled, so that it can be written. Returns `false` if the lesson does not exist or
/// is not being distilled.
pub async fn set_distilled(
    conn: &mut PgConnection,
    lesson: LessonId,
    kind: LessonKind,
    text: &StoredText,
    messages: &[MessageId],
) -> sqlx::Result<bool> {
    let messages: Vec<Uuid> = messages.iter().map(|message| message.0).collect();
    let update = sqlx::query!(
        "update lessons set state = 'pending', kind = $2, content = $3, encrypted_as = $4, message_ids = $5, reason = null,
                            distilled_at = clock_timestamp(), updated_at = now()
         where id = $1 and state = 'distilling'",
        lesson as _,
        kind as _,
        text.content,
        text.encrypted_as,
        &messages,
    );
    Ok(update.execute(conn).await?.rows_affected() == 1)
}

/// Sets the state of a lesson whose state is one of `from`. Returns `false` if the lesson does not exist or has another state.
pub async fn set_state(
    conn: &mut PgConnection,
    lesson: LessonId,
    from: &[LessonState],
    to: LessonState,
    reason: Option<&str>,
) -> sqlx::Result<bool> {
    let from: Vec<String> = from.iter().map(|state| state.as_str().to_owned()).collect();
    let update = sqlx::query!(
        "update lessons set state = $3, reason = $4, updated_at = now() where id = $1 and state = any($2)",
        lesson as _,
        &from,
        to as _,
        reason
    );
    Ok(update.execute(conn).await?.rows_affected() == 1)
}

/// Makes the lessons of a learning space that are being written pending again.
pub async fn reset_writing(conn: &mut PgConnection, project: ProjectId, space: LearningSpaceId) -> sqlx::Result<()> {
    sqlx::query!(
        "update lessons set state = 'pending', updated_at = now()
         where learning_space_id = $1 and project_id = $2 and state = 'writing'",
        space as _,
        project as _
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Reopens a failed lesson whose job is retried: it is distilled if it has no text yet, and otherwise pending. The learning status
/// of the session does not change, because it is final.
pub async fn reopen_failed(conn: &mut PgConnection, project: ProjectId, lesson: LessonId) -> sqlx::Result<()> {
    sqlx::query!(
        "update lessons set state = case when kind is null then 'distilling' else 'pending' end, reason = null, updated_at = now()
         where id = $1 and project_id = $2 and state = 'failed'",
        lesson as _,
        project as _
    )
    .execute(conn)
    .await
    .map(drop)
}

/// A lesson that was reopened.
pub struct ReopenedLesson {
    pub id: LessonId,
    pub learning_space: LearningSpaceId,
    /// The task if the lesson must be distilled; `None` if it must be written.
    pub task_to_distill: Option<TaskId>,
}

/// Reopens the failed lessons of a session as [`reopen_failed`] does, and resets those that are open but have no job. The caller
/// must enqueue the jobs of the returned lessons, which are ordered by their ids.
pub async fn reopen_failed_of_session(session: &mut LockedSession<'_>) -> sqlx::Result<Vec<ReopenedLesson>> {
    sqlx::query_as!(
        ReopenedLesson,
        r#"with reopened as (
               update lessons set state = case when kind is null then 'distilling' else 'pending' end, reason = null,
                                  updated_at = now()
               where project_id = $1 and session_id = $2
                 and (state = 'failed' or state in ('distilling', 'pending', 'writing') and not lesson_has_job(id))
               returning id, learning_space_id, task_id, kind)
           select id as "id!: LessonId", learning_space_id as "learning_space!: LearningSpaceId",
                  case when kind is null then task_id end as "task_to_distill: TaskId"
           from reopened order by id"#,
        session.project as _,
        session.id as _
    )
    .fetch_all(&mut ***session)
    .await
}

/// Returns `true` if the skill agent is working on another lesson of the learning space.
pub async fn is_writing_other(conn: &mut PgConnection, space: LearningSpaceId, lesson: LessonId) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"select exists (select 1 from lessons where learning_space_id = $1 and state = 'writing' and id <> $2
                          and lesson_has_job(id)) as "exists!""#,
        space as _,
        lesson as _
    )
    .fetch_one(conn)
    .await
}

/// Returns the number of lessons of a project whose storage format is not the given one.
pub async fn count_remaining(conn: &mut PgConnection, project: ProjectId, encrypted: bool) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"select count(*) as "count!" from lessons
           where project_id = $1 and content is not null and (encrypted_as is null) = $2"#,
        project as _,
        encrypted
    )
    .fetch_one(conn)
    .await
}

/// Locks up to `limit` lessons after `after` whose storage format is not the given one, in the order of their ids.
pub async fn lock_remaining(
    conn: &mut PgConnection,
    project: ProjectId,
    encrypted: bool,
    after: Uuid,
    limit: i64,
) -> sqlx::Result<Vec<StaleText>> {
    let texts = sqlx::query!(
        r#"select id, content as "content!", encrypted_as from lessons
           where project_id = $1 and content is not null and (encrypted_as is null) = $2 and id > $3
           order by id limit $4 for no key update"#,
        project as _,
        encrypted,
        after,
        limit
    );
    let texts = texts.map(|row| {
        let text = StoredText { content: row.content, encrypted_as: row.encrypted_as };
        StaleText { id: row.id, text }
    });
    texts.fetch_all(conn).await
}

/// Replaces the stored form of a lesson's text.
pub async fn set_text(conn: &mut PgConnection, lesson: Uuid, text: &StoredText) -> sqlx::Result<()> {
    sqlx::query!(
        "update lessons set content = $2, encrypted_as = $3 where id = $1",
        lesson,
        text.content,
        text.encrypted_as
    )
    .execute(conn)
    .await
    .map(drop)
}
