//! HTTP handlers for skills.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{Request, State};
use serde::Deserialize;
use serde_json::{Map, Value};
use sqlx::PgConnection;

use super::create::SkillOrigin;
use super::store::{self, SkillRow};
use super::{FileEntry, Skill, upload};
use crate::auth::Caller;
use crate::db::page::PageRequest;
use crate::disks;
use crate::disks::path;
use crate::error::{Error, Result};
use crate::http::extract::{Path, Query};
use crate::http::idempotency::Idempotency;
use crate::http::json_fields::{parse_large_object_field, validate_storable};
use crate::http::memory::Reservations;
use crate::http::multipart::{FormLimits, MultipartForm};
use crate::http::page::{Page, PageParams};
use crate::http::response::{self, CommandResult, Created, Data, Empty, PageBody, QueryResult};
use crate::ids::{DiskId, SkillId};
use crate::platform::Platform;
use crate::users::{self, UserIdentifier};

pub const SKILL_NOT_FOUND: Error = Error::NotFound("skill not found");
/// The error of `delete_skill` for a skill that does not exist or belongs to another project.
const SKILL_TO_DELETE_NOT_FOUND: Error = Error::NotFound("agent skill not found or access denied");
/// The maximum number of entries in the file indexes of one response.
pub const MAX_FILES_PER_RESPONSE: usize = 100_000;

/// The multipart form of an upload.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes a form that is read field by field")]
pub struct CreateSkillRequest {
    /// A zip archive with a SKILL.md, whose front matter has a name and a description. A single top-level directory that contains
    /// all files is removed from their paths.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
    /// Identifier of the owning user. The user is created if it does not exist.
    #[schema(max_length = 1024)]
    user: Option<String>,
    /// Client-supplied metadata: a JSON object as text.
    meta: Option<String>,
}

/// Create a skill
///
/// Creates a skill from a zip archive. By default, the archive must not have more than 1 000 files, and neither the archive nor
/// the total of its files may be larger than 50 MiB.
#[utoipa::path(post, path = "/api/v1/agent_skills", tag = "agent_skills",
    request_body(content = CreateSkillRequest, content_type = "multipart/form-data"))]
pub async fn create_skill(
    State(platform): State<Platform>,
    caller: Caller,
    idempotency: Idempotency,
    request: Request,
) -> CommandResult<Created<Skill>> {
    caller.encryption.ensure_can_store()?;
    let reservations = Reservations::from_extensions(request.extensions());
    let mut form =
        MultipartForm::read(request, &platform.request_context, &FormLimits::archive(&platform.config.limits))
            .await?
            .unwrap_or_default();
    idempotency.replay_if_completed().await?;
    let file = form.files.pop().ok_or_else(|| Error::bad_request_with_reason("parameter error", "file is required"))?;
    let extension = file.name.len().checked_sub(4).and_then(|start| file.name.get(start..));
    if !extension.is_some_and(|extension| extension.eq_ignore_ascii_case(".zip")) {
        return Err(Error::bad_request_with_reason("parameter error", "file must be a zip archive").into());
    }
    let text_field = |name: &str| form.fields.get(name).and_then(Value::as_str).unwrap_or_default();
    let user = Some(text_field("user")).filter(|user| !user.is_empty());
    let user = user.map(|user| UserIdentifier::try_from(user.to_owned())).transpose();
    let user = user.map_err(|err| Error::invalid_field("user", err))?;
    let meta = form.take_text("meta");
    let meta = parse_user_meta(&platform, &reservations, meta).await?;
    let archive = Arc::new(file.content);
    let mut attempts = idempotency.tx_attempts();
    // Begins again if a blob cannot be made live because of a concurrent change.
    loop {
        let (prepared, ingest) = upload::ingest_archive(&platform, &caller.encryption, &archive).await?;
        let mut tx = attempts.begin().await?;
        let Some(blobs) = ingest.make_live(&mut tx).await? else {
            tx.rollback().await?;
            continue;
        };
        let user = users::resolve_or_create(&mut tx, caller.project, user.as_ref()).await?;
        let origin = SkillOrigin::request(&caller, user, meta.clone());
        let skill = prepared.insert(&mut tx, &platform, origin, &blobs).await?;
        return tx.commit(response::created(skill)).await;
    }
}

