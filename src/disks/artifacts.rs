//! HTTP handlers for a single artifact. The handlers that return several are in [`listing`](super::listing).

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method};
use chrono::Utc;
use futures_util::stream;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sqlx::PgConnection;

use super::api::DISK_NOT_FOUND;
use super::apply::{self, Change, FileChange, NewContent};
use super::changes::Cause;
use super::file_content::{FileContent, read_content};
use super::files::{self, ArtifactRow};
use super::path::FilePath;
use super::{ARTIFACT_INFO_KEY, Artifact, FileMode, store};
use crate::auth::Caller;
use crate::blob::content::ContentKey;
use crate::blob::spool::{Spool, detect_media_type};
use crate::disks::Disks;
use crate::error::{Error, Result};
use crate::http::download::{self, FileInfo, FileResponse};
use crate::http::extract::{LenientBool, LenientInt, Path, Query, QueryAndBody, RequestBody};
use crate::http::idempotency::Idempotency;
use crate::http::json_fields::{parse_large_object_field, validate_storable};
use crate::http::memory::Reservations;
use crate::http::multipart::{FormLimits, MultipartForm};
use crate::http::response::{self, CommandResult, Created, Data, Empty, QueryResult};
use crate::ids::DiskId;
use crate::material::signed_urls::{self, SignedUrl, wrap_dek_for_link};
use crate::platform::Platform;

/// The error for a disk that does not exist or belongs to another project, on routes where upstream returns 403.
pub const DISK_ACCESS_DENIED: Error = Error::Forbidden("access denied: disk does not belong to this project");
pub const ARTIFACT_NOT_FOUND: Error = Error::NotFound("artifact not found");

/// The multipart form of an upload.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes a form that is read field by field")]
pub struct UpsertArtifactRequest {
    /// The content. The `filename` of this form field becomes the file name on the disk.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
    /// The directory, with a trailing slash; text after the last slash is ignored.
    #[schema(default = "/")]
    file_path: Option<String>,
    /// Client-supplied metadata: a JSON object as text.
    meta: Option<String>,
}

/// Checks that a disk exists, or that the response of the request is stored, which is replayed even if the disk was deleted.
///
/// # Errors
/// Returns 404 if neither is the case.
pub(super) async fn ensure_can_upload(
    ctx: &Disks,
    caller: &Caller,
    idempotency: &Idempotency,
    disk: DiskId,
) -> Result<()> {
    let mut conn = ctx.db.acquire().await?;
    let may_continue =
        store::exists(&mut conn, caller.project, disk).await? || idempotency.has_stored_response(&mut conn).await?;
    if may_continue { Ok(()) } else { Err(DISK_NOT_FOUND) }
}

/// Upload a file
///
/// Replaces an existing file with the same path atomically.
#[utoipa::path(post, path = "/api/v1/disk/{disk_id}/artifact", tag = "artifact", params(("disk_id" = DiskId, Path)),
    request_body(content = UpsertArtifactRequest, content_type = "multipart/form-data"))]
pub async fn upsert_artifact(
    State(ctx): State<Disks>,
    caller: Caller,
    idempotency: Idempotency,
    Path(disk): Path<DiskId>,
    request: Request,
) -> CommandResult<Created<Artifact>> {
    ensure_can_upload(&ctx, &caller, &idempotency, disk).await?;
    caller.encryption.ensure_can_store()?;
    let reservations = Reservations::from_extensions(request.extensions());
    let mut form = MultipartForm::read(request, &ctx.request_context, &FormLimits::one_file(&ctx.config.limits))
        .await?
        .unwrap_or_default();
    idempotency.replay_if_completed().await?;
    let meta = form.take_text("meta");
    let file = form.file("file").ok_or(Error::bad_request("file is required"))?;
    let text_field = |name: &str| form.fields.get(name).and_then(Value::as_str).unwrap_or_default();
    let path = FilePath::from_upload(text_field("file_path"), &file.name)?;
    let meta = parse_user_meta(&ctx, &reservations, meta).await?;
    store_file(&ctx, &idempotency, &caller, disk, (path, FileMode::Regular), &file.content, meta).await
}

