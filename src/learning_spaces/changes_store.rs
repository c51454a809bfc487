//! SQL that reads the changes of the skills of a learning space.

use sqlx::PgConnection;

use crate::db::page::{Cursor, PageRequest, Paged};
use crate::disks::changes::{Actor, FileOperation};
use crate::encryption::stored_text::StoredText;
use crate::ids::{ChangeId, LearningSpaceId, LessonId, MessageId, ProjectId, SessionId, SkillId, TaskId, VersionId};
use crate::lessons::LessonKind;
use crate::time::Timestamp;

/// The filter of a list of changes.
#[derive(Clone, Copy, Debug)]
pub struct ChangeFilter {
    pub skill: Option<SkillId>,
    pub session: Option<SessionId>,
    pub task: Option<TaskId>,
}

/// A change of a skill, with the lesson that has caused it.
#[derive(Debug)]
pub struct ChangeRow {
    pub id: ChangeId,
    pub at: Timestamp,
    pub actor: Actor,
    pub skill_id: SkillId,
    pub skill_name: String,
    /// `None` if no lesson has caused the change, or if the lesson has been deleted.
    pub lesson: Option<ChangeLessonRow>,
    pub task_id: Option<TaskId>,
    pub session_id: Option<SessionId>,
    pub message_ids: Vec<MessageId>,
    pub model: Option<String>,
}

/// The lesson that has caused a change.
#[derive(Debug)]
pub struct ChangeLessonRow {
    pub id: LessonId,
    pub kind: LessonKind,
    pub text: StoredText,
}

impl Paged for ChangeRow {
    fn cursor(&self) -> Cursor {
        Cursor { created_at: self.at.0, id: self.id.0 }
    }
}

/// Reads a page of the changes of a learning space. `$is_after` compares the time and the id of a change with those of the
/// cursor, `$6` and `$7`.
///
/// The first part of the union are the changes that were made for the space, and the second one those of its skills that were
/// made for no space, such as those of requests. Only the former have a session or a task.
macro_rules! fetch_changes {
    ($is_after:literal, $order:literal, $conn:expr, $($parameter:expr),* $(,)?) => {
        sqlx::query!(
            r#"select c.id as "id!: ChangeId", c.at as "at!: Timestamp", c.actor as "actor!: Actor",
                      k.id as "skill_id!: SkillId", k.name as "skill_name!",
                      l.id as "lesson_id?: LessonId", l.kind as "lesson_kind?: LessonKind", l.content as "lesson_content?",
                      l.encrypted_as as "lesson_encrypted_as?", c.task_id as "task_id?: TaskId",
                      c.session_id as "session_id?: SessionId", c.message_ids as "message_ids!: Vec<MessageId>",
                      c.model as "model?"
               from (
                   (select c.* from changes c
                    where c.project_id = $1 and c.learning_space_id = $2
                      and ($3::uuid is null
                           or c.disk_id = (select s.disk_id from agent_skills s where s.id = $3 and s.project_id = $1))
                      and ($4::uuid is null or c.session_id = $4) and ($5::uuid is null or c.task_id = $5)
                      and (c.at, c.id) "# + $is_after + r#"
                    order by c.at "# + $order + ", c.id " + $order + r#" limit $8)
                   union all
                   (select c.* from learning_space_skills m join agent_skills s on s.id = m.skill_id
                    cross join lateral (
                        -- The first column of the order is always null. It is here because the index has it.
                        select c.* from changes c
                        where c.disk_id = s.disk_id and c.learning_space_id is null
                          and (c.at, c.id) "# + $is_after + r#"
                        order by c.learning_space_id "# + $order + ", c.at " + $order + ", c.id " + $order + r#" limit $8) c
                    where m.learning_space_id = $2 and ($3::uuid is null or m.skill_id = $3)
                      and $4::uuid is null and $5::uuid is null)
               ) c
               join agent_skills k on k.disk_id = c.disk_id
               left join lessons l on l.id = c.lesson_id
               order by c.at "# + $order + ", c.id " + $order + " limit $8",
            $($parameter),*
        )
        .map(|row| ChangeRow {
            id: row.id,
            at: row.at,
            actor: row.actor,
            skill_id: row.skill_id,
            skill_name: row.skill_name,
            lesson: match (row.lesson_id, row.lesson_kind, row.lesson_content) {
                (Some(id), Some(kind), Some(content)) => {
                    let text = StoredText { content, encrypted_as: row.lesson_encrypted_as };
                    Some(ChangeLessonRow { id, kind, text })
                }
                _ => None,
            },
            task_id: row.task_id,
            session_id: row.session_id,
            message_ids: row.message_ids,
            model: row.model,
        })
        .fetch_all($conn)
        .await
    };
}

/// Returns a page of the changes of a learning space's skills, in the order of time: the changes that were made for the space,
/// and those that requests have made to the skills that are in the space now.
pub async fn list(
    conn: &mut PgConnection,
    project: ProjectId,
    space: LearningSpaceId,
    filter: &ChangeFilter,
    page: &PageRequest,
) -> sqlx::Result<Vec<ChangeRow>> {
    let ChangeFilter { skill, session, task } = *filter;
    let (after_time, after_id) = page.after_params();
    let limit = page.fetch_limit();
    macro_rules! fetch {
        ($is_after:literal, $order:literal) => {
            fetch_changes!(
                $is_after,
                $order,
                conn,
                project as _,
                space as _,
                skill as _,
                session as _,
                task as _,
                after_time,
                after_id,
                limit
            )
        };
    }
    if page.newest_first {
        fetch!(
            "< (coalesce($6, 'infinity'::timestamptz), coalesce($7, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))",
            "desc"
        )
    } else {
        fetch!(
            "> (coalesce($6, '-infinity'::timestamptz), coalesce($7, '00000000-0000-0000-0000-000000000000'::uuid))",
            "asc"
        )
    }
}

/// What a change has done to a file.
#[derive(Debug)]
pub struct ChangedFileRow {
    pub change: ChangeId,
    pub path: String,
    pub filename: String,
    pub op: FileOperation,
    pub from_path: Option<String>,
    pub from_filename: Option<String>,
    pub version_id: Option<VersionId>,
}

/// Returns the files of several changes, in the order of `changes`, at most `limit` in total.
pub async fn list_files(
    conn: &mut PgConnection,
    changes: &[ChangeId],
    limit: usize,
) -> sqlx::Result<Vec<ChangedFileRow>> {
    sqlx::query_as!(
        ChangedFileRow,
        r#"select f.change_id as "change: ChangeId", f.path, f.filename, f.op as "op: FileOperation", f.from_path,
                  f.from_filename, f.version_id as "version_id: VersionId"
           from unnest($1::uuid[]) with ordinality as c (id, n) join change_files f on f.change_id = c.id
           order by c.n, f.position limit $2"#,
        changes as _,
        i64::try_from(limit).unwrap_or(i64::MAX),
    )
    .fetch_all(conn)
    .await
}
