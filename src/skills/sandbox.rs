//! The HTTP handler that copies a skill to a sandbox.

use axum::Extension;
use axum::extract::State;
use serde::{Deserialize, Serialize};

use super::files::RawSkillId;
use super::store;
use crate::auth::Caller;
use crate::disks::FileMode;
use crate::disks::files;
use crate::disks::path::join_relative;
use crate::error::{Error, Result};
use crate::http::extract::{Json, Path, RequestBody};
use crate::http::idempotency::Idempotency;
use crate::http::middleware::TimeLimit;
use crate::http::response::{self, CommandResult, Data};
use crate::ids::{SandboxId, SkillId};
use crate::sandboxes::Sandboxes;
use crate::sandboxes::provider::FileToWrite;
use crate::sandboxes::transfer::{TRANSFER_TIME, lazy_content};

/// The directory of skills in a sandbox.
const SKILLS_DIR: &str = "/skills";

#[derive(Deserialize, utoipa::ToSchema)]
pub struct DownloadSkillToSandboxRequest {
    #[schema(value_type = SandboxId)]
    #[serde(default)]
    sandbox_id: String,
}

impl RequestBody for DownloadSkillToSandboxRequest {
    const HAS_FREE_FORM_OBJECT: bool = false;
}

#[derive(Serialize, utoipa::ToSchema)]
pub struct DownloadSkillToSandboxResponse {
    success: bool,
    /// The directory of the skill in the sandbox, without a slash at its end. Commands find it at this path.
    #[schema(example = "/skills/pdf-forms")]
    dir_path: String,
    name: String,
    description: String,
}

/// Copy a skill to a sandbox
///
/// Copies all files of the skill to a new directory, which appears when it is complete. Returns 409 if the directory exists.
#[utoipa::path(post, path = "/api/v1/agent_skills/{skill_id}/download_to_sandbox", tag = "agent_skills",
    params(("skill_id" = SkillId, Path)), request_body = DownloadSkillToSandboxRequest)]
pub async fn download_skill_to_sandbox(
    State(ctx): State<Sandboxes>,
    caller: Caller,
    idempotency: Idempotency,
    Extension(time_limit): Extension<TimeLimit>,
    Path(skill): Path<RawSkillId>,
    Json(body): Json<DownloadSkillToSandboxRequest>,
) -> CommandResult<Data<DownloadSkillToSandboxResponse>> {
    let skill: SkillId = skill.as_str().parse().map_err(|_| Error::bad_request("invalid skill id"))?;
    if body.sandbox_id.is_empty() {
        return Err(Error::invalid_field("sandbox_id", "is required").into());
    }
    let sandbox: Result<SandboxId, _> = body.sandbox_id.parse();
    let sandbox = sandbox.map_err(|reason| Error::bad_request_with_reason("invalid sandbox_id", reason))?;
    idempotency.replay_if_completed().await?;
    time_limit.extend(TRANSFER_TIME);
    let mut conn = ctx.db.acquire().await?;
    let row = store::get(&mut conn, caller.project, skill).await?.ok_or(Error::NotFound("skill not found"))?;
    let max_files = ctx.config.limits.max_skill_files;
    let rows = files::list_all(&mut conn, row.disk_id, max_files.saturating_add(1)).await?;
    drop(conn);
    if rows.len() > max_files {
        return Err(Error::PayloadTooLarge(format!("the skill has more than {max_files} files")).into());
    }
    let mut dir_path = format!("{SKILLS_DIR}/{}", row.name);
    if !rows.is_empty() {
        ctx.ensure_exists(&caller, sandbox).await?;
        let files = rows.into_iter().map(|file| FileToWrite {
            path: join_relative(&file.path, &file.filename),
            size: file.size.cast_unsigned(),
            is_executable: file.mode == FileMode::Executable,
            content: lazy_content(ctx.blobs.clone(), file.blob(), caller.encryption.kek.clone()),
        });
        let files = files.collect();
        let written = ctx.write_dir(&caller, sandbox, [SKILLS_DIR, &row.name], files).await?;
        dir_path = written.ok_or_else(|| {
            let msg = format!(
                "skill directory '{dir_path}' already exists in sandbox, please make sure you don't download the same \
                 skill again"
            );
            Error::Conflict(msg.into())
        })?;
    }
    let mut tx = idempotency.begin().await?;
    ctx.record_write(&mut tx, &caller, sandbox).await?;
    let response =
        DownloadSkillToSandboxResponse { success: true, dir_path, name: row.name, description: row.description };
    tx.commit(response::ok(response)).await
}
