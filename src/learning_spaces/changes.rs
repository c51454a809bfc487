//! The HTTP handler for the changes of a learning space's skills, with the lessons that have caused them.

use std::collections::HashMap;

use axum::extract::State;
use serde::{Deserialize, Serialize};

use super::changes_store::{self, ChangeFilter, ChangeLessonRow, ChangeRow, ChangedFileRow};
use super::{LEARNING_SPACE_NOT_FOUND, store};
use crate::auth::Caller;
use crate::db::page::PageRequest;
use crate::disks::changes::{Actor, FileOperation};
use crate::disks::path::join_relative;
use crate::encryption::ProjectEncryption;
use crate::error::{Error, Result};
use crate::http::extract::{LenientBool, Path, Query};
use crate::http::page::{Page, PageParams};
use crate::http::response::{self, PageBody, QueryResult};
use crate::ids::{ChangeId, LearningSpaceId, LessonId, MessageId, SessionId, SkillId, TaskId, VersionId};
use crate::lessons::LessonKind;
use crate::platform::Platform;
use crate::skills::api::MAX_FILES_PER_RESPONSE;
use crate::time::Timestamp;

/// The text that is returned in place of a lesson that cannot be decrypted.
const CORRUPT_PLACEHOLDER: &str = "This lesson cannot be displayed because its stored text is corrupt.";

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListChangesParams {
    /// Only changes of this skill.
    #[serde(default, rename = "skill_id")]
    #[param(value_type = Option<SkillId>)]
    skill: Option<String>,
    /// Only changes that a lesson from this session has caused.
    #[serde(default, rename = "session_id")]
    #[param(value_type = Option<SessionId>)]
    session: Option<String>,
    /// Only changes that a lesson from this task has caused.
    #[serde(default, rename = "task_id")]
    #[param(value_type = Option<TaskId>)]
    task: Option<String>,
}

impl ListChangesParams {
    /// # Errors
    /// Returns 400 with the name of the parameter if a parameter is not a UUID.
    fn parse(&self) -> Result<ChangeFilter> {
        Ok(ChangeFilter {
            skill: parse_id("skill_id", self.skill.as_deref())?,
            session: parse_id("session_id", self.session.as_deref())?,
            task: parse_id("task_id", self.task.as_deref())?,
        })
    }
}

/// Parses an optional id. An empty text counts as absent.
fn parse_id<T: std::str::FromStr<Err = &'static str>>(name: &str, text: Option<&str>) -> Result<Option<T>> {
    let id = text.filter(|text| !text.is_empty()).map(str::parse).transpose();
    id.map_err(|reason| Error::invalid_field(name, reason))
}

/// A change of a skill's files.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct SkillChange {
    id: ChangeId,
    at: Timestamp,
    actor: Actor,
    skill_id: SkillId,
    /// The current name of the skill.
    skill_name: String,
    /// What the change has done to each file.
    files: Vec<ChangedFile>,
    /// The lesson that has caused the change. Null if a request has made the change, or if the session of the lesson has been
    /// deleted.
    lesson: Option<ChangeLesson>,
    /// The task from which the lesson was learned.
    task_id: Option<TaskId>,
    /// The session from which the lesson was learned.
    session_id: Option<SessionId>,
    /// The messages on which the lesson is based, at most 200; empty for preferences that were stated before `learn`.
    message_ids: Vec<MessageId>,
    /// The language model that has written the lesson into the skill.
    model: Option<String>,
}

/// What a change has done to a file.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ChangedFile {
    #[schema(example = "scripts/run.py")]
    path: String,
    op: FileOperation,
    /// The previous path of a file that was moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    from_path: Option<String>,
    /// The version that the change has created; of a deleted file, its last version. Null if the versions of the file were
    /// deleted with it.
    version_id: Option<VersionId>,
}

/// The lesson that has caused a change.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ChangeLesson {
    id: LessonId,
    kind: LessonKind,
    text: String,
}

/// List the changes of a learning space's skills
///
/// Returns the changes that lessons of the space have caused, with the lesson, its task, its session and its messages, and the
/// changes that requests have made to the skills of the space. Changes of `meta` alone are not recorded. The newest changes are
/// first, unless `time_desc` is false. If the project is encrypted, its key is required. A page has fewer changes than `limit` if
/// the changes have more than 100 000 files in total.
#[utoipa::path(get, path = "/api/v1/learning_spaces/{space_id}/changes", tag = "learning_spaces",
    params(("space_id" = LearningSpaceId, Path), ListChangesParams, PageParams))]
