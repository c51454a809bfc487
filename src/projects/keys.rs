//! The rotation and the reset of a project's key. The old key stops working immediately, in every process. Encrypted content
//! stays readable after a rotation, because the new key contains the same master key.

use axum::extract::State;
use serde::Serialize;

use super::store::{self, HashedKey};
use crate::auth::Caller;
use crate::crypto::{KEY_PREFIX, MasterKey, ProjectKey};
use crate::error::{Error, Result, UNAUTHORIZED};
use crate::http::extract::Path;
use crate::http::idempotency::Idempotency;
use crate::http::response::{self, CommandResult, Data};
use crate::ids::ProjectId;
use crate::projects::Projects;

/// A new project key.
pub struct GeneratedKey {
    pub hashed: HashedKey,
    /// The key as clients send it, with the prefix.
    pub secret_key: String,
}

/// Generates a key with an existing master key, or with a new one.
///
/// # Errors
/// Returns an error if the system's random number generator fails.
pub async fn generate_key(ctx: &Projects, master_key: Option<MasterKey>) -> Result<GeneratedKey> {
    let ctx = ctx.clone();
    let generate = move || -> anyhow::Result<GeneratedKey> {
        let pepper = ctx.config.keys.pepper();
        let (key, text) = match master_key {
            Some(master_key) => ProjectKey::generate_with_master_key(&master_key, pepper)?,
            None => ProjectKey::generate(pepper)?,
        };
        let hashed = HashedKey {
            secret_key_hmac: key.lookup_hash(pepper),
            secret_key_hash_phc: key.hash(pepper)?,
            is_compact: key.is_compact(),
        };
        Ok(GeneratedKey { hashed, secret_key: format!("{KEY_PREFIX}{}", *text) })
    };
    // Not on an async thread, because the hash is slow by design.
    Ok(tokio::task::spawn_blocking(generate).await.map_err(Error::internal)??)
}

/// The project's new key.
#[derive(Serialize, utoipa::ToSchema)]
pub struct RotateKeyResponse {
    /// The key cannot be retrieved later, except by the same request with the same `Idempotency-Key`.
    #[schema(example = "sk-ac-AQAB…")]
    secret_key: String,
}

/// Rotate the project's API key
///
/// Returns a new key with the same master key, so encrypted content stays readable. The old key stops working immediately.
/// If the request has an `Idempotency-Key`, the same request returns the same response for 24 hours, even with the old key.
#[utoipa::path(put, path = "/admin/v1/project/secret_key", tag = "admin")]
pub async fn rotate_key(
    State(ctx): State<Projects>,
    caller: Caller,
    idempotency: Idempotency,
) -> CommandResult<Data<RotateKeyResponse>> {
    idempotency.replay_if_completed().await?;
    if caller.is_rotated {
        return Err(UNAUTHORIZED.into());
    }
    let generated = generate_key(&ctx, caller.encryption.kek.as_ref().map(|kek| kek.master().clone())).await?;
    let mut tx = idempotency.begin().await?;
    let locked = store::lock(&mut tx, caller.project).await?.ok_or(UNAUTHORIZED)?;
    if locked.secret_key_hmac != *caller.key_lookup_hash {
        // Another request has rotated the key in the meantime.
        return Err(UNAUTHORIZED.into());
    }
    if locked.may_have_encrypted_content() && caller.encryption.kek.is_none() {
        return Err(Error::bad_request(
            "cannot rotate: project has encryption enabled but current API key has no embedded master key; \
             re-issue a v2 key first",
        )
        .into());
    }
    store::update_key(&mut tx, caller.project, &generated.hashed).await?;
    store::insert_rotated_key(&mut tx, caller.project, &caller.key_lookup_hash, locked.key_is_compact).await?;
    let response = tx.commit(response::ok(RotateKeyResponse { secret_key: generated.secret_key })).await?;
    // The database notifies the other processes.
    ctx.authenticator.invalidate_project(caller.project);
    Ok(response)
}

/// Reset the project's API key
///
/// Issues a key with a new master key. Not available for encrypted projects, whose content would become unreadable.
#[utoipa::path(put, path = "/admin/v1/project/{project_id}/secret_key", tag = "admin",
    params(("project_id" = ProjectId, Path)), security(("AdminToken" = [])))]
pub async fn reset_key(
    State(ctx): State<Projects>,
    idempotency: Idempotency,
    Path(project): Path<ProjectId>,
) -> CommandResult<Data<RotateKeyResponse>> {
    idempotency.replay_if_completed().await?;
    let generated = generate_key(&ctx, None).await?;
    let mut tx = idempotency.begin().await?;
    let locked = store::lock(&mut tx, project).await?.ok_or(Error::NotFound("project not found"))?;
    if locked.may_have_encrypted_content() {
        return Err(Error::bad_request(
            "cannot rotate key for encrypted projects via admin API — use the project Bearer token endpoint to \
             preserve the master key",
        )
        .into());
    }
    store::update_key(&mut tx, project, &generated.hashed).await?;
    let response = tx.commit(response::ok(RotateKeyResponse { secret_key: generated.secret_key })).await?;
    ctx.authenticator.invalidate_project(project);
    Ok(response)
}

/// Deletes the records of rotated keys whose responses can no longer be replayed. Runs as a periodic task.
///
/// # Errors
/// Returns an error if the database fails.
pub async fn purge_rotated_keys(ctx: Projects) -> Result<()> {
    let mut conn = ctx.db.acquire().await?;
    Ok(store::purge_rotated_keys(&mut conn).await?)
}
