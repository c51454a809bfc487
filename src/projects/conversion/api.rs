//! The routes that encrypt a project and open it again, and tell how far that is.

use axum::extract::State;
use serde::Serialize;
use tokio::time::Instant;

use super::convert::Convert;
use super::store;
use crate::auth::Caller;
use crate::encryption::{ProjectEncryption, StorageFormat};
use crate::error::{Error, Result, UNAUTHORIZED};
use crate::http::idempotency::Idempotency;
use crate::http::response::{self, CommandResult, Data, Empty, QueryResult};
use crate::jobs::{self, Delay};
use crate::process::Changes;
use crate::projects;
use crate::projects::Projects;

/// Encrypt the project
///
/// From now on everything is stored sealed with the key inside of the project's API key, and what is there is sealed in the
/// background. The answer waits for that for up to 25 seconds and is the same if it goes on. It can be called again at any time.
#[utoipa::path(post, path = "/api/v1/project/encrypt", tag = "project")]
pub async fn encrypt_project(
    State(ctx): State<Projects>,
    caller: Caller,
    idempotency: Idempotency,
) -> CommandResult<Empty> {
    change(&ctx, &caller, &idempotency, StorageFormat::Encrypted).await
}

/// Decrypt the project
///
/// From now on everything is stored as it is, and what is sealed is opened in the background. The answer waits for that for up
/// to 25 seconds and is the same if it goes on.
#[utoipa::path(post, path = "/api/v1/project/decrypt", tag = "project")]
pub async fn decrypt_project(
    State(ctx): State<Projects>,
    caller: Caller,
    idempotency: Idempotency,
) -> CommandResult<Empty> {
    change(&ctx, &caller, &idempotency, StorageFormat::Plaintext).await
}

/// Encrypt the project, as an operator who has its key
///
/// As the route of the same name under `/api/v1`.
#[utoipa::path(post, path = "/admin/v1/project/encrypt", tag = "admin")]
pub async fn encrypt_project_as_admin(
    state: State<Projects>,
    caller: Caller,
    idempotency: Idempotency,
) -> CommandResult<Empty> {
    encrypt_project(state, caller, idempotency).await
}

/// Decrypt the project, as an operator who has its key
///
/// As the route of the same name under `/api/v1`.
#[utoipa::path(post, path = "/admin/v1/project/decrypt", tag = "admin")]
pub async fn decrypt_project_as_admin(
    state: State<Projects>,
    caller: Caller,
    idempotency: Idempotency,
) -> CommandResult<Empty> {
    decrypt_project(state, caller, idempotency).await
}

async fn change(
    ctx: &Projects,
    caller: &Caller,
    idempotency: &Idempotency,
    format: StorageFormat,
) -> CommandResult<Empty> {
    let Some(kek) = caller.encryption.kek.clone() else {
        return Err(Error::bad_request(if format.is_encrypted() {
            "compact API key required to derive encryption key; rotate your API key to enable encryption"
        } else {
            "compact API key required to derive encryption key; rotate your API key to disable encryption"
        })
        .into());
    };
    let check = kek.check();
    let encryption = ProjectEncryption { project: caller.project, format: StorageFormat::Encrypted, kek: Some(kek) };
    let mut tx = idempotency.begin().await?;
    StorageFormat::lock_exclusively(&mut tx, caller.project).await?;
    let locked = projects::store::lock(&mut tx, caller.project).await?.ok_or(UNAUTHORIZED)?;
    // The key was replaced just now, or is around another master key.
    if locked.secret_key_hmac != *caller.lookup
        || locked.master_key_check_value.as_deref().is_some_and(|sealed| sealed != check)
    {
        return Err(UNAUTHORIZED.into());
    }
    if !format.is_encrypted() && !locked.is_sealed() {
        return Err(Error::bad_request("project encryption is not enabled").into());
    }
    store::set_format(&mut tx, caller.project, format, &check).await?;
    store::begin(&mut tx, caller.project, format).await?;
    // What works already may meet sealed content too.
    jobs::store::set_key(&mut tx, caller.project, ctx.queue.wrap_key(&encryption)?.as_deref()).await?;
    let job = Convert { project: caller.project };
    ctx.queue.enqueue(&mut tx, &encryption, &job, Delay::NONE).await?;
    // It may wait after a failure.
    ctx.queue.make_due_with_error(&mut tx, &job).await?;
    let answer = response::message(if format.is_encrypted() { "encryption enabled" } else { "encryption disabled" });
    // Kept with the effect, so that whoever asks again is not told that there is nothing to decrypt.
    let answer = tx.commit(answer).await?;
    ctx.authenticator.invalidate_project(caller.project);
    wait(ctx, caller).await?;
    Ok(answer)
}

/// Waits until the conversion has ended, or it takes too long.
async fn wait(ctx: &Projects, caller: &Caller) -> Result<()> {
    let deadline = Instant::now() + ctx.config.limits.conversion_wait;
    let changes = Changes::until(deadline, &ctx.conversion_finished);
    loop {
        let change = changes.next();
        let mut conn = ctx.db.acquire().await?;
        let conversion = store::get(&mut conn, caller.project).await?;
        drop(conn);
        if conversion.is_none_or(|conversion| conversion.is_finished) || changes.is_over() {
            return Ok(());
        }
        change.await;
    }
}

/// What is being done with the content that was stored before encryption was enabled or disabled.
#[derive(Clone, Copy, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ConversionState {
    Idle,
    Encrypting,
    Decrypting,
}

/// Whether a project is encrypted, and how far its content is.
#[derive(Serialize, utoipa::ToSchema)]
pub struct Encryption {
    /// How content is stored from now on.
    enabled: bool,
    state: ConversionState,
    /// How many messages and stored files were turned the last time, or are by now.
    done: i64,
    total: i64,
    /// What could not be turned, or what keeps it from going on.
    error: Option<String>,
}

/// Tell how far the project is encrypted
#[utoipa::path(get, path = "/api/v1/project/encryption", tag = "project")]
pub async fn get_project_encryption(State(ctx): State<Projects>, caller: Caller) -> QueryResult<Data<Encryption>> {
    let mut conn = ctx.db.acquire().await?;
    let settings = projects::store::get_settings(&mut conn, caller.project).await?.ok_or(UNAUTHORIZED)?;
    let conversion = store::get(&mut conn, caller.project).await?;
    let mut encryption = Encryption {
        enabled: settings.encryption_enabled,
        state: ConversionState::Idle,
        done: 0,
        total: 0,
        error: None,
    };
    if let Some(store::Conversion { format, total, converted, failed, error, is_finished }) = conversion {
        encryption.state = match (is_finished, format) {
            (true, _) => ConversionState::Idle,
            (false, StorageFormat::Encrypted) => ConversionState::Encrypting,
            (false, StorageFormat::Plaintext) => ConversionState::Decrypting,
        };
        (encryption.done, encryption.total) = (converted, total);
        encryption.error = match (failed, error) {
            (0 | 1, error) => error,
            (failed, error) => error.map(|error| format!("{error} (and {} more)", failed - 1)),
        };
    }
    Ok(response::ok(encryption))
}
