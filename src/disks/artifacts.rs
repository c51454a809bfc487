//! The routes of one file. Those that answer with many are in `listing`.

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method};
use bytes::Bytes;
use chrono::Utc;
use futures_util::stream;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sqlx::PgConnection;

use super::api::NOT_FOUND;
use super::apply::{self, Cause, Change, FileChange, NewContent};
use super::files::{self, File};
use super::parse::Kind;
use super::path::FilePath;
use super::{Artifact, INFO, store};
use crate::auth::Caller;
use crate::blob::content::Key;
use crate::blob::spool::{Spool, media_type_of};
use crate::disks::Disks;
use crate::encryption::ProjectEncryption;
use crate::error::{Error, Result};
use crate::http::download::{self, DownloadMeta, FileResponse};
use crate::http::extract::{Flag, Int, Params, Path, Query, RequestBody};
use crate::http::idempotency::Idempotency;
use crate::http::json::{long_object_in, validate_storable};
use crate::http::memory::Reservations;
use crate::http::multipart::{FormLimits, MultipartForm};
use crate::http::response::{self, CommandResult, Created, Data, Empty, QueryResult};
use crate::ids::DiskId;
use crate::material::signed_urls::{self, SignedUrl, wrap_key_for_link};
use crate::platform::Platform;

/// The refusal of a disk that is not the caller's, where upstream has a 403.
const DENIED: Error = Error::Forbidden("access denied: disk does not belong to this project");
const NO_FILE: Error = Error::NotFound("artifact not found");

/// The form of an upload.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes a form that is read field by field")]
pub struct UpsertArtifact {
    /// The content; its name is the file's name.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
    /// The directory, with a slash at its end; what follows the last slash is ignored.
    #[schema(default = "/")]
    file_path: Option<String>,
    /// A JSON object to keep with the file, as text.
    meta: Option<String>,
}

/// Store a file
///
/// Replaces the one of that name, if there is one: readers see the old content until the new one is stored.
#[utoipa::path(post, path = "/api/v1/disk/{disk_id}/artifact", tag = "artifact", params(("disk_id" = DiskId, Path)),
    request_body(content = UpsertArtifact, content_type = "multipart/form-data"))]
pub async fn upsert_artifact(
    State(ctx): State<Disks>,
    caller: Caller,
    idempotency: Idempotency,
    Path(disk): Path<DiskId>,
    request: Request,
) -> CommandResult<Created<Artifact>> {
    let mut conn = ctx.db.acquire().await?;
    // What was answered before is answered again, even if the disk is gone.
    let there =
        store::exists(&mut conn, caller.project, disk).await? || idempotency.has_stored_response(&mut conn).await?;
    drop(conn);
    if !there {
        return Err(NOT_FOUND.into());
    }
    caller.encryption.ensure_can_store()?;
    let reservations = Reservations::of(request.extensions());
    let mut form = MultipartForm::read(request, &ctx.request_context, &FormLimits::one_file(&ctx.config.limits))
        .await?
        .unwrap_or_default();
    idempotency.replay_if_completed().await?;
    let meta = form.take_text("meta");
    let file = form.file("file").ok_or(Error::bad_request("file is required"))?;
    let text = |name: &str| form.fields.get(name).and_then(Value::as_str).unwrap_or_default();
    let at = FilePath::of_upload(text("file_path"), &file.name)?;
    let meta = user_meta(&ctx, &reservations, meta).await?;
    store_file(&ctx, &idempotency, &caller.encryption, disk, at, &file.content, meta).await
}

