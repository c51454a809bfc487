//! HTTP handlers that copy files between disks and sandboxes.

use axum::Extension;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::Map;

use super::artifacts::{ARTIFACT_NOT_FOUND, DISK_ACCESS_DENIED, ensure_can_upload, ensure_disk_access, store_file};
use super::path::FilePath;
use super::{Artifact, Disks, FileMode, files, store};
use crate::auth::Caller;
use crate::error::{Error, Result};
use crate::http::extract::{Json, Path, RequestBody};
use crate::http::idempotency::Idempotency;
use crate::http::middleware::TimeLimit;
use crate::http::response::{self, CommandResult, Created, Data};
use crate::ids::{DiskId, SandboxId};
use crate::sandboxes::provider::FileToWrite;
use crate::sandboxes::transfer::{TRANSFER_TIME, join_path, lazy_content};

#[derive(Deserialize, utoipa::ToSchema)]
pub struct DownloadToSandboxRequest {
    /// The directory of the file on the disk.
    #[schema(example = "/docs/")]
    #[serde(default)]
    file_path: String,
    #[schema(example = "notes.md")]
    #[serde(default)]
    filename: String,
    #[schema(value_type = SandboxId)]
    #[serde(default)]
    sandbox_id: String,
    /// The directory in the sandbox. It is created if it does not exist.
    #[schema(example = "/workspace")]
    #[serde(default)]
    sandbox_path: String,
}

impl RequestBody for DownloadToSandboxRequest {
    const HAS_FREE_FORM_OBJECT: bool = false;
}

#[derive(Serialize, utoipa::ToSchema)]
pub struct DownloadToSandboxResponse {
    /// `false` if the sandbox does not accept the file, for example because the directory cannot be written.
    success: bool,
    /// Why the sandbox does not accept the file; absent if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Copy a file to a sandbox
///
/// The copy keeps the name of the file, and whether it can be executed. It replaces an existing file.
#[utoipa::path(post, path = "/api/v1/disk/{disk_id}/artifact/download_to_sandbox", tag = "artifact",
    params(("disk_id" = DiskId, Path)), request_body = DownloadToSandboxRequest)]
pub async fn download_to_sandbox(
    State(ctx): State<Disks>,
    caller: Caller,
    idempotency: Idempotency,
    Extension(time_limit): Extension<TimeLimit>,
    Path(disk): Path<DiskId>,
    Json(body): Json<DownloadToSandboxRequest>,
) -> CommandResult<Data<DownloadToSandboxResponse>> {
    let parse = || -> Result<_> {
        let sandbox = parse_sandbox_id(&body.sandbox_id)?;
        require("sandbox_path", &body.sandbox_path)?;
        Ok((parse_path(&body.file_path, "filename", &body.filename)?, sandbox))
    };
    let (path, sandbox) = match parse() {
        Ok(parsed) => parsed,
        Err(err) => {
            ensure_disk_access(&ctx, &caller, disk).await?;
            return Err(err.into());
        }
    };
    idempotency.replay_if_completed().await?;
    time_limit.extend(TRANSFER_TIME);
    let mut conn = ctx.db.acquire().await?;
    let file = match files::get(&mut conn, caller.project, disk, &path).await? {
        Some(file) => file,
        None if store::exists(&mut conn, caller.project, disk).await? => return Err(ARTIFACT_NOT_FOUND.into()),
        None => return Err(DISK_ACCESS_DENIED.into()),
    };
    drop(conn);
    ctx.sandboxes.ensure_exists(&caller, sandbox).await?;
    let content = lazy_content(ctx.blobs.clone(), file.blob(), caller.encryption.kek.clone());
    let size = file.size.cast_unsigned();
    let is_executable = file.mode == FileMode::Executable;
    let file = FileToWrite { path: file.filename, size, is_executable, content };
    let reason = ctx.sandboxes.write_file(&caller, sandbox, &body.sandbox_path, file).await?;
    let mut tx = idempotency.begin().await?;
    ctx.sandboxes.record_write(&mut tx, &caller, sandbox).await?;
    tx.commit(response::ok(DownloadToSandboxResponse { success: reason.is_none(), reason })).await
}

