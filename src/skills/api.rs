//! The routes of skills.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{Request, State};
use serde::Deserialize;
use serde_json::{Map, Value};
use sqlx::PgConnection;

use super::store::{self, Row};
use super::{FileEntry, Skill, upload};
use crate::auth::Caller;
use crate::db::page::PageRequest;
use crate::disks;
use crate::disks::path;
use crate::error::{Error, Result};
use crate::http::extract::{Path, Query};
use crate::http::idempotency::Idempotency;
use crate::http::json::{long_object_in, validate_storable};
use crate::http::memory::Reservations;
use crate::http::multipart::{FormLimits, MultipartForm};
use crate::http::page::{Page, PageParams};
use crate::http::response::{self, CommandResult, Created, Data, Empty, PageBody, QueryResult};
use crate::ids::{DiskId, SkillId};
use crate::platform::Platform;
use crate::users::{self, Identifier};

pub const NOT_FOUND: Error = Error::NotFound("skill not found");
/// The refusal of a skill that is to be deleted.
const NOTHING_TO_DELETE: Error = Error::NotFound("agent skill not found or access denied");
/// The most files that the skills of one answer show.
pub const ANSWER_FILES: usize = 100_000;

/// The form of an upload.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes a form that is read field by field")]
pub struct CreateSkill {
    /// A zip archive with a SKILL.md, whose front matter has a name and a description. A folder that everything in it lies in
    /// is dropped.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
    /// Whose skill it is; made if there is no such user.
    #[schema(max_length = 1024)]
    user: Option<String>,
    /// A JSON object to keep with the skill, as text.
    meta: Option<String>,
}

/// Create a skill
///
/// From an archive. Up to 1 000 files and 50 MiB, packed and unpacked.
#[utoipa::path(post, path = "/api/v1/agent_skills", tag = "agent_skills",
    request_body(content = CreateSkill, content_type = "multipart/form-data"))]
pub async fn create_skill(
    State(platform): State<Platform>,
    caller: Caller,
    idempotency: Idempotency,
    request: Request,
) -> CommandResult<Created<Skill>> {
    caller.encryption.ensure_can_store()?;
    let reservations = Reservations::of(request.extensions());
    let mut form =
        MultipartForm::read(request, &platform.request_context, &FormLimits::archive(&platform.config.limits))
            .await?
            .unwrap_or_default();
    idempotency.replay_if_completed().await?;
    let file = form.files.pop().ok_or_else(|| Error::bad_request_with_reason("parameter error", "file is required"))?;
    let extension = file.name.len().checked_sub(4).and_then(|at| file.name.get(at..));
    if !extension.is_some_and(|extension| extension.eq_ignore_ascii_case(".zip")) {
        return Err(Error::bad_request_with_reason("parameter error", "file must be a zip archive").into());
    }
    let text = |name: &str| form.fields.get(name).and_then(Value::as_str).unwrap_or_default();
    let user = Some(text("user")).filter(|user| !user.is_empty());
    let user = user.map(|user| Identifier::try_from(user.to_owned())).transpose();
    let user = user.map_err(|wrong| Error::invalid_field("user", wrong))?;
    let meta = form.take_text("meta");
    let meta = user_meta(&platform, &reservations, meta).await?;
    let archive = Arc::new(file.content);
    let mut attempts = idempotency.attempts();
    loop {
        let (skill, contents) = upload::unpack(&platform, &caller.encryption, &archive).await?;
        let mut tx = attempts.begin().await?;
        let Some(blobs) = contents.claim(&mut tx).await? else {
            tx.rollback().await?;
            continue;
        };
        let user = users::named(&mut tx, caller.project, user.as_ref()).await?;
        let skill = skill.insert(&mut tx, &platform, caller.project, user, meta.clone(), &blobs).await?;
        return tx.commit(response::created(skill)).await;
    }
}