/// Parses the user metadata of a skill from a JSON object as text. An empty text and `null` result in `None`.
async fn parse_user_meta(
    platform: &Platform,
    reservations: &Reservations,
    text: String,
) -> Result<Option<Map<String, Value>>> {
    let invalid = "invalid meta JSON format";
    let meta = parse_large_object_field(&platform.request_context, reservations, "meta", invalid, text).await?;
    if let Some(meta) = &meta {
        validate_storable("meta", meta, platform.config.limits.max_meta_bytes)?;
    }
    Ok(meta)
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListSkillsParams {
    /// Only skills of this user.
    #[serde(default)]
    user: Option<String>,
}

/// List skills
///
/// A page has fewer skills than `limit` if the skills have more than 100 000 files in total.
#[utoipa::path(get, path = "/api/v1/agent_skills", tag = "agent_skills", params(ListSkillsParams, PageParams))]
pub async fn list_skills(
    State(platform): State<Platform>,
    caller: Caller,
    Query(query): Query<ListSkillsParams>,
    Query(page): Query<PageParams>,
) -> QueryResult<PageBody<Skill>> {
    let page: PageRequest = page.parse(20, 200)?;
    let user = users::validate_filter(query.user.as_deref())?;
    let mut conn = platform.db.acquire().await?;
    let rows = store::list(&mut conn, caller.project, user, &page).await?;
    let mut page = Page::new(rows, &page);
    let files = list_files(&mut conn, &platform, &page.items).await?;
    if files.len() < page.items.len() {
        page = page.truncate_to(files.len());
    }
    let skills = page.items.into_iter().zip(files);
    let items = skills.map(|(row, files)| Skill { disk_id: None, ..row.with_files(files) }).collect();
    Ok(response::page(&Page::<Skill> {
        items,
        next_cursor: page.next_cursor,
        has_more: page.has_more,
        cursors: page.cursors,
    }))
}

/// Returns a list of files for each skill, in the order of `skills`. The files are ordered by directory and file name. A list has
/// at most `max_list_entries` files; further files of the skill are omitted. If there are more than [`MAX_FILES_PER_RESPONSE`]
/// files in total, returns lists for the first skills only, and at least one list.
pub async fn list_files(
    conn: &mut PgConnection,
    platform: &Platform,
    skills: &[SkillRow],
) -> Result<Vec<Vec<FileEntry>>> {
    let disks: Vec<_> = skills.iter().map(|row| row.disk_id).collect();
    let per_disk_limit = platform.config.limits.max_list_entries;
    let rows = store::list_files(conn, &disks, per_disk_limit, MAX_FILES_PER_RESPONSE + 1).await?;
    let truncated = rows.len() > MAX_FILES_PER_RESPONSE;
    let mut files: HashMap<DiskId, Vec<FileEntry>> = HashMap::with_capacity(disks.len());
    let last_disk = rows.last().map(|file| file.disk_id);
    for file in rows {
        let path = path::join_relative(&file.path, &file.filename);
        files.entry(file.disk_id).or_default().push(FileEntry { path, mime: file.mime });
    }
    // If the rows are truncated, the list of the last disk may be incomplete. It is omitted, unless it is the first list.
    let incomplete_index = disks.iter().position(|disk| truncated && Some(*disk) == last_disk);
    let list_count = incomplete_index.map_or(disks.len(), |index| index.max(1));
    Ok(disks[..list_count].iter().map(|disk| files.remove(disk).unwrap_or_default()).collect())
}

/// Get a skill
#[utoipa::path(get, path = "/api/v1/agent_skills/{skill_id}", tag = "agent_skills",
    params(("skill_id" = SkillId, Path)))]
pub async fn get_skill(
    State(platform): State<Platform>,
    caller: Caller,
    Path(skill): Path<SkillId>,
) -> QueryResult<Data<Skill>> {
    let mut conn = platform.db.acquire().await?;
    let row = store::get(&mut conn, caller.project, skill).await?.ok_or(SKILL_NOT_FOUND)?;
    let files = list_files(&mut conn, &platform, std::slice::from_ref(&row)).await?.pop().unwrap_or_default();
    Ok(response::ok(row.with_files(files)))
}

/// Delete a skill
///
/// Deletes the skill with its disk and all files, and removes it from its learning spaces.
#[utoipa::path(delete, path = "/api/v1/agent_skills/{skill_id}", tag = "agent_skills",
    params(("skill_id" = SkillId, Path)))]
pub async fn delete_skill(
    caller: Caller,
    idempotency: Idempotency,
    Path(skill): Path<SkillId>,
) -> CommandResult<Empty> {
    let mut tx = idempotency.begin().await?;
    // Deleting the disk also deletes the skill and its files.
    let deleted = match store::get_disk(&mut tx, caller.project, skill).await? {
        Some(disk) => disks::store::delete(&mut tx, caller.project, disk).await?,
        None => false,
    };
    if deleted { tx.commit(response::ok_empty()).await } else { Err(SKILL_TO_DELETE_NOT_FOUND.into()) }
}
