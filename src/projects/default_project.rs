//! The default project. The first startup creates it, with the root token as its key.
//!
//! A later startup replaces the key only if the configured root token differs from the one that was applied last. A rotated key
//! therefore survives a restart. The replacement fails while the project is encrypted, because the new key could not decrypt
//! the project's content.

use anyhow::{Context, anyhow, bail};
use secrecy::ExposeSecret;
use serde_json::json;

use super::pepper;
use super::store::{self, APPLIED_ROOT_TOKEN, DEFAULT_PROJECT_MARKER, HashedKey};
use crate::crypto::ProjectKey;
use crate::db::server_state;
use crate::ids::ProjectId;
use crate::platform::Platform;

/// The default project after startup.
#[derive(Debug, PartialEq, Eq)]
pub struct DefaultProject {
    pub id: ProjectId,
    /// `false` if the key of the project was rotated or reset after the root token was applied.
    pub accepts_root_token: bool,
}

/// Creates the default project, or applies a changed root token to it. Several processes may do this concurrently.
///
/// # Errors
/// Returns an error if the database fails, if the database was set up with another pepper, or if the root token cannot be
/// applied: it has changed while the project is encrypted, is the key of another project, or is a compact key that was created
/// with another pepper.
pub async fn ensure(platform: &Platform) -> anyhow::Result<DefaultProject> {
    let key = ProjectKey::parse(platform.config.keys.root_token.expose_secret());
    let pepper = platform.config.keys.pepper();
    let lookup_hash = key.lookup_hash(pepper);
    key.master_key(pepper).context(
        "ROOT_API_BEARER_TOKEN is a compact key that was created with another ROOT_SECRET_PEPPER: set the pepper with \
         which it was created, or set ROOT_API_BEARER_TOKEN to a new random text",
    )?;

    let mut tx = platform.db.begin().await?;
    sqlx::query!("select pg_advisory_xact_lock(hashtext('acontextd root project'))").fetch_one(&mut *tx).await?;
    pepper::record(&mut tx, &platform.config.keys).await?;
    let existing = store::lock_default_project(&mut tx).await?;
    let applied_hash = server_state::get_state(&mut tx, APPLIED_ROOT_TOKEN).await?;
    let mut accepts_root_token = true;
    let id = match existing {
        Some(existing) if applied_hash.as_deref() == Some(lookup_hash.as_str()) => {
            let locked = store::lock(&mut tx, existing.id).await?;
            accepts_root_token = locked.is_some_and(|project| project.secret_key_hmac == lookup_hash);
            existing.id
        }
        Some(existing) if existing.may_have_encrypted_content => bail!(
            "ROOT_API_BEARER_TOKEN is not the token that was applied last, but the default project is encrypted and a \
             new token cannot decrypt its content: set ROOT_API_BEARER_TOKEN to the previous token, or decrypt the \
             project before you change the token"
        ),
        Some(existing) => {
            let hashed = hash_key(key, lookup_hash.clone(), platform).await?;
            store::update_key(&mut tx, existing.id, &hashed).await.map_err(explain_key_conflict)?;
            // The token may be a key that was rotated before.
            store::delete_rotated_key(&mut tx, &lookup_hash).await?;
            existing.id
        }
        None => {
            let hashed = hash_key(key, lookup_hash.clone(), platform).await?;
            let inserted = store::insert(&mut tx, &hashed, Some(json!({ DEFAULT_PROJECT_MARKER: true }))).await;
            inserted.map_err(explain_key_conflict)?
        }
    };
    server_state::set_state(&mut tx, APPLIED_ROOT_TOKEN, &lookup_hash).await?;
    tx.commit().await?;
    Ok(DefaultProject { id, accepts_root_token })
}

/// Explains a violation of the unique index on key lookup hashes. Returns other errors unchanged.
fn explain_key_conflict(error: sqlx::Error) -> anyhow::Error {
    match &error {
        sqlx::Error::Database(inner) if inner.constraint() == Some("projects_secret_key_hmac_key") => anyhow!(
            "ROOT_API_BEARER_TOKEN is the key of another project: set it to the previous token, or to a new random text"
        ),
        _ => error.into(),
    }
}

async fn hash_key(key: ProjectKey, secret_key_hmac: String, platform: &Platform) -> anyhow::Result<HashedKey> {
    let (platform, is_compact) = (platform.clone(), key.is_compact());
    let hash = tokio::task::spawn_blocking(move || key.hash(platform.config.keys.pepper())).await??;
    Ok(HashedKey { secret_key_hmac, secret_key_hash_phc: hash, is_compact })
}