/// Puts the bytes into the object store and then, in one short transaction, the file on its disk.
async fn store_file(
    ctx: &Disks,
    idempotency: &Idempotency,
    encryption: &ProjectEncryption,
    disk: DiskId,
    at: FilePath,
    content: &Spool,
    meta: Map<String, Value>,
) -> CommandResult<Created<Artifact>> {
    let mime = media_type_of(content, at.filename());
    let size = i64::try_from(content.size).map_err(Error::internal)?;
    let mut attempts = idempotency.attempts();
    loop {
        let contents = ctx.blobs.ingest(encryption, stream::iter([content.clone()])).await?;
        let mut tx = attempts.begin().await?;
        let Some(blobs) = contents.claim(&mut tx).await? else {
            tx.rollback().await?;
            continue;
        };
        let sha256 = content.sha256.clone();
        let content = NewContent { content: blobs.get(&sha256)?, mime: mime.clone(), size, sha256 };
        let change = FileChange { at: at.clone(), change: Change::Put { content, meta: meta.clone() } };
        apply::apply(&mut tx, encryption.project, disk, &[change], Cause::REQUEST, ctx.config.limits.file_versions)
            .await?
            .map_err(|_| NOT_FOUND)?;
        let file = files::get(&mut tx, encryption.project, disk, &at).await?;
        let file = file.ok_or_else(|| Error::internal(anyhow::anyhow!("a file that was put is not there")))?;
        return tx.commit(response::created(Artifact::from(file))).await;
    }
}

/// Parses the user metadata of a file: a JSON object as text, or an empty text.
async fn user_meta(ctx: &Disks, reservations: &Reservations, text: String) -> Result<Map<String, Value>> {
    let meta = long_object_in(&ctx.request_context, reservations, "meta", "invalid meta JSON format", text)
        .await?
        .unwrap_or_default();
    if meta.contains_key(INFO) {
        return Err(Error::invalid_field("meta", format_args!("reserved key '{INFO}' is not allowed in user meta")));
    }
    validate_storable("meta", &meta, ctx.config.limits.meta)?;
    Ok(meta)
}

/// Reads a full path out of a parameter that must be there.
fn required_path(text: Option<&str>) -> Result<FilePath> {
    match text {
        None | Some("") => Err(Error::invalid_field("file_path", "is required")),
        Some(text) => FilePath::parse(text),
    }
}

/// The file of that path on a disk of the caller's.
async fn find(conn: &mut PgConnection, caller: &Caller, disk: DiskId, at: &FilePath) -> Result<File> {
    match files::get(conn, caller.project, disk, at).await? {
        Some(found) => Ok(found),
        None if store::exists(conn, caller.project, disk).await? => Err(NO_FILE),
        None => Err(DENIED),
    }
}

/// What is wrong with a request is told only to the disk's owner; a right one is not looked at twice.
async fn for_owner<T>(ctx: &Disks, caller: &Caller, disk: DiskId, parsed: Result<T>) -> Result<T> {
    if parsed.is_err() {
        check_disk(ctx, caller, disk).await?;
    }
    parsed
}

/// Whether the disk is the caller's.
pub async fn check_disk(ctx: &Disks, caller: &Caller, disk: DiskId) -> Result<()> {
    let mut conn = ctx.db.acquire().await?;
    if store::exists(&mut conn, caller.project, disk).await? { Ok(()) } else { Err(DENIED) }
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct GetArtifact {
    /// Directory and name.
    #[param(required = true, example = "/docs/notes.md")]
    #[serde(default)]
    file_path: Option<String>,
    /// Whether to answer with a link that needs no key.
    #[serde(default)]
    #[param(value_type = Option<bool>, default = true)]
    with_public_url: Option<Flag>,
    /// Whether to answer with the text, if it is one.
    #[serde(default)]
    #[param(value_type = Option<bool>, default = true)]
    with_content: Option<Flag>,
    /// How long the link works, in seconds.
    #[serde(default)]
    #[param(value_type = Option<u32>, minimum = 1, maximum = 604_800, default = 3600)]
    expire: Option<Int>,
}

/// The text of a file.
#[derive(Serialize, utoipa::ToSchema)]
pub struct FileContent {
    /// `text`, `json`, `csv` or `code`.
    r#type: &'static str,
    raw: String,
}

impl FileContent {
    pub(crate) fn new(kind: Kind, raw: String) -> Self {
        Self { r#type: kind.name(), raw }
    }
}

#[derive(Serialize, utoipa::ToSchema)]
pub struct GotArtifact {
    artifact: Artifact,
    #[serde(skip_serializing_if = "Option::is_none")]
    public_url: Option<String>,
    /// Left out of a file that is no text, or does not parse as what it claims to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<FileContent>,
}

/// Get a file's description, link and text
#[utoipa::path(get, path = "/api/v1/disk/{disk_id}/artifact", tag = "artifact",
    params(("disk_id" = DiskId, Path), GetArtifact))]
