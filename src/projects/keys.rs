//! How a project's key is replaced. The old one opens nothing from then on, in any process; what was sealed stays readable,
//! because the new one has the same master key.

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;

use super::store::{self, NewKey};
use crate::app::App;
use crate::auth::Caller;
use crate::crypto::{KEY_PREFIX, MasterKey, ProjectKey};
use crate::error::{Error, Result, UNAUTHORIZED};
use crate::http::extract::Path;
use crate::http::idempotency::Once;
use crate::http::openapi::Refusals;
use crate::http::response::{self, Envelope};
use crate::ids::ProjectId;

/// A key that was made: how it is kept, and how its owner writes it.
pub struct Made {
    pub new: NewKey,
    pub secret_key: String,
}

/// Makes a key, around a master key that is there or a new one.
///
/// # Errors
/// The system gives no random bytes.
pub async fn make(app: &App, master_key: Option<MasterKey>) -> Result<Made> {
    let app = app.clone();
    let make = move || -> anyhow::Result<Made> {
        let pepper = app.config.keys.pepper();
        let (key, text) = match master_key {
            Some(master_key) => ProjectKey::generate_around(&master_key, pepper)?,
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
#[utoipa::path(put, path = "/admin/v1/project/secret_key", tag = "admin",
    responses((status = 200, body = Envelope<ReplacedKey>), Refusals))]
pub async fn replace_key(State(app): State<App>, caller: Caller, once: Once) -> Result<Response> {
    once.look(&app).await?;
    if caller.is_replaced {
        return Err(UNAUTHORIZED);
    }
    let made = make(&app, caller.owner.kek.as_ref().map(|kek| kek.master().clone())).await?;
    let mut act = once.begin(&app).await?;
    let locked = store::lock(&mut act, caller.project).await?.ok_or(UNAUTHORIZED)?;
    if locked.secret_key_hmac != *caller.lookup {
        // Another request was faster.
        return Err(UNAUTHORIZED);
    }
    if locked.is_sealed() && caller.owner.kek.is_none() {
        return Err(Error::bad(
            "cannot rotate: project has encryption enabled but current API key has no embedded master key; \
             re-issue a v2 key first",
        ));
    }
    store::update_key(&mut act, caller.project, &made.new).await?;
    store::insert_replaced(&mut act, caller.project, &caller.lookup).await?;
    let answer = act.commit(response::ok(ReplacedKey { secret_key: made.secret_key })).await?;
    // The others are told by the database.
    app.keys.forget(caller.project);
    Ok(answer)
}

/// Replace a lost key
///
/// With one that has a new master key, so not for encrypted projects: nothing in them could be read any more.
#[utoipa::path(put, path = "/admin/v1/project/{project_id}/secret_key", tag = "admin",
    params(("project_id" = ProjectId, Path)), security(("AdminToken" = [])),
    responses((status = 200, body = Envelope<ReplacedKey>), Refusals))]
pub async fn reset_key(State(app): State<App>, once: Once, Path(project): Path<ProjectId>) -> Result<Response> {
    once.look(&app).await?;
    let made = make(&app, None).await?;
    let mut act = once.begin(&app).await?;
    let locked = store::lock(&mut act, project).await?.ok_or(Error::NotFound("project not found"))?;
    if locked.is_sealed() {
        return Err(Error::bad(
            "cannot rotate key for encrypted projects via admin API — use the project Bearer token endpoint to \
             preserve the master key",
        ));
    }
    store::update_key(&mut act, project, &made.new).await?;
    let answer = act.commit(response::ok(ReplacedKey { secret_key: made.secret_key })).await?;
    app.keys.forget(project);
    Ok(answer)
}

/// Forgets keys that were replaced long ago.
///
/// # Errors
/// The database fails.
pub async fn forget_old(app: App) -> Result<()> {
    let mut conn = app.db.acquire().await?;
    Ok(store::delete_replaced(&mut conn).await?)
}