/// Parses the user metadata of a skill: a JSON object as text, or an empty text.
async fn user_meta(
    platform: &Platform,
    reservations: &Reservations,
    text: String,
) -> Result<Option<Map<String, Value>>> {
    let meta =
        long_object_in(&platform.request_context, reservations, "meta", "invalid meta JSON format", text).await?;
    if let Some(meta) = &meta {
        validate_storable("meta", meta, platform.config.limits.meta)?;
    }
    Ok(meta)
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListSkills {
    /// Only skills of this user.
    #[serde(default)]
    user: Option<String>,
}

/// List skills
///
/// A page ends early where its skills have very many files.
#[utoipa::path(get, path = "/api/v1/agent_skills", tag = "agent_skills", params(ListSkills, PageParams))]
pub async fn list_skills(
    State(platform): State<Platform>,
    caller: Caller,
    Query(query): Query<ListSkills>,
    Query(page): Query<PageParams>,
) -> QueryResult<PageBody<Skill>> {
    let page: PageRequest = page.parse(20, 200)?;
    let user = users::filter(query.user.as_deref())?;
    let mut conn = platform.db.acquire().await?;
    let rows = store::list(&mut conn, caller.project, user, &page).await?;
    let mut page = Page::new(rows, &page);
    let files = list_files(&mut conn, &platform, &page.items).await?;
    if files.len() < page.items.len() {
        page = page.truncate_to(files.len());
    }
    let skills = page.items.into_iter().zip(files);
    let items = skills.map(|(row, files)| Skill { disk_id: None, ..row.with_files(files) }).collect();
    Ok(response::page(Page::<Skill> { items, next_cursor: page.next_cursor, has_more: page.has_more }))
}

/// The files of each skill, by path, in one query; of fewer skills if they are too many for one answer.
pub async fn list_files(conn: &mut PgConnection, platform: &Platform, skills: &[Row]) -> Result<Vec<Vec<FileEntry>>> {
    let disks: Vec<_> = skills.iter().map(|row| row.disk_id).collect();
    let found = store::list_files(conn, &disks, platform.config.limits.list, ANSWER_FILES + 1).await?;
    let is_cut = found.len() > ANSWER_FILES;
    let mut files: HashMap<DiskId, Vec<FileEntry>> = HashMap::with_capacity(disks.len());
    let last = found.last().map(|file| file.disk_id);
    for file in found {
        let path = path::relative(&file.path, &file.filename);
        files.entry(file.disk_id).or_default().push(FileEntry { path, mime: file.mime });
    }
    // The last one may have more. The first is shown as far as it goes.
    let whole = disks.iter().position(|disk| is_cut && Some(*disk) == last).map_or(disks.len(), |at| at.max(1));
    Ok(disks[..whole].iter().map(|disk| files.remove(disk).unwrap_or_default()).collect())
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
    let row = store::get(&mut conn, caller.project, skill).await?.ok_or(NOT_FOUND)?;
    let files = list_files(&mut conn, &platform, std::slice::from_ref(&row)).await?.pop().unwrap_or_default();
    Ok(response::ok(row.with_files(files)))
}

/// Delete a skill
///
/// With its disk and every file on it; it leaves the learning spaces it is in.
#[utoipa::path(delete, path = "/api/v1/agent_skills/{skill_id}", tag = "agent_skills",
    params(("skill_id" = SkillId, Path)))]
pub async fn delete_skill(
    caller: Caller,
    idempotency: Idempotency,
    Path(skill): Path<SkillId>,
) -> CommandResult<Empty> {
    let mut tx = idempotency.begin().await?;
    // Its files go with the disk; the stored bytes are released to the sweep.
    let deleted = match store::get_disk(&mut tx, caller.project, skill).await? {
        Some(disk) => disks::store::delete(&mut tx, caller.project, disk).await?,
        None => false,
    };
    if deleted { tx.commit(response::ok_empty()).await } else { Err(NOTHING_TO_DELETE.into()) }
}