pub async fn get_artifact(
    State(ctx): State<Disks>,
    caller: Caller,
    Path(disk): Path<DiskId>,
    Query(query): Query<GetArtifact>,
) -> QueryResult<Data<GotArtifact>> {
    let parsed = || {
        let life = query.expire.and_then(Int::given).unwrap_or(3600);
        Ok((required_path(query.file_path.as_deref())?, signed_urls::end(Utc::now().timestamp(), life)?))
    };
    let (at, end) = for_owner(&ctx, &caller, disk, parsed()).await?;
    let mut conn = ctx.db.acquire().await?;
    let found = find(&mut conn, &caller, disk, &at).await?;
    drop(conn);
    let with_url = Flag::or(query.with_public_url, true);
    let public_url = with_url.then(|| public_url(&ctx, &caller, &found, end)).transpose()?;
    let content =
        if Flag::or(query.with_content, true) { content(&ctx, &caller.encryption, &found).await? } else { None };
    Ok(response::ok(GotArtifact { artifact: found.into(), public_url, content }))
}

/// A link to a file that needs no key, until `end` (Unix seconds).
pub fn public_url(platform: &Platform, caller: &Caller, file: &File, end: i64) -> Result<String> {
    let key = wrap_key_for_link(&platform.link_key, &caller.encryption, &file.stored())?;
    let link = SignedUrl {
        project: caller.project,
        sha256: file.sha256.clone(),
        mime: file.mime.clone(),
        filename: file.filename.clone(),
        key,
    };
    link.url(platform, end)
}

async fn content(platform: &Platform, encryption: &ProjectEncryption, found: &File) -> Result<Option<FileContent>> {
    let text = readable(platform, encryption, found).await?;
    Ok(text.map(|(kind, bytes)| FileContent::new(kind, String::from_utf8_lossy(&bytes).into_owned())))
}

/// The bytes of a file that is for reading, and as what; `None` for another one, and for one that does not parse as what it
/// claims to be.
pub(crate) async fn readable(
    platform: &Platform,
    encryption: &ProjectEncryption,
    file: &File,
) -> Result<Option<(Kind, Bytes)>> {
    let Some(kind) = Kind::of(&file.filename, &file.mime) else {
        return Ok(None);
    };
    let key = Key::Project(encryption.kek.as_deref());
    let (_permit, bytes) = platform.blobs.read_within_budget(key, &file.stored()).await?;
    let parse = move || kind.parses(&bytes).then_some((kind, bytes));
    tokio::task::spawn_blocking(parse).await.map_err(Error::internal)
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DownloadArtifact {
    /// Directory and name.
    #[param(required = true, example = "/docs/notes.md")]
    #[serde(default)]
    file_path: Option<String>,
}

/// Download a file
///
/// Knows `Range`, `If-None-Match` (the ETag is the content's SHA-256) and HEAD.
#[utoipa::path(get, path = "/api/v1/disk/{disk_id}/artifact/download", tag = "artifact",
    params(("disk_id" = DiskId, Path), DownloadArtifact))]
pub async fn download_artifact(
    State(ctx): State<Disks>,
    caller: Caller,
    Path(disk): Path<DiskId>,
    Query(query): Query<DownloadArtifact>,
    method: Method,
    headers: HeaderMap,
) -> Result<FileResponse> {
    let at = for_owner(&ctx, &caller, disk, required_path(query.file_path.as_deref())).await?;
    let mut conn = ctx.db.acquire().await?;
    let file = find(&mut conn, &caller, disk, &at).await?;
    drop(conn);
    let key = Key::Project(caller.encryption.kek.as_deref());
    let meta = DownloadMeta { mime: &file.mime, filename: &file.filename, sha256: &file.sha256, public: false };
    download::serve(&ctx.blobs, &file.stored(), key, &meta, &method, &headers).await
}