pub async fn list_space_changes(
    State(platform): State<Platform>,
    caller: Caller,
    Path(space): Path<LearningSpaceId>,
    Query(filter): Query<ListChangesParams>,
    Query(page): Query<PageParams>,
) -> QueryResult<PageBody<SkillChange>> {
    let newest_first = LenientBool::unwrap_or(page.time_desc, true);
    let page = PageRequest { newest_first, ..page.parse(20, 200)? };
    let filter = filter.parse()?;
    let mut conn = platform.db.acquire().await?;
    if !store::exists(&mut conn, caller.project, space).await? {
        return Err(LEARNING_SPACE_NOT_FOUND);
    }
    // Whether the key is required must not depend on the lessons on the page.
    caller.encryption.encryption_key(caller.encryption.format)?;
    let rows = changes_store::list(&mut conn, caller.project, space, &filter, &page).await?;
    let mut page = Page::new(rows, &page);
    let ids: Vec<_> = page.items.iter().map(|row| row.id).collect();
    let files = changes_store::list_files(&mut conn, &ids, MAX_FILES_PER_RESPONSE + 1).await?;
    drop(conn);
    let files = group_by_change(&ids, files);
    if files.len() < page.items.len() {
        page = page.truncate_to(files.len());
    }
    let Page { items, next_cursor, has_more, cursors } = page;
    let items = items.into_iter().zip(files).map(|(row, files)| to_body(&caller.encryption, row, files));
    let items = items.collect::<Result<_>>()?;
    Ok(response::page(&Page::<SkillChange> { items, next_cursor, has_more, cursors }))
}

/// Returns the files of each change, in the order of `changes`. If there are more than [`MAX_FILES_PER_RESPONSE`] files, returns
/// lists for the first changes only, and at least one list.
fn group_by_change(changes: &[ChangeId], rows: Vec<ChangedFileRow>) -> Vec<Vec<ChangedFile>> {
    let is_truncated = rows.len() > MAX_FILES_PER_RESPONSE;
    let last = rows.last().map(|row| row.change);
    let mut files: HashMap<ChangeId, Vec<ChangedFile>> = HashMap::with_capacity(changes.len());
    for row in rows {
        let from = row.from_path.zip(row.from_filename);
        files.entry(row.change).or_default().push(ChangedFile {
            path: join_relative(&row.path, &row.filename),
            op: row.op,
            from_path: from.map(|(path, filename)| join_relative(&path, &filename)),
            version_id: row.version_id,
        });
    }
    // The list of the last change may be incomplete. It is omitted, unless it is the first list.
    let incomplete_index = changes.iter().position(|change| is_truncated && Some(*change) == last);
    let list_count = incomplete_index.map_or(changes.len(), |index| index.max(1));
    changes[..list_count].iter().map(|change| files.remove(change).unwrap_or_default()).collect()
}

/// # Errors
/// Returns 403 if the lesson is encrypted and the request has no key.
fn to_body(encryption: &ProjectEncryption, row: ChangeRow, files: Vec<ChangedFile>) -> Result<SkillChange> {
    let lesson = row.lesson.map(|lesson| to_lesson(encryption, lesson)).transpose()?;
    let ChangeRow { id, at, actor, skill_id, skill_name, task_id, session_id, message_ids, model, .. } = row;
    Ok(SkillChange { id, at, actor, skill_id, skill_name, files, lesson, task_id, session_id, message_ids, model })
}

/// Decrypts a lesson. Returns a placeholder in place of a text that is corrupt.
///
/// # Errors
/// Returns 403 if the lesson is encrypted and the request has no key.
fn to_lesson(encryption: &ProjectEncryption, lesson: ChangeLessonRow) -> Result<ChangeLesson> {
    let ChangeLessonRow { id, kind, text } = lesson;
    let text = match text.decrypt(encryption) {
        Err(Error::KeyRequired) => return Err(Error::KeyRequired),
        Err(err) => {
            tracing::error!(lesson.id = %id, error = %err, "failed to decrypt lesson; returned a placeholder");
            CORRUPT_PLACEHOLDER.into()
        }
        Ok(text) => text,
    };
    Ok(ChangeLesson { id, kind, text })
}