/// Stores the content in the object store, and then the file on its disk in a short transaction. Begins again if the blob cannot
/// be made live because of a concurrent change.
pub async fn store_file(
    ctx: &Disks,
    idempotency: &Idempotency,
    caller: &Caller,
    disk: DiskId,
    (path, mode): (FilePath, FileMode),
    content: &Spool,
    meta: Map<String, Value>,
) -> CommandResult<Created<Artifact>> {
    let mime = detect_media_type(content, path.filename());
    let size = i64::try_from(content.size).map_err(Error::internal)?;
    let mut attempts = idempotency.tx_attempts();
    loop {
        let ingest = ctx.blobs.ingest(&caller.encryption, stream::iter([content.clone()])).await?;
        let mut tx = attempts.begin().await?;
        let Some(blobs) = ingest.make_live(&mut tx).await? else {
            tx.rollback().await?;
            continue;
        };
        let sha256 = content.sha256.clone();
        let new_content = NewContent { blob: blobs.get(&sha256)?, mime: mime.clone(), size, sha256 };
        let put = Change::Put { content: new_content, meta: meta.clone(), mode: Some(mode) };
        let change = FileChange { path: path.clone(), change: put };
        let cause = Cause::request(caller.request_id.as_ref());
        apply::apply(&mut tx, caller.project, disk, &[change], cause, ctx.config.limits.max_file_versions)
            .await?
            .map_err(|_| DISK_NOT_FOUND)?;
        let file = files::get(&mut tx, caller.project, disk, &path).await?;
        let file =
            file.ok_or_else(|| Error::internal(anyhow::anyhow!("a file that was just stored does not exist")))?;
        return tx.commit(response::created(Artifact::from(file))).await;
    }
}

/// Parses the user metadata of a file from a JSON object as text. An empty text and `null` result in an empty object.
async fn parse_user_meta(ctx: &Disks, reservations: &Reservations, text: String) -> Result<Map<String, Value>> {
    let meta = parse_large_object_field(&ctx.request_context, reservations, "meta", "invalid meta JSON format", text)
        .await?
        .unwrap_or_default();
    if meta.contains_key(ARTIFACT_INFO_KEY) {
        return Err(Error::invalid_field(
            "meta",
            format_args!("reserved key '{ARTIFACT_INFO_KEY}' is not allowed in user meta"),
        ));
    }
    validate_storable("meta", &meta, ctx.config.limits.max_meta_bytes)?;
    Ok(meta)
}

/// Parses the parameter `file_path`, which is required. Returns 400 if it is missing or invalid.
fn parse_required_path(text: Option<&str>) -> Result<FilePath> {
    match text {
        None | Some("") => Err(Error::invalid_field("file_path", "is required")),
        Some(text) => FilePath::parse(text),
    }
}

/// Returns the file with this path. Returns 404 if it does not exist, and 403 if the disk does not belong to the caller's
/// project.
async fn find_artifact(conn: &mut PgConnection, caller: &Caller, disk: DiskId, path: &FilePath) -> Result<ArtifactRow> {
    match files::get(conn, caller.project, disk, path).await? {
        Some(file) => Ok(file),
        None if store::exists(conn, caller.project, disk).await? => Err(ARTIFACT_NOT_FOUND),
        None => Err(DISK_ACCESS_DENIED),
    }
}

/// Returns `parsed`. If it is an error and the disk does not belong to the caller's project, returns 403 instead. Valid requests
/// skip the check of the disk here, because their handlers check it later.
async fn check_access_before_error<T>(ctx: &Disks, caller: &Caller, disk: DiskId, parsed: Result<T>) -> Result<T> {
    if parsed.is_err() {
        ensure_disk_access(ctx, caller, disk).await?;
    }
    parsed
}