#[derive(Deserialize, utoipa::ToSchema)]
pub struct UploadFromSandboxRequest {
    #[schema(value_type = SandboxId)]
    #[serde(default)]
    sandbox_id: String,
    /// The directory in the sandbox.
    #[schema(example = "/workspace")]
    #[serde(default)]
    sandbox_path: String,
    #[schema(example = "report.pdf")]
    #[serde(default)]
    sandbox_filename: String,
    /// The directory on the disk.
    #[schema(example = "/artifacts/")]
    #[serde(default)]
    file_path: String,
}

impl RequestBody for UploadFromSandboxRequest {
    const HAS_FREE_FORM_OBJECT: bool = false;
}

/// Copy a file from a sandbox
///
/// The copy keeps the name of the file, and whether its owner can execute it. It replaces an existing file on the disk.
#[utoipa::path(post, path = "/api/v1/disk/{disk_id}/artifact/upload_from_sandbox", tag = "artifact",
    params(("disk_id" = DiskId, Path)), request_body = UploadFromSandboxRequest)]
pub async fn upload_from_sandbox(
    State(ctx): State<Disks>,
    caller: Caller,
    idempotency: Idempotency,
    Extension(time_limit): Extension<TimeLimit>,
    Path(disk): Path<DiskId>,
    Json(body): Json<UploadFromSandboxRequest>,
) -> CommandResult<Created<Artifact>> {
    ensure_can_upload(&ctx, &caller, &idempotency, disk).await?;
    let sandbox = parse_sandbox_id(&body.sandbox_id)?;
    require("sandbox_path", &body.sandbox_path)?;
    let path = parse_path(&body.file_path, "sandbox_filename", &body.sandbox_filename)?;
    idempotency.replay_if_completed().await?;
    caller.encryption.ensure_can_store()?;
    time_limit.extend(TRANSFER_TIME);
    let source = join_path(&body.sandbox_path, &body.sandbox_filename);
    let file = ctx.sandboxes.read_file(&caller, sandbox, &source).await?;
    let mode = if file.is_executable { FileMode::Executable } else { FileMode::Regular };
    let response = store_file(&ctx, &idempotency, &caller, disk, (path, mode), &file.content, Map::new()).await?;
    let mut tx = ctx.db.begin().await?;
    ctx.sandboxes.record_read(&mut tx, &caller, sandbox, &source).await?;
    tx.commit().await?;
    Ok(response)
}

fn require(name: &str, value: &str) -> Result<()> {
    match value {
        "" => Err(Error::invalid_field(name, "is required")),
        value if value.contains('\0') => Err(Error::invalid_field(name, "must not contain the character NUL")),
        _ => Ok(()),
    }
}

fn parse_sandbox_id(text: &str) -> Result<SandboxId> {
    require("sandbox_id", text)?;
    text.parse().map_err(|reason| Error::bad_request_with_reason("invalid sandbox_id", reason))
}

/// Parses the path of a file on a disk that consists of a directory, with or without a slash at its end, and a file name.
fn parse_path(directory: &str, name_field: &str, name: &str) -> Result<FilePath> {
    require("file_path", directory)?;
    require(name_field, name)?;
    if name.contains('/') {
        return Err(Error::invalid_field(name_field, "must not contain a slash"));
    }
    let separator = if directory.ends_with('/') { "" } else { "/" };
    let path = FilePath::parse(&format!("{directory}{separator}{name}"));
    path.map_err(|err| match err {
        Error::BadRequest { detail, .. } => Error::BadRequest { msg: "invalid file_path".into(), detail },
        err => err,
    })
}