#[derive(Deserialize, utoipa::ToSchema)]
pub struct UpdateArtifact {
    /// Directory and name.
    #[schema(required = true, example = "/docs/notes.md")]
    #[serde(default)]
    file_path: Option<String>,
    /// A JSON object as text. It takes the place of all that was kept with the file.
    #[schema(required = true, example = "{\"author\": \"alice\"}")]
    #[serde(default)]
    meta: Option<String>,
}

impl RequestBody for UpdateArtifact {
    const IS_FREE_FORM: bool = true;
}

#[derive(Serialize, utoipa::ToSchema)]
pub struct UpdatedArtifact {
    artifact: Artifact,
}

/// Replace what is kept with a file
#[utoipa::path(put, path = "/api/v1/disk/{disk_id}/artifact", tag = "artifact", params(("disk_id" = DiskId, Path)),
    request_body = UpdateArtifact)]
pub async fn update_artifact(
    State(ctx): State<Disks>,
    caller: Caller,
    idempotency: Idempotency,
    Path(disk): Path<DiskId>,
    Extension(reservations): Extension<Reservations>,
    Params(body): Params<UpdateArtifact>,
) -> CommandResult<Data<UpdatedArtifact>> {
    let Some(meta) = body.meta.filter(|meta| !meta.is_empty()) else {
        return Err(Error::invalid_field("meta", "is required, a JSON object as text").into());
    };
    if body.file_path.as_deref().is_none_or(str::is_empty) {
        return Err(Error::invalid_field("file_path", "is required").into());
    }
    let parsed = async { Ok((required_path(body.file_path.as_deref())?, user_meta(&ctx, &reservations, meta).await?)) };
    let (at, meta) = for_owner(&ctx, &caller, disk, parsed.await).await?;
    let mut tx = idempotency.begin().await?;
    let change = FileChange { at: at.clone(), change: Change::SetMeta(meta) };
    apply::apply(&mut tx, caller.project, disk, &[change], Cause::REQUEST, ctx.config.limits.file_versions)
        .await?
        .map_err(|_| DENIED)?;
    let file = files::get(&mut tx, caller.project, disk, &at).await?.ok_or(NO_FILE)?;
    tx.commit(response::ok(UpdatedArtifact { artifact: file.into() })).await
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DeleteArtifact {
    /// Directory and name.
    #[param(example = "/docs/notes.md")]
    #[serde(default)]
    file_path: Option<String>,
    /// Another name of `file_path`.
    #[serde(default)]
    path: Option<String>,
}

impl RequestBody for DeleteArtifact {
    const IS_FREE_FORM: bool = false;
}

/// Delete a file
///
/// With all its versions.
#[utoipa::path(delete, path = "/api/v1/disk/{disk_id}/artifact", tag = "artifact",
    params(("disk_id" = DiskId, Path), DeleteArtifact))]
pub async fn delete_artifact(
    State(ctx): State<Disks>,
    caller: Caller,
    idempotency: Idempotency,
    Path(disk): Path<DiskId>,
    Params(query): Params<DeleteArtifact>,
) -> CommandResult<Empty> {
    let path = query.file_path.filter(|path| !path.is_empty()).or(query.path);
    if path.as_deref().is_none_or(str::is_empty) {
        return Err(Error::invalid_field("file_path", "is required").into());
    }
    let at = for_owner(&ctx, &caller, disk, required_path(path.as_deref())).await?;
    let mut tx = idempotency.begin().await?;
    find(&mut tx, &caller, disk, &at).await?;
    let change = FileChange { at, change: Change::Erase };
    apply::apply(&mut tx, caller.project, disk, &[change], Cause::REQUEST, ctx.config.limits.file_versions)
        .await?
        .map_err(|_| DENIED)?;
    tx.commit(response::ok_empty()).await
}