/// Returns 403 unless the disk belongs to the caller's project.
pub async fn ensure_disk_access(ctx: &Disks, caller: &Caller, disk: DiskId) -> Result<()> {
    let mut conn = ctx.db.acquire().await?;
    if store::exists(&mut conn, caller.project, disk).await? { Ok(()) } else { Err(DISK_ACCESS_DENIED) }
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct GetArtifactParams {
    /// The full path: directory and file name.
    #[param(required = true, example = "/docs/notes.md")]
    #[serde(default)]
    file_path: Option<String>,
    /// Include a public link, which requires no API key.
    #[serde(default)]
    #[param(value_type = Option<bool>, default = true)]
    with_public_url: Option<LenientBool>,
    /// Include the content, if the file is a text file.
    #[serde(default)]
    #[param(value_type = Option<bool>, default = true)]
    with_content: Option<LenientBool>,
    /// Lifetime of the public link in seconds.
    #[serde(default)]
    #[param(value_type = Option<u32>, minimum = 1, maximum = 604_800, default = 3600)]
    expire: Option<LenientInt>,
}

#[derive(Serialize, utoipa::ToSchema)]
pub struct GetArtifactResponse {
    artifact: Artifact,
    /// The public link. Absent if `with_public_url` is false.
    #[serde(skip_serializing_if = "Option::is_none")]
    public_url: Option<String>,
    /// Absent if `with_content` is false, or if the file is not a text file or cannot be parsed as its type.
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<FileContent>,
}

/// Get a file's metadata, public link and text
#[utoipa::path(get, path = "/api/v1/disk/{disk_id}/artifact", tag = "artifact",
    params(("disk_id" = DiskId, Path), GetArtifactParams))]
pub async fn get_artifact(
    State(ctx): State<Disks>,
    caller: Caller,
    Path(disk): Path<DiskId>,
    Query(query): Query<GetArtifactParams>,
) -> QueryResult<Data<GetArtifactResponse>> {
    let parsed = || {
        let ttl = query.expire.and_then(LenientInt::get).unwrap_or(3600);
        Ok((parse_required_path(query.file_path.as_deref())?, signed_urls::expires_at(Utc::now().timestamp(), ttl)?))
    };
    let (path, expires_at) = check_access_before_error(&ctx, &caller, disk, parsed()).await?;
    let mut conn = ctx.db.acquire().await?;
    let file = find_artifact(&mut conn, &caller, disk, &path).await?;
    drop(conn);
    let with_url = LenientBool::unwrap_or(query.with_public_url, true);
    let public_url = with_url.then(|| create_public_url(&ctx, &caller, &file, expires_at)).transpose()?;
    let content = if LenientBool::unwrap_or(query.with_content, true) {
        read_content(&ctx, &caller.encryption, &file).await?
    } else {
        None
    };
    Ok(response::ok(GetArtifactResponse { artifact: file.into(), public_url, content }))
}

/// Returns a public link to the file, which is valid until `expires_at` (Unix seconds).
///
/// # Errors
/// Returns 403 if the file is encrypted and the request has no key, and 500 if its wrapped key is corrupt.
pub fn create_public_url(platform: &Platform, caller: &Caller, file: &ArtifactRow, expires_at: i64) -> Result<String> {
    let wrapped_dek = wrap_dek_for_link(&platform.link_keys, &caller.encryption, &file.blob())?;
    let link = SignedUrl {
        project: caller.project,
        sha256: file.sha256.clone(),
        mime: file.mime.clone(),
        filename: file.filename.clone(),
        wrapped_dek,
    };
    link.url(platform, expires_at)
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DownloadArtifactParams {
    /// The full path: directory and file name.
    #[param(required = true, example = "/docs/notes.md")]
    #[serde(default)]
    file_path: Option<String>,
}

/// Download a file
///
/// Supports `Range`, `If-None-Match` (the ETag is the SHA-256 of the content) and HEAD.
#[utoipa::path(get, path = "/api/v1/disk/{disk_id}/artifact/download", tag = "artifact",
    params(("disk_id" = DiskId, Path), DownloadArtifactParams))]
pub async fn download_artifact(
    State(ctx): State<Disks>,
    caller: Caller,
    Path(disk): Path<DiskId>,
    Query(query): Query<DownloadArtifactParams>,
    method: Method,
    headers: HeaderMap,
) -> Result<FileResponse> {
    let path = parse_required_path(query.file_path.as_deref());
    let path = check_access_before_error(&ctx, &caller, disk, path).await?;
    let mut conn = ctx.db.acquire().await?;
    let file = find_artifact(&mut conn, &caller, disk, &path).await?;
    drop(conn);
    let key = ContentKey::Kek(caller.encryption.kek.as_deref());
    let info = FileInfo { mime: &file.mime, filename: &file.filename, sha256: &file.sha256, is_public: false };
    download::serve(&ctx.blobs, &file.blob(), key, &info, &method, &headers).await
}

