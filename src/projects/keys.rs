//! How a project's key is replaced. The old one opens nothing from then on, in any process; what was sealed stays readable,
//! because the new one has the same master key.

use axum::extract::State;
use serde::Serialize;

use super::store::{self, NewKey};
use crate::auth::Caller;
use crate::crypto::{KEY_PREFIX, MasterKey, ProjectKey};
use crate::error::{Error, Result, UNAUTHORIZED};
use crate::http::extract::Path;
use crate::http::idempotency::Idempotency;
use crate::http::response::{self, CommandResult, Data};
use crate::ids::ProjectId;
use crate::projects::Projects;

/// A key that was made: how it is kept, and how its owner writes it.
pub struct Made {
    pub new: NewKey,
    pub secret_key: String,
}

/// Makes a key, around a master key that is there or a new one.
///
/// # Errors
/// The system gives no random bytes.
pub async fn make(ctx: &Projects, master_key: Option<MasterKey>) -> Result<Made> {
    let ctx = ctx.clone();
    let make = move || -> anyhow::Result<Made> {
        let pepper = ctx.config.keys.pepper();
        let (key, text) = match master_key {
            Some(master_key) => ProjectKey::generate_with_master_key(&master_key, pepper)?,
            None => ProjectKey::generate(pepper)?,
        };
        let new = NewKey { secret_key_hmac: key.lookup(pepper), secret_key_hash_phc: key.hash(pepper)? };
        Ok(Made { new, secret_key: format!("{KEY_PREFIX}{}", *text) })
    };
    // The hash is slow by design.
    Ok(tokio::task::spawn_blocking(make).await.map_err(Error::internal)??)
}

/// The project's new key.
#[derive(Serialize, utoipa::ToSchema)]
pub struct ReplacedKey {
    /// It is shown here, and to a request that comes again with its `Idempotency-Key`.
    #[schema(example = "sk-ac-AQAB…")]
    secret_key: String,
}

/// Replace the project's key
///
/// The key of the request opens nothing from then on, and what was sealed stays readable with the new one. Send an
/// `Idempotency-Key`: if the answer is lost, the same request gets it again for 24 hours, also with the old key, which is good for
/// nothing else.
#[utoipa::path(put, path = "/admin/v1/project/secret_key", tag = "admin")]
pub async fn replace_key(
    State(ctx): State<Projects>,
    caller: Caller,
    idempotency: Idempotency,
) -> CommandResult<Data<ReplacedKey>> {
    idempotency.replay_if_completed().await?;
    if caller.is_rotated {
        return Err(UNAUTHORIZED.into());
    }
    let made = make(&ctx, caller.encryption.kek.as_ref().map(|kek| kek.master().clone())).await?;
    let mut tx = idempotency.begin().await?;
    let locked = store::lock(&mut tx, caller.project).await?.ok_or(UNAUTHORIZED)?;
    if locked.secret_key_hmac != *caller.lookup {
        // Another request was faster.
        return Err(UNAUTHORIZED.into());
    }
    if locked.is_sealed() && caller.encryption.kek.is_none() {
        return Err(Error::bad_request(
            "cannot rotate: project has encryption enabled but current API key has no embedded master key; \
             re-issue a v2 key first",
        )
        .into());
    }
    store::update_key(&mut tx, caller.project, &made.new).await?;
    store::insert_replaced(&mut tx, caller.project, &caller.lookup).await?;
    let answer = tx.commit(response::ok(ReplacedKey { secret_key: made.secret_key })).await?;
    // The others are told by the database.
    ctx.authenticator.invalidate_project(caller.project);
    Ok(answer)
}

/// Replace a lost key
///
/// With one that has a new master key, so not for encrypted projects: nothing in them could be read any more.
#[utoipa::path(put, path = "/admin/v1/project/{project_id}/secret_key", tag = "admin",
    params(("project_id" = ProjectId, Path)), security(("AdminToken" = [])))]
pub async fn reset_key(
    State(ctx): State<Projects>,
    idempotency: Idempotency,
    Path(project): Path<ProjectId>,
) -> CommandResult<Data<ReplacedKey>> {
    idempotency.replay_if_completed().await?;
    let made = make(&ctx, None).await?;
    let mut tx = idempotency.begin().await?;
    let locked = store::lock(&mut tx, project).await?.ok_or(Error::NotFound("project not found"))?;
    if locked.is_sealed() {
        return Err(Error::bad_request(
            "cannot rotate key for encrypted projects via admin API — use the project Bearer token endpoint to \
             preserve the master key",
        )
        .into());
    }
    store::update_key(&mut tx, project, &made.new).await?;
    let answer = tx.commit(response::ok(ReplacedKey { secret_key: made.secret_key })).await?;
    ctx.authenticator.invalidate_project(project);
    Ok(answer)
}

/// Deletes the records of keys that were rotated long ago. Periodic.
///
/// # Errors
/// The database fails.
pub async fn purge_rotated(ctx: Projects) -> Result<()> {
    let mut conn = ctx.db.acquire().await?;
    Ok(store::delete_replaced(&mut conn).await?)
}
