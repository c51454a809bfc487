//! The routes that encrypt and decrypt a project, and the route that returns the progress.

use axum::extract::State;
use serde::Serialize;
use tokio::time::Instant;

use super::convert::ConvertProject;
use super::store;
use crate::auth::Caller;
use crate::encryption::{ProjectEncryption, StorageFormat};
use crate::error::{Error, Result, UNAUTHORIZED};
use crate::http::idempotency::Idempotency;
use crate::http::response::{self, CommandResult, Data, Empty, QueryResult};
use crate::jobs::{self, Delay};
use crate::process::ChangeWaiter;
use crate::projects;
use crate::projects::Projects;

/// Encrypt the project
///
/// Encrypts all new content with the master key in the project's API key, and converts existing content in the background.
/// Waits for the conversion, by default up to 25 seconds. The response is the same if the conversion is still running. The
/// request can be repeated at any time.
#[utoipa::path(post, path = "/api/v1/project/encrypt", tag = "project")]
pub async fn encrypt_project(
    State(ctx): State<Projects>,
    caller: Caller,
    idempotency: Idempotency,
) -> CommandResult<Empty> {
    set_storage_format(&ctx, &caller, &idempotency, StorageFormat::Encrypted).await
}

/// Decrypt the project
///
/// Stores all new content unencrypted, and decrypts existing content in the background. Waits for the conversion, by default
/// up to 25 seconds. The response is the same if the conversion is still running.
#[utoipa::path(post, path = "/api/v1/project/decrypt", tag = "project")]
pub async fn decrypt_project(
    State(ctx): State<Projects>,
    caller: Caller,
    idempotency: Idempotency,
) -> CommandResult<Empty> {
    set_storage_format(&ctx, &caller, &idempotency, StorageFormat::Plaintext).await
}

/// Encrypt the project (admin route)
///
/// Same as `POST /api/v1/project/encrypt`.
#[utoipa::path(post, path = "/admin/v1/project/encrypt", tag = "admin")]
pub async fn encrypt_project_as_admin(
    state: State<Projects>,
    caller: Caller,
    idempotency: Idempotency,
) -> CommandResult<Empty> {
    encrypt_project(state, caller, idempotency).await
}

/// Decrypt the project (admin route)
///
/// Same as `POST /api/v1/project/decrypt`.
#[utoipa::path(post, path = "/admin/v1/project/decrypt", tag = "admin")]
pub async fn decrypt_project_as_admin(
    state: State<Projects>,
    caller: Caller,
    idempotency: Idempotency,
) -> CommandResult<Empty> {
    decrypt_project(state, caller, idempotency).await
}

/// Changes the storage format of the project, starts the conversion of its content, and waits for it.
async fn set_storage_format(
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
    let check_value = kek.check_value();
    // Always `Encrypted`, so that jobs get the master key. They need it for a decryption, too.
    let encryption = ProjectEncryption { project: caller.project, format: StorageFormat::Encrypted, kek: Some(kek) };
    let mut tx = idempotency.begin().await?;
    StorageFormat::lock_exclusively(&mut tx, caller.project).await?;
    let locked = projects::store::lock(&mut tx, caller.project).await?.ok_or(UNAUTHORIZED)?;
    // The key has been rotated in the meantime, or its master key is not the one with which content is encrypted.
    if locked.secret_key_hmac != *caller.key_lookup_hash
        || locked.master_key_check_value.as_deref().is_some_and(|expected| expected != check_value)
    {
        return Err(UNAUTHORIZED.into());
    }
    if !format.is_encrypted() && !locked.may_have_encrypted_content() {
        return Err(Error::bad_request("project encryption is not enabled").into());
    }
    store::set_format(&mut tx, caller.project, format, &check_value).await?;
    store::begin_conversion(&mut tx, caller.project, format).await?;
    // Jobs that are already in the queue need the master key, too, because they may read encrypted content.
    let encrypted_kek = ctx.queue.wrap_kek_if_encrypted(&encryption)?;
    jobs::store::set_key_for_all(&mut tx, caller.project, encrypted_kek.as_deref()).await?;
    let job = ConvertProject { project: caller.project };
    ctx.queue.enqueue(&mut tx, &encryption, &job, Delay::NONE).await?;
    // A conversion job may already be in the queue and wait for its next attempt.
    ctx.queue.make_due_keeping_error(&mut tx, &job).await?;
    let response =
        response::ok_message(if format.is_encrypted() { "encryption enabled" } else { "encryption disabled" });
    // The commit precedes the wait. If the client disconnects during the wait and repeats the request with its idempotency key,
    // it receives this response and not the error that the project is not encrypted.
    let response = tx.commit(response).await?;
    ctx.authenticator.invalidate_project(caller.project);
    wait_for_conversion(ctx, caller).await?;
    Ok(response)
}

/// Waits until the conversion has finished, or until the configured time has passed.
async fn wait_for_conversion(ctx: &Projects, caller: &Caller) -> Result<()> {
    let deadline = Instant::now() + ctx.config.limits.conversion_wait;
    let changes = ChangeWaiter::until(deadline, &ctx.conversion_finished);
    loop {
        let change = changes.next();
        let mut conn = ctx.db.acquire().await?;
        let conversion = store::get(&mut conn, caller.project).await?;
        drop(conn);
        if conversion.is_none_or(|conversion| conversion.is_finished) || changes.is_timed_out() {
            return Ok(());
        }
        change.await;
    }
}

/// The state of the conversion of existing content.
#[derive(Clone, Copy, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ConversionState {
    Idle,
    Encrypting,
    Decrypting,
}

/// The encryption setting of a project, and the progress of its last conversion.
#[derive(Serialize, utoipa::ToSchema)]
pub struct EncryptionStatus {
    /// `true` if new content is stored encrypted.
    enabled: bool,
    state: ConversionState,
    /// Number of messages and stored files that were converted so far.
    done: i64,
    /// Number of messages and stored files that the conversion includes.
    total: i64,
    /// The first error of the items that could not be converted, or the reason why the conversion is delayed.
    error: Option<String>,
}

/// Get encryption status
#[utoipa::path(get, path = "/api/v1/project/encryption", tag = "project")]
pub async fn get_project_encryption(
    State(ctx): State<Projects>,
    caller: Caller,
) -> QueryResult<Data<EncryptionStatus>> {
    let mut conn = ctx.db.acquire().await?;
    let settings = projects::store::get_settings(&mut conn, caller.project).await?.ok_or(UNAUTHORIZED)?;
    let conversion = store::get(&mut conn, caller.project).await?;
    let mut status = EncryptionStatus {
        enabled: settings.encryption_enabled,
        state: ConversionState::Idle,
        done: 0,
        total: 0,
        error: None,
    };
    if let Some(store::Conversion { format, total, converted, failed, error, is_finished }) = conversion {
        status.state = match (is_finished, format) {
            (true, _) => ConversionState::Idle,
            (false, StorageFormat::Encrypted) => ConversionState::Encrypting,
            (false, StorageFormat::Plaintext) => ConversionState::Decrypting,
        };
        (status.done, status.total) = (converted, total);
        status.error = match (failed, error) {
            (0 | 1, error) => error,
            (failed, error) => error.map(|error| format!("{error} (and {} more)", failed - 1)),
        };
    }
    Ok(response::ok(status))
}