#[derive(Deserialize, utoipa::ToSchema)]
pub struct UpdateArtifactRequest {
    /// The full path: directory and file name.
    #[schema(required = true, example = "/docs/notes.md")]
    #[serde(default)]
    file_path: Option<String>,
    /// A JSON object as text. It replaces all client-supplied metadata of the file.
    #[schema(required = true, example = "{\"author\": \"alice\"}")]
    #[serde(default)]
    meta: Option<String>,
}

impl RequestBody for UpdateArtifactRequest {
    const HAS_FREE_FORM_OBJECT: bool = true;
}

#[derive(Serialize, utoipa::ToSchema)]
pub struct UpdateArtifactResponse {
    artifact: Artifact,
}

/// Replace a file's metadata
#[utoipa::path(put, path = "/api/v1/disk/{disk_id}/artifact", tag = "artifact", params(("disk_id" = DiskId, Path)),
    request_body = UpdateArtifactRequest)]
pub async fn update_artifact(
    State(ctx): State<Disks>,
    caller: Caller,
    idempotency: Idempotency,
    Path(disk): Path<DiskId>,
    Extension(reservations): Extension<Reservations>,
    QueryAndBody(body): QueryAndBody<UpdateArtifactRequest>,
) -> CommandResult<Data<UpdateArtifactResponse>> {
    let Some(meta) = body.meta.filter(|meta| !meta.is_empty()) else {
        return Err(Error::invalid_field("meta", "is required; expected a JSON object as text").into());
    };
    if body.file_path.as_deref().is_none_or(str::is_empty) {
        return Err(Error::invalid_field("file_path", "is required").into());
    }
    let parsed = async {
        let path = parse_required_path(body.file_path.as_deref())?;
        // The values of the body no longer exist: `meta` is text, which is parsed here.
        reservations.release_values();
        Ok((path, parse_user_meta(&ctx, &reservations, meta).await?))
    };
    let (path, meta) = check_access_before_error(&ctx, &caller, disk, parsed.await).await?;
    let mut tx = idempotency.begin().await?;
    let change = FileChange { path: path.clone(), change: Change::SetMeta(meta) };
    let cause = Cause::request(caller.request_id.as_ref());
    apply::apply(&mut tx, caller.project, disk, &[change], cause, ctx.config.limits.max_file_versions)
        .await?
        .map_err(|_| DISK_ACCESS_DENIED)?;
    let file = files::get(&mut tx, caller.project, disk, &path).await?.ok_or(ARTIFACT_NOT_FOUND)?;
    tx.commit(response::ok(UpdateArtifactResponse { artifact: file.into() })).await
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DeleteArtifactParams {
    /// The full path: directory and file name.
    #[param(example = "/docs/notes.md")]
    #[serde(default)]
    file_path: Option<String>,
    /// Alias of `file_path`.
    #[serde(default)]
    path: Option<String>,
}

impl RequestBody for DeleteArtifactParams {
    const HAS_FREE_FORM_OBJECT: bool = false;
}

/// Delete a file
///
/// Deletes the file with all its versions.
#[utoipa::path(delete, path = "/api/v1/disk/{disk_id}/artifact", tag = "artifact",
    params(("disk_id" = DiskId, Path), DeleteArtifactParams))]
pub async fn delete_artifact(
    State(ctx): State<Disks>,
    caller: Caller,
    idempotency: Idempotency,
    Path(disk): Path<DiskId>,
    QueryAndBody(query): QueryAndBody<DeleteArtifactParams>,
) -> CommandResult<Empty> {
    let path = query.file_path.filter(|path| !path.is_empty()).or(query.path);
    if path.as_deref().is_none_or(str::is_empty) {
        return Err(Error::invalid_field("file_path", "is required").into());
    }
    let path = check_access_before_error(&ctx, &caller, disk, parse_required_path(path.as_deref())).await?;
    let mut tx = idempotency.begin().await?;
    find_artifact(&mut tx, &caller, disk, &path).await?;
    let change = FileChange { path, change: Change::Delete };
    let cause = Cause::request(caller.request_id.as_ref());
    apply::apply(&mut tx, caller.project, disk, &[change], cause, ctx.config.limits.max_file_versions)
        .await?
        .map_err(|_| DISK_ACCESS_DENIED)?;
    tx.commit(response::ok_empty()).await
}
